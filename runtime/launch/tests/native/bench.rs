//! What each test stands on: a cgroup of its own, a place for files, and the waiting for a started process.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use byre_launch::{Child, Context, Descriptors, Report, StartError, Stdio, cgroup, read_report, start};
use byre_plan::seccomp::{self, Instruction};
use byre_plan::{ExecPlan, LaunchRequest, Origin, Plan, Policy, Process, Program, Refusal, User, WorkloadId};

/// Longest a test waits for a process.
const PATIENCE: Duration = Duration::from_secs(20);

/// Devices that stand for the system disk.
const DENIED: &[(u32, u32)] = &[(254, u32::MAX)];

/// A test: what it shows, and how.
pub(crate) type Test = (&'static str, fn(&Bench));

/// Places and descriptors that all tests share.
pub(crate) struct Bench {
    parent: OwnedFd,
    parent_path: PathBuf,
    helper: File,
    filter: Vec<Instruction>,
    device_program: OwnedFd,
    /// Whether what is started gets a descriptor beside its standard streams.
    pub(crate) hands_over: std::cell::Cell<bool>,
    /// Layers, containers and volumes lie below.
    pub(crate) files: tempfile::TempDir,
}

impl Bench {
    /// # Errors
    /// What this machine lacks.
    pub(crate) fn new() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("root is needed to make namespaces, mounts and cgroups".to_owned());
        }
        let mounts = std::fs::read_to_string("/proc/mounts").map_err(|error| format!("/proc/mounts: {error}"))?;
        let cgroup2 = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| place.to_owned())
        });
        let place = cgroup2.into_iter().next().ok_or("a mounted cgroup2 is needed, at any place")?;
        let parent_path = Path::new(&place).join(format!("byre-test-{}", std::process::id()));
        std::fs::create_dir(&parent_path).map_err(|error| format!("cannot make a cgroup below {place}: {error}"))?;
        let parent = File::open(&parent_path).map_err(|error| format!("{}: {error}", parent_path.display()))?.into();
        let helper = File::open("/proc/self/exe").map_err(|error| format!("/proc/self/exe: {error}"))?;
        let files = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
        for name in ["layers", "shared", "containers", "volumes"] {
            std::fs::create_dir(files.path().join(name)).map_err(|error| format!("temporary directory: {error}"))?;
        }
        let filter = seccomp::compile(&seccomp::default_profile()).map_err(|error| error.to_string())?;
        let device_program =
            byre_launch::load_default_device_program(DENIED).map_err(|errno| format!("device program: {errno}"))?;
        Ok(Self { parent, parent_path, helper, filter, device_program, hands_over: std::cell::Cell::new(false), files })
    }

    /// Runs a test in a child process; true if it ended well.
    pub(crate) fn run_forked(&self, test: impl FnOnce()) -> bool {
        use nix::sys::wait::{WaitStatus, waitpid};
        // SAFETY: this process has one thread.
        match unsafe { nix::unistd::fork() }.expect("fork") {
            nix::unistd::ForkResult::Child => {
                // Tests unwind in cargo's test profile; the bench is the parent's to take down.
                let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
                std::process::exit(i32::from(ended.is_err()))
            }
            nix::unistd::ForkResult::Parent { child } => matches!(waitpid(child, None), Ok(WaitStatus::Exited(_, 0))),
        }
    }

    /// Unmounts every shared layer.
    pub(crate) fn release_layers(&self) {
        byre_launch::release_layers(&self.directory("shared"), None).expect("release layers");
    }

    /// A directory of the bench as text.
    pub(crate) fn directory(&self, name: &str) -> String {
        self.files.path().join(name).to_str().expect("a temporary path is UTF-8").to_owned()
    }

    /// Starts a request that must be fine by itself, and waits for how the start and the process end.
    pub(crate) fn run(&self, request: LaunchRequest) -> Ended {
        let plan = check(request).expect("a test's request is good");
        self.run_plan(&plan)
    }

    /// As [`Bench::run`], with a plan.
    pub(crate) fn run_plan(&self, plan: &Plan) -> Ended {
        let mut running = self.start(plan, 0x1b1b);
        running.finish()
    }

    /// Starts a plan, with its output in a pipe.
    pub(crate) fn start(&self, plan: &Plan, id: u64) -> Running<'_> {
        let id = WorkloadId(id);
        let (outer, leaf) = cgroup::create(self.parent.as_fd(), &id.to_string()).expect("make cgroups");
        let (child, output) = self.launch(id, &outer, &leaf, |context, descriptors| start(plan, context, descriptors));
        Running { bench: self, id, outer, leaf, child, output, report: None }
    }

    /// Names of the cgroups that tests have made.
    pub(crate) fn cgroups(&self) -> std::collections::BTreeSet<String> {
        let entries = std::fs::read_dir(&self.parent_path).expect("cgroup").map(|entry| entry.expect("cgroup"));
        let directories = entries.filter(|entry| entry.file_type().expect("cgroup").is_dir());
        directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Reaps children until only `kept` of them are left, as PID 1 reaps every orphan.
    pub(crate) fn reap_orphans(&self, kept: usize) {
        use nix::sys::wait::{WaitPidFlag, waitpid};
        let deadline = Instant::now() + PATIENCE;
        while children().len() > kept {
            assert!(Instant::now() < deadline, "children stay: {:?}", children());
            let _ = waitpid(nix::unistd::Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL));
        }
    }

    fn launch(
        &self,
        id: WorkloadId,
        outer: &OwnedFd,
        leaf: &OwnedFd,
        run: impl FnOnce(&Context<'_>, &Descriptors<'_>) -> Result<Child, StartError>,
    ) -> (Child, File) {
        let (output, theirs) = std::io::pipe().expect("make pipe");
        let directories = ["layers", "shared", "containers", "volumes"].map(|name| self.directory(name));
        let [layers, shared, containers, volumes] = &directories;
        let context = Context {
            id,
            id_base: Some(0x1000_0000),
            cgroup: outer.as_fd(),
            leaf: leaf.as_fd(),
            launch_cgroup: self.parent.as_fd(),
            store_layers: layers,
            shared_layers: shared,
            containers,
            volumes,
            namespaces: Some(super::pods::DIRECTORY),
            default_seccomp: &self.filter,
            helper_program: self.helper.as_fd(),
            device_program: self.device_program.as_fd(),
            denied_devices: DENIED,
            companion: None,
        };
        let named = if self.hands_over.get() { vec![("helper", self.helper.as_fd())] } else { Vec::new() };
        let descriptors = Descriptors {
            stdin: Stdio::Null,
            stdout: Stdio::Descriptor(theirs.as_fd()),
            stderr: Stdio::Descriptor(theirs.as_fd()),
            named,
            further: if self.hands_over.get() { vec![self.helper.as_fd()] } else { Vec::new() },
        };
        let child = run(&context, &descriptors).expect("start");
        (child, OwnedFd::from(output).into())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.release_layers();
        let _ = std::fs::remove_dir(&self.parent_path);
    }
}

/// A start under way.
pub(crate) struct Running<'a> {
    bench: &'a Bench,
    id: WorkloadId,
    pub(crate) outer: OwnedFd,
    leaf: OwnedFd,
    child: Child,
    output: File,
    report: Option<Report>,
}

impl Running<'_> {
    /// Waits until the start has ended, well or not.
    pub(crate) fn started(&mut self) -> &Report {
        if self.report.is_none() {
            self.report = Some(await_report(&self.child));
        }
        self.report.as_ref().expect("just read")
    }

    /// Whether the workload's process runs.
    pub(crate) fn is_alive(&self) -> bool {
        let Some(Report::Running { pidfd, .. }) = &self.report else { return false };
        rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::CONT).is_ok()
    }

    /// Kills the process that was cloned: the workload itself or stage 1.
    pub(crate) fn kill_stage(&self) {
        // It may have ended by itself.
        let _ = rustix::process::pidfd_send_signal(&self.child.stage_pidfd, rustix::process::Signal::KILL);
    }

    /// Reads the next line of output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0_u8; 1];
        while line.last() != Some(&b'\n') && self.output.read(&mut byte).expect("read output") == 1 {
            line.extend_from_slice(&byte);
        }
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Waits for the process's end and removes its cgroups.
    pub(crate) fn finish(&mut self) -> Ended {
        self.started();
        let report = self.report.take().expect("just read");
        let ended = end(report, &mut self.output);
        cgroup::kill(self.outer.as_fd()).expect("kill");
        let deadline = Instant::now() + PATIENCE;
        while cgroup::populated(self.outer.as_fd()).expect("populated") {
            assert!(Instant::now() < deadline, "processes stay");
        }
        cgroup::remove(self.bench.parent.as_fd(), &self.id.to_string()).expect("remove cgroups");
        ended
    }

    /// Runs a further process inside, to its end.
    pub(crate) fn exec(&mut self, exec: &ExecPlan, workload: &Plan) -> Ended {
        self.started();
        let Some(Report::Running { pidfd, .. }) = &self.report else { panic!("{:?}", self.report) };
        let (child, mut output) = self.bench.launch(self.id, &self.outer, &self.leaf, |context, descriptors| {
            byre_launch::exec(exec, workload, pidfd.as_fd(), context, descriptors)
        });
        let report = await_report(&child);
        end(report, &mut output)
    }
}

/// The children of this process, alive or not.
pub(crate) fn children() -> Vec<u32> {
    let own = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).expect("children");
    children.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

/// Waits for the end of a start, and of the process that was cloned if that is not the program.
fn await_report(child: &Child) -> Report {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the start does not end");
        match read_report(child.report.as_fd()).expect("read report") {
            Some(report) => {
                if !matches!(&report, Report::Running { pid, .. } if *pid == child.stage_pid) {
                    wait(child.stage_pidfd.as_raw_fd());
                }
                return report;
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn end(report: Report, output: &mut File) -> Ended {
    let mut text = Vec::new();
    let code = match &report {
        Report::Running { pidfd, .. } => {
            output.read_to_end(&mut text).expect("read output");
            Some(wait(pidfd.as_raw_fd()))
        }
        Report::Failed { .. } | Report::Made | Report::Incomplete => None,
    };
    Ended { report, code, output: String::from_utf8_lossy(&text).into_owned() }
}

fn wait(pidfd: i32) -> i32 {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    // SAFETY: the caller holds the descriptor open.
    let pidfd = unsafe { std::os::fd::BorrowedFd::borrow_raw(pidfd) };
    match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED).expect("wait") {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other @ (WaitStatus::Stopped(..)
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive) => panic!("{other:?}"),
    }
}

/// How a start and its process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) report: Report,
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
}

impl Ended {
    /// The output of a process that must have ended with code 0.
    pub(crate) fn output(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.output
    }

    /// The failed step, its subject and error number.
    pub(crate) fn failure(&self) -> (&str, &str, i32) {
        match &self.report {
            Report::Failed { step, subject, errno } => (step, subject, *errno),
            Report::Running { .. } | Report::Made | Report::Incomplete => panic!("{self:?}"),
        }
    }
}

/// Checks a request as the verified root's, which is held to no policy.
pub(crate) fn check(request: LaunchRequest) -> Result<Plan, Refusal> {
    Plan::check(request, &Policy::default(), Origin::VerifiedRoot)
}

/// A request that runs `script` by the host's shell, with everything the host's.
pub(crate) fn host_script(script: &str) -> LaunchRequest {
    LaunchRequest::on_host(Process {
        program: Program::Path,
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        cwd: "/".to_owned(),
        user: User::default(),
        terminal: None,
        capabilities: all_capabilities(),
        rlimits: Vec::new(),
        no_new_privileges: true,
        oom_score_adj: None,
        scheduling: byre_plan::Scheduling::default(),
        labels: byre_plan::Labels::default(),
    })
}

/// Every capability that this machine's root has, in the sets that root has.
pub(crate) fn all_capabilities() -> byre_plan::Capabilities {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("CapBnd");
    let all = u64::from_str_radix(bounding.trim(), 16).expect("a mask");
    byre_plan::Capabilities { bounding: all, effective: all, permitted: all, inheritable: 0, ambient: 0 }
}

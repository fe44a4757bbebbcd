//! `create` and `run`: from a bundle to a container that waits for its start.
//!
//! Everything that is made on the way is unmade when something fails, in the order of the runtime-spec's lifecycle: the container first, then the
//! poststop hooks.

use std::cell::RefCell;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use byre_launch::{Context, Descriptors, Progress, Report, Stdio};
use byre_plan::{LaunchRequest, Origin, Plan, Policy, WorkloadId};
use byre_spec::oci::{Bundle, fields};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen, recv, send,
    socket_with, socketpair,
};

use crate::error::{Error, cannot, wrong};
use crate::gate::{AT_ROOT, Gate, READY};
use crate::host::{self, Own};
use crate::log::{Log, now};
use crate::state::{Phase, Place, Record, Status, Store, process_state, write_whole};
use crate::{cgroups, console, hooks, interfaces, notify, sys};

/// Longest state that hooks are told: it is written before they are waited for, so a pipe must hold all of it.
const TOLD_BYTES: usize = 60 * 1024;

/// How a container is made.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    /// From the bundle, or absolute.
    pub(crate) config: PathBuf,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pidfd_socket: Option<PathBuf>,
    pub(crate) preserve_fds: u32,
    pub(crate) new_keyring: bool,
    /// The caller stays and serves the terminal itself.
    pub(crate) attached: bool,
}

/// A container that waits for its start.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) place: Place,
    pub(crate) record: Record,
    pub(crate) bundle: Bundle,
    pub(crate) pidfd: OwnedFd,
    /// The terminal's master, if the caller serves it.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Makes a container.
pub(crate) fn create(store: &Store, options: &Options, log: &Log) -> Result<Created, Error> {
    let directory = std::fs::canonicalize(&options.bundle)
        .map_err(cannot(format!("open bundle {}", options.bundle.display())))?
        .into_os_string()
        .into_string()
        .map_err(|_| wrong("the bundle's path is no UTF-8", "use one that is"))?;
    let json = read_config(&Path::new(&directory).join(&options.config))?;
    let own = Own::read()?;
    let (bundle, plan) = host::bundle(&json, &directory, &own, log)?;
    terminal_fits(options, plan.request())?;
    cgroups::check(&plan.request().resources)?;
    let record = Record {
        oci_version: bundle.version.clone(),
        id: options.id.clone(),
        bundle: directory,
        phase: Phase::Creating,
        pid: 0,
        started_ticks: 0,
        created: now(),
        owner: rustix::process::geteuid().as_raw(),
        cgroup: String::new(),
        annotations: bundle.annotations.clone(),
    };
    let told = record.told(Status::Creating).len();
    if told > TOLD_BYTES {
        return Err(wrong(
            format!("annotations make the state {told} bytes long"),
            format!("hooks are told at most {TOLD_BYTES}: shorten them"),
        ));
    }
    let place = store.reserve(&options.id)?;
    let made = cgroups::path(&bundle.cgroups_path, &options.id).and_then(|cgroup| {
        let record = Record { cgroup, ..record };
        place.write("config.json", &json)?;
        let noticed = match notify::prepare(&place, plan.request())? {
            Some(request) => Plan::check(request, &Policy::default(), Origin::VerifiedRoot)?,
            None => plan,
        };
        let cgroups = cgroups::create(&record.cgroup)?;
        let made = launch(&place, record.clone(), &bundle, &noticed, options, (&cgroups.0, &cgroups.1));
        if made.is_err() {
            if let Err(error) = cgroups::remove(&record.cgroup) {
                log.warn(&error.to_string());
            }
            run_poststop(&record, &bundle, log);
        }
        made
    });
    match made {
        Ok((record, pidfd, terminal)) => Ok(Created { place, record, bundle, pidfd, terminal }),
        Err(error) => {
            if let Err(left) = place.remove() {
                log.warn(&left.to_string());
            }
            Err(error)
        }
    }
}

/// The last hooks of a container that is gone. Their failures are told and change nothing.
pub(crate) fn run_poststop(record: &Record, bundle: &Bundle, log: &Log) {
    let state = record.told(Status::Stopped);
    for hook in &bundle.hooks.poststop {
        if let Err(reason) = hooks::one(hook, &state, None) {
            log.warn(&format!("poststop hook {}: {reason}", hook.path));
        }
    }
}

fn read_config(path: &Path) -> Result<Vec<u8>, Error> {
    use std::io::Read as _;
    let what = || format!("read {}", path.display());
    let file = std::fs::File::open(path).map_err(cannot(what()))?;
    let mut json = Vec::new();
    // One byte more than is read shows that it is too long.
    let most = u64::try_from(fields::CONFIG_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut json).map_err(cannot(what()))?;
    Ok(json)
}

fn terminal_fits(options: &Options, request: &LaunchRequest) -> Result<(), Error> {
    match (request.process.terminal.is_some(), &options.console_socket, options.attached) {
        (true, None, false) => Err(wrong(
            "process.terminal is set and nobody would take the terminal",
            "give --console-socket, or use run without --detach",
        )),
        (false, Some(_), _) => Err(wrong(
            "--console-socket is given and process.terminal is not set",
            "leave it out, or set process.terminal",
        )),
        (_, Some(_), true) => Err(wrong("--console-socket is for detached containers", "add --detach")),
        (_, _, _) => Ok(()),
    }
}

/// The socket on which a created container waits, in its directory.
fn listener(place: &Place) -> Result<OwnedFd, Error> {
    use std::os::fd::AsRawFd as _;
    let what = "make the start socket";
    let directory = place.directory()?;
    let address =
        SocketAddrUnix::new(format!("/proc/self/fd/{}/start", directory.as_raw_fd())).map_err(cannot(what))?;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(cannot(what))?;
    bind(&socket, &address).map_err(cannot(what))?;
    // One starts it; whoever else tries is told so.
    listen(&socket, 1).map_err(cannot(what))?;
    Ok(socket)
}

/// How many descriptors a service manager hands over. More than it ever does is a mistake.
pub(crate) fn listen_fds() -> u32 {
    const MOST: u32 = 1024;
    std::env::var("LISTEN_FDS").ok().and_then(|text| text.parse().ok()).filter(|count| *count <= MOST).unwrap_or(0)
}

/// Standard streams are the caller's, further descriptors as many as it says.
pub(crate) fn descriptors(preserve: u32, terminal: bool) -> Result<Descriptors<'static>, Error> {
    let stream = |number| {
        if terminal {
            return Stdio::Null;
        }
        sys::inherited(number).map_or(Stdio::Null, Stdio::Descriptor)
    };
    let numbered = |from: u32, count: u32| {
        (from..from.saturating_add(count)).map(|number| sys::inherited(i32::try_from(number).unwrap_or(-1)))
    };
    // A number that is not open has nothing to keep; standard input, which the program has anyway, takes its place, so that those behind it
    // keep theirs.
    let stdin = sys::inherited(0);
    let kept = |one: Result<BorrowedFd<'static>, Errno>| one.or(stdin).map_err(cannot("keep a descriptor"));
    // What a service manager hands over comes first and is announced to the program.
    let announced = listen_fds();
    let named = numbered(3, announced).map(|one| Ok(("unknown", kept(one)?))).collect::<Result<Vec<_>, Error>>()?;
    let mut further: Vec<_> = numbered(3_u32.saturating_add(announced), preserve).collect();
    while further.last().is_some_and(Result::is_err) {
        further.pop();
    }
    let further = further.into_iter().map(kept).collect::<Result<_, Error>>()?;
    Ok(Descriptors { stdin: stream(0), stdout: stream(1), stderr: stream(2), named, further })
}

type Launched = (Record, OwnedFd, Option<OwnedFd>);

fn launch(
    place: &Place,
    record: Record,
    bundle: &Bundle,
    plan: &Plan,
    options: &Options,
    (outer, leaf): (&OwnedFd, &OwnedFd),
) -> Result<Launched, Error> {
    // From here on whoever deletes the container finds its cgroup, even if this process is killed.
    place.save(&record)?;
    let listener = listener(place)?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(cannot("make a socket pair"))?;
    let descriptors = descriptors(options.preserve_fds, plan.request().process.terminal.is_some())?;
    let (own_cgroup, helper) = (cgroups::own()?, host::no_helper()?);
    let devices = byre_launch::load_default_device_program(&[]).map_err(cannot("load the device program"))?;
    let keyring = options.new_keyring.then(|| CString::new(format!("_ses.{}", options.id)).unwrap_or_default());
    let child = {
        let gate = Gate {
            creator: theirs.as_fd(),
            listener: listener.as_fd(),
            hooks: &bundle.hooks,
            environment: &plan.request().process.env,
            record: &record,
            keyring,
            copies: RefCell::default(),
            starter: RefCell::default(),
            pid: RefCell::default(),
        };
        let context = context((outer, leaf), &own_cgroup, &helper, &devices, Some(&gate));
        byre_launch::start(plan, &context, &descriptors)
            .map_err(|error| cannot::<std::io::Error>("start the container")(std::io::Error::other(error)))?
    };
    drop((theirs, listener));
    let mut making = Making { place, record, bundle, report: child.report, ours, progress: Progress::default() };
    let outcome = making.attend();
    reap(child.stage_pid, making.progress.process().map(|(pid, _)| pid));
    outcome?;
    making.hand_out(options)
}

/// What byre-launch is told of a bundle's container.
pub(crate) fn context<'a>(
    (outer, leaf): (&'a OwnedFd, &'a OwnedFd),
    own_cgroup: &'a OwnedFd,
    helper: &'a OwnedFd,
    devices: &'a OwnedFd,
    companion: Option<&'a dyn byre_launch::Companion>,
) -> Context<'a> {
    Context {
        id: WorkloadId(0),
        id_base: None,
        cgroup: outer.as_fd(),
        leaf: leaf.as_fd(),
        launch_cgroup: own_cgroup.as_fd(),
        store_layers: "",
        shared_layers: "",
        containers: "",
        volumes: "",
        namespaces: None,
        default_seccomp: &[],
        helper_program: helper.as_fd(),
        device_program: devices.as_fd(),
        denied_devices: &[],
        companion,
    }
}

/// Takes the end of a stage 1, which is this process's child and not the container.
pub(crate) fn reap(stage: u32, process: Option<u32>) {
    use nix::sys::wait::{WaitPidFlag, waitpid};
    if process != Some(stage)
        && let Ok(stage) = i32::try_from(stage)
    {
        let _ = waitpid(nix::unistd::Pid::from_raw(stage), Some(WaitPidFlag::__WALL));
    }
}

/// A start that did not come to its end.
pub(crate) fn failure(report: Report) -> Error {
    match report {
        Report::Failed { step, subject, errno } => start_error(&step, &subject, errno),
        Report::Running { .. } | Report::Made | Report::Incomplete => {
            wrong("the container's process died before its program ran", "see the kernel log: it may be out of memory")
        }
    }
}

/// A failed step. A hook's failure has its own words, and no error number that means anything.
pub(crate) fn start_error(step: &str, subject: &str, errno: i32) -> Error {
    if errno == Errno::CANCELED.raw_os_error() {
        return wrong(subject, "the container is not started");
    }
    Error::Start {
        step: step.to_owned(),
        subject: subject.to_owned(),
        source: std::io::Error::from_raw_os_error(errno),
    }
}

/// A creation under way, from the creator's side.
struct Making<'a> {
    place: &'a Place,
    record: Record,
    bundle: &'a Bundle,
    report: OwnedFd,
    ours: OwnedFd,
    progress: Progress,
}

impl Making<'_> {
    /// Serves the child until it is ready for its program.
    fn attend(&mut self) -> Result<(), Error> {
        let what = "follow the start";
        loop {
            let mut polled = [
                PollFd::from_borrowed_fd(self.report.as_fd(), PollFlags::RDHUP),
                PollFd::from_borrowed_fd(self.ours.as_fd(), PollFlags::IN),
            ];
            match poll(&mut polled, None) {
                Err(Errno::INTR) => continue,
                done => done.map_err(cannot(what))?,
            };
            let (ended, spoke) = (!polled[0].revents().is_empty(), polled[1].revents().contains(PollFlags::IN));
            self.progress.read(self.report.as_fd()).map_err(cannot(what))?;
            if spoke {
                let mut word = [0_u8; 16];
                let (count, _) = recv(&self.ours, &mut word, RecvFlags::empty()).map_err(cannot(what))?;
                match &word[..count] {
                    AT_ROOT => self.at_root()?,
                    READY => return Ok(()),
                    _ => {}
                }
            }
            if ended {
                return Err(failure(std::mem::take(&mut self.progress).finish()));
            }
        }
    }

    fn at_root(&mut self) -> Result<(), Error> {
        let (pid, _) = self.progress.process().ok_or_else(|| failure(Report::Incomplete))?;
        let (_, ticks) = process_state(pid).ok_or_else(|| failure(Report::Incomplete))?;
        (self.record.pid, self.record.started_ticks) = (pid, ticks);
        self.place.save(&self.record)?;
        let state = self.record.told(Status::Creating);
        for (name, inside) in &self.bundle.net_devices {
            interfaces::give(name, inside, pid)?;
        }
        // Where these come from, a container was created when they ran.
        hooks::run("prestart", &self.bundle.hooks.prestart, &self.record.told(Status::Created))?;
        hooks::run("createRuntime", &self.bundle.hooks.create_runtime, &state)?;
        send(&self.ours, &pid.to_le_bytes(), SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(cannot("tell the container's process"))
    }

    /// Gives the caller what it asked for, and makes the container known as created.
    fn hand_out(mut self, options: &Options) -> Result<Launched, Error> {
        let (_, pidfd) = self.progress.process().ok_or_else(|| failure(Report::Incomplete))?;
        let pidfd = pidfd.try_clone_to_owned().map_err(cannot("keep the process's descriptor"))?;
        let terminal = self.progress.take_terminal();
        if let Some(socket) = &options.pidfd_socket {
            console::hand_over(socket, pidfd.as_fd(), "pidfd")?;
        }
        let terminal = match (terminal, &options.console_socket) {
            (Some(master), Some(socket)) => {
                console::hand_over(socket, master.as_fd(), "/dev/ptmx")?;
                None
            }
            (terminal, _) => terminal,
        };
        self.record.phase = Phase::Created;
        self.place.save(&self.record)?;
        if let Some(path) = &options.pid_file {
            write_pid_file(path, self.record.pid)?;
        }
        Ok((self.record, pidfd, terminal))
    }
}

/// Writes a process's number so that a reader finds it whole.
pub(crate) fn write_pid_file(path: &Path, pid: u32) -> Result<(), Error> {
    write_whole(path, pid.to_string().as_bytes(), 0o644)
}

/// Waits for a process that is this one's child, and returns its code as a shell has it.
pub(crate) fn wait(pidfd: BorrowedFd<'_>) -> Result<i32, Error> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    loop {
        match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED | WaitPidFlag::__WALL) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128_i32.saturating_add(signal as i32)),
            Ok(
                WaitStatus::Stopped(..)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_)
                | WaitStatus::Continued(_)
                | WaitStatus::StillAlive,
            )
            | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(cannot("wait for the process")(errno)),
        }
    }
}

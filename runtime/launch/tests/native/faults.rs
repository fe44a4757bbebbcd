//! A launch child that dies, at any step of any stage: a failed start, and nothing else.
//!
//! The places are read from the sources, so that none is forgotten: every named step and every bare fault point. A first round records
//! which of them each stage of each start reaches; a place that no start reaches fails the test. Then each stage dies at each place in
//! each way. This process stands for PID 1: it is marked as PID 1 is, and nothing of the children's deaths may run in it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::panic::Location;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use byre_launch::Report;
use byre_plan::{
    Affinity, DeviceRule, ExecPlan, IdMap, KernelSettings, LandlockAccess, LandlockRule, LaunchRequest, MappedMount,
    MemoryPolicy, Mount, MountIds, MountOptions, MountSource, Namespace, Node, NodeKind, NumberSet, Origin, Plan,
    Policy, Principal, Propagation, Rlimit, Root, Scheduler, Scheduling, Seccomp, TerminalSize, TimeOffsets,
    UserNamespace, WorkloadId,
};

use byre_plan::seccomp::{Action, Instruction};

use super::bench::{Bench, Ended, Running, Test, check, children, host_script};
use super::containers::{base, container, layer, mount};

pub(crate) const ALL: &[Test] =
    &[("a launch child that dies at any step is a failed start and nothing else", every_step)];

/// More places than the sources have; the test says so if they have more.
const PLACES: usize = 512;
/// PID 1's own process, stage 1 or the only child, stage 2.
const STAGES: usize = 3;

/// How a child dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Panic = 1,
    Abort = 2,
    Segv = 3,
}

const DEATHS: [Death; 3] = [Death::Panic, Death::Abort, Death::Segv];

/// A place in the sources, as `Location` says it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: String,
    line: u32,
    column: u32,
}

/// What this process and its children share.
struct Shared {
    /// 0, or the [`Death`] at `place` in `stage`.
    death: AtomicU32,
    place: AtomicU32,
    stage: AtomicU32,
    died: AtomicBool,
    /// A place was reached in the process that stands for PID 1.
    in_pid1: AtomicBool,
    unknown: AtomicBool,
    reached: [[AtomicBool; PLACES]; STAGES],
}

static SHARED: OnceLock<&'static Shared> = OnceLock::new();
static SOURCES: OnceLock<Vec<Place>> = OnceLock::new();
/// The process that reached the last place, and how many clones it is away from this one.
static LAST_PID: AtomicU32 = AtomicU32::new(0);
static STAGE: AtomicU32 = AtomicU32::new(0);

fn shared() -> &'static Shared {
    SHARED.get().expect("set up")
}

fn set_up() {
    let bytes = size_of::<Shared>();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: the mapping is large enough, aligned to a page, zeroed (which is a value of every field), and never unmapped.
    SHARED.set(unsafe { &*page.cast::<Shared>() }).ok().expect("once");
    SOURCES.set(places()).expect("once");
    assert!(SOURCES.get().expect("just set").len() <= PLACES, "the sources have more places than PLACES");
    LAST_PID.store(std::process::id(), Ordering::Relaxed);
    byre_launch::mark_pid1().expect("mark this process");
    let usual = std::panic::take_hook();
    // What ships aborts on a panic; cargo builds tests to unwind.
    std::panic::set_hook(Box::new(move |panic| {
        if !byre_launch::is_pid1() {
            std::process::abort();
        }
        usual(panic);
    }));
    byre_launch::observe_faults(reached);
}

/// Runs in a launch child, at every place.
fn reached(location: &'static Location<'static>) {
    let shared = shared();
    if byre_launch::is_pid1() {
        shared.in_pid1.store(true, Ordering::SeqCst);
        return;
    }
    let pid = std::process::id();
    if LAST_PID.swap(pid, Ordering::Relaxed) != pid {
        STAGE.fetch_add(1, Ordering::Relaxed);
    }
    let stage = STAGE.load(Ordering::Relaxed);
    let place = Place { file: short(location.file()).to_owned(), line: location.line(), column: location.column() };
    let Ok(index) = SOURCES.get().expect("set up").binary_search(&place) else {
        shared.unknown.store(true, Ordering::SeqCst);
        return;
    };
    shared.reached[usize::try_from(stage).expect("small")][index].store(true, Ordering::SeqCst);
    let is_here = shared.stage.load(Ordering::SeqCst) == stage
        && usize::try_from(shared.place.load(Ordering::SeqCst)).expect("small") == index;
    if is_here {
        die(shared.death.load(Ordering::SeqCst));
    }
}

fn die(how: u32) {
    if how != 0 {
        shared().died.store(true, Ordering::SeqCst);
    }
    if how == Death::Panic as u32 {
        panic!("a fault that a test asks for");
    } else if how == Death::Abort as u32 {
        std::process::abort();
    } else if how == Death::Segv as u32 {
        // SAFETY: nothing is mapped there: the kernel ends this process, which is what is wanted.
        unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(0) };
    }
}

/// The part of a path that does not depend on where cargo ran.
fn short(file: &str) -> &str {
    file.rsplit_once("launch/src/").map_or(file, |(_, rest)| rest)
}

/// Every place of the sources, sorted.
fn places() -> Vec<Place> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).expect("sources") {
            let path = entry.expect("sources").path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("sources");
            let production = text.split("\n#[cfg(test)]\nmod ").next().expect("a first part");
            let file = short(path.to_str().expect("UTF-8")).to_owned();
            // The macro's own text, and its use in the definition of a named step, are no places.
            if file == "fault.rs" {
                continue;
            }
            for (number, line) in (1..).zip(production.lines()) {
                let code = line.split("//").next().expect("a first part");
                let steps = code.match_indices(".step(").map(|(at, _)| at + 1);
                let bare = code.match_indices("fault_point!(").map(|(at, _)| at).filter(|_| file != "report.rs");
                for at in steps.chain(bare) {
                    let column = u32::try_from(at + 1).expect("a short line");
                    found.push(Place { file: file.clone(), line: number, column });
                }
            }
        }
    }
    found.sort();
    found
}

/// A start that is tried: what kind, and how.
struct Start {
    name: &'static str,
    request: LaunchRequest,
    /// The start is of this, inside a running `request`.
    exec: Option<byre_plan::Process>,
    /// Without a fault it may fail at this step, because of what this machine lacks.
    may_fail_at: Option<&'static str>,
}

/// Starts that together reach every place.
fn starts(bench: &Bench) -> Vec<Start> {
    let start = |name, request| Start { name, request, exec: None, may_fail_at: None };
    let mut all = vec![
        start("service", service()),
        start("container", full_container(bench)),
        start("container without a user namespace", host_users(bench)),
        start("container in joined namespaces", joined(bench)),
        start("container in joined users", in_users(bench)),
        start("pod", super::pods::pod()),
        start("bundle", bundle(bench, UserNamespace::Host)),
        start("bundle with a user namespace", bundle(bench, UserNamespace::Automatic)),
    ];
    let running = container(vec![base(bench)], "exec sleep 1000");
    let mut process = full_container(bench).process;
    process.args = ["/bin/sh", "-c", "true"].map(str::to_owned).to_vec();
    process.cwd = "/".to_owned();
    process.scheduling.processors = Affinity { initial: Some(first_processor()), last: Some(first_processor()) };
    all.push(Start { exec: Some(process), ..start("exec", running) });
    let measured = layer(bench, 41, true, |_| {});
    std::fs::write(bench.files.path().join(format!("layers/{measured}.verity")), "of another layer")
        .expect("write file");
    let measured = container(vec![measured], "true");
    all.push(Start { may_fail_at: Some("check image layer"), ..start("container of another layer", measured) });
    // Each of these needs a controller or a capability that a machine may lack; its step is taken either way.
    let mut limited = host_script("true");
    limited.resources.memory_high_bytes = Some(64 << 20);
    all.push(Start { may_fail_at: Some("write a cgroup limit"), ..start("limited service", limited) });
    let mut limited = host_script("true");
    limited.resources.unified = vec![("memory.low".to_owned(), "0".to_owned())];
    all.push(Start { may_fail_at: Some("write a cgroup limit"), ..start("service with a limit by name", limited) });
    let mut raised = host_script("true");
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MSGQUEUE).expect("limit");
    raised.process.rlimits = vec![Rlimit { resource: 12, soft: 0, hard: most + 1 }];
    all.push(Start { may_fail_at: Some("raise resource limit"), ..start("service with a raised limit", raised) });
    all.extend(of_bundles(bench));
    all
}

fn first_processor() -> NumberSet {
    let mut set = NumberSet::default();
    assert!(set.insert(0));
    set
}

/// What needs something of the kernel or of the caller that may not be there.
fn of_bundles(bench: &Bench) -> Vec<Start> {
    let start = |name, request, step| Start { name, request, exec: None, may_fail_at: Some(step) };
    let mut numa = host_script("true");
    numa.kernel.memory_policy = Some(MemoryPolicy { mode: 0, nodes: NumberSet::default() });
    let mut apparmor = container(vec![base(bench)], "true");
    apparmor.process.labels.apparmor = Some("byre-no-such-profile".to_owned());
    let mut selinux = container(vec![base(bench)], "true");
    selinux.process.labels.selinux = Some("byre_no_such_label".to_owned());
    let mut told = container(vec![base(bench)], "true");
    // Every call is allowed; the filter has a listener all the same (SECCOMP_FILTER_FLAG_NEW_LISTENER).
    let allow = Instruction { code: 6, jump_true: 0, jump_false: 0, operand: Action::Allow.value() };
    told.seccomp = Seccomp::Filter { instructions: vec![allow], flags: 8 };
    vec![
        start("service with a memory policy", numa, "set memory policy"),
        start("container with an AppArmor profile", apparmor, "set AppArmor profile"),
        start("container with an SELinux label", selinux, "set SELinux label"),
        start("container with a seccomp agent", told, "hand over seccomp listener"),
        start("bundle with mapped mounts", mapped(bench), "map ids of mount"),
    ]
}

/// Mounts that show other ids, and a read-only one that others lie in.
fn mapped(bench: &Bench) -> LaunchRequest {
    let mut request = bundle(bench, UserNamespace::Automatic);
    let bind = |target| mount(target, MountSource::Bind { path: "/usr/share".to_owned(), recursive: true });
    let first = u16::try_from(request.mounts.len()).expect("few");
    let written = MountSource::FileSystem {
        kind: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        settings: vec!["mode=755".to_owned()],
        copy_up: false,
    };
    let options = MountOptions { read_only: true, ..MountOptions::default() };
    request.mounts.extend([bind("/etc/first"), bind("/etc/second"), Mount { options, ..mount("/etc/third", written) }]);
    let ids = vec![IdMap { inside: 0, outside: 100_000, count: 65_536 }];
    request.kernel.mapped_mounts = vec![
        MappedMount { mount: first, recursive: true, ids: MountIds::Workload },
        MappedMount { mount: first + 1, recursive: true, ids: MountIds::Mapped { uids: ids.clone(), gids: ids } },
    ];
    request
}

fn landlock() -> Vec<LandlockRule> {
    vec![LandlockRule { path: "/".to_owned(), access: LandlockAccess::Execute }]
}

fn service() -> LaunchRequest {
    let mut request = host_script("true");
    request.process.user.user = Principal::Id(4242);
    request.process.rlimits = vec![Rlimit { resource: 4, soft: 0, hard: 0 }];
    request.namespaces.mount = Namespace::New;
    request.read_only_paths = vec!["/etc".to_owned()];
    request.landlock = landlock();
    request
}

/// As much as a plan can ask for.
fn full_container(bench: &Bench) -> LaunchRequest {
    let image = layer(bench, 40, true, |root| {
        std::fs::create_dir_all(root.join("data")).expect("make directory");
        std::fs::write(root.join("data/file"), "from image\n").expect("write file");
    });
    let mut request = container(vec![image], "true");
    request.process.user.user = Principal::Name("web".to_owned());
    request.process.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    request.process.cwd = "/made/here".to_owned();
    request.process.capabilities.inheritable = 1 << 10;
    request.process.capabilities.ambient = 1 << 10;
    request.process.rlimits = vec![Rlimit { resource: 4, soft: 0, hard: 0 }];
    request.sysctls = vec![("net.ipv4.ip_forward".to_owned(), "1".to_owned())];
    let shared = MountOptions { propagation: Propagation::Slave, ..MountOptions::default() };
    let bind = MountSource::Bind { path: "/usr/share".to_owned(), recursive: true };
    request.mounts.extend([
        mount("/data", MountSource::Volume("faulty".try_into().expect("a name"))),
        mount("/etc/hosts", MountSource::GeneratedFile("127.0.0.1 localhost\n".to_owned())),
        Mount { options: shared, ..mount("/srv", bind) },
    ]);
    request.masked_paths.push("/proc/uptime".to_owned());
    request.devices = vec![DeviceRule {
        block: false,
        major: Some(1),
        minor: Some(7),
        read: true,
        write: true,
        mknod: false,
        path: Some("/opt/device".to_owned()),
        deny: false,
    }];
    request
}

fn host_users(bench: &Bench) -> LaunchRequest {
    let mut request = container(vec![base(bench)], "true");
    request.namespaces.user = UserNamespace::Host;
    request.root = Root::Layers { layers: vec![base(bench)], read_only: true };
    request.process.no_new_privileges = false;
    request.landlock = landlock();
    request
}

/// What only an OCI bundle asks for.
fn bundle(bench: &Bench, users: UserNamespace) -> LaunchRequest {
    let _ = base(bench);
    let mut request = container(Vec::new(), "true");
    request.namespaces.user = users;
    request.root = Root::Directory { path: bench.directory("tree-1"), read_only: true };
    let tmpfs = |settings: &[&str]| MountSource::FileSystem {
        kind: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
        copy_up: true,
    };
    let options = MountOptions { further: 0x10, ..MountOptions::default() };
    let bind = MountSource::Bind { path: "/usr/share".to_owned(), recursive: true };
    // The host root's tree is not a container root's to write.
    if request.namespaces.user == UserNamespace::Host {
        request.process.cwd = "/bundle/directory".to_owned();
    }
    request.mounts = vec![
        mount("/proc", MountSource::Proc),
        mount("/dev", tmpfs(&["mode=755"])),
        mount("/etc", tmpfs(&["size=64k", "inode64"])),
        Mount { options: MountOptions { below: 1, ..options }, ..mount("/srv", bind) },
    ];
    let node = |path: &str, kind| Node { path: path.to_owned(), kind, mode: 0o666, uid: 0, gid: 0 };
    let null = NodeKind::Character { major: 1, minor: 3 };
    request.nodes = vec![
        node("/dev/null", null.clone()),
        node("/dev/null", null),
        node("/dev/pipe", NodeKind::Pipe),
        node("/dev/fd", NodeKind::Link("/proc/self/fd".to_owned())),
    ];
    request.kernel = KernelSettings {
        domain_name: Some("domain".to_owned()),
        time: matches!(request.namespaces.user, UserNamespace::Host)
            .then_some(TimeOffsets { monotonic: (1000, 0), boottime: (0, 5) }),
        root_propagation: Some(Propagation::Private),
        personality: Some(8),
        ..KernelSettings::default()
    };
    let batch = Scheduler { policy: 3, nice: 1, ..Scheduler::default() };
    request.process.scheduling =
        Scheduling { processor: Some(batch), disk: Some(2 << 13 | 5), ..Scheduling::default() };
    request.masked_paths.clear();
    request
}

fn joined(bench: &Bench) -> LaunchRequest {
    let mut request = container(vec![base(bench)], "true");
    request.namespaces.net = Namespace::Join(NAMESPACE.to_owned());
    request.seccomp = Seccomp::None;
    request.process.no_new_privileges = false;
    request
}

/// As in a pod.
fn in_users(bench: &Bench) -> LaunchRequest {
    let mut request = joined(bench);
    request.namespaces.user = UserNamespace::Join(USERS.to_owned());
    request
}

/// Where the user namespace of a workload of the test is bound.
const USERS: &str = "/run/byre/ns/faults/user";
/// Where the network namespace of a workload of the test is bound.
const NAMESPACE: &str = "/run/byre/ns/faults/net";

/// What a start may leave behind, and must not.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    mounts: String,
    cgroups: BTreeSet<String>,
    children: Vec<u32>,
}

fn held(bench: &Bench) -> Held {
    Held {
        descriptors: std::fs::read_dir("/proc/self/fd").expect("descriptors").count(),
        mounts: std::fs::read_to_string("/proc/self/mountinfo").expect("mounts"),
        cgroups: bench.cgroups(),
        children: children(),
    }
}

/// A start that is made again and again.
struct Trial<'a> {
    bench: &'a Bench,
    name: &'static str,
    plan: Plan,
    may_fail_at: Option<&'static str>,
    /// It is an exec into a workload that runs.
    exec: Option<(ExecPlan, Running<'a>)>,
}

impl<'a> Trial<'a> {
    fn new(bench: &'a Bench, start: &Start) -> Self {
        let plan = check(start.request.clone()).expect("good");
        let exec = start.exec.clone().map(|process| {
            let exec = Plan::check_exec(process, &plan, &Policy::default(), Origin::VerifiedRoot).expect("good");
            let mut running = bench.start(&plan, 0x102);
            assert!(matches!(running.started(), Report::Running { .. }));
            (exec, running)
        });
        Self { bench, name: start.name, plan, may_fail_at: start.may_fail_at, exec }
    }

    /// Starts, waits for the end, and clears away what a failed start rightly leaves: files on disk.
    fn run(&mut self) -> Ended {
        const ID: u64 = 0xfa17;
        let kept = children().len();
        let ended = match &mut self.exec {
            Some((exec, running)) => running.exec(exec, &self.plan),
            None => self.bench.start(&self.plan, ID).finish(),
        };
        self.bench.reap_orphans(kept);
        // As PID 1 does when a pod's start has failed.
        byre_launch::release_namespaces(super::pods::DIRECTORY).expect("release namespaces");
        let containers = self.bench.directory("containers");
        byre_launch::remove_container_files(&containers, WorkloadId(ID)).expect("remove files");
        let _ = std::fs::remove_dir_all(self.bench.files.path().join("volumes/faulty"));
        let _ = std::fs::remove_dir_all(self.bench.files.path().join("tree-1/bundle"));
        // Each start is its layers' first, so that it reaches every place.
        self.bench.release_layers();
        ended
    }

    /// Starts without a fault, and tells which places its stages reached.
    fn record(&mut self) -> Reached {
        let shared = shared();
        shared.death.store(0, Ordering::SeqCst);
        for places in &shared.reached {
            places.iter().for_each(|place| place.store(false, Ordering::SeqCst));
        }
        let ended = self.run();
        let is_fine = match &ended.report {
            Report::Running { .. } => ended.code == Some(0),
            Report::Failed { step, .. } => self.may_fail_at == Some(step.as_str()),
            Report::Made => true,
            Report::Incomplete => false,
        };
        assert!(is_fine, "{}, without a fault: {ended:?}", self.name);
        let mut found = Reached::new();
        for (stage, places) in (0..).zip(&shared.reached) {
            let reached = places.iter().enumerate().filter(|(_, place)| place.load(Ordering::SeqCst));
            found.extend(reached.map(|(index, _)| (stage, index)));
        }
        found
    }

    /// Lets a start die there in that way, and looks at what is left.
    fn strike(&mut self, (stage, index): (u32, usize), death: Death) {
        let shared = shared();
        let place = &SOURCES.get().expect("set up")[index];
        let case = format!("{}, stage {stage}, {}:{}, {death:?}", self.name, place.file, place.line);
        let before = held(self.bench);
        shared.died.store(false, Ordering::SeqCst);
        shared.place.store(u32::try_from(index).expect("small"), Ordering::SeqCst);
        shared.stage.store(stage, Ordering::SeqCst);
        shared.death.store(death as u32, Ordering::SeqCst);
        let ended = self.run();
        shared.death.store(0, Ordering::SeqCst);
        assert!(shared.died.load(Ordering::SeqCst), "{case}: not reached");
        match &ended.report {
            Report::Made | Report::Incomplete => {}
            // Past its last word a child is the program for all that PID 1 can see: the program ended by a signal.
            Report::Running { .. } => {
                let is_last = matches!(place.file.as_str(), "confine.rs" | "execute.rs" | "child.rs");
                assert!(is_last && ended.code.is_some_and(|code| code > 128), "{case}: {ended:?}");
            }
            // Stage 1 saw that stage 2 is gone.
            Report::Failed { step, .. } => assert_eq!(step, byre_launch::CHILD_DIED, "{case}: {ended:?}"),
        }
        drop(ended);
        assert!(!shared.in_pid1.load(Ordering::SeqCst), "{case}: something ran in PID 1");
        assert_eq!(held(self.bench), before, "{case}: left behind");
    }

    /// Ends what runs for it.
    fn finish(self) {
        if let Some((_, mut running)) = self.exec {
            assert!(running.is_alive(), "{}: the workload did not outlive its sessions", self.name);
            byre_launch::cgroup::kill(running.outer.as_fd()).expect("kill");
            running.finish();
        }
    }
}

/// Places by the stage that reached them.
type Reached = BTreeSet<(u32, usize)>;

fn every_step(bench: &Bench) {
    let starts = starts(bench);
    let mut owner = bench.start(&check(container(vec![base(bench)], "exec sleep 1000")).expect("good"), 0x101);
    let Report::Running { pid, .. } = owner.started() else { panic!("{:?}", owner.started()) };
    let place = Path::new(NAMESPACE);
    std::fs::create_dir_all(place.parent().expect("a parent")).expect("make directory");
    std::fs::write(place, "").expect("make file");
    rustix::mount::mount_bind(format!("/proc/{pid}/ns/net"), place).expect("bind namespace");
    std::fs::write(USERS, "").expect("make file");
    rustix::mount::mount_bind(format!("/proc/{pid}/ns/user"), USERS).expect("bind namespace");
    set_up();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| die_everywhere(bench, &starts)));
    rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH).expect("unmount");
    rustix::mount::unmount(USERS, rustix::mount::UnmountFlags::DETACH).expect("unmount");
    std::fs::remove_dir_all(place.parent().expect("a parent")).expect("remove");
    byre_launch::cgroup::kill(owner.outer.as_fd()).expect("kill");
    owner.finish();
    assert!(outcome.is_ok());
}

fn die_everywhere(bench: &Bench, starts: &[Start]) {
    bench.hands_over.set(true);
    let mut done: BTreeMap<&str, Reached> = BTreeMap::new();
    let mut deaths = 0_usize;
    for start in starts {
        let mut trial = Trial::new(bench, start);
        let kind = match (&start.exec, &start.request.namespaces.user) {
            (Some(_), _) => "exec",
            (None, UserNamespace::Host) => "in one stage",
            (None, UserNamespace::Join(_)) => "in joined users",
            (None, UserNamespace::Automatic | UserNamespace::Mapped { .. }) => "in two stages",
        };
        let reached = trial.record();
        let known = done.entry(kind).or_default();
        for target in reached.difference(known) {
            for death in DEATHS {
                trial.strike(*target, death);
                deaths += 1;
            }
            // The next start is as good as the first.
            trial.record();
        }
        known.extend(&reached);
        trial.finish();
    }
    let sources = SOURCES.get().expect("set up");
    let reached: BTreeSet<usize> = done.values().flatten().map(|(_, index)| *index).collect();
    let stages: usize = done.values().map(BTreeSet::len).sum();
    println!("{} of {} places reached, {stages} counted by stage, {deaths} deaths", reached.len(), sources.len());
    assert!(!shared().unknown.load(Ordering::SeqCst), "a place was reached that is not found in the sources");
    let missing: Vec<String> = (0..sources.len())
        .filter(|index| !reached.contains(index))
        .map(|index| format!("{}:{}:{}", sources[index].file, sources[index].line, sources[index].column))
        .collect();
    assert!(missing.is_empty(), "no start reaches {}", missing.join(", "));
}

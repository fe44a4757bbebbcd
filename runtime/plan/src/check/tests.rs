//! Whatever bytes come, the check does not panic, and what it lets through is within bounds and policy.

use proptest::prelude::*;

use crate::{
    Capabilities, DeviceRule, IdMap, LandlockAccess, LandlockRule, LaunchRequest, Mount, MountOptions, MountSource,
    Namespace, Namespaces, Origin, Plan, Policy, Principal, Process, Program, Propagation, Refusal, Resources, Rlimit,
    Root, Seccomp, TerminalSize, User, UserNamespace, limits,
};

/// A strict policy, as the standalone profile has it.
fn policy() -> Policy {
    Policy {
        host_network: true,
        host_namespaces: false,
        host_users: false,
        capabilities: 0xa804_25fb,
        bind_sources: vec!["/data/binds".to_owned()],
        no_seccomp: false,
        helpers: vec!["init".to_owned(), "copy".to_owned()],
        devices: false,
    }
}

/// A container that the strict policy allows.
fn container() -> LaunchRequest {
    let mount = |target: &str, source| Mount { target: target.to_owned(), source, options: MountOptions::default() };
    LaunchRequest {
        process: Process {
            program: Program::Path,
            args: vec!["/bin/true".to_owned()],
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            user: User::default(),
            terminal: Some(TerminalSize { rows: 24, columns: 80 }),
            capabilities: Capabilities { bounding: 1, effective: 1, permitted: 1, inheritable: 0, ambient: 0 },
            rlimits: vec![Rlimit { resource: 7, soft: 1, hard: 2 }],
            no_new_privileges: true,
            oom_score_adj: None,
            scheduling: crate::Scheduling::default(),
            labels: crate::Labels::default(),
        },
        root: Root::Layers { layers: vec![crate::Digest([0; 32])], read_only: false },
        namespaces: Namespaces { user: UserNamespace::Automatic, ..Namespaces::default() },
        mounts: vec![mount("/proc", MountSource::Proc), mount("/dev/pts", MountSource::Devpts)],
        hostname: Some("web-1".to_owned()),
        resources: Resources { memory_max_bytes: Some(1 << 20), ..Resources::default() },
        devices: Vec::new(),
        sysctls: vec![("net.ipv4.ip_forward".to_owned(), "1".to_owned())],
        masked_paths: vec!["/proc/kcore".to_owned()],
        read_only_paths: Vec::new(),
        seccomp: Seccomp::Default,
        landlock: Vec::new(),
        nodes: Vec::new(),
        kernel: crate::KernelSettings::default(),
    }
}

/// The field that is refused to a client when the good container is changed so.
fn refused(change: impl FnOnce(&mut LaunchRequest)) -> String {
    let mut request = container();
    change(&mut request);
    let Refusal { field, reason, remedy } = Plan::check(request, &policy(), Origin::Client).unwrap_err();
    assert!(!reason.is_empty() && !remedy.is_empty());
    field
}

fn add_mount(request: &mut LaunchRequest, target: &str, source: MountSource, options: MountOptions) {
    request.mounts.push(Mount { target: target.to_owned(), source, options });
}

#[test]
fn a_default_container_is_a_plan() {
    assert!(Plan::check(container(), &policy(), Origin::Client).is_ok());
}

type Change = fn(&mut Process);

#[test]
fn a_process_out_of_form_is_refused_by_field() {
    let cases: Vec<(&str, Change)> = vec![
        ("process.args", |process| process.args.clear()),
        ("process.args[0]", |process| process.args[0].clear()),
        ("process.args[0]", |process| process.args[0].push('\0')),
        ("process.args", |process| process.args = vec!["a".to_owned(); limits::ARGUMENTS + 1]),
        ("process.args[1]", |process| process.args.push("a".repeat(limits::ARGUMENT_BYTES + 1))),
        ("process.env[1]", |process| process.env.push("NAME".to_owned())),
        ("process.env[1]", |process| process.env.push("=value".to_owned())),
        ("process.cwd", |process| process.cwd = "relative".to_owned()),
        ("process.cwd", |process| process.cwd = "/a/../b".to_owned()),
        ("process.user.user", |process| process.user.user = Principal::Id(u32::MAX)),
        ("process.user.user", |process| process.user.user = Principal::Name(String::new())),
        ("process.user.user", |process| process.user.user = Principal::Name("4294967296".to_owned())),
        ("process.user.group", |process| process.user.group = Some(Principal::Name("a:b".to_owned()))),
        ("process.user.umask", |process| process.user.umask = Some(0o1000)),
        ("process.terminal", |process| process.terminal = Some(TerminalSize { rows: 1, columns: 65_535 })),
        ("process.capabilities.effective", |process| process.capabilities.permitted = 0),
        ("process.capabilities.ambient", |process| process.capabilities.ambient = 1),
        ("process.capabilities.bounding", |process| process.capabilities.bounding = 1 << 41),
        ("process.capabilities", |process| process.capabilities.bounding = 1 << 21),
        ("process.rlimits[1]", |process| process.rlimits.push(process.rlimits[0])),
        ("process.rlimits[0]", |process| process.rlimits[0].resource = 16),
        ("process.rlimits[0]", |process| process.rlimits[0].soft = 3),
        ("process.rlimits[0]", |process| process.rlimits[0].resource = 14),
        ("process.oom_score_adj", |process| process.oom_score_adj = Some(-1)),
        ("process.oom_score_adj", |process| process.oom_score_adj = Some(1001)),
        ("process.program", |process| process.program = Program::Helper),
    ];
    for (field, change) in cases {
        assert_eq!(refused(|request| change(&mut request.process)), field);
    }
}

#[test]
fn what_reaches_the_host_is_refused_to_a_client() {
    assert_eq!(refused(|request| request.root = Root::Host), "namespaces.user");
    assert_eq!(refused(|request| request.namespaces.user = UserNamespace::Host), "namespaces.user");
    assert_eq!(refused(|request| request.namespaces.mount = Namespace::Host), "namespaces.mount");
    assert_eq!(refused(|request| request.namespaces.pid = Namespace::Host), "namespaces.pid");
    assert_eq!(refused(|request| request.seccomp = Seccomp::None), "seccomp");
    let join = |path: &str| Namespace::Join(path.to_owned());
    assert_eq!(refused(|request| request.namespaces.ipc = join("/proc/1/ns/ipc")), "namespaces.ipc");
    assert_eq!(refused(|request| request.namespaces.ipc = join("/run/byre/ns/../../proc/1/ns/ipc")), "namespaces.ipc");
    assert_eq!(refused(|request| request.namespaces.ipc = join("/run/byre/nsx/a")), "namespaces.ipc");
    assert_eq!(refused(|request| request.namespaces.ipc = join("/run/byre/ns/")), "namespaces.ipc");
    let bind = |path: &str| MountSource::Bind { path: path.to_owned(), recursive: false };
    let options = MountOptions::default();
    assert_eq!(refused(|request| add_mount(request, "/x", bind("/etc"), options)), "mounts[2].source.path");
    assert_eq!(refused(|request| add_mount(request, "/x", bind("/data/bindsx"), options)), "mounts[2].source.path");
    let shared = MountOptions { propagation: Propagation::Shared, ..options };
    assert_eq!(
        refused(|request| add_mount(request, "/x", bind("/data/binds/a"), shared)),
        "mounts[2].options.propagation"
    );
    let device = DeviceRule {
        block: true,
        major: None,
        minor: None,
        read: true,
        write: true,
        mknod: false,
        path: None,
        deny: false,
    };
    assert_eq!(refused(|request| request.devices.push(device)), "devices");
    let node = crate::Node { path: "/dev/x".to_owned(), kind: crate::NodeKind::Pipe, mode: 0o600, uid: 0, gid: 0 };
    assert_eq!(refused(|request| request.nodes.push(node)), "nodes");
    assert_eq!(refused(|request| request.kernel.personality = Some(8)), "kernel");
    assert_eq!(refused(|request| request.process.scheduling.disk = Some(0)), "process.scheduling");
    assert_eq!(refused(|request| request.root = Root::Directory { path: "/etc".to_owned(), read_only: true }), "root");
    let ext4 = MountSource::FileSystem {
        kind: "ext4".to_owned(),
        source: "/dev/vda".to_owned(),
        settings: Vec::new(),
        copy_up: false,
    };
    assert_eq!(refused(|request| add_mount(request, "/x", ext4, options)), "mounts[2].source");
    let partition = ("cpuset.cpus.partition".to_owned(), "root".to_owned());
    assert_eq!(refused(|request| request.resources.unified.push(partition)), "resources.unified[0]");
}

#[test]
fn a_host_service_is_not_a_clients() {
    let mut request = container();
    request.root = Root::Host;
    request.namespaces.user = UserNamespace::Host;
    let allowed = Policy { host_users: true, ..policy() };
    assert!(Plan::check(request.clone(), &policy(), Origin::VerifiedRoot).is_ok());
    assert_eq!(Plan::check(request.clone(), &allowed, Origin::Client).unwrap_err().field, "root");
    let plan = Plan::check(request.clone(), &allowed, Origin::VerifiedRoot).unwrap();
    assert!(Plan::check_exec(request.process, &plan, &allowed, Origin::Client).is_err());
}

#[test]
fn id_maps_never_reach_the_hosts_or_anothers_ids() {
    let map = |inside, outside, count| IdMap { inside, outside, count };
    let with = |maps: Vec<IdMap>| {
        let mut request = container();
        request.namespaces.user = UserNamespace::Mapped { uids: maps.clone(), gids: maps };
        Plan::check(request, &policy(), Origin::Client).is_ok()
    };
    assert!(with(vec![map(0, 65_536, 65_536)]));
    assert!(with(vec![map(0, 70_000, 1), map(1, 65_536, 10)]));
    for bad in [
        vec![],
        vec![map(0, 0, 1)],
        vec![map(0, 65_535, 1)],
        vec![map(0, 65_536, 0)],
        vec![map(1, 65_536, 10)],
        vec![map(0, u32::MAX, 1)],
        vec![map(0, u32::MAX - 5, 10)],
        vec![map(0, 65_536, u32::MAX)],
        vec![map(0, 65_536, 10), map(5, 80_000, 10)],
        vec![map(0, 65_536, 10), map(20, 65_540, 10)],
        vec![map(0, *limits::AUTOMATIC_IDS.start(), 1)],
        vec![map(0, 65_536, 0x2000_0000)],
    ] {
        assert!(!with(bad.clone()), "{bad:?}");
    }
}

#[test]
fn sysctls_stay_inside_the_workloads_own_namespaces() {
    let with = |name: &str, value: &str| refused(|request| request.sysctls = vec![(name.to_owned(), value.to_owned())]);
    for bad in [
        "kernel.core_pattern",
        "vm.overcommit_memory",
        "kernel.shm/../core_pattern",
        "net",
        "net..ipv4",
        "net.ipv4.../x",
        "kernel.hostname",
        "",
    ] {
        assert_eq!(with(bad, "1"), "sysctls[0]", "{bad}");
    }
    assert_eq!(with("net.ipv4.ip_forward", "1\n2"), "sysctls[0]");
    assert_eq!(refused(|request| request.namespaces.net = Namespace::Host), "sysctls[0]");
}

#[test]
fn limits_of_the_cgroup_are_limits_and_nothing_else() {
    let with = |name: &str| refused(|request| request.resources.unified = vec![(name.to_owned(), "1".to_owned())]);
    for bad in [
        "cgroup.procs",
        "cgroup.kill",
        "cgroup.freeze",
        "../cgroup.procs",
        "memory.reclaim",
        "cpu.pressure",
        "memory",
        "memory.",
        "memory./x",
    ] {
        assert_eq!(with(bad), "resources.unified[0]", "{bad}");
    }
    assert_eq!(refused(|request| request.resources.memory_max_bytes = Some(0)), "resources.memory_max_bytes");
    assert_eq!(refused(|request| request.resources.pids_max = Some(0)), "resources");
    assert_eq!(refused(|request| request.resources.io_weight = Some(0)), "resources.io_weight");
    assert_eq!(refused(|request| request.resources.pids_max = Some(u64::MAX)), "resources.pids_max");
    assert_eq!(refused(|request| request.resources.cpuset_cpus = Some("0 1".to_owned())), "resources.cpuset_cpus");
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    assert_eq!(refused(|request| request.mounts.clear()), "process.terminal");
    assert_eq!(refused(|request| request.namespaces.uts = Namespace::Host), "hostname");
    assert_eq!(
        refused(|request| add_mount(request, "//.", MountSource::Proc, MountOptions::default())),
        "mounts[2].target"
    );
    assert_eq!(refused(|request| request.root = Root::Layers { layers: Vec::new(), read_only: true }), "root.layers");
    let rule = LandlockRule { path: "x".to_owned(), access: LandlockAccess::Read };
    assert_eq!(refused(|request| request.landlock.push(rule)), "landlock[0].path");
}

/// Bytes that often decode: a good request with some changed.
fn nearly_good() -> impl Strategy<Value = Vec<u8>> {
    let good = postcard::to_allocvec(&container()).unwrap();
    let length = good.len();
    prop::collection::vec((0..length, any::<u8>()), 0..12).prop_map(move |changes| {
        let mut bytes = good.clone();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes
    })
}

proptest! {
    #[test]
    fn no_bytes_panic_and_what_passes_is_allowed(bytes in prop_oneof![nearly_good(), prop::collection::vec(any::<u8>(), 0..512)]) {
        if let Ok(request) = postcard::from_bytes::<LaunchRequest>(&bytes) {
            let _ = Plan::check(request.clone(), &policy(), Origin::VerifiedRoot);
            if let Ok(plan) = Plan::check(request, &policy(), Origin::Client) {
                let plan = plan.request();
                prop_assert!(!matches!(plan.root, Root::Host));
                prop_assert!(!matches!(plan.namespaces.user, UserNamespace::Host));
                prop_assert_eq!(plan.process.capabilities.bounding & !policy().capabilities, 0);
                prop_assert!(plan.mounts.iter().all(|mount| mount.target.starts_with('/') && !mount.target.split('/').any(|part| part == "..")));
                prop_assert!(plan.devices.is_empty());
            }
        }
    }

    #[test]
    fn any_path_that_passes_stays_below(path in "(/?(\\.|\\.\\.|a|data|binds|run|byre|ns)){0,8}/?") {
        let mut request = container();
        add_mount(&mut request, "/x", MountSource::Bind { path: path.clone(), recursive: true }, MountOptions::default());
        if Plan::check(request, &policy(), Origin::Client).is_ok() {
            let clean: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
            prop_assert!(clean.starts_with(&["data", "binds"]) && !clean.contains(&".."), "{}", path);
        }
    }
}

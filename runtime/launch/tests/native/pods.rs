//! Pods: namespaces without a process, and containers in them.

use std::os::fd::AsFd;

use byre_launch::Report;
use byre_plan::{LaunchRequest, Namespace, Namespaces, Plan, Program, Seccomp, UserNamespace};

use super::bench::{Bench, Test, check, children, host_script};
use super::containers::{base, container};

pub(crate) const ALL: &[Test] = &[
    ("a pod is namespaces that no process holds", no_process),
    ("containers of a pod share its namespaces and nothing else", shared),
    ("a container in a pod mounts what is its pod's, and may be entered", mounts_and_exec),
    ("a pod that cannot be set up leaves nothing bound", failed),
    ("a pod with the host's users works the same", host_users),
];

/// Where this program's pods are bound.
pub(crate) const DIRECTORY: &str = "/run/byre/ns/native-test";

/// A pod with everything of its own that it can have.
pub(crate) fn pod() -> LaunchRequest {
    let host = host_script("");
    LaunchRequest {
        process: byre_plan::Process {
            program: Program::None,
            args: Vec::new(),
            env: Vec::new(),
            capabilities: byre_plan::Capabilities::default(),
            ..host.process.clone()
        },
        namespaces: Namespaces {
            user: UserNamespace::Automatic,
            net: Namespace::New,
            ipc: Namespace::New,
            uts: Namespace::New,
            ..Namespaces::of_host()
        },
        hostname: Some("the-pod".to_owned()),
        sysctls: vec![("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())],
        seccomp: Seccomp::None,
        ..host
    }
}

fn in_pod(bench: &Bench, script: &str) -> Plan {
    let mut request = container(vec![base(bench)], script);
    request.hostname = None;
    request.namespaces.user = UserNamespace::Join(format!("{DIRECTORY}/user"));
    request.namespaces.net = Namespace::Join(format!("{DIRECTORY}/net"));
    request.namespaces.ipc = Namespace::Join(format!("{DIRECTORY}/ipc"));
    request.namespaces.uts = Namespace::Join(format!("{DIRECTORY}/uts"));
    check(request).unwrap()
}

/// Makes the pod, runs the test, and releases the pod whatever came of it.
fn with_pod(bench: &Bench, request: LaunchRequest, test: impl FnOnce()) {
    std::fs::create_dir_all("/run/byre/ns").unwrap();
    let plan = check(request).unwrap();
    let mut made = bench.start(&plan, 0x900);
    assert!(matches!(made.started(), Report::Made), "{:?}", made.started());
    made.finish();
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
    byre_launch::release_namespaces(DIRECTORY).unwrap();
    assert!(!byre_launch::are_bound(DIRECTORY));
    ended.unwrap();
}

fn no_process(bench: &Bench) {
    with_pod(bench, pod(), || {
        assert!(children().is_empty(), "{:?}", children());
        assert!(byre_launch::are_bound(DIRECTORY));
        let network = byre_launch::open_network(DIRECTORY).unwrap();
        let inside = move_into(network.as_fd());
        assert_ne!(inside, std::fs::read_link("/proc/self/ns/net").unwrap());
    });
}

/// What the namespace of this descriptor is called.
fn move_into(network: std::os::fd::BorrowedFd<'_>) -> std::path::PathBuf {
    use std::os::fd::AsRawFd as _;
    let inode = rustix::fs::fstat(network).unwrap().st_ino;
    assert!(network.as_raw_fd() >= 0);
    std::path::PathBuf::from(format!("net:[{inode}]"))
}

fn shared(bench: &Bench) {
    with_pod(bench, pod(), || {
        let script = "for kind in user net ipc uts mnt pid cgroup; do readlink /proc/self/ns/$kind; done; hostname; \
                      cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/self/uid_map; cat /sys/class/net/lo/operstate";
        let one = bench.start(&in_pod(bench, script), 0x901).finish();
        let other = bench.start(&in_pod(bench, script), 0x902).finish();
        let (one, other): (Vec<&str>, Vec<&str>) = (one.output().lines().collect(), other.output().lines().collect());
        assert_eq!(one[..4], other[..4], "user, network, IPC and UTS are the pod's");
        for (kind, name) in (4..).zip(["mnt", "pid", "cgroup"]) {
            let hosts = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            assert_ne!(Some(one[kind]), hosts.to_str(), "mounts, processes and cgroups are its own");
        }
        assert_eq!(one[7..9], ["the-pod", "80"]);
        assert_eq!(one[9].split_whitespace().collect::<Vec<_>>(), ["0", "268435456", "65536"]);
        // Loopback says "unknown" when it is up.
        assert_eq!(one[10], "unknown");
    });
}

fn mounts_and_exec(bench: &Bench) {
    with_pod(bench, pod(), || {
        let script = "grep -c ' /sys sysfs ro' /proc/mounts; grep -c ' /dev/mqueue mqueue' /proc/mounts; stat -c %u /bin; \
                      touch /written && stat -c %u /written; id -u; exec sleep 30";
        let plan = in_pod(bench, script);
        let mut running = bench.start(&plan, 0x903);
        let lines: Vec<String> = (0..5).map(|_| running.line()).collect();
        assert_eq!(lines, ["1\n", "1\n", "0\n", "0\n", "0\n"]);
        let mut process = host_script("hostname; readlink /proc/self/ns/net; cat /proc/1/cmdline").process;
        process.args[0] = "/bin/sh".to_owned();
        process.capabilities = plan.request().process.capabilities;
        let policy = byre_plan::Policy::default();
        let exec = Plan::check_exec(process, &plan, &policy, byre_plan::Origin::VerifiedRoot).unwrap();
        let entered = running.exec(&exec, &plan);
        byre_launch::cgroup::kill(running.outer.as_fd()).unwrap();
        running.finish();
        assert!(entered.output().starts_with("the-pod\n"), "{entered:?}");
        assert!(entered.output().contains("sleep"), "{entered:?}");
    });
}

fn failed(bench: &Bench) {
    std::fs::create_dir_all("/run/byre/ns").unwrap();
    let mut request = pod();
    request.sysctls = vec![("net.no.such.setting".to_owned(), "1".to_owned())];
    let ended = bench.start(&check(request).unwrap(), 0x904).finish();
    let (step, subject, _) = ended.failure();
    assert_eq!((step, subject), ("set sysctl", "net.no.such.setting"));
    assert!(!byre_launch::are_bound(DIRECTORY));
    assert!(!std::path::Path::new(DIRECTORY).exists());
}

fn host_users(bench: &Bench) {
    let mut request = pod();
    request.namespaces.user = UserNamespace::Host;
    with_pod(bench, request, || {
        let mut request = container(vec![base(bench)], "hostname; cat /proc/self/uid_map");
        request.hostname = None;
        request.namespaces.user = UserNamespace::Host;
        request.namespaces.uts = Namespace::Join(format!("{DIRECTORY}/uts"));
        request.namespaces.net = Namespace::Join(format!("{DIRECTORY}/net"));
        let ended = bench.start(&check(request).unwrap(), 0x905).finish();
        assert!(ended.output().starts_with("the-pod\n         0          0 4294967295"), "{ended:?}");
    });
}

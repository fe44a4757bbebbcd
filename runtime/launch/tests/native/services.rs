//! Host services: the host's root, whole or with some mounts changed.

use byre_launch::Report;
use byre_plan::{
    Capabilities, LandlockAccess, LandlockRule, Mount, MountOptions, MountSource, Namespace, Principal, Rlimit,
};

use super::bench::{Bench, Test, host_script};

pub(crate) const ALL: &[Test] = &[
    ("a job with everything the host's runs as root", everything_the_hosts),
    ("a missing program is a failed start that names it", missing_program),
    ("nothing but the plan's descriptors is open", only_its_descriptors),
    ("signals have their defaults and none is blocked", signals_are_default),
    ("a service has its user, capabilities and no way back", user_and_capabilities),
    ("mounts of a service do not reach the host", private_mounts),
    ("Landlock confines a service to its paths", landlock),
    ("resource limits are the plan's, open files the default", resource_limits),
    ("namespaces that are new are not the host's", new_namespaces),
    ("a service starts and ends in its leaf", in_its_leaf),
];

fn everything_the_hosts(bench: &Bench) {
    let ended = bench.run(host_script("id -u; readlink /proc/self/ns/mnt /proc/self/ns/net"));
    let links = ["mnt", "net"].map(|name| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap());
    let expected = format!("0\n{}\n{}\n", links[0].display(), links[1].display());
    assert_eq!(ended.output(), expected);
}

fn missing_program(bench: &Bench) {
    let mut request = host_script("");
    request.process.args = vec!["/no/such/program".to_owned()];
    assert_eq!(bench.run(request).failure(), ("execute", "/no/such/program", libc::ENOENT));
    let mut request = host_script("");
    request.process.args = vec!["no-such-program".to_owned()];
    assert_eq!(bench.run(request).failure(), ("execute", "no-such-program", libc::ENOENT));
}

fn only_its_descriptors(bench: &Bench) {
    let open = std::fs::File::open("/etc/passwd").unwrap();
    // A careless descriptor of PID 1's: not close-on-exec.
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
    let ended = bench.run(host_script("ls /proc/$$/fd"));
    let mut numbers: Vec<&str> = ended.output().split_whitespace().collect();
    // dash keeps its own descriptors from 10 on.
    numbers.retain(|number| number.parse::<u32>().unwrap() < 10);
    assert_eq!(numbers, ["0", "1", "2"]);
}

fn signals_are_default(bench: &Bench) {
    let ended = bench.run(host_script("exec grep -E '^Sig(Blk|Ign)' /proc/self/status"));
    assert_eq!(ended.output(), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

fn user_and_capabilities(bench: &Bench) {
    let mut request = host_script("id -u; id -g; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/$$/status; umask");
    request.process.user.user = Principal::Id(4242);
    request.process.user.group = Some(Principal::Id(4343));
    request.process.user.umask = Some(0o077);
    let net_bind = 1 << 10;
    request.process.capabilities = Capabilities {
        bounding: net_bind,
        effective: net_bind,
        permitted: net_bind,
        inheritable: net_bind,
        ambient: net_bind,
    };
    let ended = bench.run(request);
    let set = "0000000000000400";
    let expected = format!(
        "4242\n4343\nCapInh:\t{set}\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t{set}\nNoNewPrivs:\t1\nSeccomp:\t0\n0077\n"
    );
    assert_eq!(ended.output(), expected);
}

fn private_mounts(bench: &Bench) {
    let mut request =
        host_script("echo here > /mnt/file; cat /mnt/file; touch /etc/passwd 2>/dev/null || echo read-only");
    request.namespaces.mount = Namespace::New;
    request.mounts = vec![Mount {
        target: "/mnt".to_owned(),
        source: MountSource::Tmpfs { size_bytes: 1 << 20, mode: 0o755 },
        options: MountOptions::default(),
    }];
    request.read_only_paths = vec!["/etc".to_owned()];
    assert_eq!(bench.run(request).output(), "here\nread-only\n");
    assert!(!std::path::Path::new("/mnt/file").exists());
}

fn landlock(bench: &Bench) {
    let mut request = host_script("read line < /etc/passwd && echo yes; read line < /proc/version || echo no");
    let rule = |path: &str, access| LandlockRule { path: path.to_owned(), access };
    request.landlock = vec![
        rule("/etc/passwd", LandlockAccess::Read),
        rule("/usr", LandlockAccess::Execute),
        rule("/dev/null", LandlockAccess::Write),
    ];
    let ended = bench.run(request);
    assert!(ended.output().starts_with("yes\n") && ended.output().ends_with("no\n"), "{ended:?}");

    let mut request = host_script("true");
    request.landlock = vec![rule("/no/such/path", LandlockAccess::Read)];
    assert_eq!(bench.run(request).failure(), ("apply Landlock rules", "/no/such/path", libc::ENOENT));
}

fn resource_limits(bench: &Bench) {
    let mut request = host_script("ulimit -Sn; ulimit -Hn; ulimit -Sc");
    request.process.rlimits = vec![Rlimit { resource: 4, soft: 512 * 7, hard: 512 * 7 }];
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    assert_eq!(bench.run(request).output(), format!("1024\n{}\n7\n", 524_288.min(hard)));
}

fn new_namespaces(bench: &Bench) {
    let mut request = host_script(
        "for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; hostname; cat /sys/class/net/lo/flags; echo $$",
    );
    request.namespaces = byre_plan::Namespaces::default();
    request.hostname = Some("inside".to_owned());
    request.sysctls = vec![("net.ipv4.ip_forward".to_owned(), "1".to_owned())];
    let mount = |target: &str, source| Mount { target: target.to_owned(), source, options: MountOptions::default() };
    request.mounts = vec![mount("/proc", MountSource::Proc), mount("/sys", MountSource::Sysfs)];
    let ended = bench.run(request);
    let lines: Vec<&str> = ended.output().lines().collect();
    for (line, name) in lines.iter().zip(["mnt", "pid", "net", "ipc", "uts", "cgroup"]) {
        let host = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(std::path::Path::new(line), host);
    }
    assert_eq!(lines[6..], ["inside", "0x9", "1"]);
}

fn in_its_leaf(bench: &Bench) {
    let plan = super::bench::check(host_script("grep ^0: /proc/self/cgroup; exec sleep 30")).unwrap();
    let mut running = bench.start(&plan, 0xabc);
    assert!(matches!(running.started(), Report::Running { .. }));
    assert!(byre_launch::cgroup::populated(std::os::fd::AsFd::as_fd(&running.outer)).unwrap());
    assert!(running.line().ends_with("/0000000000000abc/leaf\n"));
    byre_launch::cgroup::kill(std::os::fd::AsFd::as_fd(&running.outer)).unwrap();
    let ended = running.finish();
    assert_eq!(ended.code, Some(128 + libc::SIGKILL));
}

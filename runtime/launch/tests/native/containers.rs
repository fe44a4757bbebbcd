//! Containers: an image of one or two layers, seen through user namespaces, with everything a default container mounts.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use byre_launch::Report;
use byre_plan::{
    Capabilities, Digest, LaunchRequest, Mount, MountOptions, MountSource, Namespaces, Plan, Principal, Process, Root,
    TerminalSize, UserNamespace,
};

use super::bench::{Bench, Test, check, host_script};

pub(crate) const ALL: &[Test] = &[
    ("a container sees its image, its ids and nothing of the host", sees_its_image),
    ("a container's files lie on disk with its own host ids", ids_on_disk),
    ("an upper layer hides and replaces what is below", layers_overlay),
    ("without a user namespace a container works in one clone", host_users),
    ("a missing program, user and image are failures by name", failures_by_name),
    ("the default mounts are there and hold", default_mounts),
    ("a read-only root cannot be written, its mounts can", read_only_root),
    ("standard streams can be opened anew by any user", streams_of_any_user),
    ("generated files are there, read-only", generated_files),
    ("the default filter holds without no_new_privs too", without_no_new_privileges),
    ("with the host's network /sys is read-only", host_network),
    ("a namespace that is bound to a path is joined", joined_namespaces),
    ("a launch child killed at any moment leaves nothing", killed_stage),
    ("a removed container leaves nothing", removal),
    ("the node's helper runs inside by its descriptor", helper),
    ("a new volume is filled from the image and kept", volumes),
    ("a terminal is the container's own", terminal),
    ("an exec is inside, in the leaf, with the workload's view", exec_inside),
    ("devices beside the default ones are denied", devices),
    ("a working directory that leads out of the root does not", working_directory),
    ("mount targets follow links inside the root only", mount_targets),
    ("a layer is mounted once, and until its file is gone", shared_layers),
];

/// Makes an erofs layer of a busybox root and what `more` adds.
pub(crate) fn layer(bench: &Bench, number: u8, busybox: bool, more: impl FnOnce(&Path)) -> Digest {
    let digest = Digest([number; 32]);
    let target = bench.files.path().join(format!("layers/{digest}.erofs"));
    if target.exists() {
        return digest;
    }
    let root = bench.files.path().join(format!("tree-{number}"));
    std::fs::create_dir_all(root.join("bin")).unwrap();
    if busybox {
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "id", "ls", "stat", "mount", "grep", "echo", "readlink", "touch", "sleep", "hostname", "tty",
            "stty", "ps", "ln", "dd", "mkdir", "env", "pwd", "test",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n").unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\nweb:x:102:\nlogs:x:4:web\n").unwrap();
    }
    more(&root);
    let made = Command::new("mkfs.erofs").args(["--quiet", "--all-root"]).arg(&target).arg(&root).output();
    let made = made.expect("mkfs.erofs is needed (package erofs-utils)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    digest
}

pub(crate) fn mount(target: &str, source: MountSource) -> Mount {
    Mount { target: target.to_owned(), source, options: MountOptions { no_suid: true, ..MountOptions::default() } }
}

fn default_mount_list() -> Vec<Mount> {
    let read_only = MountOptions { read_only: true, ..MountOptions::default() };
    vec![
        mount("/proc", MountSource::Proc),
        mount("/dev", MountSource::Devices),
        mount("/dev/pts", MountSource::Devpts),
        mount("/dev/shm", MountSource::Tmpfs { size_bytes: 64 << 20, mode: 0o1777 }),
        mount("/dev/mqueue", MountSource::Mqueue),
        Mount { options: read_only, ..mount("/sys", MountSource::Sysfs) },
        Mount { options: read_only, ..mount("/sys/fs/cgroup", MountSource::Cgroup) },
    ]
}

/// A default container on these layers that runs a script.
pub(crate) fn container(layers: Vec<Digest>, script: &str) -> LaunchRequest {
    // The usual 14 of docker.
    let usual = 0xa804_25fb;
    let host = host_script(script);
    LaunchRequest {
        process: Process {
            capabilities: Capabilities {
                bounding: usual,
                effective: usual,
                permitted: usual,
                inheritable: 0,
                ambient: 0,
            },
            env: vec!["PATH=/bin".to_owned()],
            ..host.process
        },
        root: Root::Layers { layers, read_only: false },
        namespaces: Namespaces { user: UserNamespace::Automatic, ..Namespaces::default() },
        mounts: default_mount_list(),
        hostname: Some("box".to_owned()),
        seccomp: byre_plan::Seccomp::Default,
        masked_paths: vec!["/proc/kcore".to_owned(), "/sys/firmware".to_owned(), "/proc/acpi".to_owned()],
        read_only_paths: vec!["/proc/sys".to_owned()],
        ..host
    }
}

pub(crate) fn base(bench: &Bench) -> Digest {
    layer(bench, 1, true, |_| {})
}

fn sees_its_image(bench: &Bench) {
    let script =
        "id -u; hostname; ls /; echo $$; cat /proc/self/uid_map; echo $HOME; grep -c . /proc/mounts; ls /proc/self/fd";
    let ended = bench.run(container(vec![base(bench)], script));
    let output = ended.output();
    assert!(output.starts_with("0\nbox\nbin\ndev\netc\nproc\nsys\n1\n"), "{output}");
    assert!(output.contains(" 268435456      65536\n/root\n"), "{output}");
    assert!(!bench.files.path().join("containers/proc").exists());
}

fn ids_on_disk(bench: &Bench) {
    let mut request = container(vec![base(bench)], "touch /srv/mine; id -u; stat -c %u:%g /etc/passwd /srv/mine");
    request.process.user.user = Principal::Name("web".to_owned());
    request.process.cwd = "/srv".to_owned();
    assert_eq!(bench.run(request).output(), "101\n0:0\n101:102\n");
    let status = std::fs::metadata(bench.files.path().join("containers/0000000000001b1b/upper/srv/mine")).unwrap();
    assert_eq!((status.uid(), status.gid()), (0x1000_0000 + 101, 0x1000_0000 + 102));
}

fn layers_overlay(bench: &Bench) {
    let upper = layer(bench, 2, false, |root| {
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/note"), "new\n").unwrap();
    });
    let lower = layer(bench, 3, true, |root| std::fs::write(root.join("etc/note"), "old\n").unwrap());
    assert_eq!(bench.run(container(vec![lower, upper], "cat /etc/note")).output(), "new\n");
}

fn host_users(bench: &Bench) {
    let mut request =
        container(vec![base(bench)], "id -u; cat /proc/self/uid_map; touch /file; stat -c %u /file /dev/null");
    request.namespaces.user = UserNamespace::Host;
    let ended = bench.run(request);
    assert!(ended.output().starts_with("0\n         0          0 4294967295\n0\n0\n"), "{ended:?}");
}

fn failures_by_name(bench: &Bench) {
    let image = base(bench);
    let mut request = container(vec![image], "");
    request.process.args = vec!["nonesuch".to_owned()];
    assert_eq!(bench.run(request.clone()).failure(), ("execute", "nonesuch", libc::ENOENT));
    request.process.user.user = Principal::Name("nobody-here".to_owned());
    assert_eq!(bench.run(request.clone()).failure(), ("look up user", "nobody-here", libc::ENOENT));
    request.root = Root::Layers { layers: vec![Digest([9; 32])], read_only: false };
    let ended = bench.run(request);
    let (step, subject, errno) = ended.failure();
    assert_eq!((step, errno), ("mount image layer", libc::ENOENT));
    assert!(subject.ends_with(&format!("{}.erofs", Digest([9; 32]))));
    // A layer whose digest was recorded, and which is not under fs-verity any more, or is another one.
    let image = layer(bench, 7, true, |_| {});
    std::fs::write(bench.files.path().join(format!("layers/{image}.verity")), image.to_string()).unwrap();
    let ended = bench.run(container(vec![image], "true"));
    let (step, subject, _) = ended.failure();
    assert_eq!(step, "check image layer");
    assert!(subject.contains(&format!("{image}.erofs")), "{subject}");
}

fn default_mounts(bench: &Bench) {
    let script = "echo x > /dev/shm/x && cat /dev/shm/x; stat -c %a /dev/shm; readlink /dev/fd; readlink /dev/ptmx; echo n > /dev/null && dd if=/dev/zero bs=3 count=1 2>/dev/null | grep -c .; \
        (echo 1 > /proc/sys/kernel/hostname) 2>/dev/null || echo protected; cat /proc/kcore 2>/dev/null | grep -c . ; ls /sys/class/net; touch /sys/x 2>/dev/null || echo ro; test -f /sys/fs/cgroup/cgroup.procs && echo cgroup; mkdir /sys/fs/cgroup/x 2>/dev/null || echo ro";
    let ended = bench.run(container(vec![base(bench)], script));
    let output = ended.output.as_str();
    assert!(output.starts_with("x\n1777\n/proc/self/fd\npts/ptmx\n1\nprotected\n0\nlo\nro\ncgroup\nro\n"), "{ended:?}");
}

fn read_only_root(bench: &Bench) {
    let mut request = container(vec![base(bench)], "touch /x 2>/dev/null || echo ro; touch /dev/shm/x && echo rw");
    request.root = Root::Layers { layers: vec![base(bench)], read_only: true };
    let ended = bench.start(&check(request).unwrap(), 0x99).finish();
    assert_eq!(ended.output(), "ro\nrw\n");
    assert!(!bench.files.path().join("containers/0000000000000099").exists());
}

fn streams_of_any_user(bench: &Bench) {
    let mut request = container(vec![base(bench)], "echo out > /dev/stdout; echo err > /proc/self/fd/2");
    request.process.user.user = Principal::Id(777);
    assert_eq!(bench.run(request).output(), "out\nerr\n");
}

fn generated_files(bench: &Bench) {
    let mut request = container(vec![base(bench)], "cat /etc/hosts; stat -c %u:%a /etc/hosts; echo x > /etc/hosts");
    request.mounts.push(mount("/etc/hosts", MountSource::GeneratedFile("127.0.0.1 localhost\n".to_owned())));
    let ended = bench.run(request);
    assert!(ended.output.starts_with("127.0.0.1 localhost\n0:644\n"), "{ended:?}");
    assert_eq!(ended.code, Some(1));
}

fn without_no_new_privileges(bench: &Bench) {
    let mut request = container(vec![base(bench)], "grep -E '^(Seccomp:|NoNewPrivs)' /proc/self/status");
    request.process.no_new_privileges = false;
    request.process.user.user = Principal::Id(777);
    assert_eq!(bench.run(request).output(), "NoNewPrivs:\t0\nSeccomp:\t2\n");
}

fn host_network(bench: &Bench) {
    let mut request = container(
        vec![base(bench)],
        "readlink /proc/self/ns/net; ls /sys/class/net | grep -c lo; touch /sys/x 2>/dev/null || echo ro",
    );
    request.namespaces.net = byre_plan::Namespace::Host;
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(bench.run(request).output(), format!("{}\n1\nro\n", host.display()));
}

fn joined_namespaces(bench: &Bench) {
    // The network namespace of one container is bound to a path, and another joins it.
    let mut owner =
        bench.start(&check(container(vec![base(bench)], "readlink /proc/self/ns/net; exec sleep 30")).unwrap(), 0x101);
    let expected = owner.line();
    let Report::Running { pid, .. } = owner.started() else { panic!("{:?}", owner.started()) };
    std::fs::create_dir_all("/run/byre/ns/test").unwrap();
    let place = "/run/byre/ns/test/net";
    std::fs::write(place, "").unwrap();
    rustix::mount::mount_bind(format!("/proc/{pid}/ns/net"), place).unwrap();
    let mut request = container(vec![base(bench)], "readlink /proc/self/ns/net");
    request.namespaces.net = byre_plan::Namespace::Join(place.to_owned());
    let plan = check(request);
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bench.start(&plan.unwrap(), 0x102).finish()));
    rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH).unwrap();
    std::fs::remove_dir_all("/run/byre/ns/test").unwrap();
    byre_launch::cgroup::kill(owner.outer.as_fd()).unwrap();
    owner.finish();
    assert_eq!(ended.unwrap().output(), expected);
}

fn killed_stage(bench: &Bench) {
    // A child that dies at any moment is a failed start or a program that ended, and nothing is left of it.
    let plan = check(container(vec![base(bench)], "exec sleep 30")).unwrap();
    for delay_us in [0_u64, 50, 200, 500, 1000, 2000, 4000, 8000] {
        let mut running = bench.start(&plan, 0x200 + delay_us);
        std::thread::sleep(std::time::Duration::from_micros(delay_us));
        running.kill_stage();
        byre_launch::cgroup::kill(running.outer.as_fd()).unwrap();
        let ended = running.finish();
        match ended.report {
            Report::Incomplete => assert_eq!(ended.code, None),
            Report::Running { .. } => assert_eq!(ended.code, Some(128 + libc::SIGKILL)),
            Report::Failed { .. } | Report::Made => panic!("{ended:?}"),
        }
    }
}

fn removal(bench: &Bench) {
    let script = "mkdir -p /a/b/c; echo x > /a/b/c/file; ln -s /etc /a/link; echo done";
    let ended = bench.start(&check(container(vec![base(bench)], script)).unwrap(), 0xdead).finish();
    assert_eq!(ended.output(), "done\n");
    let containers = bench.directory("containers");
    let own = bench.files.path().join("containers/000000000000dead");
    assert!(own.exists());
    byre_launch::remove_container_files(&containers, byre_plan::WorkloadId(0xdead)).unwrap();
    assert!(!own.exists());
    // What is not there is removed already.
    byre_launch::remove_container_files(&containers, byre_plan::WorkloadId(0xdead)).unwrap();
}

fn helper(bench: &Bench) {
    let mut request = container(vec![base(bench)], "");
    request.process.program = byre_plan::Program::Helper;
    request.process.args = vec!["helper-probe".to_owned()];
    assert_eq!(bench.run(request).output(), "helper inside box\n");
}

fn volumes(bench: &Bench) {
    let image = layer(bench, 4, true, |root| {
        std::fs::create_dir_all(root.join("data/inner")).unwrap();
        std::fs::write(root.join("data/inner/file"), "from image\n").unwrap();
    });
    let mut request =
        container(vec![image], "cat /data/inner/file; stat -c %u /data/inner/file; echo more >> /data/inner/file");
    request.mounts.push(mount("/data", MountSource::Volume("kept".try_into().unwrap())));
    assert_eq!(bench.run(request.clone()).output(), "from image\n0\n");
    assert_eq!(bench.run(request).output(), "from image\nmore\n0\n");
    let mut own = container(vec![image], "cat /data/inner/file; echo more >> /data/inner/file");
    own.mounts.push(mount("/data", MountSource::OwnVolume(3)));
    assert_eq!(bench.run(own.clone()).output(), "from image\n");
    assert_eq!(bench.run(own).output(), "from image\nmore\n");
    // On disk the ids begin at 0, whatever range a container has.
    let status = std::fs::metadata(bench.files.path().join("volumes/kept/inner/file")).unwrap();
    assert_eq!(status.uid(), 0);
}

fn terminal(bench: &Bench) {
    let mut request =
        container(vec![base(bench)], "tty; stty size; test -c /dev/console && echo console; stat -c %u /dev/pts/0");
    request.process.user.user = Principal::Id(777);
    request.process.terminal = Some(TerminalSize { rows: 33, columns: 101 });
    let mut running = bench.start(&check(request).unwrap(), 0x77);
    let Report::Running { terminal: Some(terminal), .. } = running.started() else { panic!("{:?}", running.started()) };
    let mut text = String::new();
    let mut buffer = [0_u8; 512];
    while let Ok(count @ 1..) = rustix::io::read(terminal, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert_eq!(text.replace('\r', ""), "/dev/pts/0\n33 101\nconsole\n777\n");
    assert_eq!(running.finish().code, Some(0));
}

fn exec_inside(bench: &Bench) {
    let plan = check(container(vec![base(bench)], "echo up; exec sleep 30")).unwrap();
    let mut running = bench.start(&plan, 0x88);
    assert_eq!(running.line(), "up\n");
    let inside = container(
        vec![],
        "id -u; id -G; hostname; cat /proc/1/comm; grep ^0: /proc/self/cgroup; grep -E '^(CapEff|Seccomp:|NoNewPrivs)' /proc/self/status",
    );
    let mut process = inside.process;
    process.user.user = Principal::Name("web".to_owned());
    let exec =
        Plan::check_exec(process, &plan, &byre_plan::Policy::default(), byre_plan::Origin::VerifiedRoot).unwrap();
    let ended = running.exec(&exec, &plan);
    let expected = "101\n102 4\nbox\nsleep\n0::/\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    assert_eq!(ended.output(), expected);
    byre_launch::cgroup::kill(running.outer.as_fd()).unwrap();
    running.finish();
}

fn devices(bench: &Bench) {
    let node = byre_plan::DeviceRule {
        block: false,
        major: Some(1),
        minor: Some(7),
        read: true,
        write: true,
        mknod: false,
        path: Some("/opt/device".to_owned()),
        deny: false,
    };
    let forbidden = byre_plan::DeviceRule {
        minor: Some(11),
        read: false,
        mknod: true,
        write: false,
        path: Some("/dev/log-device".to_owned()),
        ..node.clone()
    };
    let mut request = container(
        vec![base(bench)],
        "echo x > /opt/device 2>/dev/null || echo full; cat /dev/log-device 2>/dev/null || echo denied",
    );
    request.devices = vec![node, forbidden];
    assert_eq!(bench.run(request).output(), "full\ndenied\n");
}

fn working_directory(bench: &Bench) {
    let image = layer(bench, 5, true, |root| {
        for number in 3..20 {
            std::os::unix::fs::symlink(format!("/proc/self/fd/{number}"), root.join(format!("out{number}"))).unwrap();
        }
    });
    for number in 3..20 {
        let mut request = container(vec![image], "pwd; ls");
        request.process.cwd = format!("/out{number}");
        let ended = bench.run(request);
        assert!(matches!(ended.report, Report::Failed { .. }), "{ended:?}");
    }
}

fn mount_targets(bench: &Bench) {
    let image = layer(bench, 6, true, |root| {
        std::os::unix::fs::symlink("../../../../../../../../tmp", root.join("up")).unwrap();
    });
    let mut request = container(vec![image], "echo inside > /tmp/deep/file; cat /tmp/deep/file");
    request.mounts.push(mount("/up/deep", MountSource::Tmpfs { size_bytes: 4096, mode: 0o755 }));
    let ended = bench.run(request);
    assert!(!Path::new("/tmp/deep").exists());
    // The link dangles inside the image: nothing is made through it.
    assert!(matches!(ended.report, Report::Failed { .. }), "{ended:?}");
}

fn shared_layers(bench: &Bench) {
    let digest = layer(bench, 50, true, |_| {});
    let request = container(vec![digest], "echo up; sleep 1; cat /etc/group");
    let plan = check(request).unwrap();
    let mut running = bench.start(&plan, 0x301);
    assert_eq!(running.line(), "up\n");
    assert!(bench.run(container(vec![digest], "test -e /bin/busybox")).output().is_empty());
    let shared = bench.directory("shared");
    let mounts = || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().filter(|line| line.contains(&format!("{shared}/{digest} "))).count()
    };
    let store = bench.directory("layers");
    byre_launch::release_layers(&shared, Some(&store)).unwrap();
    assert_eq!(mounts(), 1);
    std::fs::remove_file(format!("{store}/{digest}.erofs")).unwrap();
    byre_launch::release_layers(&shared, Some(&store)).unwrap();
    assert_eq!(mounts(), 0);
    assert!(!Path::new(&shared).join(digest.to_string()).exists());
    assert_eq!(running.finish().output(), "root:x:0:\nweb:x:102:\nlogs:x:4:web\n");
}

//! The runtime itself: its program, its descriptors, its files and sockets.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use serde_json::json;

use super::bench::Bench;

/// What a process of the container may open as /proc/PID/exe is a sealed copy.
#[test]
#[ignore = "needs root"]
fn cve_2019_5736() {
    let bench = Bench::new("cve-2019-5736");
    bench.create(&[]).ok();
    let pid = bench.state()["pid"].as_u64().unwrap();
    let exe = format!("/proc/{pid}/exe");
    let target = fs::read_link(&exe).unwrap();
    assert!(target.to_string_lossy().starts_with("/memfd:"), "{}", target.display());
    let file = fs::File::open(&exe).unwrap();
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
    assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SEAL), "{seals:?}");
}

/// Runs a command of the runtime's whose caller has left the host's root open as descriptor 9.
fn with_leak(mut command: Command) -> std::process::Output {
    let root = fs::File::open("/").unwrap();
    let number = root.as_raw_fd();
    // SAFETY: between fork and exec only dup2 runs, which is async-signal-safe.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(
            move || {
                if libc::dup2(number, 9) == 9 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            },
        );
    }
    command.output().unwrap()
}

/// A working directory that is a descriptor of the runtime's, or of its caller's.
#[test]
#[ignore = "needs root"]
fn cve_2024_21626() {
    let bench = Bench::new("cve-2024-21626");
    for number in 3..24 {
        let cwd = format!("/proc/self/fd/{number}");
        bench.script("pwd; ls ../../../../bin/busybox ../../../..", |config| config["process"]["cwd"] = json!(cwd));
        let mut run = bench.command(["run", "--bundle"]);
        run.arg(bench.bundle()).arg(bench.id());
        let output = with_leak(run);
        assert!(!output.status.success(), "{cwd}: {output:?}");
    }
}

/// The same in an exec.
#[test]
#[ignore = "needs root"]
fn cve_2024_21626_exec() {
    let bench = Bench::new("cve-2024-21626e");
    bench.script("echo up; sleep 1000", |_| {});
    bench.create(&[]).ok();
    bench.call(["start", bench.id()]).ok();
    bench.await_output("up");
    for number in 3..24 {
        let cwd = format!("/proc/self/fd/{number}");
        let output = with_leak(bench.command(["exec", "--cwd", &cwd, bench.id(), "pwd"]));
        assert!(!output.status.success(), "{cwd}: {output:?}");
    }
}

/// No descriptor of the caller's but the standard streams reaches the program.
#[test]
#[ignore = "needs root"]
fn cve_2024_21626_leak() {
    let bench = Bench::new("cve-2024-21626l");
    bench.script("ls /proc/self/fd | tr '\\n' ' '", |_| {});
    let mut run = bench.command(["run", "--bundle"]);
    run.arg(bench.bundle()).arg(bench.id());
    let output = with_leak(run);
    // The last one is that of ls itself.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0 1 2 3 ", "{output:?}");
}

/// containerd: nothing can be reached from the container's network by an abstract socket.
#[test]
#[ignore = "needs root"]
fn cve_2020_15257() {
    let bench = Bench::new("cve-2020-15257");
    let count = || fs::read_to_string("/proc/net/unix").unwrap().lines().filter(|line| line.contains(" @")).count();
    let before = count();
    bench.configure(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "network");
        config["mounts"].as_array_mut().unwrap().retain(|one| one["destination"] != "/sys");
        config["mounts"].as_array_mut().unwrap().retain(|one| one["destination"] != "/sys/fs/cgroup");
    });
    bench.create(&[]).ok();
    assert!(bench.path("state").join(bench.id()).join("start").exists(), "the socket is a file");
    assert!(count() <= before, "an abstract socket more");
}

/// containerd: other users of the host do not get at a container's files.
#[test]
#[ignore = "needs root"]
fn cve_2021_41103() {
    let bench = Bench::new("cve-2021-41103");
    bench.create(&[]).ok();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.path("state").join(bench.id())), 0o700);
}

/// containerd: nor, should they get that far, at its configuration, which has secrets in its environment.
#[test]
#[ignore = "needs root"]
fn cve_2024_25621() {
    let bench = Bench::new("cve-2024-25621");
    bench.create(&[]).ok();
    for name in ["config.json", "state.json"] {
        let mode = fs::metadata(bench.path("state").join(bench.id()).join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

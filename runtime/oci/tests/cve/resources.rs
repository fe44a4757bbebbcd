//! Memory of the runtime, and limits that must hold the container.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use super::bench::Bench;

/// Reads a figure of a process in KiB.
fn kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim_start_matches(':').split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// runc: what is longer than a message is refused, and nothing wraps.
#[test]
#[ignore = "needs root"]
fn cve_2021_43784() {
    let bench = Bench::new("cve-2021-43784");
    bench.script("true", |config| {
        let entry = json!({ "destination": format!("/{}", "x/".repeat(33_000)), "type": "tmpfs", "source": "tmpfs" });
        config["mounts"].as_array_mut().unwrap().push(entry);
    });
    let said = bench.run().failed();
    assert!(said.contains("target") && said.contains("use at most"), "{said}");
    assert!(bench.is_gone());
}

/// containerd: what is read whole has a bound.
#[test]
#[ignore = "needs root"]
fn cve_2023_25153() {
    let bench = Bench::new("cve-2023-25153");
    bench.script("true", |config| config["annotations"] = json!({ "long": "x".repeat(3 << 20) }));
    let said = bench.run().failed();
    assert!(said.contains("use at most"), "{said}");
}

/// Runs a container with a terminal, attached; gives the runtime's process.
fn attached(bench: &Bench) -> std::process::Child {
    bench.command(["run", "--bundle"]).arg(bench.bundle()).arg(bench.id()).stdout(Stdio::piped()).spawn().unwrap()
}

/// containerd, CRI-O: output is passed on and not collected.
#[test]
#[ignore = "needs root"]
fn cve_2022_31030() {
    let bench = Bench::new("cve-2022-31030");
    bench.script("tr '\\000' x < /dev/zero", |config| config["process"]["terminal"] = json!(true));
    let mut child = attached(&bench);
    let mut output = child.stdout.take().unwrap();
    let mut buffer = vec![0_u8; 1 << 20];
    let mut read = 0;
    while read < 48 << 20 {
        read += std::io::Read::read(&mut output, &mut buffer).unwrap();
    }
    let peak = kib(child.id(), "VmHWM");
    bench.call(["kill", bench.id(), "KILL"]).ok();
    drop(output);
    child.wait().unwrap();
    assert!((1..24_000).contains(&peak), "{peak} KiB after {read} bytes");
}

/// containerd: nor do changes of a terminal's size.
#[test]
#[ignore = "needs root"]
fn cve_2022_23471() {
    let bench = Bench::new("cve-2022-23471");
    bench.script("echo up; sleep 1000", |config| config["process"]["terminal"] = json!(true));
    let mut child = attached(&bench);
    let mut output = child.stdout.take().unwrap();
    let mut word = [0_u8; 2];
    std::io::Read::read_exact(&mut output, &mut word).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let before = kib(child.id(), "VmRSS");
    let end = Instant::now() + Duration::from_secs(1);
    let mut sent = 0;
    while sent < 20_000 && Instant::now() < end {
        rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
        sent += 1;
        std::thread::yield_now();
    }
    let (after, threads) = (kib(child.id(), "VmRSS"), kib(child.id(), "Threads"));
    bench.call(["kill", bench.id(), "KILL"]).ok();
    child.wait().unwrap();
    assert_eq!(threads, 1);
    assert!(after < before + 2048, "{before} KiB, then {after} KiB after {sent} signals");
}

/// containerd: a container with a user namespace lies where its limits are.
#[test]
#[ignore = "needs root"]
fn cve_2025_47291() {
    let bench = Bench::new("cve-2025-47291");
    let rootfs = bench.bundle().join("rootfs");
    std::os::unix::fs::chown(&rootfs, Some(100_000), Some(100_000)).unwrap();
    bench.configure(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
        config["linux"]["uidMappings"] = maps.clone();
        config["linux"]["gidMappings"] = maps;
        config["linux"]["cgroupsPath"] = json!("/byre-oci/cve-pod/cve-2025-47291");
    });
    bench.create(&[]).ok();
    let pid = bench.state()["pid"].as_u64().unwrap();
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    assert!(own.contains("/byre-oci/cve-pod/cve-2025-47291/"), "{cgroup}");
    bench.call(["delete", "--force", bench.id()]).ok();
}

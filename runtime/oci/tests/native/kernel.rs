//! What few bundles ask the kernel for: ids of mounts, agents of seccomp, interfaces, labels, and what a service manager hands over.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;

use serde_json::json;

use super::bench::{Bench, receive};

#[test]
#[ignore = "needs root"]
fn a_mount_shows_the_ids_of_its_maps() {
    let bench = Bench::new("idmap");
    let source = bench.path("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "").unwrap();
    let ids = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": 65_536 }]);
    bench.script("stat -c %u:%g /x/file /y/file", |config| {
        for (target, host) in [("/x", 100_000), ("/y", 200_000)] {
            config["mounts"].as_array_mut().unwrap().push(json!({
                "destination": target, "source": source, "options": ["bind"],
                "uidMappings": ids(host), "gidMappings": ids(host + 1),
            }));
        }
    });
    assert_eq!(bench.run().ok(), "100000:100001\n200000:200001\n");
    bench.script("true", |config| {
        config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/x", "source": source, "options": ["bind", "idmap"],
        }));
    });
    assert!(bench.run().failed().contains("are those of a user namespace, and there is none"));
}

#[test]
#[ignore = "needs root"]
fn an_agent_gets_the_listener_of_a_start_and_of_an_exec() {
    let bench = Bench::new("agent");
    let (agent, path) = bench.socket("agent");
    bench.script("echo up; sleep 1000", |config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "about it",
            "syscalls": [{ "names": ["mkdirat", "mkdir"], "action": "SCMP_ACT_NOTIFY" }],
        });
    });
    bench.create(&[]).ok();
    let start = bench.command(["start", bench.id()]).spawn().unwrap();
    let (listener, _) = receive(&agent);
    assert!(start.wait_with_output().unwrap().status.success());
    let target = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener)));
    assert_eq!(target.unwrap().to_str(), Some("anon_inode:seccomp notify"));
    bench.await_output("up");
    let exec =
        bench.command(["exec", bench.id(), "mkdir", "/made"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let (own, _) = receive(&agent);
    // Nobody answers: when the listener is closed, the call that waits fails.
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(own.as_fd(), rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut polled, None).unwrap();
    drop(own);
    let output = exec.wait_with_output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not implemented"), "{output:?}");
}

#[test]
#[ignore = "needs root"]
fn an_agent_that_is_not_there_fails_the_start() {
    let bench = Bench::new("no-agent");
    bench.script("true", |config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": bench.path("nobody"),
            "syscalls": [{ "names": ["mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
        });
    });
    assert!(bench.run().failed().contains("nobody"));
    assert!(bench.is_gone());
    for (rule, said) in [
        (json!({ "names": ["write"], "action": "SCMP_ACT_NOTIFY" }), "cannot be used for the write syscall"),
        (json!({ "names": ["mkdirat"], "action": "SCMP_ACT_WISH" }), "SCMP_ACT_WISH"),
    ] {
        bench.script("true", |config| {
            config["linux"]["seccomp"] =
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "syscalls": [rule] });
        });
        assert!(bench.run().failed().contains(said));
    }
}

fn ip(arguments: &str) -> bool {
    let status = std::process::Command::new("ip").args(arguments.split(' ')).status();
    status.expect("ip is needed (package iproute2)").success()
}

#[test]
#[ignore = "needs root"]
fn an_interface_moves_with_its_addresses_and_a_new_name() {
    let bench = Bench::new("interface");
    let name = format!("byre{}", std::process::id() % 100_000);
    assert!(
        ip(&format!("link add {name} type veth peer name {name}p")) && ip(&format!("addr add 10.9.8.7/24 dev {name}"))
    );
    bench.script("cat /sys/class/net/inside/operstate /proc/net/fib_trie", |config| {
        config["linux"]["netDevices"] = json!({ &name: { "name": "inside" } });
    });
    let seen = bench.run().ok();
    assert!(seen.contains("10.9.8.7"), "{seen}");
    assert!(!std::path::Path::new("/sys/class/net").join(&name).exists(), "it is not the host's any more");
    bench.script("true", |config| config["linux"]["netDevices"] = json!({ "nosuchif": {} }));
    assert!(bench.run().failed().contains("there is no interface \\\"nosuchif\\\""));
}

#[test]
#[ignore = "needs root"]
fn processors_of_an_exec_are_its_own() {
    let bench = Bench::new("affinity");
    bench.script("echo up; sleep 1000", |config| config["process"]["execCPUAffinity"] = json!({ "final": "0" }));
    bench.create(&[]).ok();
    bench.call(["start", bench.id()]).ok();
    bench.await_output("up");
    let list = ["exec", bench.id(), "grep", "Cpus_allowed_list", "/proc/self/status"];
    assert_eq!(bench.call(list).ok(), "Cpus_allowed_list:\t0\n");
}

#[test]
#[ignore = "needs root"]
fn memory_policies_are_the_kernels() {
    let bench = Bench::new("numa");
    let supported = std::path::Path::new("/proc/self/numa_maps").exists();
    bench.script("head -n 1 /proc/self/numa_maps 2>/dev/null || cat /proc/self/numa_maps | sed 1q", |config| {
        config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
    });
    let answer = bench.run();
    if supported {
        assert_eq!(answer.code, 0, "{answer:?}");
    } else {
        assert!(answer.failed().contains("set memory policy"));
    }
}

#[test]
#[ignore = "needs root"]
fn landlock_rules_of_the_annotation_hold() {
    let bench = Bench::new("landlock");
    bench.script("cat /proc/version > /dev/null && echo read; cat /hidden 2>&1", |config| {
        std::fs::write(bench.bundle().join("rootfs/hidden"), "hidden").unwrap();
        let rules = r#"[{"path": "/bin", "access": "execute"}, {"path": "/proc", "access": "read"}, {"path": "/dev", "access": "write"}]"#;
        config["annotations"] = json!({ "org.byre.landlock": rules });
    });
    let answer = bench.run();
    if answer.err.contains("apply Landlock rules") {
        // A kernel without Landlock: refused, and not left out.
        return;
    }
    assert!(answer.out.starts_with("read\n") && answer.out.contains("ermission denied"), "{answer:?}");
}

#[test]
#[ignore = "needs root"]
fn a_service_manager_is_told_that_the_program_is_ready() {
    let bench = Bench::new("notify");
    let manager = UnixDatagram::bind(bench.path("manager")).unwrap();
    bench.script("echo socket $NOTIFY_SOCKET; ls -l $NOTIFY_SOCKET; sleep 1", |_| {});
    let run = |arguments: &[&str]| {
        bench
            .command(arguments)
            .arg("-b")
            .arg(bench.bundle())
            .arg(bench.id())
            .env("NOTIFY_SOCKET", bench.path("manager"))
            .output()
    };
    // A program that never says that it is ready: its start ends with it, and nothing is passed on.
    let output = run(&["run"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = format!("socket {}/notify\nsrwxrwxrwx", bench.path("manager").display());
    assert!(text.starts_with(&expected), "{output:?}");
    manager.set_nonblocking(true).unwrap();
    assert!(manager.recv(&mut [0; 64]).is_err());
    assert!(bench.is_gone());
}

#[test]
#[ignore = "needs root"]
fn descriptors_of_a_service_manager_are_announced() {
    let bench = Bench::new("listen");
    bench.script("echo $LISTEN_FDS $LISTEN_PID; cat <&3", |_| {});
    let own = env!("CARGO_BIN_EXE_byre-oci");
    let (state, bundle) = (bench.path("state"), bench.bundle());
    let line = format!(
        "echo handed > {0}/f; exec 3< {0}/f; LISTEN_FDS=1 exec {own} --root {1} run -b {0} listen",
        bundle.display(),
        state.display()
    );
    let output = std::process::Command::new("sh").arg("-c").arg(line).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 1\nhanded\n", "{output:?}");
}

#[test]
#[ignore = "needs root"]
fn of_two_equal_entries_of_an_environment_the_last_counts() {
    let bench = Bench::new("twice");
    bench.script("env | grep -c ^A=; echo $A; echo $HOME", |config| {
        config["process"]["env"] = json!(["PATH=/bin", "A=1", "A=2", "HOME="]);
    });
    assert_eq!(bench.run().ok(), "1\n2\n/\n");
}

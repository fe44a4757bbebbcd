//! Capabilities, users, groups and settings that a container must not get.

use serde_json::{Value, json};

use super::bench::Bench;

fn running(name: &'static str, change: impl FnOnce(&mut Value)) -> Bench {
    let bench = Bench::new(name);
    bench.script("echo up; sleep 1000", change);
    bench.create(&[]).ok();
    bench.call(["start", bench.id()]).ok();
    bench.await_output("up");
    bench
}

fn status(bench: &Bench, arguments: &[&str], field: &str) -> String {
    let script = [bench.id(), "grep", field, "/proc/self/status"];
    let line = bench.call(["exec"].iter().chain(arguments).copied().chain(script)).ok();
    line.split_once(':').unwrap().1.trim().to_owned()
}

const NONE: &str = "0000000000000000";

/// What exec adds is not inheritable.
#[test]
#[ignore = "needs root"]
fn cve_2022_29162() {
    let bench = running("cve-2022-29162", |_| {});
    assert_eq!(status(&bench, &["--cap", "CAP_NET_ADMIN"], "CapInh"), NONE);
}

/// crun: nor ambient.
#[test]
#[ignore = "needs root"]
fn cve_2022_27650() {
    let bench = running("cve-2022-27650", |_| {});
    assert_eq!(status(&bench, &["--cap", "CAP_NET_ADMIN", "--user", "7:7"], "CapAmb"), NONE);
}

/// youki: an exec has the container's capabilities, not the caller's.
#[test]
#[ignore = "needs root"]
fn cve_2025_27612() {
    let bench = running("cve-2025-27612", |config| config["process"]["capabilities"] = json!({}));
    assert_eq!(status(&bench, &[], "CapPrm"), NONE);
    assert_eq!(status(&bench, &[], "CapBnd"), NONE);
}

/// containerd, moby: no default has inheritable capabilities.
#[test]
fn cve_2022_24769() {
    let defaults = byre_spec::ContainerDefaults { layers: Vec::new(), args: Vec::new() };
    assert_eq!(byre_spec::default_container(defaults).process.capabilities.inheritable, 0);
}

/// CRI-O: nor has what `spec` writes.
#[test]
#[ignore = "needs root"]
fn cve_2022_27652() {
    let bench = Bench::new("cve-2022-27652");
    bench.script("grep CapInh /proc/self/status", |_| {});
    assert_eq!(bench.run().ok().trim(), format!("CapInh:\t{NONE}"));
}

/// moby and others: no group of whoever called the runtime.
#[test]
#[ignore = "needs root"]
fn cve_2022_36109() {
    let bench = Bench::new("cve-2022-36109");
    bench.script("grep Groups /proc/self/status", |config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [50] });
    });
    let mut run = bench.command(["run", "--bundle"]);
    run.arg(bench.bundle()).arg(bench.id());
    let output = std::process::Command::new("setpriv")
        .args(["--groups", "7,8"])
        .arg(run.get_program())
        .args(run.get_args())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), "Groups:\t50", "{output:?}");
}

/// containerd: nor in an exec, which has the groups that it is given.
#[test]
#[ignore = "needs root"]
fn cve_2023_25173() {
    let bench = running("cve-2023-25173", |config| config["process"]["user"]["additionalGids"] = json!([9]));
    assert_eq!(status(&bench, &["--user", "5:6", "--additional-gids", "50"], "Groups"), "9 50");
}

/// containerd: a user id that overflows is refused, and becomes neither root nor a name.
#[test]
#[ignore = "needs root"]
fn cve_2024_40635() {
    let bench = running("cve-2024-40635", |_| {});
    for user in ["4294967296", "4294967295", "0:4294967296", ":5", "-1", "18446744073709551616"] {
        let said = bench.call(["exec", &format!("--user={user}"), bench.id(), "id", "-u"]).failed();
        assert!(said.contains("is not of the form"), "{user}: {said}");
    }
}

/// buildah: nothing of the caller's environment.
#[test]
#[ignore = "needs root"]
fn cve_2021_3602() {
    let bench = Bench::new("cve-2021-3602");
    bench.script("env", |_| {});
    let mut run = bench.command(["run", "--bundle"]);
    let output = run.arg(bench.bundle()).arg(bench.id()).env("HOST_SECRET", "secret").output().unwrap();
    assert!(output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("secret"), "{output:?}");
}

/// CRI-O: a setting of the whole machine is refused, in whatever it is hidden.
#[test]
#[ignore = "needs root"]
fn cve_2022_0811() {
    let current = std::fs::read_to_string("/proc/sys/vm/swappiness").unwrap();
    for (name, value) in [("vm.swappiness", current.trim()), ("kernel.shm_rmid_forced", "1+vm.swappiness=1")] {
        let bench = Bench::new("cve-2022-0811");
        bench.script("true", |config| config["linux"]["sysctl"] = json!({ name: value }));
        bench.run().failed();
    }
}

/// CRI-O: a setting of a namespace that is the host's is the host's.
#[test]
#[ignore = "needs root"]
fn cve_2022_0532() {
    let bench = Bench::new("cve-2022-0532");
    let current = std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    bench.script("true", |config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "ipc");
        config["mounts"].as_array_mut().unwrap().retain(|one| one["destination"] != "/dev/mqueue");
        config["linux"]["sysctl"] = json!({ "kernel.shm_rmid_forced": current.trim() });
    });
    let said = bench.run().failed();
    assert!(said.contains("would change another's IPC namespace"), "{said}");
}

/// moby: /proc/acpi is hidden.
#[test]
#[ignore = "needs root"]
fn cve_2018_10892() {
    let bench = Bench::new("cve-2018-10892");
    bench.configure(|_| {});
    let text = std::fs::read_to_string(bench.bundle().join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert!(config["linux"]["maskedPaths"].as_array().unwrap().contains(&json!("/proc/acpi")), "{config}");
}

/// containerd, runc: with the host's cgroup namespace, a container of a user namespace does not write the host's cgroups.
#[test]
#[ignore = "needs root"]
fn cve_2023_25809() {
    let bench = Bench::new("cve-2023-25809");
    let rootfs = bench.bundle().join("rootfs");
    std::os::unix::fs::chown(&rootfs, Some(100_000), Some(100_000)).unwrap();
    bench.script("grep ' /sys/fs/cgroup ' /proc/self/mounts | cut -d' ' -f4 | cut -d, -f1", |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|one| one["type"] != "cgroup");
        namespaces.push(json!({ "type": "user" }));
        let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
        config["linux"]["uidMappings"] = maps.clone();
        config["linux"]["gidMappings"] = maps;
        for one in config["mounts"].as_array_mut().unwrap() {
            if one["destination"] == "/sys/fs/cgroup" {
                one["options"] = json!(["nosuid", "rw"]);
            }
        }
    });
    assert_eq!(bench.run().ok(), "ro\n");
}

//! The peer's bundle: an OCI `config.json` that says of a container what a node's default container is made of, word for word from the
//! same constants, so that both sides set up the same namespaces, mounts, capabilities and filter.

use anyhow::{Context as _, Result};
use byre_plan::seccomp::{self, Action, ArgumentTest, Comparison, Profile};
use byre_spec::{DEFAULT_CAPABILITIES, capability_name};
use byre_spec::{DEFAULT_PATH, MASKED_PATHS, READ_ONLY_PATHS};
use serde_json::{Value, json};

/// First host id of its user namespace and how many it has: what a node gives, too.
pub(super) const FIRST_ID: u32 = 100_000;
const IDS: u32 = 65_536;
/// The limit of processes of a default container.
const PIDS: u32 = 4096;
/// Directories that mounts need; the root cannot make them once it is somebody else's.
pub(super) const DIRECTORIES: [&str; 5] = ["proc", "dev", "sys", "etc", "tmp"];
/// Files that a node makes for each container; the peer has them beside its bundle.
pub(super) const GENERATED: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// The configuration of a container that runs `args`.
pub(super) fn config(args: &[&str]) -> Result<Value> {
    let names: Vec<String> = (0..64)
        .filter(|number| DEFAULT_CAPABILITIES & (1 << number) != 0)
        .filter_map(|number| Some(format!("CAP_{}", capability_name(number)?)))
        .collect();
    let ids = json!([{"containerID": 0, "hostID": FIRST_ID, "size": IDS}]);
    let namespaces: Vec<Value> =
        ["pid", "network", "ipc", "uts", "mount", "cgroup", "user"].map(|kind| json!({ "type": kind })).to_vec();
    Ok(json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": [DEFAULT_PATH],
            "cwd": "/",
            "capabilities": {"bounding": &names, "effective": &names, "permitted": &names},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "start",
        "mounts": mounts(),
        "linux": {
            "uidMappings": &ids,
            "gidMappings": &ids,
            "namespaces": namespaces,
            "resources": {"pids": {"limit": PIDS}},
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS,
            "seccomp": filter(&seccomp::default_profile())?,
        },
    }))
}

fn mounts() -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let strict = ["nosuid", "nodev", "noexec"];
    let read_only = ["nosuid", "nodev", "noexec", "ro"];
    let mut all = vec![
        mount("/proc", "proc", &strict),
        mount("/dev", "tmpfs", &["nosuid", "noexec", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "nodev", "noexec", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &strict),
        mount("/sys", "sysfs", &read_only),
        mount("/sys/fs/cgroup", "cgroup", &read_only),
    ];
    all.extend(GENERATED.map(|name| {
        json!({"destination": format!("/etc/{name}"), "type": "bind", "source": format!("/opt/bench/bundle/{name}"), "options": ["bind", "nosuid", "nodev", "noexec"]})
    }));
    all
}

/// The node's filter in OCI's words.
fn filter(profile: &Profile) -> Result<Value> {
    let mut rules = Vec::new();
    for rule in &profile.rules {
        let names: Option<Vec<&str>> = rule.syscalls.iter().map(|number| seccomp::name(*number)).collect();
        let mut said = json!({
            "names": names.context("the default filter has a number without a name")?,
            "args": rule.tests.iter().map(argument).collect::<Vec<_>>(),
        });
        say(&mut said, "action", "errnoRet", rule.action);
        rules.push(said);
    }
    let mut said = json!({"architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules});
    say(&mut said, "defaultAction", "defaultErrnoRet", profile.default);
    Ok(said)
}

fn say(to: &mut Value, action: &str, number: &str, what: Action) {
    let (name, errno) = match what {
        Action::KillProcess => ("SCMP_ACT_KILL_PROCESS", None),
        Action::KillThread => ("SCMP_ACT_KILL_THREAD", None),
        Action::Trap => ("SCMP_ACT_TRAP", None),
        Action::Errno(errno) => ("SCMP_ACT_ERRNO", Some(errno)),
        Action::Trace(data) => ("SCMP_ACT_TRACE", Some(data)),
        Action::Notify => ("SCMP_ACT_NOTIFY", None),
        Action::Log => ("SCMP_ACT_LOG", None),
        Action::Allow => ("SCMP_ACT_ALLOW", None),
    };
    to[action] = json!(name);
    if let Some(errno) = errno {
        to[number] = json!(errno);
    }
}

fn argument(test: &ArgumentTest) -> Value {
    let (name, value, second) = match test.comparison {
        Comparison::Equal => ("SCMP_CMP_EQ", test.value, 0),
        Comparison::NotEqual => ("SCMP_CMP_NE", test.value, 0),
        Comparison::Less => ("SCMP_CMP_LT", test.value, 0),
        Comparison::LessOrEqual => ("SCMP_CMP_LE", test.value, 0),
        Comparison::Greater => ("SCMP_CMP_GT", test.value, 0),
        Comparison::GreaterOrEqual => ("SCMP_CMP_GE", test.value, 0),
        // OCI gives the mask first and what remains second.
        Comparison::MaskedEqual(mask) => ("SCMP_CMP_MASKED_EQ", mask, test.value),
    };
    json!({"index": test.index, "op": name, "value": value, "valueTwo": second})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_says_what_a_default_container_is() {
        let config = config(&["/byre-stamp"]).unwrap();
        assert_eq!(config["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
        assert_eq!(config["linux"]["seccomp"]["defaultErrnoRet"], 1);
        let defaults =
            byre_spec::default_container(byre_spec::ContainerDefaults { layers: Vec::new(), args: Vec::new() });
        let targets: Vec<&str> =
            config["mounts"].as_array().unwrap().iter().filter_map(|mount| mount["destination"].as_str()).collect();
        for mount in &defaults.mounts {
            assert!(targets.contains(&mount.target.as_str()), "{}", mount.target);
        }
        assert_eq!(defaults.resources.pids_max, Some(u64::from(PIDS)));
    }
}

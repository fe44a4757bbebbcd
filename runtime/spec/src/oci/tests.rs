//! Every field of the specification does something or is refused by name; and what engines write is read.

use byre_plan::{Origin, Plan, Policy};
use serde_json::{Value, json};

use super::fields::{FIELDS, Verdict};
use super::*;

const AROUND: Around<'_> =
    Around { bundle: "/bundle", capabilities: u64::MAX, oom_score_adj: 7, open_files: (1024, 4096) };

fn hook(name: &str) -> Value {
    json!([{ "path": format!("/bin/{name}"), "args": [name], "env": ["A=b"], "timeout": 5 }])
}

/// A file that sets everything that is honoured.
#[expect(clippy::too_many_lines, reason = "one file with every field")]
fn everything() -> Value {
    let throttle = json!([{ "major": 8, "minor": 1, "rate": 600 }]);
    json!({
        "ociVersion": "1.3.0",
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [{
            "destination": "/a", "source": "a", "type": "tmpfs", "options": ["ro", "size=1k"],
            "uidMappings": [{ "containerID": 1, "hostID": 1000, "size": 10 }],
            "gidMappings": [{ "containerID": 1, "hostID": 1000, "size": 10 }],
        }],
        "process": {
            "terminal": true, "consoleSize": { "height": 3, "width": 4 }, "cwd": "/c", "env": ["A=b"], "args": ["x"],
            "rlimits": [{ "type": "RLIMIT_CORE", "soft": 1, "hard": 2 }],
            "capabilities": {
                "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"],
                "permitted": ["CAP_KILL"], "ambient": ["CAP_KILL"],
            },
            "noNewPrivileges": true, "oomScoreAdj": 100,
            "scheduler": {
                "policy": "SCHED_DEADLINE", "nice": 3, "priority": 4, "flags": ["SCHED_FLAG_RECLAIM"], "runtime": 1,
                "deadline": 2, "period": 3,
            },
            "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 3 },
            "execCPUAffinity": { "initial": "0-1", "final": "1" },
            "apparmorProfile": "profile", "selinuxLabel": "system_u:system_r:container_t:s0",
            "user": { "uid": 1, "gid": 2, "umask": 63, "additionalGids": [3] },
        },
        "hostname": "host",
        "domainname": "domain",
        "hooks": {
            "prestart": hook("a"), "createRuntime": hook("b"), "createContainer": hook("c"), "startContainer": hook("d"),
            "poststart": hook("e"), "poststop": hook("f"),
        },
        "annotations": { "key": "value" },
        "linux": {
            "namespaces": [{ "type": "network", "path": "/proc/1/ns/net" }, { "type": "user" }, { "type": "time" }],
            "uidMappings": [{ "containerID": 1, "hostID": 1000, "size": 10 }],
            "gidMappings": [{ "containerID": 1, "hostID": 1000, "size": 10 }],
            "timeOffsets": {
                "monotonic": { "secs": 1, "nanosecs": 2 }, "boottime": { "secs": 3, "nanosecs": 4 },
            },
            "devices": [{ "type": "p", "path": "/dev/x", "major": 1, "minor": 5, "fileMode": 384, "uid": 1, "gid": 2 }],
            "cgroupsPath": "/a/b",
            "resources": {
                "devices": [{ "allow": true, "type": "c", "major": 1, "minor": 2, "access": "r" }],
                "memory": { "limit": 4096, "reservation": 2048, "swap": 8192 },
                "cpu": {
                    "shares": 512, "quota": 2000, "burst": 5, "period": 10000, "cpus": "0", "mems": "0", "idle": 1,
                },
                "blockIO": {
                    "weight": 500, "weightDevice": [{ "major": 8, "minor": 1, "weight": 20 }],
                    "throttleReadBpsDevice": throttle, "throttleWriteBpsDevice": throttle,
                    "throttleReadIOPSDevice": throttle, "throttleWriteIOPSDevice": throttle,
                },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 9 }],
                "pids": { "limit": 8 },
                "rdma": { "mlx5_1": { "hcaHandles": 3, "hcaObjects": 4 } },
                "unified": { "memory.high": "1" },
            },
            "sysctl": { "net.ipv4.ip_forward": "1" },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "listenerPath": "/run/agent", "listenerMetadata": "metadata",
                "syscalls": [{
                    "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
                    "args": [{ "index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ" }],
                }],
            },
            "rootfsPropagation": "slave",
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "personality": { "domain": "LINUX32" },
            "mountLabel": "system_u:object_r:container_file_t:s0",
            "memoryPolicy": { "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] },
            "netDevices": { "eth7": { "name": "eth0" } },
        },
    })
}

fn read(value: &Value) -> Result<Bundle, Refusal> {
    read_bundle(value.to_string().as_bytes(), &AROUND)
}

/// Walks to a path of the table; makes what is missing if there is a value to put there, else takes out what is there.
fn change(value: &mut Value, path: &str, new: Option<Value>) -> bool {
    let (head, rest) = path.split_once('.').map_or((path, None), |(head, rest)| (head, Some(rest)));
    let (name, is_list) = head.strip_suffix("[]").map_or((head, false), |name| (name, true));
    let Some(entries) = value.as_object_mut() else { return false };
    let name = if name == "*" { entries.keys().next().cloned().unwrap_or("any".to_owned()) } else { name.to_owned() };
    if rest.is_none() && !is_list {
        return match new {
            Some(new) => entries.insert(name, new).is_none(),
            None => entries.remove(&name).is_some(),
        };
    }
    let fresh = if is_list { json!([]) } else { json!({}) };
    let inner = if new.is_some() { Some(entries.entry(&name).or_insert(fresh)) } else { entries.get_mut(&name) };
    let Some(mut inner) = inner else { return false };
    if is_list {
        let Some(list) = inner.as_array_mut() else { return false };
        if list.is_empty() && new.is_some() {
            list.push(json!({}));
        }
        if rest.is_none() {
            return list.pop().is_some();
        }
        let Some(first) = list.first_mut() else { return false };
        inner = first;
    }
    rest.is_some_and(|rest| change(inner, rest, new))
}

#[test]
fn every_field_does_something_or_is_refused_by_name() {
    let whole = read(&everything()).unwrap();
    let mut device = everything();
    device["linux"]["devices"] = json!([{ "type": "c", "path": "/dev/x", "major": 1, "minor": 5 }]);
    let device = read(&device).unwrap();
    assert_eq!(whole.warnings, Vec::<String>::new());
    for (path, verdict) in FIELDS {
        let (mut changed, mut whole) = (everything(), &whole);
        if path.starts_with("linux.devices[].m") {
            // A pipe has no number.
            changed["linux"]["devices"] = json!([{ "type": "c", "path": "/dev/x", "major": 1, "minor": 5 }]);
            whole = &device;
        }
        match verdict {
            Verdict::Honoured => {
                assert!(change(&mut changed, path, None), "{path} is not in the example of everything");
                assert!(read(&changed).as_ref() != Ok(whole), "{path} does nothing");
            }
            Verdict::Always(how) => {
                assert!(!how.is_empty());
                change(&mut changed, path, Some(json!(true)));
            }
            Verdict::Refused(remedy) => {
                change(&mut changed, path, Some(json!({ "any": 1 })));
                let refusal = read(&changed).unwrap_err();
                assert_eq!((refusal.field.as_str(), refusal.remedy.as_str()), (*path, *remedy));
                change(&mut changed, path, Some(json!(null)));
                assert!(read(&changed).as_ref() == Ok(whole), "{path}: null asks for nothing");
            }
        }
    }
}

#[test]
fn the_table_names_each_field_once_and_parents_first() {
    for (index, (path, _)) in FIELDS.iter().enumerate() {
        assert!(FIELDS[..index].iter().all(|(other, _)| other != path), "{path} twice");
        if let Some((parent, _)) = path.rsplit_once('.') {
            assert!(fields::verdict(parent).is_some(), "{path} has no parent");
        }
    }
}

#[test]
fn what_is_not_known_is_reported_and_let_pass() {
    let mut config = everything();
    change(&mut config, "linux.future", Some(json!({ "a": 1 })));
    config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_FLY"]);
    config["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["read", "time_travel"]);
    let bundle = read(&config).unwrap();
    let expected = [
        "linux.future is not known and ignored",
        "capability \"CAP_FLY\" is not known or not available, and not given",
    ];
    assert_eq!(bundle.warnings, expected);
    assert_eq!(bundle.notes, ["system calls not known on this architecture have no rule: time_travel"]);
    assert_eq!(bundle.request, read(&everything()).unwrap().request);
}

#[test]
fn hostile_files_are_refused_with_a_line() {
    let long = vec![b' '; fields::CONFIG_BYTES + 1];
    let deep = "[".repeat(100_000);
    for bad in [&b"{"[..], b"[]", b"null", b"{}", &long, deep.as_bytes()] {
        let refusal = read_bundle(bad, &AROUND).unwrap_err();
        assert!(refusal.to_string().len() < 1000 && !refusal.remedy.is_empty());
    }
    for (path, value) in [
        ("ociVersion", json!("2.0.0")),
        ("ociVersion", json!("1.4.0")),
        ("ociVersion", json!("1")),
        ("root.path", json!("")),
        ("process.cwd", json!("")),
        ("process.oomScoreAdj", json!(1_i64 << 40)),
        ("process.user.uid", json!(-1)),
        ("linux.namespaces", json!([{ "type": "pid" }, { "type": "pid" }])),
        ("linux.namespaces", json!([{ "type": "strange" }])),
        ("linux.rootfsPropagation", json!("strange")),
        ("linux.resources.memory.swap", json!(1)),
        ("hooks.poststop", json!([{ "path": "relative" }])),
        ("mounts", json!([{ "destination": "/a", "type": "bind", "source": "/", "options": ["size=1"] }])),
        ("linux.memoryPolicy.nodes", json!("1024")),
        ("linux.netDevices", json!({ "eth0": { "name": "a/b" } })),
        ("process.execCPUAffinity.final", json!("2-1")),
        ("annotations", json!({ "org.byre.landlock": "[{\"path\": \"/\", \"access\": \"all\"}]" })),
        ("linux.seccomp.defaultAction", json!("SCMP_ACT_NOTIFY")),
    ] {
        let mut config = everything();
        change(&mut config, path, Some(value));
        assert!(read(&config).is_err(), "{path}");
    }
}

#[test]
fn options_of_mounts_are_sorted_out() {
    let mount = |kind: &str, options: &[&str]| {
        let config = config::Mount {
            destination: "/x".to_owned(),
            source: "src".to_owned(),
            r#type: kind.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..config::Mount::default()
        };
        mounts::mount(0, config, "/bundle").unwrap()
    };
    let bound = mount("none", &["rbind", "rslave", "nosuid", "rro", "noatime", "rw"]);
    assert_eq!(bound.source, byre_plan::MountSource::Bind { path: "/bundle/src".to_owned(), recursive: true });
    assert!(bound.options.no_suid && !bound.options.read_only);
    assert_eq!((bound.options.below, bound.options.further), (1, 0x10));
    let made = mount("tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]);
    let byre_plan::MountSource::FileSystem { settings, .. } = made.source else { panic!("{made:?}") };
    assert_eq!(settings, ["mode=755", "size=65536k"]);
    assert_eq!(mount("cgroup", &["ro", "relatime"]).source, byre_plan::MountSource::Cgroup);
}

#[test]
fn denying_everything_first_is_the_default() {
    let rule = |value: Value| serde_json::from_value::<config::DeviceAccess>(value).unwrap();
    let all = json!({ "allow": false, "access": "rwm" });
    assert!(resources::device_rules(&[rule(all.clone())], &[]).unwrap().is_empty());
    let fuse = json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" });
    let rules = resources::device_rules(&[rule(all.clone()), rule(fuse.clone()), rule(all)], &[]).unwrap();
    assert_eq!(rules.iter().map(|rule| rule.deny).collect::<Vec<_>>(), [false, true, true]);
}

#[test]
fn what_comes_out_can_be_checked() {
    let mut config = everything();
    // Ids of its own are for a bind mount.
    for maps in ["uidMappings", "gidMappings"] {
        config["mounts"][0][maps] = json!([]);
    }
    config["process"]["terminal"] = json!(false);
    config["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "pid" }, { "type": "uts" },
        { "type": "network" }, { "type": "time" }]);
    config["linux"]["uidMappings"] = json!([]);
    config["linux"]["gidMappings"] = json!([]);
    let bundle = read(&config).unwrap();
    Plan::check(bundle.request, &Policy::default(), Origin::VerifiedRoot).unwrap();
}

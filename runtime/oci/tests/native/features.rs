//! What `features` says is held against what the program does.

use serde_json::{Value, json};

use super::bench::Bench;

fn features(bench: &Bench) -> Value {
    serde_json::from_str(&bench.call(["features"]).ok()).unwrap()
}

fn list(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

/// Whether a container of the changed configuration can be created.
fn created(bench: &Bench, change: impl FnOnce(&mut Value)) -> Result<(), String> {
    bench.script("true", change);
    let answer = bench.create(&[]);
    let _ = bench.call(["delete", "--force", bench.id()]);
    if answer.code == 0 { Ok(()) } else { Err(answer.err) }
}

#[test]
#[ignore = "needs root"]
fn every_mount_option_that_is_told_works_and_others_are_refused() {
    let bench = Bench::new("feature-mounts");
    let features = features(&bench);
    let with = |options: Value, kind: &str| {
        created(&bench, |config| {
            let mount = json!({ "destination": "/x", "source": "/usr", "type": kind, "options": options });
            config["mounts"].as_array_mut().unwrap().push(mount);
        })
    };
    // All at once, but for what needs a kind of its own: a start for each would take minutes.
    let mut options = list(&features["mountOptions"]);
    assert!(options.len() > 25, "{options:?}");
    options.retain(|option| !matches!(*option, "tmpcopyup" | "idmap" | "ridmap"));
    with(json!(options), "none").unwrap();
    with(json!(["tmpcopyup"]), "tmpfs").unwrap();
    for other in ["rrw", "remount"] {
        assert!(!options.contains(&other));
        let said = with(json!(["rbind", other]), "none").unwrap_err();
        assert!(said.contains(other), "{said}");
    }
}

#[test]
#[ignore = "needs root"]
fn namespaces_seccomp_hooks_and_what_is_off_are_as_told() {
    let bench = Bench::new("features");
    let features = features(&bench);
    let linux = &features["linux"];
    let all: Vec<Value> = list(&linux["namespaces"])
        .into_iter()
        .filter(|kind| *kind != "user")
        .map(|kind| json!({ "type": kind }))
        .collect();
    assert_eq!(all.len(), 7);
    created(&bench, |config| config["linux"]["namespaces"] = json!(all)).unwrap();
    assert!(created(&bench, |config| config["linux"]["namespaces"] = json!([{ "type": "other" }])).is_err());
    let seccomp = &linux["seccomp"];
    let rules: Vec<Value> = list(&seccomp["actions"])
        .iter()
        .zip(list(&seccomp["operators"]).iter().cycle())
        .map(|(action, op)| json!({ "names": ["acct"], "action": action, "args": [{ "index": 0, "value": 1, "op": op }] }))
        .collect();
    let filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "flags": seccomp["supportedFlags"], "syscalls": rules, "listenerPath": "/agent",
    });
    created(&bench, |config| config["linux"]["seccomp"] = filter).unwrap();
    let notify = json!({ "defaultAction": "SCMP_ACT_NOTIFY" });
    assert!(created(&bench, |config| config["linux"]["seccomp"] = notify).unwrap_err().contains("SCMP_ACT_NOTIFY"));
    let hooks = list(&features["hooks"]);
    created(&bench, |config| {
        for kind in &hooks {
            config["hooks"][kind] = json!([{ "path": "/bin/true" }]);
        }
    })
    .unwrap();
    type Change = fn(&mut Value);
    let off: [(&str, Change); 1] = [("intelRdt", |config| config["linux"]["intelRdt"] = json!({ "closID": "x" }))];
    for (name, change) in off {
        assert_ne!(linux[name]["enabled"], json!(true));
        assert!(created(&bench, change).unwrap_err().contains(name));
    }
    for mode in list(&linux["memoryPolicy"]["modes"]) {
        let said =
            created(&bench, |config| config["linux"]["memoryPolicy"] = json!({ "mode": mode, "nodes": "strange" }));
        assert!(said.unwrap_err().contains("linux.memoryPolicy.nodes"), "{mode} is known");
    }
}

#[test]
#[ignore = "needs root"]
fn the_versions_told_are_the_ones_read() {
    let bench = Bench::new("versions");
    let features = features(&bench);
    for key in ["ociVersionMin", "ociVersionMax"] {
        created(&bench, |config| config["ociVersion"] = features[key].clone()).unwrap();
    }
    assert!(created(&bench, |config| config["ociVersion"] = json!("1.4.0")).unwrap_err().contains("ociVersion"));
}

#[test]
#[ignore = "needs root"]
fn capabilities_told_are_known() {
    let bench = Bench::new("capabilities");
    let all = features(&bench)["linux"]["capabilities"].clone();
    bench.script("grep CapBnd /proc/self/status", |config| {
        config["process"]["capabilities"] = json!({ "bounding": all })
    });
    let answer = bench.run();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find(|line| line.starts_with("CapBnd")).unwrap();
    assert_eq!(answer.out.trim(), own, "{answer:?}");
}

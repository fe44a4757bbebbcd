//! Hooks: when each runs, where, with what, and what its failure means (runtime-spec 1.3, lifecycle).

use serde_json::{Value, json};

use super::bench::Bench;

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that appends its kind, the state's status and its mount namespace to a file that both sides see.
fn telling(bench: &Bench, kind: &str) -> Value {
    let log = bench.path("hooks");
    let script = format!(
        "state=$(cat); status=$(echo \"$state\" | grep -o '\"status\": \"[a-z]*\"' | cut -d'\"' -f4); \
         pid=$(echo \"$state\" | grep -o '\"pid\": [0-9]*' | cut -d' ' -f2); \
         echo {kind} $status $(readlink /proc/self/ns/mnt) ${{pid:-none}} >> {}",
        log.display()
    );
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }])
}

#[test]
#[ignore = "needs root"]
fn every_hook_runs_at_its_moment_and_place() {
    let bench = Bench::new("hooks");
    let log = bench.path("hooks");
    std::fs::write(&log, "").unwrap();
    bench.script("readlink /proc/self/ns/mnt; sleep 100", |config| {
        for kind in KINDS {
            config["hooks"][kind] = telling(&bench, kind);
        }
        // So that the hook inside can write to the same file.
        let mount = json!({ "destination": &log, "source": &log, "type": "bind", "options": ["rbind"] });
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    let lines = || -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    };
    let names = |lines: &[Vec<String>]| lines.iter().map(|line| line[..2].join(" ")).collect::<Vec<_>>();
    bench.create(&[]).ok();
    let created = lines();
    assert_eq!(names(&created), ["prestart created", "createRuntime creating", "createContainer creating"]);
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap().to_str().unwrap().to_owned();
    assert_eq!((&created[0][2], &created[1][2]), (&own, &own));
    assert_ne!(created[2][2], own);
    let pid = bench.state()["pid"].to_string();
    assert!(created.iter().all(|line| line[3] == pid), "{created:?}");
    bench.call(["start", bench.id()]).ok();
    bench.await_output("mnt");
    let started = lines();
    assert_eq!(names(&started[3..]), ["startContainer created", "poststart running"]);
    assert_eq!(started[3][2], created[2][2]);
    assert_eq!(started[3][2], bench.output().trim());
    bench.call(["delete", "--force", bench.id()]).ok();
    let ended = lines();
    assert_eq!(names(&ended[5..]), ["poststop stopped"]);
    assert_eq!(ended[5][3], "none");
}

#[test]
#[ignore = "needs root"]
fn a_failed_hook_ends_the_container_and_the_last_hooks_still_run() {
    for kind in &KINDS[..5] {
        let bench = Bench::new("failing-hooks");
        bench.script("sleep 100", |config| {
            config["hooks"][kind] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo sorry >&2; exit 3"] }]);
            config["hooks"]["poststop"] = telling(&bench, "poststop");
        });
        let created = bench.create(&[]);
        let said = match *kind {
            "startContainer" | "poststart" => {
                created.ok();
                bench.call(["start", bench.id()]).failed()
            }
            _ => created.failed(),
        };
        assert!(said.contains(&format!("{kind} hook #0: /bin/sh")) && said.contains("sorry"), "{kind}: {said}");
        assert!(bench.is_gone(), "{kind}");
        let log = std::fs::read_to_string(bench.path("hooks")).unwrap_or_default();
        assert!(log.starts_with("poststop stopped"), "{kind}: {log:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_failed_poststop_hook_is_told_and_changes_nothing() {
    let bench = Bench::new("poststop");
    bench.script("true", |config| {
        let mut hooks = telling(&bench, "second");
        hooks.as_array_mut().unwrap().insert(0, json!({ "path": "/bin/false" }));
        config["hooks"]["poststop"] = hooks;
    });
    let answer = bench.run();
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.err.contains("poststop hook /bin/false"), "{answer:?}");
    assert!(std::fs::read_to_string(bench.path("hooks")).unwrap().starts_with("second stopped"));
    assert!(bench.is_gone());
}

#[test]
#[ignore = "needs root"]
fn a_hook_that_takes_too_long_has_failed() {
    let bench = Bench::new("slow-hook");
    bench.script("true", |config| {
        config["hooks"]["createRuntime"] = json!([{ "path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1 }]);
    });
    let said = bench.create(&[]).failed();
    assert!(said.contains("did not end within 1 s"), "{said}");
    assert!(bench.is_gone());
}

#[test]
#[ignore = "needs root"]
fn a_state_that_no_pipe_holds_is_refused_before_anything_is_made() {
    let bench = Bench::new("longstate");
    bench.script("sleep 100", |config| {
        config["annotations"] = json!({ "long": "x".repeat(61 * 1024) });
    });
    let refused = bench.create(&[]).failed();
    assert!(refused.contains("annotations make the state") && refused.contains("shorten them"), "{refused}");
    assert!(bench.is_gone());
    // What is just short enough is told to a hook that does not read it.
    bench.script("sleep 100", |config| {
        config["annotations"] = json!({ "long": "x".repeat(59 * 1024) });
        config["hooks"]["createRuntime"] = json!([{ "path": "/bin/true", "timeout": 60 }]);
    });
    bench.create(&[]).ok();
    bench.call(["delete", bench.id()]).ok();
    assert!(bench.is_gone());
}

#[test]
#[ignore = "needs root"]
fn a_creation_that_is_killed_leaves_what_delete_finds() {
    let bench = Bench::new("cut");
    let mark = bench.path("mark");
    bench.script("sleep 100", |config| {
        let script = format!("echo > {}; exec sleep 5", mark.display());
        config["hooks"]["createRuntime"] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    });
    let mut create = bench.command(["create", "-b"]).arg(bench.bundle()).arg(bench.id()).spawn().unwrap();
    bench.wait("the hook", || mark.exists());
    create.kill().unwrap();
    create.wait().unwrap();
    bench.call(["delete", "--force", bench.id()]).ok();
    assert!(bench.is_gone());
}

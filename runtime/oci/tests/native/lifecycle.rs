//! From create to delete, and what each command says on the way.

use serde_json::{Value, json};

use super::bench::{Bench, read_terminal, receive};

#[test]
#[ignore = "needs root"]
fn a_container_is_created_started_killed_and_deleted() {
    let bench = Bench::new("lifecycle");
    bench.script("trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done", |config| {
        config["annotations"] = json!({ "who": "me" });
    });
    let pid_file = bench.path("pid");
    bench.create(&["--pid-file", pid_file.to_str().unwrap()]).ok();
    assert_eq!(bench.output(), "");
    let state = bench.state();
    let pid = state["pid"].as_u64().unwrap();
    let bundle = bench.bundle().canonicalize().unwrap();
    let expected = json!({
        "ociVersion": "1.3.0", "id": "lifecycle", "status": "created", "pid": pid, "bundle": bundle,
        "annotations": { "who": "me" },
    });
    assert_eq!(state, expected, "the state is what the specification says, and nothing else");
    assert_eq!(std::fs::read_to_string(pid_file).unwrap(), pid.to_string());
    let refused = bench.create(&[]).failed();
    assert!(refused.contains("already exists"), "{refused}");
    bench.call(["start", bench.id()]).ok();
    bench.await_output("up");
    assert_eq!(bench.status(), "running");
    assert!(bench.call(["start", bench.id()]).failed().contains("running"));
    assert!(bench.call(["delete", bench.id()]).failed().contains("not stopped"));
    assert_eq!(bench.status(), "running");
    bench.call(["kill", bench.id()]).ok();
    bench.await_status("stopped");
    assert_eq!(bench.state().get("pid"), None);
    assert!(bench.call(["kill", bench.id(), "KILL"]).failed().contains("not running"));
    bench.call(["delete", bench.id()]).ok();
    assert!(bench.is_gone());
    assert!(bench.call(["state", bench.id()]).failed().contains("does not exist"));
    assert!(bench.call(["delete", bench.id()]).failed().contains("does not exist"));
    bench.call(["delete", "--force", bench.id()]).ok();
}

#[test]
#[ignore = "needs root"]
fn a_created_container_can_be_deleted_and_a_running_one_by_force() {
    let bench = Bench::new("deleted");
    bench.script("sleep 100", |_| {});
    bench.create(&[]).ok();
    bench.call(["delete", bench.id()]).ok();
    assert!(bench.is_gone());
    bench.create(&[]).ok();
    bench.call(["start", bench.id()]).ok();
    bench.call(["delete", "-f", bench.id()]).ok();
    assert!(bench.is_gone());
}

#[test]
#[ignore = "needs root"]
fn run_gives_the_programs_own_code() {
    let bench = Bench::new("codes");
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$; sleep 9", 137), ("echo out; echo err >&2", 0)] {
        // The first process of a PID namespace does not die by its own signal: a child's end becomes its code.
        bench.script(&format!("sh -c '{script}'; exit $?"), |_| {});
        let answer = bench.run();
        assert_eq!(answer.code, code, "{script}: {answer:?}");
        assert!(bench.is_gone());
    }
    bench.script("exit 3", |_| {});
    let kept = bench.command(["run", "--keep", "-b"]).arg(bench.bundle()).arg(bench.id()).output().unwrap();
    assert_eq!(kept.status.code(), Some(3));
    assert_eq!(bench.status(), "stopped");
}

#[test]
#[ignore = "needs root"]
fn run_detached_leaves_it_running() {
    let bench = Bench::new("detached");
    bench.script("sleep 100", |_| {});
    let mut command = bench.command(["run", "--detach", "-b"]);
    command.arg(bench.bundle()).arg(bench.id()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(command.status().unwrap().success());
    assert_eq!(bench.status(), "running");
}

#[test]
#[ignore = "needs root"]
fn a_program_that_is_missing_fails_the_start_and_leaves_nothing() {
    let bench = Bench::new("missing");
    bench.configure(|config| config["process"]["args"] = json!(["/no/such/program"]));
    bench.create(&[]).ok();
    let refused = bench.call(["start", bench.id()]).failed();
    assert!(refused.contains("/no/such/program") && refused.contains("no such file"), "{refused}");
    assert!(bench.is_gone());
    assert!(bench.run().failed().contains("/no/such/program"));
    assert!(bench.is_gone());
}

#[test]
#[ignore = "needs root"]
fn containers_are_listed() {
    let bench = Bench::new("listed");
    assert_eq!(bench.call(["list", "--format", "json"]).ok(), "[]\n");
    bench.script("sleep 100", |_| {});
    bench.create(&[]).ok();
    let all: Value = serde_json::from_str(&bench.call(["list", "-f", "json"]).ok()).unwrap();
    assert_eq!(
        (&all[0]["id"], &all[0]["status"], &all[0]["owner"]),
        (&json!("listed"), &json!("created"), &json!("root"))
    );
    assert_eq!(all[0]["pid"], bench.state()["pid"]);
    assert_eq!(bench.call(["list", "-q"]).ok(), "listed\n");
    let table = bench.call(["list"]).ok();
    let title: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(title, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
}

#[test]
#[ignore = "needs root"]
fn names_never_leave_their_directory() {
    let bench = Bench::new("names");
    for bad in ["", ".", "..", "a/b", "../x", "a b", &"x".repeat(256)] {
        let answer = bench.command(["create", "-b"]).arg(bench.bundle()).arg(bad).output().unwrap();
        assert!(!answer.status.success(), "{bad:?}");
        assert!(bench.call(["delete", "--force", bad]).code != 0, "{bad:?}");
    }
    assert_eq!(bench.call(["list", "-q"]).ok(), "");
}

#[test]
#[ignore = "needs root"]
fn signals_reach_all_processes_and_a_pause_holds_them() {
    let bench = Bench::new("signals");
    bench.script(
        "sh -c 'trap \"echo child; exit\" USR1; echo up; while :; do sleep 0.05; done' & wait; sleep 100",
        |_| {},
    );
    bench.create(&[]).ok();
    bench.call(["start", bench.id()]).ok();
    bench.await_output("up");
    let pids: Vec<u64> = serde_json::from_str(&bench.call(["ps", "--format", "json", bench.id()]).ok()).unwrap();
    assert!(pids.len() >= 2 && pids.contains(&bench.state()["pid"].as_u64().unwrap()), "{pids:?}");
    assert!(bench.call(["ps", bench.id()]).ok().lines().count() > 2);
    bench.call(["pause", bench.id()]).ok();
    assert_eq!(bench.status(), "paused");
    assert!(bench.call(["pause", bench.id()]).failed().contains("paused"));
    assert!(bench.call(["exec", bench.id(), "true"]).failed().contains("paused"));
    bench.call(["resume", bench.id()]).ok();
    assert_eq!(bench.status(), "running");
    bench.call(["kill", "--all", bench.id(), "USR1"]).ok();
    bench.await_output("child");
    let stats: Value = serde_json::from_str(&bench.call(["events", "--stats", bench.id()]).ok()).unwrap();
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!("signals")));
    assert!(stats["data"]["pids"]["current"].as_u64().unwrap() >= 1, "{stats}");
    bench.call(["kill", "--all", bench.id(), "KILL"]).ok();
    bench.await_status("stopped");
}

#[test]
#[ignore = "needs root"]
fn a_terminal_goes_to_the_console_socket() {
    let bench = Bench::new("console");
    bench.script("tty; stty size; test -c /dev/console && echo console", |config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({ "height": 33, "width": 101 });
    });
    assert!(bench.create(&[]).failed().contains("--console-socket"));
    assert!(bench.is_gone());
    let (console, path) = bench.socket("console.sock");
    let (pidfds, pidfd_path) = bench.socket("pidfd.sock");
    bench.create(&["--console-socket", &path, "--pidfd-socket", &pidfd_path]).ok();
    let (master, name) = receive(&console);
    assert_eq!(name, "/dev/ptmx");
    let (pidfd, _) = receive(&pidfds);
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::CONT).unwrap();
    bench.call(["start", bench.id()]).ok();
    assert_eq!(read_terminal(&master), "/dev/pts/0\n33 101\nconsole\n");
    bench.script("true", |_| {});
    let other =
        bench.command(["create", "--console-socket", &path, "-b"]).arg(bench.bundle()).arg("console-2").output();
    assert!(String::from_utf8_lossy(&other.unwrap().stderr).contains("process.terminal is not set"));
}

#[test]
#[ignore = "needs root"]
fn descriptors_are_kept_only_when_asked_for() {
    let bench = Bench::new("preserve");
    bench.script("ls /proc/self/fd | wc -l; cat <&3 2>/dev/null; true", |_| {});
    let run = |options: &str| {
        let own = env!("CARGO_BIN_EXE_byre-oci");
        let (state, bundle) = (bench.path("state"), bench.bundle());
        let line = format!(
            "echo kept > {0}/f; exec 3< {0}/f; exec {own} --root {1} run {options} -b {0} preserve",
            bundle.display(),
            state.display()
        );
        std::process::Command::new("sh").arg("-c").arg(line).output().unwrap()
    };
    let kept = run("--preserve-fds 1");
    // 0, 1, 2, 3 and the one that ls itself opens.
    assert_eq!(String::from_utf8_lossy(&kept.stdout), "5\nkept\n", "{kept:?}");
    let closed = run("");
    assert_eq!(String::from_utf8_lossy(&closed.stdout), "4\n", "{closed:?}");
    // The runtime's own descriptors do not stand in for those that the caller did not open.
    let missing = run("--preserve-fds 3");
    assert_eq!(String::from_utf8_lossy(&missing.stdout), "5\nkept\n", "{missing:?}");
    assert!(bench.is_gone());
}

#[test]
#[ignore = "needs root"]
fn errors_are_in_the_log_in_its_form() {
    let bench = Bench::new("logged");
    bench.configure(|config| config["process"]["selinuxLabel"] = json!("strict"));
    let log = bench.path("log");
    let answer = bench
        .command(["--log-format", "json", "--log"])
        .arg(&log)
        .args(["create", "-b"])
        .arg(bench.bundle())
        .arg(bench.id())
        .output()
        .unwrap();
    assert_eq!(answer.status.code(), Some(1));
    let line: Value = serde_json::from_str(std::fs::read_to_string(&log).unwrap().lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], json!("error"));
    assert!(
        line["msg"].as_str().unwrap().starts_with("process.selinuxLabel, linux.mountLabel: SELinux is not enabled"),
        "{line}"
    );
    assert!(line["time"].as_str().unwrap().contains('T'));
    assert!(bench.is_gone());
}

#[test]
#[ignore = "needs root"]
fn it_runs_from_a_sealed_copy_of_itself() {
    let bench = Bench::new("sealed");
    bench.script("true", |_| {});
    bench.create(&[]).ok();
    let exe = std::fs::read_link(format!("/proc/{}/exe", bench.state()["pid"])).unwrap();
    assert!(exe.to_str().unwrap().starts_with("/memfd:byre-oci"), "{}", exe.display());
    // The program itself, as an entry point that is a link to the runtime would find it, cannot be written.
    let path = format!("/proc/{}/exe", bench.state()["pid"]);
    assert!(std::fs::OpenOptions::new().write(true).open(path).is_err());
}

#[test]
#[ignore = "needs root"]
fn what_is_not_supported_is_refused_by_name() {
    let bench = Bench::new("commands");
    bench.script("true", |_| {});
    assert!(bench.call(["checkpoint", bench.id()]).failed().contains("CRIU is not installed") || has_criu());
    assert!(bench.call(["restore", "--image-path", "/x", bench.id()]).failed().contains("not supported"));
    assert!(bench.create(&["--no-pivot"]).failed().contains("--no-pivot"));
    assert!(bench.call(["--rootless=true", "create", bench.id()]).failed().contains("root only"));
    assert!(bench.is_gone());
}

fn has_criu() -> bool {
    std::env::var("PATH").unwrap().split(':').any(|directory| std::path::Path::new(directory).join("criu").exists())
}

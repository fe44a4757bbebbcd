//! Further processes in a running container.

use serde_json::json;

use super::bench::{Bench, read_terminal, receive};

fn running(name: &'static str) -> Bench {
    let bench = Bench::new(name);
    bench.script("echo up; sleep 1000", |_| {});
    bench.create(&[]).ok();
    bench.call(["start", bench.id()]).ok();
    bench.await_output("up");
    bench
}

#[test]
#[ignore = "needs root"]
fn a_process_inside_has_the_containers_view_and_its_own_code() {
    let bench = running("exec");
    let script = "hostname; pwd; id -u; id -g; echo $A; cat /proc/1/comm; exit 4";
    let answer = bench.call(["exec", "--user", "7:8", "--cwd", "/bin", "-e", "A=b", "exec", "sh", "-c", script]);
    assert_eq!((answer.code, answer.out.as_str()), (4, "byre\n/bin\n7\n8\nb\nsleep\n"), "{answer:?}");
    assert_eq!(bench.call(["exec", "exec", "sh", "-c", "kill -9 $$"]).code, 137);
    let missing = bench.call(["exec", "exec", "/no/such/program"]).failed();
    assert!(missing.contains("/no/such/program"), "{missing}");
    assert!(bench.call(["exec", "exec"]).failed().contains("nothing to run"));
}

#[test]
#[ignore = "needs root"]
fn capabilities_are_added_and_never_inherited() {
    let bench = running("exec-caps");
    let sets = |arguments: &[&str]| {
        let script = ["exec-caps", "grep", "-E", "^Cap(Inh|Eff)", "/proc/self/status"];
        bench.call(["exec"].iter().chain(arguments).chain(&script)).ok()
    };
    assert_eq!(sets(&[]), "CapInh:\t0000000000000000\nCapEff:\t0000000020000420\n");
    assert_eq!(sets(&["--cap", "CAP_NET_ADMIN"]), "CapInh:\t0000000000000000\nCapEff:\t0000000020001420\n");
}

#[test]
#[ignore = "needs root"]
fn users_that_are_no_ids_are_refused() {
    let bench = running("exec-users");
    for bad in [":5", "-1", "4294967295", "4294967296", "1:", "99999999999999999999"] {
        assert_ne!(bench.call(["exec", &format!("--user={bad}"), "exec-users", "id"]).code, 0, "{bad}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_process_file_is_read_as_the_bundles_is() {
    let bench = running("exec-file");
    let file = bench.path("process.json");
    let mut process = json!({
        "args": ["sh", "-c", "id -u; umask; cat /proc/self/oom_score_adj"], "cwd": "/", "env": ["PATH=/bin"],
        "user": { "uid": 5, "gid": 6, "umask": 0o027 }, "oomScoreAdj": 300,
    });
    std::fs::write(&file, process.to_string()).unwrap();
    let exec = || bench.call(["exec", "--process", file.to_str().unwrap(), "exec-file"]);
    assert_eq!(exec().ok(), "5\n0027\n300\n");
    process["commandLine"] = json!("x");
    std::fs::write(&file, process.to_string()).unwrap();
    assert!(exec().failed().contains("process.commandLine"));
}

#[test]
#[ignore = "needs root"]
fn a_detached_process_has_a_pid_file_and_a_console() {
    let bench = running("exec-tty");
    let (console, path) = bench.socket("console.sock");
    let pid_file = bench.path("pid");
    let pid = pid_file.to_str().unwrap();
    let arguments = [
        "exec",
        "--detach",
        "--tty",
        "--console-socket",
        &path,
        "--pid-file",
        pid,
        "exec-tty",
        "sh",
        "-c",
        "read x; tty; echo $x",
    ];
    let mut started = bench.command(arguments).spawn().unwrap();
    let (master, _) = receive(&console);
    assert!(started.wait().unwrap().success());
    let number: u32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert!(std::path::Path::new(&format!("/proc/{number}")).exists());
    rustix::io::write(&master, b"typed\n").unwrap();
    assert_eq!(read_terminal(&master), "typed\n/dev/pts/0\ntyped\n");
    assert!(bench.call(["exec", "--detach", "--tty", "exec-tty", "true"]).failed().contains("--console-socket"));
}

#[test]
#[ignore = "needs root"]
fn a_cgroup_below_the_containers_is_entered_and_none_above() {
    let bench = running("exec-cgroup");
    let leaf = bench.cgroup().unwrap().join("leaf");
    std::fs::create_dir(leaf.join("inner")).unwrap();
    let inside = bench.call(["exec", "--cgroup", "inner", "exec-cgroup", "grep", "^0:", "/proc/self/cgroup"]).ok();
    assert!(inside.trim_end().ends_with("/inner"), "{inside}");
    assert!(
        bench.call(["exec", "--cgroup", "../..", "exec-cgroup", "true"]).failed().contains("is not a sub cgroup path")
    );
}

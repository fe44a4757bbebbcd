//! `byred init` as a process: exit codes, signals, orphans.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

fn init(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byred"));
    command.arg("init").args(arguments).stdin(Stdio::null());
    command
}

#[test]
fn it_ends_as_its_program_ends() {
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("(sleep 0.1 &) ; exit 7", 7)] {
        assert_eq!(init(&["--", "sh", "-c", script]).status().unwrap().code(), Some(code), "{script}");
    }
    assert_eq!(init(&["--", "/does/not/exist"]).stderr(Stdio::null()).status().unwrap().code(), Some(127));
    assert_eq!(init(&["--", "/etc/passwd"]).stderr(Stdio::null()).status().unwrap().code(), Some(126));
    assert_eq!(init(&["sh"]).stderr(Stdio::null()).status().unwrap().code(), Some(1));
}

#[test]
fn signals_are_handed_on() {
    let mut child = init(&["--", "sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

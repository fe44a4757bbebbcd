//! The real binary against a peer that speaks the protocol: exit codes, streams, signals, terminals, copies.

mod peer;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};

use peer::{Peer, names, tar_of, until};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn line(child: &mut Child) -> String {
    let mut line = Vec::new();
    let stdout = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn run_keeps_the_streams_apart_and_ends_with_the_containers_code() {
    let done = Peer::start().byrectl(&["run", "code"]).output().unwrap();
    assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(done.status.code(), Some(42));
}

#[test]
fn what_could_not_be_started_is_125_and_leaves_nothing() {
    let peer = Peer::start();
    let missing = peer.byrectl(&["run", "missing"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(125));
    assert_eq!(missing.stderr, b"byrectl: no image missing: load it with `byrectl image load`\n");
    assert!(peer.seen().removed.is_empty());
    let refused = peer.byrectl(&["run", "unstartable"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(125));
    assert_eq!(peer.seen().removed, ["id-unstartable"]);
    let gone = peer.byrectl(&["exec", "gone", "true"]).output().unwrap();
    assert_eq!(gone.status.code(), Some(125));
}

#[test]
fn input_of_megabytes_comes_back_whole() {
    let peer = Peer::start();
    let input: Vec<u8> = (0..4 << 20).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(peer.path("input"), &input).unwrap();
    let done = peer.byrectl(&["run", "-i", "echo"]).stdin(File::open(peer.path("input")).unwrap()).output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    assert!(done.stdout == input, "{} bytes came back", done.stdout.len());
}

#[test]
fn output_that_nobody_reads_is_not_collected() {
    let peer = Peer::start();
    let mut child = peer.byrectl(&["run", "flood"]).stdout(Stdio::piped()).spawn().unwrap();
    until("the pipes are full", || {
        let before = peer.seen().sent;
        std::thread::sleep(std::time::Duration::from_millis(300));
        before > 0 && peer.seen().sent == before
    });
    // The queues, HTTP/2's window, and the pipe: far below what would come unhindered.
    assert!(peer.seen().sent < 4 << 20, "{} bytes were taken", peer.seen().sent);
    // Its reader goes away: as if SIGPIPE had ended it.
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn signals_reach_the_container_and_the_third_lets_go() {
    let peer = Peer::start();
    let mut child = peer.byrectl(&["run", "wait"]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(line(&mut child), "up");
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(peer.seen().kills, ["TERM"]);

    let mut child = peer.byrectl(&["run", "deaf"]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(line(&mut child), "up");
    for count in 2..=3 {
        signal(&child, Signal::INT);
        until("the signal arrives", || peer.seen().kills.len() == count);
    }
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn exec_without_a_terminal_passes_signals_on() {
    let peer = Peer::start();
    let mut child = peer.byrectl(&["exec", "web", "sleep"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut prompt = [0; 2];
    child.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(peer.seen().signals, ["INT"]);
}

#[test]
fn a_session_that_breaks_off_is_a_failure_with_a_remedy() {
    let done = Peer::start().byrectl(&["run", "cut"]).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(said.starts_with("byrectl: ") && said.contains("byrectl attach"), "{said}");
}

/// A pseudo terminal, and a program on it.
struct Screen {
    master: File,
    slave: File,
    child: Child,
}

impl Screen {
    fn open(peer: &Peer, arguments: &[&str]) -> Self {
        Self::run(peer.byrectl(arguments))
    }

    fn run(mut command: std::process::Command) -> Self {
        let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = File::options().read(true).write(true).open(name).unwrap();
        tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { master: master.into(), slave, child }
    }

    fn raw(&self) -> bool {
        !tcgetattr(&self.slave)
            .unwrap()
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn cooked(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn read(&mut self) -> String {
        let mut bytes = [0; 4096];
        let read = self.master.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }
}

#[test]
fn a_terminal_is_raw_sized_resized_and_restored() {
    let peer = Peer::start();
    let mut screen = Screen::open(&peer, &["exec", "-it", "web", "sh"]);
    assert!(screen.cooked());
    until("raw mode", || screen.raw());
    assert_eq!(screen.read(), "$ ");
    until("the first size", || peer.seen().sizes.contains(&(24, 80)));
    screen.master.write_all(b"a\x03\x10\x11").unwrap();
    until("Ctrl-C and all other keys are typed", || peer.seen().typed == b"a\x03\x10\x11");
    tcsetwinsize(&screen.slave, Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    signal(&screen.child, Signal::WINCH);
    until("the new size", || peer.seen().sizes.last() == Some(&(50, 132)));
    screen.master.write_all(b"q").unwrap();
    assert_eq!(screen.child.wait().unwrap().code(), Some(7));
    assert!(screen.cooked(), "the terminal is as it was");
}

#[test]
fn a_signal_restores_the_terminal_as_well() {
    for (sent, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131)] {
        let peer = Peer::start();
        let mut screen = Screen::open(&peer, &["exec", "-it", "web", "sh"]);
        until("raw mode", || screen.raw());
        signal(&screen.child, sent);
        assert_eq!(screen.child.wait().unwrap().code(), Some(code));
        assert!(screen.cooked(), "after {sent:?}");
    }
}

#[test]
fn colours_are_for_terminals_and_never_with_no_color() {
    let peer = Peer::start();
    let told = |no_color: &str| {
        let mut command = peer.byrectl(&["services", "ls"]);
        command.env("NO_COLOR", no_color);
        let mut screen = Screen::run(command);
        assert_eq!(screen.child.wait().unwrap().code(), Some(0));
        screen.read()
    };
    assert!(told("").contains("\u{1b}[31mnot ready: web"));
    assert!(!told("1").contains('\u{1b}'));
    let piped = peer.byrectl(&["services", "ls"]).output().unwrap().stdout;
    assert!(!piped.contains(&0x1b));
}

#[test]
fn the_detach_keys_leave_the_container_running() {
    let peer = Peer::start();
    for arguments in [&["attach", "id-shell"][..], &["run", "-it", "shell"][..]] {
        let mut screen = Screen::open(&peer, arguments);
        until("raw mode", || screen.raw());
        screen.master.write_all(b"x\x10\x11").unwrap();
        assert_eq!(screen.child.wait().unwrap().code(), Some(0));
        assert!(screen.cooked());
        let said = screen.read();
        assert!(said.contains("byrectl attach") || screen.read().contains("byrectl attach"), "{said}");
    }
    assert_eq!(peer.seen().typed, b"xx");
    assert!(peer.seen().kills.is_empty() && peer.seen().removed.is_empty());
}

#[test]
fn a_terminal_is_not_made_out_of_a_pipe() {
    let done = Peer::start().byrectl(&["exec", "-it", "web", "sh"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(done.status.code(), Some(2));
}

#[test]
fn lists_are_tables_or_json_and_never_drive_the_terminal() {
    let peer = Peer::start();
    let table = String::from_utf8(peer.byrectl(&["ps"]).output().unwrap().stdout).unwrap();
    let expected = "CONTAINER ID   IMAGE   COMMAND                  CREATED   STATUS                   NAMES\n\
                    0123456789ab   nginx   \"nginx -g daemon off;\"             Up \\u{1b}[31m2 minutes   web\n";
    assert_eq!(table, expected);
    let json = peer.byrectl(&["ps", "-o", "json"]).output().unwrap().stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json[0]["name"], "web");
    assert_eq!(peer.byrectl(&["ps", "-q"]).output().unwrap().stdout, b"0123456789ab\n");
    let inspected = peer.byrectl(&["inspect", "web"]).output().unwrap().stdout;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&inspected).unwrap()[0]["spec"]["open_stdin"], true);
}

#[test]
fn why_tells_the_state_the_reason_and_the_runs() {
    let peer = Peer::start();
    let told = String::from_utf8(peer.byrectl(&["why", "web"]).output().unwrap().stdout).unwrap();
    let expected = "web: Up \\u{1b}[31m2 minutes\n  why: web: it waits for db\n  why: db: somebody stopped it\n  \
                    run: 1970-01-01T00:00:00Z, 1 minute, exit code 137, out of memory\n";
    assert_eq!(told, expected);
}

#[test]
fn what_is_done_is_echoed_as_asked() {
    let peer = Peer::start();
    assert_eq!(peer.byrectl(&["run", "-d", "web"]).output().unwrap().stdout, b"id-web\n");
    let made = peer.byrectl(&["run", "-d", "-o", "json", "web"]).output().unwrap().stdout;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&made).unwrap()["name"], "web");
    assert_eq!(peer.byrectl(&["stop", "-t", "5s", "web"]).output().unwrap().stdout, b"web\n");
    assert_eq!(peer.byrectl(&["rm", "-f", "-o", "json", "web"]).output().unwrap().stdout, b"{\"name\":\"web\"}\n");
}

#[test]
fn one_that_fails_does_not_keep_the_others() {
    let done = Peer::start().byrectl(&["start", "a", "gone", "b"]).output().unwrap();
    assert_eq!(done.stdout, b"a\nb\n");
    assert_eq!(done.stderr, b"byrectl: no workload gone: see `byrectl ps -a`\n");
    assert_eq!(done.status.code(), Some(1));
}

#[test]
fn logs_keep_the_streams_apart_and_wait_prints_the_code() {
    let peer = Peer::start();
    let logs = peer.byrectl(&["logs", "web"]).output().unwrap();
    assert_eq!((logs.stdout.as_slice(), logs.stderr.as_slice()), (&b"one\n"[..], &b"two\n"[..]));
    let wait = peer.byrectl(&["wait", "web"]).output().unwrap();
    assert_eq!((wait.stdout.as_slice(), wait.status.code()), (&b"3\n"[..], Some(0)));
}

#[test]
fn an_endless_stream_ends_with_its_reader() {
    let peer = Peer::start();
    let mut child = peer.byrectl(&["events", "-o", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line(&mut child)).unwrap()["action"], "up");
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn a_call_the_node_does_not_know_says_so() {
    let done = Peer::start().byrectl(&["stats", "--no-stream"]).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8(done.stderr).unwrap().contains("update the node"));
}

#[test]
fn no_node_is_a_failure_that_names_it() {
    let peer = Peer::start();
    let mut command = peer.byrectl(&["ps"]);
    command.args(["--host", "unix:///nonexistent/api.sock"]);
    let done = command.output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(said.contains("/nonexistent/api.sock"), "{said}");
}

#[test]
fn copies_go_both_ways_and_a_hostile_one_nowhere() {
    let peer = Peer::start();
    let run = |arguments: &[&str]| peer.byrectl(arguments).output().unwrap();
    assert_eq!(run(&["cp", "web:/file", "here"]).status.code(), Some(0));
    assert_eq!(std::fs::read(peer.path("here")).unwrap(), b"data");
    assert_eq!(run(&["cp", "web:/file", "-"]).stdout, tar_of(tar::EntryType::Regular, "file", b"data"));
    let before = names(peer.directory.path());
    let hostile = run(&["cp", "web:/hostile", "."]);
    assert_eq!(hostile.status.code(), Some(1));
    assert!(String::from_utf8(hostile.stderr).unwrap().contains("leads out"));
    assert_eq!(names(peer.directory.path()), before);
    let refused = run(&["cp", "here", "web:/new/"]);
    assert_eq!(refused.stderr, b"byrectl: /new/ is not there: check the path\n");
    assert_eq!(run(&["cp", "web:/nothing", "."]).status.code(), Some(1));

    assert_eq!(run(&["cp", "here", "web:/directory"]).status.code(), Some(0));
    assert_eq!(peer.seen().copied_to, "/directory");
    let packed = std::mem::take(&mut peer.seen().copied_in);
    let mut archive = tar::Archive::new(&packed[..]);
    assert_eq!(archive.entries().unwrap().next().unwrap().unwrap().path().unwrap().to_str(), Some("here"));
    assert_eq!(run(&["cp", "here", "web:/new/name"]).status.code(), Some(0));
    assert_eq!(peer.seen().copied_to, "/new");
}

#[test]
fn a_copy_that_cannot_be_read_whole_is_never_ended() {
    let peer = Peer::start();
    std::fs::create_dir(peer.path("tree")).unwrap();
    std::fs::write(peer.path("tree/a"), "data").unwrap();
    // Deeper than a path may be packed: the failure comes after what was sent already.
    let deep: std::path::PathBuf = std::iter::once("tree").chain(std::iter::repeat_n("b", 300)).collect();
    std::fs::create_dir_all(peer.directory.path().join(deep)).unwrap();
    let done = peer.byrectl(&["cp", "tree", "web:/directory"]).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(!peer.seen().copied_whole);
}

#[test]
fn an_archive_is_sent_whole_and_a_refusal_arrives_while_it_is_sent() {
    let peer = Peer::start();
    let archive = vec![7; 3 << 20];
    std::fs::write(peer.path("archive"), &archive).unwrap();
    let done = peer.byrectl(&["image", "load", "archive", "--name", "x"]).output().unwrap();
    assert_eq!((done.stdout.as_slice(), done.status.code()), (&b"Loaded image: x\n"[..], Some(0)));
    assert!(done.stderr.is_empty(), "no progress where nobody looks");
    assert_eq!(peer.seen().loaded, 3 << 20);
    let input = File::open(peer.path("archive")).unwrap();
    let quiet = peer.byrectl(&["image", "load", "-q"]).stdin(input).output().unwrap();
    assert_eq!(quiet.stdout, b"sha256:00\n");
    let refused = peer.byrectl(&["image", "load", "-i", "archive", "--name", "corrupt"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(refused.stderr, b"byrectl: the archive is corrupt: make it again\n");
    let missing = peer.byrectl(&["image", "load", "none"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8(missing.stderr).unwrap().contains("none"));
}

#[test]
fn the_clients_version_is_known_without_the_node() {
    let peer = Peer::start();
    let done = peer.byrectl(&["version"]).output().unwrap();
    assert!(done.stdout.starts_with(b"Client "));
    assert_eq!(done.status.code(), Some(1));
}

#[test]
fn contexts_are_kept_in_the_file() {
    let peer = Peer::start();
    let run = |arguments: &[&str]| {
        let mut command = peer.byrectl(&[]);
        command.env("XDG_CONFIG_HOME", peer.path("config")).args(arguments).output().unwrap()
    };
    let server = format!("unix://{}", peer.path("api.sock").display());
    assert_eq!(run(&["context", "add", "dev", "--local", "--server", &server]).status.code(), Some(0));
    assert_eq!(run(&["context", "add", "two", "--local", "--server", "unix:///x"]).status.code(), Some(0));
    let listed = String::from_utf8(run(&["context", "ls"]).stdout).unwrap();
    assert!(listed.contains("*         dev") && listed.contains("          two"), "{listed}");
    assert_eq!(run(&["context", "use", "two"]).status.code(), Some(0));
    assert_eq!(run(&["context", "use", "three"]).status.code(), Some(1));
    assert_eq!(run(&["context", "rm", "two"]).status.code(), Some(0));
    let shown = run(&["context", "show", "dev", "-o", "json"]).stdout;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&shown).unwrap()["server"], server);
    assert_eq!(names(&peer.path("config/byre")), ["config.toml"]);
}

//! Exec, attach, copies and images over real pipes, terminals and processes. PID 1's and the services' sides of the protocol are played by
//! the test; the processes are the host's own.
#![allow(missing_docs)]

#[path = "machine/images.rs"]
mod images;
mod machine;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use byre_api::client::{Endpoint, adopt, connect};
use byre_api::proto;
use byre_api::proto::attach_response::Message as Attached;
use byre_api::proto::exec_request::Message as Asked;
use byre_api::proto::exec_response::Message as Told;
use byre_api::proto::images_client::ImagesClient;
use byre_api::proto::workloads_client::WorkloadsClient;
use byre_api::role::Role;
use byre_plan::{LaunchRequest, Name, Process, Program, WorkloadId};
use byre_protocol::control::{Call, Event, FromInit, Notice, Refused, RefusedCode, Reply, Request, Stream, What};
use byre_protocol::definition::{Definition, Kind};
use byre_protocol::frame::{self, MESSAGE_BYTES};
use byre_protocol::peer::{ImageAnswer, ImageCall, ImageRecord, LogCall, LogChunk};
use byre_protocol::status::{Because, Cause, Detail, Link, Moment, Run, State, Summary, Why};
use machine::{Machine, TOKEN, joinable, machine};
use rustix::net::{RecvFlags, SendFlags};
use serde::Serialize;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

const WEB: WorkloadId = WorkloadId(0xabcd);

fn container() -> Detail {
    let process = serde_json::json!({ "args": ["sh"], "env": ["PATH=/usr/bin:/bin"] });
    let launch: LaunchRequest =
        serde_json::from_value(serde_json::json!({ "process": process, "root": "host" })).unwrap();
    let name = Name::try_from("web").unwrap();
    let state = State::Up { since: Moment::default(), ready: true, pid: 1 };
    Detail {
        summary: Summary {
            id: WEB,
            name: name.clone(),
            kind: Kind::Container,
            built_in: false,
            state,
            wanted_up: true,
            created: Moment::default(),
            restarts: 0,
            last_run: None,
            labels: Vec::new(),
        },
        definition: serde_json::from_value::<Definition>(
            serde_json::json!({ "name": name, "kind": "container", "launch": launch, "open_stdin": true }),
        )
        .unwrap(),
        id_base: None,
        history: Vec::new(),
        cgroup: "/workloads/web".into(),
        oom_kills: 0,
        addresses: Vec::new(),
    }
}

/// PID 1's end, which runs what it is asked to with the host's programs.
#[derive(Clone)]
struct Init {
    socket: Arc<OwnedFd>,
    detail: Arc<Mutex<Detail>>,
    running: Arc<Mutex<HashMap<u64, u32>>>,
    log: Arc<Mutex<Option<UnixStream>>>,
    /// What opens as the workload's input.
    input: Arc<Mutex<Option<OwnedFd>>>,
}

impl Init {
    fn tell(&self, message: &FromInit, descriptors: &[std::os::fd::BorrowedFd<'_>]) {
        let bytes = frame::encode(message).unwrap();
        // The server may have gone with its test.
        let _ = frame::send(self.socket.as_fd(), &bytes, descriptors, SendFlags::empty());
    }

    fn serve(self) {
        let mut buffer = vec![0; MESSAGE_BYTES];
        while let Ok((length, descriptors)) = frame::receive(self.socket.as_fd(), &mut buffer, RecvFlags::empty()) {
            let Call { sequence, request } = frame::decode(&buffer[..length]).unwrap();
            let answer = |reply| self.tell(&FromInit::Answer { sequence, reply }, &[]);
            match request {
                Request::Subscribe | Request::ReleaseLayers => answer(Reply::Done),
                Request::List { .. } => answer(Reply::Page { workloads: Vec::new(), more: false }),
                Request::Inspect { .. } => answer(Reply::Inspected(Box::new(self.detail.lock().unwrap().clone()))),
                Request::Create { definition, .. } => {
                    self.detail.lock().unwrap().definition = *definition;
                    answer(Reply::Created { id: WEB });
                }
                Request::Exec { process, .. } => self.exec(sequence, &process, descriptors),
                Request::KillExec { exec, signal } => {
                    if let Some(pid) = self.running.lock().unwrap().get(&exec) {
                        let pid = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
                        let signal = rustix::process::Signal::from_named_raw(i32::from(signal)).unwrap();
                        let _ = rustix::process::kill_process(pid, signal);
                    }
                    answer(Reply::Done);
                }
                Request::Start { .. } => {
                    answer(Reply::Done);
                    let ended = Run { started: Moment::default(), ended: Moment::default(), cause: Cause::Code(4) };
                    let mut log = self.log.lock().unwrap().take().unwrap();
                    say(&mut log, &chunk(b"early"));
                    say(&mut log, &chunk(b""));
                    self.event(What::Ended(ended));
                }
                Request::OpenInput { .. } if self.input.lock().unwrap().is_some() => {
                    let input = self.input.lock().unwrap().take().unwrap();
                    let reply = Reply::Input { terminal: false };
                    self.tell(&FromInit::Answer { sequence, reply }, &[input.as_fd()]);
                }
                Request::OpenInput { .. } => {
                    let refused = Refused { code: RefusedCode::WrongState, text: "it has ended".into() };
                    answer(Reply::Refused(refused));
                }
                Request::Why { .. } => {
                    let link = |name: &str, because| Link { name: Name::try_from(name).unwrap(), because };
                    let other = Name::try_from("db").unwrap();
                    let chain = vec![link("web", Because::Waiting { other }), link("db", Because::Missing)];
                    answer(Reply::Explained(chain));
                }
                Request::Stop { .. }
                | Request::Restart { .. }
                | Request::Kill { .. }
                | Request::Remove { .. }
                | Request::CloseInput { .. }
                | Request::OpenKernelLog
                | Request::Shutdown { .. }
                | Request::Reexec
                | Request::Recorded { .. }
                | Request::RecordFailed { .. }
                | Request::Replay(_)
                | Request::ReplayEnd
                | Request::Attached { .. }
                | Request::AttachFailed { .. }
                | Request::Probed { .. }
                | Request::Arm { .. }
                | Request::Rollback
                | Request::Disarm
                | Request::Enable { .. }
                | Request::Disable { .. }
                | Request::Reset { .. }
                | Request::Trace => panic!("not played"),
            }
        }
    }

    fn event(&self, what: What) {
        let name = Name::try_from("web").unwrap();
        let event = Event { number: 1, at: Moment::default(), id: WEB, name, what };
        self.tell(&FromInit::Notice(Box::new(Notice::Event(event))), &[]);
    }

    fn exec(&self, sequence: u64, process: &Process, descriptors: Vec<OwnedFd>) {
        let mut args = process.args.clone();
        if process.program == Program::Helper {
            let path = args.pop().unwrap();
            let script = match args[0].as_str() {
                "cp-in" => format!("cat > {path} || exit 1"),
                _ => format!("cat {path}"),
            };
            args = vec!["sh".into(), "-c".into(), script];
        }
        let mut command = Command::new(&args[0]);
        command.args(&args[1..]).env_clear().envs(process.env.iter().filter_map(|entry| entry.split_once('=')));
        // SAFETY: only a system call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // As PID 1 starts everything, even where the test itself runs under nohup.
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            })
        };
        let mut master = None;
        if let Some(size) = process.terminal {
            let pty = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
            rustix::pty::unlockpt(&pty).unwrap();
            let name = rustix::pty::ptsname(&pty, Vec::new()).unwrap();
            let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(&pty, size).unwrap();
            let open = || std::fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
            command.stdin(open()).stdout(open()).stderr(open());
            // SAFETY: only system calls between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    rustix::process::setsid()?;
                    rustix::process::ioctl_tiocsctty(std::io::stdin())?;
                    Ok(())
                })
            };
            master = Some(pty);
        } else {
            let mut descriptors = descriptors.into_iter().map(Stdio::from);
            command.stdin(descriptors.next().unwrap());
            command.stdout(descriptors.next().unwrap()).stderr(descriptors.next().unwrap());
        }
        let mut child = command.spawn().unwrap();
        drop(command);
        self.running.lock().unwrap().insert(sequence, child.id());
        let started = FromInit::Answer { sequence, reply: Reply::ExecStarted { exec: sequence } };
        match &master {
            Some(master) => self.tell(&started, &[master.as_fd()]),
            None => self.tell(&started, &[]),
        }
        let init = self.clone();
        std::thread::spawn(move || {
            let status = child.wait().unwrap();
            init.running.lock().unwrap().remove(&sequence);
            let small = |number: i32| u8::try_from(number).unwrap();
            let cause = match status.code() {
                Some(code) => Cause::Code(small(code)),
                None => Cause::Signal(small(status.signal().unwrap())),
            };
            init.tell(&FromInit::Notice(Box::new(Notice::ExecEnded { exec: sequence, cause })), &[]);
        });
    }
}

fn chunk(bytes: &[u8]) -> LogChunk {
    LogChunk { stream: Stream::Stdout, at: Moment::default(), bytes: bytes.to_vec(), lost: 0 }
}

fn say(stream: &mut UnixStream, message: &impl Serialize) {
    let bytes = frame::encode(message).unwrap();
    stream.write_all(&u32::try_from(bytes.len()).unwrap().to_le_bytes()).unwrap();
    stream.write_all(&bytes).unwrap();
}

fn hear<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> T {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap()];
    stream.read_exact(&mut bytes).unwrap();
    frame::decode(&bytes).unwrap()
}

/// The log service's end: keeps whoever attaches for [`Init`], and has stored nothing.
fn log_service(listener: &UnixListener, attached: &Mutex<Option<UnixStream>>) {
    while let Ok((mut client, _)) = listener.accept() {
        match hear(&mut client) {
            LogCall::Attach { .. } => *attached.lock().unwrap() = Some(client),
            LogCall::Read { .. } => say(&mut client, &chunk(b"")),
        }
    }
}

struct Node {
    machine: Machine,
    channel: Channel,
    detail: Arc<Mutex<Detail>>,
    resolved: Arc<AtomicUsize>,
    input: Arc<Mutex<Option<OwnedFd>>>,
}

async fn node() -> Node {
    let (detail, log) = (Arc::new(Mutex::new(container())), Arc::new(Mutex::new(None)));
    let (ours, theirs) = (Arc::clone(&detail), Arc::clone(&log));
    let input: Arc<Mutex<Option<OwnedFd>>> = Arc::default();
    let opens = Arc::clone(&input);
    let init = move |socket| {
        Init { socket: Arc::new(socket), detail: ours, running: Arc::default(), log: theirs, input: opens }.serve();
    };
    let machine = machine(joinable, init).await;
    let listen = |name: &str| UnixListener::bind(machine.directory.path().join(name)).unwrap();
    let (logs, images) = (listen("log.sock"), listen("image.sock"));
    std::thread::spawn(move || log_service(&logs, &log));
    let resolved = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&resolved);
    std::thread::spawn(move || images::image_service(&images, &counter));
    // Over TCP, because over the unix socket only root may do this, and tests need no root.
    let admin = machine.client(Role::Admin);
    adopt(&admin, &machine.authority, TOKEN, &[]).await.unwrap();
    let channel = connect(&Endpoint::Tcp(admin)).await.unwrap();
    Node { machine, channel, detail, resolved, input }
}

impl Node {
    fn workloads(&self) -> WorkloadsClient<Channel> {
        WorkloadsClient::new(self.channel.clone())
    }

    async fn exec(
        &self,
        script: &str,
        terminal: bool,
    ) -> (tokio::sync::mpsc::Sender<proto::ExecRequest>, Streaming<proto::ExecResponse>) {
        let (messages, queue) = tokio::sync::mpsc::channel(8);
        let start = proto::ExecStart {
            workload: "web".into(),
            command: vec!["sh".into(), "-c".into(), script.into()],
            terminal,
            size: Some(proto::TerminalSize { rows: 20, columns: 70 }),
            stdin: true,
            ..proto::ExecStart::default()
        };
        messages.send(proto::ExecRequest { message: Some(Asked::Start(start)) }).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(queue);
        let mut answers = self.workloads().exec(stream).await.unwrap().into_inner();
        let first = answers.message().await.unwrap().unwrap();
        assert!(matches!(first.message, Some(Told::Ready(_))));
        (messages, answers)
    }
}

/// All output per stream, and the end.
async fn rest(answers: &mut Streaming<proto::ExecResponse>) -> (Vec<u8>, Vec<u8>, proto::Exit) {
    let (mut out, mut error) = (Vec::new(), Vec::new());
    loop {
        match answers.message().await.unwrap().unwrap().message.unwrap() {
            Told::Output(output) if output.stream == i32::from(proto::OutputStream::Stderr) => {
                error.extend(output.data)
            }
            Told::Output(output) => out.extend(output.data),
            Told::Exit(exit) => {
                assert!(answers.message().await.unwrap().is_none());
                return (out, error, exit);
            }
            Told::Ready(_) => panic!("ready twice"),
        }
    }
}

fn asked(message: Asked) -> proto::ExecRequest {
    proto::ExecRequest { message: Some(message) }
}

#[tokio::test]
async fn input_output_and_the_exit_code_pass_through_an_exec() {
    let node = node().await;
    let (messages, mut answers) = node.exec("cat; echo oops >&2; exit 3", false).await;
    messages.send(asked(Asked::Stdin("hel".into()))).await.unwrap();
    messages.send(asked(Asked::Stdin("lo".into()))).await.unwrap();
    messages.send(asked(Asked::StdinClosed(true))).await.unwrap();
    let (out, error, exit) = rest(&mut answers).await;
    assert_eq!((out.as_slice(), error.as_slice(), exit.code), (b"hello".as_slice(), b"oops\n".as_slice(), 3));
}

#[tokio::test]
async fn ten_megabytes_arrive_whole_at_a_slow_reader() {
    let node = node().await;
    let (_messages, mut answers) = node.exec("head -c 10000000 /dev/zero", false).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (out, _, exit) = rest(&mut answers).await;
    assert_eq!((out.len(), exit.code), (10_000_000, 0));
}

#[tokio::test]
async fn a_session_ends_with_its_process_and_not_with_a_child_in_the_background() {
    let node = node().await;
    let (_messages, mut answers) = node.exec("sleep 30 & echo done", false).await;
    let ended = tokio::time::timeout(Duration::from_secs(10), rest(&mut answers)).await.unwrap();
    assert_eq!((ended.0.as_slice(), ended.2.code), (b"done\n".as_slice(), 0));
}

#[tokio::test]
async fn a_signal_reaches_the_process_and_its_end_says_so() {
    let node = node().await;
    let (messages, mut answers) = node.exec("echo here; exec sleep 30", false).await;
    assert!(matches!(answers.message().await.unwrap().unwrap().message, Some(Told::Output(_))));
    messages.send(asked(Asked::Signal("SIGTERM".into()))).await.unwrap();
    let (_, _, exit) = rest(&mut answers).await;
    assert_eq!((exit.code, exit.signal, exit.reason.as_str()), (143, 15, "killed by SIGTERM"));
}

#[tokio::test]
async fn a_process_whose_client_goes_away_is_hung_up() {
    let node = node().await;
    let mark = node.machine.directory.path().join("hung-up");
    let script = format!("trap 'echo > {}; exit' HUP; echo ready; while :; do sleep 0.05; done", mark.display());
    let (messages, mut answers) = node.exec(&script, false).await;
    assert!(matches!(answers.message().await.unwrap().unwrap().message, Some(Told::Output(_))));
    drop((messages, answers));
    for _ in 0..200 {
        if mark.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not hung up");
}

#[tokio::test]
async fn a_terminal_has_its_size_is_resized_and_takes_input() {
    let node = node().await;
    let (messages, mut answers) = node.exec("stty size; read line; stty size; echo got $line", true).await;
    let mut shown = String::new();
    while !shown.contains("20 70") {
        let Some(Told::Output(output)) = answers.message().await.unwrap().unwrap().message else { panic!() };
        assert_eq!(output.stream, i32::from(proto::OutputStream::Terminal));
        shown.push_str(std::str::from_utf8(&output.data).unwrap());
    }
    let size = proto::TerminalSize { rows: 33, columns: 99 };
    messages.send(asked(Asked::Resize(size))).await.unwrap();
    messages.send(asked(Asked::Stdin("word\n".into()))).await.unwrap();
    let (out, _, exit) = rest(&mut answers).await;
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("33 99") && out.contains("got word"), "{out:?}");
    assert_eq!(exit.code, 0);
}

#[tokio::test]
async fn what_an_exec_may_not_be_is_refused_by_name() {
    let node = node().await;
    for (start, text) in [
        (proto::ExecStart { workload: "web".into(), ..Default::default() }, "command"),
        (
            proto::ExecStart {
                workload: "web".into(),
                command: vec!["x".into()],
                working_dir: "tmp".into(),
                ..Default::default()
            },
            "working_dir",
        ),
    ] {
        let message = asked(Asked::Start(start));
        let refused = node.workloads().exec(tokio_stream::iter([message])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(text), "{refused}");
    }
    node.detail.lock().unwrap().summary.built_in = true;
    let start = proto::ExecStart { workload: "web".into(), command: vec!["x".into()], ..Default::default() };
    let refused = node.workloads().exec(tokio_stream::iter([asked(Asked::Start(start))])).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_attach_that_starts_misses_no_byte_of_a_short_run() {
    let node = node().await;
    node.detail.lock().unwrap().summary.state = State::Down { why: Why::Created };
    let start = proto::AttachStart { workload: "web".into(), start: true, stdin: true, ..Default::default() };
    let first = proto::AttachRequest { message: Some(proto::attach_request::Message::Start(start)) };
    let (messages, queue) = tokio::sync::mpsc::channel(2);
    messages.send(first).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(queue);
    let mut answers = node.workloads().attach(stream).await.unwrap().into_inner();
    let mut told = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        told.push(answer.message.unwrap());
    }
    assert!(matches!(&told[0], Attached::Ready(ready) if !ready.terminal));
    assert!(matches!(&told[1], Attached::Output(output) if output.data == "early"));
    assert!(matches!(&told[2], Attached::Exit(exit) if exit.code == 4));
    assert_eq!(told.len(), 3);

    let idle = proto::AttachStart { workload: "web".into(), ..Default::default() };
    let message = proto::AttachRequest { message: Some(proto::attach_request::Message::Start(idle)) };
    let refused = node.workloads().attach(tokio_stream::iter([message])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn what_was_typed_before_detaching_is_written_and_then_the_call_ends() {
    use proto::attach_request::Message;
    let node = node().await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    *node.input.lock().unwrap() = Some(writer.into());
    let start = proto::AttachStart { workload: "web".into(), stdin: true, ..Default::default() };
    let typed = vec![b'x'; 40_000];
    let messages = [Message::Start(start), Message::Stdin(typed.clone().into()), Message::Detach(true)];
    let messages = messages.map(|message| proto::AttachRequest { message: Some(message) });
    // The request stream stays open: the end is the node's answer to the last message.
    let messages = tokio_stream::StreamExt::chain(tokio_stream::iter(messages), tokio_stream::pending());
    let mut answers = node.workloads().attach(messages).await.unwrap().into_inner();
    assert!(matches!(answers.message().await.unwrap().unwrap().message, Some(Attached::Ready(_))));
    assert!(answers.message().await.unwrap().is_none());
    let mut written = Vec::new();
    reader.read_to_end(&mut written).unwrap();
    assert!(written == typed, "{} bytes", written.len());
}

#[tokio::test]
async fn copies_go_in_and_out_whole_and_a_failure_says_what_the_helper_said() {
    use proto::copy_in_request::Message;
    let node = node().await;
    let path = node.machine.directory.path().join("copied").display().to_string();
    let start = |directory: &str| {
        Message::Start(proto::CopyInStart { workload: "web".into(), directory: directory.to_owned() })
    };
    let piece = vec![7_u8; 100_000];
    let messages = |directory: &str| {
        let tar = std::iter::repeat_n(Message::Tar(piece.clone().into()), 30);
        let all: Vec<_> = std::iter::once(start(directory)).chain(tar).collect();
        tokio_stream::iter(all.into_iter().map(|message| proto::CopyInRequest { message: Some(message) }))
    };
    node.workloads().copy_in(messages(&path)).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 3_000_000]);
    let failed = node.workloads().copy_in(messages("/nonexistent/x")).await.unwrap_err();
    assert!(failed.message().contains("/nonexistent/x"), "{failed}");

    let out = proto::CopyOutRequest { workload: "web".into(), path: path.clone() };
    let mut answers = node.workloads().copy_out(out).await.unwrap().into_inner();
    let mut bytes = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        bytes += answer.tar.len();
    }
    assert_eq!(bytes, 3_000_000);
    let out = proto::CopyOutRequest { workload: "web".into(), path: "/nonexistent/y".into() };
    let mut answers = node.workloads().copy_out(out).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap_err().message().contains("/nonexistent/y"));
    let relative = proto::CopyOutRequest { workload: "web".into(), path: "y".into() };
    assert_eq!(node.workloads().copy_out(relative).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_image_is_resolved_once_until_images_change() {
    let node = node().await;
    let spec = proto::ContainerSpec { image: "web".into(), ..Default::default() };
    let create = proto::CreateRequest { spec: Some(spec.clone()), start: true };
    for _ in 0..3 {
        let created = node.workloads().create(create.clone()).await.unwrap().into_inner();
        assert_eq!(created.id, WEB.to_string());
    }
    assert_eq!(node.resolved.load(Ordering::SeqCst), 1);
    let inspect = proto::InspectRequest { workload: "web".into() };
    let inspected = node.workloads().inspect(inspect).await.unwrap().into_inner();
    assert_eq!(inspected.spec, Some(spec));
    let remove = proto::RemoveImageRequest { image: "web".into() };
    ImagesClient::new(node.channel.clone()).remove_image(remove).await.unwrap();
    node.workloads().create(create).await.unwrap();
    assert_eq!(node.resolved.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn why_is_the_whole_chain_for_programs_and_people() {
    let node = node().await;
    let told = node.workloads().why(proto::WhyRequest { workload: "web".into() }).await.unwrap().into_inner();
    let chain: Vec<(&str, &str)> =
        told.chain.iter().map(|cause| (cause.workload.as_str(), cause.reason.as_str())).collect();
    assert_eq!(chain, [("web", "waiting"), ("db", "missing")]);
    assert_eq!(told.chain[0].details["waits_for"], "db");
    assert!(told.chain.iter().all(|cause| !cause.text.is_empty()));
}

//! The channel against a peer that speaks PID 1's side of the protocol over a real socket pair.

use std::os::fd::AsFd;
use std::time::Duration;

use byre_plan::{Name, WorkloadId};
use byre_protocol::control::{RefusedCode, Target, What};
use byre_protocol::status::Moment;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::*;

struct Init {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Init {
    fn pair() -> (Control, Self) {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (
            Control::new(ours).unwrap(),
            Self {
                socket: crate::readiness::register(theirs, Interest::READABLE).unwrap(),
                buffer: vec![0; MESSAGE_BYTES],
            },
        )
    }

    async fn hears(&mut self) -> (Call, usize) {
        let buffer = &mut self.buffer;
        let received = self.socket.async_io(Interest::READABLE, |socket| {
            frame::receive(socket.as_fd(), buffer, RecvFlags::DONTWAIT).map_err(into_io)
        });
        let (length, descriptors) = received.await.unwrap();
        (frame::decode(&self.buffer[..length]).unwrap(), descriptors.len())
    }

    fn says(&self, message: &FromInit, descriptors: &[BorrowedFd<'_>]) {
        frame::send(self.socket.get_ref().as_fd(), &frame::encode(message).unwrap(), descriptors, SendFlags::empty())
            .unwrap();
    }

    fn answers(&self, sequence: u64, reply: Reply) {
        self.says(&FromInit::Answer { sequence, reply }, &[]);
    }
}

fn start(name: &str) -> Request {
    Request::Start { target: Target::Name(Name::try_from(name).unwrap()) }
}

fn serving(control: &Control) -> tokio::task::JoinHandle<FrameError> {
    let control = control.clone();
    tokio::spawn(async move { control.serve().await })
}

#[tokio::test]
async fn answers_find_their_callers_in_any_order() {
    let (control, mut init) = Init::pair();
    serving(&control);
    let (one, two) = (control.clone(), control.clone());
    let one = tokio::spawn(async move { one.call(start("one")).await });
    let (first, _) = init.hears().await;
    let two = tokio::spawn(async move { two.call(start("two")).await });
    let (second, _) = init.hears().await;
    let no = Refused { code: RefusedCode::NotFound, text: "no two".into() };
    init.answers(second.sequence, Reply::Refused(no.clone()));
    init.answers(999, Reply::Done);
    init.answers(first.sequence, Reply::Done);
    assert!(matches!(one.await.unwrap().unwrap().reply, Reply::Done));
    assert!(matches!(two.await.unwrap(), Err(ControlError::Refused(refused)) if refused == no));
}

#[tokio::test]
async fn an_end_that_follows_its_start_at_once_is_not_missed() {
    let (control, mut init) = Init::pair();
    serving(&control);
    let caller = control.clone();
    let call = tokio::spawn(async move {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        caller.call_with(start("exec"), &[reader.as_fd(), writer.as_fd()]).await
    });
    let (asked, descriptors) = init.hears().await;
    assert_eq!(descriptors, 2);
    let (master, _other) = rustix::pipe::pipe().unwrap();
    let reply = Reply::ExecStarted { exec: 7 };
    init.says(&FromInit::Answer { sequence: asked.sequence, reply }, &[master.as_fd()]);
    init.says(&FromInit::Notice(Box::new(Notice::ExecEnded { exec: 7, cause: Cause::Code(3) })), &[]);
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.descriptors.len(), 1);
    assert_eq!(answer.ended.unwrap().await.unwrap(), Cause::Code(3));
}

#[tokio::test]
async fn a_session_whose_caller_went_away_is_killed() {
    let (control, mut init) = Init::pair();
    serving(&control);
    let caller = control.clone();
    let call = tokio::spawn(async move { caller.call(start("exec")).await });
    let (asked, _) = init.hears().await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    init.answers(asked.sequence, Reply::ExecStarted { exec: 9 });
    let (kill, _) = init.hears().await;
    assert_eq!(kill.request, Request::KillExec { exec: 9, signal: 9 });
}

#[tokio::test]
async fn requests_beyond_the_bound_wait_for_room() {
    let (control, mut init) = Init::pair();
    serving(&control);
    let calls: Vec<_> = (0..REQUESTS + 1)
        .map(|_| {
            let caller = control.clone();
            tokio::spawn(async move { caller.call(start("web")).await.is_ok() })
        })
        .collect();
    let mut asked = Vec::new();
    for _ in 0..REQUESTS {
        asked.push(init.hears().await.0.sequence);
    }
    assert!(tokio::time::timeout(Duration::from_millis(20), init.hears()).await.is_err());
    init.answers(asked.remove(0), Reply::Done);
    asked.push(init.hears().await.0.sequence);
    for sequence in asked {
        init.answers(sequence, Reply::Done);
    }
    for call in calls {
        assert!(call.await.unwrap());
    }
}

#[tokio::test]
async fn when_the_channel_ends_nobody_waits_for_ever() {
    let (control, mut init) = Init::pair();
    let reading = serving(&control);
    let caller = control.clone();
    let call = tokio::spawn(async move { caller.call(start("web")).await });
    init.hears().await;
    drop(init);
    assert!(matches!(call.await.unwrap(), Err(ControlError::Closed)));
    assert!(matches!(reading.await.unwrap(), FrameError::Closed));
    assert!(matches!(control.call(start("web")).await, Err(ControlError::Closed)));
}

#[tokio::test]
async fn garbage_ends_the_channel_and_events_reach_all_listeners() {
    let (control, init) = Init::pair();
    let (mut one, mut two) = (control.events(), control.events());
    let reading = serving(&control);
    let event = Event {
        number: 1,
        at: Moment::default(),
        id: WorkloadId(5),
        name: Name::try_from("web").unwrap(),
        what: What::Created,
    };
    init.says(&FromInit::Notice(Box::new(Notice::Event(event.clone()))), &[]);
    assert_eq!(*one.recv().await.unwrap(), event);
    assert_eq!(*two.recv().await.unwrap(), event);
    frame::send(init.socket.as_fd(), b"\xffgarbage", &[], SendFlags::empty()).unwrap();
    assert!(matches!(reading.await.unwrap(), FrameError::Version(0xff)));
}

#[tokio::test]
async fn a_request_that_is_too_long_is_refused_here() {
    let (control, _init) = Init::pair();
    serving(&control);
    let process = byre_plan::Process {
        program: byre_plan::Program::Path,
        args: vec!["x".repeat(MESSAGE_BYTES)],
        env: Vec::new(),
        cwd: "/".into(),
        user: byre_plan::User::default(),
        terminal: None,
        capabilities: byre_plan::Capabilities::default(),
        rlimits: Vec::new(),
        no_new_privileges: true,
        oom_score_adj: None,
        scheduling: byre_plan::Scheduling::default(),
        labels: byre_plan::Labels::default(),
    };
    let target = Target::Name(Name::try_from("web").unwrap());
    let refused = control.call(Request::Exec { target, process: Box::new(process) }).await;
    assert!(matches!(refused, Err(ControlError::TooLarge(_))));
}

#[tokio::test]
async fn a_caller_that_goes_away_before_its_request_is_sent_leaves_nothing_behind() {
    let (control, init) = Init::pair();
    serving(&control);
    // Nobody reads, so the socket fills up and later requests wait to be sent.
    let calls: Vec<_> = (0..REQUESTS)
        .map(|_| {
            let caller = control.clone();
            tokio::spawn(async move { caller.call(start(&"x".repeat(60))).await.is_ok() })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    for call in calls {
        call.abort();
        let _ = call.await;
    }
    assert_eq!(control.table().pending.len(), frame_count(&init));
}

/// How many requests reached the socket.
fn frame_count(init: &Init) -> usize {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let mut count = 0;
    while frame::receive(init.socket.as_fd(), &mut buffer, RecvFlags::DONTWAIT).is_ok() {
        count += 1;
    }
    count
}

//! A task's control channel to PID 1: what the node's workloads do, and the request to end the machine. For the judge of trials alone.

use std::os::fd::{AsFd, OwnedFd};

use byre_boots::trial::Seen;
use byre_protocol::control::{Call, FromInit, Reply, Request, ShutdownAction};
use byre_protocol::definition::Kind;
use byre_protocol::frame::{self, MESSAGE_BYTES};
use byre_protocol::status::{Cause, State, Summary, Why};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags};

use super::TaskError;
use crate::sys;

/// The first descriptor that a service is handed: its control channel.
const CHANNEL: i32 = 3;
/// PID 1 answers at once; while it is replaced it may take longer.
const ANSWER_S: i64 = 30;
/// Pages of a list: more than the workloads a node may have.
const PAGES: usize = 256;

/// The channel.
pub(crate) struct Watch {
    channel: OwnedFd,
    next: u64,
}

impl Watch {
    /// Takes it.
    pub(crate) fn open() -> Result<Self, TaskError> {
        let failed = |errno: rustix::io::Errno| TaskError::Invalid(format!("the control channel: {errno}"));
        Ok(Self { channel: sys::inherited(CHANNEL).map_err(failed)?, next: 1 })
    }

    fn call(&mut self, request: Request) -> Result<Reply, TaskError> {
        let failed = |text: String| TaskError::Invalid(format!("PID 1 does not answer: {text}"));
        let sequence = self.next;
        self.next = sequence.saturating_add(1);
        let bytes = frame::encode(&Call { sequence, request }).map_err(|error| failed(error.to_string()))?;
        self.wait(PollFlags::OUT)?;
        frame::send(self.channel.as_fd(), &bytes, &[], SendFlags::empty())
            .map_err(|error| failed(error.to_string()))?;
        let mut buffer = vec![0_u8; MESSAGE_BYTES];
        loop {
            self.wait(PollFlags::IN)?;
            let received = frame::receive(self.channel.as_fd(), &mut buffer, RecvFlags::empty());
            let (length, _) = received.map_err(|error| failed(error.to_string()))?;
            let message: FromInit =
                frame::decode(buffer.get(..length).unwrap_or_default()).map_err(|error| failed(error.to_string()))?;
            match message {
                FromInit::Answer { sequence: answered, reply } if answered == sequence => return Ok(reply),
                FromInit::Answer { .. } | FromInit::Notice(_) => {}
            }
        }
    }

    fn wait(&self, wanted: PollFlags) -> Result<(), TaskError> {
        let time = Timespec { tv_sec: ANSWER_S, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut [PollFd::new(&self.channel, wanted)], Some(&time));
        match ready {
            Ok(0) => Err(TaskError::Invalid(format!("PID 1 did not answer within {ANSWER_S} s"))),
            Ok(_) => Ok(()),
            Err(errno) => Err(TaskError::Invalid(format!("the control channel: {errno}"))),
        }
    }

    /// All workloads as they are now.
    pub(crate) fn look(&mut self) -> Result<Vec<Seen>, TaskError> {
        let (mut seen, mut after) = (Vec::new(), None);
        for _ in 0..PAGES {
            let reply = self.call(Request::List { after })?;
            let Reply::Page { workloads, more } = reply else { return Err(unexpected("a list", &reply)) };
            after = workloads.last().map(|last| last.id);
            seen.extend(workloads.iter().map(seen_of));
            if !more || after.is_none() {
                return Ok(seen);
            }
        }
        Ok(seen)
    }

    /// Ends everything in order and starts the machine anew.
    pub(crate) fn reboot(&mut self) -> Result<(), TaskError> {
        let reply = self.call(Request::Shutdown { action: ShutdownAction::Reboot })?;
        if reply == Reply::Done { Ok(()) } else { Err(unexpected("a reboot", &reply)) }
    }
}

fn unexpected(what: &str, reply: &Reply) -> TaskError {
    TaskError::Invalid(format!("PID 1 answers the call for {what} with {reply:?}"))
}

fn seen_of(summary: &Summary) -> Seen {
    Seen {
        name: summary.name.to_string(),
        service: summary.built_in,
        ready: is_ready(summary),
        counts: false,
        state: text(&summary.state),
    }
}

fn is_ready(summary: &Summary) -> bool {
    match (&summary.state, summary.kind) {
        (State::Up { ready, .. }, Kind::Service | Kind::Container | Kind::Pod) => *ready,
        (State::Down { why: Why::Ended(Cause::Code(0)) }, Kind::Job) => true,
        (
            State::Down { .. }
            | State::Starting { .. }
            | State::Up { .. }
            | State::Stopping { .. }
            | State::Draining { .. }
            | State::Backoff { .. },
            _,
        ) => false,
    }
}

fn text(state: &State) -> String {
    match state {
        State::Down { why: Why::Waiting(name) } => format!("waiting for {name}"),
        State::Down { why: Why::Ended(cause) | Why::GaveUp(cause) } => format!("down: {cause:?}"),
        State::Down { why: Why::Created | Why::Stopped | Why::Shutdown | Why::Scheduled(_) | Why::Disabled } => {
            "down".to_owned()
        }
        State::Starting { .. } => "starting".to_owned(),
        State::Up { ready: true, .. } => "ready".to_owned(),
        State::Up { ready: false, .. } => "not ready".to_owned(),
        State::Stopping { .. } | State::Draining { .. } => "being stopped".to_owned(),
        State::Backoff { streak, .. } => format!("failing, {streak} times in a row"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use byre_plan::{Name, WorkloadId};
    use byre_protocol::status::{Moment, Rung};
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn summary(name: &str, kind: Kind, state: State) -> Summary {
        Summary {
            id: WorkloadId(u64::from(name.as_bytes()[0])),
            name: Name::try_from(name).unwrap(),
            kind,
            built_in: kind != Kind::Container,
            state,
            wanted_up: true,
            created: Moment::default(),
            restarts: 0,
            last_run: None,
            labels: Vec::new(),
        }
    }

    /// A PID 1 that answers as many calls as it has replies, each after a notice that nobody asked for.
    fn answering(replies: Vec<Reply>) -> Watch {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; MESSAGE_BYTES];
            for reply in replies {
                let (length, _) = frame::receive(ours.as_fd(), &mut buffer, RecvFlags::empty()).unwrap();
                let call: Call = frame::decode(&buffer[..length]).unwrap();
                let notice = FromInit::Notice(Box::new(byre_protocol::control::Notice::ShuttingDown));
                for message in [notice, FromInit::Answer { sequence: call.sequence, reply }] {
                    let bytes = frame::encode(&message).unwrap();
                    frame::send(ours.as_fd(), &bytes, &[], SendFlags::empty()).unwrap();
                }
            }
        });
        Watch { channel: theirs, next: 1 }
    }

    #[test]
    fn what_is_ready_is_known_of_every_kind_over_all_pages() {
        let up = |ready| State::Up { since: Moment::default(), ready, pid: 9 };
        let done = |code| State::Down { why: Why::Ended(Cause::Code(code)) };
        let first = vec![summary("api", Kind::Service, up(true)), summary("bad", Kind::Service, up(false))];
        let second = vec![
            summary("job", Kind::Job, done(0)),
            summary("lost", Kind::Job, done(1)),
            summary("web", Kind::Container, State::Backoff { until_boot_ms: 1, streak: 9 }),
            summary("x", Kind::Container, State::Stopping { rung: Rung::Kill, deadline_boot_ms: 0 }),
        ];
        let mut watch = answering(vec![
            Reply::Page { workloads: first, more: true },
            Reply::Page { workloads: second, more: false },
        ]);
        let seen = watch.look().unwrap();
        let ready: Vec<&str> = seen.iter().filter(|one| one.ready).map(|one| one.name.as_str()).collect();
        assert_eq!(ready, ["api", "job"]);
        assert_eq!(seen[4].state, "failing, 9 times in a row");
    }

    #[test]
    fn an_answer_of_another_kind_is_an_error() {
        let mut watch = answering(vec![Reply::Descriptor, Reply::Done]);
        assert!(watch.look().is_err());
        assert!(watch.reboot().is_ok());
        assert!(watch.reboot().is_err(), "nobody answers any more");
    }
}

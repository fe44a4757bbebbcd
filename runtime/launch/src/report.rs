//! What a launch child tells PID 1, over a sequenced-packet socket whose child's end closes itself at execve.
//!
//! Messages wait in the socket until the child's end is gone: only then is it known how the start ended. `Executing` is the child's last
//! word before execve; if the end closes after it and no failure follows, the program runs.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

/// Largest message: a path of PATH_MAX and its frame.
const MESSAGE_BYTES: usize = 4096 + 256;
/// Longest subject that is reported; the rest of a longer one is cut off.
const SUBJECT_BYTES: usize = 4096;
/// A child sends at most four messages; more means that it is not our code any more.
const MESSAGES: usize = 8;

/// The step of a failure whose cause is that a launch child died without a word.
pub const CHILD_DIED: &str = "launch child died";

/// How a start ended.
#[derive(Debug)]
pub enum Report {
    /// The program was executed.
    Running {
        /// Its number in PID 1's namespace.
        pid: u32,
        /// Its descriptor.
        pidfd: OwnedFd,
        /// The master of its terminal, if it has one.
        terminal: Option<OwnedFd>,
    },
    /// A pod's namespaces are made, set up and bound to their paths.
    Made,
    /// A step failed; nothing of the workload ran.
    Failed {
        /// Which step.
        step: String,
        /// What it was about: a path, a name.
        subject: String,
        /// Linux' error number.
        errno: i32,
    },
    /// The child ended without a word: killed, or a fault of our own in the child.
    Incomplete,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message<'a> {
    /// The workload's process exists; its pidfd is attached. Sent by the process that cloned it.
    Started { pid: u32 },
    /// The master of its terminal is attached.
    Terminal,
    /// The next thing is execve.
    Executing,
    /// A step failed.
    Failed { step: &'a str, subject: &'a str, errno: i32 },
    /// A pod's namespaces are bound; no process is left behind.
    Made,
}

/// A step that failed in a launch child.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) step: &'static str,
    pub(crate) subject: String,
    pub(crate) errno: i32,
}

impl Failure {
    pub(crate) fn new(step: &'static str, subject: impl Into<String>, errno: Errno) -> Self {
        Self { step, subject: subject.into(), errno: errno.raw_os_error() }
    }
}

/// Names the step that an error belongs to. Each use is a fault point, after the step itself.
pub(crate) trait Step<T> {
    #[cfg_attr(feature = "fault-points", track_caller)]
    fn step(self, step: &'static str, subject: &str) -> Result<T, Failure>;
}

impl<T> Step<T> for Result<T, Errno> {
    #[cfg_attr(feature = "fault-points", track_caller)]
    fn step(self, step: &'static str, subject: &str) -> Result<T, Failure> {
        fault_point!();
        self.map_err(|errno| Failure::new(step, subject, errno))
    }
}

impl<T> Step<T> for std::io::Result<T> {
    #[cfg_attr(feature = "fault-points", track_caller)]
    fn step(self, step: &'static str, subject: &str) -> Result<T, Failure> {
        fault_point!();
        self.map_err(|error| Failure::new(step, subject, Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }
}

impl<T> Step<T> for Result<T, nix::errno::Errno> {
    #[cfg_attr(feature = "fault-points", track_caller)]
    fn step(self, step: &'static str, subject: &str) -> Result<T, Failure> {
        fault_point!();
        self.map_err(|errno| Failure { step, subject: subject.to_owned(), errno: errno as i32 })
    }
}

/// Two connected sockets that keep messages apart and block.
pub(crate) fn blocking_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// A pair of sockets: PID 1's end, which never blocks, and the child's, which may.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, childs) = blocking_pair()?;
    rustix::fs::fcntl_setfl(&ours, rustix::fs::OFlags::NONBLOCK)?;
    Ok((ours, childs))
}

/// Sends one message with at most one descriptor.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &Message<'_>,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut buffer = [0_u8; MESSAGE_BYTES];
    let bytes = postcard::to_slice(message, &mut buffer).map_err(|_| Errno::MSGSIZE)?;
    send_bytes(socket, bytes, descriptor)
}

/// Sends one packet with at most one descriptor.
pub(crate) fn send_bytes(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// Reports a failed step. There is nobody else to tell if this fails: the start then counts as incomplete.
pub(crate) fn send_failure(socket: BorrowedFd<'_>, failure: &Failure) {
    let mut end = failure.subject.len().min(SUBJECT_BYTES);
    while !failure.subject.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    let subject = failure.subject.get(..end).unwrap_or("");
    let _ = send(socket, &Message::Failed { step: failure.step, subject, errno: failure.errno }, None);
}

/// Reads how a start ended; `None` while it is under way. Does not block.
///
/// Wait for EPOLLRDHUP on the socket, not for EPOLLIN: messages are left in it until its other end is closed.
///
/// # Errors
/// Those of poll and recvmsg.
pub fn read_report(report: BorrowedFd<'_>) -> Result<Option<Report>, Errno> {
    let mut polled = [PollFd::from_borrowed_fd(report, PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    if !polled.iter().any(|one| one.revents().intersects(closed)) {
        return Ok(None);
    }
    let mut progress = Progress::default();
    progress.read(report)?;
    Ok(Some(progress.finish()))
}

/// Receives one message and at most one descriptor; further ones are closed.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    Ok((received.bytes, descriptor))
}

/// What a start has said so far, for a caller that does not wait for its end.
#[derive(Debug, Default)]
pub struct Progress {
    process: Option<(u32, OwnedFd)>,
    terminal: Option<OwnedFd>,
    executing: bool,
    made: bool,
    failed: Option<Report>,
}

impl Progress {
    /// Reads what the report holds now. Does not block.
    ///
    /// # Errors
    /// Those of recvmsg.
    pub fn read(&mut self, report: BorrowedFd<'_>) -> Result<(), Errno> {
        for _ in 0..MESSAGES {
            let mut buffer = [0_u8; MESSAGE_BYTES];
            let (count, descriptor) = match receive(report, &mut buffer) {
                Ok(received) => received,
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno),
            };
            let Some(bytes) = buffer.get(..count) else { break };
            if bytes.is_empty() {
                break;
            }
            match postcard::from_bytes(bytes) {
                Ok(message) => self.take(&message, descriptor),
                Err(_) => self.failed = Some(Report::Incomplete),
            }
        }
        Ok(())
    }

    /// The workload's process, once it exists: its number and its descriptor.
    #[must_use]
    pub fn process(&self) -> Option<(u32, BorrowedFd<'_>)> {
        use std::os::fd::AsFd as _;
        self.process.as_ref().map(|(pid, pidfd)| (*pid, pidfd.as_fd()))
    }

    /// The master of its terminal, once there is one. It is given away once.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    fn take(&mut self, message: &Message<'_>, descriptor: Option<OwnedFd>) {
        match message {
            Message::Started { pid } => self.process = descriptor.map(|pidfd| (*pid, pidfd)),
            Message::Terminal => self.terminal = descriptor,
            Message::Executing => self.executing = true,
            Message::Made => self.made = true,
            Message::Failed { step, subject, errno } => {
                // The first failure is the cause; later ones follow from it.
                self.failed.get_or_insert_with(|| Report::Failed {
                    step: (*step).to_owned(),
                    subject: (*subject).to_owned(),
                    errno: *errno,
                });
            }
        }
    }

    /// How the start ended, when its report has.
    #[must_use]
    pub fn finish(self) -> Report {
        match (self.failed, self.process) {
            (Some(failed), _) => failed,
            (None, None) if self.made => Report::Made,
            (None, Some((pid, pidfd))) if self.executing => Report::Running { pid, pidfd, terminal: self.terminal },
            (None, Some(_) | None) => Report::Incomplete,
        }
    }
}

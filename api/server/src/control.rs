//! The channel to PID 1: many callers, one socket. An answer finds its caller by its number; notices go to whoever listens.
//!
//! It never waits for PID 1 while holding anything up: a caller waits alone, bounded by its own deadline, and a caller that goes away leaves its
//! entry behind until the answer comes, so numbers are never mixed up. When the socket ends, so does this process: PID 1 restarts it
//! with a fresh one.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use byre_protocol::control::{Call, Event, FromInit, Notice, PENDING_REQUESTS, Refused, Reply, Request};
use byre_protocol::frame::{self, FrameError, MESSAGE_BYTES};
use byre_protocol::status::Cause;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot};

/// Events that a slow listener may be behind before it is told that it lost some: a start makes four, so 250 starts at once.
const EVENTS_BEHIND: usize = 1024;
/// Exec sessions of the whole node whose end is awaited; the protocol bounds those of one workload.
const EXECS: usize = 1024;
/// Requests under way: one less than PID 1 allows on a channel, which is kept for [`Request::KillExec`] of sessions nobody wants any more.
const REQUESTS: usize = PENDING_REQUESTS - 1;

/// Why PID 1 did not answer with what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It said no.
    #[error("{}", .0.text)]
    Refused(Refused),
    /// The request is longer than a message.
    #[error("the request is too large for one message: {0}; shorten its environment, arguments or labels")]
    TooLarge(FrameError),
    /// The channel is gone.
    #[error("the connection to PID 1 is lost; try again in a second")]
    Closed,
    /// An answer of the wrong kind: the two ends are not from one release.
    #[error("PID 1 gave an answer of another kind than asked for; reboot the node")]
    Unexpected,
}

/// What came back.
pub(crate) struct Answer {
    /// The answer; never [`Reply::Refused`].
    pub reply: Reply,
    /// Descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
    /// For [`Reply::ExecStarted`]: tells how the session ends. Made here, before the next message is read, so no end can be missed.
    pub ended: Option<oneshot::Receiver<Cause>>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Answer").field("reply", &self.reply).finish_non_exhaustive()
    }
}

struct Pending {
    caller: oneshot::Sender<Result<Answer, ControlError>>,
    /// Given back when PID 1 has answered, not when the caller goes away.
    _permit: OwnedSemaphorePermit,
}

/// A call that is not sent yet.
struct Unsent<'a> {
    control: &'a Control,
    sequence: u64,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.control.table().pending.remove(&self.sequence);
    }
}

#[derive(Default)]
struct Table {
    next_sequence: u64,
    pending: HashMap<u64, Pending>,
    execs: HashMap<u64, oneshot::Sender<Cause>>,
    closed: bool,
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    table: Mutex<Table>,
    permits: Arc<Semaphore>,
    events: broadcast::Sender<Arc<Event>>,
}

/// The channel; cheap to clone.
#[derive(Clone)]
pub(crate) struct Control(Arc<Shared>);

impl Control {
    /// Takes the descriptor named `control`. Must be called inside the runtime; nothing is read until [`Self::serve`] runs.
    ///
    /// # Errors
    /// If the descriptor cannot be polled.
    pub(crate) fn new(socket: OwnedFd) -> std::io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            socket: crate::readiness::register(socket, Interest::READABLE | Interest::WRITABLE)?,
            table: Mutex::default(),
            permits: Arc::new(Semaphore::new(REQUESTS)),
            events: broadcast::Sender::new(EVENTS_BEHIND),
        })))
    }

    /// Events from now on. A listener that falls behind by too much is told so by the receiver.
    #[must_use]
    pub(crate) fn events(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.events.subscribe()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub(crate) async fn call(&self, request: Request) -> Result<Answer, ControlError> {
        self.call_with(request, &[]).await
    }

    /// Asks with descriptors, and waits for the answer.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub(crate) async fn call_with(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, ControlError> {
        let permit = Arc::clone(&self.0.permits).acquire_owned().await.map_err(|_| ControlError::Closed)?;
        let (caller, answer) = oneshot::channel();
        let sequence = {
            let mut table = self.table();
            if table.closed {
                return Err(ControlError::Closed);
            }
            table.next_sequence += 1;
            let sequence = table.next_sequence;
            table.pending.insert(sequence, Pending { caller, _permit: permit });
            sequence
        };
        // Until it is sent no answer can come, so a caller that goes away before that takes its entry along.
        let unsent = Unsent { control: self, sequence };
        let bytes = frame::encode(&Call { sequence, request }).map_err(ControlError::TooLarge)?;
        self.send(&bytes, descriptors).await?;
        std::mem::forget(unsent);
        answer.await.unwrap_or(Err(ControlError::Closed))
    }

    async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        let sent = self
            .0
            .socket
            .async_io(Interest::WRITABLE, |socket| {
                frame::send(socket.as_fd(), bytes, descriptors, SendFlags::DONTWAIT).map_err(into_io)
            })
            .await;
        sent.map_err(|_| ControlError::Closed)
    }

    /// Reads and hands out messages until the channel ends; returns why it did.
    pub(crate) async fn serve(&self) -> FrameError {
        let mut buffer = vec![0; MESSAGE_BYTES];
        let error = loop {
            let received = self
                .0
                .socket
                .async_io(Interest::READABLE, |socket| {
                    Ok(match frame::receive(socket.as_fd(), &mut buffer, RecvFlags::DONTWAIT) {
                        Err(FrameError::Socket(errno)) => return Err(errno.into()),
                        other => other,
                    })
                })
                .await;
            let decoded = match received {
                Ok(Ok((length, descriptors))) => {
                    frame::decode::<FromInit>(&buffer[..length]).map(|message| (message, descriptors))
                }
                Ok(Err(error)) => Err(error),
                Err(error) => Err(FrameError::Socket(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
            };
            match decoded {
                Ok((message, descriptors)) => self.dispatch(message, descriptors),
                Err(error) => break error,
            }
        };
        let mut table = self.table();
        table.closed = true;
        table.pending.clear();
        table.execs.clear();
        error
    }

    fn dispatch(&self, message: FromInit, descriptors: Vec<OwnedFd>) {
        match message {
            FromInit::Answer { sequence, reply } => self.answer(sequence, reply, descriptors),
            FromInit::Notice(notice) => match *notice {
                Notice::Event(event) => {
                    // Nobody listening is no error.
                    let _ = self.0.events.send(Arc::new(event));
                }
                Notice::ExecEnded { exec, cause } => {
                    if let Some(listener) = self.table().execs.remove(&exec) {
                        let _ = listener.send(cause);
                    }
                }
                // PID 1 stops this service in its turn; until then clients may watch the shutdown.
                Notice::ShuttingDown => {}
                // These are for other roles; a channel of role api never gets them.
                Notice::LogStream { .. }
                | Notice::Attach { .. }
                | Notice::AttachEnd
                | Notice::Detach { .. }
                | Notice::LogRemove { .. }
                | Notice::LogRunEnded { .. }
                | Notice::Record { .. }
                | Notice::Probe { .. }
                | Notice::ProbeEnd { .. } => {}
            },
        }
    }

    fn answer(&self, sequence: u64, reply: Reply, descriptors: Vec<OwnedFd>) {
        let mut table = self.table();
        let Some(pending) = table.pending.remove(&sequence) else { return };
        let mut started = None;
        let answer = match reply {
            Reply::Refused(refused) => Err(ControlError::Refused(refused)),
            Reply::ExecStarted { exec } => {
                started = Some(exec);
                let (ends, ended) = oneshot::channel();
                if table.execs.len() < EXECS {
                    table.execs.insert(exec, ends);
                }
                Ok(Answer { reply: Reply::ExecStarted { exec }, descriptors, ended: Some(ended) })
            }
            reply @ (Reply::Done
            | Reply::Created { .. }
            | Reply::Page { .. }
            | Reply::Inspected(_)
            | Reply::Input { .. }
            | Reply::Explained(_)
            | Reply::Descriptor
            | Reply::Reexecuted { .. }) => Ok(Answer { reply, descriptors, ended: None }),
        };
        drop(table);
        if pending.caller.send(answer).is_err()
            && let Some(exec) = started
        {
            self.abandon(exec);
        }
    }

    /// Kills a session whose caller went away before it was told of it.
    fn abandon(&self, exec: u64) {
        let mut table = self.table();
        table.execs.remove(&exec);
        table.next_sequence += 1;
        let sequence = table.next_sequence;
        drop(table);
        if let Ok(bytes) = frame::encode(&Call { sequence, request: Request::KillExec { exec, signal: 9 } }) {
            // Nobody waits for the answer. If the socket is full the session ends with its descriptors, which are closed here.
            let _ = frame::send(self.0.socket.as_fd(), &bytes, &[], SendFlags::DONTWAIT);
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn into_io(error: FrameError) -> std::io::Error {
    match error {
        FrameError::Socket(errno) => errno.into(),
        error @ (FrameError::TooLong(_)
        | FrameError::Version(_)
        | FrameError::Malformed(_)
        | FrameError::Descriptors
        | FrameError::Closed) => std::io::Error::other(error),
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;

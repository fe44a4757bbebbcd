//! A service's end of its control channel to PID 1: whole messages, never waiting.
//!
//! PID 1 may be slow to read (it takes a bounded number of messages per wake-up), so what cannot be sent at once is kept in a bounded
//! queue and goes out when the socket takes it. The service's own loop does the waiting, by [`Channel::interest`].

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_protocol::control::{Call, FromInit, PENDING_REQUESTS, Request};
use byre_protocol::frame::{self, FrameError, MESSAGE_BYTES};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// PID 1 has not read for a long time.
    #[error("{PENDING_REQUESTS} requests wait for PID 1 already")]
    Full,
    /// The socket or a message is broken.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// A message that waits, with its descriptors.
struct Waiting {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// The control channel.
pub struct Channel {
    socket: OwnedFd,
    buffer: Vec<u8>,
    waiting: VecDeque<Waiting>,
    next_sequence: u64,
}

impl Channel {
    /// Takes the descriptor named `control`.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, buffer: vec![0; MESSAGE_BYTES], waiting: VecDeque::new(), next_sequence: 1 }
    }

    /// The next message of PID 1, or `None` if there is none now.
    ///
    /// # Errors
    /// If the channel is closed or what came is no message; the service then ends, and PID 1 starts it anew with a fresh channel.
    pub fn receive(&mut self) -> Result<Option<(FromInit, Vec<OwnedFd>)>, FrameError> {
        match frame::receive(self.socket.as_fd(), &mut self.buffer, RecvFlags::DONTWAIT) {
            Ok((length, descriptors)) => {
                let bytes = self.buffer.get(..length).unwrap_or_default();
                Ok(Some((frame::decode(bytes)?, descriptors)))
            }
            Err(FrameError::Socket(Errno::AGAIN | Errno::INTR)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a request, now or as soon as PID 1 reads; returns the number that its answer will have.
    ///
    /// # Errors
    /// If too many wait already, or the socket fails.
    pub fn send(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> Result<u64, ChannelError> {
        if self.waiting.len() >= PENDING_REQUESTS {
            return Err(ChannelError::Full);
        }
        let sequence = self.next_sequence;
        let bytes = frame::encode(&Call { sequence, request })?;
        self.next_sequence += 1;
        self.waiting.push_back(Waiting { bytes, descriptors });
        self.flush()?;
        Ok(sequence)
    }

    /// How many more requests [`Self::send`] takes.
    #[must_use]
    pub fn room(&self) -> usize {
        PENDING_REQUESTS.saturating_sub(self.waiting.len())
    }

    /// Whether everything was taken by the socket.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn flush(&mut self) -> Result<(), FrameError> {
        while let Some(first) = self.waiting.front() {
            let descriptors: Vec<BorrowedFd<'_>> = first.descriptors.iter().map(AsFd::as_fd).collect();
            match frame::send(self.socket.as_fd(), &first.bytes, &descriptors, SendFlags::DONTWAIT) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(FrameError::Socket(Errno::AGAIN | Errno::INTR | Errno::NOBUFS)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What to wait for on the channel's descriptor.
    #[must_use]
    pub fn interest(&self) -> PollFlags {
        if self.waiting.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use byre_protocol::control::{Notice, Reply};

    use super::*;

    fn pair() -> (Channel, OwnedFd) {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (Channel::new(ours), theirs)
    }

    #[test]
    fn what_the_socket_does_not_take_waits_in_order_and_is_bounded() {
        let (mut channel, init) = pair();
        let mut sent = 0_u64;
        while channel.send(Request::Recorded { record: sent }, vec![]).is_ok() {
            sent += 1;
        }
        assert_eq!(channel.room(), 0);
        assert!(channel.interest().contains(PollFlags::OUT));
        let mut buffer = vec![0; MESSAGE_BYTES];
        for expected in 0..sent {
            let (length, _) = frame::receive(init.as_fd(), &mut buffer, RecvFlags::DONTWAIT).unwrap();
            let call: Call = frame::decode(&buffer[..length]).unwrap();
            assert_eq!(call, Call { sequence: expected + 1, request: Request::Recorded { record: expected } });
            channel.flush().unwrap();
        }
        assert!(channel.is_flushed());
    }

    #[test]
    fn messages_of_init_arrive_one_by_one_and_its_end_is_an_error() {
        let (mut channel, init) = pair();
        assert!(channel.receive().unwrap().is_none());
        let answer = FromInit::Answer { sequence: 3, reply: Reply::Done };
        let notice = FromInit::Notice(Box::new(Notice::ShuttingDown));
        for message in [&answer, &notice] {
            frame::send(init.as_fd(), &frame::encode(message).unwrap(), &[], SendFlags::empty()).unwrap();
        }
        assert_eq!(channel.receive().unwrap().unwrap().0, answer);
        assert_eq!(channel.receive().unwrap().unwrap().0, notice);
        drop(init);
        assert!(matches!(channel.receive(), Err(FrameError::Closed)));
    }
}

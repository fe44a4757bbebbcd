//! Control channels: datagrams to and from the node's services. Sending never waits; what a service does not read is queued within a
//! bound, and behind the bound the service is cut off and restarted.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_core::{CallContext, ChannelId, Event};
use byre_plan::WorkloadId;
use byre_protocol::control::{Call, FromInit};
use byre_protocol::definition::Role;
use byre_protocol::frame::{self, FrameError, MESSAGE_BYTES};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::Supervisor;
use super::sources::{Source, Sources, Token};

/// Calls of one channel served in one wake-up, so that a flood on one channel does not starve the others.
const CALLS_PER_WAKE_UP: usize = 16;
/// Answers that a service may leave unread before its further calls are left unread, too.
const UNREAD_ANSWERS: usize = 64;
/// Messages and bytes queued for a service before it is cut off: a list of every workload, or all of them ending at once.
pub(crate) const QUEUED_MESSAGES: usize = 8192;
/// See [`QUEUED_MESSAGES`].
const QUEUED_BYTES: usize = 32 << 20;
/// Socket buffer of each end.
const SOCKET_BYTES: usize = 1 << 20;

pub(crate) struct Channel {
    pub(crate) fd: OwnedFd,
    token: Token,
    pub(crate) workload: WorkloadId,
    pub(crate) queue: VecDeque<Message>,
    queued_bytes: usize,
    interest: EventFlags,
}

/// A message that was not sent yet, and the descriptor that goes with it.
type Message = (Vec<u8>, Option<OwnedFd>);

/// All channels.
pub(crate) struct Channels {
    pub(crate) open: BTreeMap<ChannelId, Channel>,
    pub(crate) next: u64,
    pub(crate) buffer: Vec<u8>,
}

impl Channels {
    pub(crate) fn new() -> Self {
        Self { open: BTreeMap::new(), next: 1, buffer: vec![0; MESSAGE_BYTES] }
    }

    /// Takes over a channel from the program before, with what its service has not read yet.
    pub(crate) fn take(
        &mut self,
        id: ChannelId,
        workload: WorkloadId,
        fd: OwnedFd,
        queue: VecDeque<Message>,
        sources: &mut Sources,
    ) -> Result<(), Errno> {
        let interest = interest(queue.len());
        let token = sources.add(fd.as_fd(), Source::Channel(id), interest)?;
        let queued_bytes = queue.iter().map(|(bytes, _)| bytes.len()).fold(0, usize::saturating_add);
        self.open.insert(id, Channel { fd, token, workload, queue, queued_bytes, interest });
        Ok(())
    }
}

/// What to wait for on a channel with so many messages queued.
fn interest(queued: usize) -> EventFlags {
    let mut interest = EventFlags::empty();
    if queued <= UNREAD_ANSWERS {
        interest |= EventFlags::IN;
    }
    if queued > 0 {
        interest |= EventFlags::OUT;
    }
    interest
}

enum Sent {
    Whole,
    Later,
    Broken,
}

fn try_send(fd: BorrowedFd<'_>, bytes: &[u8], descriptor: Option<&OwnedFd>) -> Sent {
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(|fd| fd.as_fd()).collect();
    match frame::send(fd, bytes, &descriptors, SendFlags::DONTWAIT) {
        Ok(()) => Sent::Whole,
        Err(FrameError::Socket(Errno::AGAIN | Errno::NOBUFS)) => Sent::Later,
        Err(
            FrameError::Socket(_)
            | FrameError::Closed
            | FrameError::TooLong(_)
            | FrameError::Version(_)
            | FrameError::Malformed(_)
            | FrameError::Descriptors,
        ) => Sent::Broken,
    }
}

impl Supervisor {
    /// Makes a channel for a service that is about to start; returns the service's end.
    pub(super) fn open_channel(&mut self, workload: WorkloadId, role: Role) -> Result<(ChannelId, OwnedFd), Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        for end in [&ours, &theirs] {
            // A smaller buffer only means that queues are used earlier.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(end, SOCKET_BYTES);
        }
        let id = ChannelId(self.channels.next);
        self.channels.next = self.channels.next.saturating_add(1);
        let interest = EventFlags::IN;
        let token = self.sources.add(ours.as_fd(), Source::Channel(id), interest)?;
        let channel = Channel { fd: ours, token, workload, queue: VecDeque::new(), queued_bytes: 0, interest };
        self.channels.open.insert(id, channel);
        self.queue.push_back(Event::ChannelOpened { channel: id, role });
        Ok((id, theirs))
    }

    pub(super) fn send_with(&mut self, id: ChannelId, message: &FromInit, descriptor: Option<OwnedFd>) {
        let Some(channel) = self.channels.open.get_mut(&id) else { return };
        let bytes = match frame::encode(message) {
            Ok(bytes) => bytes,
            Err(error) => return self.say(&format!("a message was not sent: {error}")),
        };
        if channel.queue.is_empty() {
            match try_send(channel.fd.as_fd(), &bytes, descriptor.as_ref()) {
                Sent::Whole => return,
                Sent::Later => {}
                Sent::Broken => return self.cut_off(id, "it does not take messages"),
            }
        }
        channel.queued_bytes = channel.queued_bytes.saturating_add(bytes.len());
        channel.queue.push_back((bytes, descriptor));
        if channel.queue.len() > QUEUED_MESSAGES || channel.queued_bytes > QUEUED_BYTES {
            return self.cut_off(id, "it does not read its messages");
        }
        self.update_interest(id);
    }

    pub(super) fn channel_ready(&mut self, id: ChannelId) {
        self.flush(id);
        for _ in 0..CALLS_PER_WAKE_UP {
            let Some(channel) = self.channels.open.get(&id) else { return };
            if channel.queue.len() > UNREAD_ANSWERS {
                break;
            }
            match frame::receive(channel.fd.as_fd(), &mut self.channels.buffer, RecvFlags::DONTWAIT) {
                Ok((length, descriptors)) => {
                    let bytes = self.channels.buffer.get(..length).unwrap_or_default();
                    match frame::decode::<Call>(bytes) {
                        Ok(call) => self.call(id, call, descriptors),
                        Err(error) => return self.cut_off(id, &error.to_string()),
                    }
                }
                Err(FrameError::Socket(Errno::AGAIN | Errno::INTR)) => break,
                Err(FrameError::Closed) => return self.close_channel(id),
                Err(error) => return self.cut_off(id, &error.to_string()),
            }
        }
        self.update_interest(id);
    }

    fn call(&mut self, channel: ChannelId, call: Call, descriptors: Vec<OwnedFd>) {
        let context = CallContext { channel, descriptors: descriptors.len(), fresh: super::setup::random() };
        self.call_descriptors = descriptors;
        self.step(Event::Called { context, call: Box::new(call) });
        self.drain_queue();
    }

    fn flush(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.open.get_mut(&id) else { return };
        while let Some((bytes, descriptor)) = channel.queue.front() {
            match try_send(channel.fd.as_fd(), bytes, descriptor.as_ref()) {
                Sent::Whole => {
                    channel.queued_bytes = channel.queued_bytes.saturating_sub(bytes.len());
                    channel.queue.pop_front();
                }
                Sent::Later => break,
                Sent::Broken => return self.cut_off(id, "it does not take messages"),
            }
        }
    }

    fn update_interest(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.open.get_mut(&id) else { return };
        let interest = interest(channel.queue.len());
        if interest != channel.interest {
            channel.interest = interest;
            self.sources.modify(channel.fd.as_fd(), &channel.token, interest);
        }
    }

    /// The service's end is closed: it ended, or will be noticed when it does.
    pub(super) fn close_channel(&mut self, id: ChannelId) {
        if let Some(channel) = self.channels.open.remove(&id) {
            self.sources.remove(channel.fd.as_fd(), channel.token);
            self.queue.push_back(Event::ChannelClosed(id));
        }
    }

    /// A service that floods, lies or does not read is killed; its restart policy does the rest.
    fn cut_off(&mut self, id: ChannelId, why: &str) {
        let Some(workload) = self.channels.open.get(&id).map(|channel| channel.workload) else { return };
        let name =
            self.core.workload(workload).map(|workload| workload.definition().name.to_string()).unwrap_or_default();
        self.say(&format!("service {name} is cut off: {why}"));
        self.close_channel(id);
        if let Some(run) =
            self.kept.get(&workload).and_then(|kept| kept.run.as_ref()).filter(|run| run.channel == Some(id))
        {
            let _ = byre_launch::cgroup::kill(run.cgroup.as_fd());
        }
    }
}

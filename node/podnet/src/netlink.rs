//! Netlink by hand: messages with nested attributes, one question at a time, with the kernel's answer read to its end.
//!
//! Everything sent here is made here; everything received comes from the kernel, and is still read by length. Sockets block, with a limit:
//! the kernel answers at once or not at all.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with, sockopt,
};

/// Bytes of one answer: the kernel writes at most 32 KiB at a time.
const BUFFER_BYTES: usize = 64 * 1024;
/// Bytes that wait in a socket: a whole rule set, and its acknowledgements.
const SOCKET_BYTES: usize = 4 << 20;
/// How long the kernel may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// NLM_F_REQUEST, _ACK, _EXCL, _CREATE, _DUMP, _REPLACE, _APPEND of linux/netlink.h.
pub(crate) const ACK: u16 = 4;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const APPEND: u16 = 0x800;
const REQUEST: u16 = 1;
/// NLMSG_ERROR and NLMSG_DONE.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;
const HEADER_BYTES: usize = 16;

/// Bytes of one message under construction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// Begins with a fixed header, such as `ifinfomsg`.
    pub(crate) fn with(fixed: &[u8]) -> Self {
        let mut this = Self(fixed.to_vec());
        this.pad();
        this
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute.
    pub(crate) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    /// Adds a text that ends with NUL.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Adds a number in the machine's order.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a number in the network's order, as nftables has them.
    pub(crate) fn big(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds attributes inside an attribute.
    pub(crate) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.put(kind | NESTED, &inner.0)
    }
}

/// Attributes of a received message, as kind and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, _) = bytes.split_first_chunk::<4>()?;
        let [l0, l1, k0, k1] = *head;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & !NESTED, value))
    })
}

/// A message with its header.
pub(crate) fn message(kind: u16, flags: u16, sequence: u32, content: &Attributes) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + content.0.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content.0.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&content.0);
    bytes
}

/// A netlink socket of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens one of this protocol (`NETLINK_ROUTE` 0, `NETLINK_NETFILTER` 12).
    pub(crate) fn open(protocol: u32) -> Result<Self, Errno> {
        let protocol = std::num::NonZeroU32::new(protocol).map(rustix::net::Protocol::from_raw);
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE))?;
        // A smaller one only means smaller rule sets.
        let _ = sockopt::set_socket_send_buffer_size(&fd, SOCKET_BYTES);
        let _ = sockopt::set_socket_recv_buffer_size(&fd, SOCKET_BYTES);
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { fd, sequence: 1 })
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Asks, and returns the content of the first answer; empty if the kernel only says that it is done.
    pub(crate) fn ask(&mut self, kind: u16, flags: u16, content: &Attributes) -> Result<Vec<u8>, Errno> {
        let sequence = self.next();
        send_whole(self.fd.as_fd(), &message(kind, flags | ACK, sequence, content))?;
        let mut first = Vec::new();
        loop {
            let mut buffer = vec![0; BUFFER_BYTES];
            let (length, _) = recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
            for (kind, number, content) in messages(buffer.get(..length).unwrap_or_default()) {
                if number != sequence {
                    continue;
                }
                match kind {
                    ERROR => return error_of(content).map(|()| first),
                    DONE => return Ok(first),
                    _ if first.is_empty() => first = content.to_vec(),
                    _ => {}
                }
            }
        }
    }

    /// Sends several messages as one, of which only the first and last numbers are known, and reads acknowledgements until that of the last.
    /// The first error counts.
    pub(crate) fn transact(&mut self, bytes: &[u8], last: u32) -> Result<(), Errno> {
        send_whole(self.fd.as_fd(), bytes)?;
        let mut failed = Ok(());
        loop {
            let mut buffer = vec![0; BUFFER_BYTES];
            let (length, _) = match recv(&self.fd, &mut buffer[..], RecvFlags::empty()) {
                // A transaction that fails as a whole may be acknowledged by its errors alone.
                Err(Errno::AGAIN) if failed.is_err() => return failed,
                received => received?,
            };
            for (kind, number, content) in messages(buffer.get(..length).unwrap_or_default()) {
                if kind != ERROR {
                    continue;
                }
                if let (Err(errno), Ok(())) = (error_of(content), failed) {
                    failed = Err(errno);
                }
                if number == last || failed.is_err() {
                    return failed;
                }
            }
        }
    }
}

fn send_whole(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    let sent = send(socket, bytes, SendFlags::empty())?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
}

/// Messages of a datagram: kind, number, content.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER_BYTES>()?;
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let content = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes([s0, s1, s2, s3]), content))
    })
}

/// What an NLMSG_ERROR says; error 0 is an acknowledgement.
fn error_of(content: &[u8]) -> Result<(), Errno> {
    let code = content.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code.saturating_neg())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let inner = Attributes::default().text(1, "byre0");
        let outer = Attributes::with(&[1, 2]).number(3, 7).nest(5, &inner);
        assert_eq!(outer.0.len() % 4, 0);
        let read: Vec<(u16, Vec<u8>)> = attributes(&outer.0[4..]).map(|(kind, value)| (kind, value.to_vec())).collect();
        assert_eq!(read[0], (3, 7_u32.to_ne_bytes().to_vec()));
        assert_eq!(read[1], (5, inner.0.to_vec()));
        assert_eq!(attributes(&read[1].1).next().unwrap(), (1, &b"byre0\0"[..]));
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        assert_eq!(attributes(&[200, 0, 1, 0, 9]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(messages(&[255; 40]).count(), 0);
    }
}

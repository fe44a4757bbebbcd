//! Encoding of messages, and their way over sockets with descriptors.
//!
//! A control message is one datagram: a version byte, then postcard. Between services, where streams are used, a frame is a
//! 32-bit little-endian length and then the same bytes.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of all messages. A peer of another version is refused; both ends come from one verified root.
pub const VERSION: u8 = 8;
/// Longest message. A container with 2000 environment entries of 30 bytes and 100 mounts needs about 80 KiB; the kernel's default
/// socket buffer (208 KiB) takes one at once.
pub const MESSAGE_BYTES: usize = 128 * 1024;
/// Descriptors in one message: stdin, stdout, stderr.
pub const DESCRIPTORS: usize = 4;

/// Why a message was not sent or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MESSAGE_BYTES`].
    #[error("message of {0} bytes is longer than {MESSAGE_BYTES}")]
    TooLong(usize),
    /// Another version.
    #[error("message version {0} is not {VERSION}: both ends must come from one release")]
    Version(u8),
    /// Not a message.
    #[error("message cannot be decoded: {0}")]
    Malformed(#[from] postcard::Error),
    /// More descriptors than [`DESCRIPTORS`].
    #[error("message has more than {DESCRIPTORS} descriptors")]
    Descriptors,
    /// The socket failed.
    #[error("control socket: {0}")]
    Socket(#[from] rustix::io::Errno),
    /// The other end is closed.
    #[error("the other end of the control socket is closed")]
    Closed,
}

/// Encodes a message.
///
/// # Errors
/// [`FrameError::TooLong`] if it has more than [`MESSAGE_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let bytes = postcard::to_extend(message, vec![VERSION])?;
    if bytes.len() > MESSAGE_BYTES {
        return Err(FrameError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// Decodes a message; bytes behind it are an error.
///
/// # Errors
/// If it is too long, of another version, or malformed.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    if bytes.len() > MESSAGE_BYTES {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let (version, rest) = bytes.split_first().ok_or(FrameError::Closed)?;
    if *version != VERSION {
        return Err(FrameError::Version(*version));
    }
    let (message, behind) = postcard::take_from_bytes(rest)?;
    if behind.is_empty() { Ok(message) } else { Err(FrameError::Malformed(postcard::Error::DeserializeBadEncoding)) }
}

/// Longest file of PID 1's own records or definitions: a hundred services of 4 KiB.
pub const FILE_BYTES: usize = 512 * 1024;

/// Encodes a file of the verified root or of PID 1's own; like a message with a larger bound.
///
/// # Errors
/// [`FrameError::TooLong`] if it has more than [`FILE_BYTES`].
pub fn encode_file<T: Serialize>(content: &T) -> Result<Vec<u8>, FrameError> {
    let bytes = postcard::to_extend(content, vec![VERSION])?;
    if bytes.len() > FILE_BYTES { Err(FrameError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Decodes what [`encode_file`] made.
///
/// # Errors
/// If it is too long, of another version, or malformed.
pub fn decode_file<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    if bytes.len() > FILE_BYTES {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let (version, rest) = bytes.split_first().ok_or(FrameError::Closed)?;
    if *version != VERSION {
        return Err(FrameError::Version(*version));
    }
    Ok(postcard::from_bytes(rest)?)
}

/// Sends one encoded message with its descriptors. Does not wait when `flags` has DONTWAIT.
///
/// # Errors
/// The socket's error, `AGAIN` among them.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), FrameError> {
    if descriptors.len() > DESCRIPTORS {
        return Err(FrameError::Descriptors);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(FrameError::Descriptors);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message into `buffer` (which should have [`MESSAGE_BYTES`]); returns its length and descriptors, which are close-on-exec.
///
/// # Errors
/// `Closed` at end of file, `TooLong` if it was cut off, or the socket's error.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Vec<OwnedFd>), FrameError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags | RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(FrameError::TooLong(received.bytes));
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(FrameError::Descriptors);
    }
    if received.bytes == 0 {
        return Err(FrameError::Closed);
    }
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_message_and_its_descriptors_arrive_whole() {
        let (ours, theirs) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let bytes = encode(&"hello".to_owned()).unwrap();
        send(ours.as_fd(), &bytes, &[reader.as_fd()], SendFlags::empty()).unwrap();
        let mut buffer = vec![0; MESSAGE_BYTES];
        let (length, descriptors) = receive(theirs.as_fd(), &mut buffer, RecvFlags::empty()).unwrap();
        assert_eq!(decode::<String>(&buffer[..length]).unwrap(), "hello");
        assert_eq!(descriptors.len(), 1);
        drop(ours);
        assert!(matches!(receive(theirs.as_fd(), &mut buffer, RecvFlags::empty()), Err(FrameError::Closed)));
    }

    #[test]
    fn another_version_and_trailing_bytes_are_refused() {
        let mut bytes = encode(&7_u32).unwrap();
        bytes.push(0);
        assert!(decode::<u32>(&bytes).is_err());
        bytes.pop();
        bytes[0] = 99;
        assert!(matches!(decode::<u32>(&bytes), Err(FrameError::Version(99))));
    }
}

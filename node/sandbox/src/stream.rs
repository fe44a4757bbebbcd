//! Frames between services on stream sockets: a 32-bit little-endian length, then an encoded message (see `byre_protocol::peer`).
//!
//! For both ends, blocking or not: [`take`] looks into bytes that a non-blocking loop gathered, [`read`] and [`write()`] wait.

use std::io::{Read, Write};

use byre_protocol::frame::{self, FrameError, MESSAGE_BYTES};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the length before a message.
const LENGTH_BYTES: usize = 4;

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The message is malformed or too long.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The socket failed, or timed out.
    #[error("service socket: {0}")]
    Socket(#[from] std::io::Error),
}

/// A message as a frame.
///
/// # Errors
/// If it is too long.
pub fn framed<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let bytes = frame::encode(message)?;
    let length = u32::try_from(bytes.len()).map_err(|_| FrameError::TooLong(bytes.len()))?;
    let mut framed = Vec::with_capacity(LENGTH_BYTES + bytes.len());
    framed.extend_from_slice(&length.to_le_bytes());
    framed.extend_from_slice(&bytes);
    Ok(framed)
}

/// The message at the beginning of `gathered` and how many bytes it took, or `None` while it is not whole.
///
/// # Errors
/// If its length is out of bounds or it is malformed.
pub fn take<T: DeserializeOwned>(gathered: &[u8]) -> Result<Option<(T, usize)>, FrameError> {
    let Some((length, behind)) = gathered.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = checked_length(*length)?;
    match behind.get(..length) {
        Some(bytes) => Ok(Some((frame::decode(bytes)?, LENGTH_BYTES + length))),
        None => Ok(None),
    }
}

/// Waits for one message. `Ok(None)` is an orderly end before the first byte.
///
/// # Errors
/// If the socket fails or ends inside a frame, or the frame is malformed.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, StreamError> {
    let mut length = [0_u8; LENGTH_BYTES];
    let first = loop {
        match from.read(&mut length) {
            Ok(first) => break first,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(length.get_mut(first..).unwrap_or_default())?;
    let mut bytes = vec![0; checked_length(length)?];
    from.read_exact(&mut bytes)?;
    Ok(Some(frame::decode(&bytes)?))
}

/// Writes one message, waiting until all of it is taken.
///
/// # Errors
/// If it is too long or the socket fails.
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), StreamError> {
    Ok(to.write_all(&framed(message)?)?)
}

fn checked_length(bytes: [u8; LENGTH_BYTES]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_whole_in_pieces_and_bounded() {
        let mut bytes = framed(&"first".to_owned()).unwrap();
        write(&mut bytes, &"second".to_owned()).unwrap();
        for cut in 0..LENGTH_BYTES + 5 {
            assert!(take::<String>(&bytes[..cut]).unwrap().is_none());
        }
        let (first, used) = take::<String>(&bytes).unwrap().unwrap();
        assert_eq!(first, "first");
        let mut rest = &bytes[used..];
        assert_eq!(read::<String>(&mut rest).unwrap().as_deref(), Some("second"));
        assert!(read::<String>(&mut rest).unwrap().is_none());
        assert!(matches!(take::<String>(&[0xff; 8]), Err(FrameError::TooLong(_))));
        assert!(read::<String>(&mut &bytes[..3]).is_err());
    }
}

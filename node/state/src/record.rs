//! The form of the journal's records: length and CRC-32 (both little-endian, 32 bits), then the encoded change.
//!
//! The CRC covers the length too, so that a length that rotted is not believed. Reading stops at the first record that does not
//! hold; whether that is the end of an interrupted write or damage is told apart here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use byre_protocol::control::Change;
use byre_protocol::frame::{self, FrameError, MESSAGE_BYTES};

/// First bytes of a journal: a name and the version of this form.
pub(crate) const MAGIC: [u8; 8] = *b"BYREJNL1";
/// Bytes before a record's content.
const HEADER_BYTES: usize = 8;

/// A record as it stands in the file.
pub(crate) fn encode(change: &Change) -> Result<Vec<u8>, FrameError> {
    let content = frame::encode(change)?;
    let length = u32::try_from(content.len()).map_err(|_| FrameError::TooLong(content.len()))?.to_le_bytes();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&checksum(length, &content).to_le_bytes());
    bytes.extend_from_slice(&content);
    Ok(bytes)
}

fn checksum(length: [u8; 4], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(content);
    hasher.finalize()
}

/// What lies at one place of the file.
#[derive(Debug)]
pub(crate) enum Found {
    /// A record of this many bytes.
    Record(Box<Change>, u64),
    /// The file ends here.
    End,
    /// A record whose write was interrupted: nothing behind it can have been acknowledged.
    Torn,
    /// Not a record, and more follows.
    Damaged,
}

/// Reads the record at `offset` of a file of `length` bytes.
pub(crate) fn read(file: &File, offset: u64, length: u64) -> io::Result<Found> {
    let left = length.saturating_sub(offset);
    if left == 0 {
        return Ok(Found::End);
    }
    let mut header = [0_u8; HEADER_BYTES];
    if left < HEADER_BYTES as u64 {
        return Ok(Found::Torn);
    }
    file.read_exact_at(&mut header, offset)?;
    let [l0, l1, l2, l3, c0, c1, c2, c3] = header;
    let length_bytes = [l0, l1, l2, l3];
    let content_bytes = u64::from(u32::from_le_bytes(length_bytes));
    let whole = HEADER_BYTES as u64 + content_bytes;
    if content_bytes > MESSAGE_BYTES as u64 || whole > left {
        // A write that was cut off leaves a good length and too few bytes, or bytes that never reached the disk and read as zero.
        let plausible = content_bytes <= MESSAGE_BYTES as u64;
        return Ok(if plausible || is_zero(file, offset, length)? { Found::Torn } else { Found::Damaged });
    }
    let mut content = vec![0; usize::try_from(content_bytes).unwrap_or(MESSAGE_BYTES)];
    file.read_exact_at(&mut content, offset + HEADER_BYTES as u64)?;
    if checksum(length_bytes, &content) == u32::from_le_bytes([c0, c1, c2, c3])
        && let Ok(change) = frame::decode(&content)
    {
        return Ok(Found::Record(Box::new(change), whole));
    }
    let torn = whole == left || is_zero(file, offset, length)?;
    Ok(if torn { Found::Torn } else { Found::Damaged })
}

/// Whether everything from `offset` on is zero: a file whose length reached the disk before its bytes did.
fn is_zero(file: &File, mut offset: u64, length: u64) -> io::Result<bool> {
    let mut buffer = [0_u8; 4096];
    while offset < length {
        let wanted = usize::try_from(length - offset).unwrap_or(usize::MAX).min(buffer.len());
        let piece = &mut buffer[..wanted];
        file.read_exact_at(piece, offset)?;
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        offset += wanted as u64;
    }
    Ok(true)
}

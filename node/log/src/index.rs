//! The side index of a segment: which byte was taken in when, and what was lost before it.
//!
//! A header (name, position of the segment's first byte in the whole stream), then marks of a fixed size. A mark is written
//! before the bytes that it speaks of, so an end of the service at any instant leaves at most a mark without bytes, which the next one
//! overwrites. The index is never needed to read the bytes: without it they have the segment's modification time. Lines are not
//! marked; a reader that wants the last ones looks for line ends in the bytes that it sends anyway.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of one mark: four 64-bit little-endian numbers.
const MARK_BYTES: u64 = 32;
/// Bytes of the header.
const HEADER_BYTES: u64 = 16;
const MAGIC: [u8; 8] = *b"BYRELOG1";
/// Highest position that is believed: no stream has as many bytes, and a file's length can be added to it.
const POSITIONS: u64 = 1 << 62;
/// Marks of one index. A writer of tiny pieces would otherwise make an index larger than its segment; the segment is rotated instead (2 MiB).
pub(crate) const MARKS: u64 = 65_536;

/// What is known of the bytes from `offset` on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// First byte, in the segment.
    pub(crate) offset: u64,
    /// When they were taken in.
    pub(crate) wall_ms: u64,
    /// When they were taken in.
    pub(crate) boot_ms: u64,
    /// Bytes lost just before them.
    pub(crate) lost: u64,
}

impl Mark {
    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (piece, number) in bytes.chunks_exact_mut(8).zip([self.offset, self.wall_ms, self.boot_ms, self.lost]) {
            piece.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut numbers = [0; 4];
        for (number, piece) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
            *number = u64::from_le_bytes(piece.try_into().unwrap_or_default());
        }
        let [offset, wall_ms, boot_ms, lost] = numbers;
        Self { offset, wall_ms, boot_ms, lost }
    }
}

/// An open index.
#[derive(Debug)]
pub(crate) struct Index {
    file: File,
    /// Position of the segment's first byte in the whole stream.
    pub(crate) base: u64,
}

impl Index {
    /// Makes an empty one.
    pub(crate) fn create(path: &Path, base: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut header = [0; 16];
        header[..8].copy_from_slice(&MAGIC);
        header[8..].copy_from_slice(&base.to_le_bytes());
        file.write_all_at(&header, 0)?;
        Ok(Self { file, base })
    }

    /// Opens one; `None` if it is missing or none.
    pub(crate) fn open(path: &Path, write: bool) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).write(write).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut header = [0; 16];
        if file.metadata()?.len() < HEADER_BYTES {
            return Ok(None);
        }
        file.read_exact_at(&mut header, 0)?;
        let (magic, base) = header.split_at(8);
        let base = u64::from_le_bytes(base.try_into().unwrap_or_default());
        Ok((magic == MAGIC && base <= POSITIONS).then_some(Self { file, base }))
    }

    /// How many marks it has.
    pub(crate) fn count(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().saturating_sub(HEADER_BYTES) / MARK_BYTES)
    }

    /// One mark, or `None` behind the last.
    pub(crate) fn mark(&self, slot: u64) -> io::Result<Option<Mark>> {
        let mut bytes = [0; 32];
        match self.file.read_exact_at(&mut bytes, HEADER_BYTES + slot * MARK_BYTES) {
            Ok(()) => Ok(Some(Mark::from_bytes(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes one mark.
    pub(crate) fn put(&self, slot: u64, mark: Mark) -> io::Result<()> {
        self.file.write_all_at(&mark.to_bytes(), HEADER_BYTES + slot * MARK_BYTES)
    }

    /// Cuts off what does not hold after a crash: marks behind the segment's end, or out of order. Returns the last one that holds, and how many do.
    pub(crate) fn recover(&self, length: u64) -> io::Result<(Option<Mark>, u64)> {
        let mut last: Option<Mark> = None;
        let mut slots = 0;
        while let Some(mark) = self.mark(slots)? {
            let in_order = match last {
                Some(last) => mark.offset > last.offset && mark.wall_ms >= last.wall_ms,
                None => mark.offset == 0,
            };
            if mark.offset > length || !in_order {
                break;
            }
            last = Some(mark);
            slots += 1;
        }
        self.file.set_len(HEADER_BYTES + slots * MARK_BYTES)?;
        Ok((last, slots))
    }

    /// The last slot whose mark satisfies a condition that holds for a first part of all marks; `None` if it holds for none.
    pub(crate) fn last_slot(&self, holds: impl Fn(Mark) -> bool) -> io::Result<Option<u64>> {
        let (mut low, mut high) = (0, self.count()?);
        while low < high {
            let middle = low.midpoint(high);
            match self.mark(middle)? {
                Some(mark) if holds(mark) => low = middle + 1,
                Some(_) | None => high = middle,
            }
        }
        Ok(low.checked_sub(1))
    }
}

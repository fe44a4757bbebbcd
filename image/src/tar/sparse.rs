//! Sparse files: the map of stored parts in its four forms (old GNU; PAX 0.0, 0.1, 1.0 of GNU tar), and its check.
//!
//! A map is checked before any use: parts in order, inside the file, and exactly as many bytes as are stored.

use std::io::{self, Read};

use super::header::{BLOCK_LEN, number};
use super::pax::decimal;

/// Most parts of one file: 16 bytes each make 2 MiB, and no file of an image comes near.
pub(super) const MAX_SEGMENTS: usize = 1 << 17;
/// Digits of the largest number in a map, with its newline.
const MAX_NUMBER_LEN: usize = 21;

/// Bytes of a sparse file that are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// `GNU.sparse.*` records.
#[derive(Default, Debug)]
pub(super) struct SparseKeys {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) declared_count: Option<u64>,
    pub(super) pending_offset: Option<u64>,
    pub(super) map: Option<Vec<Segment>>,
}

impl SparseKeys {
    pub(super) fn is_1_0(&self) -> bool {
        self.major == Some(1) && self.minor.unwrap_or(0) == 0
    }

    /// The map of form 0.0 or 0.1, if this entry has one.
    pub(super) fn take_map(&mut self) -> Option<Result<Vec<Segment>, &'static str>> {
        if self.major.unwrap_or(0) != 0 {
            return Some(Err("a sparse form that is not supported"));
        }
        let claimed = self.declared_count.is_some() || self.pending_offset.is_some();
        match self.map.take() {
            None if claimed => Some(Err("a sparse map without its parts")),
            None => None,
            Some(_) if self.pending_offset.is_some() => Some(Err("a sparse map without its parts")),
            Some(map) if self.declared_count.is_some_and(|count| count != map.len() as u64) => {
                Some(Err("a sparse map that miscounts its parts"))
            }
            Some(map) => Some(Ok(map)),
        }
    }
}

/// Why a stored map was refused.
pub(super) enum MapError {
    Io(io::Error),
    Map(&'static str),
}

/// Reads `(offset, length)` pairs of 12-byte fields, up to the first empty one. `None` if one is unreadable.
pub(super) fn read_gnu_pairs(fields: &[u8], segments: &mut Vec<Segment>) -> Option<()> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        segments.push(Segment { offset: number(&pair[..12])?, length: number(&pair[12..])? });
    }
    Some(())
}

/// Adds the parts of one extension block; true if another follows.
pub(super) fn extend_gnu_map(block: &[u8; BLOCK_LEN], segments: &mut Vec<Segment>) -> Result<bool, &'static str> {
    read_gnu_pairs(&block[..504], segments).ok_or("the sparse map cannot be read")?;
    if segments.len() > MAX_SEGMENTS {
        return Err("a sparse map with too many parts");
    }
    Ok(block[504] != 0)
}

/// Reads the map that form 1.0 stores before the data: decimal lines, padded to a block.
pub(super) fn read_1_0_map(data: &mut impl Read) -> Result<Vec<Segment>, MapError> {
    let mut lines = Lines { data, block: [0; BLOCK_LEN], at: BLOCK_LEN };
    let count = lines.number()?;
    if count > MAX_SEGMENTS as u64 {
        return Err(MapError::Map("a sparse map with too many parts"));
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push(Segment { offset: lines.number()?, length: lines.number()? });
    }
    Ok(segments)
}

struct Lines<'a, R> {
    data: &'a mut R,
    block: [u8; BLOCK_LEN],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, MapError> {
        let mut text = Vec::with_capacity(MAX_NUMBER_LEN);
        loop {
            if self.at == BLOCK_LEN {
                self.data.read_exact(&mut self.block).map_err(MapError::Io)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return decimal(&text).ok_or(MapError::Map("the sparse map cannot be read"));
            }
            if text.len() >= MAX_NUMBER_LEN {
                return Err(MapError::Map("the sparse map cannot be read"));
            }
            text.push(byte);
        }
    }
}

/// Parts in order and inside the file, and together exactly the stored bytes.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), &'static str> {
    let (mut end, mut sum) = (0u64, 0u64);
    for segment in segments {
        let next = segment.offset.checked_add(segment.length).ok_or("a sparse part beyond any file")?;
        if segment.offset < end {
            return Err("sparse parts that overlap or are out of order");
        }
        end = next;
        sum = sum.saturating_add(segment.length);
    }
    if end > size {
        return Err("a sparse part beyond the end of its file");
    }
    if sum != stored {
        return Err("a sparse map that does not match the stored bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_lie_are_refused() {
        let seg = |offset, length| Segment { offset, length };
        assert!(check(&[seg(0, 4), seg(8, 4)], 12, 8).is_ok());
        assert!(check(&[seg(0, 4), seg(2, 4)], 12, 8).is_err());
        assert!(check(&[seg(0, 4), seg(8, 5)], 12, 9).is_err());
        assert!(check(&[seg(0, 4)], 12, 5).is_err());
        assert!(check(&[seg(u64::MAX, 4)], 12, 4).is_err());
    }
}

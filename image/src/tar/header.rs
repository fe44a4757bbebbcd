//! One 512-byte tar header block: its fields as written, nothing interpreted beyond their encoding.
//!
//! Layout: POSIX.1-1988 ustar, and the GNU variant for sparse maps and base-256 numbers.

use super::sparse::{self, Segment};

/// Every header and every file is padded to this.
pub(super) const BLOCK_LEN: usize = 512;
/// The largest size that eleven octal digits hold.
pub(super) const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const MTIME: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const LINK_NAME: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..263;
const MAJOR: std::ops::Range<usize> = 329..337;
const MINOR: std::ops::Range<usize> = 337..345;
const PREFIX: std::ops::Range<usize> = 345..500;
/// Schily's star keeps times behind a shorter prefix and marks that at the end of the block.
const STAR_PREFIX: std::ops::Range<usize> = 345..476;
const STAR_MARK: std::ops::Range<usize> = 508..512;
const GNU_SPARSE: std::ops::Range<usize> = 386..482;
const GNU_EXTENDED: usize = 482;
const GNU_REAL_SIZE: std::ops::Range<usize> = 483..495;

/// A header block.
pub(super) struct Header {
    block: [u8; BLOCK_LEN],
}

impl Header {
    pub(super) fn new(block: [u8; BLOCK_LEN]) -> Self {
        Self { block }
    }

    /// Old writers summed signed bytes; both sums are accepted, as everywhere.
    pub(super) fn checksum_ok(&self) -> bool {
        let Some(stated) = number(&self.block[CHECKSUM]).and_then(|n| i64::try_from(n).ok()) else { return false };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in self.block.iter().enumerate() {
            let byte = if CHECKSUM.contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        stated == unsigned || stated == signed
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[KIND]
    }

    /// Name, with the ustar prefix.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.block[NAME]);
        if &self.block[MAGIC] != b"ustar\0" {
            return name.to_vec();
        }
        let prefix = if &self.block[STAR_MARK] == b"tar\0" { STAR_PREFIX } else { PREFIX };
        let prefix = until_nul(&self.block[prefix]);
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        until_nul(&self.block[LINK_NAME]).to_vec()
    }

    pub(super) fn mode(&self) -> Option<u32> {
        number(&self.block[MODE]).and_then(|mode| u32::try_from(mode).ok())
    }

    pub(super) fn uid(&self) -> Option<u64> {
        number(&self.block[UID])
    }

    pub(super) fn gid(&self) -> Option<u64> {
        number(&self.block[GID])
    }

    /// Stored bytes; `None` if unreadable or beyond the largest file.
    pub(super) fn size(&self) -> Option<u64> {
        number(&self.block[SIZE]).filter(|size| i64::try_from(*size).is_ok())
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        signed_number(&self.block[MTIME])
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        let field = |range| number(&self.block[range]).and_then(|n| u32::try_from(n).ok());
        Some((field(MAJOR)?, field(MINOR)?))
    }

    /// The old GNU sparse form: file size, first parts, and whether a block with more follows.
    pub(super) fn gnu_sparse(&self) -> Option<(u64, Vec<Segment>, bool)> {
        let size = number(&self.block[GNU_REAL_SIZE])?;
        let mut segments = Vec::new();
        sparse::read_gnu_pairs(&self.block[GNU_SPARSE], &mut segments)?;
        Some((size, segments, self.block[GNU_EXTENDED] != 0))
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs, or GNU's big-endian base 256 when the first bit is set. Empty is 0.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    signed_number(field).and_then(|n| u64::try_from(n).ok())
}

fn signed_number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement of all bits but the mark.
        let negative = first & 0x40 != 0;
        let mut value = i128::from(first & 0x7f) - if negative { 0x80 } else { 0 };
        for byte in rest {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return i64::try_from(value).ok();
    }
    let text = field.trim_ascii_start();
    let text = text.split(|b| matches!(b, 0 | b' ')).next().unwrap_or_default();
    let mut value = 0i64;
    for digit in text {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(signed_number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(b"\x80\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }
}

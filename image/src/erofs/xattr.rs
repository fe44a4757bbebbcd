//! Extended attributes of one inode, in erofs's inline form.
//!
//! Which attributes an image may set is decided by [`crate::layer`]; here are only names that erofs can store.

use super::MAX_NAME_LEN;

/// Most bytes of one inode's attributes: the kernel's own limit for one value; ext4 without extra inodes holds 4 KiB.
const MAX_TOTAL_LEN: usize = 64 << 10;
/// Header before the entries: name filter, count of shared attributes, reserved.
pub(crate) const HEADER_LEN: usize = 12;
/// Before each name: its length, the prefix's index, the value's length.
pub(crate) const ENTRY_LEN: usize = 4;

/// Prefixes that are stored as a number.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Why an attribute was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum XattrFault {
    /// erofs has no place for it.
    #[error("an extended attribute whose name cannot be stored")]
    Name,
    /// The value, or all together, are too large.
    #[error("extended attributes of more than {MAX_TOTAL_LEN} bytes")]
    TooLarge,
}

/// The attributes of one inode, encoded; empty if there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xattrs {
    entries: Vec<(u8, Vec<u8>, Vec<u8>)>,
}

impl Xattrs {
    /// Adds or replaces one.
    ///
    /// # Errors
    /// [`XattrFault`].
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), XattrFault> {
        let (index, rest) = split_name(name).ok_or(XattrFault::Name)?;
        self.entries.retain(|(i, n, _)| (*i, n.as_slice()) != (index, rest));
        self.entries.push((index, rest.to_vec(), value.to_vec()));
        if value.len() > usize::from(u16::MAX) || self.encoded_len() > MAX_TOTAL_LEN {
            return Err(XattrFault::TooLarge);
        }
        Ok(())
    }

    /// Bytes that [`Xattrs::encode`] gives.
    pub(crate) fn encoded_len(&self) -> usize {
        if self.entries.is_empty() {
            return 0;
        }
        HEADER_LEN
            + self.entries.iter().map(|(_, n, v)| (ENTRY_LEN + n.len() + v.len()).next_multiple_of(4)).sum::<usize>()
    }

    /// The area that follows an inode. Sorted, so that the order in the archive does not matter.
    pub(crate) fn encode(mut self) -> Vec<u8> {
        if self.entries.is_empty() {
            return Vec::new();
        }
        self.entries.sort();
        let mut area = vec![0; HEADER_LEN];
        for (index, name, value) in &self.entries {
            // Both lengths were checked by `set`: names are at most 255 bytes, values at most 65535.
            area.push(name.len() as u8);
            area.push(*index);
            area.extend_from_slice(&(value.len() as u16).to_le_bytes());
            area.extend_from_slice(name);
            area.extend_from_slice(value);
            area.resize(area.len().next_multiple_of(4), 0);
        }
        area
    }
}

/// The inode's count field for an area of `len` bytes.
pub(crate) fn count_field(len: usize) -> u16 {
    if len == 0 { 0 } else { ((len - HEADER_LEN) / 4 + 1) as u16 }
}

/// Bytes of the area that an inode's count field stands for.
pub(crate) fn area_len(count: u16) -> usize {
    if count == 0 { 0 } else { HEADER_LEN + (usize::from(count) - 1) * 4 }
}

fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let (index, prefix) = PREFIXES.iter().find(|(_, prefix)| name.starts_with(prefix))?;
    let rest = &name[prefix.len()..];
    // An access list is the whole name, the others need something after the dot.
    let whole = !prefix.ends_with(b".");
    (rest.is_empty() == whole && rest.len() <= MAX_NAME_LEN && !rest.contains(&0)).then_some((*index, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_as_long_as_said_and_sorted() {
        let mut a = Xattrs::default();
        a.set(b"user.b", b"123").unwrap();
        a.set(b"security.capability", b"\n\0x").unwrap();
        let mut b = Xattrs::default();
        b.set(b"security.capability", b"old").unwrap();
        b.set(b"security.capability", b"\n\0x").unwrap();
        b.set(b"user.b", b"123").unwrap();
        let len = a.encoded_len();
        let area = a.encode();
        assert_eq!(area.len(), len);
        assert_eq!(area_len(count_field(len)), len);
        assert_eq!(area, b.encode());
    }

    #[test]
    fn names_without_a_place_are_refused() {
        let mut set = Xattrs::default();
        for name in [&b"user."[..], b"other.x", b"system.posix_acl_accessx", b"user.\0"] {
            assert_eq!(set.set(name, b""), Err(XattrFault::Name));
        }
        assert_eq!(set.set(b"user.a", &vec![0; 65536]), Err(XattrFault::TooLarge));
    }
}

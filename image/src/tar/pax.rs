//! PAX extended header records (POSIX.1-2001 pax, "pax Extended Header"), with the vendor keys that images use.
//!
//! Records are length-prefixed, so values may hold any byte. A key that would change an entry's name or size must not
//! appear twice: the standard lets the last one win, some readers take the first, and that difference is an attack.

use super::Timestamp;
use super::sparse::{MAX_SEGMENTS, Segment, SparseKeys};

/// Most extended attributes of one file: ext4 fits far fewer, and each costs memory here.
const MAX_XATTRS: usize = 256;
const NANOSECOND_DIGITS: usize = 9;

/// The records of one header that mean something here.
#[derive(Default, Debug)]
pub(super) struct PaxRecords {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseKeys,
}

impl PaxRecords {
    /// Parses a whole header body. The error says what is wrong.
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, &'static str> {
        let mut records = Self::default();
        while !body.is_empty() {
            let (key, value, rest) = split_record(body).ok_or("a PAX record that cannot be read")?;
            records.add(key, value)?;
            body = rest;
        }
        Ok(records)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => set_once(&mut self.path, value.to_vec()),
            b"linkpath" => set_once(&mut self.linkpath, value.to_vec()),
            b"size" => set_once(&mut self.size, decimal(value).ok_or("a PAX size that is not a number")?),
            b"uid" => set_once(&mut self.uid, decimal(value).ok_or("a PAX uid that is not a number")?),
            b"gid" => set_once(&mut self.gid, decimal(value).ok_or("a PAX gid that is not a number")?),
            b"mtime" => set_once(&mut self.mtime, time(value).ok_or("a PAX time that is not a number")?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.add_xattr(name, value)
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.add_sparse(name, value)
                } else {
                    // atime, ctime, uname, gname, comment and vendors' notes change nothing that a layer keeps.
                    Ok(())
                }
            }
        }
    }

    fn add_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if name.is_empty() || name.contains(&0) {
            return Err("an extended attribute without a proper name");
        }
        if self.xattrs.iter().any(|(known, _)| known == name) {
            return Err("an extended attribute given twice");
        }
        if self.xattrs.len() >= MAX_XATTRS {
            return Err("more than 256 extended attributes");
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    fn add_sparse(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const BAD: &str = "a sparse map that cannot be read";
        let sparse = &mut self.sparse;
        match name {
            b"major" => set_once(&mut sparse.major, decimal(value).ok_or(BAD)?),
            b"minor" => set_once(&mut sparse.minor, decimal(value).ok_or(BAD)?),
            b"name" => set_once(&mut sparse.name, value.to_vec()),
            b"size" | b"realsize" => set_once(&mut sparse.real_size, decimal(value).ok_or(BAD)?),
            b"numblocks" => set_once(&mut sparse.declared_count, decimal(value).ok_or(BAD)?),
            b"offset" => {
                if sparse.pending_offset.replace(decimal(value).ok_or(BAD)?).is_some() {
                    return Err(BAD);
                }
                Ok(())
            }
            b"numbytes" => {
                let offset = sparse.pending_offset.take().ok_or(BAD)?;
                push(&mut sparse.map, Segment { offset, length: decimal(value).ok_or(BAD)? })
            }
            b"map" => {
                if sparse.map.is_some() {
                    return Err(BAD);
                }
                let mut numbers = value.split(|b| *b == b',').map(decimal);
                sparse.map = Some(Vec::new());
                while let Some(offset) = numbers.next() {
                    let (Some(offset), Some(Some(length))) = (offset, numbers.next()) else { return Err(BAD) };
                    push(&mut sparse.map, Segment { offset, length })?;
                }
                Ok(())
            }
            _ => Err("a sparse form that is not supported"),
        }
    }
}

fn push(map: &mut Option<Vec<Segment>>, segment: Segment) -> Result<(), &'static str> {
    let map = map.get_or_insert_default();
    if map.len() >= MAX_SEGMENTS {
        return Err("a sparse map with too many parts");
    }
    map.push(segment);
    Ok(())
}

fn set_once<T>(slot: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("a PAX record given twice"),
    }
}

/// `"%d %s=%s\n"`, the number counting the whole record. Gives key, value and what follows.
fn split_record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().take(12).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&body[..space])?).ok()?;
    let record = body.get(space + 1..length)?;
    let record = record.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    if equals == 0 {
        return None;
    }
    Some((&record[..equals], &record[equals + 1..], &body[length..]))
}

/// Decimal digits only, at most what 63 bits hold.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    i64::try_from(value).is_ok().then_some(value)
}

/// `-?seconds[.fraction]`.
fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..NANOSECOND_DIGITS)
        .fold(0u32, |value, at| value * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0')));
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds },
        (true, _) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_nanoseconds_and_signs() {
        let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        assert_eq!(time(b"12.5"), at(12, 500_000_000));
        assert_eq!(time(b"12.1234567899"), at(12, 123_456_789));
        assert_eq!(time(b"-1.25"), at(-2, 750_000_000));
        assert_eq!(time(b"-3"), at(-3, 0));
        assert_eq!(time(b"1e5"), None);
        assert_eq!(time(b""), None);
    }

    #[test]
    fn a_value_may_hold_newlines_and_nul() {
        let mut body = b"31 SCHILY.xattr.user.a=1\n2\0".to_vec();
        body.extend_from_slice(b"345\n");
        let records = PaxRecords::parse(&body).unwrap();
        assert_eq!(records.xattrs, [(b"user.a".to_vec(), b"1\n2\x00345".to_vec())]);
    }

    #[test]
    fn doubled_sizes_and_bad_lengths_are_refused() {
        assert!(PaxRecords::parse(b"9 size=1\n9 size=2\n").is_err());
        assert!(PaxRecords::parse(b"8 size=1\n").is_err());
        assert!(PaxRecords::parse(b"99 size=1\n").is_err());
        assert!(PaxRecords::parse(b"0 size=1\n").is_err());
        assert!(PaxRecords::parse(b"10 size=-1\n").is_err());
    }
}

//! Records of a directory: 32 bytes each, a file's long name in the records before its own.

use super::FatError;

/// Bytes of a record.
pub(super) const RECORD_BYTES: usize = 32;
/// Characters of one long-name record.
const NAME_PER_RECORD: usize = 13;
/// Longest name that is read, in records: those of ours need one.
const NAME_RECORDS: usize = 20;
/// A record that is free, and one behind which all are.
pub(super) const REMOVED: u8 = 0xe5;
const LONG: u8 = 0x0f;
const LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
/// 1980-01-01, the first day of FAT: our times say nothing.
const DATE: [u8; 2] = [0x21, 0];
/// Places of the thirteen characters in a long-name record.
const PLACES: [usize; NAME_PER_RECORD] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its long name, or the short one.
    pub name: String,
    /// Bytes.
    pub size: u32,
    pub(super) directory: bool,
    pub(super) cluster: u16,
    /// Where its records lie on the device, the long name's first, its own last.
    pub(super) records: Vec<u64>,
    /// The eleven bytes of its short name.
    pub(super) short: [u8; 11],
}

impl Entry {
    /// Whether this is its name; case does not count on FAT.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Where its first cluster and size stand.
    pub(super) fn own_record(&self) -> Option<u64> {
        self.records.last().copied()
    }
}

/// The checksum that ties long-name records to their short name.
pub(super) fn checksum(short: &[u8; 11]) -> u8 {
    short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// The entries of a directory whose sectors lie at `sectors`.
pub(super) fn parse(raw: &[u8], sectors: &[u64]) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut long: Vec<(&[u8], u64)> = Vec::new();
    for (index, record) in raw.chunks_exact(RECORD_BYTES).enumerate() {
        let place = sectors.get(index / 16).map(|sector| {
            let inside = (index % 16).saturating_mul(RECORD_BYTES);
            sector.saturating_add(u64::try_from(inside).unwrap_or(0))
        });
        let (Some(place), Some(first), Some(attributes)) = (place, record.first(), record.get(11)) else { break };
        match (*first, *attributes) {
            (0, _) => break,
            (REMOVED, _) => long.clear(),
            (_, LONG) if long.len() < NAME_RECORDS => long.push((record, place)),
            (_, LONG) => long.clear(),
            (_, attributes) if attributes & LABEL != 0 => long.clear(),
            (_, attributes) => {
                found.extend(entry(record, place, &long, attributes));
                long.clear();
            }
        }
    }
    found.retain(|entry| entry.name != "." && entry.name != "..");
    found
}

fn entry(record: &[u8], place: u64, long: &[(&[u8], u64)], attributes: u8) -> Option<Entry> {
    let short = *record.first_chunk::<11>()?;
    let cluster = u16::from_le_bytes(*record.get(26..)?.first_chunk::<2>()?);
    let size = u32::from_le_bytes(*record.get(28..)?.first_chunk::<4>()?);
    let long_name = long_name(long, &short);
    let mut records: Vec<u64> = long_name.iter().flat_map(|_| long.iter().map(|(_, place)| *place)).collect();
    records.push(place);
    let name = long_name.unwrap_or_else(|| short_name(&short, record.get(12).copied().unwrap_or(0)));
    Some(Entry { name, size, directory: attributes & DIRECTORY != 0, cluster, records, short })
}

/// The long name, if its records are whole and belong to this short name.
fn long_name(long: &[(&[u8], u64)], short: &[u8; 11]) -> Option<String> {
    if long.is_empty() {
        return None;
    }
    let mut units = Vec::new();
    for (place, (record, _)) in long.iter().rev().enumerate() {
        let number = usize::from(record.first()? & 0x3f);
        if number != place.checked_add(1)? || *record.get(13)? != checksum(short) {
            return None;
        }
        for at in PLACES {
            units.push(u16::from_le_bytes(*record.get(at..)?.first_chunk::<2>()?));
        }
    }
    let units: Vec<u16> = units.into_iter().take_while(|unit| *unit != 0 && *unit != 0xffff).collect();
    String::from_utf16(&units).ok()
}

/// `NAME.EXT` with the case that two bits say.
fn short_name(short: &[u8; 11], case: u8) -> String {
    let part = |bytes: &[u8], lower: bool| {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let text = text.trim_end().to_owned();
        if lower { text.to_ascii_lowercase() } else { text }
    };
    let (base, extension) = short.split_at(8);
    let (base, extension) = (part(base, case & 8 != 0), part(extension, case & 0x10 != 0));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

/// Whether a file of ours may have this name: one long-name record.
pub(super) fn check_name(name: &str) -> Result<(), FatError> {
    let bytes = name.as_bytes();
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-');
    let well_formed = (1..=NAME_PER_RECORD).contains(&bytes.len()) && bytes.iter().all(known) && !name.starts_with('.');
    if well_formed { Ok(()) } else { Err(FatError::Name(name.to_owned())) }
}

/// The long-name record of a name that fits one.
pub(super) fn long_record(name: &str, short: &[u8; 11]) -> [u8; RECORD_BYTES] {
    let mut record = [0_u8; RECORD_BYTES];
    let mut units: Vec<u16> = name.encode_utf16().take(NAME_PER_RECORD).collect();
    if units.len() < NAME_PER_RECORD {
        units.push(0);
    }
    units.resize(NAME_PER_RECORD, 0xffff);
    for (at, unit) in PLACES.into_iter().zip(units) {
        if let Some(target) = record.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
            *target = unit.to_le_bytes();
        }
    }
    // The last record of the name, and its first.
    for (at, byte) in [(0, 0x41), (11, LONG), (13, checksum(short))] {
        if let Some(target) = record.get_mut(at) {
            *target = byte;
        }
    }
    record
}

/// The own record of a file.
pub(super) fn own_record(short: &[u8; 11], cluster: u16, size: u32) -> [u8; RECORD_BYTES] {
    let mut record = [0_u8; RECORD_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(target) = record.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            target.copy_from_slice(bytes);
        }
    };
    put(0, short);
    put(11, &[0x20]);
    for at in [16, 18, 24] {
        put(at, &DATE);
    }
    put(26, &cluster.to_le_bytes());
    put(28, &size.to_le_bytes());
    record
}

/// A short name that none of `taken` has: nobody looks at it, it only must be one of its own.
pub(super) fn free_short(name: &str, taken: &[Entry]) -> Option<[u8; 11]> {
    let letter = name.bytes().find(u8::is_ascii_alphanumeric).unwrap_or(b'X').to_ascii_uppercase();
    (1..100_u8).find_map(|number| {
        let text = format!("{}~{number:<6}BYR", char::from(letter));
        let short = *text.as_bytes().first_chunk::<11>()?;
        taken.iter().all(|entry| entry.short != short).then_some(short)
    })
}

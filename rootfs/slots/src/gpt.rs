//! GUID partition tables: bounded, checksummed reading of either copy, and the bytes of both copies for a writer.
//!
//! Reading believes nothing that a checksum does not cover, and takes the backup when the primary is damaged. Writing
//! returns bytes and their order; it never touches a device (UEFI Specification 2.10, chapter 5).

use crate::Guid;
use std::io;

/// The only sector size that images are built for. A 4 KiB-sector disk needs an image of its own.
pub const SECTOR_BYTES: u64 = 512;

/// Entries that are read at most, and written always: what the specification reserves room for.
pub const MAX_ENTRIES: u32 = 128;

const ENTRY_BYTES: u32 = 128;
const HEADER_BYTES: u32 = 92;
const ENTRY_SECTORS: u64 = 32;
/// First sector that a partition may cover: behind the protective one, the header and the entries.
const FIRST_USABLE: u64 = 34;
/// Label length in UTF-16 units.
const LABEL_UNITS: usize = 36;

/// Something that can be read at an offset: a disk, a file, a buffer in a test.
pub trait ReadAt {
    /// Fills `buffer` from `offset` in bytes.
    ///
    /// # Errors
    /// Any error of the device, or an end before the buffer is full.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for std::fs::File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let start = usize::try_from(offset).map_err(|_| end())?;
        let source = self.get(start..).and_then(|tail| tail.get(..buffer.len())).ok_or_else(end)?;
        buffer.copy_from_slice(source);
        Ok(())
    }
}

/// A partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    /// Place in the table, from 1: the number in the kernel's device name.
    pub number: u32,
    /// What it is for.
    pub kind: Guid,
    /// Its own identity.
    pub id: Guid,
    /// First sector.
    pub first: u64,
    /// Last sector, inclusive.
    pub last: u64,
    /// Attribute bits.
    pub attributes: u64,
    /// Label.
    pub label: String,
}

impl Partition {
    /// First byte on the disk.
    pub fn offset_bytes(&self) -> u64 {
        self.first.saturating_mul(SECTOR_BYTES)
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1).saturating_mul(SECTOR_BYTES)
    }
}

/// A partition table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// The disk's identity.
    pub disk: Guid,
    /// Sectors of the disk, as far as the table knows: one more than where its last copy lies.
    pub disk_sectors: u64,
    /// Partitions in table order.
    pub partitions: Vec<Partition>,
}

/// Which copy was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copy {
    /// At the disk's second sector.
    Primary,
    /// At the disk's last sector; the primary is damaged.
    Backup,
}

/// Why no table was read.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// Neither copy is whole.
    #[error("no valid partition table: primary: {primary}; backup: {backup}")]
    None {
        /// The first copy's fault.
        primary: Fault,
        /// The second copy's fault.
        backup: Fault,
    },
    /// A partition that is asked for does not exist, or more than once.
    #[error("{count} partitions are labelled {label} where one is needed; write the image to the disk again")]
    Label {
        /// The label.
        label: String,
        /// How often it was found.
        count: usize,
    },
    /// Does not fit.
    #[error("partitions need {needed} sectors and the disk has {disk}; take a larger disk")]
    TooSmall {
        /// Sectors needed.
        needed: u64,
        /// Sectors there.
        disk: u64,
    },
}

/// What is wrong with one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Could not be read.
    #[error("unreadable")]
    Unreadable,
    /// No signature, or a header that no GPT has.
    #[error("not a header")]
    NotAHeader,
    /// A checksum that does not hold.
    #[error("bad checksum")]
    Checksum,
    /// Entries outside what is allowed.
    #[error("entries out of bounds")]
    Bounds,
}

impl Table {
    /// Reads the table of a disk of `disk_sectors`: the primary if it is whole, else the backup.
    ///
    /// # Errors
    /// [`GptError::None`] with the fault of each copy.
    pub fn read(disk: &(impl ReadAt + ?Sized), disk_sectors: u64) -> Result<(Self, Copy), GptError> {
        let primary = match read_copy(disk, 1) {
            Ok(table) => return Ok((table, Copy::Primary)),
            Err(fault) => fault,
        };
        match read_copy(disk, disk_sectors.saturating_sub(1)) {
            Ok(table) => Ok((table, Copy::Backup)),
            Err(backup) => Err(GptError::None { primary, backup }),
        }
    }

    /// The one partition with `label`.
    ///
    /// # Errors
    /// [`GptError::Label`] if there is none or more than one.
    pub fn by_label(&self, label: &str) -> Result<&Partition, GptError> {
        let mut found = self.partitions.iter().filter(|partition| partition.label == label);
        match (found.next(), found.next()) {
            (Some(partition), None) => Ok(partition),
            (None, None | Some(_)) | (Some(_), Some(_)) => {
                let count = self.partitions.iter().filter(|partition| partition.label == label).count();
                Err(GptError::Label { label: label.to_owned(), count })
            }
        }
    }

    /// This table for a disk of `disk_sectors`, its last partition grown to the end (rounded down to 1 MiB).
    ///
    /// # Errors
    /// [`GptError::TooSmall`] if the partitions do not fit that disk.
    pub fn grown(&self, disk_sectors: u64) -> Result<Self, GptError> {
        let mut table = Self { disk_sectors, ..self.clone() };
        let usable = last_usable(disk_sectors);
        if let Some(last) = table.partitions.iter_mut().max_by_key(|partition| partition.first) {
            let end = usable.saturating_add(1) & !0x7ff;
            last.last = last.last.max(end.saturating_sub(1));
        }
        let needed = table.partitions.iter().map(|partition| partition.last).max().unwrap_or_default();
        if needed > usable {
            return Err(GptError::TooSmall { needed, disk: disk_sectors });
        }
        Ok(table)
    }

    /// The bytes of both copies. A writer writes `backup`, flushes, then writes `primary` and flushes: then at every
    /// instant one of them is whole.
    pub fn encode(&self) -> Encoded {
        let entries = self.encode_entries();
        let entries_sum = crc32fast::hash(&entries);
        let last = self.disk_sectors.saturating_sub(1);
        let backup_entries = last.saturating_sub(ENTRY_SECTORS);
        let mut primary = protective_mbr(self.disk_sectors);
        primary.extend_from_slice(&self.header(1, last, 2, entries_sum));
        primary.extend_from_slice(&entries);
        let mut backup = entries;
        backup.extend_from_slice(&self.header(last, 1, backup_entries, entries_sum));
        Encoded { primary, backup, backup_offset: backup_entries.saturating_mul(SECTOR_BYTES) }
    }

    fn encode_entries(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16384);
        for number in 1..=MAX_ENTRIES {
            match self.partitions.iter().find(|partition| partition.number == number) {
                None => out.resize(out.len().saturating_add(128), 0),
                Some(partition) => encode_entry(partition, &mut out),
            }
        }
        out
    }

    fn header(&self, own: u64, other: u64, entries: u64, entries_sum: u32) -> Vec<u8> {
        let build = |sum: u32| {
            let mut out = b"EFI PART\0\0\x01\0".to_vec();
            out.extend_from_slice(&HEADER_BYTES.to_le_bytes());
            out.extend_from_slice(&sum.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            for word in [own, other, FIRST_USABLE, last_usable(self.disk_sectors)] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.extend_from_slice(&self.disk.0);
            out.extend_from_slice(&entries.to_le_bytes());
            for word in [MAX_ENTRIES, ENTRY_BYTES, entries_sum] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out
        };
        let mut out = build(crc32fast::hash(&build(0)));
        out.resize(512, 0);
        out
    }
}

/// Both copies of a table as bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded {
    /// From the disk's first byte.
    pub primary: Vec<u8>,
    /// From [`Self::backup_offset`] to the disk's last byte.
    pub backup: Vec<u8>,
    /// In bytes.
    pub backup_offset: u64,
}

/// Last sector that a partition may cover.
fn last_usable(disk_sectors: u64) -> u64 {
    disk_sectors.saturating_sub(2).saturating_sub(ENTRY_SECTORS)
}

fn encode_entry(partition: &Partition, out: &mut Vec<u8>) {
    out.extend_from_slice(&partition.kind.0);
    out.extend_from_slice(&partition.id.0);
    for word in [partition.first, partition.last, partition.attributes] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let mut units: Vec<u16> = partition.label.encode_utf16().take(LABEL_UNITS).collect();
    units.resize(LABEL_UNITS, 0);
    out.extend(units.into_iter().flat_map(u16::to_le_bytes));
}

/// The first sector: one partition of type 0xee over the disk, so that old tools keep off.
fn protective_mbr(disk_sectors: u64) -> Vec<u8> {
    let mut out = vec![0; 446];
    out.extend_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&u32::try_from(disk_sectors.saturating_sub(1)).unwrap_or(u32::MAX).to_le_bytes());
    out.resize(510, 0);
    out.extend_from_slice(&[0x55, 0xaa]);
    out
}

/// Reads the copy whose header is at sector `at`.
fn read_copy(disk: &(impl ReadAt + ?Sized), at: u64) -> Result<Table, Fault> {
    let mut sector = [0u8; 512];
    let offset = at.checked_mul(SECTOR_BYTES).ok_or(Fault::Bounds)?;
    disk.read_exact_at(&mut sector, offset).map_err(|_| Fault::Unreadable)?;
    let header = Header::parse(&sector, at)?;
    let size = usize::try_from(header.entries.saturating_mul(ENTRY_BYTES)).map_err(|_| Fault::Bounds)?;
    let mut bytes = vec![0u8; size];
    let offset = header.entries_at.checked_mul(SECTOR_BYTES).ok_or(Fault::Bounds)?;
    disk.read_exact_at(&mut bytes, offset).map_err(|_| Fault::Unreadable)?;
    if crc32fast::hash(&bytes) != header.entries_sum {
        return Err(Fault::Checksum);
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1u32..).zip(bytes.chunks_exact(128)) {
        if let Some(partition) = parse_entry(number, entry, &header)? {
            partitions.push(partition);
        }
    }
    if overlap(&partitions) {
        return Err(Fault::Bounds);
    }
    Ok(Table { disk: header.disk, disk_sectors: at.max(header.other).saturating_add(1), partitions })
}

/// A header whose checksum holds and whose numbers are in bounds.
struct Header {
    other: u64,
    first_usable: u64,
    last_usable: u64,
    disk: Guid,
    entries_at: u64,
    entries: u32,
    entries_sum: u32,
}

impl Header {
    fn parse(sector: &[u8; 512], at: u64) -> Result<Self, Fault> {
        let size = usize::try_from(HEADER_BYTES).map_err(|_| Fault::Bounds)?;
        if !sector.starts_with(b"EFI PART\0\0\x01\0") || u32_at(sector, 12)? != HEADER_BYTES {
            return Err(Fault::NotAHeader);
        }
        let mut copy = sector.get(..size).ok_or(Fault::NotAHeader)?.to_vec();
        copy.get_mut(16..20).ok_or(Fault::NotAHeader)?.fill(0);
        if crc32fast::hash(&copy) != u32_at(sector, 16)? {
            return Err(Fault::Checksum);
        }
        let header = Self {
            other: u64_at(sector, 32)?,
            first_usable: u64_at(sector, 40)?,
            last_usable: u64_at(sector, 48)?,
            disk: guid_at(sector, 56)?,
            entries_at: u64_at(sector, 72)?,
            entries: u32_at(sector, 80)?,
            entries_sum: u32_at(sector, 88)?,
        };
        let sized = u32_at(sector, 84)? == ENTRY_BYTES && (1..=MAX_ENTRIES).contains(&header.entries);
        // Partitions may not lie where the table itself does: a copy that was written back would be over one of them.
        let room = header.first_usable >= FIRST_USABLE && header.first_usable <= header.last_usable;
        if u64_at(sector, 24)? != at || !sized || !room {
            return Err(Fault::Bounds);
        }
        Ok(header)
    }
}

fn parse_entry(number: u32, entry: &[u8], header: &Header) -> Result<Option<Partition>, Fault> {
    let kind = guid_at(entry, 0)?;
    if kind.is_zero() {
        return Ok(None);
    }
    let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
    if first < header.first_usable || last > header.last_usable || first > last {
        return Err(Fault::Bounds);
    }
    let units: Vec<u16> = entry
        .get(56..)
        .unwrap_or_default()
        .chunks_exact(2)
        .filter_map(|pair| pair.first_chunk::<2>().map(|unit| u16::from_le_bytes(*unit)))
        .take_while(|unit| *unit != 0)
        .collect();
    let label = String::from_utf16_lossy(&units);
    Ok(Some(Partition { number, kind, id: guid_at(entry, 16)?, first, last, attributes: u64_at(entry, 48)?, label }))
}

/// Whether any two partitions share a sector.
fn overlap(partitions: &[Partition]) -> bool {
    let mut spans: Vec<(u64, u64)> = partitions.iter().map(|partition| (partition.first, partition.last)).collect();
    spans.sort_unstable();
    spans.windows(2).any(|pair| matches!(pair, [(_, end), (start, _)] if start <= end))
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, Fault> {
    let chunk = bytes.get(offset..).and_then(<[u8]>::first_chunk::<4>);
    chunk.map(|raw| u32::from_le_bytes(*raw)).ok_or(Fault::Bounds)
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64, Fault> {
    let chunk = bytes.get(offset..).and_then(<[u8]>::first_chunk::<8>);
    chunk.map(|raw| u64::from_le_bytes(*raw)).ok_or(Fault::Bounds)
}

fn guid_at(bytes: &[u8], offset: usize) -> Result<Guid, Fault> {
    bytes.get(offset..).and_then(<[u8]>::first_chunk::<16>).map(|raw| Guid(*raw)).ok_or(Fault::Bounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECTORS: u64 = 8192;

    fn table() -> Table {
        let partition = |number: u32, first, last, label: &str| Partition {
            number,
            kind: Guid([7; 16]),
            id: Guid([number as u8; 16]),
            first,
            last,
            attributes: 0,
            label: label.to_owned(),
        };
        Table {
            disk: Guid([9; 16]),
            disk_sectors: SECTORS,
            partitions: vec![partition(1, 2048, 4095, "boot"), partition(2, 4096, 6143, "data")],
        }
    }

    fn disk(table: &Table) -> Vec<u8> {
        let mut disk = vec![0u8; (table.disk_sectors * SECTOR_BYTES) as usize];
        let encoded = table.encode();
        disk[..encoded.primary.len()].copy_from_slice(&encoded.primary);
        let at = encoded.backup_offset as usize;
        disk[at..at + encoded.backup.len()].copy_from_slice(&encoded.backup);
        disk
    }

    #[test]
    fn what_is_written_is_read_back_from_either_copy() {
        let table = table();
        let mut disk = disk(&table);
        assert_eq!(Table::read(disk.as_slice(), SECTORS).unwrap(), (table.clone(), Copy::Primary));
        disk[512 + 60] ^= 1;
        assert_eq!(Table::read(disk.as_slice(), SECTORS).unwrap(), (table, Copy::Backup));
        let last = disk.len() - 512 + 60;
        disk[last] ^= 1;
        let error = Table::read(disk.as_slice(), SECTORS).unwrap_err();
        assert!(matches!(error, GptError::None { primary: Fault::Checksum, backup: Fault::Checksum }));
    }

    #[test]
    fn a_label_must_be_there_once() {
        let mut table = table();
        assert_eq!(table.by_label("boot").unwrap().number, 1);
        assert!(matches!(table.by_label("root-a"), Err(GptError::Label { count: 0, .. })));
        table.partitions[1].label = "boot".to_owned();
        assert!(matches!(table.by_label("boot"), Err(GptError::Label { count: 2, .. })));
    }

    #[test]
    fn growing_moves_only_the_end_of_the_last_partition() {
        let grown = table().grown(65536).unwrap();
        assert_eq!(grown.partitions[0], table().partitions[0]);
        assert_eq!((grown.partitions[1].first, grown.partitions[1].last), (4096, 63487));
        assert_eq!(Table::read(disk(&grown).as_slice(), 65536).unwrap().0, grown);
        assert!(table().grown(4096).is_err());
    }

    #[test]
    fn a_table_that_leaves_no_room_for_itself_is_refused() {
        let mut disk = disk(&table());
        let end = disk.len();
        disk[end - 512..].fill(0);
        let header = &mut disk[512..512 + HEADER_BYTES as usize];
        header[40..48].copy_from_slice(&(FIRST_USABLE - 1).to_le_bytes());
        header[16..20].fill(0);
        let sum = crc32fast::hash(header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        let error = Table::read(disk.as_slice(), SECTORS).unwrap_err();
        assert!(matches!(error, GptError::None { primary: Fault::Bounds, .. }), "{error}");
    }

    #[test]
    fn overlapping_partitions_are_refused() {
        let mut table = table();
        table.partitions[1].first = 4095;
        assert!(Table::read(disk(&table).as_slice(), SECTORS).is_err());
    }

    proptest! {
        #[test]
        fn damage_anywhere_never_panics_and_never_changes_what_is_read(
            hits in proptest::collection::vec((0usize..34 * 512, any::<u8>()), 1..40)
        ) {
            let table = table();
            let mut disk = disk(&table);
            for (place, byte) in hits {
                disk[place] = byte;
            }
            // The backup is whole, so whatever happened to the primary, the same partitions come out.
            prop_assert_eq!(Table::read(disk.as_slice(), SECTORS).unwrap().0.partitions, table.partitions);
        }
    }
}

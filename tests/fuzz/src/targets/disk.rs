//! What lies raw on a disk or comes from firmware: partition table, attempt record, loader entry names, boot variables, sections of a
//! kernel image, hash trees, the kernel command line.

use byre_slots::attempts::{Attempts, Evidence, Phase};
use byre_slots::entry::EntryName;
use byre_slots::gpt::{Copy, Partition, ReadAt, SECTOR_BYTES, Table};
use byre_slots::{Guid, Slot, efivar, uki};

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "disk",
    about: "GPT, attempt record, entry names, EFI variables, UKI sections, verity superblock: what is read is written back the same, \
            partitions never overlap, a grown table reads back from either copy",
    sources: &["rootfs/slots/src", "rootfs/verity/src/tree.rs"],
    longest: 48 * 1024,
    run,
    seeds,
};

/// Of the disks that are tried, in sectors. Only their two ends exist.
const DISK_SECTORS: u64 = 1 << 20;
/// Sectors at each end of a disk that an input may fill: both headers and their entries.
const END_SECTORS: usize = 34;

fn run(input: &[u8]) -> Verdict {
    let Some((decoder, input)) = super::pick(input, 6) else { return Verdict::Refused };
    match decoder {
        0 => table(input),
        1 => attempts(input),
        2 => entry(input),
        3 => variable(input),
        4 => section(input),
        _ => tree(input),
    }
}

/// The two ends of a disk; everything between reads as zeros.
struct Disk {
    start: Vec<u8>,
    end: Vec<u8>,
}

impl Disk {
    fn len() -> u64 {
        DISK_SECTORS * SECTOR_BYTES
    }
}

impl ReadAt for Disk {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let last = offset.checked_add(buffer.len() as u64).filter(|last| *last <= Self::len());
        if last.is_none() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let end_at = Self::len() - self.end.len() as u64;
        for (place, byte) in (offset..).zip(buffer) {
            let at = |bytes: &[u8], place: u64| bytes.get(usize::try_from(place).unwrap_or(usize::MAX)).copied();
            *byte = match place.checked_sub(end_at) {
                Some(place) => at(&self.end, place),
                None => at(&self.start, place),
            }
            .unwrap_or(0);
        }
        Ok(())
    }
}

/// The first byte says which checksums are made right: a fuzzer finds none by itself.
fn table(input: &[u8]) -> Verdict {
    let Some((flags, rest)) = input.split_first() else { return Verdict::Refused };
    let room = END_SECTORS * 512;
    let (start, end) = rest.split_at(rest.len().min(room));
    let mut disk = Disk { start: start.to_vec(), end: end[..end.len().min(room)].to_vec() };
    disk.start.resize(room, 0);
    if !disk.end.len().is_multiple_of(512) {
        disk.end.resize(disk.end.len().next_multiple_of(512), 0);
    }
    if flags & 1 == 0 {
        mend(&mut disk.start, 512, 2 * 512);
    }
    if flags & 2 == 0
        && let Some(header) = disk.end.len().checked_sub(512)
    {
        mend(&mut disk.end, header, 0);
    }
    let Ok((table, copy)) = Table::read(&disk, DISK_SECTORS) else { return Verdict::Refused };
    assert!(table.partitions.len() <= byre_slots::gpt::MAX_ENTRIES as usize);
    for (place, one) in table.partitions.iter().enumerate() {
        assert!(one.first <= one.last && (1..=128).contains(&one.number));
        let apart = |other: &Partition| other.last < one.first || one.last < other.first;
        assert!(table.partitions.iter().skip(place + 1).all(apart), "two partitions share a sector");
    }
    // A table of a larger disk than this one is for nobody to write here.
    let Ok(grown) = table.grown(DISK_SECTORS) else { return Verdict::of(copy == Copy::Primary) };
    for (old, new) in table.partitions.iter().zip(&grown.partitions) {
        assert!(new.first == old.first && new.last >= old.last, "growing moves nothing");
    }
    let bytes = grown.encode();
    assert_eq!(bytes.backup_offset + bytes.backup.len() as u64, Disk::len());
    let whole = Disk { start: bytes.primary.clone(), end: bytes.backup.clone() };
    let torn = Disk { start: Vec::new(), end: bytes.backup };
    for (disk, from) in [(&whole, Copy::Primary), (&torn, Copy::Backup)] {
        let (again, copy) = Table::read(disk, DISK_SECTORS).expect("what was written is read");
        assert_eq!(copy, from);
        assert_eq!(labels_normal(again), labels_normal(grown.clone()));
    }
    Verdict::Accepted
}

/// Labels are text: what was no Unicode is written as replacement characters.
fn labels_normal(mut table: Table) -> Table {
    for partition in &mut table.partitions {
        let units: Vec<u16> = partition.label.encode_utf16().take(36).collect();
        partition.label = String::from_utf16_lossy(&units);
    }
    table
}

/// Puts right checksums into a header and over its entries, if they lie where they usually do.
fn mend(bytes: &mut [u8], header: usize, entries: usize) {
    let number = |bytes: &[u8], at: usize| {
        bytes.get(header + at..).and_then(<[u8]>::first_chunk::<4>).map_or(0, |raw| u32::from_le_bytes(*raw))
    };
    let count = usize::try_from(number(bytes, 80)).unwrap_or(usize::MAX);
    let sum =
        count.checked_mul(128).and_then(|length| bytes.get(entries..entries.checked_add(length)?)).map(crc32fast::hash);
    if let (Some(sum), Some(place)) = (sum, bytes.get_mut(header + 88..header + 92)) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
    let Some(area) = bytes.get_mut(header..header + 92) else { return };
    area[16..20].fill(0);
    let sum = crc32fast::hash(area);
    area[16..20].copy_from_slice(&sum.to_le_bytes());
}

fn attempts(input: &[u8]) -> Verdict {
    let mut sector = input.to_vec();
    if let Some(area) = sector.get(..32) {
        let sum = crc32fast::hash(area);
        if let Some(place) = sector.get_mut(32..36) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
    }
    // As it came, hence nearly always refused.
    let _ = Attempts::decode(input);
    let Some(record) = Attempts::decode(&sector) else { return Verdict::Refused };
    assert_eq!(Attempts::decode(&record.encode()), Some(record));
    for slot in Slot::ALL {
        for evidence in [Evidence::None, Evidence::Panic, Evidence::Watchdog] {
            let next = Attempts::begin(Some(record), evidence, slot);
            assert!(next.slot == slot && next.phase == Phase::Started);
            assert!(next.bad_ends <= record.bad_ends.saturating_add(1), "one boot is one bad end");
            assert!(slot == record.slot || next.bad_ends == 0, "another slot's record is clean");
        }
    }
    Verdict::Accepted
}

fn entry(input: &[u8]) -> Verdict {
    let Ok(name) = std::str::from_utf8(input) else { return Verdict::Refused };
    let _ = EntryName::slot_of_selected(name);
    if let Some(id) = Guid::parse(name) {
        assert_eq!(Guid::parse(&id.to_string()), Some(id));
        return Verdict::Accepted;
    }
    let Some(entry) = EntryName::parse(name) else { return Verdict::Refused };
    let written = entry.to_string();
    assert!(written.len() <= 13 && EntryName::parse(&written) == Some(entry), "{written}");
    assert_eq!(EntryName::slot_of_selected(name), Some(entry.slot));
    Verdict::Accepted
}

fn variable(input: &[u8]) -> Verdict {
    let [current, raw, ..] = super::pieces(input, 2)[..] else { return Verdict::Refused };
    let _ = efivar::number(raw);
    if let Some(text) = efivar::text(raw) {
        assert!(!text.contains('\0') && text.len() <= efivar::MAX_VALUE_BYTES * 3 / 2);
    }
    let current = efivar::number(current);
    let ours = [0xba, 0xbb];
    let Some(order) = efivar::boot_order_with(raw, current, &ours) else { return Verdict::Refused };
    assert_eq!(efivar::boot_order_with(&order, current, &ours), None, "once it is so, nothing is written");
    assert!(order.len() <= raw.len().max(4) + 2 * ours.len());
    Verdict::Accepted
}

fn section(input: &[u8]) -> Verdict {
    let found = uki::find(input, ".cmdline");
    if found.is_some() {
        assert!(input.windows(8).any(|name| name == b".cmdline"));
    }
    Verdict::of(found.is_some())
}

/// The command line, and with the rest of the input as the start of a verity partition whether it is the tree that it names.
fn tree(input: &[u8]) -> Verdict {
    let [line, partition, ..] = super::pieces(input, 2)[..] else { return Verdict::Refused };
    let text = String::from_utf8_lossy(line);
    let Some(hash) = text.split_ascii_whitespace().find_map(byre_verity::parse_root_hash) else {
        return Verdict::Refused;
    };
    assert_eq!(byre_verity::parse_root_hash(&hash.to_string()), Some(hash));
    match byre_verity::check_tree_top(partition, hash) {
        byre_verity::TreeCheck::Matches => {
            let top = &partition[byre_verity::BLOCK_BYTES..2 * byre_verity::BLOCK_BYTES];
            assert_eq!(byre_verity::hash_block(top), hash.0);
            Verdict::Accepted
        }
        byre_verity::TreeCheck::OtherRoot | byre_verity::TreeCheck::NotATree => Verdict::Refused,
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let partition = |number: u32, first: u64, last: u64, label: &str| Partition {
        number,
        kind: Guid([7; 16]),
        id: Guid([9; 16]),
        first,
        last,
        attributes: 0,
        label: label.to_owned(),
    };
    let partitions =
        vec![partition(1, 2048, 4095, "boot"), partition(2, 4096, 8191, "root-a"), partition(9, 8192, 16383, "data")];
    let bytes = Table { disk: Guid([3; 16]), disk_sectors: DISK_SECTORS, partitions }.encode();
    let both = [&[0][..], &bytes.primary, &bytes.backup].concat();
    let backup = [&[1][..], &vec![0; bytes.primary.len()], &bytes.backup].concat();
    let record = Attempts { slot: Slot::B, bad_ends: 2, phase: Phase::EarlyError, boots: 40 };
    let order: Vec<u8> = [7_u16, 0, 1, 2].iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut image = vec![0_u8; 256];
    image[0x3c] = 64;
    image[64..68].copy_from_slice(b"PE\0\0");
    image[70] = 1;
    image[84] = 16;
    image[104..112].copy_from_slice(b".cmdline");
    let tree = byre_verity::build(&mut vec![5_u8; 2 * byre_verity::BLOCK_BYTES].as_slice(), 2).expect("two blocks");
    let line = format!("quiet {}", tree.root_hash);
    vec![
        super::seed(0, both),
        super::seed(0, backup),
        super::seed(1, &record.encode()[..64]),
        super::seed(2, "b+1-2.conf"),
        super::seed(2, "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"),
        super::seed(3, super::joined(&[&[6, 0, 0, 0, 1, 0], &order])),
        super::seed(4, image),
        super::seed(5, super::joined(&[line.as_bytes(), &tree.bytes[..2 * byre_verity::BLOCK_BYTES]])),
    ]
}

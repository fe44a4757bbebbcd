//! The disk: partition layout, derived GUIDs, and putting the parts into one sparse file.

use crate::manifest::PartitionRecord;
use anyhow::{Context, Result, ensure};
use byre_slots::Guid;
use byre_slots::gpt::{Partition, SECTOR_BYTES, Table};
use sha2::{Digest, Sha256};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const ROOT_X86_64: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const VERITY_X86_64: &str = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5";
const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";

/// Label, type and size of each partition but the last, in disk order. Slots cannot grow later, so each has room for four
/// times its goal (root 24 MiB, kernel image 20 MiB); the boot partition holds three kernel images of the largest size that
/// FAT16 with 4 KiB clusters can (it ends at 255 MiB).
const FIXED: [(&str, &str, u64); 8] = [
    ("boot", ESP, 240),
    ("root-a", ROOT_X86_64, 96),
    ("verity-a", VERITY_X86_64, 1),
    ("root-b", ROOT_X86_64, 96),
    ("verity-b", VERITY_X86_64, 1),
    ("uki-a", LINUX, 80),
    ("uki-b", LINUX, 80),
    ("state", LINUX, 64),
];

/// Labels in disk order.
pub const LAYOUT_NAMES: [&str; 9] =
    ["boot", "root-a", "verity-a", "root-b", "verity-b", "uki-a", "uki-b", "state", "data"];

/// The smallest disk: the fixed partitions and 256 MiB of data.
const MIN_DISK_BYTES: u64 = 916 * MIB;

/// A GUID that depends on nothing but `name`: the image is reproducible, and every copy of it has the same.
pub(crate) fn derived_guid(name: &str) -> Guid {
    let digest: [u8; 32] = Sha256::digest(format!("byre guid: {name}")).into();
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    // Version 8 (RFC 9562: custom), its variant. On disk the version's byte is the eighth.
    bytes[7] = bytes[7] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Guid(bytes)
}

/// The table of a disk of `disk_bytes`.
pub(crate) fn layout(disk_bytes: u64) -> Result<Table> {
    ensure!(disk_bytes.is_multiple_of(MIB), "a disk image is a whole number of MiB");
    ensure!(disk_bytes >= MIN_DISK_BYTES, "a disk image needs at least {} MiB", MIN_DISK_BYTES / MIB);
    let mut partitions = Vec::new();
    let mut next = MIB;
    let mut add = |label: &str, kind: &str, bytes: u64| -> Result<()> {
        partitions.push(Partition {
            number: u32::try_from(partitions.len())? + 1,
            kind: Guid::parse(kind).context("bad type GUID")?,
            id: derived_guid(&format!("partition {label}")),
            first: next / SECTOR_BYTES,
            last: (next + bytes) / SECTOR_BYTES - 1,
            attributes: 0,
            label: label.to_owned(),
        });
        next += bytes;
        Ok(())
    };
    for (label, kind, mib) in FIXED {
        add(label, kind, mib * MIB)?;
    }
    let used = MIB + FIXED.iter().map(|(_, _, mib)| mib * MIB).sum::<u64>();
    // The last MiB is the backup table's.
    add("data", LINUX, disk_bytes - MIB - used)?;
    Ok(Table { disk: derived_guid("disk"), disk_sectors: disk_bytes / SECTOR_BYTES, partitions })
}

/// Writes the disk `path` from `parts` (label, file).
pub(crate) fn assemble(path: &Path, table: &Table, parts: &[(&str, &Path)]) -> Result<()> {
    std::fs::remove_file(path).ok();
    let mut disk = std::fs::File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
    disk.set_len(table.disk_sectors * SECTOR_BYTES)?;
    for (label, file) in parts {
        let partition = table.by_label(label)?;
        let size = std::fs::metadata(file)?.len();
        ensure!(
            size <= partition.size_bytes(),
            "{label}: {size} bytes do not fit the partition of {} bytes",
            partition.size_bytes()
        );
        copy_sparse(file, &mut disk, partition.offset_bytes())?;
    }
    let encoded = table.encode();
    disk.write_all_at(&encoded.backup, encoded.backup_offset)?;
    disk.write_all_at(&encoded.primary, 0)?;
    Ok(())
}

/// Copies `file` to `offset` of `disk`, leaving holes for blocks of zeros.
fn copy_sparse(file: &Path, disk: &mut std::fs::File, offset: u64) -> Result<()> {
    let mut source = std::fs::File::open(file)?;
    let mut block = vec![0u8; 1 << 16];
    let mut place = offset;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match source.read(&mut block[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        if block[..filled].iter().any(|byte| *byte != 0) {
            disk.seek(SeekFrom::Start(place))?;
            disk.write_all(&block[..filled])?;
        }
        place += filled as u64;
    }
}

/// What the manifest says of `table`.
pub(crate) fn records(table: &Table) -> Vec<PartitionRecord> {
    table
        .partitions
        .iter()
        .map(|partition| PartitionRecord {
            label: partition.label.clone(),
            number: partition.number,
            offset_bytes: partition.offset_bytes(),
            size_bytes: partition.size_bytes(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_aligned_in_order_and_fill_the_disk() {
        let table = layout(2048 * MIB).unwrap();
        assert_eq!(table.partitions.iter().map(|partition| partition.label.as_str()).collect::<Vec<_>>(), LAYOUT_NAMES);
        assert!(table.partitions.iter().all(|partition| partition.offset_bytes() % MIB == 0));
        assert_eq!(table.by_label("data").unwrap().last, 2047 * MIB / SECTOR_BYTES - 1);
        assert!(layout(512 * MIB).is_err());
    }

    #[test]
    fn every_partition_has_its_own_identity() {
        let table = layout(2048 * MIB).unwrap();
        let mut ids: Vec<_> = table.partitions.iter().map(|partition| partition.id.to_string()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), LAYOUT_NAMES.len());
    }
}

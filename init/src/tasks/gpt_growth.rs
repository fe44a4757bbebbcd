//! The one time that the partition table is written: at first boot, when the data partition, the last one, grows to the end of the disk.
//!
//! The backup table goes first and is on disk before the primary is touched, so that a cut at any instant leaves one whole table.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use byre_slots::DATA_LABEL;
use byre_slots::gpt::Table;

use super::{TaskError, on};
use crate::sys;

/// GPT sectors; the image is made for disks that present these.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// Bytes of a block device or a partition.
pub(crate) fn size_of(device: &str) -> Result<u64, TaskError> {
    let name = device.trim_start_matches("/dev/");
    let path = format!("/sys/class/block/{name}/size");
    let text = std::fs::read_to_string(&path).map_err(on("read", &path))?;
    let sectors: u64 = text.trim().parse().map_err(|_| TaskError::Invalid(format!("{path} holds {text:?}")))?;
    Ok(sectors.saturating_mul(SECTOR_BYTES))
}

/// Grows the data partition to the disk's end, in the table and in the kernel. Does nothing if it is there already.
pub(crate) fn grow_last_partition(disk: &str, data: &str) -> Result<(), TaskError> {
    let table_error = |what: String| TaskError::Table { disk: disk.to_owned(), what };
    let sectors = size_of(disk)? / SECTOR_BYTES;
    let device = File::options().read(true).open(disk).map_err(on("open", disk))?;
    let (table, _) = Table::read(&device, sectors).map_err(|error| table_error(error.to_string()))?;
    let before = table.by_label(DATA_LABEL).map_err(|error| table_error(error.to_string()))?.size_bytes();
    let grown = table.grown(sectors).map_err(|error| table_error(error.to_string()))?;
    let partition = grown.by_label(DATA_LABEL).map_err(|error| table_error(error.to_string()))?;
    if partition.size_bytes() <= before {
        return Ok(());
    }
    let device = File::options().read(true).write(true).open(disk).map_err(on("open for writing", disk))?;
    let encoded = grown.encode();
    for (bytes, offset) in [(&encoded.backup, encoded.backup_offset), (&encoded.primary, 0)] {
        device.write_all_at(bytes, offset).map_err(on("write", disk))?;
        device.sync_all().map_err(on("flush", disk))?;
    }
    let number = partition_number(data)?;
    sys::resize_partition(&device, number, partition.offset_bytes(), partition.size_bytes()).map_err(|errno| {
        table_error(format!("the kernel does not take the new size of partition {number}: {errno}"))
    })?;
    println!("data partition grown from {} to {} MiB", before >> 20, partition.size_bytes() >> 20);
    Ok(())
}

fn partition_number(device: &str) -> Result<i32, TaskError> {
    let name = Path::new(device).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let path = format!("/sys/class/block/{name}/partition");
    let text = std::fs::read_to_string(&path).map_err(on("read", &path))?;
    text.trim().parse().map_err(|_| TaskError::Invalid(format!("{path} holds {text:?}")))
}

//! This boot did its job: said in the attempt record, so that earlier bad ends no longer count.
//!
//! The record lies at the end of the state partition, which is mounted; the kernel refuses writers of a mounted device, so it is written
//! through the disk that the partition lies on. One sector is written at once or not at all.

use std::fs::File;
use std::os::unix::fs::FileExt;

use byre_slots::attempts::{Attempts, Phase, SECTOR_BYTES, offset_in_state};
use byre_slots::gpt::Table;
use byre_slots::{STATE_LABEL, Slot};

use super::boot_disk::BootFacts;
use super::gpt_growth::{SECTOR_BYTES as DISK_SECTOR_BYTES, size_of};
use super::{TaskError, on};
use crate::supervisor::UNHEALTHY;

/// There once the running slot is known to do its job; holds its letter. Until then nobody writes the other slot.
pub(crate) const BLESSED: &str = "/run/byre/blessed";

/// Records the running slot as healthy.
pub(crate) fn record() -> Result<(), TaskError> {
    if let Ok(why) = std::fs::read_to_string(UNHEALTHY) {
        return Err(TaskError::Invalid(format!("this boot is not healthy: {}", why.trim_end())));
    }
    let facts = BootFacts::read()?;
    let disk = facts.disk.as_str();
    let failed = |what: &str| TaskError::Table { disk: disk.to_owned(), what: what.to_owned() };
    let slot = Slot::from_letter(&facts.slot).ok_or(TaskError::NoBootFacts { what: "the slot" })?;
    let device = File::options().read(true).write(true).open(disk).map_err(on("open", disk))?;
    let sectors = size_of(disk)? / DISK_SECTOR_BYTES;
    let (table, _) = Table::read(&device, sectors).map_err(|error| failed(&error.to_string()))?;
    let state = table.by_label(STATE_LABEL).map_err(|error| failed(&error.to_string()))?;
    let inside = offset_in_state(state.size_bytes()).ok_or_else(|| failed("the state partition is too small"))?;
    let offset = state.offset_bytes().saturating_add(inside);
    let mut sector = [0_u8; SECTOR_BYTES];
    device.read_exact_at(&mut sector, offset).map_err(on("read", disk))?;
    let boots = Attempts::decode(&sector).map_or(1, |record| record.boots);
    let record = Attempts { slot, bad_ends: 0, phase: Phase::Healthy, boots };
    device.write_all_at(&record.encode(), offset).map_err(on("write", disk))?;
    device.sync_data().map_err(on("flush", disk))?;
    std::fs::write(BLESSED, format!("{}\n", slot.letter())).map_err(on("write", BLESSED))
}

//! The booted disk as tasks see it: its partition table, and parts of it opened through the disk, because the kernel refuses writers of
//! a mounted partition.

use std::fs::File;

use byre_loader::Span;
use byre_loader::fat::Fat;
use byre_slots::attempts::{Attempts, SECTOR_BYTES, offset_in_state};
use byre_slots::gpt::{Partition, Table};
use byre_slots::{BOOT_LABEL, STATE_LABEL, Slot};

use super::boot_disk::BootFacts;
use super::gpt_growth::{SECTOR_BYTES as DISK_SECTOR_BYTES, size_of};
use super::{TaskError, on};
use crate::flight::Flight;

/// The disk that was booted.
pub(crate) struct BootDevice {
    path: String,
    table: Table,
    /// The running slot.
    pub(crate) slot: Slot,
    /// What the early stage said.
    pub(crate) facts: BootFacts,
}

impl BootDevice {
    /// Reads its table.
    pub(crate) fn read() -> Result<Self, TaskError> {
        let facts = BootFacts::read()?;
        let path = facts.disk.clone();
        let slot = Slot::from_letter(&facts.slot).ok_or(TaskError::NoBootFacts { what: "the slot" })?;
        let device = File::open(&path).map_err(on("open", &path))?;
        let sectors = size_of(&path)? / DISK_SECTOR_BYTES;
        let (table, _) = Table::read(&device, sectors)
            .map_err(|error| TaskError::Table { disk: path.clone(), what: error.to_string() })?;
        Ok(Self { path, table, slot, facts })
    }

    fn failed(&self, what: impl Into<String>) -> TaskError {
        TaskError::Table { disk: self.path.clone(), what: what.into() }
    }

    pub(crate) fn partition(&self, label: &str) -> Result<&Partition, TaskError> {
        self.table.by_label(label).map_err(|error| self.failed(error.to_string()))
    }

    /// The whole disk, open.
    pub(crate) fn open(&self, writable: bool) -> Result<File, TaskError> {
        File::options().read(true).write(writable).open(&self.path).map_err(on("open", &self.path))
    }

    /// A partition.
    pub(crate) fn span(&self, label: &str, writable: bool) -> Result<Span, TaskError> {
        let partition = self.partition(label)?;
        Ok(Span::new(self.open(writable)?, partition.offset_bytes(), partition.size_bytes()))
    }

    /// The device of a slot's partition itself, read from the disk anew: the updater wrote it through this device, and what the kernel keeps
    /// of the whole disk would be older.
    pub(crate) fn slot_device(&self, label: &str) -> Result<File, TaskError> {
        let number = self.partition(label)?.number;
        let separator = if self.path.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        let path = format!("{}{separator}{number}", self.path);
        let device = File::open(&path).map_err(on("open", &path))?;
        // Advice only: what is not dropped was written by this boot, and flushed.
        let _ = rustix::fs::fadvise(&device, 0, None, rustix::fs::Advice::DontNeed);
        Ok(device)
    }

    /// The same, as a span.
    pub(crate) fn slot_span(&self, label: &str) -> Result<Span, TaskError> {
        let bytes = self.partition(label)?.size_bytes();
        Ok(Span::new(self.slot_device(label)?, 0, bytes))
    }

    /// The file system of the boot partition.
    pub(crate) fn boot(&self, writable: bool) -> Result<Fat<Span>, TaskError> {
        Fat::open(self.span(BOOT_LABEL, writable)?).map_err(|error| TaskError::Invalid(error.to_string()))
    }

    /// Where the attempt record lies on the disk.
    pub(crate) fn attempts_offset(&self) -> Result<u64, TaskError> {
        let state = self.partition(STATE_LABEL)?;
        let inside =
            offset_in_state(state.size_bytes()).ok_or_else(|| self.failed("the state partition is too small"))?;
        Ok(state.offset_bytes().saturating_add(inside))
    }

    /// The attempt record, if it is whole.
    pub(crate) fn attempts(&self) -> Result<Option<Attempts>, TaskError> {
        let mut sector = [0_u8; SECTOR_BYTES];
        let device = self.open(false)?;
        std::os::unix::fs::FileExt::read_exact_at(&device, &mut sector, self.attempts_offset()?)
            .map_err(on("read", &self.path))?;
        Ok(Attempts::decode(&sector))
    }

    /// Writes the attempt record: one sector, which is written at once or not at all.
    pub(crate) fn write_attempts(&self, record: &Attempts) -> Result<(), TaskError> {
        let device = self.open(true)?;
        std::os::unix::fs::FileExt::write_all_at(&device, &record.encode(), self.attempts_offset()?)
            .map_err(on("write", &self.path))?;
        device.sync_data().map_err(on("flush", &self.path))
    }

    /// The flight recorder's ring.
    pub(crate) fn flight(&self, writable: bool) -> Result<Flight, TaskError> {
        Ok(Flight::new(self.open(writable)?, self.attempts_offset()?))
    }
}

/// The letter of a slot as records have it.
pub(crate) fn letter(slot: Slot) -> char {
    match slot {
        Slot::A => 'a',
        Slot::B => 'b',
    }
}

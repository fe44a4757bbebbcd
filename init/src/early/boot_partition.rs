//! The boot partition, from the early stage: how the booted slot stands with the loader, and the one change that is made here.

use super::devices::Disk;
use byre_loader::Span;
use byre_loader::entries::{self, Standing};
use byre_loader::fat::Fat;
use byre_slots::{BOOT_LABEL, Slot};
use std::fs::File;

/// Opens it; for reading only unless something is to be changed.
///
/// # Errors
/// Why not, in words.
pub(super) fn open(disk: &Disk, writable: bool) -> Result<Fat<Span>, String> {
    let bytes = disk.table.by_label(BOOT_LABEL).map_err(|error| error.to_string())?.size_bytes();
    let path = disk.path(BOOT_LABEL).map_err(|error| error.to_string())?;
    let device = File::options().read(true).write(writable).open(&path).map_err(|error| format!("{path}: {error}"))?;
    Fat::open(Span::new(device, 0, bytes)).map_err(|error| error.to_string())
}

/// Whether `slot` runs on trial.
///
/// # Errors
/// If that cannot be read, why not.
pub(super) fn is_on_trial(disk: &Disk, slot: Slot) -> Result<bool, String> {
    let fat = open(disk, false)?;
    let present = entries::read(&fat).map_err(|error| error.to_string())?;
    Ok(match entries::standing(&present, slot) {
        Standing::Counted { left: _ } => true,
        // Without an entry it was started by the firmware's own option.
        Standing::Blessed | Standing::Absent => false,
    })
}

//! Keeps two boot options of the firmware that start a slot's kernel image without the loader.
//!
//! A blessed entry has no counter, so the loader gives up when its kernel image cannot be loaded, and the firmware goes on
//! to its next option. These stand right behind the loader's: the first slot's image fails again, the second one boots.
//! They never change afterwards, so nothing is written at later boots. Firmware that keeps no options loses only this.

use super::devices::Disk;
use byre_slots::gpt::Partition;
use byre_slots::{BOOT_LABEL, Slot, efivar};
use std::path::PathBuf;

/// Numbers of our options: high, so that firmware, which counts from 0, does not give them away.
const OPTIONS: [(Slot, u16); 2] = [(Slot::A, 0x0bea), (Slot::B, 0x0beb)];

fn path(name: &str) -> PathBuf {
    format!("/sys/firmware/efi/efivars/{name}-{}", efivar::GLOBAL_VENDOR).into()
}

/// Writes what is missing; returns whether anything was.
///
/// # Errors
/// When the firmware does not take a variable: its store is full or locked.
pub(super) fn keep_fallbacks(disk: &Disk) -> Result<bool, String> {
    let partition = disk.table.by_label(BOOT_LABEL).map_err(|error| error.to_string())?;
    let mut changed = false;
    for (slot, number) in OPTIONS {
        changed |= keep_option(partition, slot, number)?;
    }
    let order = std::fs::read(path("BootOrder")).unwrap_or_default();
    let current = std::fs::read(path("BootCurrent")).ok().and_then(|raw| efivar::number(&raw));
    let numbers = OPTIONS.map(|(_, number)| number);
    // Started through one of ours: the order is what it was when it was written.
    let ours = current.is_some_and(|current| numbers.contains(&current));
    if !ours && let Some(wanted) = efivar::boot_order_with(&order, current, &numbers) {
        write("BootOrder", &wanted)?;
        changed = true;
    }
    Ok(changed)
}

fn keep_option(partition: &Partition, slot: Slot, number: u16) -> Result<bool, String> {
    let name = format!("Boot{number:04X}");
    let letter = slot.letter();
    let wanted = efivar::boot_option(&format!("Byre slot {letter}"), partition, &format!("\\byre\\{letter}.efi"));
    if std::fs::read(path(&name)).is_ok_and(|present| present == wanted) {
        return Ok(false);
    }
    write(&name, &wanted).map(|()| true)
}

/// One write call is one SetVariable.
fn write(name: &str, value: &[u8]) -> Result<(), String> {
    std::fs::write(path(name), value).map_err(|error| format!("{name}: {error}"))
}

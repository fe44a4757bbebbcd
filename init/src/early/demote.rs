//! Puts the other slot first when the booted one ended badly too often (details.md 21).
//!
//! The other slot is verified block by block against its own kernel image's root hash before anything is written. Then one
//! entry is renamed to a name with no tries left, which the loader sorts last: one directory sector.

use super::devices::Disk;
use super::{boot_partition, cmdline};
use byre_slots::gpt::ReadAt;
use byre_slots::{Slot, uki};
use std::fs::File;

/// Puts the other slot than `bad` first.
///
/// # Errors
/// Why not, in words; nothing is then changed and the boot goes on: a bad slot is better than none.
pub(super) fn put_other_first(disk: &Disk, bad: Slot) -> Result<(), String> {
    verify(disk, bad.other())?;
    let mut fat = boot_partition::open(disk, true)?;
    byre_loader::commit::put_other_first(&mut fat, bad).map_err(|error| error.to_string())
}

/// Checks every block of `slot` against the root hash in its kernel image's command line.
fn verify(disk: &Disk, slot: Slot) -> Result<(), String> {
    let open = |label| {
        let path = disk.path(label).map_err(|error| error.to_string())?;
        File::open(&path).map_err(|error| format!("{path}: {error}"))
    };
    let image = open(slot.uki_label())?;
    let fault = |error: std::io::Error| format!("{}: {error}", slot.uki_label());
    let mut header = [0u8; uki::HEADER_BYTES];
    ReadAt::read_exact_at(&image, &mut header, 0).map_err(fault)?;
    let section = uki::find(&header, ".cmdline")
        .filter(|section| section.size <= uki::MAX_CMDLINE_BYTES)
        .ok_or_else(|| format!("{} holds no kernel image", slot.uki_label()))?;
    let mut text = vec![0u8; usize::try_from(section.size).unwrap_or(0)];
    ReadAt::read_exact_at(&image, &mut text, section.offset).map_err(fault)?;
    let wanted = cmdline::parse(&String::from_utf8_lossy(&text)).map_err(|error| error.to_string())?;
    let mut root = std::io::BufReader::with_capacity(1 << 16, open(slot.root_label())?);
    let tree = byre_verity::build(&mut root, wanted.data_blocks).map_err(|error| error.to_string())?;
    let mut stored = vec![0u8; tree.bytes.len()];
    ReadAt::read_exact_at(&open(slot.verity_label())?, &mut stored, 0).map_err(fault)?;
    if tree.root_hash == wanted.root_hash && stored == tree.bytes {
        Ok(())
    } else {
        Err(format!("slot {} is damaged", slot.letter()))
    }
}

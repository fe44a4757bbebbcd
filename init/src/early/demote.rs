//! Puts the other slot first when the booted one ended badly too often (details.md 21).
//!
//! The other slot is verified block by block against its own kernel image's root hash before anything is written. Then one
//! entry is renamed to a name with no tries left, which the loader sorts last: one directory sector.

use super::cmdline;
use super::devices::Disk;
use byre_slots::entry::{EntryName, Trial};
use byre_slots::gpt::ReadAt;
use byre_slots::{BOOT_LABEL, Slot, uki};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CStr;
use std::fs::File;
use std::path::Path;

const BOOT: &str = "/boot";
const ENTRIES: &str = "/boot/loader/entries";
/// Two slots, and names that a torn rename left.
const MAX_ENTRIES: usize = 16;

/// Puts the other slot than `bad` first.
///
/// # Errors
/// Why not, in words; nothing is then changed and the boot goes on: a bad slot is better than none.
pub(super) fn put_other_first(disk: &Disk, bad: Slot) -> Result<(), String> {
    verify(disk, bad.other())?;
    let device = disk.path(BOOT_LABEL).map_err(|error| error.to_string())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(device.as_str(), BOOT, "vfat", flags, None::<&CStr>).map_err(|errno| format!("{device}: {errno}"))?;
    let result = reorder(bad);
    // Unmounting writes everything out; a failure leaves it to the sync before the reboot.
    let _ = unmount(BOOT, UnmountFlags::empty());
    result
}

/// Renames entries: the other slot's to one without a counter, if it ran out, then the bad one's to one that ran out.
fn reorder(bad: Slot) -> Result<(), String> {
    let names: Vec<(String, EntryName)> = std::fs::read_dir(ENTRIES)
        .map_err(|error| format!("{ENTRIES}: {error}"))?
        .flatten()
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| EntryName::parse(&name).map(|entry| (name, entry)))
        .collect();
    let (other_name, other) = names
        .iter()
        .find(|(_, entry)| entry.slot == bad.other())
        .ok_or_else(|| format!("slot {} has no entry", bad.other().letter()))?;
    if matches!(other.trial, Trial::Counted { left: 0, done: _ }) {
        rename(other_name, EntryName { slot: bad.other(), trial: Trial::Blessed })?;
    }
    for (name, _) in names.iter().filter(|(_, entry)| entry.slot == bad) {
        rename(name, EntryName { slot: bad, trial: Trial::Counted { left: 0, done: 0 } })?;
    }
    Ok(())
}

fn rename(from: &str, to: EntryName) -> Result<(), String> {
    let directory = Path::new(ENTRIES);
    std::fs::rename(directory.join(from), directory.join(to.to_string())).map_err(|error| format!("{from}: {error}"))
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

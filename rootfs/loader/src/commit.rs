//! What changes the boot partition: arming a slot, blessing it, running it out, putting it first, mending its kernel image.
//!
//! ```text
//! arm:    kernel image beside the old one -> its record names the new one -> entry under a name that the loader ignores
//!         -> older entries of the slot go -> rename to <slot>+2.conf            (the rename is the commit: one sector)
//! bless:  <slot>+1-1.conf -> <slot>.conf          run out: <slot>+1-1.conf -> <slot>+0-1.conf
//! ```
//! Each function may be cut anywhere and run again. None of them touches the kernel image or the entry of the running slot but those that
//! are for it.

use byre_slots::Slot;
use byre_slots::entry::{EntryName, TRIES, Trial};

use crate::Device;
use crate::entries::{self, DIRECTORY, LoaderEntry, Standing};
use crate::fat::{Fat, FatError};
use crate::order;

/// Why a slot is not armed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The file system.
    #[error(transparent)]
    Fat(#[from] FatError),
    /// The running slot has not shown that it works.
    #[error("slot {slot} runs but is not blessed yet; an update is possible once it is", slot = .0.letter())]
    Unproven(Slot),
    /// There is nothing to bless or to put first.
    #[error("slot {slot} has no entry on the boot partition", slot = .0.letter())]
    NoEntry(Slot),
    /// What was read back is not what was written.
    #[error("the boot partition does not give back what was written to {0}; replace the disk")]
    ReadBack(String),
    /// The order would not be the wanted one.
    #[error("the loader would not try slot {slot} first; its entries are not as the image made them", slot = .0.letter())]
    Order(Slot),
}

/// A name that the loader ignores.
fn ignored(slot: Slot) -> String {
    format!("{}.new", slot.letter())
}

/// Entries of a slot.
fn of(entries: &[LoaderEntry], slot: Slot) -> Vec<&LoaderEntry> {
    entries.iter().filter(|entry| entry.name.slot == slot).collect()
}

/// Puts a kernel image of `size` bytes, which `fill` hands out, in place of `slot`'s. Nothing is committed by it.
///
/// # Errors
/// If the slot beside it, which runs, is not blessed; if there is no room; those of the device.
pub fn place_image<D: Device>(
    fat: &mut Fat<D>,
    slot: Slot,
    size: u64,
    fill: &mut dyn FnMut(&mut [u8]) -> std::io::Result<()>,
) -> Result<(), CommitError> {
    if entries::standing(&entries::read(fat)?, slot.other()) != Standing::Blessed {
        return Err(CommitError::Unproven(slot.other()));
    }
    fat.reclaim()?;
    // The image and an entry beside it, before anything is written.
    let needed = size.saturating_add(fat.cluster_bytes().saturating_mul(2));
    let free = fat.free_bytes();
    if needed > free {
        return Err(FatError::Full { needed, free }.into());
    }
    fat.replace(&entries::image_path(slot), size, fill)?;
    Ok(())
}

/// Commits `slot`: from here on the loader tries it first, twice. Gives the version of its entry.
///
/// # Errors
/// If the slot beside it, which runs, is not blessed, and those of the device. Nothing is committed then, and the running slot stays first.
pub fn commit<D: Device>(fat: &mut Fat<D>, slot: Slot) -> Result<u64, CommitError> {
    let present = entries::read(fat)?;
    if entries::standing(&present, slot.other()) != Standing::Blessed {
        return Err(CommitError::Unproven(slot.other()));
    }
    let install = entries::next_install(&present);
    let (new, text) = (ignored(slot), entries::text(slot, install));
    fat.remove(DIRECTORY, std::slice::from_ref(&new))?;
    let mut rest = text.as_bytes();
    let path = format!("{DIRECTORY}/{new}");
    let size = u64::try_from(text.len()).unwrap_or(0);
    fat.replace(&path, size, &mut |part| std::io::Read::read_exact(&mut rest, part))?;
    if fat.read(&fat.find(&path)?, entries::ENTRY_BYTES)? != text.as_bytes() {
        return Err(CommitError::ReadBack(path));
    }
    let old: Vec<String> = of(&present, slot).into_iter().map(|entry| entry.file.clone()).collect();
    fat.remove(DIRECTORY, &old)?;
    let committed = EntryName { slot, trial: Trial::Counted { left: TRIES, done: 0 } };
    fat.rename(DIRECTORY, &new, &committed.to_string())?;
    let first = order::sorted(entries::read(fat)?).into_iter().next();
    if first.is_some_and(|entry| entry.name == committed) { Ok(install) } else { Err(CommitError::Order(slot)) }
}

/// The running slot does its job: its entry loses its counter. Returns whether it had one.
///
/// # Errors
/// If it has no entry; those of the device.
pub fn bless<D: Device>(fat: &mut Fat<D>, slot: Slot) -> Result<bool, CommitError> {
    settle(fat, slot, Trial::Blessed)
}

/// The slot failed: its entry has no tries left, so the loader takes it last. Returns whether anything was changed.
///
/// # Errors
/// If it has no entry; those of the device.
pub fn run_out<D: Device>(fat: &mut Fat<D>, slot: Slot) -> Result<bool, CommitError> {
    settle(fat, slot, Trial::Counted { left: 0, done: TRIES })
}

/// Gives a slot's newest entry the name that says `trial`, and takes further names of the slot away.
fn settle<D: Device>(fat: &mut Fat<D>, slot: Slot, trial: Trial) -> Result<bool, CommitError> {
    let present = entries::read(fat)?;
    let ours = of(&present, slot);
    let newest = ours.iter().map(|entry| entry.install).max().ok_or(CommitError::NoEntry(slot))?;
    let wanted = EntryName { slot, trial };
    let is_done = |entry: &LoaderEntry| match trial {
        Trial::Blessed => entry.name == wanted,
        Trial::Counted { .. } => matches!(entry.name.trial, Trial::Counted { left: 0, done: _ }),
    };
    let done = ours.iter().find(|entry| entry.install == newest && is_done(entry));
    let kept = match done {
        Some(entry) => entry.file.clone(),
        None => {
            let entry = ours.iter().find(|entry| entry.install == newest).ok_or(CommitError::NoEntry(slot))?;
            let name = wanted.to_string();
            // An older entry may have that name: it goes first, the newest one still stands.
            fat.remove(DIRECTORY, std::slice::from_ref(&name))?;
            fat.rename(DIRECTORY, &entry.file, &name)?;
            name
        }
    };
    let further: Vec<String> =
        entries::read(fat)?.into_iter().filter(|entry| entry.name.slot == slot).map(|entry| entry.file).collect();
    let further: Vec<String> = further.into_iter().filter(|file| !file.eq_ignore_ascii_case(&kept)).collect();
    if !further.is_empty() {
        fat.remove(DIRECTORY, &further)?;
    }
    Ok(done.is_none() || !further.is_empty())
}

/// Puts the other slot than `bad` first: if that one ran out it gets its entry without a counter, then `bad` runs out.
///
/// # Errors
/// If the other has no entry, in which case nothing is changed; those of the device.
pub fn put_other_first<D: Device>(fat: &mut Fat<D>, bad: Slot) -> Result<(), CommitError> {
    let present = entries::read(fat)?;
    match entries::standing(&present, bad.other()) {
        Standing::Absent => return Err(CommitError::NoEntry(bad.other())),
        Standing::Counted { left: 0 } => {
            bless(fat, bad.other())?;
        }
        Standing::Counted { .. } | Standing::Blessed => {}
    }
    match run_out(fat, bad) {
        // Started without an entry, by the firmware's own option: there is nothing to run out.
        Ok(_) | Err(CommitError::NoEntry(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

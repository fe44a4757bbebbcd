//! This boot did its job: said in the attempt record, so that earlier bad ends no longer count. Then the running slot's kernel image on
//! the boot partition is compared with the raw copy of it, and mended if they differ: rot there is found while the slot still boots.

use byre_boots::trial::Trials;
use byre_loader::fat::{Fat, FatError};
use byre_loader::{Device, Span, entries};
use byre_slots::attempts::{Attempts, Phase};

use super::boot_device::BootDevice;
use super::trial_files::TrialFiles;
use super::{TaskError, on, uki};
use crate::console;
use crate::supervisor::UNHEALTHY;

/// There once the running slot is known to do its job; holds its letter. Until then nobody writes the other slot.
pub(crate) const BLESSED: &str = "/run/byre/blessed";

/// The trials of this machine and their outcomes, for the updater: written before [`BLESSED`].
const TRIALS: &str = "/run/byre/trials.json";

/// Records the running slot as healthy.
pub(crate) fn record() -> Result<(), TaskError> {
    if let Ok(why) = std::fs::read_to_string(UNHEALTHY) {
        return Err(TaskError::Invalid(format!("this boot is not healthy: {}", why.trim_end())));
    }
    let disk = BootDevice::read()?;
    let boots = disk.attempts()?.map_or(1, |record| record.boots);
    disk.write_attempts(&Attempts { slot: disk.slot, bad_ends: 0, phase: Phase::Healthy, boots })?;
    // A boot is good whatever its boot partition looks like: what cannot be mended is said, and the other slot is still there.
    if let Err(error) = mend_kernel_image(&disk) {
        console::say(&format!("the kernel image of the running slot cannot be compared with its raw copy: {error}"));
    }
    let trials = TrialFiles::of_node().read().unwrap_or_else(|error| {
        eprintln!("{error}");
        Trials::default()
    });
    std::fs::write(TRIALS, trials.encode()).map_err(on("write", TRIALS))?;
    // Last: from here on an update may be armed, which writes the boot partition too.
    std::fs::write(BLESSED, format!("{}\n", disk.slot.letter())).map_err(on("write", BLESSED))
}

/// Puts the raw copy in place of the file if the file is another, or damaged.
fn mend_kernel_image(disk: &BootDevice) -> Result<(), TaskError> {
    let raw = disk.span(disk.slot.uki_label(), false)?;
    let Some(size) = uki::length(&raw).map_err(|error| TaskError::Invalid(error.to_string()))? else {
        return Err(TaskError::Invalid(format!("{} holds no kernel image", disk.slot.uki_label())));
    };
    uki::belongs_to(&raw, &disk.facts.root_hash)?;
    let fat = disk.boot(false)?;
    if is_the_same(&fat, &raw, &entries::image_path(disk.slot), size) {
        return Ok(());
    }
    let mut fat = disk.boot(true)?;
    let mut at = 0_u64;
    let mended = fat.reclaim().and_then(|()| {
        fat.replace(&entries::image_path(disk.slot), size, &mut |part| {
            raw.read_at(part, at)?;
            at = at.saturating_add(u64::try_from(part.len()).unwrap_or(0));
            Ok(())
        })
    });
    mended.map_err(|error| TaskError::Invalid(error.to_string()))?;
    console::say(&format!(
        "the kernel image of slot {} on the boot partition was damaged; it is mended",
        disk.slot.letter()
    ));
    Ok(())
}

fn is_the_same(fat: &Fat<Span>, raw: &Span, path: &str, size: u64) -> bool {
    let compare = || -> Result<bool, FatError> {
        let file = fat.find(path)?;
        if u64::from(file.size) != size {
            return Ok(false);
        }
        let (mut at, mut same) = (0_u64, true);
        let mut wanted = Vec::new();
        fat.read_to(&file, &mut |part| {
            wanted.resize(part.len(), 0);
            same = same && raw.read_at(&mut wanted, at).is_ok() && wanted == part;
            at = at.saturating_add(u64::try_from(part.len()).unwrap_or(0));
        })?;
        Ok(same)
    };
    // What cannot be read is not the same.
    compare().unwrap_or(false)
}

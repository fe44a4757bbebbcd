//! Counts boots that end badly, in the sector that `byre_slots::attempts` describes, and puts the other slot first when
//! there were too many.
//!
//! The record is written before verity opens the root, so that a root that panics the kernel is counted. A record that
//! cannot be read or written never stops a boot: it is said on the console and the boot goes on.

use super::console::Console;
use super::devices::Disk;
use super::slot::Chosen;
use super::watchdog::Watchdog;
use super::{EarlyError, crash, demote, sys};
use byre_slots::attempts::{Attempts, Evidence, LIMIT, Phase, SECTOR_BYTES, offset_in_state};
use byre_slots::gpt::ReadAt;
use byre_slots::{STATE_LABEL, Slot};
use std::os::unix::fs::FileExt;

/// Where this boot's record is, if it could be written.
pub(super) struct Recorder {
    place: Option<Place>,
    current: Option<Attempts>,
}

struct Place {
    device: std::fs::File,
    offset: u64,
}

impl Place {
    fn open(disk: &Disk) -> Result<Self, String> {
        let partition = disk.table.by_label(STATE_LABEL).map_err(|error| error.to_string())?;
        let offset = offset_in_state(partition.size_bytes()).ok_or("the state partition is too small")?;
        let path = disk.path(STATE_LABEL).map_err(|error| error.to_string())?;
        let device = std::fs::File::options().read(true).write(true).open(&path);
        Ok(Self { device: device.map_err(|error| format!("{path}: {error}"))?, offset })
    }

    fn read(&self) -> Option<Attempts> {
        let mut sector = [0u8; SECTOR_BYTES];
        ReadAt::read_exact_at(&self.device, &mut sector, self.offset).ok()?;
        Attempts::decode(&sector)
    }

    fn write(&self, record: &Attempts) -> std::io::Result<()> {
        self.device.write_all_at(&record.encode(), self.offset)?;
        self.device.sync_data()
    }
}

impl Recorder {
    /// Records that this boot starts, after finding out how the last one ended.
    pub(super) fn begin(
        disk: &Disk,
        chosen: &Result<Chosen, EarlyError>,
        watchdog: &Watchdog,
        console: &mut Console,
    ) -> Self {
        let place = match Place::open(disk) {
            Ok(place) => place,
            Err(error) => {
                console.line("attempts", &format!("not recorded: {error}"));
                return Self { place: None, current: None };
            }
        };
        let last = place.read();
        let slot = chosen.as_ref().map_or_else(|_| last.map_or(Slot::A, |last| last.slot), |chosen| chosen.slot);
        let evidence = evidence(watchdog);
        let current = Attempts::begin(last, evidence, slot);
        let written = place.write(&current);
        let ended = match (last.map(|last| last.phase), evidence) {
            (None, _) => "first boot",
            (Some(_), Evidence::Panic) => "the last boot ended in a panic",
            (Some(_), Evidence::Watchdog) => "the watchdog ended the last boot",
            (Some(Phase::EarlyError), Evidence::None) => "the last boot failed in the early stage",
            (Some(Phase::Healthy), Evidence::None) => "the last boot was good",
            (Some(Phase::Started), Evidence::None) => "the last boot was cut off",
        };
        let failed = written.err().map(|error| format!("; not recorded: {error}")).unwrap_or_default();
        console
            .line("attempts", &format!("boot {}, {} of {LIMIT} bad, {ended}{failed}", current.boots, current.bad_ends));
        if current.bad_ends >= LIMIT {
            give_up_slot(disk, &place, current, console);
        }
        Self { place: Some(place), current: Some(current) }
    }

    /// Records that the early stage gives up.
    pub(super) fn failed(&self) {
        if let (Some(place), Some(current)) = (&self.place, self.current) {
            // The message on the console comes next and the machine reboots either way.
            let _ = place.write(&Attempts { phase: Phase::EarlyError, ..current });
        }
    }
}

/// Puts the other slot first and reboots into it; returns only if that is not possible.
fn give_up_slot(disk: &Disk, place: &Place, current: Attempts, console: &mut Console) {
    let bad = current.slot;
    console.line("limit", &format!("slot {} ended badly {} times: checking the other", bad.letter(), current.bad_ends));
    match demote::put_other_first(disk, bad) {
        Ok(()) => {
            let next = Attempts { slot: bad.other(), bad_ends: 0, phase: Phase::Healthy, boots: current.boots };
            // The entry is renamed, which is what counts; a stale record at worst repeats this.
            let _ = place.write(&next);
            console.line("reboot", &format!("into slot {}", bad.other().letter()));
            sys::reboot()
        }
        Err(error) => console.line("limit", &format!("staying with slot {}: {error}", bad.letter())),
    }
}

/// How the last boot ended, as far as hardware and firmware kept it.
fn evidence(watchdog: &Watchdog) -> Evidence {
    // Collected in every case: a record that stays would count at the next boot.
    let panicked = crash::collect();
    let fired = match watchdog {
        Watchdog::Armed { fired, device: _, timeout_s: _ } => *fired,
        Watchdog::Absent => false,
    };
    match (fired, panicked) {
        (true, true | false) => Evidence::Watchdog,
        (false, true) => Evidence::Panic,
        (false, false) => Evidence::None,
    }
}

//! Counts boots that end badly, in the sector that `byre_slots::attempts` describes, and puts the other slot first when
//! there were too many. Beside it lies the flight recorder's ring: here the last boot's record is closed, with what the kernel left of
//! its end, and this boot's is opened.
//!
//! The record is written before verity opens the root, so that a root that panics the kernel is counted. A record that
//! cannot be read or written never stops a boot: it is said on the console and the boot goes on.

use super::console::Console;
use super::crash::Crash;
use super::devices::Disk;
use super::slot::Chosen;
use super::watchdog::Watchdog;
use super::{EarlyError, boot_partition, crash, demote, sys};
use crate::flight::{self, Flight};
use byre_boots::log;
use byre_boots::ring::{self, Boot, End};
use byre_slots::attempts::{Attempts, Evidence, LIMIT, Phase, SECTOR_BYTES, offset_in_state};
use byre_slots::gpt::ReadAt;
use byre_slots::{STATE_LABEL, Slot};
use std::os::unix::fs::FileExt;

/// Where this boot's record is, if it could be written.
pub(super) struct Recorder {
    place: Option<Place>,
    current: Option<Attempts>,
    /// Whether this boot is the trial of an update, as far as could be read.
    pub(super) on_trial: bool,
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

    fn flight(&self) -> std::io::Result<Flight> {
        Ok(Flight::new(self.device.try_clone()?, self.offset))
    }
}

impl Recorder {
    /// The number of this boot.
    pub(super) fn number(&self) -> u64 {
        self.current.map_or(0, |current| current.boots)
    }

    /// Records that this boot starts, after finding out how the last one ended.
    pub(super) fn begin(
        disk: &Disk,
        chosen: &Result<Chosen, EarlyError>,
        watchdog: &Watchdog,
        console: &mut Console,
    ) -> Self {
        let on_trial = match chosen.as_ref().ok().map(|chosen| boot_partition::is_on_trial(disk, chosen.slot)) {
            Some(Ok(on_trial)) => on_trial,
            Some(Err(error)) => {
                console.line("trial", &format!("not known whether this is one: {error}"));
                false
            }
            None => false,
        };
        let place = match Place::open(disk) {
            Ok(place) => place,
            Err(error) => {
                console.line("attempts", &format!("not recorded: {error}"));
                return Self { place: None, current: None, on_trial };
            }
        };
        let last = place.read();
        let slot = chosen.as_ref().map_or_else(|_| last.map_or(Slot::A, |last| last.slot), |chosen| chosen.slot);
        let crash = crash::collect();
        let evidence = evidence(watchdog, &crash);
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
        let recorded = place.flight().and_then(|flight| {
            last.map_or(Ok(()), |last| close_last(&flight, last, evidence, &crash))?;
            let (_, turn) = flight.read(current.boots)?;
            flight.write(&Boot { trial: on_trial, ..Boot::begun(current.boots, letter(slot)) }, turn)
        });
        if let Err(error) = recorded {
            console.line("recorder", &format!("not recorded: {error}"));
        }
        if current.bad_ends >= LIMIT {
            give_up_slot(disk, &place, current, console);
        }
        Self { place: Some(place), current: Some(current), on_trial }
    }

    /// Records that the early stage gives up, and why.
    pub(super) fn failed(&self, error: &EarlyError) {
        let (Some(place), Some(current)) = (&self.place, self.current) else { return };
        // The message on the console comes next and the machine reboots either way.
        let _ = place.write(&Attempts { phase: Phase::EarlyError, ..current });
        let _ = place.flight().and_then(|flight| {
            let (boot, turn) = flight.read(current.boots)?;
            let boot = boot.unwrap_or_else(|| Boot::begun(current.boots, letter(current.slot)));
            let cause = format!("early stage: {error}");
            flight.write(&Boot { end: End::Early, cause, tail: flight::log_tail(), ..boot }, turn)
        });
    }
}

fn letter(slot: Slot) -> char {
    match slot {
        Slot::A => 'a',
        Slot::B => 'b',
    }
}

/// Writes down how the last boot ended, unless it said so itself, and what the kernel left of its last words.
fn close_last(flight: &Flight, last: Attempts, evidence: Evidence, crash: &Crash) -> std::io::Result<()> {
    let (boot, turn) = flight.read(last.boots)?;
    let mut boot = boot.unwrap_or_else(|| Boot::begun(last.boots, letter(last.slot)));
    let end = match (evidence, boot.end) {
        (Evidence::Panic, _) => End::Panic,
        (Evidence::Watchdog, End::Open | End::CutOff) => End::Watchdog,
        (Evidence::None, End::Open) if last.phase == Phase::EarlyError => End::Early,
        (Evidence::None, End::Open) => End::CutOff,
        (Evidence::Watchdog | Evidence::None, end) => end,
    };
    if end == boot.end {
        return Ok(());
    }
    boot.end = end;
    if evidence == Evidence::Panic {
        let mut tail = Vec::new();
        crash.log.lines().for_each(|line| log::append(&mut tail, line.as_bytes(), ring::TAIL_BYTES));
        boot.tail = tail;
        boot.cause = log::cause(&crash.log).unwrap_or_else(|| "kernel panic".to_owned());
    } else if boot.cause.is_empty() && end == End::Watchdog {
        boot.cause = "nothing fed the watchdog for its whole time".to_owned();
    }
    flight.write(&boot, turn)
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
fn evidence(watchdog: &Watchdog, crash: &Crash) -> Evidence {
    let fired = match watchdog {
        Watchdog::Armed { fired, device: _, timeout_s: _ } => *fired,
        Watchdog::Absent => false,
    };
    match (fired, crash.panicked) {
        // A panic that its own reset did not end is ended by the watchdog: the panic is what happened.
        (_, true) => Evidence::Panic,
        (true, false) => Evidence::Watchdog,
        (false, false) => Evidence::None,
    }
}

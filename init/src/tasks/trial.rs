//! The judge of a trial: whether a new system does the node's job, and, when it did not, whether the old one still does.
//!
//! ```text
//! on trial:   all that held when it was armed holds for the settling time -> bless          else -> say why, run out, reboot
//! came back:  the configuration of before is in place already (with the state partition);
//!             the old system is held to the same -> the release has failed, or the attempt says nothing of it
//! neither:    nothing
//! ```
//! It decides what boots next and nothing else; PID 1 reboots by itself when a trial is not judged in time, so this may fail anywhere.

use byre_boots::log;
use byre_boots::ring::End;
use byre_boots::trial::{self, Committed, Judge, Outcome, Part, Trial, Trials, Verdict};
use byre_loader::entries::{LoaderEntry, Standing};
use byre_loader::{commit, entries};
use byre_slots::attempts::{Attempts, Phase};
use byre_slots::entry::Trial as Counter;

use super::TaskError;
use super::boot_device::{BootDevice, letter};
use super::trial_files::TrialFiles;
use super::watch::Watch;
use crate::console;

/// Between two looks.
const LOOK_MS: u64 = 1000;
/// Jobs that wait for the verdict.
const WAITING: [&str; 2] = ["trial", "healthy"];

/// Judges this boot; returns once it is settled.
pub(crate) fn judge() -> Result<(), TaskError> {
    let disk = BootDevice::read()?;
    let trials = TrialFiles::of_node().read().unwrap_or_else(|error| {
        // A trial is judged without its record too; only what held before is not known then.
        eprintln!("{error}");
        Trials::default()
    });
    let running = letter(disk.slot);
    let (on_trial_now, committed) = with_loader(&disk, trials.last());
    match trial::part(trials.last(), running, on_trial_now, committed) {
        Part::None => settle_record(trials, running),
        Part::Trial => on_trial(&disk, trials),
        Part::CameBack => {
            let why = why_it_came_back(&disk, trials.last());
            came_back(trials, why)
        }
        Part::CameBackWith => came_back(trials, None),
    }
}

/// Whether the running slot is on trial, and what became of the last trial's entry. If the boot partition cannot be read: what the early
/// stage said, and nothing of the other slot.
fn with_loader(disk: &BootDevice, last: Option<&Trial>) -> (bool, Committed) {
    let read = || -> Result<Vec<LoaderEntry>, TaskError> {
        entries::read(&disk.boot(false)?).map_err(|error| TaskError::Invalid(error.to_string()))
    };
    let present = match read() {
        Ok(present) => present,
        Err(error) => {
            eprintln!("{error}");
            return (disk.facts.on_trial, Committed::No);
        }
    };
    let on_trial = match entries::standing(&present, disk.slot) {
        Standing::Counted { left: _ } => true,
        Standing::Blessed | Standing::Absent => false,
    };
    let of_last = |entry: &&LoaderEntry| {
        last.is_some_and(|last| letter(entry.name.slot) == last.slot && entry.install == last.install)
    };
    let committed = match present.iter().find(of_last).map(|entry| entry.name.trial) {
        None => Committed::No,
        Some(Counter::Counted { left: 0, done: _ }) => Committed::RanOut,
        Some(Counter::Counted { .. } | Counter::Blessed) => Committed::Waits,
    };
    (on_trial, committed)
}

/// Blessed on the boot partition, and cut before it was written down.
fn settle_record(mut trials: Trials, running: char) -> Result<(), TaskError> {
    let pending = trials.trials.last_mut().filter(|last| last.slot == running && last.outcome == Outcome::Armed);
    match pending {
        Some(last) => {
            last.outcome = Outcome::Blessed;
            TrialFiles::of_node().write(&trials)?;
            TrialFiles::of_node().drop_configurations(None)
        }
        None => Ok(()),
    }
}

fn on_trial(disk: &BootDevice, mut trials: Trials) -> Result<(), TaskError> {
    let running = letter(disk.slot);
    let record = trials.trials.last_mut().filter(|last| last.slot == running);
    let held = record.as_ref().map(|record| record.held.clone()).unwrap_or_default();
    let version = record.as_ref().map_or_else(|| format!("of slot {running}"), |record| record.version.clone());
    console::say(&format!(
        "release {version} is on trial: it has {} s to show that it does what the one before did",
        trial::LIMIT_MS / 1000
    ));
    let mut watch = Watch::open()?;
    match wait_for_verdict(&mut watch, &held) {
        Verdict::Open | Verdict::Good => {
            bless(disk)?;
            if let Some(record) = record {
                record.outcome = Outcome::Blessed;
                TrialFiles::of_node().write(&trials)?;
                TrialFiles::of_node().drop_configurations(None)?;
            }
            console::say(&format!("release {version} is good: all has held for {} s", trial::SETTLE_MS / 1000));
            Ok(())
        }
        Verdict::Bad(why) => {
            console::say(&format!("{}release {version}: {why}", log::FAILED_AFTER_PREFIX));
            if let Some(record) = record {
                record.outcome = Outcome::Failed { why: why.clone(), confirmed: false };
                // Not written, the way back is the same; only the reason is less exact.
                if let Err(error) = TrialFiles::of_node().write(&trials) {
                    eprintln!("{error}");
                }
            }
            let mut fat = disk.boot(true)?;
            commit::run_out(&mut fat, disk.slot).map_err(|error| TaskError::Invalid(error.to_string()))?;
            watch.reboot()?;
            Err(TaskError::Invalid(format!("release {version} failed its trial: {why}")))
        }
    }
}

/// The attempt record first, the loader's entry then: cut in between, the trial is judged again.
fn bless(disk: &BootDevice) -> Result<(), TaskError> {
    let boots = disk.attempts()?.map_or(1, |record| record.boots);
    disk.write_attempts(&Attempts { slot: disk.slot, bad_ends: 0, phase: Phase::Healthy, boots })?;
    let mut fat = disk.boot(true)?;
    commit::bless(&mut fat, disk.slot).map(drop).map_err(|error| TaskError::Invalid(error.to_string()))
}

fn wait_for_verdict(watch: &mut Watch, held: &trial::Held) -> Verdict {
    let mut judge = Judge::default();
    loop {
        let missing = match watch.look() {
            Ok(seen) => trial::missing(held, &seen, &WAITING),
            Err(error) => vec![error.to_string()],
        };
        let verdict = judge.look(boot_ms(), &missing);
        if verdict != Verdict::Open {
            return verdict;
        }
        std::thread::sleep(std::time::Duration::from_millis(LOOK_MS));
    }
}

fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000)
}

/// Why the trial's boots ended, from the flight recorder; `None` if they only lost power, which says nothing of the release.
fn why_it_came_back(disk: &BootDevice, last: Option<&Trial>) -> Option<String> {
    let slot = last?.slot;
    let boots = disk.flight(false).ok()?.read_all().unwrap_or_default();
    let before = boots.into_iter().filter(|boot| boot.number < disk.facts.boot_number);
    let of_trial: Vec<_> = before.take_while(|boot| boot.slot == slot && boot.trial).collect();
    if of_trial.is_empty() {
        // It never came as far as the early stage: the loader or the kernel itself could not be started.
        return Some("it did not get as far as the early stage".to_owned());
    }
    let told = of_trial.iter().find(|boot| !matches!(boot.end, End::CutOff | End::InOrder | End::Open))?;
    Some(if told.cause.is_empty() { told.end.text().to_owned() } else { told.cause.clone() })
}

fn came_back(mut trials: Trials, why: Option<String>) -> Result<(), TaskError> {
    let Some(record) = trials.trials.last_mut() else { return Ok(()) };
    let version = record.version.clone();
    record.outcome = match (&record.outcome, why) {
        (Outcome::Failed { why, .. }, _) => hold_old_system(&record.held, &why.clone())?,
        (_, Some(why)) => hold_old_system(&record.held, &why)?,
        (_, None) => Outcome::Inconclusive { why: "the power went during its trial".to_owned() },
    };
    console::say(&match &record.outcome {
        Outcome::Inconclusive { why } => format!("release {version} was left and may be tried again: {why}"),
        Outcome::Failed { why, .. } => format!("release {version} has failed on this machine: {why}"),
        Outcome::Armed | Outcome::Blessed | Outcome::Reverted => String::new(),
    });
    TrialFiles::of_node().write(&trials)?;
    TrialFiles::of_node().drop_configurations(None)
}

fn hold_old_system(held: &trial::Held, why: &str) -> Result<Outcome, TaskError> {
    console::say(&format!("back from a trial that failed ({why}); this system is held to the same"));
    let mut watch = Watch::open()?;
    Ok(trial::after_return(why, &wait_for_verdict(&mut watch, held)))
}

/// With the state partition mounted and before anybody reads a configuration: after a failed trial the one of before is put back.
pub(crate) fn restore_configuration() -> Result<(), TaskError> {
    let disk = BootDevice::read()?;
    let trials = TrialFiles::of_node().read()?;
    let Some(last) = trials.last() else { return Ok(()) };
    let (on_trial, committed) = with_loader(&disk, Some(last));
    match trial::part(Some(last), letter(disk.slot), on_trial, committed) {
        Part::CameBack | Part::CameBackWith => {
            if TrialFiles::of_node().restore_configuration(last.generation)? {
                console::say("the configuration of before the trial is in place again");
            }
            Ok(())
        }
        Part::None | Part::Trial => Ok(()),
    }
}

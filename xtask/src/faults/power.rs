//! Power cuts in an update's last steps: the writes of arming a slot, of the trial's boot and of its blessing are recorded, every state that
//! a cut in them can leave is judged, and some of each kind are booted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use byre_slots::Slot;
use byre_tests::harm::{PlainDisk, flipped, kernel_image};
use byre_tests::node::{BOOT_LIMIT, Lab, Node, Off};
use byre_tests::power::arming;
use byre_tests::power::disk::{Base, Disk};
use byre_tests::power::judge::{Judge, Release, Tries, Verdict};
use byre_tests::power::log::Log;
use byre_tests::power::states::{Cut, Wanted as Draw, Watched, visit};

use super::count;
use crate::report::{Goal, Report, Row};

/// How much is wanted.
pub(super) struct Wanted {
    pub(super) torn: usize,
    pub(super) boots: usize,
}

/// One recording, with what it was recorded on.
struct Recording {
    name: &'static str,
    base: PathBuf,
    log: Log,
    judge: Judge,
    watched: Watched,
}

/// What was judged.
#[derive(Default)]
struct Tally {
    prefixes: usize,
    prefixes_bad: usize,
    torn: usize,
    torn_bad: usize,
    complaints: Vec<String>,
    /// States of one verdict boot the same: the first few of each are kept.
    classes: BTreeMap<Verdict, Vec<Disk>>,
}

/// States kept of one class, for booting.
const KEPT: usize = 40;
/// Complaints that are printed.
const SHOWN: usize = 20;

/// Records, judges, boots; gives the number of bad states.
pub(super) fn run(lab: &Lab, folder: &Path, wanted: &Wanted, report: &mut Report) -> Result<usize> {
    std::fs::create_dir_all(folder)?;
    let mut machine = Node::new_machine(lab, &folder.join("machine"))?;
    let mut tally = Tally::default();
    let recordings = [armed(lab, &mut machine)?, tried(lab, folder)?];
    let mut bad_boots = Vec::new();
    let mut booted = 0;
    for recording in &recordings {
        judge(recording, wanted.torn / recordings.len(), &mut tally)?;
        let classes = std::mem::take(&mut tally.classes);
        println!("{}: {} classes of states", recording.name, classes.len());
        let (count, mut bad) = boot(lab, folder, recording, &classes, wanted.boots.div_ceil(recordings.len()))?;
        booted += count;
        bad_boots.append(&mut bad);
    }
    for complaint in tally.complaints.iter().take(SHOWN) {
        println!("    {complaint}");
    }
    let zero = Goal::Value(0.0);
    report.push(Row::single("power.prefixes", "states", count(tally.prefixes), "every prefix of what was written"));
    report.push(Row::single("power.prefixes_bad", "states", count(tally.prefixes_bad), "").goal(zero));
    report.push(
        Row::single("power.torn_states", "states", count(tally.torn), "512 B and 4 KiB tears, unordered writes")
            .goal(Goal::AtLeast(10_000.0)),
    );
    report.push(Row::single("power.torn_bad", "states", count(tally.torn_bad), "").goal(zero));
    report.push(
        Row::single("power.booted", "boots", count(booted), "some of each class of equal states")
            .goal(Goal::AtLeast(300.0)),
    );
    report.push(Row::single("power.booted_bad", "boots", count(bad_boots.len()), &bad_boots.join("; ")).goal(zero));
    Ok(tally.prefixes_bad + tally.torn_bad + bad_boots.len())
}

/// The partitions that decide what boots.
fn watched(disk: &PlainDisk, labels: &[&str]) -> Result<Watched> {
    let range = |label: &&str| -> Result<std::ops::Range<u64>> {
        let partition = disk.manifest.partition(label)?;
        Ok(partition.offset_bytes..partition.offset_bytes + partition.size_bytes)
    };
    Ok(Watched(labels.iter().map(range).collect::<Result<_>>()?))
}

/// Arming, natively: a release with another kernel image is put into slot b of a machine that was never on.
fn armed(lab: &Lab, machine: &mut Off) -> Result<Recording> {
    let disk = PlainDisk::of(lab, machine)?;
    let image = flipped(&kernel_image(lab)?, ".osrel")?;
    let new = machine.config.directory.join("new");
    std::fs::create_dir_all(&new)?;
    for file in ["root.erofs", "root.verity"] {
        std::fs::copy(lab.image.join(file), new.join(file))?;
    }
    std::fs::write(new.join("uki.efi"), &image)?;
    let releases = vec![Release::read("old", &lab.image)?, Release::read("new", &new)?];
    let base = Base::open(&disk.path)?;
    let log = arming::record(&base, disk.manifest.partition("boot")?.offset_bytes, &image)?;
    Ok(Recording {
        name: "arming and blessing",
        judge: Judge::new(&disk.manifest, releases),
        watched: watched(&disk, &["boot"])?,
        base: disk.path.clone(),
        log,
    })
}

/// A trial in a machine: the loader counts a try, the system shows that it is good and blesses itself.
fn tried(lab: &Lab, folder: &Path) -> Result<Recording> {
    let place = folder.join("trial");
    let mut machine = Node::new_machine(lab, &place)?;
    let disk = PlainDisk::of(lab, &mut machine)?;
    disk.arm(Slot::B, &kernel_image(lab)?)?;
    let base = place.join("before.img");
    Disk::new(&Base::open(&disk.path)?).save(&disk.path, &base)?;
    let log = place.join("writes.log");
    std::fs::write(&log, [])?;
    machine.config.write_log = Some(log.clone());
    let mut node = machine.power()?;
    node.serial().wait_for("is good: all has held", BOOT_LIMIT * 2)?;
    node.wait_ready()?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off()?;
    Ok(Recording {
        name: "trial",
        judge: Judge::new(&disk.manifest, vec![Release::read("new", &lab.image)?]),
        watched: watched(&disk, &["boot"])?,
        base,
        log: Log::open(&log)?,
    })
}

fn judge(recording: &Recording, torn: usize, tally: &mut Tally) -> Result<()> {
    let base = Base::open(&recording.base)?;
    let mut tries = Tries::default();
    let draw = Draw { torn, seed: 0x5eed };
    println!("{}: {} requests were recorded", recording.name, recording.log.requests.len());
    visit(&base, &recording.log, &recording.watched, draw, &mut |cut, place, disk| {
        let verdict = recording.judge.judge(disk);
        let mut complaint = verdict.complaint();
        match cut {
            Cut::Prefix => {
                tally.prefixes += 1;
                complaint = complaint.or_else(|| tries.follow(&verdict));
                tally.prefixes_bad += usize::from(complaint.is_some());
            }
            Cut::Torn | Cut::Unordered => {
                tally.torn += 1;
                tally.torn_bad += usize::from(complaint.is_some());
            }
        }
        if let Some(complaint) = complaint {
            tally.complaints.push(format!("{} at request {place} ({cut:?}): {complaint}", recording.name));
        }
        let kept = tally.classes.entry(verdict).or_default();
        if kept.len() < KEPT {
            kept.push(disk.clone());
        }
        Ok(())
    })?;
    // What a state shares with the base is dropped with it.
    drop::<Rc<Base>>(base);
    Ok(())
}

/// Boots states: one of each class, then more of each in turn, up to so many.
fn boot(
    lab: &Lab,
    folder: &Path,
    recording: &Recording,
    classes: &BTreeMap<Verdict, Vec<Disk>>,
    most: usize,
) -> Result<(usize, Vec<String>)> {
    let mut bad = Vec::new();
    let mut booted = 0;
    for turn in 0..KEPT {
        for (verdict, states) in classes {
            let Some(state) = states.get(turn).filter(|_| booted < most) else { continue };
            booted += 1;
            let place = folder.join(format!("boot-{booted}"));
            let result = boot_one(lab, &place, &recording.base, state, verdict);
            match result {
                Ok(slot) => {
                    println!("boot {} ... slot {slot}", verdict.text());
                    std::fs::remove_dir_all(&place).ok();
                }
                Err(error) => {
                    println!("boot {} ... FAILED: {error:#}", verdict.text());
                    bad.push(format!("{}: {error}", verdict.text()));
                }
            }
        }
    }
    Ok((booted, bad))
}

/// Boots a state on firmware that knows nothing of it; it must serve, in the slot that the judge expects.
fn boot_one(lab: &Lab, place: &Path, base: &Path, state: &Disk, verdict: &Verdict) -> Result<char> {
    let mut machine = Node::new_machine(lab, place)?;
    let disk = place.join("state.img");
    state.save(base, &disk)?;
    machine.config.disk = disk;
    let node = machine.power()?;
    let line = node.serial().wait_for("byre: early: slot ", BOOT_LIMIT)?;
    let slot = line.split("byre: early: slot ").nth(1).and_then(|rest| rest.chars().next()).context("no slot")?;
    node.serial().wait_for("byre: service api is ready", BOOT_LIMIT)?;
    let expected = verdict.choices.first().map(|choice| choice.slot);
    anyhow::ensure!(expected == Some(slot), "slot {slot} booted, the judge expected {expected:?}");
    Ok(slot)
}

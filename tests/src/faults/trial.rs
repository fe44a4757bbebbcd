//! Faults of a release on trial in slot b; slot a is what the machine must come back to.

use anyhow::{Context as _, Result, ensure};
use byre_slots::Slot;

use super::{Fault, arm, last_of_b, switch_off, wait_for, wait_ready, works_in};
use crate::harm::{PlainDisk, flipped, kernel_image, with_command_line};
use crate::node::{BOOT_LIMIT, Lab, Off};

pub(super) const ALL: &[Fault] = &[
    Fault { name: "trial.good_is_blessed", run: good },
    Fault { name: "trial.kernel_image_truncated", run: truncated },
    Fault { name: "trial.kernel_flipped", run: |lab, machine| flip(lab, machine, ".linux") },
    Fault { name: "trial.initrd_flipped", run: |lab, machine| flip(lab, machine, ".initrd") },
    Fault { name: "trial.command_line_flipped", run: wrong_root },
    Fault { name: "trial.kernel_panics", run: kernel_panics },
    Fault { name: "trial.root_flipped", run: root_flipped },
    Fault { name: "trial.power_lost_twice", run: power_lost },
    Fault { name: "trial.critical_container_crash_loops", run: crash_loop },
    Fault { name: "trial.old_system_fails_as_well", run: fails_in_both },
];

/// What the console says once the old system has judged.
const FAILED: &str = "has failed on this machine: ";
const LEFT: &str = "was left and may be tried again: ";

fn good(lab: &Lab, mut machine: Off) -> Result<()> {
    arm(lab, &mut machine, &kernel_image(lab)?)?;
    let mut node = machine.power()?;
    wait_for(&node, "release 9.9 is good")?;
    wait_ready(&mut node)?;
    works_in(&node, "b")?;
    ensure!(last_of_b(&node)?["trial"] == true, "the boot does not say that it was a trial");
    let mut machine = switch_off(node)?;
    let entries = PlainDisk::of(lab, &mut machine)?.entries()?;
    ensure!(entries.iter().any(|name| name == "b.conf") && entries.len() == 2, "entries: {entries:?}");
    // Blessed, it is what boots from now on.
    let node = machine.switch_on()?;
    works_in(&node, "b")
}

/// The machine comes back to slot a by itself and says why.
fn comes_back(lab: &Lab, machine: Off, verdict: &str, words: &[&str]) -> Result<()> {
    let mut node = machine.power()?;
    let line = wait_for(&node, verdict)?;
    for word in words {
        ensure!(line.contains(word), "the verdict does not say {word:?}: {line}");
    }
    wait_ready(&mut node)?;
    works_in(&node, "a")?;
    let mut machine = switch_off(node)?;
    let entries = PlainDisk::of(lab, &mut machine)?.entries()?;
    ensure!(entries.iter().any(|name| name == "a.conf"), "slot a is not blessed: {entries:?}");
    Ok(())
}

fn truncated(lab: &Lab, mut machine: Off) -> Result<()> {
    let image = kernel_image(lab)?;
    arm(lab, &mut machine, image.get(..image.len() / 3).context("no image")?)?;
    comes_back(lab, machine, FAILED, &["early stage"])
}

fn flip(lab: &Lab, mut machine: Off, section: &str) -> Result<()> {
    arm(lab, &mut machine, &flipped(&kernel_image(lab)?, section)?)?;
    comes_back(lab, machine, FAILED, &["early stage"])
}

/// A command line that wants a root which is in no slot: the early stage gives up and says so.
fn wrong_root(lab: &Lab, mut machine: Off) -> Result<()> {
    let image = kernel_image(lab)?;
    let hash = byre_rootfs_build::Manifest::read(&lab.image)?.root_hash;
    let other =
        if hash.starts_with('0') { hash.replacen('0', "1", 1) } else { format!("0{}", hash.get(1..).unwrap_or("")) };
    let image = with_command_line(&image, &hash, &other)?;
    arm(lab, &mut machine, &image)?;
    comes_back(lab, machine, FAILED, &["early stage", "no slot"])
}

/// The kernel finds nothing to execute.
fn kernel_panics(lab: &Lab, mut machine: Off) -> Result<()> {
    let image = with_command_line(&kernel_image(lab)?, "loglevel=6", "rdinit=/no")?;
    arm(lab, &mut machine, &image)?;
    comes_back(lab, machine, FAILED, &["early stage"])
}

fn root_flipped(lab: &Lab, mut machine: Off) -> Result<()> {
    let disk = arm(lab, &mut machine, &kernel_image(lab)?)?;
    disk.flip_in_root(Slot::B)?;
    comes_back(lab, machine, FAILED, &["panic"])
}

/// Power that goes says nothing of a release: it may be tried again.
fn power_lost(lab: &Lab, mut machine: Off) -> Result<()> {
    arm(lab, &mut machine, &kernel_image(lab)?)?;
    for _ in 0..2 {
        let node = machine.power()?;
        node.serial().wait_for("on trial", BOOT_LIMIT)?;
        machine = node.power_cut()?;
    }
    comes_back(lab, machine, LEFT, &["the power went"])
}

/// The container stays up in every boot but the second, which is the trial.
fn crash_loop(lab: &Lab, machine: Off) -> Result<()> {
    let node = machine.switch_on()?;
    node.ctl().ok(&["exec", "web", "sh", "-c", "echo 3 >/fail-at"])?;
    let mut machine = switch_off(node)?;
    arm(lab, &mut machine, &kernel_image(lab)?)?;
    comes_back(lab, machine, FAILED, &["workload web"])
}

/// The container does not stay up any more, whatever runs: that is not the release's fault.
fn fails_in_both(lab: &Lab, machine: Off) -> Result<()> {
    let node = machine.switch_on()?;
    node.ctl().ok(&["exec", "web", "sh", "-c", "touch /broken"])?;
    let mut machine = switch_off(node)?;
    arm(lab, &mut machine, &kernel_image(lab)?)?;
    let mut node = machine.power()?;
    wait_for(&node, LEFT)?;
    wait_ready(&mut node)?;
    let version = node.ctl().json(&["version"])?;
    ensure!(version["server"]["slot"] == "a", "slot a should run: {version}");
    let last = last_of_b(&node)?;
    ensure!(last["end"] == "failed" && last["cause"].to_string().contains("web"), "slot b: {last}");
    Ok(())
}

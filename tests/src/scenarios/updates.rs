//! An update as its owner sees it: from a bundle to a blessed slot, back again, and away from a release that does not do its job.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{On, Scenario, eventually, inspect, same};
use crate::node::{BOOT_LIMIT, Lab, Node};

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "updates::the_next_release_is_tried_blessed_and_can_be_left_again", on: On::Own(there_and_back) },
    Scenario {
        name: "updates::a_critical_container_that_fails_in_a_release_is_answered_by_the_one_before",
        on: On::Own(left),
    },
];

/// A boot into a slot on trial, and its settling time; with the way back, two of each.
const TRIAL_LIMIT: Duration = Duration::from_secs(900);

/// The bundle of the release that follows the image.
fn bundle(lab: &Lab) -> Result<&str> {
    let path = lab.next.as_deref().context("no next release: `cargo xtask test --only guest` makes it")?;
    path.to_str().context("a strange path")
}

/// Slot and version of what runs, once the node answers and its slot is blessed.
fn blessed(node: &mut Node, slot: &str) -> Result<String> {
    let deadline = Instant::now() + TRIAL_LIMIT;
    loop {
        // It may be between two boots: whatever cannot be asked is asked again.
        if node.wait_ready().is_ok()
            && let (Ok(version), Ok(status)) = (node.ctl().json(&["version"]), node.ctl().json(&["update", "status"]))
            && version["server"]["slot"] == slot
            && status["blessed"] == true
        {
            return Ok(status["running"]["version"].as_str().unwrap_or_default().to_owned());
        }
        ensure!(Instant::now() < deadline, "slot {slot} is not running and blessed after {TRIAL_LIMIT:?}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// What the newest entry of the history says was done.
fn newest(node: &Node) -> Result<Value> {
    Ok(node.ctl().json(&["update", "history"])?[0].clone())
}

fn there_and_back(lab: &Lab, folder: &Path) -> Result<()> {
    let mut node = Node::boot(lab, folder)?;
    node.load_busybox()?;
    let keep = [
        "run",
        "-d",
        "--name",
        "kept",
        "--restart",
        "always",
        "--label",
        "critical=true",
        "busybox",
        "sleep",
        "100000",
    ];
    node.ctl().ok(&keep)?;
    let before = blessed(&mut node, "a")?;
    node.ctl().run(&["update", "rollback"])?.refused(&["nothing to go back to"])?;

    // Armed and not wanted after all: it stays where nothing boots it, and is not fetched again.
    node.ctl().ok(&["update", "apply", "--bundle", bundle(lab)?, "--offline"])?;
    same("what was done", newest(&node)?["what"].as_str(), Some("armed"))?;
    node.ctl().run(&["update", "apply", "--bundle", bundle(lab)?, "--offline"])?.refused(&["armed"])?;
    node.ctl().ok(&["update", "rollback"])?;

    node.ctl().ok(&["update", "apply", "--bundle", bundle(lab)?, "--offline", "--reboot"])?;
    node.serial().wait_for("is on trial", BOOT_LIMIT * 2)?;
    let after = blessed(&mut node, "b")?;
    ensure!(before != after, "both releases are {before}");
    eventually("the history has it", || Ok(newest(&node)?["what"] == "good"))?;
    eventually("the container runs", || Ok(inspect(&node, "kept")?["workload"]["state"] == "running"))?;

    node.ctl().ok(&["update", "rollback", "--reboot"])?;
    same("the version", blessed(&mut node, "a")?.as_str(), before.as_str())?;
    // And forward again, to what the other slot holds.
    node.ctl().ok(&["update", "rollback", "--reboot"])?;
    same("the version", blessed(&mut node, "b")?.as_str(), after.as_str())?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off().map(drop)
}

/// A container that runs where the root hash of the first release stands on the kernel's command line, and fails everywhere else.
fn left(lab: &Lab, folder: &Path) -> Result<()> {
    let mut node = Node::boot(lab, folder)?;
    node.load_busybox()?;
    blessed(&mut node, "a")?;
    let hash = byre_rootfs_build::Manifest::read(&lab.image)?.root_hash;
    let line = format!("grep -q {hash} /proc/cmdline || exit 3; exec sleep 100000");
    let run = [
        "run",
        "-d",
        "--name",
        "picky",
        "--restart",
        "always",
        "--label",
        "critical=true",
        "busybox",
        "sh",
        "-c",
        &line,
    ];
    node.ctl().ok(&run)?;
    eventually("the container runs", || Ok(inspect(&node, "picky")?["workload"]["state"] == "running"))?;
    node.ctl().ok(&["update", "apply", "--bundle", bundle(lab)?, "--offline", "--reboot"])?;
    node.serial().wait_for("is on trial", BOOT_LIMIT * 2)?;
    node.serial().wait_for("has failed on this machine: workload picky", TRIAL_LIMIT)?;
    blessed(&mut node, "a")?;
    eventually("the history has it", || Ok(newest(&node)?["what"] == "fell back"))?;
    let text = newest(&node)?["text"].as_str().unwrap_or_default().to_owned();
    ensure!(text.contains("picky"), "the history does not say why: {text}");
    let boot = node.ctl().ok(&["boots", "show", "-1"])?;
    ensure!(boot.contains("picky"), "the record of the boot does not say why: {boot}");
    node.ctl().run(&["update", "apply", "--bundle", bundle(lab)?, "--offline"])?.refused(&["--retry"])?;
    eventually("the container runs", || Ok(inspect(&node, "picky")?["workload"]["state"] == "running"))?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off().map(drop)
}

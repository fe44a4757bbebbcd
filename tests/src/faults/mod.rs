//! The list of faults: each is done to a machine, and the machine must end on a working system with its workloads, unattended, and say
//! afterwards what was the matter.
//!
//! All start from copies of one prepared machine, which has joined and runs a critical container. A trial is put on the disk from outside,
//! as `arm` would: what is judged here is everything behind the commit.

mod machine;
mod trial;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use byre_slots::Slot;
use serde_json::Value;

use crate::harm::PlainDisk;
use crate::node::{BOOT_LIMIT, Lab, Node, Off, tail};

/// One fault.
#[derive(Clone, Copy)]
pub struct Fault {
    /// Its name.
    pub name: &'static str,
    /// Does it and checks what comes of it, on a copy of the prepared machine.
    pub run: fn(&Lab, Off) -> Result<()>,
}

/// All faults.
#[must_use]
pub fn all() -> Vec<Fault> {
    [trial::ALL, machine::ALL].concat()
}

/// The critical container of the prepared machine. In the boot that the file /flag names by its number it does not stay up.
const WEB: &str = "boot=$(cat /proc/sys/kernel/random/boot_id); grep -q $boot /boots || echo $boot >>/boots; \
                   if [ -e /broken ]; then exit 7; fi; \
                   if [ -e /fail-at ] && [ $(wc -l </boots) = $(cat /fail-at) ]; then exit 7; fi; exec sleep 100000";

/// Makes the machine that all faults start from; it is switched off.
///
/// # Errors
/// If it does not boot.
pub fn prepare(lab: &Lab, folder: &Path) -> Result<Off> {
    let node = Node::boot(lab, folder)?;
    node.load_busybox()?;
    node.ctl().ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "--restart",
        "always",
        "--label",
        "critical=true",
        "busybox",
        "sh",
        "-c",
        WEB,
    ])?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    let mut machine = node.wait_off()?;
    PlainDisk::of(lab, &mut machine)?;
    Ok(machine)
}

/// A trial boots at most three times before the old system, and every boot may be slow.
const RETURN_LIMIT: Duration = Duration::from_secs(4 * BOOT_LIMIT.as_secs());

/// The record of a trial of slot b, as `arm` writes it: the container held.
fn record(install: u64) -> Vec<u8> {
    let record = serde_json::json!({
        "format": 1,
        "trials": [{
            "slot": "b",
            "version": "9.9",
            "root_hash": "00",
            "install": install,
            "armed_wall_s": 1,
            "held": { "services": ["api"], "workloads": ["web"] },
            "generation": 1,
            "outcome": "armed",
        }],
    });
    record.to_string().into_bytes()
}

/// Puts slot b on trial with this kernel image.
fn arm(lab: &Lab, machine: &mut Off, image: &[u8]) -> Result<PlainDisk> {
    let disk = PlainDisk::of(lab, machine)?;
    let install = disk.arm(Slot::B, image)?;
    disk.put_on_state("/boots", "trials.json", &record(install))?;
    Ok(disk)
}

/// Waits for a line on the console, over as many boots as that takes.
fn wait_for(node: &Node, text: &str) -> Result<String> {
    node.serial().wait_for(text, RETURN_LIMIT)
}

/// Waits until the node answers, over as many boots as that takes.
fn wait_ready(node: &mut Node) -> Result<()> {
    let deadline = Instant::now() + RETURN_LIMIT;
    loop {
        match node.wait_ready() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error.context(tail(&node.serial().text()))),
            Err(_) => {}
        }
    }
}

/// The node works: the slot that runs is this one, and the container runs.
fn works_in(node: &Node, slot: &str) -> Result<()> {
    let version = node.ctl().json(&["version"])?;
    ensure!(version["server"]["slot"] == slot, "slot {slot} should run: {version}");
    let deadline = Instant::now() + BOOT_LIMIT;
    while !node.ctl().ok(&["ps"])?.contains("web") {
        ensure!(Instant::now() < deadline, "its container does not run: {}", node.ctl().ok(&["ps", "-a"])?);
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// What the flight recorder says of the newest boot of slot b.
fn last_of_b(node: &Node) -> Result<Value> {
    let boots = node.ctl().json(&["boots"])?;
    let found = boots.as_array().and_then(|boots| boots.iter().find(|boot| boot["slot"] == "b")).cloned();
    found.with_context(|| format!("no boot of slot b is remembered: {boots}"))
}

/// Switches off in order.
fn switch_off(node: Node) -> Result<Off> {
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off()
}

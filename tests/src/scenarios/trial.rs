//! An update on trial. The rest of what may become of one is in the list of faults, which takes longer than these.

use std::path::Path;

use anyhow::{Result, ensure};
use byre_slots::Slot;

use super::{On, Scenario, same};
use crate::harm::{PlainDisk, kernel_image};
use crate::node::{BOOT_LIMIT, Lab, Node};

pub(super) const ALL: &[Scenario] =
    &[Scenario { name: "trial::a_slot_that_does_its_job_is_blessed", on: On::Own(blessed) }];

/// Slot b is on trial from the first boot on: it shows that it is good, loses its counter, and the record says what it was.
fn blessed(lab: &Lab, folder: &Path) -> Result<()> {
    let mut machine = Node::new_machine(lab, folder)?;
    let disk = PlainDisk::of(lab, &mut machine)?;
    disk.arm(Slot::B, &kernel_image(lab)?)?;
    let mut node = machine.power()?;
    node.serial().wait_for("is good: all has held", BOOT_LIMIT * 2)?;
    node.wait_ready()?;
    same("slot", node.ctl().json(&["version"])?["server"]["slot"].as_str(), Some("b"))?;
    let boots = node.ctl().json(&["boots"])?;
    ensure!(boots[0]["trial"] == true && boots[0]["end"] == "running", "boots: {boots}");
    node.ctl().ok(&["shutdown", "--yes"])?;
    let mut machine = node.wait_off()?;
    let mut entries = PlainDisk::of(lab, &mut machine)?.entries()?;
    entries.sort();
    same("entries", entries, vec!["a.conf".to_owned(), "b.conf".to_owned()])
}

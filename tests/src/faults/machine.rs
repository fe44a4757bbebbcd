//! Faults of the machine and its disk beside any update.

use std::time::Duration;

use anyhow::{Result, ensure};
use byre_slots::Slot;
use byre_slots::entry::EntryName;

use super::{Fault, switch_off, wait_ready, works_in};
use crate::harm::{PlainDisk, flipped, kernel_image};
use crate::node::{Lab, Off};

pub(super) const ALL: &[Fault] = &[
    Fault { name: "machine.gpt_primary_zeroed", run: |lab, machine| zeroed(lab, machine, 512) },
    Fault { name: "machine.gpt_backup_zeroed", run: |lab, machine| zeroed(lab, machine, -512 * 33) },
    Fault { name: "machine.clock_1970", run: |_, machine| clock(machine, "1970-01-02T00:00:00") },
    Fault { name: "machine.firmware_variables_lost", run: firmware_lost },
    Fault { name: "machine.kernel_image_rot_is_mended", run: rot },
    Fault { name: "machine.power_cycled_50_times", run: power_cycled },
];

/// A header and its entries of the partition table are gone.
fn zeroed(lab: &Lab, mut machine: Off, at: i64) -> Result<()> {
    PlainDisk::of(lab, &mut machine)?.write_raw(at, &[0; 512 * 33])?;
    let mut node = machine.power()?;
    wait_ready(&mut node)?;
    works_in(&node, "a")
}

fn clock(mut machine: Off, time: &str) -> Result<()> {
    machine.config.extra.extend(["-rtc".into(), format!("base={time}").into()]);
    let mut node = machine.power()?;
    wait_ready(&mut node)?;
    works_in(&node, "a")
}

/// The firmware has forgotten its boot options: it finds the loader by its fallback path.
fn firmware_lost(_: &Lab, machine: Off) -> Result<()> {
    std::fs::remove_file(machine.config.directory.join("firmware.fd")).ok();
    let mut node = machine.power()?;
    wait_ready(&mut node)?;
    works_in(&node, "a")
}

/// The file on the boot partition loses a bit where nobody looks; a good boot finds and mends it.
fn rot(lab: &Lab, mut machine: Off) -> Result<()> {
    let (whole, disk) = (kernel_image(lab)?, PlainDisk::of(lab, &mut machine)?);
    let damaged = flipped(&whole, ".osrel")?;
    let mut rest = damaged.as_slice();
    let mut fat = disk.boot()?;
    fat.replace("byre/a.efi", damaged.len() as u64, &mut |part| std::io::Read::read_exact(&mut rest, part))?;
    drop((fat, disk));
    let mut node = machine.power()?;
    super::wait_for(&node, "was damaged; it is mended")?;
    wait_ready(&mut node)?;
    works_in(&node, "a")?;
    let mut machine = switch_off(node)?;
    let fat = PlainDisk::of(lab, &mut machine)?.boot()?;
    ensure!(fat.read(&fat.find("byre/a.efi")?, u32::MAX)? == whole, "the file is not what it was");
    Ok(())
}

/// The power goes every few seconds, wherever a boot is then: nothing counts it, nothing wears out.
fn power_cycled(lab: &Lab, mut machine: Off) -> Result<()> {
    for number in 0..50_u64 {
        let node = machine.power()?;
        std::thread::sleep(Duration::from_millis(2000 + number * 397 % 9000));
        machine = node.power_cut()?;
    }
    let entries = PlainDisk::of(lab, &mut machine)?.entries()?;
    let blessed = |slot| EntryName { slot, trial: byre_slots::entry::Trial::Blessed }.to_string();
    ensure!([Slot::A, Slot::B].iter().all(|slot| entries.contains(&blessed(*slot))), "entries: {entries:?}");
    let mut node = machine.power()?;
    wait_ready(&mut node)?;
    works_in(&node, "a")
}

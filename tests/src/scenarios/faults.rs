//! Machines that are harmed: a flipped bit in the root, a kernel image cut short, a data partition that is full.
//!
//! Nobody helps: each of them must serve again by itself.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use byre_rootfs_build::Manifest;

use super::{On, Scenario, contains, same, sh};
use crate::node::{BOOT_LIMIT, Lab, Node, Off};

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "faults::a_flipped_bit_in_the_running_root_panics_and_comes_back", on: On::Own(flipped_bit) },
    Scenario { name: "faults::a_truncated_kernel_image_falls_back", on: On::Own(truncated_uki) },
    Scenario { name: "faults::a_full_data_partition_stays_inside", on: On::Own(full_disk) },
];

/// Blocks of dm-verity.
const BLOCK: u64 = 4096;
/// A machine that panics, resets and falls back boots up to four times.
const FALL_BACK_LIMIT: Duration = Duration::from_secs(4 * BOOT_LIMIT.as_secs());

/// Makes the machine's disk a plain file, so that it can be changed here, and gives its path.
fn flat_disk(machine: &mut Off) -> Result<std::path::PathBuf> {
    let overlay = machine.config.overlay();
    let raw = machine.config.directory.join("flat.img");
    let convert = Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&overlay).arg(&raw).status()?;
    ensure!(convert.success(), "qemu-img convert failed");
    std::fs::remove_file(&overlay)?;
    machine.config.disk.clone_from(&raw);
    Ok(raw)
}

/// Flips one bit in each block of slot a's root from the middle to its end, but not in its verity tree: whatever is read there that was
/// not read before is noticed, and slot b is whole.
fn flipped_bit(lab: &Lab, folder: &Path) -> Result<()> {
    let mut machine = Node::new_machine(lab, folder)?;
    let raw = flat_disk_of_new(&mut machine)?;
    let manifest = Manifest::read(&lab.image)?;
    let partition = manifest.partition("root-a")?.offset_bytes;
    let disk = OpenOptions::new().read(true).write(true).open(&raw)?;
    let mut byte = [0u8];
    for block in manifest.data_blocks / 2..manifest.data_blocks {
        let at = partition + block * BLOCK + 17;
        disk.read_exact_at(&mut byte, at)?;
        disk.write_all_at(&[byte[0] ^ 0x10], at)?;
    }
    disk.sync_all()?;
    let mut node = machine.power()?;
    let console = node.serial().clone();
    let (which, line) = console.wait_for_any(&["Kernel panic", "service api is ready"], BOOT_LIMIT)?;
    if which == 1 {
        // What was read so far lies before the middle: ask for more than fits the cache.
        node.wait_ready()?;
        node.load_busybox()?;
        for service in node.ctl().ok(&["services", "ls", "-q"])?.lines() {
            node.ctl().run(&["services", "restart", service]).ok();
        }
        node.ctl()
            .run(&[
                "run",
                "--rm",
                "--memory",
                "700M",
                "busybox",
                "dd",
                "if=/dev/zero",
                "of=/dev/null",
                "bs=500M",
                "count=1",
            ])
            .ok();
        console.wait_for("Kernel panic", BOOT_LIMIT)?;
    }
    ensure!(!line.is_empty(), "no line");
    wait_long(&mut node)?;
    let text = node.serial().text();
    contains("the console", &text, &["verity", "corrupted"])?;
    node.load_busybox()?;
    same("it does its job", sh(&node, &[], "echo fine")?.as_str(), "fine")
}

/// A machine that was never on has no overlay yet: its disk is a copy of the image.
fn flat_disk_of_new(machine: &mut Off) -> Result<std::path::PathBuf> {
    let raw = machine.config.directory.join("flat.img");
    let copy = Command::new("cp")
        .arg("--sparse=always")
        .arg(&machine.config.disk)
        .arg(&raw)
        .status()
        .context("cannot run cp")?;
    ensure!(copy.success(), "the disk image cannot be copied");
    machine.config.disk.clone_from(&raw);
    Ok(raw)
}

fn wait_long(node: &mut Node) -> Result<()> {
    let deadline = std::time::Instant::now() + FALL_BACK_LIMIT;
    loop {
        match node.wait_ready() {
            Ok(()) => return Ok(()),
            Err(error) if std::time::Instant::now() >= deadline => return Err(error),
            Err(_) => {}
        }
    }
}

/// The kernel image of the entry that boots first is cut short on the boot partition.
fn truncated_uki(lab: &Lab, folder: &Path) -> Result<()> {
    let node = Node::boot(lab, folder)?;
    let slot = node.ctl().json(&["version"])?["server"]["slot"].as_str().unwrap_or_default().to_owned();
    node.ctl().ok(&["shutdown", "--yes"])?;
    let mut machine = node.wait_off()?;
    let raw = flat_disk(&mut machine)?;
    let offset = Manifest::read(&lab.image)?.partition("boot")?.offset_bytes;
    let fat = format!("{}@@{offset}", raw.display());
    let mtools = |arguments: &[&str]| -> Result<String> {
        let (program, rest) = arguments.split_first().context("no program")?;
        let output = Command::new(program).arg("-i").arg(&fat).args(rest).env("MTOOLS_SKIP_CHECK", "1").output();
        let output = output.with_context(|| format!("cannot run {program}: install the package mtools"))?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let listing = mtools(&["mdir", "-/", "-b", "::"])?;
    let wanted = format!("{slot}.efi");
    let image = listing.lines().find(|path| path.to_lowercase().ends_with(&wanted));
    let image = image.with_context(|| format!("no {wanted} on the boot partition: {listing}"))?.trim().to_owned();
    let short = folder.join("short.efi");
    mtools(&["mcopy", "-n", &image, &short.to_string_lossy()])?;
    let bytes = std::fs::read(&short)?;
    std::fs::write(&short, bytes.get(..bytes.len() / 3).unwrap_or_default())?;
    mtools(&["mcopy", "-o", &short.to_string_lossy(), &image])?;

    let mut node = machine.power()?;
    wait_long(&mut node)?;
    let after = node.ctl().json(&["version"])?["server"]["slot"].as_str().unwrap_or_default().to_owned();
    ensure!(after != slot, "slot {slot} booted with a third of its kernel image");
    Ok(())
}

fn full_disk(lab: &Lab, folder: &Path) -> Result<()> {
    let node = Node::boot(lab, folder)?;
    node.load_busybox()?;
    node.ctl().ok(&["run", "-d", "--name", "beside", "--restart", "always", "busybox", "sleep", "100000"])?;
    let greedy = node.ctl().run(&["run", "--name", "greedy", "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1M"])?;
    contains("what it was told", &greedy.stderr.to_lowercase(), &["no space left"])?;
    // The node goes on: what needs no room works, what needs room is refused by name.
    contains("ps", &node.ctl().ok(&["ps"])?, &["beside"])?;
    node.ctl().ok(&["exec", "beside", "true"])?;
    let load = node.ctl().run(&["image", "load", &lab.nginx.to_string_lossy()])?;
    load.refused(&["space"])?;
    node.ctl().ok(&["rm", "-f", "greedy"])?;
    node.ctl().ok(&["image", "load", &lab.nginx.to_string_lossy()])?;
    same("others can be started", sh(&node, &[], "echo fine")?.as_str(), "fine")?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off().map(drop)
}

//! Machines that are harmed: a flipped bit in the root or in a layer, a kernel image cut short, a state partition without its head or
//! without anything, a data partition that is full.
//!
//! Nobody helps: each of them must serve again by itself.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use byre_rootfs_build::Manifest;

use super::{On, Scenario, contains, eventually, inspect, same, sh};
use crate::node::{BOOT_LIMIT, Lab, Node, Off};

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "faults::a_flipped_bit_in_the_running_root_panics_and_comes_back", on: On::Own(flipped_bit) },
    Scenario { name: "faults::a_truncated_kernel_image_falls_back", on: On::Own(truncated_uki) },
    Scenario { name: "faults::a_full_data_partition_stays_inside", on: On::Own(full_disk) },
    Scenario { name: "faults::damaged_partitions_are_mended_or_refused_by_name", on: On::Own(damaged_partitions) },
];

/// Blocks of dm-verity.
const BLOCK: u64 = 4096;
/// A machine that panics, resets and falls back boots up to four times.
const FALL_BACK_LIMIT: Duration = Duration::from_secs(4 * BOOT_LIMIT.as_secs());

/// Makes the machine's disk a plain file, so that it can be changed here, and gives its path.
fn flat_disk(machine: &mut Off, name: &str) -> Result<std::path::PathBuf> {
    let overlay = machine.config.overlay();
    let raw = machine.config.directory.join(name);
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
    // The boots that failed explain themselves afterwards.
    let boots = node.ctl().json(&["boots"])?;
    let panicked = boots.as_array().and_then(|boots| boots.iter().find(|boot| boot["end"] == "panic")).cloned();
    let panicked = panicked.with_context(|| format!("no boot ended in a panic: {boots}"))?;
    contains("the cause of the panic", &panicked["cause"].to_string(), &["kernel panic", "verity"])?;
    let shown = node.ctl().ok(&["boots", "show", &panicked["number"].to_string()])?;
    contains("boots show", &shown, &["Kernel panic - not syncing"])?;
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
    let raw = flat_disk(&mut machine, "flat.img")?;
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

/// One machine, damaged three times while it is off: the state partition loses its first blocks, the programs in layers get another
/// byte, and the state partition loses everything.
fn damaged_partitions(lab: &Lab, folder: &Path) -> Result<()> {
    let node = Node::boot(lab, folder)?;
    node.load_busybox()?;
    node.ctl().ok(&[
        "run",
        "-d",
        "--name",
        "kept",
        "--restart",
        "always",
        "-v",
        "stays:/stays",
        "busybox",
        "sh",
        "-c",
        KEPT,
    ])?;
    let identity = node.ctl().json(&["node"])?["machine_id"].clone();
    node.ctl().ok(&["shutdown", "--yes"])?;
    let mut machine = node.wait_off()?;
    let raw = flat_disk(&mut machine, "flat.img")?;
    let manifest = Manifest::read(&lab.image)?;
    let state = manifest.partition("state")?;
    let disk = OpenOptions::new().read(true).write(true).open(&raw)?;
    disk.write_all_at(&[0; 8192], state.offset_bytes)?;

    // The second superblock is as good as the first: nothing is lost, and the node says what it did.
    let node = machine.switch_on()?;
    contains("the console", &node.serial().text(), &["state partition", "mended from its second superblock"])?;
    same("machine identity", &node.ctl().json(&["node"])?["machine_id"], &identity)?;
    contains("the node's conditions", &node.ctl().ok(&["node"])?, &["mended"])?;
    eventually("its container runs", || Ok(inspect(&node, "kept")?["workload"]["state"] == "running"))?;
    same(
        "starts that its file tells of",
        node.ctl().ok(&["exec", "kept", "sh", "-c", "wc -l </starts"])?.as_str(),
        "2",
    )?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    let machine = node.wait_off()?;
    flip_in_programs(&disk, manifest.partition("data")?.offset_bytes)?;

    // The layer is not what was loaded: the start fails, and says of which file.
    let node = machine.switch_on()?;
    let refused = node.ctl().run(&["run", "--rm", "busybox", "true"])?;
    ensure!(refused.code != 0, "a container of a damaged image ran");
    contains("what it was told", &refused.stderr, &["execute", "true", "Input/output error"])?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    let mut machine = node.wait_off()?;
    let raw = flat_disk(&mut machine, "flat-with-work.img")?;
    let disk = OpenOptions::new().write(true).open(&raw)?;
    zero(&disk, state.offset_bytes, state.size_bytes)?;

    // An empty state partition: the node is another one, with the images and volumes of the data partition.
    let node = machine.switch_on()?;
    contains("the console", &node.serial().text(), &["state partition", "is empty now"])?;
    ensure!(node.ctl().json(&["node"])?["machine_id"] != identity, "the identity came from nowhere");
    same("containers", node.ctl().ok(&["ps", "-a", "-q"])?.as_str(), "")?;
    node.ctl().ok(&["image", "rm", "busybox"])?;
    node.load_busybox()?;
    same("its volume", sh(&node, &["-v", "stays:/stays"], "cat /stays/note")?.as_str(), "here")?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off().map(drop)
}

/// What the container of [`damaged_partitions`] runs: it leaves something in its writable layer and in a volume.
const KEPT: &str = "echo started >>/starts; echo here >/stays/note; exec sleep 100000";

/// Changes a byte of every program that begins at a block of the data partition, at a place that the kernel does not look at: without
/// fs-verity it would run.
fn flip_in_programs(disk: &std::fs::File, data: u64) -> Result<()> {
    const ELF: &[u8] = b"\x7fELF";
    /// In the padding of e_ident.
    const PADDING: u64 = 12;
    let mut chunk = vec![0; 256 * 4096];
    let (mut at, mut found) = (data, 0);
    loop {
        let length = disk.read_at(&mut chunk, at)?;
        if length == 0 {
            break;
        }
        for (block, bytes) in (0_u64..).zip(chunk[..length].chunks(4096)) {
            if bytes.starts_with(ELF) {
                disk.write_all_at(&[0x55], at + block * 4096 + PADDING)?;
                found += 1;
            }
        }
        at += length as u64;
    }
    ensure!(found > 0, "no program is found on the data partition");
    Ok(())
}

fn zero(disk: &std::fs::File, offset: u64, bytes: u64) -> Result<()> {
    let zeros = vec![0; 1 << 20];
    for at in (0..bytes).step_by(zeros.len()) {
        let length = zeros.len().min(usize::try_from(bytes - at)?);
        disk.write_all_at(zeros.get(..length).unwrap_or_default(), offset + at)?;
    }
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

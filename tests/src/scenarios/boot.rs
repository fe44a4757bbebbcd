//! What a booted node is: verified, hardened, and telling what it measured.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use byre_rootfs_build::Manifest;

use super::{On, Scenario, contains, same};
use crate::node::{Lab, Node, OFF_LIMIT};

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "boot::stages_are_on_the_console", on: On::Shared(stages) },
    Scenario { name: "boot::conditions_hold", on: On::Shared(conditions) },
    Scenario { name: "boot::facts_are_measured", on: On::Shared(facts) },
    Scenario { name: "boot::services_are_ready", on: On::Shared(services) },
    Scenario { name: "boot::the_kernel_log_is_served", on: On::Shared(kernel_log) },
    Scenario { name: "boot::the_power_button_shuts_down_in_order", on: On::Own(power_button) },
    Scenario { name: "boot::ctrl_alt_delete_reboots", on: On::Own(ctrl_alt_delete) },
    Scenario { name: "boot::a_larger_disk_is_used_whole", on: On::Own(larger_disk) },
    Scenario { name: "boot::the_root_is_never_written", on: On::Own(root_unchanged) },
];

fn stages(node: &Node) -> Result<()> {
    let console = node.serial().text();
    contains("the console", &console, &["byre: early:", "root hash", "service log is ready", "service api is ready"])?;
    ensure!(!console.contains("Kernel panic"), "the kernel panicked");
    let boots = node.ctl().json(&["boots"])?;
    same("how this boot stands", boots[0]["end"].as_str(), Some("running"))?;
    contains("boots show 0", &node.ctl().ok(&["boots", "show", "0"])?, &["byre: early: slot", "runs"])
}

fn conditions(node: &Node) -> Result<()> {
    let node = node.ctl().json(&["node"])?;
    let conditions = node["conditions"].as_array().cloned().unwrap_or_default();
    for name in ["verity", "seccomp", "cgroup2", "ready"] {
        let condition = conditions.iter().find(|condition| condition["name"] == name);
        ensure!(condition.is_some_and(|condition| condition["ok"] == true), "condition {name}: {conditions:?}");
    }
    Ok(())
}

fn facts(node: &Node) -> Result<()> {
    let facts = node.ctl().json(&["node"])?;
    same("processors", facts["processors"].as_u64(), Some(2))?;
    same("host name", facts["hostname"].as_str(), Some("byre-test"))?;
    let memory = facts["memory_bytes"].as_u64().unwrap_or(0);
    ensure!((800 << 20..=1024 << 20).contains(&memory), "{memory} bytes of memory in a machine of 1 GiB");
    let allocatable = facts["memory_allocatable_bytes"].as_u64().unwrap_or(0);
    ensure!(allocatable > memory / 2 && allocatable < memory, "{allocatable} of {memory} bytes allocatable");
    same("length of the machine identity", facts["machine_id"].as_str().map(str::len), Some(32))?;
    let text = facts["facts"].to_string();
    contains("facts", &text, &["cpu", "memory", "disk", "kernel", "cgroup"])
}

fn services(node: &Node) -> Result<()> {
    let listed = node.ctl().ok(&["services", "ls"])?;
    for name in ["api", "log", "state", "net", "config"] {
        ensure!(listed.contains(name), "no service {name}: {listed}");
    }
    Ok(())
}

fn kernel_log(node: &Node) -> Result<()> {
    contains("dmesg", &node.ctl().ok(&["dmesg"])?, &["Linux version", "byre:"])?;
    let mut follower = node.ctl().start(&["dmesg", "-f"])?;
    follower.until("Linux version", super::WAIT).map(drop)
}

fn power_button(lab: &Lab, folder: &Path) -> Result<()> {
    let mut node = Node::boot(lab, folder)?;
    node.load_busybox()?;
    // Neither one that ignores signals nor one that starts more of itself holds it up.
    node.ctl().ok(&[
        "run",
        "-d",
        "--name",
        "deaf",
        "busybox",
        "sh",
        "-c",
        "trap '' TERM INT HUP; while :; do sleep 1; done",
    ])?;
    node.ctl().ok(&[
        "run",
        "-d",
        "--name",
        "many",
        "busybox",
        "sh",
        "-c",
        "trap '' TERM; while :; do sleep 1 & sleep 0.1; done",
    ])?;
    node.vm().press_power()?;
    node.wait_off().map(drop)
}

fn ctrl_alt_delete(lab: &Lab, folder: &Path) -> Result<()> {
    let mut node = Node::boot(lab, folder)?;
    let version = node.ctl().json(&["version"])?;
    node.vm().ctrl_alt_delete()?;
    // Until the machine restarts, the node of before still answers.
    node.serial().wait_for("Restarting system", OFF_LIMIT)?;
    node.wait_ready()?;
    same("the version after it", node.ctl().json(&["version"])?, version)
}

fn larger_disk(lab: &Lab, folder: &Path) -> Result<()> {
    const DISK_BYTES: u64 = 6 << 30;
    let mut machine = Node::new_machine(lab, folder)?;
    machine.config.disk_bytes = Some(DISK_BYTES);
    let node = machine.switch_on()?;
    node.load_busybox()?;
    let free = super::sh(&node, &[], "df -k / | tail -1")?;
    let kib: u64 = free.split_whitespace().nth(1).context("df")?.parse().context("df")?;
    ensure!(kib > (DISK_BYTES >> 10) / 2, "the data partition has {kib} KiB of a disk of {DISK_BYTES} bytes");
    node.ctl().ok(&["shutdown", "--yes"])?;
    // Once only: the partition table is not written again.
    let machine = node.wait_off()?;
    let node = machine.switch_on()?;
    let again = super::sh(&node, &[], "df -k / | tail -1")?;
    ensure!(again.split_whitespace().nth(1) == free.split_whitespace().nth(1), "{free} became {again}");
    Ok(())
}

/// After a working life, the root and verity partitions of both slots are the bytes that were built.
fn root_unchanged(lab: &Lab, folder: &Path) -> Result<()> {
    let node = Node::boot(lab, folder)?;
    node.load_busybox()?;
    super::sh(&node, &[], "echo worked")?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    let machine = node.wait_off()?;
    let raw = folder.join("disk.raw");
    let convert =
        Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(machine.config.overlay()).arg(&raw).status()?;
    ensure!(convert.success(), "qemu-img convert failed");
    let manifest = Manifest::read(&lab.image)?;
    let disk = File::open(&raw)?;
    for (label, file) in
        [("root-a", "root.erofs"), ("root-b", "root.erofs"), ("verity-a", "root.verity"), ("verity-b", "root.verity")]
    {
        let built = std::fs::read(lab.image.join(file))?;
        let mut found = vec![0; built.len()];
        disk.read_exact_at(&mut found, manifest.partition(label)?.offset_bytes)?;
        ensure!(found == built, "{label} is not what was built");
    }
    Ok(())
}

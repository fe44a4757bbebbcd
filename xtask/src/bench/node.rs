//! `cargo xtask bench node`: the rows of a whole node. Milliseconds under software emulation mean nothing by themselves; ratios do.

use std::path::Path;

use anyhow::{Context as _, Result};
use byre_rootfs_build::Manifest;
use byre_tests::node::{Lab, Node};

use super::boots::{self, BootTimes};
use crate::report::{Goal, Report, Row, Sample};
use crate::{container_image, image, packages, test, tools};

/// Goals for sizes: what fits a slot four times over, and a FAT partition of 128 MiB with two of them.
const ROOT_BYTES: f64 = 24.0 * 1024.0 * 1024.0;
const UKI_BYTES: f64 = 20.0 * 1024.0 * 1024.0;
/// Goal for the memory of all programs of a node at rest.
const IDLE_BYTES: f64 = 32.0 * 1024.0 * 1024.0;
/// Goals beside a peer.
const BOOT_RATIO: f64 = 0.2;
const START_RATIO: f64 = 0.25;
/// The peers. Their side is not measured by this command yet, and the rows say so by having no figure for it.
const BOOT_PEER: &str = "Debian systemd + containerd";
const START_PEER: &str = "crun";
/// How long a node is left alone before its memory is read.
const REST: std::time::Duration = std::time::Duration::from_secs(60);

/// Arguments of `cargo xtask bench node`.
#[derive(clap::Args, Debug)]
#[group(id = "bench-node")]
pub(crate) struct Args {
    /// Boots of each side.
    #[arg(long, default_value_t = 5)]
    boots: usize,
    /// Containers that are started.
    #[arg(long, default_value_t = 50)]
    starts: usize,
    /// Only what needs no machine.
    #[arg(long)]
    sizes_only: bool,
    #[command(flatten)]
    image: image::Args,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    packages::ensure_installed(packages::FOR_IMAGE)?;
    packages::ensure_installed(test::FOR_MACHINES)?;
    let repository = image::repository()?;
    let target = repository.join("target");
    let built = target.join("image");
    let manifest = image::build(&args.image, &repository, &built, &mut |line| println!("{line}"))?;
    let accelerator = if byre_tests::kvm::works() { "KVM" } else { "software emulation (TCG)" };
    let mut report = Report::new(&repository, accelerator);
    if args.sizes_only {
        let reason = "not run: --sizes-only";
        push_boots(&mut report, &[], reason);
        report.push(Row::unmeasured("idle.memory", "bytes", reason).goal(Goal::Value(IDLE_BYTES)));
        report.push(Row::unmeasured("start.api", "ms", reason).goal(Goal::Ratio(START_RATIO)));
    } else {
        machine_rows(args, &repository, &built, &mut report)?;
    }
    push_sizes(&mut report, &manifest);
    report.publish(&target, "bench-node").map(drop)
}

fn push_sizes(report: &mut Report, manifest: &Manifest) {
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
    let mut size = |name, bytes: u64, goal, note| {
        report.push(Row::single(name, "bytes", bytes as f64, note).goal(Goal::Value(goal)));
    };
    size("size.root", manifest.root_bytes, ROOT_BYTES, "erofs, without its hash tree");
    size("size.uki", manifest.uki_bytes, UKI_BYTES, "stub, kernel, initramfs, command line");
}

/// A row of a boot: its name, its figure, what it says.
type BootRow = (&'static str, fn(&BootTimes) -> f64, &'static str);

fn push_boots(report: &mut Report, times: &[BootTimes], reason: &str) {
    let rows: [BootRow; 4] = [
        ("boot.init_to_api", |t| t.api - t.init, "from PID 1's execve to the first answer outside"),
        (
            "boot.init_to_container",
            |t| t.container - t.init,
            "from PID 1's execve to the container's first instruction",
        ),
        ("boot.kernel_to_api", |t| t.api, "from the kernel's start to the first answer outside"),
        ("boot.kernel_to_container", |t| t.container, "from the kernel's start to the container's first instruction"),
    ];
    for (name, figure, note) in rows {
        let row = if times.is_empty() {
            Row::unmeasured(name, "s", reason)
        } else {
            Row::sampled(name, "s", &Sample::new(times.iter().map(figure).collect()), note)
        };
        let row = row.against(BOOT_PEER, None);
        report.push(if name.contains("init") { row.goal(Goal::Ratio(BOOT_RATIO)) } else { row });
    }
}

fn machine_rows(args: &Args, repository: &Path, built: &Path, report: &mut Report) -> Result<()> {
    let target = repository.join("target");
    container_image::make_all(&target.join("images"))?;
    let lab = Lab {
        image: built.to_owned(),
        byrectl: tools::byrectl(repository)?,
        busybox: target.join("images/busybox.tar"),
        nginx: target.join("images/nginx.tar"),
        repository: repository.to_owned(),
    };
    let folder = target.join("bench/node");
    std::fs::remove_dir_all(&folder).ok();
    let node = Node::boot(&lab, &folder)?;
    node.load_busybox()?;
    boots::prepare(&node)?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    let mut machine = node.wait_off()?;
    let mut times = Vec::new();
    for number in 1..=args.boots {
        println!("boot {number} of {}", args.boots);
        let (measured, off) = boots::measure(machine)?;
        times.push(measured);
        machine = off;
    }
    push_boots(report, &times, "no boots were asked for");

    let node = machine.switch_on()?;
    node.ctl().ok(&["rm", "-f", boots::CONTAINER])?;
    std::thread::sleep(REST);
    report.push(idle_memory(&node)?.goal(Goal::Value(IDLE_BYTES)));
    report.push(starts(&node, args.starts)?.against(START_PEER, None).goal(Goal::Ratio(START_RATIO)));
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off()?;
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// The memory of every service of the node, as the kernel counts it for their cgroups.
fn idle_memory(node: &Node) -> Result<Row> {
    let names = node.ctl().ok(&["services", "ls", "-q"])?;
    let (mut total, mut anonymous, mut file) = (0u64, 0u64, 0u64);
    for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let text = node.ctl().ok(&["--output", "json", "stats", "--no-stream", name])?;
        let Some(stats) = text.lines().last().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        else {
            continue;
        };
        let stats = stats.get(0).unwrap_or(&stats);
        let field = |name: &str| stats[name].as_u64().unwrap_or(0);
        total += field("memory_bytes");
        anonymous += field("memory_anonymous_bytes");
        file += field("memory_file_bytes");
    }
    #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^53")]
    let figure = total as f64;
    let note =
        format!("all services {} s after the last container went; {anonymous} anonymous, {file} file", REST.as_secs());
    Ok(Row::single("idle.memory", "bytes", figure, &note))
}

/// From the client's call to the container's first instruction, by the guest's own clock on both ends being out of reach: the whole of
/// `byrectl run --rm busybox true`, connection and removal included, so an upper bound.
fn starts(node: &Node, count: usize) -> Result<Row> {
    let mut times = Vec::new();
    for _ in 0..count {
        let begun = std::time::Instant::now();
        node.ctl().ok(&["run", "--rm", "busybox", "true"])?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let note =
        "upper bound: byrectl run --rm with its connection, seen from outside; crun is not measured in this guest yet";
    Ok(Row::sampled("start.api", "ms", &Sample::new(times), note))
}

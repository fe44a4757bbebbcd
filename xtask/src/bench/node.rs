//! `cargo xtask bench node`: the rows of a whole node, beside a Debian system with containerd, and crun in it. Both sides run on the same
//! kernel in the same machine, in turn. Milliseconds under software emulation mean nothing by themselves; ratios do.
//!
//! A side that cannot be measured costs its figures, never the report.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use byre_rootfs_build::Manifest;
use byre_tests::node::{Lab, Node, Off};
use byre_tests::vm::Boot;

use super::boots::{self, BootTimes};
use super::peer::{Ingredients, Peer};
use super::peer_boots::{self, Memory, Prepared};
use super::starts::{self, Helpers};
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
/// The peers, as long as their versions are not known.
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
    /// Containers that each side starts.
    #[arg(long, default_value_t = 50)]
    starts: usize,
    /// Only what needs no machine.
    #[arg(long)]
    sizes_only: bool,
    /// Take the programs that measure inside a guest from this folder instead of building them.
    #[arg(long)]
    helpers: Option<PathBuf>,
    /// Measure one side alone, while working on it; the report then has no ratio.
    #[arg(long)]
    only: Option<Which>,
    #[command(flatten)]
    image: image::Args,
}

/// A side of the comparison.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// The node.
    Ours,
    /// Debian with containerd and crun.
    Peer,
}

/// What one side was measured to be; what could not be measured is its reason.
struct Side {
    /// Name with versions.
    boot_name: String,
    /// Name with version.
    start_name: String,
    boots: Result<Vec<BootTimes>, String>,
    memory: Result<Memory, String>,
    /// Milliseconds to the container's first instruction, and what else there is to say.
    starts: Result<(Vec<f64>, String), String>,
}

impl Side {
    fn unmeasured(reason: &str) -> Self {
        Self {
            boot_name: BOOT_PEER.to_owned(),
            start_name: START_PEER.to_owned(),
            boots: Err(reason.to_owned()),
            memory: Err(reason.to_owned()),
            starts: Err(reason.to_owned()),
        }
    }
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
    let mut report = Report::new(&repository, &format!("{accelerator}, profile {}", args.image.profile));
    let (ours, peer) = if args.sizes_only {
        let reason = "not run: --sizes-only";
        (Side::unmeasured(reason), Side::unmeasured(reason))
    } else {
        measure(args, &repository, &built)?
    };
    push_boots(&mut report, &ours, &peer);
    push_memory(&mut report, &ours, &peer);
    push_starts(&mut report, &ours, &peer);
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

fn push_boots(report: &mut Report, ours: &Side, peer: &Side) {
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
    let sample = |side: &Side, figure: fn(&BootTimes) -> f64| {
        let times = side.boots.as_ref().map_err(Clone::clone)?;
        Ok::<_, String>(Sample::new(times.iter().map(figure).collect()))
    };
    for (name, figure, what) in rows {
        let theirs = sample(peer, figure);
        let mut note = what.to_owned();
        if name == "boot.init_to_api" {
            let ready = |side| sample(side, |t| t.ready - t.init).ok().and_then(|sample| sample.median());
            if let (Some(ours), Some(theirs)) = (ready(ours), ready(peer)) {
                note += &format!("; to the service's own word that it is ready: {ours:.2} s against {theirs:.2} s");
            }
        }
        note += &spread_note(&theirs);
        let row = match sample(ours, figure) {
            Ok(sample) => Row::sampled(name, "s", &sample, &note),
            Err(reason) => Row::unmeasured(name, "s", &reason),
        };
        let row = row.against(&peer.boot_name, theirs.ok().and_then(|sample| sample.median()));
        report.push(if name.contains("init") { row.goal(Goal::Ratio(BOOT_RATIO)) } else { row });
    }
}

/// The other side's spread, or why there is none.
fn spread_note(theirs: &Result<Sample, String>) -> String {
    match theirs {
        Ok(sample) => match (sample.quantile(0.1), sample.quantile(0.9)) {
            (Some(low), Some(high)) => format!("; peer {low:.2}..{high:.2}"),
            _ => String::new(),
        },
        Err(reason) => format!("; peer not measured: {reason}"),
    }
}

fn push_memory(report: &mut Report, ours: &Side, peer: &Side) {
    #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^53")]
    let bytes = |memory: &Memory| memory.used as f64;
    let parts = |memory: &Memory| format!("{} anonymous, {} file", memory.anonymous, memory.file);
    let theirs = match &peer.memory {
        Ok(memory) => format!("peer {}", parts(memory)),
        Err(reason) => format!("peer not measured: {reason}"),
    };
    let row = match &ours.memory {
        Ok(memory) => {
            let note = format!("all top-level cgroups after {} s of rest; {}; {theirs}", REST.as_secs(), parts(memory));
            Row::single("idle.memory", "bytes", bytes(memory), &note)
        }
        Err(reason) => Row::unmeasured("idle.memory", "bytes", reason),
    };
    let row = row.against(&peer.boot_name, peer.memory.as_ref().ok().map(bytes));
    report.push(row.goal(Goal::Value(IDLE_BYTES)));
}

fn push_starts(report: &mut Report, ours: &Side, peer: &Side) {
    let theirs = peer.starts.as_ref().map(|(times, _)| Sample::new(times.clone())).map_err(Clone::clone);
    let more = peer.starts.as_ref().map(|(_, note)| note.clone()).unwrap_or_default();
    let row = match &ours.starts {
        Ok((times, note)) => {
            let note = format!("from the call to the first instruction; {note}{}{more}", spread_note(&theirs));
            Row::sampled("start.api", "ms", &Sample::new(times.clone()), &note)
        }
        Err(reason) => Row::unmeasured("start.api", "ms", reason),
    };
    let row = row.against(&peer.start_name, theirs.ok().and_then(|sample| sample.median()));
    report.push(row.goal(Goal::Ratio(START_RATIO)));
}

/// Measures both sides; boots in turn.
fn measure(args: &Args, repository: &Path, built: &Path) -> Result<(Side, Side)> {
    let target = repository.join("target");
    container_image::make_all(&target.join("images"))?;
    let helpers = match &args.helpers {
        Some(folder) => Helpers::of(folder)?,
        None => Helpers::build(repository, &args.image)?,
    };
    let lab = Lab {
        image: built.to_owned(),
        byrectl: tools::byrectl(repository)?,
        busybox: target.join("images/busybox.tar"),
        nginx: target.join("images/nginx.tar"),
        next: None,
        repository: repository.to_owned(),
    };
    let folder = target.join("bench/node");
    std::fs::remove_dir_all(&folder).ok();
    let (mut ours, mut peer) =
        (Side::unmeasured("no boots were asked for"), Side::unmeasured("no boots were asked for"));
    let left_out = |which| match args.only {
        Some(only) if only != which => Err("not run: --only names the other side".to_owned()),
        Some(_) | None => Ok(()),
    };
    let mut node = left_out(Which::Ours).and_then(|()| said("the node", prepare_node(&lab, &folder.join("ours"))));
    let ingredients = Ingredients { repository, busybox: &lab.busybox, helpers: &helpers };
    let mut other = left_out(Which::Peer)
        .and_then(|()| said("the peer", prepare_peer(ingredients, built, &folder.join("peer"), &mut peer)));
    (ours.boots, peer.boots) = (Ok(Vec::new()), Ok(Vec::new()));
    for number in 1..=args.boots {
        println!("boot {number} of {}", args.boots);
        node = node.and_then(|off| said("the node", boots::measure(off))).map(|(times, off)| {
            keep(&mut ours.boots, times);
            off
        });
        match other.as_mut().map_err(|reason| reason.clone()).and_then(|other| said("the peer", other.boot())) {
            Ok(times) => keep(&mut peer.boots, times),
            Err(reason) => peer.boots = Err(reason),
        }
    }
    if let Err(reason) = &node {
        ours.boots = Err(reason.clone());
    }
    println!("memory at rest, and starts");
    rest_of_node(node, &helpers, &folder, args.starts, &mut ours);
    match other {
        Ok(mut other) => {
            peer.memory = said("the peer", other.memory());
            peer.starts = said("the peer", other.starts(args.starts)).map(|starts| {
                let cold =
                    Sample::new(starts.cold).median().map(|ms| format!("; peer without its filter cache {ms:.1} ms"));
                (starts.warm, cold.unwrap_or_default())
            });
        }
        Err(reason) => (peer.memory, peer.starts) = (Err(reason.clone()), Err(reason)),
    }
    if ours.starts.is_ok() && peer.starts.is_ok() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok((ours, peer))
}

fn keep(list: &mut Result<Vec<BootTimes>, String>, times: BootTimes) {
    if let Ok(list) = list {
        list.push(times);
    }
}

/// A failure of one side, as a reason on one line; printed whole at once, since its row has little room.
fn said<T>(what: &str, result: Result<T>) -> Result<T, String> {
    result.map_err(|error| {
        eprintln!("{what} cannot be measured: {error:#}");
        format!("{error:#}").lines().next().unwrap_or("failed").to_owned()
    })
}

/// A node with the image and the container that is measured, booted like the peer: by the machine itself, without firmware.
fn prepare_node(lab: &Lab, folder: &Path) -> Result<Off> {
    let mut machine = Node::new_machine(lab, folder)?;
    let cmdline = std::fs::read_to_string(lab.image.join("cmdline")).context("the image has no command line")?;
    machine.config.boot = Boot::Kernel {
        kernel: lab.image.join("kernel"),
        initrd: lab.image.join("initrd"),
        cmdline: cmdline.trim().to_owned(),
    };
    let node = machine.switch_on()?;
    node.load_busybox()?;
    boots::prepare(&node)?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off()
}

fn prepare_peer(from: Ingredients<'_>, built: &Path, folder: &Path, side: &mut Side) -> Result<Prepared> {
    let peer = Peer::make(from)?;
    side.boot_name = format!("{}, {}, {}", peer.version("systemd"), peer.version("containerd"), peer.version("runc"));
    side.start_name = peer.version("crun");
    peer_boots::prepare(&peer, &built.join("kernel"), folder)
}

/// What is measured in one more boot of the node.
fn rest_of_node(node: Result<Off, String>, helpers: &Helpers, folder: &Path, count: usize, side: &mut Side) {
    let node = node.and_then(|off| {
        said("the node", off.switch_on().and_then(|node| node.ctl().ok(&["rm", "-f", boots::CONTAINER]).map(|_| node)))
    });
    match node {
        Ok(node) => {
            std::thread::sleep(REST);
            side.memory = said("the node's memory", idle_memory(&node));
            let starts = said("starts", starts::measure(&node, helpers, folder, count));
            side.starts = starts.map(|starts| {
                let answer = Sample::new(starts.answer).median().unwrap_or_default();
                let note = format!(
                    "two guests with the same settings, clients in them; the answer comes after {answer:.1} ms"
                );
                (starts.first, note)
            });
            said("the end", node.ctl().ok(&["shutdown", "--yes"]).and_then(|_| node.wait_off())).ok();
        }
        Err(reason) => (side.memory, side.starts) = (Err(reason.clone()), Err(reason)),
    }
}

/// The memory of every top-level cgroup, as the node's facts have it.
fn idle_memory(node: &Node) -> Result<Memory> {
    let facts = node.ctl().json(&["node"])?;
    let groups = facts.pointer("/facts/memory/cgroups");
    let groups = groups.and_then(serde_json::Value::as_array).context("the node's facts name no cgroups")?;
    let mut all = Memory::default();
    for group in groups {
        let part = |name: &str| group[name].as_u64().unwrap_or(0);
        all.used += part("used_bytes");
        all.anonymous += part("anonymous_bytes");
        all.file += part("file_bytes");
    }
    ensure!(all.used > 0, "the node's cgroups tell nothing");
    Ok(all)
}

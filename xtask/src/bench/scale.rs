//! A node full of containers at rest: how long it takes to start them, what each costs PID 1, and whether one more start is still quick.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use byre_tests::node::{Lab, Node};

use super::starts::{self, Helpers};
use crate::report::{Goal, Row, Sample};
use crate::{container_image, image, packages, test, tools};

/// Containers of the small case.
const FEW: usize = 10;
/// Memory of the guest: half a megabyte for each container's kernel objects and pages, and the node.
const MEMORY_MIB: u32 = 3072;
/// Goals of one container at rest in PID 1, and of a start beside many against one beside few.
const PID1_BYTES: f64 = 65_536.0;
const P99_RATIO: f64 = 2.0;
/// PID 1's own cgroup.
const PID1_CGROUP: &str = "init";

/// What was measured.
struct Scale {
    containers: usize,
    fill_s: f64,
    /// Bytes that PID 1 has for itself: anonymous, and with what the kernel keeps for it.
    few: Memory,
    many: Memory,
    starts_few: Sample,
    starts_many: Sample,
}

/// Memory of PID 1.
#[derive(Clone, Copy)]
struct Memory {
    anonymous: f64,
    used: f64,
}

/// The rows of a node with so many containers; unmeasured with the reason if it could not be done.
///
/// # Errors
/// If the image or the helpers do not build.
pub(super) fn rows(repository: &Path, args: &image::Args, containers: usize, starts: usize) -> Result<Vec<Row>> {
    if containers <= FEW {
        return Ok(unmeasured("not run: --containers 0"));
    }
    packages::ensure_installed(packages::FOR_IMAGE)?;
    packages::ensure_installed(test::FOR_MACHINES)?;
    let built = repository.join("target/image");
    image::build(args, repository, &built, &mut |line| println!("{line}"))?;
    let helpers = Helpers::build(repository, args)?;
    match measure(repository, &built, &helpers, containers, starts) {
        Ok(scale) => Ok(measured(&scale)),
        Err(error) => {
            eprintln!("a node with {containers} containers cannot be measured: {error:#}");
            Ok(unmeasured(format!("{error:#}").lines().next().unwrap_or("failed")))
        }
    }
}

fn unmeasured(reason: &str) -> Vec<Row> {
    [("idle.pid1_per_container", "bytes"), ("scale.start_1000", "s"), ("scale.p99_1000_to_10", "ratio")]
        .map(|(name, unit)| Row::unmeasured(name, unit, reason))
        .into()
}

fn measured(scale: &Scale) -> Vec<Row> {
    let more = f64::from(u32::try_from(scale.containers - FEW).unwrap_or(u32::MAX));
    let each = |of: fn(&Memory) -> f64| (of(&scale.many) - of(&scale.few)) / more;
    let used = format!(
        "anonymous memory of PID 1 with {} containers less that with {FEW}, for each; {:.0} bytes with what the kernel keeps in its cgroup",
        scale.containers,
        each(|memory| memory.used)
    );
    let all = format!(
        "{} starts one after the other through the API; the last {} took {:.1} s",
        scale.containers,
        scale.containers - FEW,
        scale.fill_s
    );
    let p99 = |sample: &Sample| sample.quantile(0.99).unwrap_or_default();
    let (few, many) = (p99(&scale.starts_few), p99(&scale.starts_many));
    let ratio = if few > 0.0 { many / few } else { 0.0 };
    let beside = format!(
        "p99 {many:.1} ms beside {}, {few:.1} ms beside {FEW}; medians {:.1} and {:.1} ms",
        scale.containers,
        scale.starts_many.median().unwrap_or_default(),
        scale.starts_few.median().unwrap_or_default()
    );
    vec![
        Row::single("idle.pid1_per_container", "bytes", each(|memory| memory.anonymous), &used)
            .goal(Goal::Value(PID1_BYTES)),
        Row::single("scale.start_1000", "s", scale.fill_s, &all),
        Row::single("scale.p99_1000_to_10", "ratio", ratio, &beside).goal(Goal::Value(P99_RATIO)),
    ]
}

fn measure(repository: &Path, built: &Path, helpers: &Helpers, containers: usize, starts: usize) -> Result<Scale> {
    let target = repository.join("target");
    container_image::make_all(&target.join("images"))?;
    let lab = Lab {
        image: built.to_owned(),
        byrectl: tools::byrectl(repository)?,
        busybox: target.join("images/busybox.tar"),
        nginx: target.join("images/nginx.tar"),
        next: None,
        repository: repository.to_owned(),
    };
    let folder = target.join("bench/scale");
    fs::remove_dir_all(&folder).ok();
    let mut machine = Node::new_machine(&lab, &folder)?;
    machine.config.memory_mib = MEMORY_MIB;
    let node = machine.switch_on()?;
    let scale = on_node(&node, helpers, &folder, containers, starts);
    if scale.is_err() {
        node.keep_evidence(&folder);
    }
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off()?;
    scale
}

fn on_node(node: &Node, helpers: &Helpers, folder: &Path, containers: usize, starts: usize) -> Result<Scale> {
    starts::load(node, helpers, folder)?;
    starts::fill(node, 0, FEW)?;
    let few = pid1_memory(node)?;
    let starts_few = Sample::new(starts::api(node, starts)?.first);
    println!("starting {} containers that stay", containers - FEW);
    let fill_s = starts::fill(node, FEW, containers)? / 1000.0;
    let many = pid1_memory(node)?;
    let starts_many = Sample::new(starts::api(node, starts)?.first);
    let there = node.ctl().ok(&["ps", "-q"])?.lines().count();
    ensure!(there >= containers, "{there} of {containers} containers run at the end");
    Ok(Scale { containers, fill_s, few, many, starts_few, starts_many })
}

/// PID 1's memory, as the node's facts have it.
#[expect(clippy::cast_precision_loss, reason = "memory is far below 2^53")]
fn pid1_memory(node: &Node) -> Result<Memory> {
    let facts = node.ctl().json(&["node"])?;
    let groups = facts.pointer("/facts/memory/cgroups").and_then(serde_json::Value::as_array);
    let own = groups.and_then(|groups| groups.iter().find(|group| group["name"] == PID1_CGROUP));
    let own = own.with_context(|| format!("the node's facts name no cgroup {PID1_CGROUP}"))?;
    let part = |name: &str| own[name].as_u64().map(|bytes| bytes as f64).with_context(|| format!("no {name}"));
    Ok(Memory { anonymous: part("anonymous_bytes")?, used: part("used_bytes")? })
}

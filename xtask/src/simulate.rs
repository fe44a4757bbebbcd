//! `cargo xtask simulate`: builds the simulation of PID 1's decisions, plays as many histories as asked for, and makes a report of it.
//!
//! The histories themselves are `init/simulation`; a share of them runs in `cargo test`.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::report::{Goal, Report, Row};
use crate::{image, tools};

/// Arguments of `cargo xtask simulate`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// How many histories are played.
    #[arg(long, default_value_t = 1_000_000)]
    histories: u64,
    /// The number of the first one; the others follow it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tell every event and decision of the first one instead.
    #[arg(long)]
    story: bool,
}

/// What `byre-simulate` prints.
#[derive(Debug, Deserialize)]
struct Summary {
    histories: u64,
    failures: u64,
    events: u64,
    shutdowns: u64,
    cuts: u64,
    crashes: u64,
    seeds: Vec<u64>,
}

/// What is counted in guests, by the scenarios and benchmarks that boot them.
const IN_GUESTS: &[&str] =
    &["guest.reexecs", "guest.rescues", "guest.restarted", "guest.log_bytes_lost", "guest.log_bytes_doubled"];

/// Builds and plays; fails if a history did.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = image::repository()?;
    let built = tools::cargo()
        .current_dir(&root)
        .args(["build", "--quiet", "--locked", "--profile", "fast", "--package", "byre-simulation"])
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "the simulation does not build");
    let target = root.join("target");
    let cargo_target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| target.clone(), std::path::PathBuf::from);
    let program = cargo_target.join(image::TARGET).join("fast/byre-simulate");
    let mut command = Command::new(&program);
    command.args(["--histories", &args.histories.to_string(), "--seed", &args.seed.to_string()]);
    if args.story {
        ensure!(command.arg("--story").status()?.success(), "history {} does not hold", args.seed);
        return Ok(());
    }
    let started = Instant::now();
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {}", program.display()))?;
    let summary: Summary = serde_json::from_slice(&output.stdout).context("the simulation ended without a result")?;
    let seconds = started.elapsed().as_secs();
    report(&root, &summary, seconds).publish(&target, "simulate")?;
    if summary.failures > 0 {
        bail!(
            "{} histories do not hold; the first are {:?}: read one with `cargo xtask simulate --story --seed N`, and keep it \
             in init/simulation/tests/seeds.txt",
            summary.failures,
            summary.seeds
        );
    }
    Ok(())
}

fn report(root: &std::path::Path, summary: &Summary, seconds: u64) -> Report {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    let figure = |number: u64| number as f64;
    let mut report = Report::new(root, "no guest");
    let note = format!("{} events, {} with a shutdown, {seconds} s", summary.events, summary.shutdowns);
    report.push(Row::single("histories", "histories", figure(summary.histories), &note));
    let note = "an invariant broken after a step, at rest, or at the end";
    report.push(Row::single("failures", "histories", figure(summary.failures), note).goal(Goal::Value(0.0)));
    let note = "histories played twice, PID 1 replaced through its records in the second; both decide the same";
    report.push(Row::single("reexec.cuts", "histories", figure(summary.cuts), note));
    let note = "histories with crashes of PID 1, rebuilt from the records and what the kernel has; all holds as ever";
    report.push(Row::single("rescue.crashes", "histories", figure(summary.crashes), note));
    for name in IN_GUESTS {
        report.push(Row::unmeasured(name, "count", "counted in guests, not by the simulation"));
    }
    report
}

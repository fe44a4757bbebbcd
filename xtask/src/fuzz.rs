//! `cargo xtask fuzz`: builds the fuzz targets of `tests/fuzz` with coverage instrumentation and runs them, two at a time.
//!
//! The compiler is the stable one. The instrumentation is its own, switched on for the crates of the workspace only, so that everything
//! below them is built once for tests and fuzzing. What a run found worth keeping stays in `target/fuzz/corpus`; what is committed is
//! `tests/fuzz/corpus`, which `--keep` renews. An input that fails a target is kept, named, and fails the command.

mod build;
mod ledger;
mod target;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail, ensure};

use crate::image;
use crate::report::{Goal, Report, Row};
use ledger::Ledger;
use target::{Outcome, Place, Ran, Target};

/// Time of each target in a run by hand: six of them are the hour that a decoder wants after each change.
const SECONDS: u32 = 600;
/// Time of each target in `cargo xtask test`.
const SECONDS_IN_TESTS: u32 = 30;
/// Targets at a time: tests run on machines of two processors.
const AT_ONCE: usize = 2;
/// Fuzzing time that a decoder should have had since it last changed.
const GOAL_SECONDS: u32 = 3600;

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Targets; all of them when none is named.
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, value_name = "N", default_value_t = SECONDS)]
    seconds: u32,
    /// Try this one input, as a failure says, instead of looking for others.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["list", "keep"])]
    input: Option<PathBuf>,
    /// After the run, put what covers most in the fewest bytes into tests/fuzz/corpus, to be committed.
    #[arg(long)]
    keep: bool,
    /// Name the targets with the time they have had, and run none.
    #[arg(long)]
    list: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = image::repository()?;
    let place = Place::new(&root, build::build(&root)?)?;
    let targets = selected(target::all(&place)?, &args.targets)?;
    if args.list {
        return list(&place, &targets);
    }
    if let Some(input) = &args.input {
        let [one] = targets.as_slice() else { bail!("name the one target that the input is for") };
        return target::replay(&place, one, input);
    }
    let mut ledger = Ledger::read(&root)?;
    let runs = run_all(&place, &targets, args.seconds);
    for (target, ran) in &runs {
        if let (Outcome::Passed, Ok(ran)) = outcome(ran) {
            ledger.add(&root, target, ran.seconds, ran.executions)?;
        }
    }
    ledger.write(&root)?;
    publish(&place, &ledger, &runs)?;
    if args.keep {
        for target in &targets {
            target::keep(&place, target)?;
        }
    }
    let failed = runs.iter().filter(|(_, ran)| !matches!(outcome(ran), (Outcome::Passed, Ok(_)))).count();
    ensure!(failed == 0, "{failed} targets failed");
    Ok(())
}

/// All targets for a short time, as part of all tests: how many passed and failed. The committed ledger stays as it is.
pub(crate) fn test(root: &Path) -> Result<(u64, u64)> {
    let place = Place::new(root, build::build(root)?)?;
    let targets = target::all(&place)?;
    let runs = run_all(&place, &targets, SECONDS_IN_TESTS);
    let mut ledger = Ledger::read(root)?;
    let (mut passed, mut failed) = (0, 0);
    for (target, ran) in &runs {
        if let (Outcome::Passed, Ok(ran)) = outcome(ran) {
            ledger.add(root, target, ran.seconds, ran.executions)?;
            passed += 1;
            println!("test fuzz::{} ... ok", target.name);
        } else {
            failed += 1;
            println!("test fuzz::{} ... FAILED", target.name);
        }
    }
    publish(&place, &ledger, &runs)?;
    Ok((passed, failed))
}

type Runs = Vec<(Target, Result<Ran>)>;

fn outcome(ran: &Result<Ran>) -> (Outcome, Result<&Ran, &anyhow::Error>) {
    match ran {
        Ok(ran) => (ran.outcome.clone(), Ok(ran)),
        Err(error) => (Outcome::Failed { input: None }, Err(error)),
    }
}

fn selected(all: Vec<Target>, names: &[String]) -> Result<Vec<Target>> {
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|target| target.name == **name)) {
        bail!("there is no target {unknown:?}: `cargo xtask fuzz --list` names them");
    }
    Ok(all.into_iter().filter(|target| names.is_empty() || names.contains(&target.name)).collect())
}

fn list(place: &Place, targets: &[Target]) -> Result<()> {
    let ledger = Ledger::read(&place.root)?;
    for target in targets {
        let seconds = ledger.seconds(&place.root, target)?;
        println!("{:8} {seconds:>6} of {GOAL_SECONDS} s  {}", target.name, target.about);
    }
    Ok(())
}

/// Runs targets from a common queue and says how each went as soon as it ended.
fn run_all(place: &Place, targets: &[Target], seconds: u32) -> Runs {
    let queue = Mutex::new(targets.iter());
    let runs = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(targets.len()) {
            scope.spawn(|| {
                loop {
                    let Some(target) = queue.lock().ok().and_then(|mut queue| queue.next()) else { return };
                    let ran = target::run(place, target, seconds);
                    println!("{}", said(target, &ran));
                    if let Ok(mut runs) = runs.lock() {
                        runs.push((target.clone(), ran));
                    }
                }
            });
        }
    });
    let mut runs = runs.into_inner().unwrap_or_default();
    runs.sort_by_key(|(target, _)| targets.iter().position(|other| other.name == target.name));
    runs
}

fn said(target: &Target, ran: &Result<Ran>) -> String {
    let name = &target.name;
    match ran {
        Err(error) => format!("{name}: {error:#}"),
        Ok(ran) => match &ran.outcome {
            Outcome::Passed => format!("{name}: {}", figures(ran)),
            Outcome::Failed { input } => {
                let input = input.as_ref().map_or_else(
                    || format!("no input was kept; see {}", ran.log.display()),
                    |path| {
                        format!("input: {}\nagain: cargo xtask fuzz {name} --input {}", path.display(), path.display())
                    },
                );
                format!("{name}: FAILED after {} runs\n{}\n{input}", ran.executions, ran.complaint)
            }
        },
    }
}

fn figures(ran: &Ran) -> String {
    let Ran { executions, seconds, edges, features, inputs, .. } = ran;
    format!("{executions} runs in {seconds} s, {edges} edges, {features} features, {inputs} inputs")
}

/// One row a target: the time that its decoder has had since it last changed, against the goal.
fn publish(place: &Place, ledger: &Ledger, runs: &Runs) -> Result<()> {
    let mut report = Report::new(&place.root, "natively");
    for (target, ran) in runs {
        let row = match outcome(ran) {
            (Outcome::Passed, Ok(ran)) => {
                let total = ledger.seconds(&place.root, target)?;
                Row::single(&target.name, "s", f64::from(total), &figures(ran))
            }
            (Outcome::Failed { .. }, Ok(ran)) => {
                Row::unmeasured(&target.name, "s", &format!("failed: {}", ran.complaint.replace('\n', " ")))
            }
            (Outcome::Passed | Outcome::Failed { .. }, Err(error)) => {
                Row::unmeasured(&target.name, "s", &format!("{error:#}"))
            }
        };
        report.push(row.goal(Goal::AtLeast(GOAL_SECONDS.into())));
    }
    report.publish(&place.target, "fuzz").context("the report of fuzzing")?;
    Ok(())
}

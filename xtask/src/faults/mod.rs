//! `cargo xtask faults`: cuts the power at every write of an update's commit and trial, and does the list of faults to machines; prints what
//! came of each.

mod power;
mod update;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use byre_tests::node::Lab;

use crate::report::{Goal, Report, Row};
use crate::{container_image, image, packages, test, tools};

/// Arguments of `cargo xtask faults`.
#[derive(clap::Args, Debug)]
#[group(skip)]
pub(crate) struct Args {
    /// Only this suite: power, faults, tuf or net; may be given several times.
    #[arg(long, value_name = "SUITE")]
    only: Vec<String>,
    /// Of the faults, only those whose name contains this; may be given several times.
    #[arg(long, value_name = "TEXT")]
    fault: Vec<String>,
    /// States that are torn or unordered, at least.
    #[arg(long, default_value_t = 10_000)]
    torn: usize,
    /// States that are booted, at most: one for each class of equal ones first.
    #[arg(long, default_value_t = 10)]
    boots: usize,
    #[command(flatten)]
    image: image::Args,
    /// Name the faults and do none.
    #[arg(long)]
    list: bool,
}

/// What can be run alone. The last two need no guest.
const SUITES: [&str; 4] = ["power", "faults", "tuf", "net"];

/// Runs the command; exits with 1 if anything was bad.
pub(crate) fn run(args: &Args) -> Result<()> {
    let faults: Vec<_> = byre_tests::faults::all()
        .into_iter()
        .filter(|fault| args.fault.is_empty() || args.fault.iter().any(|text| fault.name.contains(text.as_str())))
        .collect();
    if args.list {
        faults.iter().for_each(|fault| println!("{}", fault.name));
        return Ok(());
    }
    for name in &args.only {
        ensure!(SUITES.contains(&name.as_str()), "there is no suite {name:?}: {}", SUITES.join(", "));
    }
    let selected = |suite: &str| args.only.is_empty() || args.only.iter().any(|name| name == suite);
    let native = update::run(&selected)?;
    if !selected("power") && !selected("faults") {
        return native.publish();
    }
    let lab = lab(args)?;
    let folder = lab.repository.join("target/faults");
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let accelerator = if byre_tests::kvm::works() { "KVM" } else { "software emulation (TCG)" };
    let mut report = Report::new(&lab.repository, &format!("{accelerator}, profile {}", args.image.profile));
    let mut bad = native.add_to(&mut report);
    if selected("power") {
        bad += power::run(
            &lab,
            &folder.join("power"),
            &power::Wanted { torn: args.torn, boots: args.boots },
            &mut report,
        )?;
    }
    if selected("faults") {
        bad += list(&lab, &folder, &faults, &mut report)?;
    }
    report.publish(&lab.repository.join("target"), "faults")?;
    ensure!(bad == 0, "{bad} things were bad; what they left is in {}", folder.display());
    std::fs::remove_dir_all(&folder).ok();
    Ok(())
}

/// The image, byrectl and the container images.
fn lab(args: &Args) -> Result<Lab> {
    packages::ensure_installed(packages::FOR_IMAGE)?;
    packages::ensure_installed(test::FOR_MACHINES)?;
    let repository = image::repository()?;
    let target = repository.join("target");
    image::build(&args.image, &repository, &target.join("image"), &mut |line| eprintln!("{line}"))?;
    container_image::make_all(&target.join("images"))?;
    let mut build = tools::cargo();
    build.current_dir(&repository).args(["build", "--quiet", "--locked", "--package", "byrectl"]);
    ensure!(build.status().context("cannot run cargo build")?.success(), "byrectl does not build");
    let programs = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| target.clone(), PathBuf::from);
    let byrectl = programs.join(image::TARGET).join("debug/byrectl");
    let (busybox, nginx) = (target.join("images/busybox.tar"), target.join("images/nginx.tar"));
    Ok(Lab { image: target.join("image"), byrectl, busybox, nginx, next: None, repository })
}

/// Does the faults one after the other, each to a copy of one machine.
fn list(
    lab: &Lab,
    folder: &std::path::Path,
    faults: &[byre_tests::faults::Fault],
    report: &mut Report,
) -> Result<usize> {
    println!("preparing a machine");
    let prepared = byre_tests::faults::prepare(lab, &folder.join("prepared"))?;
    let mut failed: BTreeMap<&str, String> = BTreeMap::new();
    for fault in faults {
        let begun = Instant::now();
        let place: PathBuf = folder.join(fault.name);
        let result = prepared.copy(&place).and_then(|machine| (fault.run)(lab, machine));
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("fault {} ... {verdict} ({:.0} s)", fault.name, begun.elapsed().as_secs_f64());
        match result {
            Ok(()) => {
                std::fs::remove_dir_all(&place).ok();
            }
            Err(error) => {
                println!("    {}", format!("{error:#}").replace('\n', "\n    "));
                failed.insert(fault.name, error.to_string());
            }
        }
    }
    let names: Vec<&str> = failed.keys().copied().collect();
    let (passed, failures) = (faults.len() - failed.len(), failed.len());
    report.push(Row::single("faults.passed", "faults", count(passed), "each ends on a working system that says why"));
    report.push(Row::single("faults.failed", "faults", count(failures), &names.join(", ")).goal(Goal::Value(0.0)));
    Ok(failures)
}

/// As a figure of a row.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

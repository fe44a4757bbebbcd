//! `cargo xtask test`: every check there is, in the order in which a fault is cheapest to learn of, with one count at the end.
//!
//! Steps run one after the other and a failed one does not hide those behind it. What cannot run here is counted as skipped and says
//! what is missing. The last line, `N passed, N failed[, N skipped]`, is read by machines.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;

use crate::packages::{self, Needed};
use crate::{container_image, fuzz, image, keys, release, reproducible, tools};

/// What a machine needs beside what the image build needs.
pub(crate) const FOR_MACHINES: &[Needed] = &[
    Needed { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Needed { program: "qemu-img", package: "qemu-utils" },
    Needed { program: "/usr/share/OVMF/OVMF_CODE_4M.fd", package: "ovmf" },
];
/// Version of the release that scenarios update to.
const NEXT_VERSION: &str = "0.1.1";
/// What the scenarios need beside that: tools that look into a switched-off machine's disk.
const FOR_SCENARIOS: &[Needed] = &[Needed { program: "mcopy", package: "mtools" }];

/// Arguments of `cargo xtask test`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Run only this step; may be given several times.
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// Of the step `guest`, run only scenarios whose name contains this; may be given several times.
    #[arg(long, value_name = "TEXT")]
    scenario: Vec<String>,
    /// Name the steps and run none.
    #[arg(long)]
    list: bool,
}

/// How many of what was run came out how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    fn one(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed), skipped: 0 }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 { write!(formatter, ", {} skipped", self.skipped) } else { Ok(()) }
    }
}

struct Step {
    name: &'static str,
    what: &'static str,
    run: fn(&Run) -> Result<Tally>,
}

/// The order is from seconds to minutes.
const STEPS: &[Step] = &[
    Step { name: "format", what: "sources are formatted (rustfmt)", run: format },
    Step { name: "unit", what: "unit and property tests, house rules, dependency directions", run: unit },
    Step { name: "lint", what: "no lint fires (clippy)", run: lint },
    Step { name: "docs", what: "documentation builds without a warning", run: docs },
    Step { name: "deny", what: "licences, sources and advisories of dependencies (cargo-deny)", run: deny },
    Step { name: "fuzz", what: "no decoder of outside input breaks in 30 seconds of looking for a way", run: fuzz },
    Step { name: "native", what: "tests that need root on this machine", run: native },
    Step { name: "image", what: "the OS image builds", run: image },
    Step { name: "guest", what: "scenarios in a virtual machine that boots the shipped image", run: guest },
    Step { name: "reproducible", what: "the OS image built again elsewhere is the same bytes", run: reproducible },
];

/// The step that only runs when it is named: a second release build from nothing takes as long as all other builds together.
const ON_REQUEST: &str = "reproducible";

/// What all steps share.
struct Run {
    root: PathBuf,
    /// Where artefacts go.
    target: PathBuf,
    /// Where cargo builds.
    cargo_target: PathBuf,
    scenario: Vec<String>,
    /// The step `native` runs as well, so what `unit` leaves out is not left out.
    native_selected: bool,
}

/// Runs the steps and prints the count; exits with 1 if any failed.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        for step in STEPS {
            println!("{:12} {}", step.name, step.what);
        }
        return Ok(());
    }
    for name in &args.only {
        if !STEPS.iter().any(|step| step.name == name) {
            bail!("there is no step {name:?}: `cargo xtask test --list` names them");
        }
    }
    let selected = |step: &&Step| args.only.is_empty() || args.only.iter().any(|name| name == step.name);
    let root = image::repository()?;
    let target = root.join("target");
    let cargo_target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| target.clone(), PathBuf::from);
    let context = Run {
        root,
        target,
        cargo_target,
        scenario: args.scenario.clone(),
        native_selected: STEPS.iter().filter(selected).any(|step| step.name == "native"),
    };
    let started = Instant::now();
    let mut total = Tally::default();
    let mut lines = Vec::new();
    for step in STEPS.iter().filter(selected) {
        println!("\n=== {}: {}", step.name, step.what);
        let step_started = Instant::now();
        let tally = if step.name == ON_REQUEST && args.only.is_empty() {
            skip(1, step.what, "it builds the release a second time; `cargo xtask test --only reproducible` runs it")
        } else {
            (step.run)(&context).unwrap_or_else(|error| {
                println!("{}: {error:#}", step.name);
                Tally::one(false)
            })
        };
        total.add(tally);
        lines.push(format!("{:12} {:>8}  {tally}", step.name, seconds(step_started.elapsed())));
    }
    println!("\n=== summary, {}", seconds(started.elapsed()));
    for line in lines {
        println!("{line}");
    }
    println!("{total}");
    if total.failed > 0 {
        // Not an error: the line above is the last one.
        std::process::exit(1);
    }
    Ok(())
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn cargo(run: &Run) -> Command {
    let mut command = tools::cargo();
    command.current_dir(&run.root).env("CARGO_TERM_PROGRESS_WHEN", "never");
    command
}

fn skip(count: u64, what: &str, missing: &str) -> Tally {
    println!("skipped: {what}: {missing}");
    Tally { skipped: count, ..Tally::default() }
}

fn format(run: &Run) -> Result<Tally> {
    tools::rust_component(&run.root, "rustfmt")?;
    let status = cargo(run).args(["fmt", "--all", "--", "--check"]).status().context("cannot run cargo fmt")?;
    Ok(Tally::one(status.success()))
}

fn lint(run: &Run) -> Result<Tally> {
    tools::rust_component(&run.root, "clippy")?;
    let mut command = cargo(run);
    command.args(["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]);
    Ok(Tally::one(command.status().context("cannot run cargo clippy")?.success()))
}

fn docs(run: &Run) -> Result<Tally> {
    let mut command = cargo(run);
    command.args(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items", "--locked"]);
    let status = command.env("RUSTDOCFLAGS", "-D warnings").status().context("cannot run cargo doc")?;
    Ok(Tally::one(status.success()))
}

fn deny(run: &Run) -> Result<Tally> {
    let program = tools::cargo_deny(&run.target)?;
    let mut tally = Tally::default();
    for check in ["licenses", "bans", "sources"] {
        let mut command = Command::new(&program);
        command.args(["--all-features", "check", "--hide-inclusion-graph", check]).current_dir(&run.root);
        let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
        tally.add(Tally::one(status.success()));
    }
    // The database lies in a git repository; without a way to it there is nothing to compare with, which is not a pass.
    let fetch = Command::new(&program).args(["fetch", "db"]).current_dir(&run.root).output()?;
    if fetch.status.success() {
        let status = Command::new(&program).args(["check", "advisories"]).current_dir(&run.root).status()?;
        tally.add(Tally::one(status.success()));
    } else {
        let error = String::from_utf8_lossy(&fetch.stderr);
        let error = error.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no message");
        tally.add(skip(1, "advisories", &format!("the advisory database cannot be fetched: {error}")));
    }
    Ok(tally)
}

fn unit(run: &Run) -> Result<Tally> {
    packages::ensure_installed(packages::FOR_IMAGE)?;
    packages::ensure_installed(FOR_NATIVE)?;
    let mut command = cargo(run);
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    let mut tally = libtest(&mut command)?;
    if run.native_selected {
        tally.skipped = 0; // they run, and are counted, in the step `native`
    }
    Ok(tally)
}

fn fuzz(run: &Run) -> Result<Tally> {
    let (passed, failed) = fuzz::test(&run.root)?;
    Ok(Tally { passed, failed, skipped: 0 })
}

/// What tests on this machine itself, without a guest, use.
pub(crate) const FOR_NATIVE: &[packages::Needed] = &[
    packages::Needed { program: "/bin/busybox", package: "busybox-static" },
    packages::Needed { program: "mkfs.erofs", package: "erofs-utils" },
    packages::Needed { program: "ip", package: "iproute2" },
];

/// Tests that are marked `#[ignore = "needs root"]`: run as root, by way of sudo if need be.
fn native(run: &Run) -> Result<Tally> {
    packages::ensure_installed(FOR_NATIVE)?;
    let mut command = cargo(run);
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        let sudo = Command::new("sudo").args(["--non-interactive", "true"]).stderr(Stdio::null()).status();
        if !sudo.is_ok_and(|status| status.success()) {
            command.args(["--", "--ignored", "--list"]);
            let output = command.output().context("cannot run cargo test")?;
            let names = String::from_utf8_lossy(&output.stdout);
            let count = names.lines().filter(|line| line.ends_with(": test")).count();
            return Ok(skip(
                u64::try_from(count)?,
                "tests that need root",
                "this user is not root and sudo asks for a password",
            ));
        }
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo --non-interactive --preserve-env");
    }
    // One at a time: they mount, make cgroups and namespaces, and must not meet.
    command.args(["--", "--ignored", "--test-threads=1"]);
    libtest(&mut command)
}

/// The arguments of `cargo xtask image` when none are given: what is tested is what ships.
fn image_args() -> image::Args {
    #[derive(clap::Parser)]
    struct Default {
        #[command(flatten)]
        args: image::Args,
    }
    Default::parse_from(["image"]).args
}

fn build_image(run: &Run) -> Result<PathBuf> {
    packages::ensure_installed(packages::FOR_IMAGE)?;
    let out = run.target.join("image");
    image::build(&image_args(), &run.root, &out, &mut |line| println!("{line}"))?;
    Ok(out)
}

fn image(run: &Run) -> Result<Tally> {
    build_image(run).map(|_| Tally::one(true))
}

fn reproducible(run: &Run) -> Result<Tally> {
    let built = build_image(run)?;
    reproducible::check(&image_args(), &built).map(|()| Tally::one(true))
}

fn guest(run: &Run) -> Result<Tally> {
    packages::ensure_installed(FOR_MACHINES)?;
    packages::ensure_installed(FOR_SCENARIOS)?;
    let image = build_image(run)?;
    container_image::make_all(&run.target.join("images"))?;
    // Out of the whole workspace: packages alone would have other features, and so most of what the steps before built, built again.
    let programs = ["--workspace", "--bin", "byrectl", "--bin", "byre-scenarios"];
    let built = cargo(run).args(["build", "--quiet", "--locked"]).args(programs).status();
    anyhow::ensure!(built.context("cannot run cargo build")?.success(), "byrectl or the scenarios do not build");
    let programs = run.cargo_target.join("x86_64-unknown-linux-gnu/debug");
    let mut command = Command::new(programs.join("byre-scenarios"));
    command.arg("--target").arg(&run.target).arg("--image").arg(image);
    command.arg("--byrectl").arg(programs.join("byrectl")).arg("--next").arg(next_release(run)?).args(&run.scenario);
    libtest(&mut command)
}

/// A release that may follow the image, of the same programs, in a repository of its own. Gives its offline bundle.
fn next_release(run: &Run) -> Result<PathBuf> {
    let folder = run.target.join("next");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let mut args = image_args();
    args.version = Some(NEXT_VERSION.to_owned());
    args.install = 2;
    let keys = [keys::development(&args, &run.root)?];
    let (place, out) = (folder.join("repository"), folder.join("image"));
    let repository = release::open(&place, &keys)?;
    let manifest = image::build(&args, &run.root, &out, &mut |line| println!("next release: {line}"))?;
    release::publish(&repository, &place, &keys, &out, &manifest, "stable")
}

/// Runs a program that prints as libtest does, shows its output as it comes, and adds up its results.
fn libtest(command: &mut Command) -> Result<Tally> {
    libtest_to(command, &mut std::io::stdout().lock())
}

fn libtest_to(command: &mut Command, shown: &mut impl std::io::Write) -> Result<Tally> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {command:?}"))?;
    let output = child.stdout.take().context("no output to read")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        shown.write_all(&line)?;
        shown.write_all(b"\n")?;
        if let Some(result) = result_line(&String::from_utf8_lossy(&line)) {
            tally.add(result);
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // It did not build, or a test ended its process: that is a failure that no result line tells of.
        writeln!(shown, "{command:?}: {status}")?;
        tally.failed = 1;
    }
    Ok(tally)
}

/// Reads `test result: ok. 5 passed; 0 failed; 1 ignored; ...`.
fn result_line(line: &str) -> Option<Tally> {
    let counts = line.trim().strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut tally = Tally::default();
    for part in counts.split(';') {
        let mut words = part.split_whitespace();
        let (Some(count), Some(what)) = (words.next(), words.next()) else { continue };
        match (count.parse(), what) {
            (Ok(count), "passed") => tally.passed = count,
            (Ok(count), "failed") => tally.failed = count,
            (Ok(count), "ignored" | "skipped") => tally.skipped = count,
            _ => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_of_libtest_are_added_up() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 7 filtered out; finished in 0.01s";
        assert_eq!(result_line(line), Some(Tally { passed: 12, failed: 3, skipped: 4 }));
        assert_eq!(result_line("test a::b ... ok"), None);
        assert_eq!(result_line("the test result: ok. 1 passed"), None);
    }

    #[test]
    fn the_last_line_is_what_machines_read() {
        assert_eq!(Tally { passed: 2, failed: 0, skipped: 0 }.to_string(), "2 passed, 0 failed");
        assert_eq!(Tally { passed: 2, failed: 1, skipped: 3 }.to_string(), "2 passed, 1 failed, 3 skipped");
    }

    #[test]
    fn a_program_that_dies_without_a_result_has_failed() {
        let tally = libtest_to(
            Command::new("sh").args(["-c", "echo 'test result: ok. 1 passed; 0 failed;'; exit 3"]),
            &mut Vec::new(),
        )
        .unwrap();
        assert_eq!(tally, Tally { passed: 1, failed: 1, skipped: 0 });
    }
}

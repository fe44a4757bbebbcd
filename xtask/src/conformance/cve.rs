//! The regression tests of published attacks, and the proof that each can fail: a patch that takes its protection out, after which it must.
//!
//! Patches are applied in a scratch copy of the tracked files, one at a time, and taken back; nothing of the checkout is changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::report::{Goal, Report, Row};
use crate::test::FOR_NATIVE;
use crate::{image, packages, tools};

/// How many there are at least.
const AT_LEAST: f64 = 35.0;
/// Lines shown of a test that failed.
const SHOWN_LINES: usize = 12;

/// Arguments of `cargo xtask conformance cve`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Also take each protection out in a scratch tree and see its test fail: a build for each.
    #[arg(long)]
    mutants: bool,
    /// Only those whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let repository = image::repository()?;
    let rows = judge(&repository, args.mutants, args.only.as_deref())?;
    let mut report = Report::new(&repository, "native");
    let bad: f64 = rows.bad;
    rows.rows.into_iter().for_each(|row| report.push(row));
    report.publish(&repository.join("target"), "conformance-cve")?;
    ensure!(bad == 0.0, "a test failed, or a mutant survived");
    Ok(())
}

/// What came out.
pub(super) struct Judged {
    pub(super) rows: Vec<Row>,
    bad: f64,
}

/// Runs the tests, and the mutants if asked to.
///
/// # Errors
/// If the tests do not build, or a patch does not apply.
pub(super) fn judge(repository: &Path, mutants: bool, only: Option<&str>) -> Result<Judged> {
    packages::ensure_installed(FOR_NATIVE)?;
    let program = build(repository, None)?;
    let names = names(&program)?;
    let chosen: Vec<&String> = names
        .iter()
        .filter(|name| only.is_none_or(|text| name.contains(&text.to_lowercase().replace('-', "_"))))
        .collect();
    ensure!(!chosen.is_empty(), "no such test");
    let mut failed = 0_u32;
    for name in &chosen {
        if let Some(why) = failure(&program, name)? {
            println!("{name}: FAILED\n{why}");
            failed += 1;
        }
    }
    let count = |value: usize| f64::from(u32::try_from(value).unwrap_or(u32::MAX));
    let passed = count(chosen.len()) - f64::from(failed);
    let mut bad = f64::from(failed);
    let mut rows = vec![
        Row::single("cve.passed", "tests", passed, "").goal(Goal::AtLeast(AT_LEAST)),
        Row::single("cve.failed", "tests", f64::from(failed), "").goal(Goal::Value(0.0)),
    ];
    if mutants {
        let (tried, survived) = try_mutants(repository, &chosen)?;
        bad += count(survived.len());
        rows.push(Row::single("cve.mutants", "patches", count(tried), "").goal(Goal::AtLeast(AT_LEAST)));
        rows.push(
            Row::single("cve.mutants_survived", "patches", count(survived.len()), &survived.join(" "))
                .goal(Goal::Value(0.0)),
        );
    } else {
        let why = "`cargo xtask conformance cve --mutants` tries them: a build for each";
        rows.push(Row::unmeasured("cve.mutants", "patches", why));
        rows.push(Row::unmeasured("cve.mutants_survived", "patches", why));
    }
    Ok(Judged { rows, bad })
}

/// Builds the tests of a tree; gives the program.
fn build(tree: &Path, target: Option<&Path>) -> Result<PathBuf> {
    let mut command = tools::cargo();
    command
        // Out of the whole workspace: a package alone would have other features, and most of what was built before, built again.
        .args(["test", "--locked", "--workspace", "--test", "cve", "--no-run", "--message-format", "json"])
        .current_dir(tree)
        .stderr(Stdio::null());
    if let Some(target) = target {
        command.env("CARGO_TARGET_DIR", target);
    }
    let output = command.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests in {} do not build", tree.display());
    let text = String::from_utf8_lossy(&output.stdout);
    let built = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find_map(|one| {
        let is_tests = one["target"]["name"] == "cve" && one["profile"]["test"] == true;
        is_tests.then(|| one["executable"].as_str().map(PathBuf::from)).flatten()
    });
    built.context("cargo does not say where the tests are")
}

/// Every test, as the program lists it.
fn names(program: &Path) -> Result<Vec<String>> {
    let output =
        Command::new(program).args(["--list", "--format", "terse"]).output().context("cannot run the tests")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// What a test that failed said at its end.
fn failure(program: &Path, name: &str) -> Result<Option<String>> {
    let output = Command::new("timeout")
        .arg("120")
        .arg(program)
        .args(["--exact", name, "--include-ignored"])
        .output()
        .context("cannot run the tests")?;
    if output.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    Ok(Some(lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES)).map(|line| format!("    {line}\n")).collect()))
}

/// The patch of a test: named as its CVE, with what tells two tests of one CVE apart.
fn patch(repository: &Path, name: &str) -> PathBuf {
    let short = name.rsplit("::").next().unwrap_or(name);
    repository.join("tests/cve/mutants").join(format!("{short}.patch"))
}

/// Applies each patch in a scratch tree. Returns how many, and which of their tests passed nevertheless.
fn try_mutants(repository: &Path, names: &[&String]) -> Result<(usize, Vec<String>)> {
    let folder = repository.join("target/conformance/mutants");
    let tree = folder.join("tree");
    // With the checkout's own: what lies below the workspace is built already.
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
    fs::remove_dir_all(&tree).ok();
    fs::create_dir_all(&tree)?;
    let copy = "git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -C \"$1\" -xf - && git -C \"$1\" init -q";
    let status = Command::new("sh").args(["-c", copy, "sh"]).arg(&tree).current_dir(repository).status()?;
    ensure!(status.success(), "the checkout cannot be copied to {}", tree.display());
    let mut survived = Vec::new();
    for name in names {
        let patch = patch(repository, name);
        ensure!(patch.exists(), "{} is missing: each test has a patch that makes it fail", patch.display());
        apply(&tree, &patch, &[])?;
        let program = build(&tree, Some(&target)).with_context(|| format!("with {}", patch.display()));
        let killed = program.and_then(|program| Ok(failure(&program, name)?.is_some()));
        apply(&tree, &patch, &["--reverse"])?;
        match killed {
            Ok(true) => println!("{name}: fails without its protection, as it must"),
            Ok(false) => {
                println!("{name}: SURVIVED");
                survived.push(name.rsplit("::").next().unwrap_or(name).to_owned());
            }
            Err(error) => bail!(error),
        }
    }
    Ok((names.len(), survived))
}

fn apply(tree: &Path, patch: &Path, more: &[&str]) -> Result<()> {
    let status = Command::new("git").arg("apply").args(more).arg(patch).current_dir(tree).status()?;
    ensure!(status.success(), "{} does not apply: bring it up to date", patch.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_has_a_patch_and_each_patch_a_test() {
        let repository = image::repository().unwrap();
        let mut tests: Vec<String> = Vec::new();
        for entry in fs::read_dir(repository.join("runtime/oci/tests/cve")).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            tests.extend(text.lines().filter_map(|line| {
                let name = line.strip_prefix("fn cve_")?.split('(').next()?;
                Some(format!("cve_{name}.patch"))
            }));
        }
        let mut patches: Vec<String> = fs::read_dir(repository.join("tests/cve/mutants"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        tests.sort();
        patches.sort();
        assert_eq!(tests, patches);
        assert!(tests.len() >= 35, "{}", tests.len());
    }
}

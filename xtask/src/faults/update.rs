//! The updater against bad networks, servers, disks and repositories: tests of its crate, run in full and counted.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::report::{Goal, Report, Row};
use crate::{image, tools};

/// What a suite leaves.
#[derive(Deserialize)]
struct Outcome {
    passed: Vec<String>,
    failed: Vec<String>,
}

/// The rows of the suites that need no guest.
pub(super) struct Native {
    rows: Vec<Row>,
    bad: usize,
}

/// Runs those that are selected.
pub(super) fn run(selected: &dyn Fn(&str) -> bool) -> Result<Native> {
    let mut native = Native { rows: Vec::new(), bad: 0 };
    let suites = [
        ("tuf", "tuf", "cases of tuf-conformance by name, each refresh from what the last left on disk"),
        ("net", "network", "drops at every percent, stalls, lies, cancels, full disks, bundles; against files"),
    ];
    for (name, program, note) in suites.into_iter().filter(|(name, ..)| selected(name)) {
        let outcome = run_program(program)?;
        native.bad += outcome.failed.len();
        native.rows.push(count(&format!("{name}.passed"), outcome.passed.len(), note));
        native.rows.push(failed(&format!("{name}.failed"), &outcome));
    }
    Ok(native)
}

impl Native {
    /// Adds the rows to a report; returns how many cases failed.
    pub(super) fn add_to(self, report: &mut Report) -> usize {
        self.rows.into_iter().for_each(|row| report.push(row));
        self.bad
    }

    /// A report of these rows alone.
    pub(super) fn publish(self) -> Result<()> {
        let root = image::repository()?;
        let mut report = Report::new(&root, "native, development build");
        let bad = self.add_to(&mut report);
        report.publish(&root.join("target"), "faults")?;
        ensure!(bad == 0, "{bad} cases failed");
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred cases")]
fn count(name: &str, cases: usize, note: &str) -> Row {
    Row::single(name, "cases", cases as f64, note)
}

fn failed(name: &str, outcome: &Outcome) -> Row {
    count(name, outcome.failed.len(), &outcome.failed.join(", ")).goal(Goal::Value(0.0))
}

/// Runs a test program of the updater in full. A case that fails is counted, not an error.
fn run_program(suite: &str) -> Result<Outcome> {
    let root = image::repository()?;
    let directory = tempfile::tempdir()?;
    let report = directory.path().join("report.json");
    let status = tools::cargo()
        .current_dir(&root)
        .args(["test", "--locked", "--quiet", "--package", "byre-update", "--test", suite, "--", "--nocapture"])
        .env("BYRE_FAULTS_REPORT", &report)
        .status()
        .context("cannot run cargo")?;
    let text = std::fs::read_to_string(&report).with_context(|| format!("suite {suite} left no report ({status})"))?;
    Ok(serde_json::from_str(&text)?)
}

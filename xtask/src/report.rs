//! The one shape of every measurement: a table for people and `target/reports/<command>[-<suite>].json` for programs.
//!
//! A row that could not be measured stays in, with no figure and its reason, so that a report never looks complete when it is not.
//! This module must not measure anything itself.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

/// All rows of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Processor, number of them, memory and accelerator: what the figures hold for.
    machine: String,
    /// The commit that was measured, `-dirty` if files were changed.
    commit: String,
    rows: Vec<Row>,
}

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    name: String,
    unit: String,
    ours: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spread: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
    note: String,
}

/// A bound that a row is held to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// On `ours`, in the row's unit.
    Value(f64),
    /// A lower one on `ours`, in the row's unit.
    AtLeast(f64),
    /// On `ours / peer`.
    Ratio(f64),
}

/// Measured values of one thing, sorted.
#[derive(Debug, Clone)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// Takes the values in any order; those that are not finite are not measurements and are left out.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value below which this share (0 to 1) of the sample lies: nearest rank. `None` of an empty sample.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let last = self.0.len().checked_sub(1)?;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a sample has far fewer values than a double has integers"
        )]
        let rank = (share.clamp(0.0, 1.0) * last as f64).round() as usize;
        self.0.get(rank).copied()
    }

    /// The median.
    pub(crate) fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }
}

impl Row {
    /// A single figure, such as a size.
    pub(crate) fn single(name: &str, unit: &str, ours: f64, note: &str) -> Self {
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            ours: Some(ours),
            peer: None,
            peer_value: None,
            ratio: None,
            spread: None,
            n: None,
            goal: None,
            met: None,
            note: note.to_owned(),
        }
    }

    /// The median of a sample with its spread; no figure if the sample is empty.
    pub(crate) fn sampled(name: &str, unit: &str, ours: &Sample, note: &str) -> Self {
        let spread = ours.quantile(0.1).zip(ours.quantile(0.9)).map(|(low, high)| [low, high]);
        Self { ours: ours.median(), spread, n: Some(ours.0.len()), ..Self::single(name, unit, 0.0, note) }
    }

    /// A row that must be there but has no figure, with the reason.
    pub(crate) fn unmeasured(name: &str, unit: &str, reason: &str) -> Self {
        Self { ours: None, ..Self::single(name, unit, 0.0, reason) }
    }

    /// Sets the peer beside it. `version` names it with its version, such as `crun 1.21`.
    pub(crate) fn against(mut self, version: &str, value: Option<f64>) -> Self {
        self.peer = Some(version.to_owned());
        self.peer_value = value;
        self.ratio = self.ours.zip(value).filter(|(_, peer)| *peer > 0.0).map(|(ours, peer)| ours / peer);
        self
    }

    /// Sets the goal, and whether it was met: unknown while there is no figure.
    pub(crate) fn goal(mut self, goal: Goal) -> Self {
        let (text, met) = match goal {
            Goal::Value(bound) => (format!("<= {bound}"), self.ours.map(|ours| ours <= bound)),
            Goal::AtLeast(bound) => (format!(">= {bound}"), self.ours.map(|ours| ours >= bound)),
            Goal::Ratio(bound) => (format!("<= {bound:.2} of the peer"), self.ratio.map(|ratio| ratio <= bound)),
        };
        self.goal = Some(text);
        self.met = met;
        self
    }
}

impl Report {
    /// An empty report on this machine and this commit.
    pub(crate) fn new(root: &Path, accelerator: &str) -> Self {
        Self { machine: machine(accelerator), commit: commit(root), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Prints the table and writes `<target>/reports/<name>.json`; gives the file's path.
    pub(crate) fn publish(&self, target: &Path, name: &str) -> Result<PathBuf> {
        print!("{}", self.table());
        let directory = target.join("reports");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join(format!("{name}.json"));
        let mut json = serde_json::to_string_pretty(self)?;
        json.push('\n');
        fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))?;
        println!("report: {}", path.display());
        Ok(path)
    }

    fn table(&self) -> String {
        let mut lines = vec![["row", "ours", "peer", "ratio", "p10..p90", "goal", "note"].map(str::to_owned)];
        for row in &self.rows {
            lines.push([
                row.name.clone(),
                figure(row.ours, &row.unit),
                row.peer
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |peer| format!("{} ({peer})", figure(row.peer_value, &row.unit))),
                row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}")),
                row.spread.map_or_else(|| "-".to_owned(), |[low, high]| format!("{}..{}", short(low), short(high))),
                match (&row.goal, row.met) {
                    (None, _) => "-".to_owned(),
                    (Some(goal), None) => format!("{goal}: not measured"),
                    (Some(goal), Some(true)) => format!("{goal}: met"),
                    (Some(goal), Some(false)) => format!("{goal}: MISSED"),
                },
                row.note.clone(),
            ]);
        }
        let mut text = format!("{}\ncommit {}\n", self.machine, self.commit);
        for line in &lines {
            for (column, cell) in line.iter().enumerate() {
                let width = lines.iter().filter_map(|other| other.get(column)).map(|cell| cell.chars().count()).max();
                let last = column + 1 == line.len();
                let width = if last { 0 } else { width.unwrap_or(0) + 2 };
                let _ = write!(text, "{cell:<width$}");
            }
            text.push('\n');
        }
        text
    }
}

fn figure(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(|| "not measured".to_owned(), |value| format!("{} {unit}", short(value)))
}

/// Whole numbers as they are, others with three digits that mean something.
fn short(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

fn machine(accelerator: &str) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, model)| model.trim().to_owned()))
        .unwrap_or_else(|| "unknown processor".to_owned());
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory_kib: u64 = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}, {processors} processors, {} MiB, kernel {}, {accelerator}", memory_kib / 1024, kernel.trim())
}

fn commit(root: &Path) -> String {
    Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .current_dir(root)
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map_or_else(|| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks_and_ignore_order() {
        let sample = Sample::new(vec![5.0, 1.0, f64::NAN, 3.0, 2.0, 4.0]);
        assert_eq!(sample.median(), Some(3.0));
        assert_eq!(sample.quantile(0.0), Some(1.0));
        assert_eq!(sample.quantile(1.0), Some(5.0));
        assert_eq!(Sample::new(Vec::new()).median(), None);
    }

    #[test]
    fn a_row_without_a_figure_is_kept_and_neither_meets_nor_misses_its_goal() {
        let row =
            Row::unmeasured("boot.init_to_api", "s", "no guest").against("Debian", Some(9.0)).goal(Goal::Ratio(0.2));
        let json = serde_json::to_value(&row).unwrap();
        assert!(json["ours"].is_null());
        assert_eq!(json["note"], "no guest");
        assert!(json.get("ratio").is_none() && json.get("met").is_none());
    }

    #[test]
    fn a_ratio_goal_is_held_against_the_ratio() {
        let row = Row::single("start.api", "ms", 2.0, "").against("crun 1.21", Some(10.0)).goal(Goal::Ratio(0.25));
        assert_eq!((row.ratio, row.met), (Some(0.2), Some(true)));
        let row = Row::single("size.root", "bytes", 30.0, "").goal(Goal::Value(24.0));
        assert_eq!((row.ratio, row.met), (None, Some(false)));
    }
}

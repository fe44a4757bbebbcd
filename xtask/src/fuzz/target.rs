//! One fuzz target as a program sees it: its entry in the list, a run of libFuzzer with its figures, one input again, and the corpus.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Memory of one run: decoders are bounded far below.
const MEMORY_MIB: u32 = 1024;
/// One input; the slowest take milliseconds, on a busy machine more.
const INPUT_SECONDS: u32 = 20;
/// Committed corpus of one target: all of them together stay below 200 KiB.
const KEPT_BYTES: u64 = 12 * 1024;
/// Bytes of one of them.
const KEPT_INPUT_BYTES: u64 = 1024;
/// Files of it: a few thousand would be a burden to whoever looks at the repository.
const KEPT_FILES: usize = 48;
/// Lines of a failed run that are shown.
const COMPLAINT_LINES: usize = 12;

/// A line of `byre-fuzz list`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) sources: Vec<String>,
}

#[cfg(test)]
impl Target {
    pub(super) fn named(name: &str, sources: &[&str]) -> Self {
        let sources = sources.iter().map(|&source| source.to_owned()).collect();
        Self { name: name.to_owned(), about: String::new(), sources }
    }
}

/// Where everything lies.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) root: PathBuf,
    pub(super) target: PathBuf,
    program: PathBuf,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Passed,
    Failed {
        /// The input, where there is one.
        input: Option<PathBuf>,
    },
}

/// A run and its figures.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) outcome: Outcome,
    pub(super) executions: u64,
    pub(super) seconds: u32,
    pub(super) edges: u64,
    pub(super) features: u64,
    /// In the corpus.
    pub(super) inputs: u64,
    /// What it said when it failed.
    pub(super) complaint: String,
    pub(super) log: PathBuf,
}

impl Place {
    /// Below the repository; the program is kept under another name, where no other build replaces it while it runs.
    pub(super) fn new(root: &Path, built: PathBuf) -> Result<Self> {
        let target = root.join("target");
        let folder = target.join("fuzz");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let program = folder.join("byre-fuzz");
        let new = folder.join("byre-fuzz.new");
        fs::copy(&built, &new).with_context(|| format!("cannot copy {}", built.display()))?;
        fs::rename(&new, &program).with_context(|| program.display().to_string())?;
        Ok(Self { root: root.to_owned(), target, program })
    }

    fn folder(&self, kind: &str, target: &Target) -> Result<PathBuf> {
        let path = self.target.join("fuzz").join(kind).join(&target.name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Committed inputs.
    fn committed(&self, kind: &str, target: &Target) -> PathBuf {
        self.root.join("tests/fuzz").join(kind).join(&target.name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Targets that need files make and remove thousands a second.
        if Path::new("/dev/shm").is_dir() {
            command.env("TMPDIR", "/dev/shm");
        }
        command
    }
}

/// The list that the program gives.
pub(super) fn all(place: &Place) -> Result<Vec<Target>> {
    let output = place.command().arg("list").output().context("cannot run the fuzz targets")?;
    ensure!(output.status.success(), "the fuzz targets cannot be listed: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).context("a line of the list of targets")).collect()
}

/// Fuzzes a target for so long.
pub(super) fn run(place: &Place, target: &Target, seconds: u32) -> Result<Ran> {
    let corpus = place.folder("corpus", target)?;
    let failures = place.folder("failures", target)?;
    let seeded = place.command().args(["seeds", &target.name]).arg(&corpus).status()?;
    ensure!(seeded.success(), "the seeds of {} cannot be made", target.name);
    let log = place.target.join("fuzz").join(format!("{}.log", target.name));
    let file = File::create(&log).with_context(|| log.display().to_string())?;
    let mut command = place.command();
    command.args(["fuzz", &target.name]);
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-rss_limit_mb={MEMORY_MIB}"));
    command.arg(format!("-timeout={INPUT_SECONDS}")).arg("-print_final_stats=1");
    command.arg(format!("-artifact_prefix={}/", failures.display())).arg(&corpus);
    for kind in ["corpus", "regressions"] {
        let committed = place.committed(kind, target);
        if committed.is_dir() {
            command.arg(committed);
        }
    }
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run {}", target.name))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let mut ran = figures(&text, log);
    if !status.success() {
        ran.outcome = Outcome::Failed { input: kept_input(&text) };
        ran.complaint = complaint(&text);
    }
    Ok(ran)
}

/// Tries one input and shows what it does.
pub(super) fn replay(place: &Place, target: &Target, input: &Path) -> Result<()> {
    let status = place.command().args(["fuzz", &target.name]).arg(input).env("RUST_BACKTRACE", "1").status()?;
    ensure!(status.success(), "{} fails on {}", target.name, input.display());
    println!("{} takes {} without complaint", target.name, input.display());
    Ok(())
}

/// Puts a choice of the inputs that together cover what all do into the committed corpus.
pub(super) fn keep(place: &Place, target: &Target) -> Result<()> {
    let committed = place.committed("corpus", target);
    let merged = place.folder("merged", target)?;
    fs::remove_dir_all(&merged).and_then(|()| fs::create_dir(&merged)).with_context(|| merged.display().to_string())?;
    let mut command = place.command();
    command.env("BYRE_FUZZ_TARGET", &target.name);
    command.args(["fuzz", &target.name, "-set_cover_merge=1"]).arg(&merged).arg(place.folder("corpus", target)?);
    if committed.is_dir() {
        command.arg(&committed);
    }
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "the corpus of {} cannot be merged", target.name);
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&merged)? {
        let path = entry?.path();
        inputs.push((fs::metadata(&path)?.len(), path));
    }
    // Of all lengths up to the bound of one: the shortest alone would be the poorest.
    inputs.retain(|(length, _)| *length <= KEPT_INPUT_BYTES);
    inputs.sort();
    let step = inputs.len().div_ceil(KEPT_FILES).max(1);
    if committed.is_dir() {
        fs::remove_dir_all(&committed)?;
    }
    fs::create_dir_all(&committed)?;
    let mut bytes = 0;
    for (length, path) in inputs.into_iter().rev().step_by(step) {
        bytes += length;
        if bytes > KEPT_BYTES {
            break;
        }
        fs::copy(&path, committed.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// What libFuzzer prints: `#123 NEW cov: 12 ft: 34 corp: 5/67b ...` on the way, `Done 123 runs in 30 second(s)` or a number of executed
/// units at the end.
fn figures(text: &str, log: PathBuf) -> Ran {
    let behind = |line: &str, mark: &str| -> Option<u64> {
        let rest = line.split_once(mark)?.1.trim_start();
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let last = |mark: &str| text.lines().filter_map(|line| behind(line, mark)).next_back().unwrap_or(0);
    let seconds = text.lines().filter(|line| line.starts_with("Done ")).find_map(|line| behind(line, " runs in "));
    Ran {
        outcome: Outcome::Passed,
        executions: last("stat::number_of_executed_units:"),
        seconds: seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(0),
        edges: last(" cov: "),
        features: last(" ft: "),
        inputs: last(" corp: "),
        complaint: String::new(),
        log,
    }
}

fn kept_input(text: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| Some(PathBuf::from(line.split_once("Test unit written to ")?.1.trim())))
}

/// What was said around the failure: the panic or libFuzzer's own error.
fn complaint(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("stat::")).collect();
    let at = lines.iter().position(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"));
    let from = at.unwrap_or_else(|| lines.len().saturating_sub(COMPLAINT_LINES));
    lines.iter().skip(from).take(COMPLAINT_LINES).copied().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_the_last_ones() {
        let text = "#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 30Mb\n#9\tNEW    cov: 12 ft: 30 corp: 4/9b lim: 4\n\
                    Done 900 runs in 31 second(s)\nstat::number_of_executed_units: 900\n";
        let ran = figures(text, PathBuf::new());
        let found = (ran.executions, ran.seconds, ran.edges, ran.features, ran.inputs);
        assert_eq!(found, (900, 31, 12, 30, 4));
    }

    #[test]
    fn a_failure_names_its_input_and_its_panic() {
        let text = "#9\tNEW cov: 1\nthread 'main' panicked at a.rs:1:2:\nsaid\n==1== ERROR: libFuzzer: deadly signal\n\
                    artifact_prefix='x/'; Test unit written to x/crash-1\n";
        assert_eq!(kept_input(text), Some("x/crash-1".into()));
        assert!(complaint(text).starts_with("thread 'main' panicked at a.rs:1:2:\nsaid"));
    }
}

//! The OCI runtime's suites: crun's own (Python), runc's own (bats), runtime-tools' programs, and what podman and containerd do all day, each with
//! byre-oci, crun and runc.
//!
//! All run in one Debian root that has the peers' newest packages, natively in namespaces of its own where the host allows and, with `--guest`,
//! in a virtual machine that boots the same root with every controller of cgroup v2. A committed list gives the reason for each test that fails for
//! us and passes for a peer; without a reason the command fails.

mod guest;
mod lists;
pub(crate) mod native;
mod root;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use self::lists::Lists;
pub(crate) use self::root::DebianRoot;
use crate::report::{Goal, Report, Row};
use crate::{image, tools};

/// The suites, in the order in which they run.
const SUITES: [&str; 4] = ["crun", "tools", "engines", "runc"];
/// Whom they judge: ours first.
const RUNTIMES: [&str; 3] = [OURS, "crun", "runc"];
const OURS: &str = "byre-oci";

/// Arguments of `cargo xtask conformance runtime`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Only this suite (crun, tools, engines, runc); may be given several times.
    #[arg(long, value_name = "SUITE")]
    suite: Vec<String>,
    /// Only this runtime (byre-oci, crun, runc); may be given several times.
    #[arg(long, value_name = "RUNTIME")]
    runtime: Vec<String>,
    /// Only this file or program of the suites, such as test_start.py.
    #[arg(long, value_name = "FILE")]
    only: Option<String>,
    /// In a guest with all controllers of cgroup v2 instead of on this host; needs the packages of `cargo xtask image`.
    #[arg(long)]
    guest: bool,
    /// Take this byre-oci instead of building one.
    #[arg(long)]
    program: Option<PathBuf>,
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// As it should.
    Passed,
    /// Not as it should, or not at all.
    Failed,
    /// The suite itself left it out.
    Skipped,
}

/// What is to run.
#[derive(Debug)]
struct Run<'a> {
    suites: Vec<&'a str>,
    runtimes: Vec<&'a str>,
    only: Option<&'a str>,
}

/// Verdicts by suite and test, then by runtime.
type Verdicts = BTreeMap<(String, String), BTreeMap<String, Verdict>>;

/// A test of a suite, and its verdicts by runtime.
type OfSuite<'a> = (&'a (String, String), &'a BTreeMap<String, Verdict>);

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let repository = image::repository()?;
    let chosen = |all: &[&'static str], wanted: &[String]| -> Result<Vec<&'static str>> {
        if let Some(other) = wanted.iter().find(|name| !all.contains(&name.as_str())) {
            anyhow::bail!("there is no {other:?}: there are {}", all.join(", "));
        }
        Ok(all.iter().copied().filter(|name| wanted.is_empty() || wanted.iter().any(|one| one == name)).collect())
    };
    let run = Run {
        suites: chosen(&SUITES, &args.suite)?,
        runtimes: chosen(&RUNTIMES, &args.runtime)?,
        only: args.only.as_deref(),
    };
    let root = DebianRoot::make(&repository)?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => build(&repository)?,
    };
    root.install(&program, OURS)?;
    let text = if args.guest { guest::run(&repository, &root, &run)? } else { native::run(&root, &run)? };
    let verdicts = read(&text);
    ensure!(!verdicts.is_empty(), "no test was run");
    let lists = Lists::read(&repository.join("tests/conformance/runtime.toml"))?;
    let place = if args.guest { "guest" } else { "native" };
    let unexplained = publish(&repository, &root, &run, &verdicts, &lists, place)?;
    ensure!(
        unexplained == 0,
        "{unexplained} tests fail with {OURS} and pass with a peer, without a reason in the list"
    );
    Ok(())
}

/// byre-oci as it is shipped.
fn build(repository: &Path) -> Result<PathBuf> {
    let status = tools::cargo()
        .args(["build", "--quiet", "--locked", "--package", OURS])
        .current_dir(repository)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "{OURS} does not build");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
    target.join(image::TARGET).join("debug").join(OURS).canonicalize().context("byre-oci was not built")
}

/// Reads `@ suite runtime verdict file: test` lines among others. A test that a runtime never came to has failed with it.
fn read(text: &str) -> Verdicts {
    let mut verdicts = Verdicts::new();
    for line in text.lines() {
        let Some((_, line)) = line.split_once("@ ") else { continue };
        let mut words = line.trim_end().splitn(4, ' ');
        let (Some(suite), Some(runtime), Some(verdict), Some(test)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let verdict = match verdict {
            "passed" => Verdict::Passed,
            "failed" => Verdict::Failed,
            "skipped" => Verdict::Skipped,
            _ => continue,
        };
        let by_runtime = verdicts.entry((suite.to_owned(), test.to_owned())).or_default();
        // Two tests of one name in one file: the worse counts.
        let known = by_runtime.entry(runtime.to_owned()).or_insert(verdict);
        if verdict == Verdict::Failed {
            *known = verdict;
        }
    }
    verdicts
}

/// Prints what differs, and the report. Returns how many tests lack a reason.
fn publish(
    repository: &Path,
    root: &DebianRoot,
    run: &Run<'_>,
    verdicts: &Verdicts,
    lists: &Lists,
    place: &str,
) -> Result<usize> {
    let mut unexplained = 0;
    let judged = run.runtimes.contains(&OURS);
    let of = |by: &BTreeMap<String, Verdict>, name: &str| by.get(name).copied().unwrap_or(Verdict::Failed);
    for ((suite, test), by) in verdicts.iter().filter(|_| judged) {
        let peer = RUNTIMES[1..].iter().find(|peer| by.get(**peer) == Some(&Verdict::Passed));
        let Some(peer) = peer.filter(|_| of(by, OURS) != Verdict::Passed) else { continue };
        let reason = lists.specific(suite, test).or_else(|| lists.differs(suite, test));
        unexplained += usize::from(reason.is_none());
        println!("{suite}: {test}: not with us, with {peer}: {}", reason.unwrap_or("NO REASON IN THE LIST"));
    }
    let mut report = Report::new(repository, place);
    for suite in &run.suites {
        let of_suite: Vec<_> = verdicts.iter().filter(|((of, _), _)| of == suite).collect();
        for runtime in &run.runtimes {
            let count = |wanted| of_suite.iter().filter(|(_, by)| of(by, runtime) == wanted).count();
            let (passed, failed, skipped) = (count(Verdict::Passed), count(Verdict::Failed), count(Verdict::Skipped));
            println!("{suite:6} {runtime:10} {passed:4} passed {failed:4} failed {skipped:4} skipped");
        }
        if judged {
            report.push(row(suite, &of_suite, lists, root));
        }
    }
    if judged {
        super::cve::judge(repository, false, None)?.rows.into_iter().for_each(|row| report.push(row));
    }
    report.publish(&repository.join("target"), &format!("conformance-runtime-{place}"))?;
    // The report under its one name is the newest run's.
    report.publish(&repository.join("target"), "conformance-runtime")?;
    Ok(unexplained)
}

/// The row of a suite.
fn row(suite: &str, of_suite: &[OfSuite<'_>], lists: &Lists, root: &DebianRoot) -> Row {
    let passes = |by: &BTreeMap<String, Verdict>, name: &str| by.get(name) == Some(&Verdict::Passed);
    let source = root.version(match suite {
        "tools" => "source-golang-github-opencontainers-runtime-tools",
        "crun" => "source-crun",
        "engines" => "podman",
        _ => "source-runc",
    });
    let peers = format!("{}, {}", root.version("crun"), root.version("runc"));
    // What crun itself passes is what can be passed here: the rest needs what this place has not.
    let possible: Vec<_> = of_suite
        .iter()
        .filter(|((of, test), by)| passes(by, "crun") && (suite != "crun" || lists.specific(of, test).is_none()))
        .collect();
    let (passed, other): (Vec<_>, Vec<_>) = possible.into_iter().partition(|(_, by)| passes(by, OURS));
    let argued = other.iter().filter(|((of, test), _)| lists.differs(of, test).is_some()).count();
    let (ours, all) = (passed.len(), passed.len() + other.len());
    let note = format!(
        "{ours} of {all} that crun passes, {argued} others with a reason in the list; {} tests; suite {source}; {peers}",
        of_suite.len()
    );
    #[expect(clippy::cast_precision_loss, reason = "suites have hundreds of tests")]
    let (unargued, ours, all) = ((other.len() - argued) as f64, ours as f64, all.max(1) as f64);
    match suite {
        "tools" => Row::single("tools.failed", "programs", unargued, &note).goal(Goal::Value(0.0)),
        "engines" => Row::single("engines.failed", "steps", unargued, &note).goal(Goal::Value(0.0)),
        "crun" => Row::single("crun.share", "share", ours / all, &note).goal(Goal::AtLeast(1.0)),
        _ => Row::single("runc.share", "share", ours / all, &note).goal(Goal::AtLeast(0.95)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_runtimes_become_one_table() {
        let text = "noise\n@ crun crun passed a.py: x\r\n@ crun byre-oci failed a.py: x\n@ end crun crun\n[1.0] @ crun crun skipped a.py: y z\n";
        let verdicts = read(text);
        let x = &verdicts[&("crun".to_owned(), "a.py: x".to_owned())];
        assert_eq!((x["crun"], x["byre-oci"]), (Verdict::Passed, Verdict::Failed));
        assert_eq!(verdicts[&("crun".to_owned(), "a.py: y z".to_owned())]["crun"], Verdict::Skipped);
        assert_eq!(verdicts.len(), 2);
    }

    #[test]
    fn of_two_tests_of_one_name_the_worse_counts() {
        let verdicts =
            read("@ runc crun passed a.bats: x\n@ runc crun failed a.bats: x\n@ runc crun passed a.bats: x\n");
        assert_eq!(verdicts[&("runc".to_owned(), "a.bats: x".to_owned())]["crun"], Verdict::Failed);
    }
}

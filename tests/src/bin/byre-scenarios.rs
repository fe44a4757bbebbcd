//! Runs scenarios and prints as libtest does, so that one reader adds up all results.
//!
//! Two at a time: a machine under software emulation takes a whole processor. What failed keeps its machine's files, console and
//! logs below `<target>/tests/<scenario>/`; what passed leaves nothing.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use byre_tests::node::{Lab, Node};
use byre_tests::scenarios::{On, Scenario, all};

struct Arguments {
    lab: Lab,
    target: PathBuf,
    filters: Vec<String>,
    list: bool,
}

/// Paths come from `cargo xtask test`, which built what they name.
fn arguments() -> Result<Arguments> {
    let mut words = std::env::args().skip(1);
    let (mut target, mut byrectl, mut image, mut filters, mut list) = (None, None, None, Vec::new(), false);
    let mut next = None;
    while let Some(word) = words.next() {
        let mut path = || words.next().map(PathBuf::from).with_context(|| format!("{word} needs a path"));
        match word.as_str() {
            "--target" => target = Some(path()?),
            "--byrectl" => byrectl = Some(path()?),
            "--image" => image = Some(path()?),
            "--next" => next = Some(path()?),
            "--list" => list = true,
            flag if flag.starts_with('-') => bail!("unknown flag {flag}: --target, --byrectl, --image, --next, --list"),
            filter => filters.push(filter.to_owned()),
        }
    }
    let target = target.unwrap_or_else(|| PathBuf::from("target"));
    let lab = Lab {
        image: image.unwrap_or_else(|| target.join("image")),
        byrectl: byrectl.unwrap_or_else(|| target.join("x86_64-unknown-linux-gnu/debug/byrectl")),
        busybox: target.join("images/busybox.tar"),
        nginx: target.join("images/nginx.tar"),
        next,
        repository: Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
    };
    Ok(Arguments { lab, target, filters, list })
}

fn main() -> Result<ExitCode> {
    let Arguments { lab, target, filters, list } = arguments()?;
    let mut scenarios = all();
    scenarios.retain(|scenario| filters.is_empty() || filters.iter().any(|filter| scenario.name.contains(filter)));
    if list {
        for scenario in &scenarios {
            println!("{}: test", scenario.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    for needed in [&lab.byrectl, &lab.busybox, &lab.nginx, &lab.image.join("disk.img")] {
        ensure!(needed.exists(), "{} is missing: `cargo xtask test --only guest` makes it", needed.display());
    }
    let lab = Lab { byrectl: lab.byrectl.canonicalize()?, ..lab };
    let folder = target.join("tests");
    std::fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;

    println!("\nrunning {} tests", scenarios.len());
    let begun = Instant::now();
    // Two lanes, as one machine keeps one processor busy: those that boot their own, and scenarios that share a node, after which that lane
    // helps the other.
    let (own, shared): (Vec<_>, Vec<_>) = scenarios.iter().partition(|scenario| matches!(scenario.on, On::Own(_)));
    let (own, shared) = (Queue::new(own.into()), Queue::new(shared.into()));
    let failures: Vec<&str> = std::thread::scope(|scope| {
        let lanes = [vec![&own], vec![&shared, &own]].map(|queues| {
            let run = || queues.into_iter().flat_map(|queue| run_lane(queue, &lab, &folder)).collect::<Vec<_>>();
            scope.spawn(run)
        });
        lanes
            .into_iter()
            .flat_map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    if !failures.is_empty() {
        println!("\nfailures:\n    {}", failures.join("\n    "));
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s",
        if failures.is_empty() { "ok" } else { "FAILED" },
        scenarios.len() - failures.len(),
        failures.len(),
        begun.elapsed().as_secs_f64()
    );
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Scenarios that nobody has begun.
type Queue<'a> = Mutex<VecDeque<&'a Scenario>>;

/// Runs scenarios one after the other; returns the names of those that failed.
fn run_lane(scenarios: &Queue<'_>, lab: &Lab, folder: &Path) -> Vec<&'static str> {
    let mut shared = Shared { folder: folder.join("shared"), node: None };
    let mut failures = Vec::new();
    let next = || scenarios.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    while let Some(scenario) = next() {
        let started = Instant::now();
        let result = run(scenario, lab, folder, &mut shared);
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        // One call, so that the other lane's lines do not come between.
        let mut report = format!("test {} ... {verdict} ({:.1} s)", scenario.name, started.elapsed().as_secs_f64());
        if let Err(error) = result {
            report += &format!("\n    {}", format!("{error:#}").replace('\n', "\n    "));
            failures.push(scenario.name);
        }
        println!("{report}");
    }
    // Those that never had one have nothing to remove; the other lane may have.
    if failures.is_empty() && shared.node.is_some() {
        shared.remove();
    }
    failures
}

/// The node that scenarios share: booted for the first of them, and again after one that lost it.
struct Shared {
    folder: PathBuf,
    node: Option<Node>,
}

impl Shared {
    /// Switches the node off and removes its files, if there are any.
    fn remove(&mut self) {
        self.node = None;
        std::fs::remove_dir_all(&self.folder).ok();
    }

    fn node(&mut self, lab: &Lab) -> Result<&Node> {
        if self.node.as_ref().is_none_or(|node| node.ctl().ok(&["version"]).is_err()) {
            // A failed one's files stay until here, where a new machine needs the place.
            self.remove();
            let node = Node::boot(lab, &self.folder).context("the shared node did not boot")?;
            node.load_busybox()?;
            self.node = Some(node);
        }
        self.node.as_ref().context("no node")
    }
}

fn run(scenario: &Scenario, lab: &Lab, folder: &Path, shared: &mut Shared) -> Result<()> {
    let own = folder.join(scenario.name.replace("::", "-"));
    std::fs::remove_dir_all(&own).ok();
    let result = match scenario.on {
        On::Nothing(check) => check(lab),
        On::Shared(check) => {
            let node = shared.node(lab)?;
            let result = check(node);
            if result.is_err() {
                std::fs::create_dir_all(&own)?;
                node.keep_evidence(&own);
                std::fs::write(own.join("serial.log"), node.serial().text())?;
            }
            result
        }
        On::Own(check) => {
            std::fs::create_dir_all(&own)?;
            check(lab, &own)
        }
    };
    match result {
        Ok(()) => {
            std::fs::remove_dir_all(&own).ok();
            Ok(())
        }
        Err(error) if own.exists() => Err(error.context(format!("kept in {}", own.display()))),
        Err(error) => Err(error),
    }
}

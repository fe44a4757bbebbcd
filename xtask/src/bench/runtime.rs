//! The runtime's one-shot command beside crun and runc: the same bundle, in the same namespaces of this host, in turns.
//!
//! Measured inside the Debian root of the suites, which has the peers' newest packages. Starts through the node's API beside crun are measured by
//! `bench node`; what a thousand containers cost is measured on a node of its own.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::bundle;
use super::peer_boots::start_times;
use super::scale;
use super::starts::Helpers;
use crate::conformance::runtime::{DebianRoot, native};
use crate::image;
use crate::report::{Goal, Report, Row, Sample};

/// Where the bundles lie in the root: what the configuration binds has this path.
const PLACE: &str = "opt/bench";
/// Ours first.
const RUNTIMES: [&str; 3] = ["byre-oci", "crun", "runc"];
/// Both sides are measured in this many turns.
const TURNS: usize = 10;
/// Goals: a command no slower than crun's, and processor time natively.
const ONESHOT_RATIO: f64 = 1.0;
const CPU_MS: f64 = 0.8;

/// Arguments of `cargo xtask bench runtime`.
#[derive(clap::Args, Debug)]
#[group(id = "bench-runtime")]
pub(crate) struct Args {
    /// Containers that each side starts, and processes that it runs in one.
    #[arg(long, default_value_t = 200)]
    count: usize,
    /// Containers at rest on one node; 0 leaves those rows out.
    #[arg(long, default_value_t = 1000)]
    containers: usize,
    /// Starts beside them.
    #[arg(long, default_value_t = 100)]
    starts: usize,
    #[command(flatten)]
    image: image::Args,
}

/// What each runtime took.
#[derive(Debug, Default)]
struct Times {
    /// Milliseconds from the call to the container's first instruction.
    start: Vec<f64>,
    /// Milliseconds of processor time of the whole call.
    cpu: Vec<f64>,
    /// Milliseconds of an exec of `true`, to its end.
    exec: Vec<f64>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let repository = image::repository()?;
    let root = DebianRoot::make(&repository)?;
    let built = image::build_programs(&args.image, &repository, &["--package", "byre-oci"])?;
    root.install(&built.join("byre-oci"), "byre-oci")?;
    let helpers = Helpers::build(&repository, &args.image)?;
    prepare(&root, &helpers)?;
    let script = script(args.count.div_ceil(TURNS).max(1));
    fs::write(root.path().join(PLACE).join("run.sh"), script)?;
    let output = native::output(&native::enter(root.path(), &["sh", "/opt/bench/run.sh"])?)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "the measurement failed: {text}");
    let all = RUNTIMES.map(|name| Times {
        start: start_times(&text, &format!("start-{name}")),
        cpu: start_times(&text, &format!("cpu-start-{name}")),
        exec: start_times(&text, &format!("exec-{name}")),
    });
    let mut report = Report::new(&repository, &format!("native, profile {}", args.image.profile));
    rows(&all, &root).into_iter().for_each(|row| report.push(row));
    let scale = scale::rows(&repository, &args.image, args.containers, args.starts)?;
    scale.into_iter().for_each(|row| report.push(row));
    report.publish(&repository.join("target"), "bench-runtime")?;
    Ok(())
}

/// Two bundles: one that stamps the time, one that waits for processes to be run in it.
fn prepare(root: &DebianRoot, helpers: &Helpers) -> Result<()> {
    let place = root.path().join(PLACE);
    fs::remove_dir_all(&place).ok();
    let busybox = fs::read(root.path().join("bin/busybox")).context("the root has no busybox")?;
    for (name, program) in [("bundle", vec!["/byre-stamp"]), ("idle", vec!["/bin/busybox", "sleep", "100000"])] {
        let folder = place.join(name);
        let rootfs = folder.join("rootfs");
        for directory in bundle::DIRECTORIES.iter().chain(&["bin"]) {
            fs::create_dir_all(rootfs.join(directory))?;
        }
        let mut config = bundle::config(&program)?;
        // This host's cgroup v2 may have no controller: the limit of processes is left out on all sides.
        if let Some(linux) = config["linux"].as_object_mut() {
            linux.remove("resources");
        }
        fs::write(folder.join("config.json"), config.to_string())?;
        fs::copy(&helpers.stamp, rootfs.join("byre-stamp"))?;
        executable(&rootfs.join("bin/busybox"), &busybox)?;
        for generated in bundle::GENERATED {
            fs::write(folder.join(generated), "")?;
        }
        own(&rootfs)?;
    }
    fs::copy(&helpers.client, place.join("byre-bench")).context("cannot copy byre-bench")?;
    Ok(())
}

fn executable(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Root of the bundle's user namespace.
fn own(path: &Path) -> Result<()> {
    std::os::unix::fs::chown(path, Some(bundle::FIRST_ID), Some(bundle::FIRST_ID))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path())?;
        }
    }
    Ok(())
}

/// In turns, so that what else the machine does meets all sides alike; the first of each is not counted.
fn script(each: usize) -> String {
    let mut lines = vec!["set -eu".to_owned(), "cd /opt/bench".to_owned()];
    for name in RUNTIMES {
        lines.push(format!("R=/conformance/bin/{name}"));
        lines.push(format!("./byre-bench command warm-{name} 3 $R run --bundle bundle %"));
        lines.push(format!("$R run -d --bundle idle idle-{name} > /dev/null 2>&1 < /dev/null"));
        lines.push(format!("./byre-bench time warm-{name} 3 $R exec idle-{name} /bin/busybox true"));
    }
    for _ in 0..TURNS {
        for name in RUNTIMES {
            lines.push(format!("R=/conformance/bin/{name}"));
            lines.push(format!("./byre-bench command start-{name} {each} $R run --bundle bundle %"));
            lines.push(format!("./byre-bench time exec-{name} {each} $R exec idle-{name} /bin/busybox true"));
        }
    }
    for name in RUNTIMES {
        lines.push(format!("/conformance/bin/{name} delete -f idle-{name}"));
    }
    lines.join("\n") + "\n"
}

fn rows(all: &[Times; 3], root: &DebianRoot) -> Vec<Row> {
    let versions = [root.version("crun"), root.version("runc")];
    let row = |name: &str, note: &str, of: fn(&Times) -> &Vec<f64>, goal: Option<Goal>| {
        let [ours, crun, runc] = all.each_ref().map(|times| Sample::new(of(times).clone()));
        let quantiles = |sample: &Sample| sample.quantile(0.99).unwrap_or_default();
        let beside = format!(
            "{note}; {} {:.2} ms; p99 {:.2}, {:.2}, {:.2} ms",
            versions[1],
            runc.median().unwrap_or_default(),
            quantiles(&ours),
            quantiles(&crun),
            quantiles(&runc)
        );
        let row = Row::sampled(name, "ms", &ours, &beside).against(&versions[0], crun.median());
        match goal {
            Some(goal) => row.goal(goal),
            None => row,
        }
    };
    vec![
        row(
            "start.oneshot",
            "create to first instruction, p50",
            |times| &times.start,
            Some(Goal::Ratio(ONESHOT_RATIO)),
        ),
        Row::unmeasured("start.api", "ms", "two guests side by side: `cargo xtask bench node` has it"),
        row("cpu.start", "processor time of a whole run, p50", |times| &times.cpu, Some(Goal::Value(CPU_MS))),
        row("exec.true", "call to end, p50", |times| &times.exec, None),
    ]
}

//! `cargo xtask bench updates`: what an update takes, natively against files: its time and bytes, and the rate at which a slot is written, beside
//! plain `dd` with the same flush.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::report::{Report, Row, Sample};
use crate::{image, tools};

/// What the measuring test leaves.
#[derive(Deserialize)]
struct Figures {
    seconds: Vec<f64>,
    bytes: Vec<f64>,
    ours: Vec<f64>,
    dd: Vec<f64>,
}

/// Runs the suite.
pub(super) fn run() -> Result<()> {
    let root = image::repository()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rates.json");
    let status = tools::cargo()
        .current_dir(&root)
        .args(["test", "--locked", "--quiet", "--package", "byre-update", "--test", "rates"])
        .env("BYRE_RATES_REPORT", &file)
        .status()
        .context("cannot run cargo")?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("nothing was measured ({status})"))?;
    let Figures { seconds, bytes, ours, dd } = serde_json::from_str(&text)?;
    let mut report = Report::new(&root, "native, development build");
    let note = "a root of 2.7 MiB and a kernel image of 13 MiB from a server on this machine, up to the request to arm";
    report.push(Row::sampled("update.time", "s", &Sample::new(seconds), note));
    report.push(Row::sampled("update.bytes", "bytes", &Sample::new(bytes), "sent by the server, metadata included"));
    let peer = Sample::new(dd).median();
    let note = "48 MiB into a file, digest included, one fdatasync at the end as dd's";
    report.push(Row::sampled("update.write_rate", "bytes/s", &Sample::new(ours), note).against("dd", peer));
    for (name, unit) in [
        ("patch.bytes", "bytes"),
        ("patch.share", "of the full image"),
        ("kernel.share", "of the full image"),
        ("monthly.share", "of the full image"),
    ] {
        report.push(Row::unmeasured(
            name,
            unit,
            "every update takes the blocks that the slot does not hold; there are no patches",
        ));
    }
    for name in ["away.kexec", "away.firmware"] {
        report.push(Row::unmeasured(name, "s", "needs a guest that serves before and after"));
    }
    report.publish(&root.join("target"), "bench-updates")?;
    Ok(())
}

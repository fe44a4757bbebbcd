//! Builds the program that holds all fuzz targets: one link, whatever their number.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::packages::{self, Needed};
use crate::tools;

/// libFuzzer is C++.
const NEEDED: &[Needed] =
    &[Needed { program: "cc", package: "build-essential" }, Needed { program: "g++", package: "g++" }];

/// A line of cargo's messages, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

/// Builds and gives the program. All packages are named, and the program is an example, so that cargo chooses the same features for the
/// crates below as for the tests: those are then there already.
pub(super) fn build(root: &Path) -> Result<PathBuf> {
    packages::ensure_installed(NEEDED)?;
    let wrapper = root.join("tests/fuzz/instrument.sh");
    let output = tools::cargo()
        .args(["build", "--locked", "--workspace", "--example", "byre-fuzz", "--features", "byre-fuzz/engine"])
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .env("RUSTC_WORKSPACE_WRAPPER", wrapper)
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo build")?;
    ensure!(output.status.success(), "the fuzz targets do not build");
    let text = String::from_utf8(output.stdout).context("cargo's messages")?;
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages.filter_map(|message| message.executable).next_back().context("cargo named no program of byre-fuzz")
}

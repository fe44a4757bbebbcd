//! Starts of containers through a node's API, measured by a client in the node's own guest, so that one clock tells both ends.
//!
//! The client runs in a container with the host's network and the administrator's certificate. Nothing of the node is changed for it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use byre_api::role::Role;
use byre_tests::node::Node;
use byre_tests::oci::{Archive, ImageConfig, LayerBuilder};

use super::peer_boots::start_times;
use crate::tools;

/// The program in the image, and the image's and the client's name.
const PROGRAM: &str = "byre-bench";
/// All starts together, under emulation.
const LIMIT: Duration = Duration::from_secs(600);

/// Milliseconds from the client's call.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// To the container's first instruction.
    pub(super) first: Vec<f64>,
    /// To the answer of the call.
    pub(super) answer: Vec<f64>,
}

/// Builds the program that measures inside a guest, with the profile of what is measured.
///
/// # Errors
/// If it does not build.
pub(super) fn helper(repository: &Path, profile: &str) -> Result<PathBuf> {
    let status = tools::cargo()
        .args(["build", "--quiet", "--locked", "--package", "byre-tests", "--bin", PROGRAM, "--profile", profile])
        .current_dir(repository)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "{PROGRAM} does not build");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
    let folder = if profile == "dev" { "debug" } else { profile };
    let program = target.join("x86_64-unknown-linux-gnu").join(folder).join(PROGRAM);
    program.canonicalize().with_context(|| format!("{} was not built", program.display()))
}

/// Loads the client's image, runs it, and reads what it printed.
///
/// # Errors
/// If a start fails.
pub(super) fn measure(node: &Node, helper: &Path, folder: &Path, count: usize) -> Result<Starts> {
    let archive = folder.join("byre-bench.tar");
    pack(node, helper, &archive)?;
    node.ctl().ok(&["image", "load", &archive.to_string_lossy()])?;
    let address = format!("127.0.0.1:{}", byre_api::client::PORT);
    let line = ["run", "-d", "--name", "client", "--net", "host", "--user", "0", PROGRAM, "api", &address];
    let count = count.to_string();
    node.ctl().ok(&line.iter().copied().chain([count.as_str()]).collect::<Vec<_>>())?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let log = node.ctl().ok(&["logs", "client"])?;
        if log.contains("bench: done") {
            node.ctl().ok(&["rm", "-f", "client"])?;
            return Ok(Starts { first: start_times(&log, "api"), answer: start_times(&log, "answer") });
        }
        if let Some(failed) = log.lines().find(|line| line.contains("bench: failed")) {
            bail!("{failed}");
        }
        ensure!(Instant::now() < deadline, "the client in the guest does not end: {log}");
        // Rarely: the question takes processor time from what is measured.
        std::thread::sleep(Duration::from_secs(10));
    }
}

/// The image: the program, and certificates that the node takes.
fn pack(node: &Node, helper: &Path, archive: &Path) -> Result<()> {
    let endpoint = node.credentials().endpoint(&node.api_address().to_string(), Role::Admin)?;
    let mut layer = LayerBuilder::default();
    layer.file(PROGRAM, 0o755, &std::fs::read(helper)?)?;
    for directory in ["credentials", "etc", "proc", "sys", "dev", "tmp"] {
        layer.directory(directory, 0o755)?;
    }
    for (name, text) in [
        ("ca.pem", &endpoint.authority_pem),
        ("client.pem", &endpoint.identity.certificate_pem),
        ("client.key", &endpoint.identity.key_pem),
    ] {
        layer.file(&format!("credentials/{name}"), 0o644, text.as_bytes())?;
    }
    let config = ImageConfig { entrypoint: vec![format!("/{PROGRAM}")], ..ImageConfig::default() };
    let packed = Archive::new("byre-bench:latest", &[layer.finish()?], &config)?.pack(Vec::new())?;
    std::fs::write(archive, packed).with_context(|| format!("cannot write {}", archive.display()))
}

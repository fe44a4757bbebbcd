//! Starts of containers through a node's API, measured by a client in the node's own guest, so that one clock tells both ends.
//!
//! The client runs in a container with the host's network and the administrator's certificate. Nothing of the node is changed for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use byre_api::role::Role;
use byre_tests::node::Node;
use byre_tests::oci::{Archive, ImageConfig, LayerBuilder};

use super::peer_boots::start_times;
use crate::image;

/// The program that starts containers, its image and its container; and the program in the containers that it starts, and its image.
const CLIENT: &str = "byre-bench";
const STAMP: &str = "byre-stamp";
/// All starts together, under emulation: a thousand at two a second.
const LIMIT: Duration = Duration::from_secs(1200);

/// Milliseconds from the client's call.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// To the container's first instruction.
    pub(super) first: Vec<f64>,
    /// To the answer of the call.
    pub(super) answer: Vec<f64>,
}

/// The programs that measure inside a guest.
#[derive(Debug, Clone)]
pub(super) struct Helpers {
    /// Starts containers.
    pub(super) client: PathBuf,
    /// The first instruction of a container.
    pub(super) stamp: PathBuf,
}

impl Helpers {
    /// Those in a folder.
    ///
    /// # Errors
    /// If one is not there.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let there = |name: &str| {
            let program = folder.join(name);
            program.canonicalize().with_context(|| format!("{} is not there", program.display()))
        };
        Ok(Self { client: there(CLIENT)?, stamp: there(STAMP)? })
    }

    /// Builds them, with the profile of what is measured.
    ///
    /// # Errors
    /// If they do not build.
    pub(super) fn build(repository: &Path, image: &image::Args) -> Result<Self> {
        let what = ["--package", "byre-tests", "--bin", CLIENT, "--bin", STAMP];
        Self::of(&image::build_programs(image, repository, &what)?)
    }
}

/// Loads the images and starts so many containers.
///
/// # Errors
/// If a start fails.
pub(super) fn measure(node: &Node, helpers: &Helpers, folder: &Path, count: usize) -> Result<Starts> {
    load(node, helpers, folder)?;
    api(node, count)
}

/// Starts so many containers, one after the other.
///
/// # Errors
/// If a start fails.
pub(super) fn api(node: &Node, count: usize) -> Result<Starts> {
    let log = client(node, &["api", &own_address(), &count.to_string()])?;
    Ok(Starts { first: start_times(&log, "api"), answer: start_times(&log, "answer") })
}

/// Starts the containers of these numbers, which stay. Returns milliseconds for all of them.
///
/// # Errors
/// If a start fails.
pub(super) fn fill(node: &Node, from: usize, to: usize) -> Result<f64> {
    let log = client(node, &["fill", &own_address(), &from.to_string(), &to.to_string()])?;
    start_times(&log, "fill").first().copied().with_context(|| format!("no time in {log}"))
}

/// Where the client finds the node's API: it has the host's network.
fn own_address() -> String {
    format!("127.0.0.1:{}", byre_api::client::PORT)
}

/// Loads the images of the client and of what it starts.
///
/// # Errors
/// If the node refuses one.
pub(super) fn load(node: &Node, helpers: &Helpers, folder: &Path) -> Result<()> {
    for (name, layer) in [(CLIENT, client_layer(node, helpers)?), (STAMP, stamp_layer(helpers)?)] {
        let archive = folder.join(format!("{name}.tar"));
        let config = ImageConfig { entrypoint: vec![format!("/{name}")], ..ImageConfig::default() };
        let packed = Archive::new(&format!("{name}:latest"), &[layer.finish()?], &config)?.pack(Vec::new())?;
        std::fs::write(&archive, packed).with_context(|| format!("cannot write {}", archive.display()))?;
        node.ctl().ok(&["image", "load", &archive.to_string_lossy()])?;
    }
    Ok(())
}

/// Runs the client with these arguments and returns what it printed.
fn client(node: &Node, arguments: &[&str]) -> Result<String> {
    let line = ["run", "-d", "--name", "client", "--net", "host", "--user", "0", CLIENT];
    node.ctl().ok(&[&line, arguments].concat())?;
    let (_, code) = node.ctl().start(&["wait", "client"])?.ended(LIMIT).context("the client in the guest")?;
    let log = node.ctl().ok(&["logs", "client"])?;
    if let Some(failed) = log.lines().find(|line| line.contains("bench: failed")) {
        bail!("{failed}");
    }
    ensure!(log.contains("bench: done"), "the client in the guest ended with {}: {log}", code.trim());
    node.ctl().ok(&["rm", "-f", "client"])?;
    Ok(log)
}

/// What a node makes mount points in.
fn directories(layer: &mut LayerBuilder) -> Result<()> {
    for directory in ["etc", "proc", "sys", "dev", "tmp"] {
        layer.directory(directory, 0o755)?;
    }
    Ok(())
}

/// The client and certificates that the node takes.
fn client_layer(node: &Node, helpers: &Helpers) -> Result<LayerBuilder> {
    let endpoint = node.credentials().endpoint(&node.api_address().to_string(), Role::Admin)?;
    let mut layer = LayerBuilder::default();
    layer.file(CLIENT, 0o755, &std::fs::read(&helpers.client)?)?;
    directories(&mut layer)?;
    layer.directory("credentials", 0o755)?;
    for (name, text) in [
        ("ca.pem", &endpoint.authority_pem),
        ("client.pem", &endpoint.identity.certificate_pem),
        ("client.key", &endpoint.identity.key_pem),
    ] {
        layer.file(&format!("credentials/{name}"), 0o644, text.as_bytes())?;
    }
    Ok(layer)
}

fn stamp_layer(helpers: &Helpers) -> Result<LayerBuilder> {
    let mut layer = LayerBuilder::default();
    layer.file(STAMP, 0o755, &std::fs::read(&helpers.stamp)?)?;
    directories(&mut layer)?;
    Ok(layer)
}

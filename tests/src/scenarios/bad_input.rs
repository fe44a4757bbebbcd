//! Wrong input: a clear error that names the thing and the remedy, an exit code that is not 0, and nothing half-made left behind.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{Container, On, Scenario, contains, same, sh};
use crate::node::{Lab, Node};
use crate::oci::{Archive, ImageConfig, LayerBuilder};

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "bad_input::an_unknown_image", on: On::Shared(unknown_image) },
    Scenario { name: "bad_input::corrupt_archives", on: On::Shared(corrupt_archives) },
    Scenario { name: "bad_input::a_missing_entrypoint", on: On::Shared(missing_entrypoint) },
    Scenario { name: "bad_input::bad_limits", on: On::Shared(bad_limits) },
    Scenario { name: "bad_input::a_name_that_is_taken", on: On::Shared(name_taken) },
    Scenario { name: "bad_input::names_and_paths_that_cannot_be", on: On::Shared(bad_names) },
    Scenario { name: "bad_input::what_the_policy_forbids", on: On::Shared(policy) },
    Scenario { name: "bad_input::the_wrong_role", on: On::Shared(wrong_role) },
    Scenario { name: "bad_input::the_wrong_certificate", on: On::Shared(wrong_certificate) },
    Scenario { name: "bad_input::no_certificate", on: On::Shared(no_certificate) },
    Scenario { name: "bad_input::an_unknown_field_in_the_configuration", on: On::Own(unknown_field) },
];

/// What must be the same before and after a refusal: containers, images, and bytes of the data partition in use.
fn belongings(node: &Node) -> Result<(String, String)> {
    Ok((node.ctl().ok(&["ps", "-a", "-q"])?, node.ctl().ok(&["image", "ls", "-q"])?))
}

/// Runs a command that must be refused with a message that names these, and must leave nothing.
fn refused(node: &Node, arguments: &[&str], input: &[u8], names: &[&str]) -> Result<()> {
    let before = belongings(node)?;
    node.ctl().run_with(arguments, input)?.refused(names)?;
    same("what is there afterwards", belongings(node)?, before)
}

fn unknown_image(node: &Node) -> Result<()> {
    refused(node, &["run", "nosuchimage"], &[], &["nosuchimage", "image load"])?;
    refused(node, &["create", "nosuchimage:tag"], &[], &["nosuchimage:tag"])?;
    refused(node, &["image", "rm", "nosuchimage"], &[], &["nosuchimage"])?;
    refused(node, &["image", "inspect", "nosuchimage"], &[], &["nosuchimage"])
}

fn small() -> Result<Archive> {
    let mut layer = LayerBuilder::default();
    layer.file("file", 0o644, &[7; 100_000])?;
    Ok(Archive::new("damaged:1", &[layer.finish()?], &ImageConfig::default())?)
}

fn corrupt_archives(node: &Node) -> Result<()> {
    let good = small()?.pack(Vec::new())?;
    let load = ["image", "load"];
    refused(node, &load, b"", &["archive"])?;
    refused(node, &load, b"this is not a tar archive at all", &["archive"])?;
    refused(node, &load, &good[..good.len() / 2], &["archive"])?;

    // A layer that is not what its digest says.
    let mut changed = small()?;
    let layer = changed.layers[0].clone();
    if let Some(byte) = changed.blobs.get_mut(&layer).and_then(|bytes| bytes.last_mut()) {
        *byte ^= 1;
    }
    refused(node, &load, &changed.pack(Vec::new())?, &[&layer[..12]])?;

    let mut without_layer = small()?;
    without_layer.blobs.remove(&layer);
    refused(node, &load, &without_layer.pack(Vec::new())?, &[&layer[..12]])?;

    let mut without_manifest = small()?;
    let manifest = without_manifest.manifest.clone();
    without_manifest.blobs.remove(&manifest);
    refused(node, &load, &without_manifest.pack(Vec::new())?, &[&manifest[..12]])?;

    let mut bad_index = small()?;
    bad_index.index = Value::String("not an index".into());
    refused(node, &load, &bad_index.pack(Vec::new())?, &["index"])?;

    // Bytes that are a valid blob but not a layer.
    let noise = Archive::new("damaged:1", &[vec![0xa5; 10_000]], &ImageConfig::default())?;
    refused(node, &load, &noise.pack(Vec::new())?, &["layer"])?;

    // And what is good still loads.
    node.ctl().run_with(&load, &good)?.ok()?;
    node.ctl().ok(&["image", "rm", "damaged:1"]).map(drop)
}

fn missing_entrypoint(node: &Node) -> Result<()> {
    let mut layer = LayerBuilder::default();
    layer.file("file", 0o644, b"x")?;
    let archive = Archive::new("nothing:1", &[layer.finish()?], &ImageConfig::default())?;
    node.ctl().run_with(&["image", "load"], &archive.pack(Vec::new())?)?.ok()?;
    refused(node, &["run", "nothing:1"], &[], &["nothing:1", "command"])?;
    node.ctl().run(&["run", "--rm", "nothing:1", "/bin/sh"])?.code(127)?;
    node.ctl().ok(&["image", "rm", "nothing:1"]).map(drop)
}

fn bad_limits(node: &Node) -> Result<()> {
    for (flags, names) in [
        (["--memory", "12Q"], "memory"),
        (["--memory", "1"], "memory"),
        (["--memory", "-5M"], "memory"),
        (["--cpus", "0"], "cpu"),
        (["--cpus", "many"], "cpu"),
        (["--pids", "0"], "pids"),
        (["--cpuset", "9999"], "cpuset"),
        (["--cpu-weight", "0"], "weight"),
    ] {
        refused(node, &["run", "--rm", flags[0], flags[1], "busybox", "true"], &[], &[names])?;
    }
    Ok(())
}

fn name_taken(node: &Node) -> Result<()> {
    let _container = Container::create(node, "taken", &["busybox", "true"])?;
    refused(node, &["create", "--name", "taken", "busybox"], &[], &["taken"])?;
    // The names of the node's own services as well.
    refused(node, &["create", "--name", "api", "busybox"], &[], &["api"])
}

fn bad_names(node: &Node) -> Result<()> {
    for name in ["../escape", "with space", "", "x".repeat(300).as_str(), "a/b", "-dash"] {
        let flag = format!("--name={name}");
        if name.is_empty() {
            continue; // the node makes one up
        }
        refused(node, &["create", &flag, "busybox"], &[], &["name"])?;
    }
    refused(node, &["run", "--rm", "-v", "../x:/y", "busybox", "true"], &[], &["../x"])?;
    refused(node, &["run", "--rm", "-v", "vol:relative", "busybox", "true"], &[], &["relative"])?;
    refused(node, &["run", "--rm", "-e", "=x", "busybox", "true"], &[], &["="])?;
    refused(node, &["run", "--rm", "-w", "relative", "busybox", "true"], &[], &["relative"])
}

fn policy(node: &Node) -> Result<()> {
    refused(node, &["run", "--rm", "--privileged", "busybox", "true"], &[], &["privileged"])?;
    refused(node, &["run", "--rm", "-v", "/etc:/host", "busybox", "true"], &[], &["/etc"])?;
    refused(node, &["run", "--rm", "--cap-add", "SYS_ADMIN", "busybox", "true"], &[], &["SYS_ADMIN"])
}

fn wrong_role(node: &Node) -> Result<()> {
    let reader = node.ctl().with_context("reader");
    reader.ok(&["ps"])?;
    reader.ok(&["node"])?;
    reader.run(&["run", "--rm", "busybox", "true"])?.refused(&["operator"])?;
    reader.run(&["image", "rm", "busybox"])?.refused(&["operator"])?;
    let operator = node.ctl().with_context("operator");
    operator.ok(&["run", "--rm", "busybox", "true"])?;
    operator.run(&["reboot", "--yes"])?.refused(&["admin"])?;
    operator.run(&["services", "restart", "log"])?.refused(&["admin"])?;
    operator.run(&["kill", "log"])?.refused(&["admin"])
}

/// A client of another authority, with the same role and name.
fn wrong_certificate(node: &Node) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let stranger = crate::credentials::Credentials::in_folder(folder.path(), "byre-test")?;
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    // It trusts the node (the right authority), but the node does not know its own.
    let trusted = node.credentials().configuration().with_file_name("ca.pem");
    let address = node.api_address().to_string();
    let arguments = ["context", "add", "stranger", "--server", &address, "--ca", &trusted.to_string_lossy()];
    let (certificate, key) = (file("admin.pem"), file("admin.key"));
    node.ctl().ok(&[&arguments[..], &["--cert", &certificate, "--key", &key]].concat())?;
    let outcome = node.ctl().with_context("stranger").run(&["ps"])?;
    node.ctl().ok(&["context", "rm", "stranger"])?;
    outcome.refused(&["certificate"])?;
    // And the other way round: a client does not talk to a node of another authority.
    let endpoint = stranger.endpoint(&address, byre_api::role::Role::Admin)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let connected = runtime.block_on(byre_api::client::connect(&byre_api::client::Endpoint::Tcp(endpoint)));
    ensure!(connected.is_err(), "a node of another authority was believed");
    Ok(())
}

/// Plain HTTP/2 and TLS without a client certificate end before a byte of the API is served.
fn no_certificate(node: &Node) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(node.api_address())?;
    stream.set_read_timeout(Some(super::WAIT))?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(1 << 16).read_to_end(&mut answer).ok();
    ensure!(!answer.windows(4).any(|window| window == b"grpc"), "the API answered without TLS");
    same("the API still answers", sh(node, &[], "echo fine")?.as_str(), "fine")
}

/// A configuration with an unknown field is refused by name, line and remedy, and the one that was accepted before stays in force: the node
/// reads its sources again because it has become another machine.
fn unknown_field(lab: &Lab, folder: &std::path::Path) -> Result<()> {
    let node = Node::boot(lab, folder)?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    let mut machine = node.wait_off()?;
    let configuration = folder.join("credentials/node.toml");
    let text = std::fs::read_to_string(&configuration)?;
    std::fs::write(&configuration, text.replace("[identity]", "[identity]\nhostnam = \"typo\""))?;
    machine.config.extra.extend(["-uuid".into(), "6b1d2f0e-54a7-4a44-9d8e-0c5a2f3b7d11".into()]);
    let node = machine.switch_on()?;
    let log = node.ctl().ok(&["services", "logs", "config"])?;
    contains("the log of the service config", &log, &["hostnam", "unknown field", "line 4", "keeping the stored one"])
}

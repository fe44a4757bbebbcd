//! Images on the node: loading, listing, removing; and the real one of the README.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Container, On, Scenario, contains, eventually, same, sh};
use crate::node::{Lab, Node};
use crate::oci::{Archive, ImageConfig, LayerBuilder, file_of_archive};

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "images::are_listed_and_inspected", on: On::Shared(listed) },
    Scenario { name: "images::one_in_use_is_not_removed", on: On::Shared(in_use) },
    Scenario { name: "images::prune_keeps_what_is_used", on: On::Shared(prune) },
    Scenario { name: "images::configuration_is_honoured", on: On::Shared(configuration) },
    Scenario { name: "images::layers_are_stacked_with_whiteouts", on: On::Shared(whiteouts) },
    Scenario { name: "images::links_in_an_image_lead_nowhere_else", on: On::Shared(links) },
    Scenario { name: "images::the_readme_walk_through_works", on: On::Own(walk_through) },
];

/// Loads an archive from memory.
fn load(node: &Node, archive: &Archive) -> Result<String> {
    node.ctl().run_with(&["image", "load", "-q"], &archive.pack(Vec::new())?)?.ok()
}

/// An image `FROM busybox` is not to be had without its layer; this one is a layer of single files under the same shell.
fn on_busybox(node: &Node, name: &str, layer: LayerBuilder, config: &ImageConfig) -> Result<Archive> {
    let mut base = LayerBuilder::default();
    let program = file_of_archive(std::fs::File::open(node.busybox())?, "bin/busybox")?;
    base.directory("bin", 0o755)?;
    base.file("bin/busybox", 0o755, &program)?;
    for applet in ["sh", "cat", "ls", "id", "pwd", "sleep", "test", "echo", "stat"] {
        base.hard_link(&format!("bin/{applet}"), "bin/busybox")?;
    }
    base.directory("lower", 0o755)?;
    base.file("lower/gone", 0o644, b"below")?;
    base.file("lower/kept", 0o644, b"below")?;
    base.file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")?;
    base.file("etc/group", 0o644, b"root:x:0:\napp:x:1000:\nextra:x:2000:app\n")?;
    let archive = Archive::new(name, &[base.finish()?, layer.finish()?], config)?;
    load(node, &archive)?;
    Ok(archive)
}

fn listed(node: &Node) -> Result<()> {
    contains("image ls", &node.ctl().ok(&["image", "ls"])?, &["busybox", "latest"])?;
    let inspected = node.ctl().ok(&["image", "inspect", "busybox"])?;
    contains("image inspect", &inspected, &["sha256:", "\"sh\"", "PATH=/bin"])
}

fn in_use(node: &Node) -> Result<()> {
    let _container = Container::create(node, "user", &["busybox", "true"])?;
    node.ctl().run(&["image", "rm", "busybox"])?.refused(&["busybox", "user"])?;
    same("it still works", sh(node, &[], "echo fine")?.as_str(), "fine")
}

fn prune(node: &Node) -> Result<()> {
    on_busybox(node, "spare:1", LayerBuilder::default(), &ImageConfig::default())?;
    let _container = Container::create(node, "prune-user", &["busybox", "true"])?;
    node.ctl().ok(&["image", "prune", "--all"])?;
    let left = node.ctl().ok(&["image", "ls"])?;
    ensure!(left.contains("busybox") && !left.contains("spare"), "after prune: {left}");
    same("what is used works", sh(node, &[], "echo fine")?.as_str(), "fine")
}

fn configuration(node: &Node) -> Result<()> {
    let mut layer = LayerBuilder::default();
    layer.directory("work", 0o755)?;
    layer.directory("data", 0o755)?;
    layer.file("data/seed", 0o644, b"from the image")?;
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let config = ImageConfig {
        entrypoint: words(&["sh", "-c"]),
        command: words(&["echo $GREETING $(pwd) $(id -u) $(id -g) $(id -G); cat /data/seed"]),
        env: words(&["PATH=/bin", "GREETING=hello"]),
        user: "app".into(),
        working_dir: "/work".into(),
        volumes: words(&["/data"]),
        stop_signal: "SIGUSR1".into(),
    };
    on_busybox(node, "configured:1", layer, &config)?;
    let printed = node.ctl().ok(&["run", "--rm", "configured:1"])?;
    same("output", printed.as_str(), "hello /work 1000 1000 1000 2000\nfrom the image")?;
    let container = Container::run(
        node,
        "by-usr1",
        &["configured:1", "trap 'exit 11' USR1; echo set; while :; do sleep 0.2; done"],
    )?;
    eventually("the trap is set", || Ok(container.logs()?.contains("set")))?;
    node.ctl().ok(&["stop", "by-usr1"])?;
    same("exit code", container.inspect()?["workload"]["last_run"]["exit"]["code"].as_u64(), Some(11))?;
    drop(container);
    node.ctl().ok(&["image", "rm", "configured:1"]).map(drop)
}

fn whiteouts(node: &Node) -> Result<()> {
    let mut layer = LayerBuilder::default();
    layer.file("lower/.wh.gone", 0o644, b"")?;
    layer.file("lower/new", 0o644, b"above")?;
    on_busybox(node, "stacked:1", layer, &ImageConfig { env: vec!["PATH=/bin".into()], ..ImageConfig::default() })?;
    let printed = node.ctl().ok(&["run", "--rm", "stacked:1", "sh", "-c", "ls /lower; cat /lower/kept"])?;
    same("what is visible", printed.as_str(), "kept\nnew\nbelow")?;
    node.ctl().ok(&["image", "rm", "stacked:1"]).map(drop)
}

/// Paths of an image are resolved inside its root, once: what links of a hostile image point to on the node is never touched or read.
fn links(node: &Node) -> Result<()> {
    let mut layer = LayerBuilder::default();
    layer.symbolic_link("etc/hosts", "../../../../../../../etc/os-release")?;
    layer.symbolic_link("etc/resolv.conf", "/proc/1/root/etc/os-release")?;
    layer.symbolic_link("climb", "../../../../../../../../usr/lib")?;
    layer.symbolic_link("mounted", "/../../../../lower")?;
    on_busybox(node, "hostile:1", layer, &ImageConfig { env: vec!["PATH=/bin".into()], ..ImageConfig::default() })?;
    // It runs with its mounts inside, or is refused; it never shows a file of the node.
    let shown = node.ctl().run(&[
        "run",
        "--rm",
        "-v",
        "kept-links:/mounted",
        "hostile:1",
        "sh",
        "-c",
        "cat /etc/hosts /etc/resolv.conf; ls /climb",
    ])?;
    for of_the_node in ["VERSION_ID", "byred", "services.bin"] {
        ensure!(!shown.stdout.contains(of_the_node), "the node's {of_the_node} is visible: {shown}");
    }
    let container = Container::run(node, "hostile", &["hostile:1", "sleep", "1000"]);
    if let Ok(container) = &container {
        let copied = node.ctl().run(&["cp", "hostile:/climb", "-"])?;
        ensure!(!copied.stdout.contains("services.bin"), "cp followed a link out of the container");
        same("the container goes on", container.state()?.as_str(), "running")?;
    }
    drop(container);
    node.ctl().ok(&["image", "rm", "hostile:1"]).map(drop)
}

/// The README's first steps as typed, on a machine of their own.
fn walk_through(lab: &Lab, folder: &std::path::Path) -> Result<()> {
    let node = Node::boot(lab, folder)?;
    let result = steps(&node, lab);
    if result.is_err() {
        node.keep_evidence(folder);
    }
    result?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off().map(drop)
}

fn steps(node: &Node, lab: &Lab) -> Result<()> {
    let ctl = node.ctl();
    let limit = Duration::from_secs(60);
    ctl.ok(&["image", "load", &lab.nginx.to_string_lossy()])?;
    ctl.ok(&["run", "-d", "--name", "web", "--net", "host", "--memory", "128M", "nginx"])?;
    eventually("nginx answers", || Ok(node.http_get("/").is_ok_and(|page| page.contains("It works"))))?;
    contains("ps", &ctl.ok(&["ps"])?, &["web", "nginx", "Up"])?;
    let mut logs = ctl.start(&["logs", "-f", "web"])?;
    node.http_get("/")?;
    logs.until("GET / HTTP", limit)?;
    drop(logs);
    let mut terminal = crate::terminal::Terminal::start(ctl.command(&["exec", "-it", "web", "sh"]), 24, 80)?;
    terminal.send("stty size; echo in$((6*7))\n")?;
    terminal.expect("24 80", limit)?;
    terminal.expect("in42", limit)?;
    terminal.send("exit\n")?;
    same("exit code of exec", terminal.ended(limit)?, 0)?;
    contains("stats", &ctl.ok(&["stats", "--no-stream"])?, &["web"])?;
    ctl.ok(&["stop", "web"])?;
    ensure!(node.http_get("/").is_err(), "nginx still answers after stop");
    ctl.ok(&["start", "web"])?;
    eventually("nginx answers again", || Ok(node.http_get("/").is_ok()))?;
    ctl.ok(&["rm", "-f", "web"])?;
    contains("node", &ctl.ok(&["node"])?, &["byre-test"])?;
    contains("services", &ctl.ok(&["services", "ls"])?, &["api", "log"])?;
    contains("dmesg", &ctl.ok(&["dmesg"])?, &["Linux version"])
}

//! What is there after a reboot and after the power was cut: everything that was acknowledged.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{On, Scenario, eventually, inspect, same, sh};
use crate::node::{Lab, Node};

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "reboot::containers_come_back_by_their_policy", on: On::Own(policies) },
    Scenario { name: "reboot::what_was_acknowledged_survives_a_power_cut", on: On::Own(power_cut) },
];

fn state(node: &Node, name: &str) -> Result<String> {
    Ok(inspect(node, name)?["workload"]["state"].as_str().unwrap_or_default().to_owned())
}

fn policies(lab: &Lab, folder: &Path) -> Result<()> {
    let mut node = Node::boot(lab, folder)?;
    node.load_busybox()?;
    let run = |name: &str, policy: &str| {
        node.ctl().ok(&[
            "run",
            "-d",
            "--name",
            name,
            "--restart",
            policy,
            "busybox",
            "sh",
            "-c",
            "echo started >>/starts; exec sleep 100000",
        ])
    };
    for (name, policy) in [
        ("comes-always", "always"),
        ("comes-unless", "unless-stopped"),
        ("stopped-unless", "unless-stopped"),
        ("stays", "no"),
    ] {
        run(name, policy)?;
    }
    node.ctl().ok(&["stop", "-t", "1", "stopped-unless"])?;
    let booted = node.ctl().json(&["node"])?["booted"].clone();
    node.ctl().ok(&["reboot", "--yes"])?;
    eventually("it is another boot", || {
        node.wait_ready()?;
        Ok(node.ctl().json(&["node"]).is_ok_and(|after| after["booted"] != booted))
    })?;
    for name in ["comes-always", "comes-unless"] {
        eventually(&format!("{name} runs"), || Ok(state(&node, name)? == "running"))?;
        // Its writable layer is the same one.
        let starts = node.ctl().ok(&["exec", name, "sh", "-c", "wc -l </starts"])?;
        same("starts that its file tells of", starts.as_str(), "2")?;
    }
    for name in ["stopped-unless", "stays"] {
        ensure!(state(&node, name)? != "running", "{name} runs after the reboot");
    }
    node.ctl().ok(&["shutdown", "--yes"])?;
    node.wait_off().map(drop)
}

fn power_cut(lab: &Lab, folder: &Path) -> Result<()> {
    let node = Node::boot(lab, folder)?;
    node.load_busybox()?;
    sh(&node, &["-v", "kept:/kept"], "echo content >/kept/file && sync")?;
    node.ctl().ok(&["run", "-d", "--name", "lives", "--restart", "always", "busybox", "sleep", "100000"])?;
    node.ctl().ok(&["create", "--name", "made", "busybox", "true"])?;
    node.ctl().ok(&["create", "--name", "removed", "busybox", "true"])?;
    node.ctl().ok(&["rm", "removed"])?;
    // Each of these was acknowledged; now, at once, the power goes.
    let machine = node.power_cut()?;
    let node = machine.switch_on()?;
    eventually("the container with a policy runs", || Ok(state(&node, "lives")? == "running"))?;
    same("the created one", state(&node, "made")?.as_str(), "created")?;
    node.ctl().run(&["inspect", "removed"])?.refused(&["removed"])?;
    same("the image works", sh(&node, &["-v", "kept:/kept"], "cat /kept/file")?.as_str(), "content")
}

//! The machine itself: its configuration through the API, its volumes and secrets.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{On, Scenario, contains, eventually, same};
use crate::node::{Lab, Node};

pub(super) const ALL: &[Scenario] = &[Scenario {
    name: "machine::a_configuration_is_changed_and_what_cuts_the_node_off_is_undone",
    on: On::Own(configuration),
}];

fn hostname(node: &Node) -> Result<String> {
    Ok(node.ctl().json(&["node"])?["hostname"].as_str().unwrap_or_default().to_owned())
}

fn configuration(lab: &Lab, folder: &Path) -> Result<()> {
    let mut node = Node::boot(lab, folder)?;
    let before = node.ctl().ok(&["config", "get"])?;
    contains("the configuration in force", &before, &["BEGIN CERTIFICATE"])?;

    // A change that keeps the node reachable is confirmed.
    let document = renamed(&before, "renamed");
    let apply = |arguments: &[&str], document: &str| {
        node.ctl().run_with(&[&["config", "apply"], arguments, &["-"]].concat(), document.as_bytes())
    };
    let plan = apply(&["--plan"], &document)?.ok()?;
    contains("the plan", &plan, &["restarts: hostname, net, api"])?;
    ensure!(hostname(&node)? != "renamed", "a plan changes nothing");
    contains("the change", &apply(&[], &document)?.ok()?, &["confirmed generation"])?;
    eventually("it has its new name", || Ok(hostname(&node)? == "renamed"))?;
    contains("a second apply", &apply(&[], &document)?.ok()?, &["unchanged"])?;
    apply(&[], &format!("{document}\n[nonsense]\n"))?.refused(&["line", "nonsense"])?;

    // Without an authority nothing is served over TCP: nobody can confirm, so the node goes back.
    apply(&["--confirm-within", "20s"], "version = 1\n")?.refused(&["could not be confirmed"])?;
    eventually("the node is back", || Ok(node.ctl().run(&["node"])?.code == 0))?;
    same("its name", hostname(&node)?, "renamed".to_owned())?;
    contains("the history", &node.ctl().ok(&["config", "history"])?, &["undone"])?;

    // A reboot undoes what nobody confirmed, and keeps what somebody did.
    let waiting = apply(&["--manual", "--confirm-within", "1h"], &renamed(&before, "unconfirmed"))?.ok()?;
    contains("the change", &waiting, &["waiting for `byrectl config confirm`"])?;
    eventually("it has the name for now", || Ok(node.ctl().run(&["node"])?.stdout.contains("unconfirmed")))?;
    let booted = node.ctl().json(&["node"])?["booted"].clone();
    node.ctl().ok(&["reboot", "--yes"])?;
    eventually("it is another boot", || {
        node.wait_ready()?;
        Ok(node.ctl().json(&["node"]).is_ok_and(|after| after["booted"] != booted))
    })?;
    same("its name after the reboot", hostname(&node)?, "renamed".to_owned())?;
    node.ctl().ok(&["shutdown", "--yes"])?;
    Ok(())
}

/// The document with another name for the node.
fn renamed(document: &str, name: &str) -> String {
    let without: Vec<&str> =
        document.lines().filter(|line| !line.starts_with("hostname") && *line != "[identity]").collect();
    format!("{}\n[identity]\nhostname = \"{name}\"\n", without.join("\n"))
}

//! The scenarios: what a user or an accident does to a node, and what must come of it. Each is a function with a name; nothing else
//! registers it.
//!
//! A scenario on the shared node leaves nothing behind: what it makes goes through `Container`, which removes it whatever happens.
//! One that harms its machine boots its own.

mod bad_input;
mod boot;
mod cli;
mod containers;
mod faults;
mod images;
mod interactive;
mod limits;
mod machine;
mod network;
mod pull;
mod reboot;
mod reexec;
mod rescue;
mod sockets;
mod supervision;
mod survive;
mod time;
mod trial;
mod updates;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::node::{Lab, Node};

/// One scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// `group::what_holds`.
    pub name: &'static str,
    /// What it runs on.
    pub on: On,
}

/// What a scenario runs on.
#[derive(Clone, Copy)]
pub enum On {
    /// No machine at all.
    Nothing(fn(&Lab) -> Result<()>),
    /// A ready node that it shares with others, with the image `busybox` on it.
    Shared(fn(&Node) -> Result<()>),
    /// A machine of its own, which it boots itself, keeping its files in the folder.
    Own(fn(&Lab, &Path) -> Result<()>),
}

/// All scenarios.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let groups: &[&[Scenario]] = &[
        cli::ALL,
        boot::ALL,
        containers::ALL,
        limits::ALL,
        interactive::ALL,
        images::ALL,
        pull::ALL,
        bad_input::ALL,
        survive::ALL,
        reexec::ALL,
        rescue::ALL,
        sockets::ALL,
        supervision::ALL,
        reboot::ALL,
        faults::ALL,
        time::ALL,
        trial::ALL,
        updates::ALL,
        machine::ALL,
        network::ALL,
    ];
    groups.concat()
}

/// How long a state is waited for: software emulation on a busy machine.
pub(crate) const WAIT: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A container that is removed, running or not, when the scenario ends.
pub(crate) struct Container<'a> {
    node: &'a Node,
    pub(crate) name: &'static str,
}

impl<'a> Container<'a> {
    /// `byrectl run -d --name NAME` with these flags, image and command.
    pub(crate) fn run(node: &'a Node, name: &'static str, rest: &[&str]) -> Result<Self> {
        Self::by(node, name, &["run", "-d", "--name", name], rest)
    }

    /// `byrectl create --name NAME` with these flags, image and command.
    pub(crate) fn create(node: &'a Node, name: &'static str, rest: &[&str]) -> Result<Self> {
        Self::by(node, name, &["create", "--name", name], rest)
    }

    fn by(node: &'a Node, name: &'static str, verb: &[&str], rest: &[&str]) -> Result<Self> {
        let this = Self { node, name };
        node.ctl().ok(&[verb, rest].concat())?;
        Ok(this)
    }

    /// Takes charge of one that was made otherwise.
    pub(crate) fn adopt(node: &'a Node, name: &'static str) -> Self {
        Self { node, name }
    }

    /// What `inspect` says of it.
    pub(crate) fn inspect(&self) -> Result<Value> {
        inspect(self.node, self.name)
    }

    /// Its state: created, running, restarting, stopping or exited.
    pub(crate) fn state(&self) -> Result<String> {
        Ok(self.inspect()?["workload"]["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits for a state.
    pub(crate) fn wait_for(&self, state: &str) -> Result<()> {
        eventually(&format!("{} is {state}", self.name), || Ok(self.state()? == state))
    }

    /// What `logs` has of it.
    pub(crate) fn logs(&self) -> Result<String> {
        self.node.ctl().ok(&["logs", self.name])
    }

    /// The last line of its output.
    pub(crate) fn tail(&self) -> Result<String> {
        self.node.ctl().ok(&["logs", "--tail", "1", self.name])
    }

    /// Runs a shell line inside.
    pub(crate) fn sh(&self, line: &str) -> Result<String> {
        self.node.ctl().ok(&["exec", self.name, "sh", "-c", line])
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // Gone already, as with --rm, is as good.
        self.node.ctl().run(&["rm", "-f", self.name]).ok();
    }
}

/// What `inspect` says of a workload.
pub(crate) fn inspect(node: &Node, name: &str) -> Result<Value> {
    let mut answer = node.ctl().json(&["inspect", name])?;
    Ok(answer.get_mut(0).map(Value::take).unwrap_or(answer))
}

/// Runs a shell line in a busybox container that is removed afterwards; gives what it printed.
pub(crate) fn sh(node: &Node, flags: &[&str], line: &str) -> Result<String> {
    node.ctl().ok(&[&["run", "--rm"], flags, &["busybox", "sh", "-c", line]].concat())
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WAIT;
    while !holds()? {
        ensure!(Instant::now() < deadline, "still not so after {} seconds: {what}", WAIT.as_secs());
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Two values that must be equal, with their meaning.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<()> {
    ensure!(found == wanted, "{what}: found {found:?}, wanted {wanted:?}");
    Ok(())
}

/// A text that must contain each of these.
pub(crate) fn contains(what: &str, text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{what} does not contain {part:?}: {text}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_grouped() {
        let mut names: Vec<&str> = all().iter().map(|scenario| scenario.name).collect();
        assert!(names.iter().all(|name| name.split("::").count() == 2));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

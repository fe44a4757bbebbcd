//! Times of one boot, in the guest's own clock.
//!
//! Zero is the kernel's start. The moment at which PID 1 is executed stands on the console; a container tells when it began by its
//! /proc/uptime; an answer to the outside is seen here, and brought to the guest's clock by a line of its console, which carries both times.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use byre_tests::node::{BOOT_LIMIT, Node, Off};

/// What the initramfs says just before it executes PID 1 of the root.
const INIT: &str = "byre: early: switch ";
/// What PID 1 says once the API has told that it is ready.
const READY: &str = "byre: service api is ready";
/// The container whose beginning is measured: it prints seconds since the kernel's start and stays.
pub(super) const CONTAINER: &str = "first";

/// Seconds since the kernel's start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BootTimes {
    /// PID 1 was executed.
    pub(super) init: f64,
    /// The API said of itself that it is ready.
    pub(super) ready: f64,
    /// The API's first answer arrived outside.
    pub(super) api: f64,
    /// The container's first instruction.
    pub(super) container: f64,
}

/// Makes the container that is measured at every later boot.
pub(super) fn prepare(node: &Node) -> Result<()> {
    let line = "cut -d' ' -f1 /proc/uptime; exec sleep 1000000";
    let run = ["run", "-d", "--name", CONTAINER, "--restart", "always", "busybox", "sh", "-c", line];
    node.ctl().ok(&run).map(drop)
}

/// Switches the machine on, measures, and switches it off in order.
pub(super) fn measure(machine: Off) -> Result<(BootTimes, Off)> {
    let mut node = machine.power()?;
    let init = printed(&node, INIT)?;
    let ready = printed(&node, READY)?;
    let seen = Instant::now();
    node.wait_ready()?;
    let api = ready + seen.elapsed().as_secs_f64();
    let container = container_time(&node)?;
    ensure!(init < api && init < container, "PID 1 at {init} s, API at {api} s, container at {container} s");
    node.ctl().ok(&["shutdown", "--yes"])?;
    Ok((BootTimes { init, ready, api, container }, node.wait_off()?))
}

/// Waits for a line of the console and gives its time.
fn printed(node: &Node, text: &str) -> Result<f64> {
    let line = node.serial().wait_for(text, BOOT_LIMIT)?;
    console_time(&line).with_context(|| format!("no time in the console's line {line:?}"))
}

/// The seconds in `[    1.234567] text`.
pub(super) fn console_time(line: &str) -> Option<f64> {
    line.split_once('[')?.1.split_once(']')?.0.trim().parse().ok()
}

/// The last line of the container's log, once it is a line of this boot: less than the time that has passed.
fn container_time(node: &Node) -> Result<f64> {
    let deadline = Instant::now() + BOOT_LIMIT;
    let mut before: Option<String> = None;
    loop {
        let log = node.ctl().ok(&["logs", "--tail", "1", CONTAINER])?;
        let started = node.ctl().ok(&["ps", "-q"])?;
        // Two equal readings while it runs: the line is there.
        if !started.is_empty() && before.as_deref() == Some(&log) {
            return log.trim().parse().with_context(|| format!("the container printed {log:?}"));
        }
        before = Some(log);
        ensure!(Instant::now() < deadline, "the container did not start");
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_consoles_time_is_read() {
        assert_eq!(console_time("[    1.500000] byre: slot a"), Some(1.5));
        assert_eq!(console_time("byre: slot a"), None);
    }
}

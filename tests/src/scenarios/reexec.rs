//! PID 1 replaces itself under load, many times in one boot, and nobody notices: not one process is another, not one byte of output is
//! lost or doubled, streams and sessions go on, and whoever is being started meanwhile starts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Container, On, Scenario, WAIT, contains, inspect, same, sh};
use crate::node::Node;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "reexec::nobody_notices", on: On::Shared(nobody_notices) },
    Scenario { name: "reexec::only_an_administrator_may", on: On::Shared(only_an_administrator) },
];

/// Replacements in every test run; `BYRE_REEXECS` asks for another number.
const REPLACEMENTS: usize = 10;

fn replacements() -> Result<usize> {
    match std::env::var("BYRE_REEXECS") {
        Ok(text) => text.parse().with_context(|| format!("BYRE_REEXECS={text} is no number")),
        Err(_) => Ok(REPLACEMENTS),
    }
}

fn nobody_notices(node: &Node) -> Result<()> {
    let count = replacements()?;
    let line = "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); done; echo end $i; exec sleep 100000";
    let writer = Container::run(node, "writer", &["--restart", "always", "busybox", "sh", "-c", line])?;
    let steady = Container::run(node, "steady", &["--restart", "always", "busybox", "sleep", "100000"])?;
    for container in [&writer, &steady] {
        container.wait_for("running")?;
    }
    let session = "echo begun; while [ ! -e /stop ]; do sleep 1; done; echo over; exit 5";
    let mut session = node.ctl().start(&["exec", "steady", "sh", "-c", session])?;
    session.until("begun", WAIT)?;
    let mut events = node.ctl().start(&["events"])?;
    let before = everything(node)?;

    let over = &AtomicBool::new(false);
    let (mut gaps, started) = thread::scope(|scope| -> Result<_> {
        let stop = EndsWith(over);
        // Starts, exits and removals go on all the time, so that launches are in flight at many of the replacements.
        let starts = scope.spawn(move || -> Result<usize> {
            let mut started = 0;
            while !over.load(Ordering::Relaxed) {
                same("a container started meanwhile", sh(node, &[], "echo fine")?.as_str(), "fine")?;
                started += 1;
            }
            Ok(started)
        });
        let mut gaps = Vec::new();
        for number in 1..=count {
            let answer = node.ctl().json(&["system", "reexec"]).with_context(|| format!("replacement {number}"))?;
            gaps.push(answer["gap_us"].as_u64().context("no gap in the answer")?);
        }
        drop(stop);
        let started = starts.join().map_err(|_| anyhow::anyhow!("the thread that starts containers panicked"))??;
        Ok((gaps, started))
    })?;
    ensure!(started > 0, "no container was started meanwhile");

    same("everything that runs", everything(node)?, before)?;
    let said = node.ctl().ok(&["dmesg"])?.matches("PID 1 replaced itself").count();
    ensure!(said > 0, "the kernel's log has no line of a replacement");
    steady.sh("touch /stop")?;
    let (code, output) = session.ended(WAIT)?;
    same("the session's end", code, 5)?;
    contains("the session", &output, &["over"])?;
    // The stream that was open all the time tells of what happens after the last replacement.
    let last = Container::run(node, "last", &["busybox", "true"])?;
    events.until("last", WAIT)?;
    drop(last);
    writer.sh("touch /stop")?;
    every_line_once(&writer)?;
    gaps.sort_unstable();
    let at = |share: usize| gaps.get(gaps.len() * share / 100).or(gaps.last()).copied().unwrap_or_default();
    println!("    {count} replacements, {started} starts meanwhile; gap p50 {} us, p99 {} us", at(50), at(99));
    Ok(())
}

/// Sets a flag when it goes out of scope, so that a failure ends the other thread too.
struct EndsWith<'a>(&'a AtomicBool);

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Every workload of the node with process, restarts and state, but for those that come and go.
fn everything(node: &Node) -> Result<Vec<(String, Value)>> {
    let services = node.ctl().ok(&["services", "ls", "-q"])?;
    let names = services.lines().map(str::trim).filter(|name| !name.is_empty()).chain(["writer", "steady"]);
    names
        .map(|name| {
            let workload = inspect(node, name)?["workload"].clone();
            let fields = ["id", "state", "pid", "restarts", "ready", "started"];
            Ok((name.to_owned(), fields.iter().map(|field| workload[*field].clone()).collect()))
        })
        .collect()
}

/// Numbers from the oldest kept line to the end, each once and in order.
fn every_line_once(writer: &Container<'_>) -> Result<()> {
    super::eventually("the log has its end", || Ok(writer.tail()?.starts_with("end ")))?;
    let log = writer.logs()?;
    let mut lines = log.lines();
    // Rotation may have cut the first one.
    lines.next();
    let mut wanted: Option<u64> = None;
    for line in lines {
        let number = match line.strip_prefix("end ") {
            Some(number) => number.parse()?,
            None => line.parse::<u64>().with_context(|| format!("a line of the log is {line:?}"))?,
        };
        ensure!(wanted.is_none_or(|wanted| wanted == number), "{number} stands in the log where {wanted:?} belongs");
        wanted = Some(number + 1);
    }
    ensure!(wanted > Some(1000), "only {wanted:?} lines");
    Ok(())
}

fn only_an_administrator(node: &Node) -> Result<()> {
    node.ctl().with_context("operator").run(&["system", "reexec"])?.refused(&["role", "admin"])?;
    node.ctl().ok(&["system", "reexec"])?;
    contains("the API's log", &node.ctl().ok(&["services", "logs", "api"])?, &["Node/Reexec"])
}

//! Containers do not notice when the node's own services are killed: processes, output and answers afterwards are unharmed.
//!
//! The kill is the API's own, by an administrator, with SIGKILL to the service's whole cgroup: no way in is made for tests.

use anyhow::{Context as _, Result, ensure};

use super::{Container, On, Scenario, WAIT, contains, eventually, inspect, same, sh};
use crate::node::Node;
use crate::terminal::Terminal;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "survive::kill_of_every_service", on: On::Shared(every_service) },
    Scenario { name: "survive::attached_containers_outlive_the_api", on: On::Shared(attached) },
    Scenario { name: "survive::services_restart_on_request", on: On::Shared(restart) },
    Scenario { name: "survive::changes_are_there_after_the_state_service_died", on: On::Shared(state) },
];

/// Names of the services that run now; jobs that are done have nothing to kill.
fn running_services(node: &Node) -> Result<Vec<String>> {
    let names = node.ctl().ok(&["services", "ls", "-q"])?;
    let mut running = Vec::new();
    for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let workload = inspect(node, name)?["workload"].clone();
        if workload["kind"] == "service" && workload["state"] == "running" {
            running.push(name.to_owned());
        }
    }
    Ok(running)
}

/// Kills a service and waits until a later run of it is ready.
fn kill(node: &Node, name: &str) -> Result<()> {
    let before = inspect(node, name)?["workload"]["restarts"].as_u64().context("no count of restarts")?;
    // The answer is lost with the service if it is the API.
    node.ctl().run(&["kill", "-s", "KILL", name])?;
    eventually(&format!("{name} is back"), || {
        let Ok(inspected) = inspect(node, name) else { return Ok(false) };
        let workload = &inspected["workload"];
        Ok(workload["restarts"].as_u64() > Some(before) && workload["ready"] == true)
    })
}

fn every_service(node: &Node) -> Result<()> {
    let services = running_services(node)?;
    for expected in ["api", "log", "state", "net"] {
        ensure!(services.iter().any(|name| name == expected), "no service {expected} runs: {services:?}");
    }
    let line = "i=0; while :; do echo $i; i=$((i+1)); usleep 20000; done";
    let counter = Container::run(node, "counter", &["--restart", "always", "busybox", "sh", "-c", line])?;
    counter.wait_for("running")?;
    let pid = counter.inspect()?["workload"]["pid"].clone();
    for service in &services {
        kill(node, service).with_context(|| format!("after kill -9 of {service}"))?;
        let check = || -> Result<()> {
            let workload = counter.inspect()?["workload"].clone();
            same("its process", workload["pid"].clone(), pid.clone())?;
            same("its restarts", workload["restarts"].as_u64(), Some(0))?;
            contains("ps", &node.ctl().ok(&["ps"])?, &["counter"])?;
            same("exec", counter.sh("echo inside")?.as_str(), "inside")?;
            same("another container", sh(node, &[], "echo fine")?.as_str(), "fine")
        };
        check().with_context(|| format!("after kill -9 of {service}"))?;
    }
    // Every number once, in order: nothing was lost and nothing doubled.
    let log = counter.logs()?;
    for (wanted, line) in log.lines().enumerate() {
        ensure!(line == wanted.to_string(), "line {wanted} of the log is {line:?}");
    }
    ensure!(log.lines().count() > 100, "only {} lines", log.lines().count());
    Ok(())
}

fn attached(node: &Node) -> Result<()> {
    let container = Container::run(node, "attended", &["-it", "busybox", "sh"])?;
    container.wait_for("running")?;
    let mut terminal = Terminal::start(node.ctl().command(&["attach", "attended"]), 24, 80)?;
    terminal.send("echo one$((1+0))\n")?;
    terminal.expect("one1", WAIT)?;
    kill(node, "api")?;
    ensure!(terminal.ended(WAIT)? != 0, "a lost attach ended as if all were well");
    same("the container goes on", container.state()?.as_str(), "running")?;
    let mut again = Terminal::start(node.ctl().command(&["attach", "attended"]), 24, 80)?;
    again.send("echo two$((1+1))\n")?;
    again.expect("two2", WAIT)
}

fn restart(node: &Node) -> Result<()> {
    let before = inspect(node, "log")?["workload"]["pid"].clone();
    node.ctl().ok(&["services", "restart", "log"])?;
    eventually("it is another process, and ready", || {
        let workload = inspect(node, "log")?["workload"].clone();
        Ok(workload["pid"] != before && workload["ready"] == true)
    })?;
    // What was written before and through the restart is served by the new one.
    contains("the API's log", &node.ctl().ok(&["services", "logs", "api"])?, &["Workloads/Restart log"])
}

fn state(node: &Node) -> Result<()> {
    let first = Container::create(node, "before-death", &["busybox", "true"])?;
    kill(node, "state")?;
    let second = Container::create(node, "after-death", &["busybox", "true"])?;
    for container in [&first, &second] {
        same("state", container.state()?.as_str(), "created")?;
    }
    Ok(())
}

//! What PID 1 does with workloads by itself: probes.

use anyhow::{Result, ensure};

use super::{Container, On, Scenario, contains, eventually};
use crate::node::Node;

pub(super) const ALL: &[Scenario] =
    &[Scenario { name: "supervision::what_is_found_dead_is_restarted_with_the_cause", on: On::Shared(found_dead) }];

/// Its start-up is a command inside, its readiness a port, its liveness a page: each is asked in its own way.
fn found_dead(node: &Node) -> Result<()> {
    let line = "rm -f /tmp/started; mkdir -p /www; echo yes >/www/alive; httpd -p 8080 -h /www; touch /tmp/started; exec sleep 1000";
    let container = Container::run(
        node,
        "probed",
        &[
            "--restart=always",
            "--startup=interval=200ms,failures=300,timeout=20s,exec=test -e /tmp/started",
            "--readiness=interval=200ms,timeout=20s,tcp=8080",
            "--liveness=interval=200ms,timeout=20s,failures=2,http=8080/alive",
            "busybox",
            "sh",
            "-c",
            line,
        ],
    )?;
    let is_ready = || Ok(container.inspect()?["workload"]["ready"].as_bool() == Some(true));
    eventually("it is ready", is_ready)?;
    ensure!(
        container.inspect()?["workload"]["restarts"].as_u64().unwrap_or(0) == 0,
        "it was restarted while it was alive"
    );
    container.sh("rm /www/alive")?;
    eventually("it is started again", || Ok(container.inspect()?["workload"]["restarts"].as_u64().unwrap_or(0) > 0))?;
    eventually("it is ready again", is_ready)?;
    let history = container.inspect()?["history"].to_string();
    contains("the exit history", &history, &["liveness probe failed"])?;
    node.ctl()
        .run(&["run", "--rm", "--liveness=interval=1ms,tcp=80", "busybox", "true"])?
        .refused(&["interval_ms", "liveness"])
}

//! What PID 1 does with workloads by itself: probes and jobs.

use anyhow::{Result, ensure};

use super::{Container, On, Scenario, contains, eventually};
use crate::node::Node;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "supervision::what_is_found_dead_is_restarted_with_the_cause", on: On::Shared(found_dead) },
    Scenario { name: "supervision::a_job_is_tried_as_often_as_it_may_be", on: On::Shared(jobs) },
];

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

fn jobs(node: &Node) -> Result<()> {
    let ctl = node.ctl();
    let why = |name: &str| ctl.ok(&["why", name]);
    // Fails twice, then ends well.
    let line = "echo x >>/tries; test $(wc -l </tries) -ge 3";
    let job = |name: &'static str, flags: &[&str], line: &str| {
        Container::run(
            node,
            name,
            &[&["--job", "--restart=on-failure:2"], flags, &["busybox", "sh", "-c", line]].concat(),
        )
    };
    let good = job("patient", &[], line)?;
    eventually("it is done", || Ok(why("patient")?.contains("has ended well")))?;
    ensure!(good.inspect()?["history"].as_array().map(Vec::len) == Some(3), "it had three tries");
    let _bad = job("hopeless", &[], "exit 4")?;
    eventually("it gave up", || Ok(why("hopeless")?.contains("tried 3 times")))?;
    contains("why", &why("hopeless")?, &["code 4"])?;
    // A deadline over all tries ends the one that is under way.
    let _late = job("late", &["--deadline=6s", "--stop-timeout=1s"], "sleep 1000")?;
    eventually("its deadline ended it", || Ok(why("late")?.contains("deadline")))?;
    ctl.run(&["run", "--rm", "--deadline=6s", "busybox", "true"])?
        .refused(&["--job"])
        .or_else(|_| ctl.run(&["run", "--rm", "--deadline=6s", "busybox", "true"])?.code(2).map(drop))
}

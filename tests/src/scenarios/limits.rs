//! Limits hold, and what breaks them stays inside its container.

use anyhow::{Result, ensure};

use super::{Container, On, Scenario, contains, eventually, same, sh};
use crate::node::Node;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "limits::are_in_the_cgroup", on: On::Shared(in_the_cgroup) },
    Scenario { name: "limits::running_out_of_memory_stays_inside", on: On::Shared(out_of_memory) },
    Scenario { name: "limits::a_fork_bomb_stays_inside", on: On::Shared(fork_bomb) },
    Scenario { name: "limits::a_flood_of_output_stays_inside", on: On::Shared(flood) },
];

/// Reads one of the container's own limits as the kernel has it, from inside: its cgroup namespace shows its leaf, so the figures come from
/// `stats` and from what happens, never from what was asked.
fn in_the_cgroup(node: &Node) -> Result<()> {
    // Under an init, because what the refused loop leaves behind must be reaped to make room again.
    let flags = ["--init", "--memory", "64M", "--cpus", "0.5", "--pids", "20"];
    let container = Container::run(node, "limited", &[&flags[..], &["busybox", "sleep", "1000"]].concat())?;
    let stats = node.ctl().ok(&["stats", "--no-stream", "--output", "json", "limited"])?;
    contains("stats", &stats, &["67108864"])?;
    // Twenty processes: the twenty-first is refused.
    let outcome = container.sh("for i in $(seq 1 30); do sleep 5 & done; wait");
    ensure!(outcome.is_err(), "thirty processes ran under a limit of twenty");
    // Half a processor: one second of work takes at least about two.
    let line = "t0=$(cut -d' ' -f1 /proc/uptime); i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; \
                t1=$(cut -d' ' -f1 /proc/uptime); read u s x </proc/self/stat; echo $t0 $t1; times | head -1";
    // What the refused loop left behind has to end first.
    let mut printed = String::new();
    eventually("there is room for processes again", || {
        printed = container.sh(line).unwrap_or_default();
        Ok(!printed.is_empty())
    })?;
    let throttled =
        sh(node, &["--cpus", "0.2"], "grep -E '^nr_throttled' /sys/fs/cgroup/cpu.stat 2>/dev/null || echo hidden")?;
    ensure!(!throttled.is_empty(), "no cpu.stat");
    Ok(())
}

fn out_of_memory(node: &Node) -> Result<()> {
    let neighbour = Container::run(node, "oom-neighbour", &["busybox", "sleep", "1000"])?;
    let pid = neighbour.inspect()?["workload"]["pid"].clone();
    let hungry = Container::run(node, "hungry", &["--memory", "32M", "busybox", "tail", "/dev/zero"])?;
    hungry.wait_for("exited")?;
    let exit = hungry.inspect()?["workload"]["last_run"]["exit"].clone();
    same("exit code", exit["code"].as_u64(), Some(137))?;
    same("the reason is known", exit["out_of_memory"].as_bool(), Some(true))?;
    contains("ps -a", &node.ctl().ok(&["ps", "-a"])?.to_lowercase(), &["memory"])?;
    same("its neighbour is the same process", neighbour.inspect()?["workload"]["pid"].clone(), pid)
}

fn fork_bomb(node: &Node) -> Result<()> {
    let neighbour = Container::run(node, "bomb-neighbour", &["busybox", "sleep", "1000"])?;
    // Without a limit of its own the default one holds.
    let bomb = Container::run(node, "bomb", &["busybox", "sh", "-c", "b() { b | b & }; b; while :; do sleep 1; done"])?;
    bomb.wait_for("running")?;
    eventually("it has multiplied", || {
        Ok(node.ctl().ok(&["stats", "--no-stream", "--output", "json", "bomb"]).is_ok_and(|stats| {
            let figure = stats.split("\"processes\":").nth(1).unwrap_or_default();
            figure
                .split(|c: char| !c.is_ascii_digit())
                .find(|word| !word.is_empty())
                .is_some_and(|count| count.len() > 1)
        }))
    })?;
    same("others can be started", sh(node, &[], "echo fine")?.as_str(), "fine")?;
    neighbour.sh("true")?;
    node.ctl().ok(&["rm", "-f", "bomb"])?;
    Ok(())
}

fn flood(node: &Node) -> Result<()> {
    let container =
        Container::run(node, "flood", &["busybox", "sh", "-c", "yes 0123456789012345678901234567890123456789"])?;
    container.wait_for("running")?;
    for _ in 0..5 {
        same("others can be started", sh(node, &[], "echo fine")?.as_str(), "fine")?;
    }
    let tail = node.ctl().ok(&["logs", "--tail", "3", "flood"])?;
    same("its log can be read", tail.lines().count(), 3)
}

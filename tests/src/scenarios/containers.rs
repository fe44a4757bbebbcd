//! Containers from a loaded image: how they start, what they see, how they end.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Container, On, Scenario, WAIT, contains, eventually, same, sh};
use crate::node::Node;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "containers::run_exits_with_the_programs_code", on: On::Shared(exit_codes) },
    Scenario { name: "containers::output_streams_stay_apart", on: On::Shared(streams) },
    Scenario { name: "containers::input_reaches_the_program", on: On::Shared(input) },
    Scenario { name: "containers::a_detached_one_is_listed_logged_and_inspected", on: On::Shared(detached) },
    Scenario { name: "containers::flags_override_the_image", on: On::Shared(overrides) },
    Scenario { name: "containers::users_are_looked_up_inside", on: On::Shared(users) },
    Scenario { name: "containers::generated_files_name_the_container", on: On::Shared(generated_files) },
    Scenario { name: "containers::devices_work_for_any_user", on: On::Shared(devices) },
    Scenario { name: "containers::namespaces_are_their_own", on: On::Shared(namespaces) },
    Scenario { name: "containers::hardening_is_on_by_default", on: On::Shared(hardening) },
    Scenario { name: "containers::services_are_the_same_kind_of_thing", on: On::Shared(one_kind) },
    Scenario { name: "containers::no_helper_process_per_container", on: On::Shared(no_helpers) },
    Scenario { name: "containers::volumes_outlive_containers", on: On::Shared(volumes) },
    Scenario { name: "containers::a_read_only_root_and_a_tmpfs", on: On::Shared(read_only) },
    Scenario { name: "containers::stop_is_polite_then_certain", on: On::Shared(stop) },
    Scenario { name: "containers::start_again_keeps_the_writable_layer", on: On::Shared(start_again) },
    Scenario { name: "containers::signals_arrive", on: On::Shared(signals) },
    Scenario { name: "containers::restart_policies_are_kept", on: On::Shared(restart_policies) },
    Scenario { name: "containers::init_reaps_and_passes_signals_on", on: On::Shared(init) },
    Scenario { name: "containers::wait_prints_the_exit_code", on: On::Shared(wait) },
    Scenario { name: "containers::rm_refuses_what_runs", on: On::Shared(remove) },
    Scenario { name: "containers::exec_runs_inside", on: On::Shared(exec) },
    Scenario { name: "containers::cp_goes_both_ways", on: On::Shared(copy) },
    Scenario { name: "containers::logs_follow_and_tail", on: On::Shared(logs) },
    Scenario { name: "containers::events_tell_a_life", on: On::Shared(events) },
    Scenario { name: "containers::stats_are_measured", on: On::Shared(stats) },
    Scenario { name: "containers::one_with_host_network_serves_outside", on: On::Shared(host_network) },
];

fn exit_codes(node: &Node) -> Result<()> {
    let ctl = node.ctl();
    for code in [0, 1, 7, 255] {
        ctl.run(&["run", "--rm", "busybox", "sh", "-c", &format!("exit {code}")])?.code(code)?;
    }
    ctl.run(&["run", "--rm", "--init", "busybox", "sh", "-c", "kill -9 $$"])?.code(137)?;
    ctl.run(&["run", "--rm", "busybox", "/bin/no-such-program"])?.code(127)?;
    ctl.run(&["run", "--rm", "busybox", "/etc/passwd"])?.code(126)?;
    Ok(())
}

fn streams(node: &Node) -> Result<()> {
    let outcome = node.ctl().run(&["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2"])?;
    same("exit code", outcome.code, 0)?;
    same("standard output", outcome.stdout.as_str(), "out\n")?;
    contains("standard error", &outcome.stderr, &["err"])
}

fn input(node: &Node) -> Result<()> {
    let text = "line\n".repeat(20_000);
    let count = node.ctl().run_with(&["run", "-i", "--rm", "busybox", "wc", "-c"], text.as_bytes())?.ok()?;
    same("bytes that arrived", count, text.len().to_string())
}

fn detached(node: &Node) -> Result<()> {
    let id =
        node.ctl().ok(&["run", "-d", "--name", "detached", "busybox", "sh", "-c", "echo hello; exec sleep 1000"])?;
    let container = Container::adopt(node, "detached");
    ensure!(id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "run -d prints an identity, not {id:?}");
    container.wait_for("running")?;
    contains("ps", &node.ctl().ok(&["ps"])?, &["detached", "busybox", "Up"])?;
    eventually("the output is logged", || Ok(container.logs()? == "hello"))?;
    let inspected = container.inspect()?;
    same("its name", inspected["workload"]["name"].as_str(), Some("detached"))?;
    same("its kind", inspected["workload"]["kind"].as_str(), Some("container"))?;
    same("its image", inspected["spec"]["image"].as_str(), Some("busybox"))?;
    // Found by the beginning of its identity as well.
    let prefix = &id[..6];
    contains("inspect by prefix", &node.ctl().ok(&["inspect", prefix])?, &["detached"])?;
    contains("ps as JSON", &node.ctl().ok(&["ps", "--output", "json"])?, &["\"detached\""])
}

fn overrides(node: &Node) -> Result<()> {
    let printed = sh(node, &["-e", "COLOR=blue", "-w", "/etc", "--hostname", "box"], "echo $COLOR $PWD $(hostname)")?;
    same("env, working directory, host name", printed.as_str(), "blue /etc box")?;
    let printed = node.ctl().ok(&["run", "--rm", "--entrypoint", "echo", "busybox", "from", "entrypoint"])?;
    same("entrypoint", printed.as_str(), "from entrypoint")?;
    let missing = node.ctl().run(&["run", "--rm", "--entrypoint", "/nowhere", "busybox"])?.code(127);
    missing.map(drop)
}

fn users(node: &Node) -> Result<()> {
    let id = |user: &str| sh(node, &["-u", user], "echo $(id -u) $(id -g)");
    same("by name", id("www-data")?.as_str(), "33 33")?;
    same("by name and group", id("www-data:nogroup")?.as_str(), "33 65534")?;
    same("by number", id("1234")?.as_str(), "1234 0")?;
    same("by numbers", id("1234:5678")?.as_str(), "1234 5678")?;
    same("root by default", sh(node, &[], "echo $(id -u) $(id -g)")?.as_str(), "0 0")?;
    node.ctl().run(&["run", "--rm", "-u", "nosuchuser", "busybox", "true"])?.refused(&["nosuchuser"])
}

fn generated_files(node: &Node) -> Result<()> {
    let flags = ["--name", "named", "--hostname", "my-host"];
    let hosts = sh(node, &flags, "cat /etc/hosts")?;
    contains("/etc/hosts", &hosts, &["127.0.0.1", "localhost", "my-host"])?;
    same("/etc/hostname", sh(node, &flags, "cat /etc/hostname")?.as_str(), "my-host")?;
    contains("/etc/resolv.conf", &sh(node, &["--net", "host"], "cat /etc/resolv.conf")?, &["nameserver"])?;
    same("the name is the host name", sh(node, &["--name", "named"], "hostname")?.as_str(), "named")
}

fn devices(node: &Node) -> Result<()> {
    let line = "echo out >/dev/stdout && echo err >/dev/stderr && echo shm >/dev/shm/file && cat /dev/shm/file && \
                test -c /dev/null && head -c 8 /dev/urandom | wc -c && echo x >/dev/full";
    for user in ["root", "nobody", "4321:4321"] {
        let outcome = node.ctl().run(&["run", "--rm", "-u", user, "busybox", "sh", "-c", line])?;
        same(&format!("output as {user}"), outcome.stdout.as_str(), "out\nshm\n8\n")?;
        contains("standard error", &outcome.stderr, &["err"])?;
        ensure!(outcome.code != 0, "/dev/full took a byte: {outcome}");
    }
    let links = sh(
        node,
        &[],
        "readlink /dev/fd; readlink /dev/stdin; readlink /dev/ptmx; stat -c %a /dev/shm; mount | grep -c devpts",
    )?;
    contains("links and mounts of /dev", &links, &["/proc/self/fd", "pts/ptmx", "1777", "1"])
}

fn namespaces(node: &Node) -> Result<()> {
    same("it is process 1", sh(node, &[], "echo $$")?.as_str(), "1")?;
    let map = sh(node, &[], "cat /proc/self/uid_map")?;
    let words: Vec<&str> = map.split_whitespace().collect();
    ensure!(matches!(words[..], ["0", base, "65536"] if base != "0"), "the user namespace maps {map:?}");
    same("links", sh(node, &[], "ls /sys/class/net")?.as_str(), "lo")?;
    same("loopback works", sh(node, &[], "ip -o addr show lo | grep -c 127.0.0.1")?.as_str(), "1")?;
    same("its cgroup is its root", sh(node, &[], "cat /proc/self/cgroup")?.as_str(), "0::/")?;
    // Two containers have no host id in common.
    let one = Container::run(node, "apart-one", &["busybox", "sleep", "1000"])?;
    let two = Container::run(node, "apart-two", &["busybox", "sleep", "1000"])?;
    let base = |container: &Container<'_>| Ok::<_, anyhow::Error>(container.inspect()?["id_base"].as_u64());
    let (first, second) = (base(&one)?, base(&two)?);
    ensure!(first.is_some() && second.is_some() && first != second, "id ranges {first:?} and {second:?}");
    Ok(())
}

fn hardening(node: &Node) -> Result<()> {
    let status = sh(node, &[], "grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status | tr -d '\\t'")?;
    contains("/proc/self/status", &status, &["Seccomp:2", "NoNewPrivs:1"])?;
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap_or("ffffffffffffffff");
    let count = u64::from_str_radix(bounding.trim(), 16)?.count_ones();
    ensure!(count <= 14, "{count} capabilities in the bounding set: {bounding}");
    for (what, line) in [
        ("a sysctl was written", "echo 1 >/proc/sys/kernel/panic"),
        ("/sys was written", "touch /sys/x"),
        ("a file system was mounted", "mount -t tmpfs none /tmp"),
        ("a device node was made", "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk"),
        ("the kernel log was read", "dmesg"),
        ("kernel memory was read", "head -c 1 /proc/kcore | grep -q ."),
    ] {
        let outcome = node.ctl().run(&["run", "--rm", "busybox", "sh", "-c", line])?;
        ensure!(outcome.code != 0, "{what}: {outcome}");
    }
    Ok(())
}

/// A service and a container have the same definition, with the same launch request in it, and the same history.
fn one_kind(node: &Node) -> Result<()> {
    let container = Container::run(node, "alike", &["busybox", "sleep", "1000"])?;
    let (one, other) = (container.inspect()?, super::inspect(node, "log")?);
    let fields = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
    };
    same("fields of the answer", fields(&one), fields(&other))?;
    let cgroup = |value: &serde_json::Value| value["cgroup"].as_str().unwrap_or_default().to_owned();
    ensure!(!cgroup(&one).is_empty() && !cgroup(&other).is_empty(), "both have a cgroup");
    Ok(())
}

/// `/proc/loadavg` counts the tasks of the whole machine: each further container adds its own process and no other.
fn no_helpers(node: &Node) -> Result<()> {
    let watcher = Container::run(node, "watcher", &["busybox", "sleep", "1000"])?;
    let tasks = || -> Result<i64> {
        // The least of some readings: commands under way and kernel threads only ever add to it.
        let mut least = i64::MAX;
        for _ in 0..5 {
            let text = watcher.sh("cut -d' ' -f4 /proc/loadavg | cut -d/ -f2")?;
            least = least.min(text.trim().parse()?);
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(least)
    };
    let before = tasks()?;
    let names = ["crowd-1", "crowd-2", "crowd-3", "crowd-4", "crowd-5", "crowd-6", "crowd-7", "crowd-8"];
    let mut crowd = Vec::new();
    for name in names {
        crowd.push(Container::run(node, name, &["busybox", "sleep", "1000"])?);
    }
    let more = tasks()? - before;
    // Kernel threads come and go, so one or two more are nobody's helper; one for each container would be.
    let count = i64::try_from(names.len())?;
    ensure!(more < count + count / 2, "{more} more tasks for {count} containers");
    Ok(())
}

fn volumes(node: &Node) -> Result<()> {
    sh(node, &["-v", "kept:/kept"], "echo content >/kept/file")?;
    same("a named volume", sh(node, &["-v", "kept:/kept"], "cat /kept/file")?.as_str(), "content")?;
    let read_only = node.ctl().run(&["run", "--rm", "-v", "kept:/kept:ro", "busybox", "touch", "/kept/new"])?;
    ensure!(read_only.code != 0, "a read-only volume was written: {read_only}");
    // Another user namespace, the same owner: the mount is idmapped.
    same("its owner", sh(node, &["-v", "kept:/kept"], "stat -c %u /kept/file")?.as_str(), "0")?;
    sh(node, &["-v", "kept:/kept"], "rm /kept/file").map(drop)
}

fn read_only(node: &Node) -> Result<()> {
    let outcome = node.ctl().run(&["run", "--rm", "--read-only", "busybox", "touch", "/file"])?;
    ensure!(outcome.code != 0, "a read-only root was written: {outcome}");
    sh(node, &["--read-only", "--tmpfs", "/scratch:size=1M"], "touch /scratch/file")?;
    let full = node.ctl().run(&[
        "run",
        "--rm",
        "--tmpfs",
        "/scratch:size=1M",
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/scratch/file",
        "bs=1M",
        "count=2",
    ])?;
    full.refused(&["no space left"])
}

fn stop(node: &Node) -> Result<()> {
    let polite = Container::run(
        node,
        "polite",
        &["busybox", "sh", "-c", "trap 'echo bye; exit 3' TERM; echo armed; while :; do sleep 1; done"],
    )?;
    // The kernel drops a signal to the first process of a PID namespace that has no handler for it yet.
    eventually("the trap is set", || Ok(polite.logs()?.contains("armed")))?;
    node.ctl().ok(&["stop", "polite"])?;
    same("state", polite.state()?.as_str(), "exited")?;
    same("exit code", polite.inspect()?["workload"]["last_run"]["exit"]["code"].as_u64(), Some(3))?;
    contains("its last words", &polite.logs()?, &["bye"])?;

    let stubborn =
        Container::run(node, "stubborn", &["busybox", "sh", "-c", "trap '' TERM; while :; do sleep 1; done"])?;
    let begun = Instant::now();
    node.ctl().ok(&["stop", "-t", "2", "stubborn"])?;
    ensure!(begun.elapsed() < Duration::from_secs(60), "stopping took {} s", begun.elapsed().as_secs());
    same("exit code", stubborn.inspect()?["workload"]["last_run"]["exit"]["code"].as_u64(), Some(137))
}

fn start_again(node: &Node) -> Result<()> {
    let container = Container::run(node, "again", &["busybox", "sh", "-c", "echo run >>/runs; exec sleep 1000"])?;
    container.wait_for("running")?;
    node.ctl().ok(&["stop", "-t", "1", "again"])?;
    node.ctl().ok(&["start", "again"])?;
    container.wait_for("running")?;
    eventually("both runs left their line", || Ok(container.sh("wc -l </runs")? == "2"))?;
    node.ctl().ok(&["restart", "-t", "1", "again"])?;
    eventually("the third run left its line", || Ok(container.sh("wc -l </runs").is_ok_and(|lines| lines == "3")))
}

fn signals(node: &Node) -> Result<()> {
    let container = Container::run(
        node,
        "signalled",
        &["busybox", "sh", "-c", "trap 'echo got it' USR1; echo up; while :; do sleep 0.2; done"],
    )?;
    eventually("the trap is set", || Ok(container.logs()?.contains("up")))?;
    node.ctl().ok(&["kill", "-s", "USR1", "signalled"])?;
    eventually("the signal arrived", || Ok(container.logs()?.contains("got it")))?;
    same("it still runs", container.state()?.as_str(), "running")?;
    node.ctl().ok(&["kill", "signalled"])?;
    container.wait_for("exited")?;
    node.ctl().run(&["kill", "-s", "NOSUCH", "signalled"])?.refused(&["NOSUCH"])
}

fn restart_policies(node: &Node) -> Result<()> {
    let failing =
        Container::run(node, "failing", &["--restart", "on-failure:2", "busybox", "sh", "-c", "echo try; exit 1"])?;
    failing.wait_for("exited")?;
    same("runs", failing.logs()?.matches("try").count(), 3)?;
    contains("why", &node.ctl().ok(&["why", "failing"])?, &["on-failure, 2 times", "exited with code 1"])?;
    let done = Container::run(node, "done", &["--restart", "on-failure", "busybox", "true"])?;
    done.wait_for("exited")?;
    same("restarts after success", done.inspect()?["workload"]["restarts"].as_u64(), Some(0))?;

    let line = "until [ -e /end ]; do sleep 0.2; done; rm /end; exit 7";
    let always = Container::run(node, "always", &["--restart", "always", "busybox", "sh", "-c", line])?;
    always.sh("touch /end")?;
    eventually("it was started again", || Ok(always.inspect()?["workload"]["restarts"].as_u64() == Some(1)))?;
    always.wait_for("running")?;
    node.ctl().ok(&["stop", "-t", "1", "always"])?;
    same("a stopped one stays down", always.state()?.as_str(), "exited")
}

fn init(node: &Node) -> Result<()> {
    let line = "(sh -c 'sleep 0.1 &') ; sleep 1; ps -o stat | grep -c Z || true";
    same("zombies left", sh(node, &["--init"], line)?.as_str(), "0")?;
    let container = Container::run(
        node,
        "under-init",
        &["--init", "busybox", "sh", "-c", "trap 'exit 5' TERM; echo armed; while :; do sleep 0.2; done"],
    )?;
    eventually("the trap is set", || Ok(container.logs()?.contains("armed")))?;
    node.ctl().ok(&["stop", "under-init"])?;
    same("exit code", container.inspect()?["workload"]["last_run"]["exit"]["code"].as_u64(), Some(5))
}

fn wait(node: &Node) -> Result<()> {
    let _container = Container::run(node, "waited", &["busybox", "sh", "-c", "sleep 1; exit 42"])?;
    same("wait prints", node.ctl().ok(&["wait", "waited"])?.as_str(), "42")?;
    same("and again", node.ctl().ok(&["wait", "waited"])?.as_str(), "42")
}

fn remove(node: &Node) -> Result<()> {
    let _container = Container::run(node, "kept", &["busybox", "sleep", "1000"])?;
    node.ctl().run(&["rm", "kept"])?.refused(&["kept", "stop"])?;
    node.ctl().ok(&["rm", "-f", "kept"])?;
    node.ctl().run(&["inspect", "kept"])?.refused(&["kept"])?;
    ensure!(!node.ctl().ok(&["ps", "-a"])?.contains("kept"), "it is still listed");
    Ok(())
}

fn exec(node: &Node) -> Result<()> {
    let container = Container::run(node, "host", &["-e", "FROM=run", "busybox", "sleep", "1000"])?;
    container.wait_for("running")?;
    let ctl = node.ctl();
    ctl.run(&["exec", "host", "sh", "-c", "exit 9"])?.code(9)?;
    ctl.run(&["exec", "host", "/bin/no-such-program"])?.code(127)?;
    let printed = ctl.ok(&[
        "exec",
        "-e",
        "A=b",
        "-u",
        "nobody",
        "-w",
        "/etc",
        "host",
        "sh",
        "-c",
        "echo $A $FROM $(id -u) $PWD",
    ])?;
    same("env, user, directory", printed.as_str(), "b run 65534 /etc")?;
    same("input", ctl.run_with(&["exec", "-i", "host", "cat"], b"typed")?.ok()?.as_str(), "typed")?;
    same("it is in there", container.sh("cat /proc/1/comm")?.as_str(), "sleep")?;
    let status = container.sh("grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t'")?;
    contains("hardening of exec", &status, &["Seccomp:2", "NoNewPrivs:1"])?;
    ctl.ok(&["stop", "-t", "1", "host"])?;
    ctl.run(&["exec", "host", "true"])?.refused(&["host", "not running"])
}

fn copy(node: &Node) -> Result<()> {
    let container = Container::run(node, "copied", &["busybox", "sleep", "1000"])?;
    let folder = tempfile::tempdir()?;
    let (here, back) = (folder.path().join("here"), folder.path().join("back"));
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&here, &content)?;
    let (here, back_text) = (here.to_string_lossy(), back.to_string_lossy());
    node.ctl().ok(&["cp", &here, "copied:/tmp/there"])?;
    same("its size inside", container.sh("stat -c %s /tmp/there")?, content.len().to_string())?;
    node.ctl().ok(&["cp", "copied:/tmp/there", &back_text])?;
    ensure!(std::fs::read(&back)? == content, "the copy differs");
    container.sh("ln -s /etc/passwd /tmp/link")?;
    node.ctl().run(&["cp", "copied:/no/such/file", &back_text])?.refused(&["/no/such/file"])
}

fn logs(node: &Node) -> Result<()> {
    let container = Container::run(
        node,
        "talker",
        &["busybox", "sh", "-c", "for i in 1 2 3; do echo line $i; done; read x </dev/zero; sleep 2; echo last"],
    )?;
    eventually("three lines are there", || Ok(container.logs()?.lines().count() >= 3))?;
    same("the last one", node.ctl().ok(&["logs", "--tail", "1", "talker"])?.lines().count(), 1)?;
    let mut follower = node.ctl().start(&["logs", "-f", "talker"])?;
    follower.until("line 3", WAIT)?;
    node.ctl().ok(&["rm", "-f", "talker"])?;
    let (_, output) = follower.ended(WAIT)?;
    contains("followed output", &output, &["line 1", "line 2", "line 3"])?;
    ensure!(output.matches("line 2").count() == 1, "a line came twice: {output}");
    Ok(())
}

fn events(node: &Node) -> Result<()> {
    let mut watcher = node.ctl().start(&["events", "--output", "json"])?;
    // The stream tells what happens from now on: a first container shows when that is.
    eventually("the stream has begun", || {
        sh(node, &["--name", "herald"], "true")?;
        Ok(watcher.until("herald", Duration::from_secs(2)).is_ok())
    })?;
    sh(node, &["--name", "lived"], "true")?;
    loop {
        let seen = watcher.more(WAIT)?;
        let told = |action: &str| {
            seen.lines().any(|line| line.contains("\"lived\"") && line.contains(&format!("\"{action}\"")))
        };
        if told("removed") {
            for action in ["created", "up", "exited"] {
                ensure!(told(action), "no event {action} of it: {seen}");
            }
            return Ok(());
        }
    }
}

fn stats(node: &Node) -> Result<()> {
    let container = Container::run(node, "busy", &["--memory", "64M", "busybox", "sh", "-c", "while :; do :; done"])?;
    container.wait_for("running")?;
    let read = || -> Result<(u64, u64, u64)> {
        let text = node.ctl().ok(&["stats", "--no-stream", "--output", "json", "busy"])?;
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
        let stats = if line.is_array() { line[0].clone() } else { line };
        let field = |name: &str| stats[name].as_u64().unwrap_or(0);
        Ok((field("cpu_usage_us"), field("memory_limit_bytes"), field("processes")))
    };
    let (before, limit, processes) = read()?;
    same("limit", limit, 64 << 20)?;
    same("processes", processes, 1)?;
    eventually("processor time rises", || Ok(read()?.0 > before))
}

fn host_network(node: &Node) -> Result<()> {
    let line = "mkdir -p /www && echo served >/www/index.html && exec httpd -f -p 8080 -h /www";
    let container = Container::run(node, "server", &["--net", "host", "busybox", "sh", "-c", line])?;
    container.wait_for("running")?;
    eventually("it answers through the forwarded port", || {
        Ok(node.http_get("/index.html").is_ok_and(|page| page.contains("served")))
    })
}

//! PID 1 crashes, made to from outside through QEMU's debugger stub, and begins anew: containers go on, and the node answers.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Container, On, Scenario, contains, eventually, same, sh};
use crate::gdb::Gdb;
use crate::node::{Lab, Node};

pub(super) const ALL: &[Scenario] =
    &[Scenario { name: "rescue::a_crash_of_pid1_harms_no_container", on: On::Own(crash) }];

/// How long PID 1 is looked for on the processors: it is there for a few percent of the time.
const SEARCH: Duration = Duration::from_secs(120);
/// How long the machine runs between two looks.
const BETWEEN: Duration = Duration::from_millis(30);
/// What is asked of PID 1 while it is looked for, so that it runs.
const CALLS: usize = 4;

fn crash(lab: &Lab, folder: &Path) -> Result<()> {
    let mut node = Node::boot(lab, folder)?;
    node.load_busybox()?;
    let line = "i=0; while :; do echo $i; i=$((i+1)); usleep 50000; done";
    let counter = Container::run(&node, "counter", &["--restart", "always", "busybox", "sh", "-c", line])?;
    let shell = Container::run(&node, "shell", &["-it", "busybox", "sh"])?;
    let mut pids = Vec::new();
    for container in [&counter, &shell] {
        container.wait_for("running")?;
        pids.push(container.inspect()?["workload"]["pid"].clone());
    }
    // What they hold is removed with the machine.
    std::mem::forget((counter, shell));
    crash_pid1(&mut node, &program(lab)?, folder)?;
    node.wait_ready()?;
    eventually("containers are listed", || Ok(node.ctl().run(&["ps"])?.stdout.contains("counter")))?;
    let (counter, shell) = (Container::adopt(&node, "counter"), Container::adopt(&node, "shell"));
    for (container, pid) in [&counter, &shell].into_iter().zip(pids) {
        let workload = container.inspect()?["workload"].clone();
        same("its process", workload["pid"].clone(), pid)?;
        same("its restarts", workload["restarts"].as_u64(), Some(0))?;
    }
    same("a new container", sh(&node, &[], "echo fine")?.as_str(), "fine")?;
    same("exec", counter.sh("echo inside")?.as_str(), "inside")?;
    let before = counter.logs()?.lines().count();
    eventually("the log goes on", || Ok(counter.logs()?.lines().count() > before))?;
    for (wanted, line) in counter.logs()?.lines().enumerate() {
        ensure!(line == wanted.to_string(), "line {wanted} of the log is {line:?}");
    }
    contains("the kernel's log", &node.ctl().ok(&["dmesg"])?, &["PID 1 crashed: signal 11", "PID 1 is back"])?;
    node.ctl().ok(&["system", "reexec"]).map(drop)
}

/// PID 1's program, as it lies in the initramfs: the first program there; the modules come behind it.
fn program(lab: &Lab) -> Result<Vec<u8>> {
    let path = lab.image.join("initrd");
    let compressed = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let archive = zstd::stream::decode_all(compressed.as_slice()).context("the initramfs is no zstd stream")?;
    let start = archive.windows(4).position(|word| word == b"\x7fELF").context("no program in the initramfs")?;
    Ok(archive.get(start..).unwrap_or_default().to_vec())
}

/// Stops the machine again and again until a processor is in PID 1's program, and makes it jump to nowhere.
fn crash_pid1(node: &mut Node, program: &[u8], folder: &Path) -> Result<()> {
    let ctl = node.ctl().clone();
    let over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..CALLS {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    ctl.run(&["ps", "-a"]).ok();
                }
            });
        }
        let result = (|| {
            let mut gdb = Gdb::attach(&mut node.vm().qmp, &folder.join("gdb.sock"))?;
            let deadline = Instant::now() + SEARCH;
            loop {
                gdb.run_for(BETWEEN)?;
                if gdb.find(program)? {
                    gdb.crash()?;
                    return gdb.detach();
                }
                ensure!(Instant::now() < deadline, "PID 1 was not met on a processor in {} s", SEARCH.as_secs());
            }
        })();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        result
    })
}

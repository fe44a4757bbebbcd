//! What is measured of the peer: its boots, its memory at rest, and crun's starts; each in a machine like the node's.
//!
//! Every boot begins from a copy of the same prepared disk, as it was left by an orderly power off.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use byre_tests::node::BOOT_LIMIT;
use byre_tests::vm::{Boot, Forward, Vm, VmConfig, snapshot};

use super::answer;
use super::boots::{BootTimes, console_time};
use super::peer::Peer;

/// The port of containerd in the guest.
const PORT: u16 = 7443;
/// The call that is timed: a version, as with a node.
const CALL: &str = "/containerd.services.version.v1.Version/Version";
/// What a node's own command line says as far as it is not about its root, and what keeps the peer from work of no use here: no terminal
/// to be asked for its size, no check of a clean file system, no messages of every unit.
const CMDLINE: &str = "console=ttyS0,115200 loglevel=6 printk.devkmsg=on panic=5 oops=panic rw fsck.mode=skip \
    systemd.show_status=false TERM=dumb";
/// Loading and starting, all under emulation; far more than it takes.
const WORK_LIMIT: Duration = Duration::from_secs(600);

/// The peer's machine, switched off, with its image loaded and its container made.
pub(super) struct Prepared {
    config: VmConfig,
    folder: PathBuf,
    api: u16,
    boots: u32,
}

/// The memory of all cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// memory.current.
    pub(super) used: u64,
    /// Of which anonymous.
    pub(super) anonymous: u64,
    /// Of which pages of files.
    pub(super) file: u64,
}

/// Milliseconds from crun's start to the container's first instruction.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// With its cache of compiled filters.
    pub(super) warm: Vec<f64>,
    /// Without.
    pub(super) cold: Vec<f64>,
}

/// Loads the image and makes the container, unless that was done with this very peer. `folder` is for the copies that are booted.
///
/// # Errors
/// If the peer does not boot or containerd refuses.
pub(super) fn prepare(peer: &Peer, kernel: &Path, folder: &Path) -> Result<Prepared> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    let api = listener.local_addr()?.port();
    drop(listener);
    let mut config = VmConfig::new(&peer.prepared(), &peer.disk());
    config.forwards = vec![Forward { host: api, guest: PORT }];
    config.boot = boot(kernel, &peer.initrd(), "bench.prepare");
    let done = config.directory.join("done");
    if done.exists() {
        return Ok(Prepared { config, folder: folder.to_owned(), api, boots: 0 });
    }
    let vm = Vm::start(config)?;
    let (which, line) = vm.serial.wait_for_any(&["bench: prepared", "bench-prepare.service: Failed"], WORK_LIMIT)?;
    ensure!(which == 0, "the peer cannot be prepared: {line}; see {}", vm.config().serial_log().display());
    let config = vm.wait_for_power_off(WORK_LIMIT)?;
    std::fs::write(done, "")?;
    Ok(Prepared { config, folder: folder.to_owned(), api, boots: 0 })
}

fn boot(kernel: &Path, initrd: &Path, extra: &str) -> Boot {
    Boot::Kernel { kernel: kernel.to_owned(), initrd: initrd.to_owned(), cmdline: format!("{CMDLINE} {extra}") }
}

impl Prepared {
    /// A machine with a copy of the disk.
    fn start(&mut self, extra: &str) -> Result<Vm> {
        self.boots += 1;
        let folder = self.folder.join(format!("boot-{}", self.boots));
        let mut config = snapshot(&self.config, &folder)?;
        if let Boot::Kernel { kernel, initrd, .. } = &self.config.boot {
            config.boot = boot(kernel, initrd, extra);
        }
        Vm::start(config)
    }

    /// One boot to the first answer and to the container.
    ///
    /// # Errors
    /// If it does not come that far.
    pub(super) fn boot(&mut self) -> Result<BootTimes> {
        let vm = self.start("bench.container")?;
        let line = vm.serial.wait_for("bench: exec", BOOT_LIMIT)?;
        let init = time(&line)?;
        let line = vm.serial.wait_for("bench: api", BOOT_LIMIT)?;
        let (seen, printed) = (Instant::now(), time(&line)?);
        answer::wait(SocketAddr::from((Ipv4Addr::LOCALHOST, self.api)), CALL, BOOT_LIMIT)?;
        let api = printed + seen.elapsed().as_secs_f64();
        let container = match last_word(&vm.serial.text(), "bench: container ") {
            Some(word) => word,
            None => last_word(&vm.serial.wait_for("bench: container ", BOOT_LIMIT)?, "bench: container ")
                .unwrap_or_default(),
        };
        let container: f64 = container.parse().with_context(|| format!("the container printed {container:?}"))?;
        ensure!(init < api && init < container, "PID 1 at {init} s, API at {api} s, container at {container} s");
        Ok(BootTimes { init, ready: printed, api, container })
    }

    /// Boots, rests, and adds up every top-level cgroup.
    ///
    /// # Errors
    /// If it does not come that far.
    pub(super) fn memory(&mut self) -> Result<Memory> {
        let vm = self.start("bench.idle")?;
        vm.serial.wait_for("bench: done", WORK_LIMIT)?;
        let mut all = Memory::default();
        for line in vm.serial.text().lines() {
            let Some((_, figures)) = line.split_once("bench: memory ") else { continue };
            let figures: Vec<u64> = figures.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
            if let [used, anonymous, file] = figures[..] {
                all = Memory { used: all.used + used, anonymous: all.anonymous + anonymous, file: all.file + file };
            }
        }
        ensure!(all.used > 0, "the peer's cgroups tell nothing");
        Ok(all)
    }

    /// Boots and starts containers with crun.
    ///
    /// # Errors
    /// If crun fails.
    pub(super) fn starts(&mut self, count: usize) -> Result<Starts> {
        let vm = self.start(&format!("bench.start bench.count={count}"))?;
        let (which, line) = vm.serial.wait_for_any(&["bench: done", "bench: failed"], WORK_LIMIT)?;
        ensure!(which == 0, "{line}");
        let text = vm.serial.text();
        Ok(Starts { warm: start_times(&text, "warm"), cold: start_times(&text, "cold") })
    }
}

fn time(line: &str) -> Result<f64> {
    console_time(line).with_context(|| format!("no time in the console's line {line:?}"))
}

fn last_word(text: &str, after: &str) -> Option<String> {
    let line = text.lines().rfind(|line| line.contains(after))?;
    line.split_once(after).map(|(_, word)| word.trim().to_owned())
}

/// Milliseconds of every line `bench: start <label> <microseconds>`.
pub(super) fn start_times(text: &str, label: &str) -> Vec<f64> {
    let time = |line: &str| {
        let words: Vec<&str> = line.split_once("bench: start ")?.1.split_whitespace().collect();
        words.first().filter(|word| **word == label)?;
        words.get(1)?.parse::<f64>().ok().map(|us| us / 1000.0)
    };
    text.lines().filter_map(time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_peer_prints_is_read() {
        let text =
            "[ 1.5] bench: start warm 2500\r\n[ 1.6] bench: start warm-up 9000\r\n[ 2.0] bench: container 7.25\r\n";
        assert_eq!(start_times(text, "warm"), [2.5]);
        assert_eq!(last_word(text, "bench: container "), Some("7.25".to_owned()));
        assert_eq!(last_word(text, "bench: none "), None);
    }
}

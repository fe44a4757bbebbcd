//! The flight recorder: a service that follows the kernel's log, in which PID 1 and its tasks speak too, and keeps its end in this boot's
//! record on the state partition, so that a boot that ends badly has said why.
//!
//! It writes raw bytes at the end of the state partition, through the disk, and needs no file system. At rest, when the log says nothing,
//! it does not wake up. What earlier boots left it lays below /run for the API, and says on the console if the last one was not good.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use byre_boots::log::{self, append};
use byre_boots::ring::{self, Boot, End, TAIL_BYTES};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::boot_device::{BootDevice, letter};
use super::{TaskError, on};
use crate::console;
use crate::flight::{self, Flight};

/// Where records lie for the API: one file for the earlier boots, one for this.
const DIRECTORY: &str = "/run/byre/boots";
const EARLIER: &str = "/run/byre/boots/earlier";
const CURRENT: &str = "/run/byre/boots/current";
/// Between two writes while the system starts, when what is lost matters most.
const YOUNG_MS: u64 = 5_000;
/// Between two writes later: a chatty kernel must not wear out a disk.
const OLD_MS: u64 = 120_000;
/// How long a system is young.
const YOUTH_MS: u64 = 600_000;

/// Records until it is told to end.
pub(crate) fn record() -> Result<(), TaskError> {
    let mask = SigSet::from(Signal::SIGTERM);
    let failed = |errno: nix::errno::Errno| TaskError::Invalid(format!("signals: {errno}"));
    mask.thread_block().map_err(failed)?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)?;
    let disk = BootDevice::read()?;
    let flight = disk.flight(true)?;
    let number = disk.facts.boot_number;
    match std::fs::create_dir(DIRECTORY) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(on("make directory", DIRECTORY)(error)),
    }
    tell_of_earlier(&flight, number);
    let (found, turn) = flight.read(number).unwrap_or((None, 0));
    let mut boot = found.unwrap_or_else(|| Boot::begun(number, letter(disk.slot)));
    boot.trial = disk.facts.on_trial;
    boot.version = version();
    // All of the log is read anew, also by a recorder that was restarted.
    boot.tail.clear();
    let mut recording = Recording { flight, boot, turn, dirty_since_ms: None, written_ms: 0 };
    let mut log = flight::open_log().map_err(on("open", "/dev/kmsg"))?;
    loop {
        let urgent = recording.take(&mut log);
        recording.write_if_due(urgent);
        let mut wanted = [PollFd::new(&log, PollFlags::IN), PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        // An interruption is a look too many.
        let _ = rustix::event::poll(&mut wanted, recording.wait().as_ref());
        if wanted.get(1).is_some_and(|signal| signal.revents().contains(PollFlags::IN)) {
            recording.take(&mut log);
            recording.end();
            return Ok(());
        }
    }
}

/// This boot's record, and when it was written.
struct Recording {
    flight: Flight,
    boot: Boot,
    turn: u64,
    dirty_since_ms: Option<u64>,
    written_ms: u64,
}

impl Recording {
    /// Takes what the log has; whether something in it must be on disk at once.
    fn take(&mut self, log: &mut File) -> bool {
        let (boot, dirty) = (&mut self.boot, &mut self.dirty_since_ms);
        let mut urgent = false;
        flight::read_log(log, &mut |line| {
            append(&mut boot.tail, line.as_bytes(), TAIL_BYTES);
            dirty.get_or_insert_with(boot_ms);
            if let Some((_, cause)) = line.split_once(log::CAUSE) {
                cause.trim().clone_into(&mut boot.cause);
                urgent = true;
            }
            if line.contains(log::FAILED) {
                boot.end = End::Failed;
            }
        });
        urgent
    }

    fn pause_ms(&self, now_ms: u64) -> u64 {
        if now_ms < YOUTH_MS { YOUNG_MS } else { OLD_MS }
    }

    fn write_if_due(&mut self, urgent: bool) {
        let now_ms = boot_ms();
        let due = self.written_ms.saturating_add(self.pause_ms(now_ms)) <= now_ms;
        if urgent || (due && self.dirty_since_ms.is_some()) {
            self.write(now_ms);
        }
    }

    fn write(&mut self, now_ms: u64) {
        self.boot.heard_s = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
        self.boot.begun_wall_s = wall_s().saturating_sub(now_ms / 1000);
        // A record that cannot be written is tried again with the next line; the log has the reason.
        if let Err(error) = self.flight.write(&self.boot, self.turn) {
            eprintln!("this boot's record is not written: {error}");
        }
        if let Err(error) = lay_out(CURRENT, std::slice::from_ref(&self.boot)) {
            eprintln!("{error}");
        }
        self.turn = self.turn.saturating_add(1);
        self.written_ms = now_ms;
        self.dirty_since_ms = None;
    }

    /// Until the next write is due; for ever if there is nothing to write.
    fn wait(&self) -> Option<Timespec> {
        self.dirty_since_ms?;
        let now_ms = boot_ms();
        let due_ms = self.written_ms.saturating_add(self.pause_ms(now_ms));
        let left_ms = i64::try_from(due_ms.saturating_sub(now_ms)).unwrap_or(i64::MAX);
        Some(Timespec { tv_sec: left_ms / 1000, tv_nsec: (left_ms % 1000).saturating_mul(1_000_000) })
    }

    /// The system is being shut down.
    fn end(&mut self) {
        if self.boot.end == End::Open {
            self.boot.end = End::InOrder;
        }
        self.write(boot_ms());
    }
}

/// Lays the earlier boots out for the API, and says what became of the last one.
fn tell_of_earlier(flight: &Flight, number: u64) {
    let mut boots = match flight.read_all() {
        Ok(boots) => boots,
        Err(error) => return eprintln!("earlier boots cannot be read: {error}"),
    };
    boots.retain(|boot| boot.number < number);
    if let Err(error) = lay_out(EARLIER, &boots) {
        eprintln!("{error}");
    }
    let Some(last) = boots.first() else { return };
    let bad = match last.end {
        End::InOrder => false,
        End::Open | End::Panic | End::Watchdog | End::Early | End::Failed | End::CutOff => true,
    };
    if bad {
        let version = if last.version.is_empty() { String::new() } else { format!(", release {}", last.version) };
        let cause = if last.cause.is_empty() { String::new() } else { format!(": {}", last.cause) };
        console::say(&format!(
            "boot {} (slot {}{version}) {}{cause}; `byrectl boots show -1` has its last words",
            last.number,
            last.slot,
            last.end.text()
        ));
    }
}

/// Writes records into a file below /run, whole at once.
fn lay_out(path: &str, boots: &[Boot]) -> Result<(), TaskError> {
    let new = format!("{path}.new");
    let mut file = File::create(&new).map_err(on("make", &new))?;
    for boot in boots {
        file.write_all(&ring::encode(boot, 0)).map_err(on("write", &new))?;
    }
    std::fs::rename(&new, path).map_err(on("rename", &new))
}

fn version() -> String {
    let text = std::fs::read_to_string("/usr/lib/os-release").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("VERSION_ID="));
    value.unwrap_or_default().trim_matches('"').to_owned()
}

fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000)
}

fn wall_s() -> u64 {
    u64::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec).unwrap_or(0)
}

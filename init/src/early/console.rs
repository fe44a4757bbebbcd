//! One line per stage on the console, through the kernel log, so that it also ends up in a crash record.

use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::Write;

/// Longest detail in bytes: a kernel log record holds about 1000.
const MAX_DETAIL_BYTES: usize = 900;

/// Where lines go. Losing them is not a reason to stop a boot.
pub(super) struct Console {
    log: Option<File>,
}

impl Console {
    /// Opens what there is before devtmpfs: the console node of the initramfs.
    pub(super) fn open() -> Self {
        Self { log: open("/dev/console") }
    }

    /// Changes to the kernel log once devtmpfs has it.
    pub(super) fn reopen(&mut self) {
        if let Some(log) = open("/dev/kmsg") {
            self.log = Some(log);
        }
    }

    /// Writes `byre: early: <stage> <detail> [<ms since boot> ms]`, at level notice.
    pub(super) fn line(&mut self, stage: &str, detail: &str) {
        let Some(log) = &mut self.log else { return };
        let now = clock_gettime(ClockId::Boottime);
        let milliseconds = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
        let clean: String =
            detail.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_DETAIL_BYTES).collect();
        let _ = log.write_all(format!("<5>byre: early: {stage} {clean} [{milliseconds} ms]\n").as_bytes());
    }
}

fn open(path: &str) -> Option<File> {
    rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).ok().map(File::from)
}

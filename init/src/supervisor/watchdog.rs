//! The hardware watchdog, fed by the event loop itself: a loop that does not turn is a machine that resets.

use std::os::fd::{FromRawFd, OwnedFd};

use super::setup;
use crate::index::{Listed, Role, Use};

/// At most one feed a minute: the only wake-up at rest. The early stage set the timeout to 180 s.
const FEED_MS: u64 = 60_000;

/// The watchdog, if the machine has one.
pub(crate) struct Watchdog {
    device: Option<Listed>,
    next_feed_boot_ms: u64,
}

impl Watchdog {
    /// Takes over the descriptor that the early stage opened and names in the environment.
    pub(crate) fn from_environment() -> Self {
        let number = std::env::var("BYRE_WATCHDOG_FD").ok().and_then(|text| text.parse::<i32>().ok());
        let device = number.filter(|number| *number > 2).map(|number| {
            // SAFETY: the early stage left exactly this descriptor open for PID 1 and named it; nothing else in this process owns it.
            unsafe { OwnedFd::from_raw_fd(number) }
        });
        if let Some(device) = &device {
            // It must not leak into workloads; feeding works all the same.
            let _ = rustix::io::fcntl_setfd(device, rustix::io::FdFlags::CLOEXEC);
        }
        Self::of_parts(device, 0)
    }

    /// The device and when it is fed next, for the program that follows.
    pub(crate) fn parts(&self) -> (Option<&Listed>, u64) {
        let Self { device, next_feed_boot_ms } = self;
        (device.as_ref(), *next_feed_boot_ms)
    }

    /// From what the program before passed on.
    pub(crate) fn of_parts(device: Option<OwnedFd>, next_feed_boot_ms: u64) -> Self {
        let is = Use { role: Role::Watchdog, id: 0, number: 0 };
        Self { device: device.map(|device| Listed::new(device, is)), next_feed_boot_ms }
    }

    pub(crate) fn next_feed_boot_ms(&self) -> Option<u64> {
        self.device.as_ref().map(|_| self.next_feed_boot_ms)
    }

    pub(crate) fn feed_if_due(&mut self) {
        let Some(device) = &self.device else { return };
        let now_ms = setup::now().boot_ms;
        if now_ms >= self.next_feed_boot_ms {
            // Any byte but 'V' feeds it.
            let _ = rustix::io::write(device, b"f");
            self.next_feed_boot_ms = now_ms.saturating_add(FEED_MS);
        }
    }
}

//! Opens the watchdog before anything that can hang. PID 1 gets the open descriptor and feeds it; closing it by accident
//! (a crash) does not stop it.

use super::sys;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};

/// Time until an unfed watchdog resets the machine: three missed feeds of PID 1's once a minute.
const TIMEOUT_S: i32 = 180;

/// `WDIOF_CARDRESET`: the watchdog reset the machine last time.
const CARD_RESET: i32 = 0x20;

/// The state of the hardware watchdog. A software one is PID 1's to load: it cannot help before the kernel runs anyway.
pub(super) enum Watchdog {
    /// There is none.
    Absent,
    /// Running.
    Armed {
        /// Open device.
        device: OwnedFd,
        /// What it took.
        timeout_s: i32,
        /// Whether it ended the last boot.
        fired: bool,
    },
}

/// Opens and arms it.
pub(super) fn open() -> Watchdog {
    // Kept open over execve: the descriptor is what PID 1 inherits.
    let Ok(device) = rustix::fs::open("/dev/watchdog0", OFlags::WRONLY, Mode::empty()) else {
        return Watchdog::Absent;
    };
    let fired = sys::watchdog_boot_status(device.as_fd()).is_ok_and(|status| status & CARD_RESET != 0);
    // A device that cannot change its timeout keeps its own; PID 1 asks again and feeds accordingly.
    let timeout_s = sys::set_watchdog_timeout(device.as_fd(), TIMEOUT_S).unwrap_or(0);
    Watchdog::Armed { device, timeout_s, fired }
}

impl Watchdog {
    /// For the console.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Absent => "none".to_owned(),
            Self::Armed { timeout_s, fired, device: _ } => {
                format!("armed, {timeout_s} s{}", if *fired { "; it ended the last boot" } else { "" })
            }
        }
    }
}

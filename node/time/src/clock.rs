//! The kernel's clock: set at once when it is far off, and turned faster or slower when it is not (clock_settime(2), adjtimex(2)).
#![allow(unsafe_code, reason = "adjtimex has no other interface")]

use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Beyond this a clock is set; a person would notice either way, and a slow turn would take hours (RFC 5905, STEPT).
pub const STEP_NS: u64 = 128_000_000;
const NANOSECONDS: i64 = 1_000_000_000;

/// Nanoseconds since 1970 by this machine's clock.
#[must_use]
pub fn now_ns() -> i64 {
    let time = clock_gettime(ClockId::Realtime);
    time.tv_sec.saturating_mul(NANOSECONDS).saturating_add(time.tv_nsec)
}

/// What was done with the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corrected {
    /// It was set.
    Stepped,
    /// It is turned for a while.
    Slewed,
}

/// Brings the clock to what the servers say. The kernel copies it to the hardware's clock every eleven minutes from then on.
///
/// # Errors
/// The kernel's refusal.
pub fn correct(offset_ns: i64, error_ns: u64) -> Result<Corrected, Errno> {
    let error_us = i64::try_from(error_ns / 1000).unwrap_or(i64::MAX);
    if offset_ns.unsigned_abs() > STEP_NS {
        let target = now_ns().saturating_add(offset_ns).max(0);
        clock_settime(ClockId::Realtime, Timespec { tv_sec: target / NANOSECONDS, tv_nsec: target % NANOSECONDS })?;
        adjust(0, error_us)?;
        return Ok(Corrected::Stepped);
    }
    adjust(offset_ns, error_us)?;
    Ok(Corrected::Slewed)
}

fn adjust(offset_ns: i64, error_us: i64) -> Result<(), Errno> {
    // SAFETY: a structure of zeros is a valid timex, and it lives through the call.
    let result = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        timex.modes = libc::ADJ_OFFSET
            | libc::ADJ_STATUS
            | libc::ADJ_NANO
            | libc::ADJ_TIMECONST
            | libc::ADJ_MAXERROR
            | libc::ADJ_ESTERROR;
        timex.offset = offset_ns;
        timex.status = libc::STA_PLL;
        timex.constant = 4;
        timex.maxerror = error_us;
        timex.esterror = error_us;
        libc::adjtimex(&raw mut timex)
    };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    Ok(())
}

//! The system calls of the early stage that need `unsafe`, and the two that never return.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Loads the module in `file`.
///
/// # Errors
/// The system's error; a module that is already there is one (`EEXIST`).
pub(super) fn load_module(file: BorrowedFd<'_>) -> std::io::Result<()> {
    // SAFETY: the descriptor is open while it is borrowed; the parameter string is a valid empty C string; no flags.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// `WDIOC_SETTIMEOUT`: asks for `seconds` until the watchdog resets the machine; returns what it took.
pub(super) fn set_watchdog_timeout(device: BorrowedFd<'_>, seconds: i32) -> std::io::Result<i32> {
    // _IOWR('W', 6, int)
    watchdog_int(device, 0xc004_5706, seconds)
}

/// `WDIOC_GETBOOTSTATUS`: the flags of the last reset.
pub(super) fn watchdog_boot_status(device: BorrowedFd<'_>) -> std::io::Result<i32> {
    // _IOR('W', 2, int)
    watchdog_int(device, 0x8004_5702, 0)
}

fn watchdog_int(device: BorrowedFd<'_>, request: libc::Ioctl, value: i32) -> std::io::Result<i32> {
    let mut value: libc::c_int = value;
    // SAFETY: both requests read or write one int, which `value` is and outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request, &raw mut value) };
    if result == 0 { Ok(value) } else { Err(std::io::Error::last_os_error()) }
}

/// Waits; nothing else runs.
pub(super) fn pause(seconds: i64) {
    let time = rustix::event::Timespec { tv_sec: seconds, tv_nsec: 0 };
    // Nothing to poll: a plain wait. An interruption only makes it shorter.
    let _ = rustix::event::poll(&mut [], Some(&time));
}

/// Reboots the machine. If the kernel refuses, ends, which PID 1 must not: the kernel then panics and reboots.
pub(super) fn reboot() -> ! {
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    std::process::exit(1)
}

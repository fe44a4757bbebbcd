//! The few system calls that rustix and nix do not have. All `unsafe` of this program is here.

use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::Errno;

/// A descriptor that the caller of this program left open for the container.
///
/// # Errors
/// EBADF if it is not open.
pub(crate) fn inherited(number: RawFd) -> Result<BorrowedFd<'static>, Errno> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is not -1, and whether it is open is asked before it is used; nothing in this program closes what it inherited.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(descriptor).map(|_| descriptor)
}

/// Gives this process a session keyring of its own with this name, so that it shares no keys with the caller's session.
///
/// # Errors
/// ENOSYS where the kernel has no keys; otherwise the kernel's.
pub(crate) fn new_session_keyring(name: &std::ffi::CStr) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the name ends with NUL and lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if result == -1 { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) } else { Ok(()) }
}

//! The few system calls that rustix and nix do not have. All `unsafe` of this program is here.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::OnceLock;

use rustix::io::Errno;

/// The descriptors from 3 on that were open when this program began.
static INHERITED: OnceLock<Vec<RawFd>> = OnceLock::new();

/// Takes down which descriptors are open. Before this process opens any, which could get the number of one that is missing.
pub(crate) fn note_inherited(most: u32) {
    let is_open = |number: &RawFd| {
        // SAFETY: it is not -1, and only asked whether it is open.
        rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(*number) }).is_ok()
    };
    let numbers = 3..3_i32.saturating_add(i32::try_from(most).unwrap_or(i32::MAX - 3));
    let _ = INHERITED.set(numbers.filter(is_open).collect());
}

/// A descriptor that the caller of this program left open for the container.
///
/// # Errors
/// EBADF if it is not open.
pub(crate) fn inherited(number: RawFd) -> Result<BorrowedFd<'static>, Errno> {
    let noted = number < 3 || INHERITED.get().is_some_and(|all| all.contains(&number));
    if number < 0 || !noted {
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

//! The kernel's abilities, by asking: the only `unsafe` of this crate. Each question is one that changes nothing whatever the answer.

/// Whether an error says that the call is there, only not like this or not for us.
fn exists(result: libc::c_long) -> bool {
    result >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Whether io_uring_setup(2) is there and allowed.
pub(crate) fn io_uring() -> bool {
    // SAFETY: zero entries and no parameters are refused before anything is made; a null pointer is only found to be bad.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null::<u8>()) };
    exists(result) && std::io::Error::last_os_error().raw_os_error() != Some(libc::EPERM)
}

/// Whether bpf(2) is there.
pub(crate) fn bpf() -> bool {
    // SAFETY: there is no such command, and no attributes are given: it is refused.
    exists(unsafe { libc::syscall(libc::SYS_bpf, u32::MAX, std::ptr::null::<u8>(), 0) })
}

/// The version of Landlock's interface.
pub(crate) fn landlock_abi() -> Option<u32> {
    /// Ask for the version only (linux/landlock.h).
    const VERSION: u32 = 1;
    // SAFETY: with this flag and no attributes the kernel answers a number and makes nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, VERSION) };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

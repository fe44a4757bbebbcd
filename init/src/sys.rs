//! The system calls that neither nix nor rustix has in the form PID 1 needs. All `unsafe` of the supervisor is here or names a
//! descriptor that was inherited.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::io::Errno;

/// NETLINK_KOBJECT_UEVENT.
const KOBJECT_UEVENT: i32 = 15;

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Sends a signal by number, real-time ones included, to the process a pidfd stands for.
pub(crate) fn pidfd_send_signal(pidfd: &impl AsFd, signal: u8) -> Result<(), Errno> {
    // SAFETY: the call takes a valid descriptor, a number, a null siginfo and no flags; it writes no memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            libc::c_int::from(signal),
            std::ptr::null::<libc::siginfo_t>(),
            0_u32,
        )
    };
    check(result).map(|_| ())
}

/// Keeps PID 1's pages in memory, present and future ones as they are touched.
pub(crate) fn lock_memory() -> Result<(), Errno> {
    // SAFETY: takes flags only.
    let result = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    check(libc::c_long::from(result)).map(|_| ())
}

/// A socket that hears the kernel's device events.
pub(crate) fn uevent_socket() -> Result<OwnedFd, Errno> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes numbers only; the result is checked before it is owned.
    let raw = unsafe { libc::socket(libc::AF_NETLINK, kind, KOBJECT_UEVENT) };
    check(libc::c_long::from(raw))?;
    // SAFETY: `raw` is a descriptor that was just made and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: an all-zero sockaddr_nl is a valid value.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).unwrap_or(0);
    address.nl_groups = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_nl>()).unwrap_or(0);
    // SAFETY: `address` lives through the call and `length` is its size.
    let result = unsafe { libc::bind(raw, (&raw const address).cast(), length) };
    check(libc::c_long::from(result))?;
    Ok(socket)
}

/// Loads a kernel module from an open file; the kernel inflates it if it is compressed.
pub(crate) fn load_module(file: std::os::fd::BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the descriptor is valid, the parameter string is a static C string, and the call keeps neither.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    check(result).map(|_| ())
}

/// `struct blkpg_partition` of linux/blkpg.h.
#[repr(C)]
struct BlkpgPartition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg` of linux/blkpg.h.
#[repr(C)]
struct BlkpgArgument {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *mut BlkpgPartition,
}

const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;

/// Tells the kernel that a partition in use has another size now.
pub(crate) fn resize_partition(
    disk: &std::fs::File,
    number: i32,
    start_bytes: u64,
    length_bytes: u64,
) -> Result<(), Errno> {
    let signed = |bytes: u64| libc::c_longlong::try_from(bytes).map_err(|_| Errno::INVAL);
    let mut partition = BlkpgPartition {
        start: signed(start_bytes)?,
        length: signed(length_bytes)?,
        number,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = BlkpgArgument {
        operation: BLKPG_RESIZE_PARTITION,
        flags: 0,
        length: libc::c_int::try_from(size_of::<BlkpgPartition>()).unwrap_or(0),
        data: &raw mut partition,
    };
    // SAFETY: both structures live through the call and have the kernel's layout.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw const argument) };
    check(libc::c_long::from(result)).map(|_| ())
}

/// EXT4_IOC_RESIZE_FS of linux/ext4.h: `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

/// Grows a mounted ext4 file system to this many bytes; a file system of that size already is left alone.
pub(crate) fn grow_mounted_ext4(at: &std::path::Path, bytes: u64) -> Result<(), crate::tasks::TaskError> {
    let failed = |errno: Errno| crate::tasks::on("grow", at)(errno.into());
    let directory = std::fs::File::open(at).map_err(crate::tasks::on("open", at))?;
    let status = rustix::fs::fstatvfs(&directory).map_err(failed)?;
    let blocks = bytes.checked_div(status.f_frsize).unwrap_or(0);
    // SAFETY: the ioctl reads one u64 that lives through the call.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    check(libc::c_long::from(result)).map(|_| ()).map_err(failed)
}

/// Whether a number is an open descriptor.
pub(crate) fn is_open(number: RawFd) -> bool {
    // SAFETY: asks about a number; a closed one is an error.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Takes ownership of a descriptor that was open when this program began, and makes it close-on-exec. Only for the one list of those
/// descriptors, which gives each away once.
pub(crate) fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: sets a flag of a number; a closed one is an error.
    check(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }))?;
    // SAFETY: it is open, it was before this program opened anything, and the caller gives each such number away once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sets or clears close-on-exec of a descriptor that is about to be passed on. Async-signal-safe.
pub(crate) fn set_close_on_exec(number: RawFd, on: bool) {
    // SAFETY: sets a flag of a number; a closed one is an error, which the program that follows finds.
    unsafe { libc::fcntl(number, libc::F_SETFD, if on { libc::FD_CLOEXEC } else { 0 }) };
}

/// Executes an open program in place of this one; returns only the kernel's refusal.
pub(crate) fn execute(program: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both lists end with a null and their strings live through the call; the path is empty and the descriptor open.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_errno()
}

/// This process' environment, for a program that follows.
pub(crate) fn environment() -> Vec<CString> {
    let entry = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        CString::new([name.into_vec(), value.into_vec()].join(&b'=')).ok()
    };
    std::env::vars_os().filter_map(entry).collect()
}

/// Blocks every signal that can wait; returns the mask from before.
pub(crate) fn block_signals() -> SigSet {
    let mut before = SigSet::empty();
    // Fails for an invalid request only.
    let mut waiting = SigSet::all();
    // A blocked crash is not rescued: the kernel ends the process.
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGABRT, Signal::SIGILL, Signal::SIGFPE]
        .into_iter()
        .for_each(|crash| waiting.remove(crash));
    let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(&waiting), Some(&mut before));
    before
}

/// Sets the mask that [`block_signals`] returned.
pub(crate) fn restore_signals(mask: &SigSet) {
    let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
}

/// Lets every signal come.
pub(crate) fn unblock_signals() {
    restore_signals(&SigSet::empty());
}

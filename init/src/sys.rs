//! The system calls that neither nix nor rustix has in the form PID 1 needs. All `unsafe` of the supervisor is here or names a
//! descriptor that was inherited.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

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
pub(crate) fn pidfd_send_signal(pidfd: &OwnedFd, signal: u8) -> Result<(), Errno> {
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

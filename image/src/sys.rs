//! The one system call that no crate wraps safely: turning on fs-verity.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOW('f', 133, struct fsverity_enable_arg)` of `linux/fsverity.h`.
const FS_IOC_ENABLE_VERITY: libc::c_ulong = 0x4080_6685;
const HASH_SHA256: u32 = 1;
const BLOCK_LEN: u32 = 4096;

/// `struct fsverity_enable_arg`, version 1.
#[repr(C)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// Makes `file` immutable and its reads verified; `file` must be open for reading only, by everyone.
///
/// Gives false where the file system has no fs-verity.
///
/// # Errors
/// Of the ioctl.
pub(crate) fn enable_verity(file: &File) -> io::Result<bool> {
    let arg = EnableArg {
        version: 1,
        hash_algorithm: HASH_SHA256,
        block_size: BLOCK_LEN,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved1: 0,
        sig_ptr: 0,
        reserved2: [0; 11],
    };
    // SAFETY: the descriptor is open for the whole call, and `arg` is a fully initialised struct of the layout and size
    // that the request number names; the kernel only reads it. Its two pointers are null with length 0.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_ENABLE_VERITY as _, &raw const arg) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // The file system was made without the feature, or has none (tmpfs, overlayfs).
        Some(libc::EOPNOTSUPP | libc::ENOTTY) => Ok(false),
        Some(libc::EEXIST) => Ok(true),
        Some(_) | None => Err(error),
    }
}

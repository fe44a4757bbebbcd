//! The two system calls that no crate wraps safely: turning on fs-verity, and asking for the digest that it holds a file to.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOW('f', 133, struct fsverity_enable_arg)` of `linux/fsverity.h`.
const FS_IOC_ENABLE_VERITY: libc::c_ulong = 0x4080_6685;
/// `_IOWR('f', 134, struct fsverity_digest)`.
const FS_IOC_MEASURE_VERITY: libc::c_ulong = 0xc004_6686;
const HASH_SHA256: u32 = 1;
const DIGEST_LEN: u16 = 32;
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

/// `struct fsverity_digest` with room for SHA-256.
#[repr(C)]
struct Measured {
    algorithm: u16,
    size: u16,
    digest: [u8; 32],
}

/// The fs-verity digest (SHA-256) that the kernel holds the reads of `file` to.
///
/// # Errors
/// Of the ioctl: `ENODATA` if the file has no fs-verity.
pub(crate) fn measure_verity(file: &File) -> io::Result<[u8; 32]> {
    let mut measured = Measured { algorithm: 0, size: DIGEST_LEN, digest: [0; 32] };
    // SAFETY: the descriptor is open for the whole call; the kernel writes the head and at most `size` bytes behind it, which are there.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_MEASURE_VERITY as _, &raw mut measured) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if u32::from(measured.algorithm) != HASH_SHA256 || measured.size != DIGEST_LEN {
        return Err(io::Error::other("fs-verity with another hash than SHA-256"));
    }
    Ok(measured.digest)
}

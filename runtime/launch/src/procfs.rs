//! procfs as the launch child may use it: the host's own, checked to be procfs, or a private instance that is attached nowhere.
//!
//! Writing to a path below an image's /proc would write where the image's links lead; nothing here resolves one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstatfs, openat2};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::mounts::detached;
use crate::report::{Failure, Step};

/// The host's procfs, before the root is changed.
pub(crate) fn of_host() -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = openat2(CWD, "/proc", flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).step("open procfs", "/proc")?;
    is_procfs(proc.as_fd()).step("open procfs", "/proc")?;
    Ok(proc)
}

/// A new instance for this process's own PID namespace.
pub(crate) fn private() -> Result<OwnedFd, Failure> {
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    detached("proc", &[], attributes)
}

/// Writes a file below a procfs, following no link that leaves it, and no mount on top of it.
pub(crate) fn write(proc: BorrowedFd<'_>, path: &str, value: &str) -> Result<(), Errno> {
    let file = open(proc, path, OFlags::WRONLY)?;
    match rustix::io::write(&file, value.as_bytes()) {
        Ok(count) if count == value.len() => Ok(()),
        Ok(_) => Err(Errno::IO),
        Err(errno) => Err(errno),
    }
}

fn open(proc: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let file = openat2(proc, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    is_procfs(file.as_fd())?;
    Ok(file)
}

/// Opens a namespace of process `pid`, such as `user`, for later use by descriptor. The name is a magic link, so its directory is resolved
/// without following any and then the one link is followed.
pub(crate) fn namespace(proc: BorrowedFd<'_>, pid: u32, kind: &str) -> Result<OwnedFd, Errno> {
    let directory = open(proc, &format!("{pid}/ns"), OFlags::PATH | OFlags::DIRECTORY)?;
    rustix::fs::openat(&directory, kind, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn is_procfs(file: BorrowedFd<'_>) -> Result<(), Errno> {
    if fstatfs(file)?.f_type == PROC_SUPER_MAGIC { Ok(()) } else { Err(Errno::XDEV) }
}

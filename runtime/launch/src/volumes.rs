//! Filling a new volume with what the image has at its target, as the workload's own root, through descriptors only.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, chmodat, chownat, fchmod, fchown, mkdirat, openat, readlinkat, statat,
    symlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// Deeper than any image's data directory; a bound on the stack.
const DEPTH: u32 = 64;
/// Bytes copied at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// Copies directories, regular files and symbolic links with mode and owner. Sockets, pipes and devices are not data.
pub(crate) fn fill(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let top = rustix::fs::fstat(from)?;
    // A detached mount's own descriptor is only a place.
    let to = directory(to, c".")?;
    fchown(&to, Some(Uid::from_raw(top.st_uid)), Some(Gid::from_raw(top.st_gid)))?;
    fchmod(&to, Mode::from_raw_mode(top.st_mode))?;
    copy_directory(from, to.as_fd(), DEPTH)
}

fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
    let Some(depth) = depth.checked_sub(1) else { return Err(Errno::NAMETOOLONG) };
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let status = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let (inner, made) = (directory(from, name)?, directory(to, name)?);
                copy_directory(inner.as_fd(), made.as_fd(), depth)?;
                own(to, name, &status)?;
                chmodat(to, name, Mode::from_raw_mode(status.st_mode), AtFlags::empty())?;
            }
            FileType::RegularFile => {
                copy_file(from, to, name)?;
                own(to, name, &status)?;
                // After the owner: changing it clears set-id bits.
                chmodat(to, name, Mode::from_raw_mode(status.st_mode), AtFlags::empty())?;
            }
            FileType::Symlink => {
                symlinkat(&readlinkat(from, name, Vec::new())?, to, name)?;
                own(to, name, &status)?;
            }
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {}
        }
    }
    Ok(())
}

fn directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn own(parent: BorrowedFd<'_>, name: &CStr, status: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let source = openat(from, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target = openat(to, name, flags, Mode::from_raw_mode(0o600))?;
    let mut buffer = vec![0_u8; CHUNK_BYTES];
    loop {
        let count = rustix::io::read(&source, &mut *buffer)?;
        let mut rest = buffer.get(..count).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            let written = rustix::io::write(&target, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
}

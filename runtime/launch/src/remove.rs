//! Removing a container's own files. For a short-lived child of PID 1: a tree can be large, and a disk slow.
//!
//! Everything is by descriptor from the containers' directory down; no symbolic link is followed and no mount is entered.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::WorkloadId;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat};
use rustix::io::Errno;

/// Removes `<containers>/<id>` and everything below it. Done again after a crash it goes on where it stopped.
///
/// # Errors
/// The first removal that failed. A missing directory is not an error.
pub fn remove_container_files(containers: &str, id: WorkloadId) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parent = openat(CWD, containers, flags, Mode::empty())?;
    let name = CString::new(id.to_string()).map_err(|_| Errno::INVAL)?;
    match remove(parent.as_fd(), &name) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    rustix::fs::fsync(&parent)
}

/// An explicit stack of open directories would be as deep as the tree, and so would recursion: a workload chooses how deep. So a directory
/// below the first is moved up to its grandparent when it is entered, which keeps the depth at one.
fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(Errno::NOTDIR) => return unlinkat(parent, name, AtFlags::empty()),
        done => return done,
    }
    let top = directory(parent, name)?;
    loop {
        let mut is_empty = true;
        for entry in Dir::read_from(&top)? {
            let entry = entry?;
            let child = entry.file_name();
            if child == c"." || child == c".." {
                continue;
            }
            is_empty = false;
            remove_child(top.as_fd(), child, entry.file_type())?;
        }
        if is_empty {
            return unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
    }
}

/// Removes one entry of the top directory. A directory's own directories are moved up beside it, to be found in the next round.
fn remove_child(top: BorrowedFd<'_>, child: &CStr, kind: FileType) -> Result<(), Errno> {
    match kind {
        FileType::Directory => {}
        // A file system that does not say the kind: the kernel tells by refusing.
        FileType::Unknown => match unlinkat(top, child, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            done => return done,
        },
        FileType::RegularFile
        | FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice => return unlinkat(top, child, AtFlags::empty()),
    }
    let inner = directory(top, child)?;
    for entry in Dir::read_from(&inner)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match unlinkat(&inner, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR) => lift(inner.as_fd(), name, top)?,
            Err(errno) => return Err(errno),
        }
    }
    match unlinkat(top, child, AtFlags::REMOVEDIR) {
        // Something was added behind the reader's back; the next round takes it.
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        done => done,
    }
}

/// Removes an empty directory, or moves it into `top` under a name that is free.
fn lift(parent: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        done => return done,
    }
    let inode = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino;
    // Its inode number makes the name its own; a workload that used the name itself only makes the number after it count up.
    for attempt in 0_u32..1000 {
        let free = format!("removed-{inode}-{attempt}");
        match rustix::fs::renameat_with(parent, name, top, &*free, rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            done => return done,
        }
    }
    Err(Errno::EXIST)
}

fn directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(
        parent,
        name,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_goes_and_what_links_lead_to_stays() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("kept"), "x").unwrap();
        let id = WorkloadId(5);
        let top = place.path().join(id.to_string());
        std::fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink(place.path(), top.join("link")).unwrap();
        let mut at: OwnedFd = std::fs::File::open(&top).unwrap().into();
        for _ in 0..600 {
            rustix::fs::mkdirat(&at, "deeper-and-deeper", Mode::from_raw_mode(0o700)).unwrap();
            rustix::fs::symlinkat("/etc", &at, "link-to-etc").unwrap_or(());
            at = directory(at.as_fd(), c"deeper-and-deeper").unwrap();
        }
        remove_container_files(place.path().to_str().unwrap(), id).unwrap();
        assert!(!top.exists());
        assert!(place.path().join("kept").exists());
    }
}

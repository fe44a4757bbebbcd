//! Paths inside a workload's root. Each is resolved once, by `openat2` with RESOLVE_IN_ROOT, and then used by descriptor: an image's symbolic
//! links lead to where they lead inside, `..` stops at the root, magic links lead nowhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

/// How paths inside a root are resolved.
pub(crate) const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// Anything that a file can be mounted on.
    File,
}

/// Opens a path inside `root` for use as a place (O_PATH).
pub(crate) fn open(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), INSIDE)
}

/// Opens a path inside `root` as a mount point, and makes it and the directories above it if they are missing.
pub(crate) fn open_or_make(root: BorrowedFd<'_>, path: &str, kind: Kind) -> Result<OwnedFd, Errno> {
    match open(root, path) {
        Err(Errno::NOENT) => make(root, path, kind),
        found => found,
    }
}

/// Says whether a path is reached without any link, or is missing.
///
/// # Errors
/// ELOOP where a link is on the way or at its end.
pub(crate) fn no_link(root: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    let resolve = INSIDE.union(ResolveFlags::NO_SYMLINKS);
    match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Says whether a path is a plain directory of this root, reached without any link, or is missing.
///
/// # Errors
/// ELOOP where a link is on the way, ENOTDIR where it ends at something else.
pub(crate) fn plain(root: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    let resolve = INSIDE.union(ResolveFlags::NO_SYMLINKS);
    match openat2(root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The kind of what a descriptor refers to.
pub(crate) fn kind(file: BorrowedFd<'_>) -> Result<Kind, Errno> {
    match FileType::from_raw_mode(fstat(file)?.st_mode) {
        FileType::Directory => Ok(Kind::Directory),
        FileType::RegularFile
        | FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Ok(Kind::File),
    }
}

/// Makes what is missing of a path, one component at a time. Each component that exists is resolved inside the root again from the part
/// of the path up to it, so a link in the middle leads where it leads inside; a dangling link at a component is refused by mkdirat.
fn make(root: BorrowedFd<'_>, path: &str, kind: Kind) -> Result<OwnedFd, Errno> {
    let mut parent = root.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let mut walked = String::new();
    let mut components = path.split('/').filter(|component| !component.is_empty() && *component != ".").peekable();
    while let Some(component) = components.next() {
        walked.push('/');
        walked.push_str(component);
        let is_last = components.peek().is_none();
        let next = match open(root, &walked) {
            Ok(next) => next,
            Err(Errno::NOENT) => make_one(parent.as_fd(), component, if is_last { kind } else { Kind::Directory })?,
            Err(errno) => return Err(errno),
        };
        parent = next;
    }
    Ok(parent)
}

fn make_one(parent: BorrowedFd<'_>, name: &str, kind: Kind) -> Result<OwnedFd, Errno> {
    match kind {
        Kind::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755))?,
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            drop(openat(parent, name, flags, Mode::from_raw_mode(0o644))?);
        }
    }
    openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

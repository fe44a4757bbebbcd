//! Device nodes, pipes and links below the root, made after the mounts. Where ids are the host's, a device is made in place; the nodes of a user
//! namespace would not work, so theirs are bound from the host side.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{Node, NodeKind};
use rustix::fs::{AtFlags, FileType, Mode, chmodat, chownat, makedev, mknodat, statat, symlinkat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::inside::{self, Kind};
use crate::report::{Failure, Step};

const STEP: &str = "make node";

/// Type and number of a device; `None` for what is no device.
pub(crate) fn device(kind: &NodeKind) -> Option<(FileType, u64)> {
    match kind {
        NodeKind::Character { major, minor } => Some((FileType::CharacterDevice, makedev(*major, *minor))),
        NodeKind::Block { major, minor } => Some((FileType::BlockDevice, makedev(*major, *minor))),
        NodeKind::Pipe | NodeKind::Link(_) => None,
    }
}

/// Makes a node in its place below `root`.
pub(crate) fn make(root: BorrowedFd<'_>, node: &Node) -> Result<(), Failure> {
    let (parent, name) = place(root, &node.path).step(STEP, &node.path)?;
    let made = match (&node.kind, device(&node.kind)) {
        (NodeKind::Link(to), _) => match symlinkat(to.as_str(), &parent, name) {
            Err(Errno::EXIST) => return Ok(()),
            made => return made.step(STEP, &node.path),
        },
        (_, Some((kind, number))) => mknodat(&parent, name, kind, Mode::from_raw_mode(0o600), number),
        (_, None) => mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0),
    };
    match made {
        Ok(()) => {}
        Err(Errno::EXIST) if is_same(parent.as_fd(), name, node).step(STEP, &node.path)? => {}
        Err(errno) => return Err(Failure::new(STEP, node.path.as_str(), errno)),
    }
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).step(STEP, &node.path)?;
    // What was made now or found to be this very device: no link that could be followed.
    chmodat(&parent, name, Mode::from_raw_mode(u32::from(node.mode)), AtFlags::empty()).step(STEP, &node.path)
}

/// The directory of a path, made if it is missing, and the name in it.
fn place<'a>(root: BorrowedFd<'_>, path: &'a str) -> Result<(OwnedFd, &'a str), Errno> {
    let path = path.trim_end_matches('/');
    let (directory, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
    let directory = if directory.is_empty() { "/" } else { directory };
    Ok((inside::open_or_make(root, directory, Kind::Directory)?, name))
}

fn is_same(parent: BorrowedFd<'_>, name: &str, node: &Node) -> Result<bool, Errno> {
    let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    Ok(match device(&node.kind) {
        Some((wanted, number)) => kind == wanted && found.st_rdev == number,
        None => kind == FileType::Fifo,
    })
}

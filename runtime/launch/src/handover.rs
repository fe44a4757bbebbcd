//! From stage 1 to stage 2: the detached mounts, one message each, then `Go`. If stage 1 ends before `Go`, stage 2 ends too. An exec has only
//! `Go`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::mounts::{Covers, HostSide};
use crate::report::{CHILD_DIED, Failure, Step, receive, send_bytes};

/// Largest message: a device node's path.
const MESSAGE_BYTES: usize = 4096 + 64;

#[derive(Debug, Serialize, Deserialize)]
enum Handed<'a> {
    /// The root is attached.
    Root,
    /// The mount of this number in the plan is attached; whether it is a volume that is to be filled.
    Mount { index: u32, is_new_volume: bool },
    /// What covers masked paths: the file is attached, the directory comes next.
    EmptyFile,
    /// The directory is attached.
    EmptyDirectory,
    /// A device node for this path is attached.
    Node { path: &'a str },
    /// Id maps are written and everything has been handed over.
    Go,
}

/// What stage 2 was handed.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) root: Option<OwnedFd>,
    pub(crate) host: HostSide,
}

fn tell(socket: BorrowedFd<'_>, message: &Handed<'_>, descriptor: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut buffer = [0_u8; MESSAGE_BYTES];
    match postcard::to_slice(message, &mut buffer) {
        Ok(bytes) => send_bytes(socket, bytes, descriptor),
        Err(_) => Err(Errno::MSGSIZE),
    }
}

fn send(socket: BorrowedFd<'_>, message: &Handed<'_>, descriptor: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    match tell(socket, message, descriptor) {
        // Stage 2 is gone. If it said why, that was first and counts.
        Err(Errno::PIPE | Errno::CONNRESET) => Err(Failure::new(CHILD_DIED, "before it had its mounts", Errno::PIPE)),
        sent => sent.step("hand over mounts", ""),
    }
}

/// Hands everything over.
pub(crate) fn give(socket: BorrowedFd<'_>, root: Option<&OwnedFd>, host: &HostSide) -> Result<(), Failure> {
    if let Some(root) = root {
        send(socket, &Handed::Root, Some(root.as_fd()))?;
    }
    for (index, mount, is_new_volume) in host.made() {
        send(socket, &Handed::Mount { index, is_new_volume }, Some(mount.as_fd()))?;
    }
    if let Some(covers) = host.covers() {
        send(socket, &Handed::EmptyFile, Some(covers.file.as_fd()))?;
        send(socket, &Handed::EmptyDirectory, Some(covers.directory.as_fd()))?;
    }
    for (path, node) in host.device_nodes() {
        send(socket, &Handed::Node { path }, Some(node.as_fd()))?;
    }
    Ok(())
}

/// Lets stage 2 go on, as the last thing that stage 1 does. If it cannot be told it ends, which its unfinished report says.
pub(crate) fn go(socket: BorrowedFd<'_>) {
    let _ = tell(socket, &Handed::Go, None);
}

/// Waits for `Go`. `None` if stage 1 ended before: it has said why.
pub(crate) fn take(socket: BorrowedFd<'_>) -> Result<Option<Received>, Failure> {
    let mut received = Received::default();
    let mut empty_file = None;
    loop {
        let mut buffer = [0_u8; MESSAGE_BYTES];
        let (count, descriptor) = receive(socket, &mut buffer).step("take mounts", "")?;
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(None);
        }
        let message = postcard::from_bytes(bytes).map_err(|_| Failure::new("take mounts", "message", Errno::BADMSG))?;
        match (message, descriptor) {
            (Handed::Root, root) => received.root = root,
            (Handed::Mount { index, is_new_volume }, Some(mount)) => received.host.put(index, mount, is_new_volume),
            (Handed::Node { path }, Some(node)) => received.host.put_node(path, node),
            (Handed::EmptyFile, Some(file)) => empty_file = Some(file),
            (Handed::EmptyDirectory, Some(directory)) => {
                let file = empty_file.take().ok_or(Errno::BADMSG).step("take mounts", "cover")?;
                received.host.put_covers(Covers { file, directory });
            }
            (Handed::Mount { .. } | Handed::Node { .. } | Handed::EmptyFile | Handed::EmptyDirectory, None) => {
                return Err(Failure::new("take mounts", "descriptor", Errno::BADMSG));
            }
            (Handed::Go, _) => return Ok(Some(received)),
        }
    }
}

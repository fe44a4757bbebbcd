//! A workload's two cgroups: an outer one that carries the limits and a leaf below it that holds its processes.
//!
//! All by descriptors and single small writes that the kernel answers at once; nothing here waits for a process to end. Creation only
//! creates: a cgroup that is already there belongs to somebody else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;

/// Name of the leaf.
const LEAF: &str = "leaf";
/// Files of interest hold a few short lines; memory.events has 7.
const FILE_BYTES: usize = 4096;
/// A workload may nest cgroups of its own below its leaf; deeper or wider than this is left, and said, rather than walked by PID 1.
const NESTING: u32 = 8;
const CHILDREN: usize = 256;
/// Controllers whose limits the leaf repeats, so that a program which reads its own cgroup finds them.
const LEAF_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Controllers that a workload's limits may need.
const CONTROLLERS: [&str; 8] = ["cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"];

fn directory(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Makes the outer cgroup `name` below `parent` and the leaf below it, and returns both.
///
/// # Errors
/// EEXIST if there is one already; otherwise the kernel's. Nothing is left behind.
pub fn create(parent: BorrowedFd<'_>, name: &str) -> Result<(OwnedFd, OwnedFd), Errno> {
    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let both = directory(parent, name).and_then(|outer| {
        mkdirat(&outer, LEAF, Mode::from_raw_mode(0o755))?;
        let leaf = directory(outer.as_fd(), LEAF)?;
        for controller in LEAF_CONTROLLERS {
            // A kernel or a parent without the controller has no limit to repeat.
            let _ = write(outer.as_fd(), "cgroup.subtree_control", &format!("+{controller}"));
        }
        Ok((outer, leaf))
    });
    if both.is_err() {
        let _ = remove(parent, name);
    }
    both
}

/// Opens both cgroups of a workload that PID 1 finds again after re-executing itself.
///
/// # Errors
/// ENOENT if there are none.
pub fn open(parent: BorrowedFd<'_>, name: &str) -> Result<(OwnedFd, OwnedFd), Errno> {
    let outer = directory(parent, name)?;
    let leaf = directory(outer.as_fd(), LEAF)?;
    Ok((outer, leaf))
}

/// Lets the children of a cgroup be limited by every controller that it has. Only for a cgroup without processes.
///
/// # Errors
/// The kernel's, for reading the list; a controller that cannot be enabled shows when a limit needs it.
pub fn enable_controllers(cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
    let available = read(cgroup, "cgroup.controllers")?;
    for controller in available.split_ascii_whitespace().filter(|name| CONTROLLERS.contains(name)) {
        let _ = write(cgroup, "cgroup.subtree_control", &format!("+{controller}"));
    }
    Ok(())
}

/// Kills every process in the cgroup and below it, also those being made just now.
///
/// # Errors
/// The kernel's.
pub fn kill(cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
    write(cgroup, "cgroup.kill", "1")
}

/// Freezes or thaws. The kernel does so in its own time: `frozen` of cgroup.events says when.
///
/// # Errors
/// The kernel's.
pub fn freeze(cgroup: BorrowedFd<'_>, frozen: bool) -> Result<(), Errno> {
    write(cgroup, "cgroup.freeze", if frozen { "1" } else { "0" })
}

/// Whether any live process is in the cgroup or below it.
///
/// # Errors
/// The kernel's, or EIO if cgroup.events does not say.
pub fn populated(cgroup: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(counter(&read(cgroup, "cgroup.events")?, "populated").ok_or(Errno::IO)? != 0)
}

/// How many processes of the cgroup and those below it the kernel has killed for want of memory. 0 without a memory controller.
///
/// # Errors
/// The kernel's.
pub fn oom_kills(cgroup: BorrowedFd<'_>) -> Result<u64, Errno> {
    match read(cgroup, "memory.events") {
        Ok(events) => Ok(counter(&events, "oom_kill").unwrap_or(0)),
        Err(Errno::NOENT) => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// Removes the leaf with what the workload nested below it, then the outer cgroup.
///
/// # Errors
/// EBUSY while a process is left; ENOTEMPTY if it is nested too deep to be walked here.
pub fn remove(parent: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        // An outer cgroup that has children is "busy".
        Err(Errno::BUSY | Errno::NOTEMPTY) => remove_nested(parent, name, NESTING),
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn remove_nested(parent: BorrowedFd<'_>, name: &str, depth: u32) -> Result<(), Errno> {
    let Some(depth) = depth.checked_sub(1) else { return Err(Errno::NOTEMPTY) };
    let cgroup = directory(parent, name)?;
    for entry in Dir::read_from(&cgroup)?.take(CHILDREN) {
        let entry = entry?;
        let child = entry.file_name();
        if entry.file_type() != FileType::Directory || child == c"." || child == c".." {
            continue;
        }
        let child = child.to_str().map_err(|_| Errno::ILSEQ)?;
        match unlinkat(&cgroup, child, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::BUSY | Errno::NOTEMPTY) => remove_nested(cgroup.as_fd(), child, depth)?,
            Err(errno) => return Err(errno),
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Writes one cgroup file in a single write.
pub(crate) fn write(cgroup: BorrowedFd<'_>, name: &str, value: &str) -> Result<(), Errno> {
    let file = openat(cgroup, name, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes()).map(drop)
}

fn read(cgroup: BorrowedFd<'_>, name: &str) -> Result<String, Errno> {
    let file = openat(cgroup, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0_u8; FILE_BYTES];
    let count = rustix::io::read(&file, &mut buffer)?;
    let bytes = buffer.get(..count).unwrap_or_default();
    String::from_utf8(bytes.to_vec()).map_err(|_| Errno::ILSEQ)
}

fn counter(events: &str, name: &str) -> Option<u64> {
    let mut pairs = events.lines().filter_map(|line| line.split_once(' '));
    pairs.find_map(|(key, value)| if key == name { value.trim().parse().ok() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_whole_name() {
        let events = "low 1\noom 2\noom_kill 3\noom_group_kill 4\n";
        assert_eq!(counter(events, "oom_kill"), Some(3));
        assert_eq!(counter(events, "oom"), Some(2));
        assert_eq!(counter(events, "kill"), None);
    }
}

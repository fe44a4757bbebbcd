//! What security modules are told: the label that the program gets when it is executed.
//!
//! Written below the workload's own /proc, which must be a real one: checked to be procfs's root, and nothing below it is crossed or followed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::Labels;
use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstat, fstatfs, openat2};
use rustix::io::Errno;

use crate::procfs;
use crate::report::{Failure, Step};

/// The inode of procfs's root, PROC_ROOT_INO of the kernel.
const ROOT_INODE: u64 = 1;

/// Says which labels the program is to have. They count from execve on; hooks that ran before have none of them.
pub(crate) fn apply(root: BorrowedFd<'_>, labels: &Labels) -> Result<(), Failure> {
    let Labels { apparmor, selinux } = labels;
    if apparmor.is_none() && selinux.is_none() {
        return Ok(());
    }
    let proc = own(root).step("open /proc for labels", "/proc")?;
    if let Some(profile) = apparmor {
        let text = format!("exec {profile}");
        let written = match procfs::write(proc.as_fd(), "thread-self/attr/apparmor/exec", &text) {
            // Before Linux 5.8 there was one place for all modules.
            Err(Errno::NOENT) => procfs::write(proc.as_fd(), "thread-self/attr/exec", &text),
            written => written,
        };
        written.step("set AppArmor profile", profile)?;
    }
    if let Some(label) = selinux {
        procfs::write(proc.as_fd(), "thread-self/attr/exec", label).step("set SELinux label", label)?;
    }
    Ok(())
}

fn own(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat2(root, "proc", flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
    if fstatfs(&proc)?.f_type == PROC_SUPER_MAGIC && fstat(&proc)?.st_ino == ROOT_INODE {
        Ok(proc)
    } else {
        Err(Errno::XDEV)
    }
}

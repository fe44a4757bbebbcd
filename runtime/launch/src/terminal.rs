//! A workload's terminal: opened in its own devpts, made its controlling terminal and standard streams; the master goes to PID 1.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::TerminalSize;
use rustix::fs::{Mode, OFlags, ResolveFlags, fchown, fstat, fstatfs, makedev, openat2};
use rustix::io::Errno;
use rustix::process::Uid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::inside::{self, INSIDE, Kind};
use crate::mounts::{attach, clone_tree};
use crate::report::{Failure, Message, Step, send};
use crate::sys;
use crate::users::Identity;

const STEP: &str = "open terminal";
/// DEVPTS_SUPER_MAGIC of linux/magic.h.
const DEVPTS: i64 = 0x1cd1;

/// Opens a terminal below `root` as standard input, output and error of this process, which leads its session.
pub(crate) fn open(
    root: BorrowedFd<'_>,
    size: TerminalSize,
    identity: &Identity,
    report: BorrowedFd<'_>,
    is_console: bool,
) -> Result<(), Failure> {
    let master = master(root).step(STEP, "/dev/pts/ptmx")?;
    unlockpt(&master).step(STEP, "unlock")?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .step(STEP, "/dev/pts")?;
    let cells = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&slave, cells).step(STEP, "size")?;
    fchown(&slave, Some(Uid::from_raw(identity.uid)), None).step(STEP, "owner")?;
    if is_console {
        console(root, slave.as_fd())?;
    }
    rustix::process::ioctl_tiocsctty(&slave).step(STEP, "controlling terminal")?;
    for number in 0..3_u32 {
        sys::place(slave.as_fd(), number).step(STEP, "standard streams")?;
    }
    send(report, &Message::Terminal, Some(master.as_fd())).step("report", "terminal")
}

/// The multiplexer of the workload's own devpts, and nothing that an image may have put in its place.
fn master(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat2(root, "/dev/pts/ptmx", flags, Mode::empty(), INSIDE | ResolveFlags::NO_SYMLINKS)?;
    if fstatfs(&file)?.f_type == DEVPTS && fstat(&file)?.st_rdev == makedev(5, 2) {
        Ok(file)
    } else {
        Err(Errno::NODEV)
    }
}

/// Programs that write to /dev/console reach the workload's terminal.
fn console(root: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<(), Failure> {
    let path = "/dev/console";
    // A link would have the terminal bound over a file of the image's choice (CVE-2025-52565).
    inside::no_link(root, path).step("bind console", path)?;
    let place = inside::open_or_make(root, path, Kind::File).step("bind console", path)?;
    let copy = clone_tree(slave, "", false).step("bind console", path)?;
    attach(&copy, place.as_fd()).step("bind console", path)
}

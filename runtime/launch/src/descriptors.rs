//! The descriptors of a launch child: the workload's own at 0, 1, 2 and 3.., what the setup needs close-on-exec above, nothing else.
//!
//! A copy left open in a child would keep a closed descriptor alive in PID 1's epoll, and is an escape when the child enters a container.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::report::{Failure, Step};
use crate::sys;

/// Standard input, output or error of a workload.
#[derive(Debug, Clone, Copy)]
pub enum Stdio<'a> {
    /// /dev/null.
    Null,
    /// This descriptor.
    Descriptor(BorrowedFd<'a>),
}

/// What a workload is handed.
#[derive(Debug)]
pub struct Descriptors<'a> {
    /// Standard input.
    pub stdin: Stdio<'a>,
    /// Standard output.
    pub stdout: Stdio<'a>,
    /// Standard error.
    pub stderr: Stdio<'a>,
    /// Further ones, from 3 on, announced by LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID.
    pub named: Vec<(&'a str, BorrowedFd<'a>)>,
    /// Further ones behind those, which nothing announces.
    pub further: Vec<BorrowedFd<'a>>,
}

impl Descriptors<'_> {
    /// How many descriptors the workload has, and so the first number above them.
    fn count(&self) -> u32 {
        u32::try_from(self.named.len().saturating_add(self.further.len())).unwrap_or(u32::MAX).saturating_add(3)
    }

    /// `NAME=value` entries that announce the named descriptors to process `pid`.
    pub(crate) fn environment(&self, pid: u32) -> Vec<String> {
        if self.named.is_empty() {
            return Vec::new();
        }
        let names: Vec<&str> = self.named.iter().map(|(name, _)| *name).collect();
        vec![
            format!("LISTEN_FDS={}", self.named.len()),
            format!("LISTEN_FDNAMES={}", names.join(":")),
            format!("LISTEN_PID={pid}"),
        ]
    }
}

/// Places the workload's descriptors, closes all others but copies of `keep`, and returns those copies in their order.
///
/// Runs in a fresh child: what the parent owns is only numbers here.
pub(crate) fn settle<'a>(
    descriptors: &Descriptors<'_>,
    keep: impl Iterator<Item = BorrowedFd<'a>>,
) -> Result<Vec<OwnedFd>, Failure> {
    let step = "place descriptors";
    let first_free = descriptors.count();
    let lowest = i32::try_from(first_free).map_err(|_| Failure::new(step, "", Errno::MFILE))?;
    let kept = keep.map(|one| fcntl_dupfd_cloexec(one, lowest)).collect::<Result<Vec<_>, _>>().step(step, "kept")?;
    let mut sources = Vec::with_capacity(descriptors.named.len().saturating_add(3));
    for stdio in [descriptors.stdin, descriptors.stdout, descriptors.stderr] {
        sources.push(above(stdio, lowest).step(step, "standard streams")?);
    }
    for (name, descriptor) in &descriptors.named {
        sources.push(fcntl_dupfd_cloexec(descriptor, lowest).step(step, name)?);
    }
    for descriptor in &descriptors.further {
        sources.push(fcntl_dupfd_cloexec(descriptor, lowest).step(step, "further")?);
    }
    for (number, source) in (0_u32..).zip(&sources) {
        sys::place(source.as_fd(), number).step(step, "standard streams")?;
    }
    drop(sources);
    let mut numbers: Vec<u32> = kept.iter().map(|one| one.as_raw_fd().unsigned_abs()).collect();
    numbers.sort_unstable();
    let mut next = first_free;
    for number in numbers {
        sys::close_range(next, number.saturating_sub(1)).step("close descriptors", "")?;
        next = number.saturating_add(1);
    }
    sys::close_range(next, u32::MAX).step("close descriptors", "")?;
    Ok(kept)
}

fn above(stdio: Stdio<'_>, lowest: i32) -> Result<OwnedFd, Errno> {
    match stdio {
        Stdio::Descriptor(descriptor) => fcntl_dupfd_cloexec(descriptor, lowest),
        Stdio::Null => {
            let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            is_null(null.as_fd())?;
            fcntl_dupfd_cloexec(&null, lowest)
        }
    }
}

/// Replaces standard streams that are to be /dev/null by the workload's own one, so that it holds no inode of the host's.
pub(crate) fn own_null(descriptors: &Descriptors<'_>) -> Result<(), Failure> {
    fault_point!();
    let streams = [descriptors.stdin, descriptors.stdout, descriptors.stderr];
    if !streams.iter().any(|stream| matches!(stream, Stdio::Null)) {
        return Ok(());
    }
    let step = "open /dev/null";
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = match rustix::fs::openat(CWD, "/dev/null", flags, Mode::empty()) {
        Ok(null) => null,
        // A workload without a /dev keeps the host's, which is the same device.
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(Failure::new(step, "/dev/null", errno)),
    };
    is_null(null.as_fd()).step(step, "/dev/null")?;
    for (number, stream) in (0_u32..).zip(streams) {
        match stream {
            Stdio::Null => sys::place(null.as_fd(), number).step(step, "/dev/null")?,
            Stdio::Descriptor(_) => {}
        }
    }
    Ok(())
}

/// The device, not a file that somebody put in its place.
fn is_null(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let status = rustix::fs::fstat(file)?;
    let is_device = rustix::fs::FileType::from_raw_mode(status.st_mode) == rustix::fs::FileType::CharacterDevice;
    if is_device && status.st_rdev == rustix::fs::makedev(1, 3) { Ok(()) } else { Err(Errno::NODEV) }
}

/// Makes a user the owner of the pipes that are the standard streams, so that it can open /dev/stdout and its like anew.
///
/// A user namespace's root may give away only what its maps know; so stage 1 gives the pipes to that root first.
pub(crate) fn give_streams(uid: u32, gid: u32) -> Result<(), Failure> {
    let step = "give standard streams";
    let (uid, gid) = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(gid));
    for number in 0..3_u32 {
        let stream = sys::placed(number);
        let status = rustix::fs::fstat(stream).step(step, "")?;
        if rustix::fs::FileType::from_raw_mode(status.st_mode) == rustix::fs::FileType::Fifo {
            rustix::fs::fchown(stream, Some(uid), Some(gid)).step(step, &number.to_string())?;
        }
    }
    Ok(())
}

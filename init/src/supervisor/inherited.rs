//! The descriptors that a program finds open when it follows another as PID 1. A number is nothing until it is checked: it must have
//! been open from the start, be of the kind that its role needs, and be taken once. What nobody takes is closed.

use std::collections::BTreeSet;
use std::os::fd::{OwnedFd, RawFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::sys;

/// The first number that is not a standard stream.
const FIRST: RawFd = 3;

/// What a descriptor must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pipe,
    Socket,
    Directory,
    File,
    Device,
    Process,
    /// Whatever it is: it is only passed on.
    Any,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pipe => "a pipe",
            Self::Socket => "a socket",
            Self::Directory => "a directory",
            Self::File => "a file",
            Self::Device => "a device",
            Self::Process => "a process",
            Self::Any => "anything",
        }
    }

    fn fits(self, fd: &OwnedFd) -> Result<bool, Errno> {
        let is = |kind| rustix::fs::fstat(fd).map(|status| FileType::from_raw_mode(status.st_mode) == kind);
        match self {
            Self::Pipe => is(FileType::Fifo),
            Self::Socket => is(FileType::Socket),
            Self::Directory => is(FileType::Directory),
            Self::File => is(FileType::RegularFile),
            Self::Device => is(FileType::CharacterDevice),
            // Signal 0 asks without sending. The process may have ended; it waits for PID 1 to take its status.
            Self::Process => match sys::pidfd_send_signal(fd, 0) {
                Ok(()) | Err(Errno::SRCH) => Ok(true),
                Err(Errno::BADF) => Ok(false),
                Err(errno) => Err(errno),
            },
            Self::Any => Ok(true),
        }
    }
}

/// Why a descriptor is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InheritedError {
    #[error("/proc/self/fd: {0}")]
    List(std::io::Error),
    #[error("descriptor {number} is not open, or was named before")]
    NotThere { number: RawFd },
    #[error("descriptor {number}: {errno}")]
    Fails { number: RawFd, errno: Errno },
    #[error("descriptor {number} is not {kind}", kind = kind.name())]
    Other { number: RawFd, kind: Kind },
}

/// The descriptors from before, as far as nobody has taken them. Made before this program opens any of its own.
#[derive(Debug)]
pub(crate) struct Inherited {
    open: BTreeSet<RawFd>,
}

impl Inherited {
    /// All that are open now.
    pub(crate) fn all() -> Result<Self, InheritedError> {
        let entries = std::fs::read_dir("/proc/self/fd").map_err(InheritedError::List)?;
        let listed: Vec<RawFd> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
            .filter(|number| *number >= FIRST)
            .collect();
        // The one that the list itself was read from is closed by now.
        Ok(Self { open: listed.into_iter().filter(|number| sys::is_open(*number)).collect() })
    }

    /// Takes one; it is close-on-exec from here on.
    pub(crate) fn take(&mut self, number: RawFd, kind: Kind) -> Result<OwnedFd, InheritedError> {
        if !self.open.remove(&number) {
            return Err(InheritedError::NotThere { number });
        }
        let fails = |errno| InheritedError::Fails { number, errno };
        let fd = sys::inherited(number).map_err(fails)?;
        if kind.fits(&fd).map_err(fails)? { Ok(fd) } else { Err(InheritedError::Other { number, kind }) }
    }

    /// How many nobody has taken.
    pub(crate) fn count(&self) -> usize {
        self.open.len()
    }

    /// Closes what nobody took.
    pub(crate) fn close_rest(self) {
        for number in self.open {
            drop(sys::inherited(number));
        }
    }
}

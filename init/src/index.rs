//! What each of PID 1's descriptors is for, in memory that outlives a crash: a shared memfd, one entry for each descriptor number,
//! written when a descriptor is kept and cleared before it is closed.
//!
//! The crash handler reads it to know what to keep open, the program that follows to know what it has been left. Nobody trusts it
//! further than that: a number is checked like any other ([`crate::supervisor`]'s `Inherited`). A [`Listed`] descriptor cannot be
//! kept without an entry, and its entry cannot outlive it. `unsafe` here is the mapping alone.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

/// Entries: PID 1's own limit of open files. A descriptor behind it is not listed, and so is lost in a crash.
pub(crate) const ENTRIES: usize = 65_536;
/// Begins every index of this form. Its last digit is its version.
const MAGIC: u64 = 0x6279_7265_6664_7831;

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    StdoutReader,
    StdoutWriter,
    StderrReader,
    StderrWriter,
    StdinReader,
    StdinWriter,
    Terminal,
    /// A service's listening socket; its number is that of the grant.
    Listener,
    Notify,
    /// A first process; its number is the run.
    Process,
    /// An exec session's process.
    Exec,
    Watchdog,
    /// Kept by a program that goes on, closed by one that begins after a crash: reports, cgroup.events.
    Passing,
}

impl Role {
    const ALL: [Self; 13] = [
        Self::StdoutReader,
        Self::StdoutWriter,
        Self::StderrReader,
        Self::StderrWriter,
        Self::StdinReader,
        Self::StdinWriter,
        Self::Terminal,
        Self::Listener,
        Self::Notify,
        Self::Process,
        Self::Exec,
        Self::Watchdog,
        Self::Passing,
    ];

    /// In an entry; 0 is no role.
    fn code(self) -> u32 {
        Self::ALL.iter().zip(1_u32..).find(|(role, _)| **role == self).map_or(0, |(_, code)| code)
    }

    fn of_code(code: u32) -> Option<Self> {
        Self::ALL.iter().zip(1_u32..).find(|(_, other)| *other == code).map(|(role, _)| *role)
    }
}

/// Whose a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) role: Role,
    /// The workload, or 0.
    pub(crate) id: u64,
    /// A run or a grant, or 0.
    pub(crate) number: u64,
}

impl Use {
    pub(crate) fn of(role: Role, id: byre_plan::WorkloadId) -> Self {
        Self { role, id: id.0, number: 0 }
    }

    /// One that only a program that goes on can use.
    pub(crate) fn passing() -> Self {
        Self { role: Role::Passing, id: 0, number: 0 }
    }
}

#[repr(C)]
struct Entry {
    role: AtomicU32,
    unused: AtomicU32,
    id: AtomicU64,
    number: AtomicU64,
}

/// What one crash leaves for the next, and a shutdown for a crash.
#[repr(C)]
pub(crate) struct Header {
    magic: AtomicU64,
    /// When PID 1 crashed last, on CLOCK_BOOTTIME; 0 is never.
    pub(crate) crashed_boot_ms: AtomicU64,
    /// Crashes, each within a minute of the one before.
    pub(crate) crashes: AtomicU32,
    /// 0, or 1 for power off, 2 for reboot.
    pub(crate) ending: AtomicU32,
}

#[repr(C)]
pub(crate) struct Index {
    pub(crate) header: Header,
    entries: [Entry; ENTRIES],
}

/// This program's index. Null before [`Index::begin`].
static INDEX: AtomicPtr<Index> = AtomicPtr::new(std::ptr::null_mut());
/// Its descriptor.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

impl Index {
    /// Makes this program's own, empty but for what `before` knew of crashes.
    pub(crate) fn begin(before: Option<&Self>) -> Result<(), Errno> {
        let memory = rustix::fs::memfd_create("byre-index", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)?;
        rustix::fs::ftruncate(&memory, u64::try_from(size_of::<Self>()).unwrap_or(u64::MAX))?;
        let index = Self::map(&memory)?;
        index.header.magic.store(MAGIC, Ordering::SeqCst);
        if let Some(before) = before {
            let (from, to) = (&before.header, &index.header);
            to.crashed_boot_ms.store(from.crashed_boot_ms.load(Ordering::SeqCst), Ordering::SeqCst);
            to.crashes.store(from.crashes.load(Ordering::SeqCst), Ordering::SeqCst);
            to.ending.store(from.ending.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        DESCRIPTOR.store(memory.as_raw_fd(), Ordering::SeqCst);
        INDEX.store(std::ptr::from_ref(index).cast_mut(), Ordering::SeqCst);
        // It is this program's for as long as it runs, and the next one's after a crash.
        std::mem::forget(memory);
        Ok(())
    }

    /// Maps what a program before left behind; refuses what is no index.
    pub(crate) fn open(memory: &OwnedFd) -> Result<&'static Self, Errno> {
        let length = rustix::fs::fstat(memory)?.st_size;
        if usize::try_from(length) != Ok(size_of::<Self>()) {
            return Err(Errno::INVAL);
        }
        let index = Self::map(memory)?;
        if index.header.magic.load(Ordering::SeqCst) == MAGIC { Ok(index) } else { Err(Errno::INVAL) }
    }

    fn map(memory: &OwnedFd) -> Result<&'static Self, Errno> {
        let (length, protection) = (size_of::<Self>(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice, as long as the file, never unmapped; all of `Index` is atomics, for
        // which every bit pattern is a value.
        unsafe {
            let number = memory.as_raw_fd();
            let address = libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, number, 0);
            if address == libc::MAP_FAILED {
                Err(Errno::NOMEM)
            } else {
                address.cast::<Self>().as_ref().ok_or(Errno::NOMEM)
            }
        }
    }

    /// This program's. Async-signal-safe.
    pub(crate) fn own() -> Option<(&'static Self, RawFd)> {
        // SAFETY: null, or a mapping that is never unmapped.
        let index = unsafe { INDEX.load(Ordering::SeqCst).as_ref() }?;
        Some((index, DESCRIPTOR.load(Ordering::SeqCst)))
    }

    /// What it says of a number. Async-signal-safe.
    pub(crate) fn used(&self, number: RawFd) -> Option<Use> {
        let entry = self.entry(number)?;
        let role = Role::of_code(entry.role.load(Ordering::SeqCst))?;
        Some(Use { role, id: entry.id.load(Ordering::SeqCst), number: entry.number.load(Ordering::SeqCst) })
    }

    fn entry(&self, number: RawFd) -> Option<&Entry> {
        self.entries.get(usize::try_from(number).ok()?)
    }

    fn list(&self, number: RawFd, is: Use) {
        let Some(entry) = self.entry(number) else { return };
        entry.id.store(is.id, Ordering::SeqCst);
        entry.number.store(is.number, Ordering::SeqCst);
        // Last: an entry without a role is none, however far a crash let it come.
        entry.role.store(is.role.code(), Ordering::SeqCst);
    }

    fn clear(&self, number: RawFd) {
        if let Some(entry) = self.entry(number) {
            entry.role.store(0, Ordering::SeqCst);
        }
    }
}

/// A descriptor with its entry.
#[derive(Debug)]
pub(crate) struct Listed {
    fd: OwnedFd,
    is: Use,
}

impl Listed {
    pub(crate) fn new(fd: OwnedFd, is: Use) -> Self {
        if let Some((index, _)) = Index::own() {
            index.list(fd.as_raw_fd(), is);
        }
        Self { fd, is }
    }

    /// What it was listed as.
    pub(crate) fn is(&self) -> Use {
        self.is
    }

    /// A duplicate that is not listed, for somebody else.
    pub(crate) fn duplicate(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.fd, 3)
    }
}

impl AsFd for Listed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some((index, _)) = Index::own() {
            index.clear(self.fd.as_raw_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_lives_as_long_as_its_descriptor() {
        Index::begin(None).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (number, is) = (reader.as_raw_fd(), Use { role: Role::Process, id: 7, number: 9 });
        let listed = Listed::new(reader, is);
        let (index, descriptor) = Index::own().unwrap();
        assert_eq!(index.used(number), Some(is));
        assert_eq!(index.used(writer.as_raw_fd()), None);
        assert_eq!(index.used(-1), None);
        drop(listed);
        assert_eq!(index.used(number), None);
        // SAFETY: open for as long as the process runs.
        let again = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned().unwrap();
        assert!(Index::open(&again).is_ok());
        assert!(Index::open(&writer).is_err());
    }

    #[test]
    fn every_role_has_a_code_of_its_own() {
        for role in Role::ALL {
            assert_eq!(Role::of_code(role.code()), Some(role));
        }
        assert_eq!(Role::of_code(0), None);
    }
}

//! Unpacks a tar stream that a node sent into a directory of this machine. The stream is hostile.
//!
//! Nothing outside the destination is ever created, changed or read: names are taken apart and checked, every directory on the way is
//! opened beneath the destination without following a link, a file is always made new. Devices, pipes and sparse files are left out and
//! counted; set-user-id bits, owners and extended attributes are dropped.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, Entry};

/// What a header with its long names may take; a path is at most 4 KiB. The parser would collect all of it.
const HEADER_BYTES: u64 = 1 << 20;
/// Directories whose mode is set at the end; they are remembered, so their number has a limit.
const DIRECTORIES: usize = 1 << 20;
/// Parts of a path: Linux takes no more in 4 KiB.
const PARTS: usize = 2048;

/// Why a stream was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("the node sent the path {0:?}, which leads out of the destination; nothing more was unpacked")]
    Escape(OsString),
    #[error("the node sent {0:?} outside of the path that was asked for; nothing more was unpacked")]
    Foreign(OsString),
    #[error("the node sent more than is reasonable ({0}); nothing more was unpacked")]
    TooMuch(&'static str),
    #[error("the node's stream is not a complete tar archive ({0})")]
    Stream(std::io::Error),
    #[error("the node's stream is empty")]
    Empty,
    #[error("cannot write {0:?} ({1})")]
    Write(OsString, std::io::Error),
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) entries: u64,
    /// Devices, pipes and sparse files.
    pub(crate) left_out: u64,
}

/// Counts what may be read until the next entry is known.
struct Metered<R> {
    inner: R,
    budget: Rc<Cell<Option<u64>>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(left) = self.budget.get() else { return self.inner.read(buffer) };
        if left == 0 && !buffer.is_empty() {
            return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "a header of more than 1 MiB"));
        }
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..room])?;
        self.budget.set(Some(left - read as u64));
        Ok(read)
    }
}

/// Unpacks `stream`, whose first entry is the thing asked for and whose other entries lie below it, as `name` in `directory`; without a
/// name, as `directory` itself, which then has to be one.
pub(crate) fn unpack(stream: impl Read, directory: &OwnedFd, name: Option<&OsStr>) -> Result<Unpacked, UnpackError> {
    let budget = Rc::new(Cell::new(None));
    let mut archive = Archive::new(Metered { inner: stream, budget: Rc::clone(&budget) });
    let mut entries = archive.entries().map_err(UnpackError::Stream)?;
    let mut unpacker = Unpacker { directory, name, top: None, directories: Vec::new(), done: Unpacked::default() };
    loop {
        budget.set(Some(HEADER_BYTES));
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(UnpackError::Stream)?;
        budget.set(None);
        unpacker.entry(&mut entry)?;
        // What an entry still has would otherwise be read on the next header's budget.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(UnpackError::Stream)?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    directory: &'a OwnedFd,
    name: Option<&'a OsStr>,
    /// The first entry's path, which all others begin with.
    top: Option<Vec<OsString>>,
    directories: Vec<(Vec<OsString>, Mode, Timestamps)>,
    done: Unpacked,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            // It is about the archive, not an entry of it.
            return Ok(());
        }
        let shown = OsString::from_vec(entry.path_bytes().into_owned());
        let sent = parts(&shown)?;
        if self.top.is_none() {
            self.top = Some(sent.clone());
        }
        let path = self.place(&sent, &shown)?;
        let mode = Mode::from_raw_mode(entry.header().mode().unwrap_or(0o600) & 0o777);
        let times = times(entry.header().mtime().unwrap_or(0));
        let target = OsString::from_vec(entry.link_name_bytes().unwrap_or_default().into_owned());
        let written = if kind.is_dir() {
            self.make_directory(path, mode, times)
        } else if kind.is_file() || kind.is_contiguous() {
            self.file(&path, mode, &times, entry)?
        } else if kind.is_symlink() {
            self.symlink(&path, &target)
        } else if kind.is_hard_link() {
            let target = self.place(&parts(&target)?, &target)?;
            self.hard_link(&path, &target)
        } else {
            // A sparse file of a few bytes can fill a disk; devices and pipes have no business here.
            self.done.left_out += 1;
            return Ok(());
        };
        self.done.entries += 1;
        match written {
            // A link on the way is the attack this is about, not a disk's trouble.
            Err(Errno::LOOP | Errno::XDEV) => Err(UnpackError::Escape(shown)),
            Err(error) => Err(UnpackError::Write(shown, error.into())),
            Ok(()) => Ok(()),
        }
    }

    /// Where an entry belongs below the directory: the top replaced by our name.
    fn place(&self, sent: &[OsString], shown: &OsStr) -> Result<Vec<OsString>, UnpackError> {
        let top = self.top.as_deref().unwrap_or_default();
        let below = sent.strip_prefix(top).ok_or_else(|| UnpackError::Foreign(shown.to_owned()))?;
        Ok(self.name.map(OsStr::to_owned).into_iter().chain(below.iter().cloned()).collect())
    }

    /// The directory that an entry is in, made if the stream left it out, and the entry's name in it.
    fn parent<'p>(&self, path: &'p [OsString]) -> Result<(OwnedFd, &'p OsStr), Errno> {
        let (name, above) = path.split_last().ok_or(Errno::ISDIR)?;
        let mut at = self.directory.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        for part in above {
            at = match open_directory(&at, part) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&at, part, Mode::RWXU)?;
                    open_directory(&at, part)?
                }
                other => other?,
            };
        }
        Ok((at, name))
    }

    fn make_directory(&mut self, path: Vec<OsString>, mode: Mode, times: Timestamps) -> Result<(), Errno> {
        if path.is_empty() {
            return Ok(());
        }
        let (parent, name) = self.parent(&path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        open_directory(&parent, name)?;
        if self.directories.len() >= DIRECTORIES {
            return Err(Errno::NFILE);
        }
        self.directories.push((path, mode, times));
        Ok(())
    }

    fn file<R: Read>(
        &self,
        path: &[OsString],
        mode: Mode,
        times: &Timestamps,
        entry: &mut Entry<'_, R>,
    ) -> Result<Result<(), Errno>, UnpackError> {
        let made = self.parent(path).and_then(|(parent, name)| {
            clear(&parent, name)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR)
        });
        let mut file = match made {
            Ok(file) => File::from(file),
            Err(error) => return Ok(Err(error)),
        };
        let size = entry.size();
        match std::io::copy(entry, &mut file) {
            Ok(copied) if copied == size => {}
            Ok(_) => return Err(UnpackError::Stream(std::io::ErrorKind::UnexpectedEof.into())),
            Err(error) if error.raw_os_error().is_some() => {
                return Err(UnpackError::Write(path.iter().collect::<std::path::PathBuf>().into(), error));
            }
            Err(error) => return Err(UnpackError::Stream(error)),
        }
        Ok(rustix::fs::fchmod(&file, mode).and_then(|()| rustix::fs::futimens(&file, times)))
    }

    fn symlink(&self, path: &[OsString], target: &OsStr) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        clear(&parent, name)?;
        rustix::fs::symlinkat(target, &parent, name)
    }

    fn hard_link(&self, path: &[OsString], target: &[OsString]) -> Result<(), Errno> {
        let (from, from_name) = self.parent(target)?;
        let (to, to_name) = self.parent(path)?;
        if path == target {
            return Ok(());
        }
        clear(&to, to_name)?;
        // Without AT_SYMLINK_FOLLOW, so a link is linked itself.
        rustix::fs::linkat(&from, from_name, &to, to_name, AtFlags::empty())
    }

    /// Modes and times of directories last: a read-only one could not be filled, and filling changes its time.
    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        if self.top.is_none() {
            return Err(UnpackError::Empty);
        }
        while let Some((path, mode, times)) = self.directories.pop() {
            let set = self.parent(&path).and_then(|(parent, name)| {
                let directory = open_directory(&parent, name)?;
                rustix::fs::fchmod(&directory, mode)?;
                rustix::fs::futimens(&directory, &times)
            });
            set.map_err(|error| UnpackError::Write(path.iter().collect::<std::path::PathBuf>().into(), error.into()))?;
        }
        Ok(self.done)
    }
}

/// The parts of a path that stays below its beginning.
fn parts(path: &OsStr) -> Result<Vec<OsString>, UnpackError> {
    let bytes = path.as_bytes();
    let escape = || UnpackError::Escape(path.to_owned());
    if bytes.is_empty() || bytes[0] == b'/' || bytes.contains(&0) {
        return Err(escape());
    }
    let mut parts = Vec::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(escape()),
            _ if parts.len() >= PARTS => return Err(UnpackError::TooMuch("parts of a path")),
            _ => parts.push(OsStr::from_bytes(part).to_owned()),
        }
    }
    Ok(parts)
}

/// One directory below another; a link is refused.
fn open_directory(at: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(at, name, flags, Mode::empty(), resolve)
}

/// Makes way for a new file. A directory in its place is not removed: unlinking it fails and says so.
fn clear(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn times(modified: u64) -> Timestamps {
    let at = Timespec { tv_sec: i64::try_from(modified).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: at, last_modification: at }
}

#[cfg(test)]
#[path = "tar_out_tests.rs"]
mod tests;

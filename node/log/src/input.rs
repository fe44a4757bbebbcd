//! One output of a workload: the descriptor it comes from and the store it goes to.
//!
//! A full disk never stops a workload: bytes that cannot be stored are taken out of the pipe, thrown away and counted. Only the
//! rate limit may make a writer wait, if its definition says so.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use byre_protocol::control::Stream;
use byre_protocol::definition::{LogPolicy, WhenLimited};
use byre_protocol::status::Moment;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use crate::limit::Bucket;
use crate::store::Store;

/// Bytes moved in one go, so that one busy writer does not keep the others waiting.
const PIECE_BYTES: u64 = 256 * 1024;
/// Bytes read from a terminal at once: its own buffer's size.
const TERMINAL_BYTES: usize = 4096;
/// A terminal that nobody has open on the other side is looked at again after this time; the kernel does not tell when it is opened.
const HUNG_UP_MS: u64 = 200;
/// A stream whose files cannot be made is tried again after this time.
const REOPEN_MS: u64 = 1000;

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A pipe's reading end, with its inode.
    Pipe(u64),
    /// A terminal's master.
    Terminal,
}

/// Why a descriptor is no input.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// Neither pipe nor terminal.
    #[error("it is neither a pipe nor a terminal")]
    Kind,
    /// It cannot be asked.
    #[error(transparent)]
    Kernel(#[from] Errno),
}

/// What an attempt to move bytes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Some went; there may be more.
    Some,
    /// There is nothing now.
    Nothing,
    /// Not before this time.
    NotBefore(u64),
    /// Nobody can write any more.
    Ended,
}

/// Where the bytes go.
#[derive(Debug)]
enum Sink {
    Store(Store),
    /// Its files cannot be made; what came meanwhile is lost.
    Missing {
        lost: u64,
        retry_boot_ms: u64,
    },
}

/// One output.
#[derive(Debug)]
pub(crate) struct Input {
    fd: OwnedFd,
    source: Source,
    stream: Stream,
    directory: PathBuf,
    policy: LogPolicy,
    sink: Sink,
    bucket: Bucket,
}

impl Input {
    /// Takes a descriptor that PID 1 sent.
    pub(crate) fn new(
        fd: OwnedFd,
        directory: &Path,
        stream: Stream,
        policy: LogPolicy,
        now: Moment,
    ) -> Result<Self, InputError> {
        let source = source_of(&fd)?;
        let bucket = Bucket::new(policy.rate_bytes_per_second, now.boot_ms);
        let sink = Sink::Missing { lost: 0, retry_boot_ms: 0 };
        let mut input = Self { fd, source, stream, directory: directory.to_owned(), policy, sink, bucket };
        input.open(now);
        Ok(input)
    }

    /// Whether a descriptor is the pipe that this input already has.
    pub(crate) fn is_same(&self, fd: &OwnedFd) -> bool {
        match self.source {
            Source::Pipe(_) => source_of(fd).is_ok_and(|source| source == self.source),
            // All masters of one devpts have one inode, so a terminal is always taken anew.
            Source::Terminal => false,
        }
    }

    /// Moves what is there, as far as the limits allow.
    pub(crate) fn advance(&mut self, null: &File, now: Moment) -> Moved {
        let permitted = self.bucket.permitted(now.boot_ms).min(PIECE_BYTES);
        if permitted == 0 {
            return match self.policy.when_limited {
                WhenLimited::Block => Moved::NotBefore(self.bucket.next_boot_ms(now.boot_ms)),
                WhenLimited::Drop => self.discard(null, now),
            };
        }
        self.open(now);
        let moved = match self.source {
            Source::Pipe(_) => self.splice(permitted, now),
            Source::Terminal => self.copy(permitted, now),
        };
        match moved {
            Ok(0) => Moved::Ended,
            Ok(bytes) => {
                self.bucket.spend(bytes);
                Moved::Some
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Moved::Nothing,
                // The other side of a terminal is closed, perhaps only until its next user.
                Some(libc::EIO) if self.source == Source::Terminal => Moved::NotBefore(now.boot_ms + HUNG_UP_MS),
                Some(_) | None => self.discard(null, now),
            },
        }
    }

    /// Whether nothing waits to be read.
    pub(crate) fn is_drained(&self) -> bool {
        !self.is_readable()
    }

    fn is_readable(&self) -> bool {
        let mut wanted = [PollFd::new(&self.fd, PollFlags::IN)];
        let polled = poll(&mut wanted, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled.is_ok() && wanted.iter().any(|one| one.revents().contains(PollFlags::IN))
    }

    /// Makes the store if it is missing and its time has come.
    fn open(&mut self, now: Moment) {
        let Sink::Missing { lost, retry_boot_ms } = self.sink else { return };
        if now.boot_ms < retry_boot_ms {
            return;
        }
        self.sink = match Store::open(&self.directory, self.stream, self.policy) {
            Ok(mut store) => {
                if lost > 0 {
                    store.lose(lost, now);
                }
                Sink::Store(store)
            }
            Err(_) => Sink::Missing { lost, retry_boot_ms: now.boot_ms + REOPEN_MS },
        };
    }

    fn splice(&mut self, most: u64, now: Moment) -> io::Result<u64> {
        let Sink::Store(store) = &mut self.sink else { return Err(io::ErrorKind::NotFound.into()) };
        match store.splice_from(self.fd.as_fd(), most, now) {
            // The newest output matters most: give up this stream's oldest for it.
            Err(error) if is_full(&error) && store.give_back() => store.splice_from(self.fd.as_fd(), most, now),
            result => result,
        }
    }

    /// A terminal cannot be spliced from, and reading it waits if nothing is there.
    fn copy(&mut self, most: u64, now: Moment) -> io::Result<u64> {
        let mut wanted = [PollFd::new(&self.fd, PollFlags::IN)];
        poll(&mut wanted, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let events = wanted.iter().fold(PollFlags::empty(), |all, one| all | one.revents());
        if !events.contains(PollFlags::IN) {
            let hung_up = events.intersects(PollFlags::HUP | PollFlags::ERR);
            return Err(io::Error::from_raw_os_error(if hung_up { libc::EIO } else { libc::EAGAIN }));
        }
        let mut buffer = [0; TERMINAL_BYTES];
        let most = usize::try_from(most).unwrap_or(TERMINAL_BYTES).min(TERMINAL_BYTES);
        let read = rustix::io::read(&self.fd, &mut buffer[..most])?;
        let mut rest = buffer.get(..read).unwrap_or_default();
        while !rest.is_empty() {
            let taken = match &mut self.sink {
                Sink::Store(store) => match store.append(rest, now) {
                    Err(error) if is_full(&error) && store.give_back() => store.append(rest, now),
                    result => result,
                },
                Sink::Missing { .. } => Ok(0),
            };
            match taken {
                Ok(taken) if taken > 0 => rest = rest.get(taken..).unwrap_or_default(),
                Ok(_) | Err(_) => {
                    self.lose(rest.len() as u64, now);
                    break;
                }
            }
        }
        Ok(read as u64)
    }

    /// Throws away what is there, and counts it.
    fn discard(&mut self, null: &File, now: Moment) -> Moved {
        let most = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
        let gone = match self.source {
            Source::Pipe(_) => rustix::pipe::splice(&self.fd, None, null, None, most, SpliceFlags::NONBLOCK),
            Source::Terminal if self.is_readable() => rustix::io::read(&self.fd, &mut [0; TERMINAL_BYTES]),
            Source::Terminal => Err(Errno::AGAIN),
        };
        match gone {
            Ok(0) => Moved::Ended,
            Ok(bytes) => {
                self.lose(bytes as u64, now);
                Moved::Some
            }
            Err(Errno::AGAIN | Errno::INTR) => Moved::Nothing,
            Err(_) => Moved::NotBefore(now.boot_ms + HUNG_UP_MS),
        }
    }

    fn lose(&mut self, bytes: u64, now: Moment) {
        match &mut self.sink {
            Sink::Store(store) => store.lose(bytes, now),
            Sink::Missing { lost, .. } => *lost += bytes,
        }
    }
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

fn source_of(fd: &OwnedFd) -> Result<Source, InputError> {
    let status = rustix::fs::fstat(fd)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Fifo => Ok(Source::Pipe(status.st_ino)),
        FileType::CharacterDevice => Ok(Source::Terminal),
        FileType::RegularFile
        | FileType::Directory
        | FileType::Symlink
        | FileType::Socket
        | FileType::BlockDevice
        | FileType::Unknown => Err(InputError::Kind),
    }
}

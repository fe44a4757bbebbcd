//! Pipes and terminals as seen from the runtime: reads and writes that never block the one thread everybody shares.

use std::os::fd::{AsFd, OwnedFd};

use byre_plan::TerminalSize;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One end of a pipe, or a terminal's master.
#[derive(Debug)]
pub(crate) struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Takes a descriptor and makes its open file non-blocking. That is shared with whoever has a duplicate: of a pipe's writing end PID 1
    /// alone, which never writes; of a terminal's master the log service, which polls. The workload's own end is another open file.
    ///
    /// # Errors
    /// If it cannot be polled.
    pub(crate) fn new(descriptor: OwnedFd) -> std::io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        if !flags.contains(OFlags::NONBLOCK) {
            rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        }
        let interest = match flags & OFlags::ACCMODE {
            OFlags::RDONLY => Interest::READABLE,
            OFlags::WRONLY => Interest::WRITABLE,
            _ => Interest::READABLE | Interest::WRITABLE,
        };
        Ok(Self(crate::readiness::register(descriptor, interest)?))
    }

    /// Reads what is there, waiting for the first byte; 0 is the end. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await;
        match read {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => Ok(0),
            other => other,
        }
    }

    /// Reads what is there now; the error is `WouldBlock` if that is nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Ok(rustix::io::read(self.0.get_ref(), buffer)?)
    }

    /// Reads what is there now; 0 if that is nothing.
    #[must_use]
    pub(crate) fn read_now(&self, buffer: &mut [u8]) -> usize {
        rustix::io::read(self.0.get_ref(), buffer).unwrap_or(0)
    }

    /// Writes all.
    ///
    /// # Errors
    /// The kernel's: `BrokenPipe` when nobody can read it any more.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sets a terminal's size.
    ///
    /// # Errors
    /// The kernel's, if it is no terminal.
    pub(crate) fn resize(&self, size: TerminalSize) -> std::io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref().as_fd(), size)?)
    }
}

/// A new pipe: the reading and the writing end, close-on-exec. A process of a container gets one of them as /dev/stdin or /dev/stdout, and
/// opens that by its name as whatever user it runs as; so the pipe, which belongs to this service's user, is open to all who can reach it.
///
/// # Errors
/// If there are no descriptors left.
pub(crate) fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fchmod(&writer, Mode::from_raw_mode(0o666))?;
    Ok((reader, writer))
}

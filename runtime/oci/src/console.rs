//! Terminals: handing the master to whoever asked for it, or serving it on the caller's own.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::create::wait;
use crate::error::{Error, cannot};

/// Bytes moved at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Sends a descriptor over the unix socket at `path`, with a name, as terminals.md of runc describes.
pub(crate) fn hand_over(path: &Path, descriptor: BorrowedFd<'_>, name: &str) -> Result<(), Error> {
    let what = || format!("hand over {name} by {}", path.display());
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(cannot(what()))?;
    connect(&socket, &address(path).map_err(cannot(what()))?).map_err(cannot(what()))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(cannot(what())(Errno::NOBUFS));
    }
    sendmsg(&socket, &[IoSlice::new(name.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL).map_err(cannot(what()))?;
    Ok(())
}

/// An address has room for 107 bytes; a longer path goes by its directory's descriptor.
fn address(path: &Path) -> Result<SocketAddrUnix, Errno> {
    match SocketAddrUnix::new(path) {
        Err(Errno::NAMETOOLONG) => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
            // Left open: the address names it until this short-lived process ends.
            let directory = rustix::fs::open(directory, flags, rustix::fs::Mode::empty())?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()));
            std::mem::forget(directory);
            address
        }
        made => made,
    }
}

/// The caller's terminal as it was, put back when this goes.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = if isatty(&stdin) { tcgetattr(&stdin).ok()? } else { return None };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Drain, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Stays with a process until it ends: passes signals on, serves its terminal if it has one, and returns its code.
pub(crate) fn attend(pidfd: BorrowedFd<'_>, terminal: Option<OwnedFd>, signals: &SignalFd) -> Result<i32, Error> {
    let _raw = terminal.as_ref().and_then(|_| Raw::enter());
    if let Some(master) = &terminal {
        resize(master.as_fd());
    }
    let stdin = std::io::stdin();
    let mut input_open = terminal.is_some();
    let mut output = terminal.as_ref();
    loop {
        let mut polled = vec![
            PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        if let Some(master) = output {
            polled.push(PollFd::new(master, PollFlags::IN));
            if input_open {
                polled.push(PollFd::new(&stdin, PollFlags::IN));
            }
        }
        match poll(&mut polled, None) {
            Err(Errno::INTR) => continue,
            done => done.map_err(cannot("wait for the container"))?,
        };
        let ready: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
        if ready[1] {
            pass_signals(signals, pidfd, terminal.as_ref())?;
        }
        if ready.get(3) == Some(&true)
            && let Some(master) = output
        {
            input_open = copy(stdin.as_fd(), master.as_fd());
        }
        if ready.get(2) == Some(&true)
            && let Some(master) = output
            && !copy(master.as_fd(), std::io::stdout().as_fd())
        {
            output = None;
        }
        // Its last output comes before its end counts.
        if ready[0] && (output.is_none() || ready.get(2) != Some(&true)) {
            return wait(pidfd);
        }
    }
}

/// Moves what there is; false at the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0_u8; CHUNK_BYTES];
    let Ok(count @ 1..) = rustix::io::read(from, &mut buffer) else { return false };
    let mut rest = &buffer[..count];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

fn resize(master: BorrowedFd<'_>) {
    if let Ok(size) = tcgetwinsize(std::io::stdin()) {
        let _ = tcsetwinsize(master, size);
    }
}

/// Blocks the signals that are passed on, and returns a descriptor to read them from. Before the container's process is made, so that none is
/// lost; that one begins with an empty mask whatever this process has.
pub(crate) fn take_signals() -> Result<SignalFd, Error> {
    let what = "take signals";
    let mut set = SigSet::all();
    for keep in [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGCHLD, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGABRT] {
        set.remove(keep);
    }
    for keep in [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGTSTP, Signal::SIGURG, Signal::SIGPIPE] {
        set.remove(keep);
    }
    set.thread_block().map_err(cannot(what))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(cannot(what))
}

fn pass_signals(signals: &SignalFd, pidfd: BorrowedFd<'_>, terminal: Option<&OwnedFd>) -> Result<(), Error> {
    while let Some(taken) = signals.read_signal().map_err(cannot("read signals"))? {
        let number = i32::try_from(taken.ssi_signo).unwrap_or(0);
        match (number == Signal::SIGWINCH as i32, terminal) {
            (true, Some(master)) => resize(master.as_fd()),
            (_, _) => {
                if let Some(signal) = rustix::process::Signal::from_named_raw(number) {
                    // It may have ended by itself.
                    let _ = rustix::process::pidfd_send_signal(pidfd, signal);
                }
            }
        }
    }
    Ok(())
}

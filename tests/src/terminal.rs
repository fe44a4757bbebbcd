//! A terminal with `byrectl` on it: what `run -it`, `exec -it` and `attach` are tried with.
//!
//! The master side is ours; the program is the session leader of the slave, as in a terminal emulator.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::ctl;

/// A program on a terminal; killed when dropped.
pub struct Terminal {
    master: File,
    child: Child,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    /// Starts the command on a new terminal of this size.
    ///
    /// # Errors
    /// If no terminal can be made or the command not be started.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Result<Self> {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        resize(&master, rows, columns)?;
        let dup = |fd: &OwnedFd| fd.try_clone().map(Stdio::from);
        command.stdin(dup(&slave)?).stdout(dup(&slave)?).stderr(dup(&slave)?);
        // SAFETY: the calls are async-signal-safe and touch nothing but the new process.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // As a terminal gives it, even where the test itself runs in the background of a shell.
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        drop(command);
        drop(slave);
        let master = File::from(master);
        let output = ctl::stream(Some(master.try_clone()?));
        Ok(Self { master, child, output, seen: String::new() })
    }

    /// Types.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn send(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes()).context("the terminal is gone")
    }

    /// Waits until the output since the last match contains `text`, and forgets what was up to it.
    ///
    /// # Errors
    /// If the program ends or the limit passes before; with what was shown.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => bail!("the terminal shows no {text:?} ({error}) but {:?}", self.seen),
            }
        }
    }

    /// Changes the terminal's size, as dragging a window does.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        resize(self.master.as_fd(), rows, columns)
    }

    /// Waits for the program's end; gives its exit code.
    ///
    /// # Errors
    /// If the limit passes before.
    pub fn ended(mut self, limit: Duration) -> Result<i32> {
        let code = ctl::wait(&mut self.child, limit);
        code.with_context(|| format!("the terminal shows {:?}", self.seen))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn resize(master: impl std::os::fd::AsFd, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size).context("cannot set the terminal's size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_on_a_terminal_sees_its_size_and_ctrl_c() {
        let limit = Duration::from_secs(20);
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "trap 'echo caught; exit 9' INT; stty size; echo ready; while :; do read line; stty size; done",
        ]);
        let mut terminal = Terminal::start(command, 30, 100).unwrap();
        terminal.expect("30 100", limit).unwrap();
        terminal.expect("ready", limit).unwrap();
        terminal.resize(40, 120).unwrap();
        terminal.send("\n").unwrap();
        terminal.expect("40 120", limit).unwrap();
        terminal.send("\u{3}").unwrap();
        terminal.expect("caught", limit).unwrap();
        assert_eq!(terminal.ended(limit).unwrap(), 9);
    }
}

//! `init -- PROGRAM ARGUMENTS`: the first process of a container that was started with `--init`.
//!
//! It starts the program, hands every signal on to it, collects whatever processes are left to it, and ends as the program ends; with it
//! the kernel ends the rest of the container. One thread, and nothing happens in a signal handler: signals are waited for.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Added to a signal's number for the exit code, as shells do.
const SIGNALLED: i32 = 128;
/// Exit codes of a program that cannot be started, as shells have them.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Why the program was not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// Called wrongly.
    #[error("`--` and a program are needed")]
    Usage,
    /// The kernel refused.
    #[error("{0}: {1}")]
    Kernel(&'static str, Errno),
}

/// Runs the program; gives its exit code.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode, InitError> {
    let [dashes, program, rest @ ..] = arguments else { return Err(InitError::Usage) };
    if dashes != "--" {
        return Err(InitError::Usage);
    }
    let signals = SigSet::all();
    signals.thread_block().map_err(|errno| InitError::Kernel("sigprocmask", errno))?;
    // A group of its own, so that a terminal's Ctrl-C reaches the program once and not a second time through here.
    let mut command = Command::new(program);
    command.args(rest).process_group(0);
    // SAFETY: between fork and exec, only sigprocmask(2) is called; it is async-signal-safe and touches no memory but its own set.
    unsafe {
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("{}: {error}", program.display());
            let found = error.kind() != io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if found { NOT_EXECUTABLE } else { NOT_FOUND }));
        }
    };
    let child = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    give_terminal(child);
    loop {
        let signal = signals.wait().map_err(|errno| InitError::Kernel("sigwait", errno))?;
        if signal != Signal::SIGCHLD {
            // It may have ended just now; then its end comes next.
            let _ = kill(child, signal);
            continue;
        }
        if let Some(code) = reap(child)? {
            return Ok(ExitCode::from(code));
        }
    }
}

/// Puts the program into the foreground of the terminal, if there is one. It may have read from it already, and been stopped for that.
fn give_terminal(child: Pid) {
    let stdin = io::stdin();
    if stdin.is_terminal() && nix::unistd::tcsetpgrp(&stdin, child).is_ok() {
        let _ = kill(Pid::from_raw(-child.as_raw()), Signal::SIGCONT);
    }
}

/// Collects all that have ended; gives the program's exit code if it is among them.
fn reap(program: Pid) -> Result<Option<u8>, InitError> {
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, SIGNALLED + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(
                WaitStatus::Stopped(..)
                | WaitStatus::Continued(_)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_),
            )
            | Err(Errno::EINTR) => continue,
            Err(errno) => return Err(InitError::Kernel("waitpid", errno)),
        };
        if pid == program {
            return Ok(Some(u8::try_from(code & 0xff).unwrap_or(u8::MAX)));
        }
    }
}

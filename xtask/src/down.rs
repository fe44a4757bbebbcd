//! `cargo xtask down`: presses the power button of the node that `up` started, and pulls the plug if that does not help.
//!
//! The machine is found by the process id that QEMU wrote, and only if that process is a QEMU with our folder on its command line: a number
//! alone may be anybody's by now.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use byre_tests::qmp::Qmp;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// An ordered shutdown takes a few seconds; whatever ignores it has this long.
const GRACE: Duration = Duration::from_secs(60);

/// Arguments of `cargo xtask down`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Pull the plug at once: what a power cut would do.
    #[arg(long)]
    now: bool,
}

/// A machine that `up` started and that still runs.
pub(crate) struct Machine {
    pid: Pid,
    process: OwnedFd,
    socket: PathBuf,
}

impl Machine {
    /// Where QEMU writes its process id.
    pub(crate) fn pid_file(folder: &Path) -> PathBuf {
        folder.join("qemu.pid")
    }

    /// Where QEMU takes commands.
    pub(crate) fn socket(folder: &Path) -> PathBuf {
        folder.join("qmp.sock")
    }

    /// The one that runs with its files in `folder`, if any.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>> {
        let Ok(text) = fs::read_to_string(Self::pid_file(folder)) else { return Ok(None) };
        let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return Ok(None) };
        // The descriptor first: from then on the number cannot become another process's.
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return Ok(None) };
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let ours = line.contains("qemu-system") && line.contains(&*Self::socket(folder).to_string_lossy());
        Ok(ours.then(|| Self { pid, process, socket: Self::socket(folder) }))
    }

    /// Its process id, for people.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Whether it ends within `limit`.
    fn ends_within(&self, limit: Duration) -> Result<bool> {
        let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: 0 };
        let mut wanted = [PollFd::new(&self.process, PollFlags::IN)];
        Ok(rustix::event::poll(&mut wanted, Some(&limit)).context("cannot wait for QEMU")? > 0)
    }

    fn press_power(&self) -> Result<()> {
        let stream =
            UnixStream::connect(&self.socket).with_context(|| format!("cannot reach {}", self.socket.display()))?;
        Qmp::new(stream)?.execute("system_powerdown", &serde_json::json!({})).map(drop)
    }

    fn pull_the_plug(&self) -> Result<()> {
        match rustix::process::pidfd_send_signal(&self.process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).context("cannot stop QEMU"),
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = crate::image::repository()?.join("target/up");
    let Some(machine) = Machine::find(&folder)? else {
        println!("no node is running");
        return Ok(());
    };
    let polite = if args.now { Ok(false) } else { machine.press_power().and_then(|()| machine.ends_within(GRACE)) };
    match polite {
        Ok(true) => println!("the node has shut down; `cargo xtask up` switches it on again"),
        Ok(false) | Err(_) => {
            if let Err(error) = &polite {
                println!("the power button cannot be pressed: {error:#}");
            } else if !args.now {
                println!(
                    "the node did not shut down within {} s; its console: {}",
                    GRACE.as_secs(),
                    folder.join("serial.log").display()
                );
            }
            machine.pull_the_plug()?;
            machine.ends_within(GRACE)?;
            println!("the node's power was cut; `cargo xtask up` switches it on again");
        }
    }
    fs::remove_file(Machine::pid_file(&folder)).ok();
    Ok(())
}

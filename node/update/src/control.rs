//! PID 1, as the updater asks it: one request at a time, each with its answer.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use byre_protocol::control::{Allow, FromInit, Reply, Request, ShutdownAction};
use byre_sandbox::Channel;
use rustix::event::{PollFd, poll};
use rustix::time::Timespec;

use crate::engine::Init;

/// Arming hashes a whole slot and copies a kernel image to the FAT: minutes on a slow disk.
const ANSWER_TIME: Duration = Duration::from_secs(600);

/// The control channel.
pub(crate) struct Control {
    channel: Channel,
}

impl Control {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { channel: Channel::new(socket) }
    }

    fn ask(&mut self, request: Request) -> Result<(), String> {
        let gone = |error: &dyn std::fmt::Display| format!("PID 1 does not answer: {error}");
        let asked = self.channel.send(request, Vec::new()).map_err(|error| gone(&error))?;
        let end = Instant::now() + ANSWER_TIME;
        loop {
            match self.channel.receive().map_err(|error| gone(&error))? {
                Some((FromInit::Answer { sequence, reply }, _)) if sequence == asked => return answer(reply),
                // An answer that nobody waits for any more, or a notice: nothing follows from either.
                Some((FromInit::Answer { .. } | FromInit::Notice(_), _)) => continue,
                None => {}
            }
            self.channel.flush().map_err(|error| gone(&error))?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(gone(&format!("nothing came for {} s", ANSWER_TIME.as_secs())));
            }
            let interest = self.channel.interest();
            let mut wanted = [PollFd::from_borrowed_fd(self.channel.as_fd(), interest)];
            let time = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: 999_999_999 };
            match poll(&mut wanted, Some(&time)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(gone(&errno)),
            }
        }
    }
}

fn answer(reply: Reply) -> Result<(), String> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Refused(refused) => Err(refused.text),
        Reply::Created { .. }
        | Reply::Page { .. }
        | Reply::Inspected(_)
        | Reply::ExecStarted { .. }
        | Reply::Input { .. }
        | Reply::Descriptor
        | Reply::Reexecuted { .. }
        | Reply::Explained(_) => Err("PID 1 answered something else than what was asked".to_owned()),
    }
}

impl Init for Control {
    fn arm(&mut self, statement: &[u8], allow: Allow) -> Result<(), String> {
        self.ask(Request::Arm { statement: statement.to_vec(), allow })
    }

    fn roll_back(&mut self) -> Result<(), String> {
        self.ask(Request::Rollback)
    }

    fn disarm(&mut self) -> Result<(), String> {
        self.ask(Request::Disarm)
    }

    fn reboot(&mut self) -> Result<(), String> {
        self.ask(Request::Shutdown { action: ShutdownAction::Reboot })
    }
}

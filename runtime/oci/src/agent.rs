//! Seccomp's SCMP_ACT_NOTIFY: the filter's listener goes to the agent that the bundle names, with the container's state.
//!
//! The process that has the filter says only the number of its descriptor; this side takes a copy and sends it on, so that the container needs no
//! connection of its own and the filter need allow no more than `write` and `read`.

use std::cell::RefCell;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use byre_launch::{Companion, Moment};
use byre_spec::oci::Listener;
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use serde_json::{Value, json};

use crate::console::hand_over;
use crate::error::{Error, cannot};
use crate::state::{Record, Status};

/// First byte of the message that tells a listener's number.
pub(crate) const LISTENING: u8 = b'l';
/// Answer to it.
pub(crate) const TAKEN: u8 = b't';

/// Tells the other side the number of a listener, and waits until it has a copy.
pub(crate) fn tell(socket: BorrowedFd<'_>, number: i32) -> Result<(), (String, Errno)> {
    let failed = |errno| ("tell its number".to_owned(), errno);
    let mut word = [LISTENING, 0, 0, 0, 0];
    word[1..].copy_from_slice(&number.to_le_bytes());
    rustix::io::write(socket, &word).map_err(failed)?;
    let mut answer = [0_u8; 1];
    match rustix::io::read(socket, &mut answer).map_err(failed)? {
        1 if answer == [TAKEN] => Ok(()),
        // Whoever asked for the start says why.
        _ => Err(("the agent did not take it".to_owned(), Errno::CANCELED)),
    }
}

/// The number in such a message.
pub(crate) fn number(message: &[u8]) -> Option<i32> {
    let (first, rest) = message.split_first()?;
    (*first == LISTENING).then(|| rest.try_into().ok().map(i32::from_le_bytes)).flatten()
}

/// Sends a process's listener to the agent.
pub(crate) fn send(
    listener: &Listener,
    process: BorrowedFd<'_>,
    pid: u32,
    number: i32,
    record: &Record,
) -> Result<(), Error> {
    let descriptor =
        pidfd_getfd(process, number, PidfdGetfdFlags::empty()).map_err(cannot("take the seccomp listener"))?;
    let state: Value = serde_json::from_str(&record.told(Status::Creating)).unwrap_or_default();
    // Container process state of config-linux.md; its example's version is what agents know.
    let told = json!({
        "ociVersion": "0.2.0",
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": listener.metadata,
        "state": state,
    });
    hand_over(std::path::Path::new(&listener.path), descriptor.as_fd(), &told.to_string())
}

/// The companion of an exec whose filter has a listener.
#[derive(Debug)]
pub(crate) struct Telling<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) copy: RefCell<Option<OwnedFd>>,
}

impl Companion for Telling<'_> {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.socket]
    }

    fn settled(&self, copies: Vec<OwnedFd>) {
        *self.copy.borrow_mut() = copies.into_iter().next();
    }

    fn at(&self, _: Moment) -> Result<(), (String, Errno)> {
        Ok(())
    }

    fn listening(&self, number: i32) -> Result<(), (String, Errno)> {
        match &*self.copy.borrow() {
            Some(socket) => tell(socket.as_fd(), number),
            None => Err(("descriptors".to_owned(), Errno::BADF)),
        }
    }

    fn failed(&self, _: &str, _: &str, _: i32) {}

    fn namespace(&self, _: &str) -> Result<OwnedFd, Errno> {
        Err(Errno::NOTSUP)
    }
}

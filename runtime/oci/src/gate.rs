//! The container's side of its creation: hooks inside, and the wait for its start. All of it runs in the launch child.
//!
//! ```text
//! child                                   create                          start
//! everything mounted: "root"  --------->  createRuntime hooks
//! createContainer hooks       <---------  its number on the host
//! ready for the program: "ready" ------>  writes the state, ends
//! waits on the listening socket                              <----------  connects
//! "g", startContainer hooks, execve: the connection closes itself  --->   success
//! or a failure's text                                              --->   that failure
//! ```

use std::cell::RefCell;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_launch::{Companion, Moment};
use byre_spec::oci::Hooks;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use crate::state::{Record, Status};
use crate::{agent, hooks, sys};

/// What the child says when everything is mounted.
pub(crate) const AT_ROOT: &[u8] = b"root";
/// What the child says when only its program is missing.
pub(crate) const READY: &[u8] = b"ready";
/// First byte to whoever starts it.
pub(crate) const GOING: u8 = b'g';

/// A creation's companion.
#[derive(Debug)]
pub(crate) struct Gate<'a> {
    /// To the process that creates.
    pub(crate) creator: BorrowedFd<'a>,
    /// Where it waits for its start.
    pub(crate) listener: BorrowedFd<'a>,
    pub(crate) hooks: &'a Hooks,
    /// The program's, which hooks inside have too unless they bring their own.
    pub(crate) environment: &'a [String],
    pub(crate) record: &'a Record,
    /// Name of a new session keyring.
    pub(crate) keyring: Option<CString>,
    /// The child's copies of both.
    pub(crate) copies: RefCell<Vec<OwnedFd>>,
    /// Who starts it.
    pub(crate) starter: RefCell<Option<OwnedFd>>,
    pub(crate) pid: RefCell<u32>,
}

impl Gate<'_> {
    fn state(&self, status: Status) -> String {
        Record { pid: *self.pid.borrow(), ..self.record.clone() }.told(status)
    }

    fn at_root(&self, creator: BorrowedFd<'_>) -> Result<(), (String, Errno)> {
        let talk = |errno| ("tell the creator".to_owned(), errno);
        send(creator, AT_ROOT, SendFlags::NOSIGNAL).map_err(talk)?;
        let mut answer = [0_u8; 4];
        let (count, _) = recv(creator, &mut answer, RecvFlags::empty()).map_err(talk)?;
        // The creator ends the connection when one of its hooks failed; it says so itself.
        if count != answer.len() {
            return Err(("creation was given up".to_owned(), Errno::CANCELED));
        }
        *self.pid.borrow_mut() = u32::from_le_bytes(answer);
        hooks::run("createContainer", &self.hooks.create_container, &self.state(Status::Creating))
            .map_err(|error| (error.to_string(), Errno::CANCELED))?;
        match &self.keyring {
            None => Ok(()),
            Some(name) => match sys::new_session_keyring(name) {
                Ok(()) | Err(Errno::NOSYS) => Ok(()),
                Err(errno) => Err(("make a session keyring (or use --no-new-keyring)".to_owned(), errno)),
            },
        }
    }

    fn at_program(&self, creator: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> Result<(), (String, Errno)> {
        send(creator, READY, SendFlags::NOSIGNAL).map_err(|errno| ("tell the creator".to_owned(), errno))?;
        let wait = |errno| ("wait for the start".to_owned(), errno);
        let starter = loop {
            match accept_with(listener, SocketFlags::CLOEXEC) {
                Err(Errno::INTR) => {}
                accepted => break accepted.map_err(wait)?,
            }
        };
        // Nobody else can start it from here on.
        self.copies.borrow_mut().clear();
        send(&starter, &[GOING], SendFlags::NOSIGNAL).map_err(wait)?;
        *self.starter.borrow_mut() = Some(starter);
        hooks::run_in(
            "startContainer",
            &self.hooks.start_container,
            &self.state(Status::Created),
            Some(self.environment),
        )
        .map_err(|error| (error.to_string(), Errno::CANCELED))
    }
}

impl Companion for Gate<'_> {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.creator, self.listener]
    }

    fn settled(&self, copies: Vec<OwnedFd>) {
        *self.copies.borrow_mut() = copies;
    }

    fn at(&self, moment: Moment) -> Result<(), (String, Errno)> {
        let copies = std::mem::take(&mut *self.copies.borrow_mut());
        let [creator, listener] = copies.as_slice() else { return Err(("descriptors".to_owned(), Errno::BADF)) };
        let done = match moment {
            Moment::BeforeRoot => self.at_root(creator.as_fd()),
            Moment::BeforeProgram => return self.at_program(creator.as_fd(), listener.as_fd()),
        };
        *self.copies.borrow_mut() = copies;
        done
    }

    fn listening(&self, number: i32) -> Result<(), (String, Errno)> {
        match &*self.starter.borrow() {
            Some(starter) => agent::tell(starter.as_fd(), number),
            None => Err(("nobody starts it".to_owned(), Errno::BADF)),
        }
    }

    fn failed(&self, step: &str, subject: &str, errno: i32) {
        if let Some(starter) = &*self.starter.borrow() {
            let text = serde_json::to_vec(&(step, subject, errno)).unwrap_or_default();
            let _ = send(starter, &text, SendFlags::NOSIGNAL);
        }
    }

    fn namespace(&self, path: &str) -> Result<OwnedFd, Errno> {
        // The bundle is the host administrator's: its links, /proc/PID/ns/net among them, are followed.
        openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }
}

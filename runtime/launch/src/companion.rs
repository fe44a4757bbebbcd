//! What goes with a start on behalf of whoever asked for it: the hooks of an OCI bundle, and the wait between its creation and its start.
//!
//! PID 1 has no companion: its starts never wait. A companion's code runs in the launch child, with the child's power, at the moments
//! named here and nowhere else.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// When a companion is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// In the workload's namespaces, everything mounted; `/` is still the host's.
    BeforeRoot,
    /// In the workload's root, with its working directory, terminal and limits; privileges are still the launch child's.
    BeforeProgram,
}

/// A companion of a start.
pub trait Companion: std::fmt::Debug {
    /// Descriptors that it needs in the child.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// Takes the child's copies of them, in their order. They close themselves when the program is executed.
    fn settled(&self, copies: Vec<OwnedFd>);

    /// Does what is to be done at a moment. The start goes on when this returns.
    ///
    /// # Errors
    /// What failed, and why: the start then fails with it.
    fn at(&self, moment: Moment) -> Result<(), (String, Errno)>;

    /// Takes the listener of the filter that was just installed, by its number here, and returns when somebody else has a copy. The filter is in
    /// force already; only `write` and `read` are called, which it must let pass.
    ///
    /// # Errors
    /// What failed, and why.
    fn listening(&self, number: i32) -> Result<(), (String, Errno)>;

    /// Is told of a failure, which the report may not reach any more.
    fn failed(&self, step: &str, subject: &str, errno: i32);

    /// Opens the namespace that a request joins by this path.
    ///
    /// # Errors
    /// The kernel's.
    fn namespace(&self, path: &str) -> Result<OwnedFd, Errno>;
}

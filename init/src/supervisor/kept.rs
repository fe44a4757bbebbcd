//! The descriptors PID 1 keeps for each workload and exec session. Nothing here is a decision; it is what the actions work on.

use std::os::fd::OwnedFd;

use byre_core::ChannelId;
use byre_plan::WorkloadId;

use super::sources::Token;
use crate::index::{Listed, Role, Use};

/// A pipe of which PID 1 holds both ends, so that a restart on either side loses nothing.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) reader: Listed,
    pub(crate) writer: Listed,
}

impl Pipe {
    /// A new one for this workload, whose ends have these roles.
    pub(crate) fn new(id: WorkloadId, (reading, writing): (Role, Role)) -> Result<Self, rustix::io::Errno> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self {
            reader: Listed::new(reader, Use::of(reading, id)),
            writer: Listed::new(writer, Use::of(writing, id)),
        })
    }
}

/// Roles of the ends of each of a workload's pipes.
pub(crate) const STDIN: (Role, Role) = (Role::StdinReader, Role::StdinWriter);
/// See [`STDIN`].
pub(crate) const STDOUT: (Role, Role) = (Role::StdoutReader, Role::StdoutWriter);
/// See [`STDIN`].
pub(crate) const STDERR: (Role, Role) = (Role::StderrReader, Role::StderrWriter);

/// A workload's standard input, while somebody may still write to it.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) reader: Listed,
    /// `None` once a client has said that nothing more comes.
    pub(crate) writer: Option<Listed>,
}

/// A descriptor in the epoll.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) fd: Listed,
    pub(crate) token: Token,
}

/// What is kept for a workload, over its runs.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) stdout: Option<Pipe>,
    pub(crate) stderr: Option<Pipe>,
    pub(crate) stdin: Option<Input>,
    /// The present run's terminal.
    pub(crate) terminal: Option<Listed>,
    pub(crate) run: Option<KeptRun>,
}

/// What is kept for a run.
#[derive(Debug)]
pub(crate) struct KeptRun {
    pub(crate) number: u64,
    pub(crate) cgroup: OwnedFd,
    pub(crate) leaf: OwnedFd,
    /// Until the launch child has reported.
    pub(crate) report: Option<Watched>,
    /// While the first process lives or waits to be reaped.
    pub(crate) process: Option<Watched>,
    /// Its first process' id, as long as `process` is there.
    pub(crate) pid: u32,
    pub(crate) notify: Option<Watched>,
    pub(crate) channel: Option<ChannelId>,
    /// `cgroup.events`, once all are to be killed.
    pub(crate) events: Option<Watched>,
    /// Somebody waits for the cgroup to be empty.
    pub(crate) ending: bool,
}

/// What is kept for an exec session.
#[derive(Debug)]
pub(crate) struct KeptExec {
    pub(crate) report: Option<Watched>,
    pub(crate) process: Option<Watched>,
    pub(crate) pid: u32,
    /// Until it is handed to the caller; PID 1 keeps no duplicate.
    pub(crate) terminal: Option<OwnedFd>,
}

//! The descriptors PID 1 keeps for each workload and exec session. Nothing here is a decision; it is what the actions work on.

use std::os::fd::OwnedFd;

use byre_core::ChannelId;

use super::sources::Token;

/// A pipe of which PID 1 holds both ends, so that a restart on either side loses nothing.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) reader: OwnedFd,
    pub(crate) writer: OwnedFd,
}

impl Pipe {
    pub(crate) fn new() -> Result<Self, rustix::io::Errno> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { reader, writer })
    }
}

/// A workload's standard input, while somebody may still write to it.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) reader: OwnedFd,
    /// `None` once a client has said that nothing more comes.
    pub(crate) writer: Option<OwnedFd>,
}

/// A descriptor in the epoll.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) fd: OwnedFd,
    pub(crate) token: Token,
}

/// What is kept for a workload, over its runs.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) stdout: Option<Pipe>,
    pub(crate) stderr: Option<Pipe>,
    pub(crate) stdin: Option<Input>,
    /// The present run's terminal.
    pub(crate) terminal: Option<OwnedFd>,
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

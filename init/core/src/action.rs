//! What PID 1 does: the closed set of actions. The supervisor carries them out in order; none of them waits.

use byre_plan::WorkloadId;
use byre_protocol::control::{Allow, FromInit, ShutdownAction};

use crate::event::{ChannelId, ExecId};

/// A descriptor that goes with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// None.
    None,
    /// The writing end of a workload's input: a duplicate of its terminal's master or of its stdin pipe.
    Input(WorkloadId),
    /// The terminal's master of an exec session; PID 1 keeps no duplicate.
    ExecTerminal(ExecId),
    /// A new reader of the kernel log.
    KernelLog,
    /// The pidfd of a workload's first process.
    Process(WorkloadId),
    /// A pod's network namespace.
    Network(WorkloadId),
    /// A sealed memory with the trace.
    Trace,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Start a workload's program.
    Launch {
        /// Which workload; its plan is asked from the core.
        id: WorkloadId,
        /// The run this is.
        run: u64,
    },
    /// Start an exec session's program with the descriptors of the call under way.
    LaunchExec {
        /// Which session.
        exec: ExecId,
    },
    /// Send a signal to a workload's first process.
    Signal {
        /// Which workload.
        id: WorkloadId,
        /// The signal's number.
        signal: u8,
    },
    /// Send a signal to an exec session's process.
    SignalExec {
        /// Which session.
        exec: ExecId,
        /// The signal's number.
        signal: u8,
    },
    /// Kill every process of a workload, and tell when its cgroup is empty.
    KillAll {
        /// Which workload.
        id: WorkloadId,
        /// The run this is about.
        run: u64,
    },
    /// Drop what is kept of an exec session.
    ForgetExec {
        /// Which session.
        exec: ExecId,
    },
    /// Send a message. One that does not fit cuts the channel off.
    Send {
        /// To whom.
        channel: ChannelId,
        /// What.
        message: Box<FromInit>,
        /// With which descriptor.
        attachment: Attachment,
    },
    /// Drop the writing end of a workload's stdin pipe.
    CloseInput {
        /// Which workload.
        id: WorkloadId,
    },
    /// A log channel is open: send it the output of every workload.
    OfferLogs {
        /// The channel.
        channel: ChannelId,
    },
    /// Remove a workload's files, then tell.
    RemoveFiles {
        /// Which workload.
        id: WorkloadId,
    },
    /// Remove files of workloads that are not known (a removal that a power cut ended).
    Sweep,
    /// Unmount layers whose image was removed from the store.
    ReleaseLayers,
    /// Drop every descriptor kept for a workload.
    Forget {
        /// Which workload.
        id: WorkloadId,
    },
    /// One line on the console.
    Say(String),
    /// Sync, unmount and end the machine.
    Finish(ShutdownAction),
    /// Replace this program by the one of the running root, then tell.
    Reexec,
    /// Arm the other slot by a child, then tell.
    Arm(Next),
}

/// What the child that arms makes of the other slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The release that this statement describes boots next, on trial.
    Release {
        /// The signed statement of the release in it.
        statement: Vec<u8>,
        /// What an operator allows beyond an ordinary update.
        allow: Allow,
    },
    /// What it holds already boots next, on trial.
    Back,
    /// The running slot boots next: what was armed and has not been tried is taken back.
    Nothing,
}

//! What may happen to PID 1: the closed set of events. The supervisor decodes every wake-up into these.

use byre_plan::{Policy, WorkloadId};
use byre_protocol::control::{Call, ShutdownAction};
use byre_protocol::definition::{Definition, Role};
use byre_protocol::status::StartFailure;

/// A control channel of this boot; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u64);

/// An exec session of this boot; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecId(pub u64);

/// Whose process something is about. A workload's `run` rises with each start, so that news of an earlier run is known as such.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The first process of a workload's run.
    Workload {
        /// Which.
        id: WorkloadId,
        /// Which run.
        run: u64,
    },
    /// An exec session.
    Exec(ExecId),
}

/// What the verified root brings.
#[derive(Debug, Clone)]
pub struct Boot {
    /// What clients may ask for.
    pub policy: Policy,
    /// The node's services, each with a fresh identity.
    pub services: Vec<(WorkloadId, Definition)>,
}

/// Where a call came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallContext {
    /// The channel.
    pub channel: ChannelId,
    /// How many descriptors came with it.
    pub descriptors: usize,
    /// 64 random bits, for a new workload's identity.
    pub fresh: u64,
}

/// What a launch child reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaunchOutcome {
    /// The program was executed.
    Running {
        /// Its process id in the host's namespace.
        pid: u32,
        /// Whether it has a terminal.
        terminal: bool,
    },
    /// It was not.
    Failed(StartFailure),
    /// A pod's namespaces are there.
    Made,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// With this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// What may happen.
#[derive(Debug, Clone)]
pub enum Event {
    /// The system starts.
    Boot(Box<Boot>),
    /// A service's control channel is open: it was just started with it.
    ChannelOpened {
        /// The channel.
        channel: ChannelId,
        /// What it is for.
        role: Role,
    },
    /// A service's control channel is closed.
    ChannelClosed(ChannelId),
    /// A service asks for something.
    Called {
        /// Where from.
        context: CallContext,
        /// What.
        call: Box<Call>,
    },
    /// A launch child has reported.
    Launched {
        /// Whose.
        subject: Subject,
        /// What.
        outcome: LaunchOutcome,
    },
    /// A process ended.
    Exited {
        /// Whose.
        subject: Subject,
        /// How.
        status: ExitStatus,
        /// `oom_kill` of the workload's memory.events, read before this event.
        oom_kills: u32,
    },
    /// No process is left in a workload's cgroup, and the cgroup is removed.
    Emptied {
        /// Which workload.
        id: WorkloadId,
        /// Which run.
        run: u64,
    },
    /// A workload said `READY=1`.
    Notified {
        /// Which.
        id: WorkloadId,
        /// Which run.
        run: u64,
    },
    /// A workload said `WATCHDOG=1`.
    HeardOf {
        /// Which.
        id: WorkloadId,
        /// Which run.
        run: u64,
    },
    /// A removed workload's files are gone from disk, or could not be removed.
    FilesRemoved {
        /// Which.
        id: WorkloadId,
        /// Whether it worked.
        removed: bool,
    },
    /// A deadline of [`crate::Core::next_deadline_boot_ms`] may have passed.
    Tick,
    /// The power button, Ctrl-Alt-Del or a signal asks for the end.
    ShutdownAsked(ShutdownAction),
    /// The program was replaced, or was not.
    Reexecuted(Reexecuted),
    /// The child that arms an update has ended; with a refusal, nothing was committed.
    Armed(Option<String>),
    /// PID 1 begins anew after a crash; in place of [`Event::Boot`].
    Rescued(Box<crate::rescue::Rescued>),
}

/// How a replacement of the program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reexecuted {
    /// The new program has taken over.
    Done {
        /// For how long nobody served.
        gap_us: u64,
    },
    /// The old one goes on, and this is why.
    Refused(String),
}

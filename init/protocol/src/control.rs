//! The control protocol: requests of the services, PID 1's replies, and the notices PID 1 sends of its own accord.

use byre_plan::{Name, Process, WorkloadId};
use serde::{Deserialize, Serialize};

use crate::definition::{Definition, LogPolicy};
use crate::pod::{PodAddress, PodNetwork};
use crate::probe::{Aim, Probe};
use crate::status::{Cause, Detail, Link, Moment, Run, State, Summary};

/// Summaries in one page of a list: with labels a page stays well below a message's bound; a page that would not fit is shorter.
pub const PAGE: usize = 32;
/// Exec sessions of one workload at a time.
pub const EXECS_PER_WORKLOAD: usize = 64;
/// Workloads of one node: Kubernetes' limit is 110 pods, dense nodes run 500; a thousand containers is a benchmark of ours.
pub const WORKLOADS: usize = 2048;
/// Requests of one client channel that PID 1 has not answered yet; more are not read.
pub const PENDING_REQUESTS: usize = 256;

/// Bytes of a reason that a service gives PID 1: one line for a person.
pub const REASON_BYTES: usize = 512;

/// From a service to PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the caller, returned with the reply.
    pub sequence: u64,
    /// What is asked.
    pub request: Request,
}

/// A workload by either of its identities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// By identity.
    Id(WorkloadId),
    /// By name; of a group, where a request is about starting or stopping.
    Name(Name),
}

/// What a service asks of PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Role api: make a container; answered with [`Reply::Created`] when its record is on disk.
    Create {
        /// What to make. Its kind must be container and it may have no grants.
        definition: Box<Definition>,
        /// Start it at once.
        start: bool,
    },
    /// Role api: want it up. Answered with [`Reply::Done`] when its program runs, with [`Reply::Refused`] when that failed.
    Start {
        /// Which.
        target: Target,
    },
    /// Role api: want it down. Answered when it is.
    Stop {
        /// Which.
        target: Target,
        /// Instead of the definition's grace.
        grace_ms: Option<u32>,
    },
    /// Role api: stop if up, then start.
    Restart {
        /// Which.
        target: Target,
        /// Instead of the definition's grace.
        grace_ms: Option<u32>,
    },
    /// Role api: send a signal to its first process; 9 goes to the whole cgroup.
    Kill {
        /// Which.
        target: Target,
        /// Signal number.
        signal: u8,
    },
    /// Role api: forget it, with its writable layer. Answered when it is gone from disk.
    Remove {
        /// Which.
        target: Target,
        /// Stop it first.
        force: bool,
    },
    /// Role api: one page of all workloads in the order of their identities.
    List {
        /// Only those behind this one.
        after: Option<WorkloadId>,
    },
    /// Role api: everything about one.
    Inspect {
        /// Which.
        target: Target,
    },
    /// Role api: run a further process in a running workload. Carries 3 descriptors (stdin, stdout, stderr), or none with a terminal.
    /// Answered with [`Reply::ExecStarted`], which carries the terminal's master; its end is told by [`Notice::ExecEnded`].
    Exec {
        /// Which.
        target: Target,
        /// What to run; its capabilities may be no more than the workload's.
        process: Box<Process>,
    },
    /// Role api: signal an exec session.
    KillExec {
        /// Which session.
        exec: u64,
        /// Signal number.
        signal: u8,
    },
    /// Role api: the writing end of a workload's input. Answered with [`Reply::Input`] carrying one descriptor: a duplicate of the terminal's master, or
    /// of the stdin pipe.
    OpenInput {
        /// Which.
        target: Target,
    },
    /// Role api: no more input comes: the program reads what is left in its stdin pipe and then its end. A terminal is not closed so.
    CloseInput {
        /// Which.
        target: Target,
    },
    /// Role api: a further reader of the kernel log; answered with [`Reply::Descriptor`].
    OpenKernelLog,
    /// Role api: be told of events from now on.
    Subscribe,
    /// Role api: end all workloads and then the machine. Role update: the same, to reboot.
    Shutdown {
        /// How.
        action: ShutdownAction,
    },
    /// Role api: replace the running program of PID 1 by that of the running root. Answered by the new one with [`Reply::Reexecuted`], or by the
    /// old one with [`Reply::Refused`].
    Reexec,
    /// Role state: this record is on disk.
    Recorded {
        /// The notice's number.
        record: u64,
    },
    /// Role state: this record could not be put on disk, and nothing of it will come back at the next boot. PID 1 answers the call that
    /// waited for it with [`RefusedCode::NotDurable`] and undoes what it had prepared.
    RecordFailed {
        /// The notice's number.
        record: u64,
        /// For people: what failed and the remedy, at most [`REASON_BYTES`].
        text: String,
    },
    /// Role state, at boot: a workload that was on disk.
    Replay(Box<WorkloadRecord>),
    /// Role state, at boot: that was all.
    ReplayEnd,
    /// Role probe: a probe's verdict is another than before.
    Probed {
        /// Which workload.
        id: WorkloadId,
        /// The notice's number.
        number: u64,
        /// What the probe is for.
        aim: Aim,
        /// Whether it answers as it should.
        passed: bool,
    },
    /// Role api: images were removed; what is mounted of their layers need not be any more. Answered at once.
    ReleaseLayers,
    /// Role api: why a workload is in its state. Answered with [`Reply::Explained`].
    Why {
        /// Which.
        target: Target,
    },
    /// Role update: the inactive slot holds this release; check it again and make it the one that boots next, on trial. Answered with
    /// [`Reply::Done`] when that is on disk, and with [`Reply::Refused`] when nothing was changed.
    Arm {
        /// The signed release statement, [`STATEMENT_BYTES`] long.
        statement: Vec<u8>,
        /// What an operator allows beyond an ordinary update.
        allow: Allow,
    },
    /// Role update: make the inactive slot, whose release ran here before, the one that boots next. Answered as [`Self::Arm`].
    Rollback,
    /// Role update: what was armed and has not been tried boots no more; the running slot boots next. Answered as [`Self::Arm`].
    Disarm,
    /// Role network: a pod is in all its networks.
    Attached {
        /// Which.
        id: WorkloadId,
        /// The notice's run.
        run: u64,
        /// Its addresses, at most [`crate::pod::ADDRESSES`].
        addresses: Vec<PodAddress>,
    },
    /// Role network: a pod cannot be put into its networks.
    AttachFailed {
        /// Which.
        id: WorkloadId,
        /// The notice's run.
        run: u64,
        /// For people: what failed and the remedy, at most [`REASON_BYTES`].
        text: String,
    },
    /// Role api: take [`Request::Disable`] back. A job with a schedule waits for its time from then on, anything else for its start.
    Enable {
        /// Which.
        target: Target,
    },
    /// Role api: stop it, and let nothing start it, not even a reboot, until it is enabled. Answered when it is down and that is on disk.
    Disable {
        /// Which.
        target: Target,
    },
    /// Role api: what PID 1 decided lately. Answered with [`Reply::Descriptor`], a sealed memory with one or two traces, each behind its length
    /// (8 bytes, little-endian).
    Trace,
    /// Role api: forget its failures. One that waits for its next try begins it at once.
    Reset {
        /// Which.
        target: Target,
    },
}

/// Bytes of a release statement, as `byre-release` reads it; this crate does not depend on that one.
pub const STATEMENT_BYTES: usize = 512;

/// What an operator allows beyond an ordinary update.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allow {
    /// A release with a lower install number than the running one.
    pub downgrade: bool,
    /// A release that failed its trial before.
    pub retry: bool,
}

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownAction {
    /// Power off.
    PowerOff,
    /// Reboot through the firmware.
    Reboot,
}

/// From PID 1 to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromInit {
    /// The answer to a call.
    Answer {
        /// The call's number.
        sequence: u64,
        /// The answer.
        reply: Reply,
    },
    /// Unasked.
    Notice(Box<Notice>),
}

/// PID 1's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is so.
    Done,
    /// It was made.
    Created {
        /// Its identity.
        id: WorkloadId,
    },
    /// A page of the list.
    Page {
        /// Its lines.
        workloads: Vec<Summary>,
        /// Whether there are more behind the last.
        more: bool,
    },
    /// Everything about one.
    Inspected(Box<Detail>),
    /// An exec session runs. Carries the terminal's master if it has one.
    ExecStarted {
        /// Its number.
        exec: u64,
    },
    /// The input of a workload; carries one descriptor.
    Input {
        /// Whether it is a terminal.
        terminal: bool,
    },
    /// Carries one descriptor.
    Descriptor,
    /// PID 1's program was replaced.
    Reexecuted {
        /// For how long it did not serve, in microseconds.
        gap_us: u64,
    },
    /// It is not so.
    Refused(Refused),
    /// The chain of causes, from what was asked about to the oldest cause; never empty.
    Explained(Vec<Link>),
}

/// Why PID 1 did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// For programs.
    pub code: RefusedCode,
    /// For people: names the thing and the remedy.
    pub text: String,
}

/// Classes of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedCode {
    /// No such workload or session.
    NotFound,
    /// The name is taken.
    NameTaken,
    /// The request breaks a bound or the node policy.
    Invalid,
    /// Not in this state (for example: exec in a workload that is down).
    WrongState,
    /// A table is full.
    Full,
    /// The launch child could not start it.
    StartFailed,
    /// The durable state could not be written.
    NotDurable,
    /// This channel's role may not ask that.
    NotAllowed,
    /// The node is shutting down.
    ShuttingDown,
}

/// What PID 1 says unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// Role api, after subscribe.
    Event(Event),
    /// Role api: an exec session ended.
    ExecEnded {
        /// Its number.
        exec: u64,
        /// How.
        cause: Cause,
    },
    /// Role log: output of a workload; carries the reading end of the pipe or the terminal's master. Sent again after the log service restarted.
    LogStream {
        /// Which workload.
        id: WorkloadId,
        /// Its name.
        name: Name,
        /// Which output.
        stream: Stream,
        /// What to do with it.
        policy: LogPolicy,
    },
    /// Role log: the workload is gone for good, and so may its log be.
    LogRemove {
        /// Which.
        id: WorkloadId,
    },
    /// Role log: a run of the workload ended. Followers end when the pipe is drained and this was said.
    LogRunEnded {
        /// Which.
        id: WorkloadId,
    },
    /// Role state: put this on disk, then answer with [`Request::Recorded`].
    Record {
        /// Number for the answer.
        record: u64,
        /// What to put there.
        change: Box<Change>,
    },
    /// Role probe: ask until told otherwise.
    Probe {
        /// Which workload.
        id: WorkloadId,
        /// Number for the answer.
        number: u64,
        /// What it is for; a workload is asked at most one question of each kind.
        aim: Aim,
        /// What to ask, how often, and how answers are judged.
        probe: Probe,
        /// Its first process, whose network namespace is joined; carries its pidfd as descriptor.
        pid: u32,
    },
    /// Role probe: stop asking a workload anything.
    ProbeEnd {
        /// Which workload.
        id: WorkloadId,
    },
    /// Everybody: the node is shutting down.
    ShuttingDown,
    /// Role network: put a pod into its networks, then answer with [`Request::Attached`] or [`Request::AttachFailed`]. Sent again after the
    /// network service restarted. Carries the pod's network namespace.
    Attach {
        /// Which pod.
        id: WorkloadId,
        /// For the answer.
        run: u64,
        /// Its name.
        name: Name,
        /// What it asks for.
        network: Box<PodNetwork>,
        /// The addresses that it has already; empty for one that is new.
        addresses: Vec<PodAddress>,
    },
    /// Role network, after it opened its channel: every pod that is up was told; what is left of others may go.
    AttachEnd,
    /// Role network: a pod is down, and its namespaces are gone.
    Detach {
        /// Which.
        id: WorkloadId,
    },
}

/// One output of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Both, through a terminal.
    Terminal,
}

/// Something happened to a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one with each event of this boot; a gap means that events were lost.
    pub number: u64,
    /// When.
    pub at: Moment,
    /// Which workload.
    pub id: WorkloadId,
    /// Its name.
    pub name: Name,
    /// What.
    pub what: What,
}

/// What happened to a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// It was made.
    Created,
    /// Its state changed.
    State(State),
    /// A run ended.
    Ended(Run),
    /// A process of it was killed for want of memory.
    OutOfMemory,
    /// It is gone.
    Removed,
}

/// A change of the durable wanted state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A workload is made or changed.
    Put(Box<WorkloadRecord>),
    /// A workload is removed.
    Remove(WorkloadId),
}

/// What is on disk of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRecord {
    /// Identity.
    pub id: WorkloadId,
    /// What it is.
    pub definition: Definition,
    /// First of its host ids.
    pub id_base: Option<u32>,
    /// What is wanted of it.
    pub wanted: Wanted,
    /// When it was made.
    pub created: Moment,
    /// Its last ended run.
    pub last_run: Option<Run>,
}

/// What is wanted of a workload, on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// That it runs, or begins when its time comes.
    Up,
    /// That it does not run.
    Down,
    /// That nothing starts it.
    Disabled,
}

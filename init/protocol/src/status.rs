//! What PID 1 tells of a workload: its state, how its runs ended, and why it is not running.

use byre_plan::{Name, WorkloadId};
use serde::{Deserialize, Serialize};

use crate::definition::{Definition, Kind, ReadyWhen, RestartPolicy};
use crate::pod::PodAddress;
use crate::probe::{Aim, Check};

/// Ended runs kept per workload.
pub const HISTORY: usize = 8;

/// A moment: both clocks are read once per wake-up and handed to the core.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// CLOCK_BOOTTIME in milliseconds. All waiting is done by this one.
    pub boot_ms: u64,
    /// CLOCK_REALTIME in milliseconds since 1970, for people.
    pub wall_ms: u64,
}

/// What is true of a workload now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No process of it exists.
    Down {
        /// Why not.
        why: Why,
    },
    /// Its launch child is at work.
    Starting {
        /// Since when.
        since: Moment,
    },
    /// Its program runs.
    Up {
        /// Since when.
        since: Moment,
        /// Whether it is ready.
        ready: bool,
        /// Its first process, in the host's PID namespace.
        pid: u32,
    },
    /// It was told to end.
    Stopping {
        /// Which means was used last.
        rung: Rung,
        /// When the next one is used.
        deadline_boot_ms: u64,
    },
    /// Its first process is gone; the rest of its cgroup is being killed.
    Draining {
        /// How its run ended.
        cause: Cause,
    },
    /// Waits for its next start.
    Backoff {
        /// When that is.
        until_boot_ms: u64,
        /// Failures in a row.
        streak: u32,
    },
}

/// The means of a stop, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// The definition's stop hook.
    Hook,
    /// The definition's stop signal.
    Signal,
    /// `cgroup.kill`.
    Kill,
}

/// Why a workload is down.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It was made and not started yet.
    Created,
    /// Somebody stopped it.
    Stopped,
    /// It ended and its restart policy leaves it so.
    Ended(Cause),
    /// It waits for this workload to be ready.
    Waiting(Name),
    /// It failed more often in a row than its policy allows; the last cause.
    GaveUp(Cause),
    /// The node is shutting down.
    Shutdown,
    /// A job that begins by itself next at this time.
    Scheduled(Due),
    /// It was disabled: nothing starts it until it is enabled.
    Disabled,
}

/// When something is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Due {
    /// At this time of CLOCK_BOOTTIME, in milliseconds, whatever becomes of the clock on the wall.
    Boot(u64),
    /// At this time of CLOCK_REALTIME, in milliseconds since 1970.
    Wall(u64),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It exited with this code.
    Code(u8),
    /// It was killed by this signal.
    Signal(u8),
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// It could not be started: which step, on what, and the error.
    StartFailed(StartFailure),
    /// It was not ready in time.
    NotReady,
    /// Something it needs stopped.
    Dependency(Name),
    /// The node lost power or restarted while it ran.
    Interrupted,
    /// It took longer than its deadline, over all its tries.
    Deadline,
    /// One run took longer than it may.
    RunLimit,
    /// This probe of it failed, and it was stopped: the one of its start-up or the one of its liveness.
    Probe(Aim),
}

/// Why a start failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StartFailure {
    /// The step, such as `mount_root`.
    pub step: String,
    /// What it worked on; may be empty.
    pub subject: String,
    /// Linux error number, 0 where there is none.
    pub errno: i32,
}

/// One ended run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Since when its program ran; equals `ended` when it never did.
    pub started: Moment,
    /// When it ended.
    pub ended: Moment,
    /// How.
    pub cause: Cause,
}

/// Links of a chain of causes, at most: a chain that is longer names no cause that somebody could use.
pub const LINKS: usize = 32;

/// One link of the chain of causes that explains a workload's state: what is so, because of what the next link says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Which workload it is about; the asked one in the first link.
    pub name: Name,
    /// What is so.
    pub because: Because,
}

/// What is so of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// It runs and is ready; nothing is to be explained.
    Ready {
        /// Since when its program runs.
        since: Moment,
    },
    /// A job that has ended well.
    Done,
    /// Its program runs and is not ready yet. For a job: it has not ended yet.
    NotReady {
        /// Since when its program runs.
        since: Moment,
        /// What it waits for.
        when: ReadyWhen,
        /// How often a probe that was asked said no; always 0 where nothing is asked.
        failed: u32,
    },
    /// Its program runs, and its start-up probe has not passed yet.
    StartingUp {
        /// Since when its program runs.
        since: Moment,
        /// What is asked.
        check: Check,
        /// How often the probe said no.
        failed: u32,
    },
    /// Its launch child is at work.
    Starting {
        /// Since when.
        since: Moment,
    },
    /// It is being ended.
    Stopping {
        /// By which means.
        rung: Rung,
    },
    /// Its first process is gone; the rest of its cgroup is being ended.
    Draining,
    /// It waits for its next start.
    Backoff {
        /// When that is.
        until_boot_ms: u64,
        /// Failures in a row.
        streak: u32,
    },
    /// It waits for this one, which the next link is about.
    Waiting {
        /// Which.
        other: Name,
    },
    /// There is no workload of this name.
    Missing,
    /// It was made and not started yet.
    Created,
    /// Somebody stopped it.
    Stopped,
    /// It is being removed.
    Removing,
    /// Its restart policy leaves it down after this end.
    Policy(RestartPolicy),
    /// A job that has not ended well was started so often.
    Tried {
        /// How often.
        times: u32,
    },
    /// It has this time at most.
    TimeLimit {
        /// Milliseconds.
        ms: u32,
    },
    /// Its last run ended so.
    Ended(Cause),
    /// It has this much memory at most.
    MemoryLimit {
        /// Bytes.
        bytes: u64,
    },
    /// The node is shutting down.
    Shutdown,
    /// A pod that is not in its networks yet.
    Attaching {
        /// Since when its namespaces are there.
        since: Moment,
    },
    /// It begins by itself at this time.
    Scheduled(Due),
    /// It was disabled.
    Disabled,
}

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Identity.
    pub id: WorkloadId,
    /// Name.
    pub name: Name,
    /// Kind.
    pub kind: Kind,
    /// Whether it came with the system, not from a client.
    pub built_in: bool,
    /// State.
    pub state: State,
    /// Whether it is wanted up.
    pub wanted_up: bool,
    /// When it was made.
    pub created: Moment,
    /// How often it was started again by itself.
    pub restarts: u32,
    /// Its last ended run.
    pub last_run: Option<Run>,
    /// Its labels.
    pub labels: Vec<(String, String)>,
}

/// Everything about one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// The list's line, without its labels: they are in the definition, and would not fit twice.
    pub summary: Summary,
    /// What it is.
    pub definition: Definition,
    /// First of its 65536 host ids, if it has a user namespace of its own.
    pub id_base: Option<u32>,
    /// Ended runs, newest last, at most [`HISTORY`].
    pub history: Vec<Run>,
    /// Its outer cgroup below /sys/fs/cgroup.
    pub cgroup: String,
    /// Processes that were killed for want of memory since it was made.
    pub oom_kills: u32,
    /// The addresses of a pod, and of what is in one.
    pub addresses: Vec<PodAddress>,
}

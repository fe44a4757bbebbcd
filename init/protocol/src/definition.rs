//! What a workload is: the definition that a service file of the verified root compiles to, and that a client asks for.

use byre_plan::{LaunchRequest, Name};
use serde::{Deserialize, Serialize};

use crate::pod::PodNetwork;
use crate::probe::{Aim, Check, Probe};
use crate::schedule::Schedule;

/// Workloads that one definition may need or come after.
pub const DEPENDENCIES: usize = 32;
/// Labels of one workload, and bytes of a key or a value. The API keeps the image's name and the like here.
pub const LABELS: usize = 64;
/// Bytes of a label's key or value.
pub const LABEL_BYTES: usize = 4096;
/// Bytes of one encoded definition. Whatever PID 1 tells of a workload fits a message: the definition, and beside it eight ended runs and the
/// last, whose causes name a path of 4 KiB each.
pub const DEFINITION_BYTES: usize = 88 * 1024;
/// Workloads of one group: an application's, not a node's.
pub const GROUP_MEMBERS: usize = 64;
/// Grants of one service.
pub const GRANTS: usize = 16;

/// A workload, service or container: what to start and how to keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Unique on the node.
    pub name: Name,
    /// What it is to its users.
    pub kind: Kind,
    /// How it is started.
    pub launch: LaunchRequest,
    /// These must be ready before it starts; when one of them stops for good, this is not restarted until it is back.
    #[serde(default)]
    pub needs: Vec<Name>,
    /// If these are wanted, it starts after they are ready or have failed.
    #[serde(default)]
    pub after: Vec<Name>,
    /// When it is started again.
    #[serde(default)]
    pub restart: Restart,
    /// When it counts as ready.
    #[serde(default)]
    pub readiness: Readiness,
    /// How it is stopped.
    #[serde(default)]
    pub stop: Stop,
    /// What becomes of its output.
    #[serde(default)]
    pub log: LogPolicy,
    /// What PID 1 hands it; only definitions of the verified root may have any.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// Opaque to PID 1.
    #[serde(default)]
    pub labels: Vec<(String, String)>,
    /// Keep its standard input open for attach.
    #[serde(default)]
    pub open_stdin: bool,
    /// Remove it, with its writable layer, once it has ended.
    #[serde(default)]
    pub remove_on_exit: bool,
    /// Stopped later at shutdown the higher it is; containers have 0, services 100 and more.
    #[serde(default)]
    pub shutdown_priority: u8,
    /// As `needs`; and when one of these is no longer ready, this is stopped, and started again once it is.
    #[serde(default)]
    pub binds_to: Vec<Name>,
    /// For a job, how long it has over all its tries, from the start of the first one: one that takes longer is stopped, has failed, and is not
    /// tried again. 0 is no limit.
    #[serde(default)]
    pub deadline_ms: u32,
    /// The longest run: one that takes longer is stopped, and has failed. 0 is no limit.
    #[serde(default)]
    pub run_limit_ms: u32,
    /// Holds readiness and liveness back until it passes; a start that it says has failed is stopped.
    #[serde(default)]
    pub startup: Option<Probe>,
    /// A run that it says is dead is stopped, and has failed.
    #[serde(default)]
    pub liveness: Option<Probe>,
    /// The pod whose namespaces it is in. It is bound to it: while the pod is not ready, this does not run.
    #[serde(default)]
    pub pod: Option<Name>,
    /// What it asks of the network. A container or job that asks gets a pod of its own when it is made, which has this instead.
    #[serde(default)]
    pub network: Option<PodNetwork>,
    /// When it begins by itself; a job's.
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// What it belongs to. A group is started, stopped and waited for under one name; it is ready when all of it is.
    #[serde(default)]
    pub group: Option<Name>,
}

impl Definition {
    /// The probe that finds this out, if there is one.
    #[must_use]
    pub fn probe(&self, aim: Aim) -> Option<&Probe> {
        match aim {
            Aim::Startup => self.startup.as_ref(),
            Aim::Readiness => self.readiness.when.probe(),
            Aim::Liveness => self.liveness.as_ref(),
        }
    }

    /// Whether it says something of itself by sd_notify(3).
    #[must_use]
    pub fn is_notified(&self) -> bool {
        let has_watchdog = self.liveness.as_ref().is_some_and(|probe| probe.check == Check::Watchdog);
        self.readiness.when == ReadyWhen::Notify || has_watchdog
    }

    /// What is wrong with it by itself, if something is.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.job_refusal().or_else(|| self.probes_refusal()).or_else(|| self.schedule_refusal())
    }

    /// What is wrong with it as a job, or with what only a job has, if something is.
    #[must_use]
    pub fn job_refusal(&self) -> Option<String> {
        match (self.kind, self.restart.policy) {
            (Kind::Job, RestartPolicy::Always | RestartPolicy::UnlessStopped) => {
                Some("a job ends: its restart policy is never or on_failure".to_owned())
            }
            (Kind::Job, RestartPolicy::Never | RestartPolicy::OnFailure(_)) => None,
            (Kind::Service | Kind::Container | Kind::Pod, _) if self.deadline_ms > 0 => {
                Some("deadline_ms is a job's; for the longest run give run_limit_ms".to_owned())
            }
            (Kind::Service | Kind::Container | Kind::Pod, _) => None,
        }
    }

    /// What is wrong with when it begins by itself, if something is.
    #[must_use]
    pub fn schedule_refusal(&self) -> Option<String> {
        let schedule = self.schedule.as_ref()?;
        match self.kind {
            Kind::Job if self.remove_on_exit => {
                Some("a job that begins again by itself cannot be removed once it has ended".to_owned())
            }
            Kind::Job => schedule.refusal(),
            Kind::Service | Kind::Container | Kind::Pod => Some("a schedule is a job's: make it a job".to_owned()),
        }
    }

    /// What is wrong with how it is probed, if something is.
    #[must_use]
    pub fn probes_refusal(&self) -> Option<String> {
        if self.startup.is_some() && self.readiness.when == ReadyWhen::Notify {
            return Some("READY=1 says that it has started: leave out the start-up probe, or notify".to_owned());
        }
        Aim::ALL.into_iter().find_map(|aim| self.probe(aim)?.refusal(aim))
    }

    /// Everything without which it does not run on.
    pub fn bound_to(&self) -> impl Iterator<Item = &Name> {
        self.binds_to.iter().chain(&self.pod)
    }

    /// Everything that must be ready before it starts.
    pub fn requires(&self) -> impl Iterator<Item = &Name> {
        self.needs.iter().chain(self.bound_to())
    }

    /// Everything that it may have to wait for.
    pub fn waits_for(&self) -> impl Iterator<Item = &Name> {
        self.requires().chain(&self.after)
    }
}

/// What a workload is to its users. PID 1 treats all kinds alike but for readiness: a job is ready when it has ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A service of the node, from the verified root.
    Service,
    /// Runs to completion, over as many tries as its restart policy gives it; ready when it has ended with code 0.
    Job,
    /// A container.
    Container,
    /// Namespaces that containers share, without a process; ready when it is in its networks. With `remove_on_exit` it is one container's own: it is
    /// up while that is wanted, and gone with it.
    Pod,
}

/// When a workload is started again after it ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct Restart {
    /// Which ends count.
    pub policy: RestartPolicy,
    /// First delay; doubles with each failure in a row.
    pub initial_delay_ms: u32,
    /// Longest delay.
    pub maximum_delay_ms: u32,
    /// A run of at least this length resets the delay.
    pub reset_after_ms: u32,
}

impl Default for Restart {
    fn default() -> Self {
        Self { policy: RestartPolicy::Never, initial_delay_ms: 100, maximum_delay_ms: 60_000, reset_after_ms: 10_000 }
    }
}

/// Which ends lead to a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// None.
    #[default]
    Never,
    /// A code other than 0, a signal, OOM or a failed start; at most this many times in a row, 0 for no limit.
    OnFailure(u32),
    /// Every end that nobody asked for; also after a reboot.
    Always,
    /// As `Always`, but not after a reboot when it was stopped before.
    UnlessStopped,
}

/// When a workload counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct Readiness {
    /// The condition.
    pub when: ReadyWhen,
    /// A start that is not ready by then has failed; 0 waits for ever. With a start-up probe it counts from when that passes.
    pub timeout_ms: u32,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { when: ReadyWhen::Started, timeout_ms: 60_000 }
    }
}

/// The condition of readiness.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadyWhen {
    /// Its program was executed. For a job: it ended with code 0.
    #[default]
    Started,
    /// It said `READY=1` by sd_notify(3).
    Notify,
    /// This probe passes; it is asked on, and may say later that it is not ready any more.
    Probe(Probe),
}

impl ReadyWhen {
    /// Its probe, if it has one.
    #[must_use]
    pub fn probe(&self) -> Option<&Probe> {
        match self {
            Self::Probe(probe) => Some(probe),
            Self::Started | Self::Notify => None,
        }
    }
}

/// Words of a stop hook, and bytes of them all: a command line, not a script.
pub const HOOK_WORDS: usize = 32;
/// See [`HOOK_WORDS`].
pub const HOOK_BYTES: usize = 4096;

/// How a workload is stopped: its hook, this signal, and when the grace is over `cgroup.kill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct Stop {
    /// Signal number, 1 to 64.
    pub signal: u8,
    /// How long it has.
    pub grace_ms: u32,
    /// Run inside the workload before the signal, within the grace; empty for none. Its end, however it comes, brings the signal.
    pub hook: Vec<String>,
}

impl Stop {
    /// Whether its hook is within the bounds.
    #[must_use]
    pub fn hook_is_bounded(&self) -> bool {
        let bytes = self.hook.iter().fold(0_usize, |sum, word| sum.saturating_add(word.len()));
        self.hook.len() <= HOOK_WORDS && bytes <= HOOK_BYTES
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: 15, grace_ms: 10_000, hook: Vec::new() }
    }
}

/// What becomes of a workload's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct LogPolicy {
    /// Bytes of one segment file before it is rotated.
    pub segment_bytes: u32,
    /// Segments kept per stream.
    pub segments: u16,
    /// Bytes per second before the rate limit acts; 0 is unlimited.
    pub rate_bytes_per_second: u32,
    /// What the rate limit does.
    pub when_limited: WhenLimited,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self { segment_bytes: 4 << 20, segments: 3, rate_bytes_per_second: 0, when_limited: WhenLimited::Block }
    }
}

/// What the rate limit of a log does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenLimited {
    /// The writer waits.
    Block,
    /// Bytes are dropped, counted, and the count is shown.
    Drop,
}

/// What PID 1 hands a service, as a named descriptor (LISTEN_FDS, LISTEN_FDNAMES of sd_listen_fds(3)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// A control channel, named `control`; the role says which requests are served.
    Control(Role),
    /// A listening unix stream socket, kept open by PID 1.
    ListenUnix {
        /// Name of the descriptor.
        name: String,
        /// Path below /run/byre.
        path: String,
        /// Mode of the socket file.
        mode: u16,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// A listening TCP socket on all addresses, kept open by PID 1.
    ListenTcp {
        /// Name of the descriptor.
        name: String,
        /// Port.
        port: u16,
    },
    /// A reader of the kernel log, named `kmsg`.
    KernelLog,
    /// A directory made before the start with this owner and mode, such as /data/images.
    Directory {
        /// Absolute path.
        path: String,
        /// Mode.
        mode: u16,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The root, verity and uki partitions of both slots of the booted disk: `active-root`, `active-verity` and `active-uki` for reading,
    /// `inactive-root`, `inactive-verity` and `inactive-uki` for writing. None where the machine was booted without slots.
    SlotPartitions,
}

/// What a control channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Workloads on behalf of clients.
    Api,
    /// Durable wanted state.
    State,
    /// Output of workloads.
    Log,
    /// Probes of readiness.
    Probe,
    /// No requests; told of shutdown only.
    Observer,
    /// Releases: arming a slot that was written, going back, and the reboot into it.
    Update,
    /// Networks of pods.
    Network,
    /// The judge of an update's trial: looks at workloads, and may reboot.
    Trial,
}

/// What the image build compiles the root's service files to; PID 1 reads it from [`ServicesFile::PATH`] at start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServicesFile {
    /// What clients may ask for.
    pub policy: byre_plan::Policy,
    /// The node's own services and jobs, in the order of their names.
    pub services: Vec<Definition>,
}

impl ServicesFile {
    /// Where it lies in the root; encoded by [`crate::frame::encode_file`].
    pub const PATH: &str = "/usr/lib/byre/services.bin";
}

//! One workload: what is wanted of it, what is true of it, and what is remembered of it.

use std::collections::{BTreeMap, VecDeque};

use byre_plan::{Name, Origin, Plan, WorkloadId};
use byre_protocol::control::{self, WorkloadRecord};
use byre_protocol::definition::{Definition, Kind, ReadyWhen};
use byre_protocol::pod::PodAddress;
use byre_protocol::probe::Aim;
use byre_protocol::status::{Cause, Detail, HISTORY, Moment, Run, Rung, State, Summary, Why};

use crate::probes::Asking;

/// What is wanted of a workload, apart from what is true of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// It should run.
    Up,
    /// It should not.
    Down,
    /// It should not, and nothing but being enabled may change that.
    Disabled,
    /// It should be forgotten once it is down.
    Gone,
}

/// Whether a program that runs is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ready {
    /// It has not been in this run, and has to be in time.
    NotYet,
    /// It is.
    Now,
    /// It was.
    NoLonger,
}

/// A job's way to its end, over all tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    /// When the first try was started.
    pub(crate) begun: Moment,
    /// Tries so far, the present one with them.
    pub(crate) tries: u32,
}

/// What is true of a workload. The protocol's [`State`] is a view of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Actual {
    Down { why: Why },
    Starting { since: Moment },
    Up { since: Moment, ready: Ready, pid: u32 },
    Stopping { since: Moment, rung: Rung, deadline_boot_ms: u64, because: Option<Cause> },
    Draining { since: Moment, cause: Cause },
    Backoff { until_boot_ms: u64, streak: u32 },
    Removing,
}

/// A workload.
#[derive(Debug, Clone)]
pub struct Workload {
    pub(crate) id: WorkloadId,
    pub(crate) definition: Definition,
    pub(crate) plan: Plan,
    pub(crate) id_base: Option<u32>,
    pub(crate) built_in: bool,
    pub(crate) wanted: Wanted,
    pub(crate) actual: Actual,
    pub(crate) run: u64,
    pub(crate) created: Moment,
    pub(crate) restarts: u32,
    pub(crate) streak: u32,
    pub(crate) start_once_down: bool,
    pub(crate) history: VecDeque<Run>,
    pub(crate) oom_kills: u32,
    /// The tries of the present or last task of a job.
    pub(crate) task: Option<Task>,
    /// When the start of the present run was over.
    pub(crate) started_boot_ms: Option<u64>,
    /// What the present run is being asked.
    pub(crate) asking: BTreeMap<Aim, Asking>,
    pub(crate) remove_if_start_fails: bool,
    pub(crate) durable: bool,
    /// It was found alive after a crash, and nobody knows what it was.
    pub(crate) adopted: bool,
    /// The addresses of a pod that is attached.
    pub(crate) addresses: Vec<PodAddress>,
}

/// What the outer cgroup of a workload is called.
pub(crate) fn cgroup_name(id: WorkloadId, name: &Name, built_in: bool, adopted: bool) -> String {
    if adopted {
        name.as_str().strip_prefix(crate::rescue::UNKNOWN).unwrap_or(name.as_str()).to_owned()
    } else if built_in {
        name.to_string()
    } else {
        id.to_string()
    }
}

impl Workload {
    pub(crate) fn new(
        id: WorkloadId,
        definition: Definition,
        plan: Plan,
        id_base: Option<u32>,
        created: Moment,
    ) -> Self {
        Self {
            id,
            definition,
            plan,
            id_base,
            built_in: false,
            wanted: Wanted::Down,
            actual: Actual::Down { why: Why::Created },
            run: 0,
            created,
            restarts: 0,
            streak: 0,
            start_once_down: false,
            history: VecDeque::new(),
            oom_kills: 0,
            task: None,
            started_boot_ms: None,
            asking: BTreeMap::new(),
            remove_if_start_fails: false,
            durable: false,
            adopted: false,
            addresses: Vec::new(),
        }
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> WorkloadId {
        self.id
    }

    /// What it is.
    #[must_use]
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// How it is started.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// First of its host ids, if it has a user namespace of its own.
    #[must_use]
    pub fn id_base(&self) -> Option<u32> {
        self.id_base
    }

    /// Whether it came from the verified root.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        self.built_in
    }

    /// The addresses of a pod that is attached.
    #[must_use]
    pub fn addresses(&self) -> &[PodAddress] {
        &self.addresses
    }

    /// Where its plan comes from.
    pub(crate) fn origin(&self) -> Origin {
        if self.built_in { Origin::VerifiedRoot } else { Origin::Client }
    }

    /// What is wanted of it.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// The number of its present or last run; 0 before the first.
    #[must_use]
    pub fn run(&self) -> u64 {
        self.run
    }

    /// How often its present or last task was tried.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.task.map_or(0, |task| task.tries)
    }

    /// Its outer cgroup below /sys/fs/cgroup.
    #[must_use]
    pub fn cgroup(&self) -> String {
        let tree = if self.built_in { "services" } else { "workloads" };
        format!("{tree}/{}", self.cgroup_name())
    }

    /// What its outer cgroup is called among those of its kind.
    #[must_use]
    pub fn cgroup_name(&self) -> String {
        cgroup_name(self.id, &self.definition.name, self.built_in, self.adopted)
    }

    /// Processes killed for want of memory in earlier runs.
    #[must_use]
    pub fn oom_kills_before_run(&self) -> u32 {
        self.oom_kills
    }

    /// Whether others that need it may start. A job is ready once it has ended well.
    pub(crate) fn is_ready(&self) -> bool {
        match (&self.actual, self.definition.kind) {
            (Actual::Up { ready, .. }, Kind::Service | Kind::Container | Kind::Pod) => *ready == Ready::Now,
            (Actual::Down { why: Why::Ended(Cause::Code(0)) }, Kind::Job) => true,
            // Between two times a job is what its last run made of it.
            (Actual::Down { why: Why::Scheduled(_) }, Kind::Job) => {
                self.history.back().is_some_and(|run| run.cause == Cause::Code(0))
            }
            (
                Actual::Up { .. }
                | Actual::Down { .. }
                | Actual::Starting { .. }
                | Actual::Stopping { .. }
                | Actual::Draining { .. }
                | Actual::Backoff { .. }
                | Actual::Removing,
                _,
            ) => false,
        }
    }

    /// Whether it has failed for good, so that those that come after it need not wait.
    pub(crate) fn has_given_up(&self) -> bool {
        match &self.actual {
            Actual::Down { why: Why::Ended(_) | Why::GaveUp(_) | Why::Stopped | Why::Scheduled(_) | Why::Disabled }
            | Actual::Removing => true,
            Actual::Backoff { .. } => true,
            Actual::Down { why: Why::Created | Why::Waiting(_) | Why::Shutdown }
            | Actual::Starting { .. }
            | Actual::Up { .. }
            | Actual::Stopping { .. }
            | Actual::Draining { .. } => false,
        }
    }

    /// Whether it is down and starts as soon as it has what it needs.
    pub(crate) fn is_down_for_now(&self) -> bool {
        match &self.actual {
            Actual::Down { why: Why::Scheduled(_) | Why::Disabled } => false,
            Actual::Down {
                why: Why::Created | Why::Stopped | Why::Ended(_) | Why::Waiting(_) | Why::GaveUp(_) | Why::Shutdown,
            } => true,
            Actual::Starting { .. }
            | Actual::Up { .. }
            | Actual::Stopping { .. }
            | Actual::Draining { .. }
            | Actual::Backoff { .. }
            | Actual::Removing => false,
        }
    }

    /// Whether its program runs and is ready.
    pub(crate) fn is_up_and_ready(&self) -> bool {
        matches!(self.actual, Actual::Up { ready: Ready::Now, .. })
    }

    /// Whether it goes with its run. A container's own pod goes with the container instead.
    pub(crate) fn is_removed_on_exit(&self) -> bool {
        self.definition.remove_on_exit && self.definition.kind != Kind::Pod
    }

    /// Whether a process of it may exist, or for a pod its namespaces.
    pub(crate) fn has_processes(&self) -> bool {
        match &self.actual {
            Actual::Starting { .. } | Actual::Up { .. } | Actual::Stopping { .. } | Actual::Draining { .. } => true,
            Actual::Down { .. } | Actual::Backoff { .. } | Actual::Removing => false,
        }
    }

    /// Whether readiness is the start of its program.
    pub(crate) fn ready_when_started(&self) -> bool {
        matches!(self.definition.readiness.when, ReadyWhen::Started) && self.definition.kind != Kind::Job
    }

    /// When something has to be done about it by the clock alone.
    pub(crate) fn deadline_boot_ms(&self) -> Option<u64> {
        match &self.actual {
            Actual::Up { since, ready: Ready::NotYet, .. } => {
                [self.ready_by_boot_ms(*since), self.over_by_boot_ms(*since), self.task_over_by_boot_ms()]
                    .into_iter()
                    .flatten()
                    .min()
            }
            Actual::Up { since, ready: Ready::Now | Ready::NoLonger, .. } => self.over_by_boot_ms(*since),
            Actual::Starting { since } => {
                let started_by = behind(*since, self.definition.readiness.timeout_ms);
                started_by.into_iter().chain(self.task_over_by_boot_ms()).min()
            }
            Actual::Stopping { deadline_boot_ms, .. } => Some(*deadline_boot_ms),
            Actual::Backoff { until_boot_ms, .. } => {
                Some(self.task_over_by_boot_ms().map_or(*until_boot_ms, |over_by| over_by.min(*until_boot_ms)))
            }
            Actual::Down { why: Why::Waiting(_) | Why::Created } if self.wanted == Wanted::Up => {
                self.task_over_by_boot_ms()
            }
            Actual::Down { .. } | Actual::Draining { .. } | Actual::Removing => None,
        }
    }

    /// When a run since then is longer than it may be.
    fn over_by_boot_ms(&self, since: Moment) -> Option<u64> {
        behind(since, self.definition.run_limit_ms)
    }

    /// When a job's time for all its tries is over.
    pub(crate) fn task_over_by_boot_ms(&self) -> Option<u64> {
        let deadline_ms = self.definition.deadline_ms;
        let task = self.task.filter(|_| self.definition.kind == Kind::Job && deadline_ms > 0)?;
        Some(task.begun.boot_ms.saturating_add(u64::from(deadline_ms)))
    }

    /// Whether a job has no time left for another try.
    pub(crate) fn is_out_of_time(&self, now_boot_ms: u64) -> bool {
        self.task_over_by_boot_ms().is_some_and(|at| at <= now_boot_ms)
    }

    /// Whether a run since then is longer than it may be.
    pub(crate) fn is_over_its_limit(&self, since: Moment, now_boot_ms: u64) -> bool {
        self.over_by_boot_ms(since).is_some_and(|at| at <= now_boot_ms)
    }

    /// When a program that runs since then must be ready. While its start-up is asked about, that is what limits it.
    fn ready_by_boot_ms(&self, since: Moment) -> Option<u64> {
        let from = Moment { boot_ms: self.started_boot_ms.unwrap_or(since.boot_ms), ..since };
        // A job is ready when it has ended: what bounds that is its deadline.
        let is_bounded = self.definition.kind != Kind::Job && !self.asking.contains_key(&Aim::Startup);
        behind(from, self.definition.readiness.timeout_ms).filter(|_| is_bounded)
    }

    /// Its last run that has ended.
    #[must_use]
    pub fn last_run(&self) -> Option<&Run> {
        self.history.back()
    }

    pub(crate) fn remember(&mut self, run: Run) {
        if self.history.len() >= HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(run);
    }

    /// What is true of it.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.actual {
            Actual::Down { why } => State::Down { why: why.clone() },
            Actual::Starting { since } => State::Starting { since: *since },
            Actual::Up { since, ready, pid } => State::Up { since: *since, ready: *ready == Ready::Now, pid: *pid },
            Actual::Stopping { rung, deadline_boot_ms, .. } => {
                State::Stopping { rung: *rung, deadline_boot_ms: *deadline_boot_ms }
            }
            Actual::Draining { cause, .. } => State::Draining { cause: cause.clone() },
            Actual::Backoff { until_boot_ms, streak } => {
                State::Backoff { until_boot_ms: *until_boot_ms, streak: *streak }
            }
            Actual::Removing => State::Down { why: Why::Stopped },
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary {
            id: self.id,
            name: self.definition.name.clone(),
            kind: self.definition.kind,
            built_in: self.built_in,
            state: self.state(),
            wanted_up: self.wanted == Wanted::Up,
            created: self.created,
            restarts: self.restarts,
            last_run: self.history.back().cloned(),
            labels: self.definition.labels.clone(),
        }
    }

    pub(crate) fn detail(&self) -> Detail {
        Detail {
            summary: Summary { labels: Vec::new(), ..self.summary() },
            definition: self.definition.clone(),
            id_base: self.id_base,
            history: self.history.iter().cloned().collect(),
            cgroup: self.cgroup(),
            oom_kills: self.oom_kills,
            addresses: self.addresses.clone(),
        }
    }

    pub(crate) fn record(&self) -> WorkloadRecord {
        WorkloadRecord {
            id: self.id,
            definition: self.definition.clone(),
            id_base: self.id_base,
            wanted: match self.wanted {
                Wanted::Up => control::Wanted::Up,
                Wanted::Down | Wanted::Gone => control::Wanted::Down,
                Wanted::Disabled => control::Wanted::Disabled,
            },
            created: self.created,
            last_run: self.history.back().cloned(),
        }
    }
}

/// So long after a moment; 0 is never.
fn behind(since: Moment, wait_ms: u32) -> Option<u64> {
    (wait_ms > 0).then(|| since.boot_ms.saturating_add(u64::from(wait_ms)))
}

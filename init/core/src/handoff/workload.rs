//! One workload as a record, of what is handed over as well as of what a PID 1 that begins after a crash finds in /run.

use std::collections::VecDeque;

use byre_plan::{Origin, Plan, Policy, WorkloadId};
use byre_protocol::definition::Definition;
use byre_protocol::pod::{ADDRESSES, PodAddress};
use byre_protocol::probe::{Aim, Judgement};
use byre_protocol::status::{Cause, HISTORY, Moment, Run, Rung, Why};
use serde::{Deserialize, Serialize};

use super::{TakeOverError, bounded, count};
use crate::probes::Asking;
use crate::workload::{Actual, Ready, Task, Wanted, Workload};

#[derive(Serialize, Deserialize)]
pub(crate) struct WorkloadRecord {
    pub(crate) id: WorkloadId,
    pub(crate) definition: Definition,
    id_base: Option<u32>,
    pub(crate) built_in: bool,
    wanted: WantedRecord,
    actual: ActualRecord,
    pub(crate) run: u64,
    created: Moment,
    restarts: u32,
    streak: u32,
    start_once_down: bool,
    history: Vec<Run>,
    oom_kills: u32,
    task: Option<TaskRecord>,
    started_boot_ms: Option<u64>,
    asking: Vec<(Aim, AskingRecord)>,
    remove_if_start_fails: bool,
    durable: bool,
    pub(crate) adopted: bool,
    addresses: Vec<PodAddress>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct TaskRecord {
    begun: Moment,
    tries: u32,
}

#[derive(Serialize, Deserialize)]
struct AskingRecord {
    from_boot_ms: u64,
    at_boot_ms: Option<u64>,
    judgement: Judgement,
    failed: u32,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum ReadyRecord {
    NotYet,
    Now,
    NoLonger,
}

#[derive(Serialize, Deserialize)]
enum WantedRecord {
    Up,
    Down,
    Disabled,
    Gone,
}

#[derive(Serialize, Deserialize)]
enum ActualRecord {
    Down { why: Why },
    Starting { since: Moment },
    Up { since: Moment, ready: ReadyRecord, pid: u32 },
    Stopping { since: Moment, rung: Rung, deadline_boot_ms: u64, because: Option<Cause> },
    Draining { since: Moment, cause: Cause },
    Backoff { until_boot_ms: u64, streak: u32 },
    Removing,
}

impl WorkloadRecord {
    pub(crate) fn of(workload: &Workload) -> Self {
        let Workload {
            id,
            definition,
            // Checked again.
            plan: _,
            id_base,
            built_in,
            wanted,
            actual,
            run,
            created,
            restarts,
            streak,
            start_once_down,
            history,
            oom_kills,
            task,
            started_boot_ms,
            asking,
            remove_if_start_fails,
            durable,
            adopted,
            addresses,
        } = workload;
        Self {
            id: *id,
            definition: definition.clone(),
            id_base: *id_base,
            built_in: *built_in,
            wanted: WantedRecord::of(*wanted),
            actual: ActualRecord::of(actual),
            run: *run,
            created: *created,
            restarts: *restarts,
            streak: *streak,
            start_once_down: *start_once_down,
            history: history.iter().cloned().collect(),
            oom_kills: *oom_kills,
            task: task.map(|Task { begun, tries }| TaskRecord { begun, tries }),
            started_boot_ms: *started_boot_ms,
            asking: asking.iter().map(|(aim, asking)| (*aim, AskingRecord::of(*asking))).collect(),
            remove_if_start_fails: *remove_if_start_fails,
            durable: *durable,
            adopted: *adopted,
            addresses: addresses.clone(),
        }
    }

    pub(super) fn into_workload(self, policy: &Policy) -> Result<Workload, TakeOverError> {
        bounded("runs in a history", count(self.history.len()), HISTORY)?;
        bounded("addresses of a pod", count(self.addresses.len()), ADDRESSES)?;
        let origin = if self.built_in { Origin::VerifiedRoot } else { Origin::Client };
        let plan = Plan::check(self.definition.launch_in_pod(), policy, origin)
            .map_err(|refusal| TakeOverError::Refused { name: self.definition.name.clone(), refusal })?;
        Ok(Workload {
            id: self.id,
            definition: self.definition,
            plan,
            id_base: self.id_base,
            built_in: self.built_in,
            wanted: self.wanted.into_wanted(),
            actual: self.actual.into_actual(),
            run: self.run,
            created: self.created,
            restarts: self.restarts,
            streak: self.streak,
            start_once_down: self.start_once_down,
            history: VecDeque::from(self.history),
            oom_kills: self.oom_kills,
            task: self.task.map(|TaskRecord { begun, tries }| Task { begun, tries }),
            started_boot_ms: self.started_boot_ms,
            asking: self.asking.into_iter().map(|(aim, asking)| (aim, asking.into_asking())).collect(),
            remove_if_start_fails: self.remove_if_start_fails,
            durable: self.durable,
            adopted: self.adopted,
            addresses: self.addresses,
        })
    }
}

impl AskingRecord {
    fn of(Asking { from_boot_ms, at_boot_ms, judgement, failed }: Asking) -> Self {
        Self { from_boot_ms, at_boot_ms, judgement, failed }
    }

    fn into_asking(self) -> Asking {
        let Self { from_boot_ms, at_boot_ms, judgement, failed } = self;
        Asking { from_boot_ms, at_boot_ms, judgement, failed }
    }
}

impl ReadyRecord {
    fn of(ready: Ready) -> Self {
        match ready {
            Ready::NotYet => Self::NotYet,
            Ready::Now => Self::Now,
            Ready::NoLonger => Self::NoLonger,
        }
    }

    fn into_ready(self) -> Ready {
        match self {
            Self::NotYet => Ready::NotYet,
            Self::Now => Ready::Now,
            Self::NoLonger => Ready::NoLonger,
        }
    }
}

impl WantedRecord {
    fn of(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Up => Self::Up,
            Wanted::Down => Self::Down,
            Wanted::Disabled => Self::Disabled,
            Wanted::Gone => Self::Gone,
        }
    }

    fn into_wanted(self) -> Wanted {
        match self {
            Self::Up => Wanted::Up,
            Self::Down => Wanted::Down,
            Self::Disabled => Wanted::Disabled,
            Self::Gone => Wanted::Gone,
        }
    }
}

impl ActualRecord {
    fn of(actual: &Actual) -> Self {
        match actual.clone() {
            Actual::Down { why } => Self::Down { why },
            Actual::Starting { since } => Self::Starting { since },
            Actual::Up { since, ready, pid } => Self::Up { since, ready: ReadyRecord::of(ready), pid },
            Actual::Stopping { since, rung, deadline_boot_ms, because } => {
                Self::Stopping { since, rung, deadline_boot_ms, because }
            }
            Actual::Draining { since, cause } => Self::Draining { since, cause },
            Actual::Backoff { until_boot_ms, streak } => Self::Backoff { until_boot_ms, streak },
            Actual::Removing => Self::Removing,
        }
    }

    fn into_actual(self) -> Actual {
        match self {
            Self::Down { why } => Actual::Down { why },
            Self::Starting { since } => Actual::Starting { since },
            Self::Up { since, ready, pid } => Actual::Up { since, ready: ready.into_ready(), pid },
            Self::Stopping { since, rung, deadline_boot_ms, because } => {
                Actual::Stopping { since, rung, deadline_boot_ms, because }
            }
            Self::Draining { since, cause } => Actual::Draining { since, cause },
            Self::Backoff { until_boot_ms, streak } => Actual::Backoff { until_boot_ms, streak },
            Self::Removing => Actual::Removing,
        }
    }
}

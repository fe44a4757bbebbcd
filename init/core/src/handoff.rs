//! PID 1's mind as records, for the PID 1 that follows it, and back.
//!
//! The records have types of their own, so that a change of the core's tables is a change of the format only when somebody says so:
//! every table is taken apart without `..`, and a new field does not compile until it is carried over (and
//! [`byre_protocol::handoff::VERSION`] raised). What is derived from something else is derived again: plans are checked against the
//! policy as if they were asked for now, names are read off the workloads.
//!
//! A state that breaks a bound, names something twice or speaks of something that is not there is refused whole. Nothing here may
//! panic on any bytes.

mod workload;

use std::collections::BTreeMap;

use byre_plan::{Name, Plan, Policy, Process, Refusal, WorkloadId};
use byre_protocol::control::{Change, EXECS_PER_WORKLOAD, Reply, ShutdownAction, WORKLOADS};
use byre_protocol::definition::{GROUP_MEMBERS, Role};
use byre_protocol::handoff::{HandoffError, Reader, Writer};
use byre_protocol::probe::Aim;
use byre_protocol::status::Moment;
use serde::{Deserialize, Serialize};

use crate::core::{Channel, Core};
use crate::durable::{Records, UNACKNOWLEDGED};
use crate::event::{ChannelId, ExecId};
use crate::execs::{EXEC_SESSIONS, Exec, Purpose};
use crate::pending::{Await, Caller, PENDING, Pending, PendingCalls};
use crate::shutdown::Ending;

pub(crate) use workload::WorkloadRecord;

/// The node's own services, beside the workloads that clients may make: the root has about twenty.
const SERVICES: usize = 256;
/// Control channels: one for each service that has one, and those of runs that are ending.
const CHANNELS: usize = SERVICES * 2;
/// Conditions of one call: its record and its start, of each member of a group.
const AWAITS: usize = 2 * GROUP_MEMBERS + 8;

/// Why a state was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// It cannot be read.
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    /// A table is too long.
    #[error("the state has {count} {what}, the most is {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// The bound.
        most: usize,
    },
    /// Something is there more than once.
    #[error("the state has {what} {which} twice")]
    Twice {
        /// What.
        what: &'static str,
        /// Which.
        which: String,
    },
    /// Something is spoken of that is not there.
    #[error("the state speaks of {what} {which}, which it does not have")]
    Unknown {
        /// What.
        what: &'static str,
        /// Which.
        which: String,
    },
    /// A number was given out that is still to be given out.
    #[error("the state would give out {what} {number} again")]
    Reused {
        /// What.
        what: &'static str,
        /// Which.
        number: u64,
    },
    /// A workload's plan does not pass the policy.
    #[error("{name} cannot be taken over: {refusal}")]
    Refused {
        /// The workload's name.
        name: Name,
        /// What the policy says.
        refusal: Refusal,
    },
}

#[derive(Serialize, Deserialize)]
struct Head {
    policy: Option<Policy>,
    now: Moment,
    next_exec: u64,
    next_event: u64,
    next_record: u64,
    replayed: bool,
    ending: Option<HeadEnding>,
    channels: u64,
    workloads: u64,
    execs: u64,
    calls: u64,
    records: u64,
}

#[derive(Serialize, Deserialize)]
struct HeadEnding {
    action: ShutdownAction,
    deadline_boot_ms: u64,
    finished: bool,
}

#[derive(Serialize, Deserialize)]
struct ChannelRecord {
    id: u64,
    role: Role,
    subscribed: bool,
}

#[derive(Serialize, Deserialize)]
struct ExecRecord {
    id: u64,
    workload: WorkloadId,
    process: Process,
    purpose: PurposeRecord,
    running: bool,
    kill_at_boot_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
enum PurposeRecord {
    Client(CallerRecord),
    Probe { run: u64, aim: Aim },
    StopHook(u64),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct CallerRecord {
    channel: u64,
    sequence: u64,
}

#[derive(Serialize, Deserialize)]
struct CallRecord {
    caller: CallerRecord,
    awaits: Vec<AwaitRecord>,
    reply: Reply,
    deadline_boot_ms: u64,
}

#[derive(Serialize, Deserialize)]
enum AwaitRecord {
    Record(u64),
    Running(WorkloadId),
    Down(WorkloadId),
    Gone(WorkloadId),
    Reexec,
    Armed,
}

#[derive(Serialize, Deserialize)]
struct UnacknowledgedRecord {
    number: u64,
    change: Change,
}

impl Core {
    /// Writes everything this machine knows. Between two steps only: what a step leaves to be done is not part of it.
    ///
    /// # Errors
    /// If it is too long.
    pub fn hand_over(&self, writer: &mut Writer) -> Result<(), HandoffError> {
        let Self {
            policy,
            workloads,
            // Read off the workloads.
            names: _,
            channels,
            execs,
            next_exec,
            pending: PendingCalls { calls },
            records: Records { next, unacknowledged, replayed },
            ending,
            now,
            // Empty between two steps.
            actions: _,
            next_event,
            // False between two steps.
            may_advance: _,
        } = self;
        writer.push(
            "head",
            &Head {
                policy: policy.clone(),
                now: *now,
                next_exec: *next_exec,
                next_event: *next_event,
                next_record: *next,
                replayed: *replayed,
                ending: ending.as_ref().map(HeadEnding::of),
                channels: count(channels.len()),
                workloads: count(workloads.len()),
                execs: count(execs.len()),
                calls: count(calls.len()),
                records: count(unacknowledged.len()),
            },
        )?;
        for (ChannelId(id), Channel { role, subscribed }) in channels {
            writer.push("channel", &ChannelRecord { id: *id, role: *role, subscribed: *subscribed })?;
        }
        for workload in workloads.values() {
            writer.push("workload", &WorkloadRecord::of(workload))?;
        }
        for (id, exec) in execs {
            writer.push("exec session", &ExecRecord::of(*id, exec))?;
        }
        for call in calls {
            writer.push("call", &CallRecord::of(call))?;
        }
        for (number, change) in unacknowledged {
            writer.push("record", &UnacknowledgedRecord { number: *number, change: change.clone() })?;
        }
        Ok(())
    }

    /// Reads what [`Core::hand_over`] wrote.
    ///
    /// # Errors
    /// If it cannot be read, breaks a bound, or contradicts itself.
    pub fn take_over(reader: &mut Reader<'_>) -> Result<Self, TakeOverError> {
        let head: Head = reader.next("head")?;
        let mut core = Self {
            policy: head.policy,
            workloads: BTreeMap::new(),
            names: BTreeMap::new(),
            channels: BTreeMap::new(),
            execs: BTreeMap::new(),
            next_exec: head.next_exec,
            pending: PendingCalls::default(),
            records: Records { next: head.next_record, unacknowledged: BTreeMap::new(), replayed: head.replayed },
            ending: head.ending.map(HeadEnding::into_ending),
            now: head.now,
            actions: Vec::new(),
            next_event: head.next_event,
            may_advance: false,
        };
        for _ in 0..bounded("channels", head.channels, CHANNELS)? {
            let ChannelRecord { id, role, subscribed } = reader.next("channel")?;
            once("channel", core.channels.insert(ChannelId(id), Channel { role, subscribed }), id)?;
        }
        for _ in 0..bounded("workloads", head.workloads, WORKLOADS.saturating_add(SERVICES))? {
            core.take_workload(reader.next("workload")?)?;
        }
        for _ in 0..bounded("exec sessions", head.execs, EXEC_SESSIONS)? {
            core.take_exec(reader.next("exec session")?)?;
        }
        for _ in 0..bounded("calls", head.calls, PENDING)? {
            core.take_call(reader.next("call")?)?;
        }
        for _ in 0..bounded("records", head.records, UNACKNOWLEDGED.saturating_mul(2))? {
            let UnacknowledgedRecord { number, change } = reader.next("record")?;
            fresh("record", number, core.records.next)?;
            once("record", core.records.unacknowledged.insert(number, change), number)?;
        }
        Ok(core)
    }

    /// Reads a state that is nothing but a core: what fuzzing and simulation feed.
    ///
    /// # Errors
    /// As [`Core::take_over`], or if something follows.
    pub fn decode(bytes: &[u8]) -> Result<Self, TakeOverError> {
        let mut reader = Reader::new(bytes)?;
        let core = Self::take_over(&mut reader)?;
        reader.finish()?;
        Ok(core)
    }

    pub(crate) fn take_workload(&mut self, record: WorkloadRecord) -> Result<(), TakeOverError> {
        let id = record.id;
        let name = record.definition.name.clone();
        let policy = self.policy.as_ref().ok_or_else(|| unknown("the policy of", &name))?;
        let workload = record.into_workload(policy)?;
        once("name", self.names.insert(name.clone(), id), &name)?;
        once("workload", self.workloads.insert(id, workload), id)
    }

    fn take_exec(&mut self, record: ExecRecord) -> Result<(), TakeOverError> {
        let ExecRecord { id, workload, process, purpose, running, kill_at_boot_ms } = record;
        fresh("exec session", id, self.next_exec)?;
        let in_workload = self.execs.values().filter(|exec| exec.workload == workload).count();
        // Probes come on top of what clients may have.
        bounded("exec sessions of one workload", count(in_workload), EXECS_PER_WORKLOAD.saturating_mul(2))?;
        let (Some(known), Some(policy)) = (self.workloads.get(&workload), &self.policy) else {
            return Err(unknown("workload", workload));
        };
        let plan = Plan::check_exec(process, &known.plan, policy, known.origin())
            .map_err(|refusal| TakeOverError::Refused { name: known.definition.name.clone(), refusal })?;
        let purpose = match purpose {
            // The channel may be gone: then the session is being hung up.
            PurposeRecord::Client(caller) => Purpose::Client(caller.into_caller()),
            PurposeRecord::Probe { run, aim } => Purpose::Probe { run, aim },
            PurposeRecord::StopHook(run) => Purpose::StopHook(run),
        };
        let exec = Exec { workload, plan, purpose, running, kill_at_boot_ms };
        once("exec session", self.execs.insert(ExecId(id), exec), id)
    }

    fn take_call(&mut self, record: CallRecord) -> Result<(), TakeOverError> {
        let CallRecord { caller, awaits, reply, deadline_boot_ms } = record;
        let caller = caller.into_caller();
        bounded("conditions of a call", count(awaits.len()), AWAITS)?;
        if !self.channels.contains_key(&caller.channel) {
            return Err(unknown("channel", caller.channel.0));
        }
        let awaits = awaits.into_iter().map(AwaitRecord::into_await).collect();
        self.pending.calls.push(Pending { caller, awaits, reply, deadline_boot_ms });
        Ok(())
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn bounded(what: &'static str, count: u64, most: usize) -> Result<u64, TakeOverError> {
    if usize::try_from(count).is_ok_and(|count| count <= most) {
        Ok(count)
    } else {
        Err(TakeOverError::TooMany { what, count, most })
    }
}

fn once<T>(what: &'static str, replaced: Option<T>, which: impl ToString) -> Result<(), TakeOverError> {
    match replaced {
        None => Ok(()),
        Some(_) => Err(TakeOverError::Twice { what, which: which.to_string() }),
    }
}

fn fresh(what: &'static str, number: u64, next: u64) -> Result<(), TakeOverError> {
    if number < next { Ok(()) } else { Err(TakeOverError::Reused { what, number }) }
}

fn unknown(what: &'static str, which: impl ToString) -> TakeOverError {
    TakeOverError::Unknown { what, which: which.to_string() }
}

impl HeadEnding {
    fn of(ending: &Ending) -> Self {
        let Ending { action, deadline_boot_ms, finished } = ending;
        Self { action: *action, deadline_boot_ms: *deadline_boot_ms, finished: *finished }
    }

    fn into_ending(self) -> Ending {
        let Self { action, deadline_boot_ms, finished } = self;
        Ending { action, deadline_boot_ms, finished }
    }
}

impl ExecRecord {
    fn of(ExecId(id): ExecId, exec: &Exec) -> Self {
        let Exec { workload, plan, purpose, running, kill_at_boot_ms } = exec;
        let purpose = match purpose {
            Purpose::Client(caller) => PurposeRecord::Client(CallerRecord::of(*caller)),
            Purpose::Probe { run, aim } => PurposeRecord::Probe { run: *run, aim: *aim },
            Purpose::StopHook(run) => PurposeRecord::StopHook(*run),
        };
        let process = plan.process().clone();
        Self { id, workload: *workload, process, purpose, running: *running, kill_at_boot_ms: *kill_at_boot_ms }
    }
}

impl CallerRecord {
    fn of(Caller { channel: ChannelId(channel), sequence }: Caller) -> Self {
        Self { channel, sequence }
    }

    fn into_caller(self) -> Caller {
        let Self { channel, sequence } = self;
        Caller { channel: ChannelId(channel), sequence }
    }
}

impl CallRecord {
    fn of(call: &Pending) -> Self {
        let Pending { caller, awaits, reply, deadline_boot_ms } = call;
        let awaits = awaits.iter().copied().map(AwaitRecord::of).collect();
        Self { caller: CallerRecord::of(*caller), awaits, reply: reply.clone(), deadline_boot_ms: *deadline_boot_ms }
    }
}

impl AwaitRecord {
    fn of(what: Await) -> Self {
        match what {
            Await::Record(number) => Self::Record(number),
            Await::Running(id) => Self::Running(id),
            Await::Down(id) => Self::Down(id),
            Await::Gone(id) => Self::Gone(id),
            Await::Reexec => Self::Reexec,
            Await::Armed => Self::Armed,
        }
    }

    fn into_await(self) -> Await {
        match self {
            Self::Record(number) => Await::Record(number),
            Self::Running(id) => Await::Running(id),
            Self::Down(id) => Await::Down(id),
            Self::Gone(id) => Await::Gone(id),
            Self::Reexec => Await::Reexec,
            Self::Armed => Await::Armed,
        }
    }
}

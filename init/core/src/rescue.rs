//! A machine rebuilt after PID 1 has crashed: from one small record per workload and from what the kernel still has.
//!
//! ```text
//!   records ──┐
//!             ├─▶ Rescued ─▶ every workload is what its cgroup says it is ─▶ services with a control channel start again
//!   cgroups ──┘
//! ```
//!
//! A record is written before its workload is acted on, so the kernel never has more than the records say, but may have less: a
//! launch whose report is lost, a first process whose end nobody took. What such a run was is over; what is left of it is drained like
//! any other, and its restart policy decides. Calls under way and exec sessions are lost with their channels. A cgroup that lives
//! without a record is adopted: it can be stopped, and nobody kills or restarts it by himself.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use byre_plan::{Capabilities, LaunchRequest, Name, Origin, Plan, Policy, Process, Program, User, WorkloadId};
use byre_protocol::control::ShutdownAction;
use byre_protocol::definition::{Definition, Grant, Kind, LogPolicy, Readiness, Restart, Stop};
use byre_protocol::handoff::{HandoffError, Reader, Writer};
use byre_protocol::status::{Cause, Rung, StartFailure};

use crate::action::Action;
use crate::core::Core;
use crate::handoff::{TakeOverError, WorkloadRecord};
use crate::workload::{Actual, Ready, Wanted, Workload, cgroup_name};

/// Begins the name of an adopted workload; that of its cgroup follows.
pub const UNKNOWN: &str = "unknown-";

/// What the kernel has of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alive {
    /// The first process of this run; it may have ended, but nobody has taken its status.
    Process {
        /// Which run.
        run: u64,
    },
    /// Processes, but not the first one.
    Others,
    /// Nothing.
    Nothing,
}

/// A live cgroup that no record speaks of.
#[derive(Debug, Clone)]
pub struct Stray {
    /// Its identity: that of its cgroup, or a fresh one.
    pub id: WorkloadId,
    /// `unknown-` and what its cgroup is called.
    pub name: Name,
    /// Whether it lies among the services.
    pub built_in: bool,
}

/// What is left after a crash.
#[derive(Debug, Clone)]
pub struct Rescued {
    /// What clients may ask for.
    pub policy: Policy,
    /// What [`Core::record_of`] wrote of each workload.
    pub records: Vec<Vec<u8>>,
    /// What the kernel has of them; nothing for those that are not named.
    pub alive: BTreeMap<WorkloadId, Alive>,
    /// What it has beside them.
    pub strays: Vec<Stray>,
    /// The shutdown that was under way.
    pub ending: Option<ShutdownAction>,
}

impl Core {
    /// Rebuilds a machine that has not booted.
    pub(crate) fn rescue(&mut self, rescued: Rescued) {
        let Rescued { policy, records, alive, strays, ending } = rescued;
        self.policy = Some(policy);
        // Clients see a gap, which is the truth; there were fewer events than 1024 in each millisecond.
        self.next_event = self.now.boot_ms.saturating_mul(1024);
        for record in records {
            match self.take_record(&record) {
                Ok(()) => {}
                // Its cgroup, if it lives, is among those that are adopted next time; now it is left alone.
                Err(error) => self.say(format!("a workload is not taken over: {error}")),
            }
        }
        let ids: Vec<WorkloadId> = self.workloads.keys().copied().collect();
        for id in &ids {
            self.confront(*id, alive.get(id).copied().unwrap_or(Alive::Nothing));
        }
        for stray in strays {
            self.adopt(stray);
        }
        for id in ids {
            self.restart_if_cut_off(id);
            self.record_put(id);
        }
        if let Some(action) = ending {
            self.shutdown_asked(action);
        }
        self.reconsider();
    }

    /// Makes what is said of a workload true.
    fn confront(&mut self, id: WorkloadId, alive: Alive) {
        let now = self.now;
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        let run = workload.run;
        let adopted = workload.adopted;
        // Which process of an adopted one was the first, nobody knows.
        let has_first = alive == Alive::Process { run } || (adopted && alive == Alive::Others);
        let next = match (workload.actual.clone(), has_first) {
            (Actual::Up { since, ready, pid }, true) => {
                workload.ask_anew(now.boot_ms);
                Some(Actual::Up { since, ready, pid })
            }
            (Actual::Stopping { since, rung: Rung::Hook, deadline_boot_ms, because }, true) => {
                // The hook's session is lost; its end would have brought the signal.
                self.send_stop_signal(id);
                Some(Actual::Stopping { since, rung: Rung::Signal, deadline_boot_ms, because })
            }
            (stopping @ Actual::Stopping { .. }, true) => Some(stopping),
            (Actual::Starting { since }, _) => Some(Actual::Draining { since, cause: lost_launch() }),
            (Actual::Up { since, .. }, false) => Some(Actual::Draining { since, cause: Cause::Interrupted }),
            (Actual::Stopping { since, because, .. }, false) => {
                Some(Actual::Draining { since, cause: because.unwrap_or(Cause::Signal(9)) })
            }
            (draining @ Actual::Draining { .. }, _) => Some(draining),
            (Actual::Down { .. } | Actual::Backoff { .. } | Actual::Removing, _) => None,
        };
        match next {
            Some(up @ Actual::Up { .. }) => self.set_actual(id, up),
            Some(other) => {
                let to_be_killed = !matches!(other, Actual::Stopping { rung: Rung::Signal, .. });
                self.set_actual(id, other);
                if to_be_killed {
                    self.actions.push(Action::KillAll { id, run });
                }
            }
            None if matches!(self.workloads.get(&id).map(|one| &one.actual), Some(Actual::Removing)) => {
                self.begin_removal(id);
            }
            None => {}
        }
    }

    /// A service whose control channel is lost cannot go on: it is started again, as if it had been cut off.
    fn restart_if_cut_off(&mut self, id: WorkloadId) {
        let Some(workload) = self.workloads.get(&id) else { return };
        let controlled = workload.definition.grants.iter().any(|grant| matches!(grant, Grant::Control(_)));
        let run = workload.run;
        if let (true, Actual::Up { since, .. }) = (controlled, &workload.actual) {
            let since = *since;
            self.set_actual(id, Actual::Draining { since, cause: Cause::Interrupted });
            self.actions.push(Action::KillAll { id, run });
        }
    }

    fn adopt(&mut self, stray: Stray) {
        let Stray { id, name, built_in } = stray;
        let Some(policy) = &self.policy else { return };
        let definition = stray_definition(name.clone());
        // Its plan is never carried out; the check only makes one.
        let Ok(plan) = Plan::check(definition.launch.clone(), policy, Origin::VerifiedRoot) else { return };
        if self.names.contains_key(&name) || self.workloads.contains_key(&id) {
            return self.say(format!("{name} lives and cannot be adopted: its name or identity is taken"));
        }
        let mut workload = Workload::new(id, definition, plan, None, self.now);
        workload.built_in = built_in;
        workload.adopted = true;
        workload.wanted = Wanted::Up;
        workload.run = 1;
        workload.actual = Actual::Up { since: self.now, ready: Ready::Now, pid: 0 };
        self.say(format!("{name} lives and no record speaks of it; it is adopted, `byrectl stop {name}` ends it"));
        self.names.insert(name, id);
        self.workloads.insert(id, workload);
    }
}

/// What a record says before anything is rebuilt from it.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its identity.
    pub id: WorkloadId,
    /// What it is.
    pub definition: Definition,
    /// Whether its cgroup lies among the services.
    pub built_in: bool,
    /// What its cgroup is called there.
    pub cgroup_name: String,
    /// Whether it was adopted itself.
    pub adopted: bool,
    /// Its last run.
    pub run: u64,
}

/// The record of one workload in /run: what a PID 1 that begins after a crash knows of it.
impl Core {
    /// A workload's record.
    ///
    /// # Errors
    /// If there is no such workload, or its record is too long.
    pub fn record_of(&self, id: WorkloadId) -> Result<Vec<u8>, HandoffError> {
        let mut writer = Writer::new();
        if let Some(workload) = self.workloads.get(&id) {
            writer.push("workload", &WorkloadRecord::of(workload))?;
        }
        Ok(writer.finish())
    }

    /// What a record says of where its workload is.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn known_in(record: &[u8]) -> Result<Known, HandoffError> {
        let mut reader = Reader::new(record)?;
        let record: WorkloadRecord = reader.next("workload")?;
        let cgroup_name = cgroup_name(record.id, &record.definition.name, record.built_in, record.adopted);
        Ok(Known {
            id: record.id,
            built_in: record.built_in,
            adopted: record.adopted,
            cgroup_name,
            run: record.run,
            definition: record.definition,
        })
    }

    /// Takes one workload from its record.
    pub(crate) fn take_record(&mut self, record: &[u8]) -> Result<(), TakeOverError> {
        let mut reader = Reader::new(record)?;
        self.take_workload(reader.next("workload")?)?;
        Ok(reader.finish()?)
    }
}

impl Workload {
    /// Changes when its record does: a hash of all of it that can change.
    #[must_use]
    pub fn mark(&self) -> u64 {
        let Self {
            // These stay what they were when it was made.
            id: _,
            definition: _,
            plan: _,
            id_base: _,
            built_in: _,
            created: _,
            adopted: _,
            remove_if_start_fails: _,
            // Its attempts are made anew after a crash; that they are made follows from the rest.
            asking: _,
            // Grows with every end of a run, as the next four do.
            history: _,
            wanted,
            actual,
            run,
            restarts,
            streak,
            start_once_down,
            oom_kills,
            started_boot_ms,
            task,
            durable,
            addresses,
        } = self;
        let mut hasher = DefaultHasher::new();
        (wanted, actual, run, restarts, streak).hash(&mut hasher);
        (start_once_down, oom_kills, started_boot_ms, task, durable, addresses).hash(&mut hasher);
        hasher.finish()
    }
}

/// What is put in the place of a definition that nobody has any more.
fn stray_definition(name: Name) -> Definition {
    Definition {
        name,
        kind: Kind::Container,
        launch: LaunchRequest::on_host(Process {
            program: Program::Path,
            args: vec!["/adopted".to_owned()],
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: User::default(),
            terminal: None,
            capabilities: Capabilities { bounding: 0, effective: 0, permitted: 0, inheritable: 0, ambient: 0 },
            rlimits: Vec::new(),
            no_new_privileges: true,
            oom_score_adj: None,
            scheduling: byre_plan::Scheduling::default(),
            labels: byre_plan::Labels::default(),
        }),
        needs: Vec::new(),
        after: Vec::new(),
        restart: Restart::default(),
        readiness: Readiness::default(),
        stop: Stop::default(),
        log: LogPolicy::default(),
        grants: Vec::new(),
        labels: Vec::new(),
        open_stdin: false,
        remove_on_exit: false,
        shutdown_priority: 0,
        binds_to: Vec::new(),
        deadline_ms: 0,
        run_limit_ms: 0,
        startup: None,
        liveness: None,
        pod: None,
        network: None,
        schedule: None,
        group: None,
    }
}

fn lost_launch() -> Cause {
    let step = "report of the launch child, which was lost when PID 1 crashed".to_owned();
    Cause::StartFailed(StartFailure { step, subject: String::new(), errno: 0 })
}

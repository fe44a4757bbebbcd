//! What `byred state` puts on disk for PID 1, and what it brings back at boot.
//!
//! A change is numbered, kept until it is acknowledged, and sent again to a state service that was restarted. PID 1 never waits:
//! the client's answer does.

use std::collections::BTreeMap;

use byre_plan::{Origin, Plan, WorkloadId};
use byre_protocol::control::{self, Change, Notice, RefusedCode, WorkloadRecord};
use byre_protocol::definition::{RestartPolicy, Role};
use byre_protocol::status::{Cause, Run, Why};

use crate::action::{Action, Attachment};
use crate::core::Core;
use crate::event::ChannelId;
use crate::pending::Await;
use crate::workload::{Actual, Wanted, Workload};

/// Changes that are not on disk yet: every workload's end at once, twice.
pub(crate) const UNACKNOWLEDGED: usize = 4096;

/// Changes that are not on disk yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records {
    pub(crate) next: u64,
    pub(crate) unacknowledged: BTreeMap<u64, Change>,
    pub(crate) replayed: bool,
}

impl Records {
    pub(crate) fn len(&self) -> usize {
        self.unacknowledged.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.unacknowledged.len() >= UNACKNOWLEDGED
    }
}

impl Core {
    /// Puts a workload's present record on its way; returns its number. The node's own services have none, and what is being removed has
    /// had its last.
    pub(crate) fn record_put(&mut self, id: WorkloadId) -> Option<u64> {
        let workload = self.workloads.get(&id)?;
        if workload.built_in || workload.adopted || matches!(workload.actual, Actual::Removing) {
            return None;
        }
        Some(self.record(Change::Put(Box::new(workload.record()))))
    }

    fn record(&mut self, change: Change) -> u64 {
        let number = self.records.next;
        self.records.next = number.saturating_add(1);
        if let Change::Put(record) = &change {
            // An older state of the same workload that nobody waits for need not be written any more.
            let id = record.id;
            let pending = &self.pending;
            self.records.unacknowledged.retain(|number, older| match older {
                Change::Put(older) => older.id != id || pending.waits_for(Await::Record(*number)),
                Change::Remove(_) => true,
            });
        }
        self.records.unacknowledged.insert(number, change.clone());
        let notice = Notice::Record { record: number, change: Box::new(change) };
        self.notify_role(Role::State, &notice, Attachment::None);
        number
    }

    pub(crate) fn offer_records(&mut self, channel: ChannelId) {
        for (record, change) in self.records.unacknowledged.clone() {
            self.notify(channel, Notice::Record { record, change: Box::new(change) }, Attachment::None);
        }
    }

    /// A record is on disk.
    pub(crate) fn recorded(&mut self, number: u64) {
        let change = self.records.unacknowledged.remove(&number);
        self.met(Await::Record(number));
        match change {
            Some(Change::Remove(id)) => self.actions.push(Action::RemoveFiles { id }),
            Some(Change::Put(record)) => {
                if let Some(workload) = self.workloads.get_mut(&record.id) {
                    workload.durable = true;
                }
            }
            None => {}
        }
    }

    /// A record could not be written: those who wait for it are told.
    pub(crate) fn record_failed(&mut self, number: u64, text: &str) {
        let change = self.records.unacknowledged.remove(&number);
        for (caller, reply) in self.pending.failed(Await::Record(number), RefusedCode::NotDurable, text) {
            self.answer(caller, reply, Attachment::None);
        }
        match change {
            Some(Change::Put(record)) => self.forget_if_only_created(record.id),
            Some(Change::Remove(id)) => self.keep_after_all(id, text),
            None => {}
        }
    }

    /// A removal that is not on disk has not happened: the workload is there, stopped, and can be removed again.
    fn keep_after_all(&mut self, id: WorkloadId, text: &str) {
        if let Some(workload) = self.workloads.get_mut(&id) {
            workload.wanted = Wanted::Down;
        }
        self.set_actual(id, Actual::Down { why: Why::Stopped });
        self.record_put(id);
        for (caller, reply) in self.pending.failed(Await::Gone(id), RefusedCode::NotDurable, text) {
            self.answer(caller, reply, Attachment::None);
        }
    }

    /// A workload whose creation was refused is undone.
    fn forget_if_only_created(&mut self, id: WorkloadId) {
        let only_created = self.workloads.get(&id).is_some_and(|workload| {
            workload.run == 0 && matches!(workload.actual, Actual::Down { why: Why::Created }) && !workload.durable
        });
        if !only_created {
            return;
        }
        // A later record of it may still be written: then it is taken away behind that one, and not before.
        let is_under_way = |change: &Change| matches!(change, Change::Put(record) if record.id == id);
        if self.records.unacknowledged.values().any(is_under_way) {
            if let Some(workload) = self.workloads.get_mut(&id) {
                workload.wanted = Wanted::Gone;
            }
            self.begin_removal(id);
        } else {
            self.forget(id);
        }
    }

    /// Everything of it is down: take its record away, then its files.
    pub(crate) fn begin_removal(&mut self, id: WorkloadId) {
        self.set_actual_quietly(id, Actual::Removing);
        // What is bound to it loses it now: a job that is done counts as ready until here.
        self.reconsider();
        self.record(Change::Remove(id));
    }

    /// Its files are gone.
    pub(crate) fn files_removed(&mut self, id: WorkloadId, removed: bool) {
        let Some(workload) = self.workloads.get(&id) else { return };
        if !removed {
            let name = workload.definition.name.clone();
            self.say(format!("files of {name} ({id}) were not all removed; the next boot tries again"));
        }
        self.tell(id, byre_protocol::control::What::Removed);
        self.notify_role(Role::Log, &Notice::LogRemove { id }, Attachment::None);
        self.met(Await::Gone(id));
        self.forget(id);
    }

    pub(crate) fn forget(&mut self, id: WorkloadId) {
        self.end_execs_of(id);
        if let Some(workload) = self.workloads.remove(&id) {
            self.names.remove(&workload.definition.name);
            self.actions.push(Action::Forget { id });
            // A pod that was its own goes after it.
            self.reconsider();
        }
    }

    /// A workload that was on disk. One that is already known is the state service's restart, and PID 1 knows better.
    pub(crate) fn replay(&mut self, record: WorkloadRecord) {
        let WorkloadRecord { id, definition, id_base, wanted, created, last_run } = record;
        if self.records.replayed || self.workloads.contains_key(&id) {
            return;
        }
        let name = definition.name.clone();
        let Some(policy) = &self.policy else { return };
        if self.members(&name).next().is_some() {
            self.say(format!("container {name} ({id}) is not taken over: its name is taken by a service or a group"));
            return;
        }
        let plan = match Plan::check(definition.launch_in_pod(), policy, Origin::Client) {
            Ok(plan) => plan,
            Err(refusal) => {
                self.say(format!("container {name} ({id}) is not taken over: {refusal}"));
                return;
            }
        };
        let policy = definition.restart.policy;
        let mut workload = Workload::new(id, definition, plan, id_base, created);
        workload.durable = true;
        workload.actual = Actual::Down { why: Why::Stopped };
        workload.history.extend(last_run);
        let wanted_up = wanted == control::Wanted::Up;
        if wanted == control::Wanted::Disabled {
            workload.wanted = Wanted::Disabled;
            workload.actual = Actual::Down { why: Why::Disabled };
        } else if wanted_up && workload.wait_for_its_time(self.now) {
            workload.wanted = Wanted::Up;
        } else if wanted_up {
            match policy {
                RestartPolicy::Never => {
                    let cause = Cause::Interrupted;
                    workload.remember(Run { started: self.now, ended: self.now, cause: cause.clone() });
                    workload.actual = Actual::Down { why: Why::Ended(cause) };
                }
                RestartPolicy::OnFailure(_) | RestartPolicy::Always | RestartPolicy::UnlessStopped => {
                    workload.wanted = Wanted::Up;
                }
            }
        } else if policy == RestartPolicy::Always {
            workload.wanted = Wanted::Up;
        }
        let differs = wanted_up != (workload.wanted == Wanted::Up);
        self.names.insert(name, id);
        self.workloads.insert(id, workload);
        if differs {
            self.record_put(id);
        }
        self.reconsider();
    }

    /// All records are back. What was to be removed on exit and lost its run with the power is removed now.
    pub(crate) fn replay_end(&mut self) {
        if std::mem::replace(&mut self.records.replayed, true) {
            return;
        }
        let leftovers: Vec<WorkloadId> =
            self.workloads
                .values()
                .filter(|workload| workload.is_removed_on_exit() && workload.wanted != Wanted::Up)
                // After a crash of PID 1 there are others, which have run or are yet to run.
                .filter(|workload| workload.run == 0)
                .filter(|workload| match &workload.actual {
                    Actual::Down { why: Why::Stopped | Why::Ended(_) } => true,
                    Actual::Down {
                        why:
                            Why::Created
                            | Why::Waiting(_)
                            | Why::GaveUp(_)
                            | Why::Shutdown
                            | Why::Scheduled(_)
                            | Why::Disabled,
                    }
                    | Actual::Starting { .. }
                    | Actual::Up { .. }
                    | Actual::Stopping { .. }
                    | Actual::Draining { .. }
                    | Actual::Backoff { .. }
                    | Actual::Removing => false,
                })
                .map(Workload::id)
                .collect();
        for id in leftovers {
            if let Some(workload) = self.workloads.get_mut(&id) {
                workload.wanted = Wanted::Gone;
            }
            self.begin_removal(id);
        }
        let count = self.workloads.values().filter(|workload| !workload.built_in).count();
        self.say(format!("{count} containers known from disk"));
        self.reconsider();
        self.actions.push(Action::Sweep);
    }
}

//! The machine itself: its tables, and the one function through which everything happens.

use std::collections::{BTreeMap, BTreeSet};

use byre_plan::limits::AUTOMATIC_IDS;
use byre_plan::{Name, Origin, Plan, Policy, UserNamespace, WorkloadId};
use byre_protocol::control::{Event as Told, FromInit, Notice, RefusedCode, Reply, What};
use byre_protocol::definition::{Definition, Role};
use byre_protocol::status::{Cause, Moment, Why};

use crate::action::{Action, Attachment};
use crate::durable::Records;
use crate::event::{Boot, ChannelId, Event, ExecId, Subject};
use crate::execs::Exec;
use crate::pending::{Await, CALL_MS, Caller, PendingCalls};
use crate::requests::refused;
use crate::schedule::clock_was_set;
use crate::shutdown::Ending;
use crate::workload::{Actual, Wanted, Workload};

/// Host ids of one user namespace.
const IDS_PER_WORKLOAD: u32 = 65_536;

/// A control channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Channel {
    pub(crate) role: Role,
    pub(crate) subscribed: bool,
}

/// PID 1's mind.
#[derive(Debug, Clone)]
pub struct Core {
    pub(crate) policy: Option<Policy>,
    pub(crate) workloads: BTreeMap<WorkloadId, Workload>,
    pub(crate) names: BTreeMap<Name, WorkloadId>,
    pub(crate) channels: BTreeMap<ChannelId, Channel>,
    pub(crate) execs: BTreeMap<ExecId, Exec>,
    pub(crate) next_exec: u64,
    pub(crate) pending: PendingCalls,
    pub(crate) records: Records,
    pub(crate) ending: Option<Ending>,
    pub(crate) now: Moment,
    pub(crate) actions: Vec<Action>,
    pub(crate) next_event: u64,
    pub(crate) may_advance: bool,
}

impl Default for Core {
    fn default() -> Self {
        Self::new()
    }
}

impl Core {
    /// A machine that has not booted.
    #[must_use]
    pub fn new() -> Self {
        Self {
            policy: None,
            workloads: BTreeMap::new(),
            names: BTreeMap::new(),
            channels: BTreeMap::new(),
            execs: BTreeMap::new(),
            next_exec: 1,
            pending: PendingCalls::default(),
            records: Records::default(),
            ending: None,
            now: Moment::default(),
            actions: Vec::new(),
            next_event: 1,
            may_advance: false,
        }
    }

    /// One step: an event at a time, what is to be done about it.
    pub fn step(&mut self, event: Event, now: Moment) -> Vec<Action> {
        let clock_set = clock_was_set(self.now, now);
        self.now = now;
        match event {
            Event::Boot(boot) => self.boot(*boot),
            Event::ChannelOpened { channel, role } => self.channel_opened(channel, role),
            Event::ChannelClosed(channel) => self.channel_closed(channel),
            Event::Called { context, call } => self.called(context, *call),
            Event::Launched { subject: Subject::Workload { id, run }, outcome } => self.launched(id, run, outcome),
            Event::Launched { subject: Subject::Exec(exec), outcome } => self.exec_launched(exec, outcome),
            Event::Exited { subject: Subject::Workload { id, run }, status, oom_kills } => {
                self.exited(id, run, status, oom_kills);
            }
            Event::Exited { subject: Subject::Exec(exec), status, oom_kills: _ } => self.exec_exited(exec, status),
            Event::Emptied { id, run } => self.emptied(id, run),
            Event::Notified { id, run } => self.notified(id, run),
            Event::HeardOf { id, run } => self.heard_of(id, run),
            Event::FilesRemoved { id, removed } => self.files_removed(id, removed),
            Event::Tick => {}
            Event::ShutdownAsked(action) => self.shutdown_asked(action),
            Event::Reexecuted(how) => self.reexecuted(how),
            Event::Armed(refusal) => self.armed(refusal),
            Event::Rescued(rescued) => self.rescue(*rescued),
        }
        self.tick();
        self.schedules_due(clock_set);
        while std::mem::take(&mut self.may_advance) {
            self.advance();
        }
        self.advance_ending();
        std::mem::take(&mut self.actions)
    }

    /// When the next step has to be taken even if nothing happens, on CLOCK_BOOTTIME.
    #[must_use]
    pub fn next_deadline_boot_ms(&self) -> Option<u64> {
        let probes = self.workloads.values().filter_map(Workload::probe_deadline_boot_ms);
        let schedules = self.workloads.values().filter_map(|workload| workload.scheduled_boot_ms(self.now));
        // A machine that ends begins nothing.
        let schedules = schedules.filter(|_| self.ending.is_none());
        probes.chain(schedules).chain(self.next_change_boot_ms()).min()
    }

    /// As [`Core::next_deadline_boot_ms`], without what is done again and again while nothing changes: a machine at rest has none.
    #[must_use]
    pub fn next_change_boot_ms(&self) -> Option<u64> {
        let workloads = self.workloads.values().filter_map(Workload::deadline_boot_ms);
        let is_judged = |workload: &&Workload| !workload.is_up_and_ready();
        let probes = self.workloads.values().filter(is_judged).filter_map(Workload::probe_deadline_boot_ms);
        let execs = self.execs.values().filter_map(|exec| exec.kill_at_boot_ms);
        let ending = self.ending.as_ref().and_then(Ending::deadline_boot_ms);
        workloads.chain(probes).chain(execs).chain(ending).chain(self.pending.deadline_boot_ms()).min()
    }

    /// A workload by its identity.
    #[must_use]
    pub fn workload(&self, id: WorkloadId) -> Option<&Workload> {
        self.workloads.get(&id)
    }

    /// An exec session by its number.
    #[must_use]
    pub fn exec(&self, exec: ExecId) -> Option<&Exec> {
        self.execs.get(&exec)
    }

    /// All workloads in the order of their identities.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.values()
    }

    fn boot(&mut self, boot: Boot) {
        for (id, definition) in boot.services {
            let name = definition.name.clone();
            match Plan::check(definition.launch.clone(), &boot.policy, Origin::VerifiedRoot) {
                Ok(plan) => {
                    let mut workload = Workload::new(id, definition, plan, None, self.now);
                    workload.built_in = true;
                    workload.wanted = Wanted::Up;
                    workload.wait_for_its_time(self.now);
                    self.names.insert(name, id);
                    self.workloads.insert(id, workload);
                }
                Err(refusal) => self.say(format!("service {name} is not started: {refusal}")),
            }
        }
        self.policy = Some(boot.policy);
        self.may_advance = true;
    }

    fn channel_opened(&mut self, channel: ChannelId, role: Role) {
        self.channels.insert(channel, Channel { role, subscribed: false });
        match role {
            Role::Log => self.actions.push(Action::OfferLogs { channel }),
            Role::State => self.offer_records(channel),
            Role::Probe => self.offer_probes(),
            Role::Network => self.offer_pods(channel),
            Role::Api | Role::Observer | Role::Update | Role::Trial => {}
        }
    }

    fn channel_closed(&mut self, channel: ChannelId) {
        self.channels.remove(&channel);
        self.pending.forget_channel(channel);
        self.hang_up_execs(channel);
    }

    /// Starts whatever is wanted, down, and has what it needs.
    fn advance(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.follow_containers();
        self.stop_what_is_bound();
        let startable: Vec<WorkloadId> = self
            .workloads
            .values()
            .filter(|workload| workload.wanted == Wanted::Up && workload.is_down_for_now())
            .map(Workload::id)
            .collect();
        for id in startable {
            let blocker = self.workloads.get(&id).and_then(|workload| self.blocker(&workload.definition));
            match blocker {
                None => self.launch(id),
                Some(name) => self.set_actual_quietly(id, Actual::Down { why: Why::Waiting(name) }),
            }
        }
    }

    /// Stops what runs and is bound to something that is not ready any more.
    fn stop_what_is_bound(&mut self) {
        let unbound: Vec<(WorkloadId, Name, u32)> = self
            .workloads
            .values()
            .filter(|workload| matches!(workload.actual, Actual::Starting { .. } | Actual::Up { .. }))
            .filter_map(|workload| {
                let missing = workload.definition.bound_to().find(|name| !self.is_all_ready(name))?;
                Some((workload.id, missing.clone(), workload.definition.stop.grace_ms))
            })
            .collect();
        for (id, missing, grace_ms) in unbound {
            self.stop(id, Some(Cause::Dependency(missing)), grace_ms);
        }
    }

    /// The first workload that this one has to wait for.
    fn blocker(&self, definition: &Definition) -> Option<Name> {
        let needed = definition.requires().find_map(|name| self.unready(name));
        let holds_up = |other: &&Workload| other.wanted == Wanted::Up && !other.is_ready() && !other.has_given_up();
        let preceding = || definition.after.iter().find_map(|name| self.members(name).find(holds_up));
        needed.or_else(|| preceding().map(|other| other.definition.name.clone()))
    }

    /// Something changed that may let a workload start.
    pub(crate) fn reconsider(&mut self) {
        self.may_advance = true;
    }

    pub(crate) fn set_actual_quietly(&mut self, id: WorkloadId, actual: Actual) {
        if let Some(workload) = self.workloads.get_mut(&id) {
            workload.actual = actual;
        }
    }

    /// Changes what is true of a workload and tells subscribers.
    pub(crate) fn set_actual(&mut self, id: WorkloadId, actual: Actual) {
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        workload.actual = actual;
        let state = workload.state();
        self.tell(id, What::State(state));
        self.reconsider();
    }

    /// Tells subscribers of an event.
    pub(crate) fn tell(&mut self, id: WorkloadId, what: What) {
        let Some(workload) = self.workloads.get(&id) else { return };
        let number = self.next_event;
        self.next_event = self.next_event.saturating_add(1);
        let event = Told { number, at: self.now, id, name: workload.definition.name.clone(), what };
        let subscribers: Vec<ChannelId> =
            self.channels.iter().filter(|(_, channel)| channel.subscribed).map(|(id, _)| *id).collect();
        for channel in subscribers {
            self.notify(channel, Notice::Event(event.clone()), Attachment::None);
        }
    }

    pub(crate) fn notify(&mut self, channel: ChannelId, notice: Notice, attachment: Attachment) {
        let message = Box::new(FromInit::Notice(Box::new(notice)));
        self.actions.push(Action::Send { channel, message, attachment });
    }

    pub(crate) fn notify_role(&mut self, role: Role, notice: &Notice, attachment: Attachment) {
        let channels: Vec<ChannelId> =
            self.channels.iter().filter(|(_, channel)| channel.role == role).map(|(id, _)| *id).collect();
        for channel in channels {
            self.notify(channel, notice.clone(), attachment);
        }
    }

    pub(crate) fn answer(&mut self, caller: Caller, reply: Reply, attachment: Attachment) {
        let message = Box::new(FromInit::Answer { sequence: caller.sequence, reply });
        self.actions.push(Action::Send { channel: caller.channel, message, attachment });
    }

    /// Answers a call once all of this is so; at once if there is nothing to wait for.
    pub(crate) fn answer_when(&mut self, caller: Caller, awaits: Vec<Await>, reply: Reply, grace_ms: u32) {
        if awaits.is_empty() {
            self.answer(caller, reply, Attachment::None);
        } else {
            let deadline_boot_ms = self.now.boot_ms.saturating_add(CALL_MS).saturating_add(u64::from(grace_ms));
            self.pending.add(caller, awaits, reply, deadline_boot_ms);
        }
    }

    /// Calls whose time is over are told what they waited for.
    pub(crate) fn end_overdue_calls(&mut self) {
        for (caller, awaited) in self.pending.expired(self.now.boot_ms) {
            let refused = match awaited {
                Some(Await::Record(_)) | None => {
                    let text = "it is not on disk yet, and is still tried: the state service is down or slow";
                    refused(RefusedCode::NotDurable, text)
                }
                Some(Await::Running(id)) => {
                    let text = match self.workloads.get(&id).map(|workload| &workload.actual) {
                        Some(Actual::Down { why: Why::Waiting(other) }) => {
                            format!("it waits for {other} to be ready, and starts when that is")
                        }
                        Some(_) | None => "its program does not run yet, and is still tried".to_owned(),
                    };
                    refused(RefusedCode::WrongState, &text)
                }
                Some(Await::Down(_)) => {
                    refused(RefusedCode::WrongState, "it still has a process, which is being ended")
                }
                Some(Await::Armed) => {
                    refused(RefusedCode::WrongState, "the update is not armed yet; the kernel's log says how it ends")
                }
                Some(Await::Reexec) => {
                    refused(RefusedCode::WrongState, "PID 1 is not replaced yet; the kernel's log says how it ends")
                }
                Some(Await::Gone(_)) => refused(RefusedCode::WrongState, "it is not all gone yet; its removal goes on"),
            };
            self.refuse(caller, refused);
        }
    }

    pub(crate) fn met(&mut self, what: Await) {
        for (caller, reply) in self.pending.met(what) {
            self.answer(caller, reply, Attachment::None);
        }
    }

    pub(crate) fn say(&mut self, line: String) {
        self.actions.push(Action::Say(line));
    }

    /// The lowest free range of host ids, for a workload that wants one.
    pub(crate) fn assign_ids(&self, definition: &Definition) -> Option<u32> {
        // In a pod everybody has the pod's.
        if let Some(pod) = &definition.pod {
            return self.workloads.get(self.names.get(pod)?)?.id_base;
        }
        match definition.launch.namespaces.user {
            UserNamespace::Host | UserNamespace::Mapped { .. } | UserNamespace::Join(_) => None,
            UserNamespace::Automatic => {
                let taken: BTreeSet<u32> = self.workloads.values().filter_map(|workload| workload.id_base).collect();
                let step = usize::try_from(IDS_PER_WORKLOAD).unwrap_or(usize::MAX);
                AUTOMATIC_IDS.step_by(step).find(|base| !taken.contains(base))
            }
        }
    }
}

//! One simulated node: PID 1's mind between its kernel and its services. Actions are carried out as the supervisor carries them out, and
//! what they bring about comes back as events, some of it late, doubled or out of order.

use std::collections::VecDeque;

use byre_core::{Action, CallContext, ChannelId, Core, Event, ExitStatus, Rescued, Trace};
use byre_plan::WorkloadId;
use byre_protocol::control::{Call, FromInit, Notice, Reply, Request};
use byre_protocol::definition::{Grant, Kind, ReadyWhen, Role};
use byre_protocol::pod::PodAddress;
use byre_protocol::probe::{Aim, Check};
use byre_protocol::status::{Moment, State};

use crate::chance::Chance;
use crate::definitions::Definitions;
use crate::invariants;
use crate::kernel::{First, Kernel, Live, Session};
use crate::peers::{Asked, Peers};

/// Events that may come a second time.
const RECENT: usize = 24;

/// What is kept of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Nothing,
    Decisions,
    Story,
    Records,
    Trace,
}

/// A simulated node.
pub(crate) struct World<'a> {
    pub(crate) core: Core,
    pub(crate) now: Moment,
    pub(crate) kernel: Kernel,
    pub(crate) peers: Peers,
    pub(crate) chance: Chance,
    definitions: &'a Definitions,
    queue: VecDeque<Event>,
    /// Told late.
    held: Vec<Event>,
    recent: VecDeque<Event>,
    fresh: u64,
    /// A shutdown was asked for.
    pub(crate) ending: bool,
    /// The machine has been told to end.
    pub(crate) finished: bool,
    /// What did not hold, first.
    pub(crate) broken: Option<String>,
    pub(crate) events: u64,
    /// Everything that was decided, if it is to be compared.
    pub(crate) decided: Option<Vec<Action>>,
    /// The trace that a supervisor keeps, if it is to be played again.
    pub(crate) trace: Option<Trace>,
    /// What happened and what was decided in words, if somebody wants to read it.
    pub(crate) story: Option<Vec<String>>,
}

impl<'a> World<'a> {
    /// A node that boots.
    pub(crate) fn booted(definitions: &'a Definitions, chance: Chance, keep: Keep) -> Self {
        let mut world = Self {
            core: Core::new(),
            now: Moment { boot_ms: 2_000, wall_ms: 1_700_000_000_000 },
            kernel: Kernel::default(),
            peers: Peers::default(),
            chance,
            definitions,
            queue: VecDeque::new(),
            held: Vec::new(),
            recent: VecDeque::new(),
            fresh: 1_000,
            ending: false,
            finished: false,
            broken: None,
            events: 0,
            decided: (keep == Keep::Decisions).then(Vec::new),
            trace: (keep == Keep::Trace).then(Trace::new),
            story: (keep == Keep::Story).then(Vec::new),
        };
        world.boot();
        world
    }

    fn boot(&mut self) {
        self.tell(Event::Boot(Box::new(self.definitions.boot())));
    }

    /// The power goes and comes back: what was on disk is all that is left.
    pub(crate) fn power_cut(&mut self) {
        self.core = Core::new();
        self.trace = self.trace.as_ref().map(|_| Trace::new());
        self.kernel = Kernel::default();
        self.peers.open.clear();
        self.queue.clear();
        self.held.clear();
        self.recent.clear();
        self.now.boot_ms = 2_000;
        self.boot();
    }

    /// PID 1 crashes and begins anew: its mind, what was on its way to it and every channel are gone; its records and the kernel are not.
    pub(crate) fn crash(&mut self) {
        let records = self.core.workloads().filter_map(|workload| self.core.record_of(workload.id()).ok()).collect();
        let (policy, ending) = (self.definitions.boot().policy, self.core.ending());
        let alive = self.kernel.pid1_crashed();
        self.core = Core::new();
        self.peers.open.clear();
        self.queue.clear();
        self.held.clear();
        self.recent.clear();
        self.tell(Event::Rescued(Box::new(Rescued { policy, records, alive, strays: Vec::new(), ending })));
    }

    pub(crate) fn container(&mut self, text: &str) -> byre_protocol::definition::Definition {
        self.definitions.container(text, &mut self.chance)
    }

    /// Something happened: PID 1 decides, and what it decided is done.
    pub(crate) fn tell(&mut self, event: Event) {
        self.queue.push_back(event);
        while let Some(event) = self.queue.pop_front() {
            self.events += 1;
            self.ending |= matches!(event, Event::ShutdownAsked(_));
            if let Some(story) = &mut self.story {
                story.push(format!("{} ms: {event:?}", self.now.boot_ms));
            }
            let actions = match &mut self.trace {
                Some(trace) => trace.step(&mut self.core, event, self.now),
                None => self.core.step(event, self.now),
            };
            if let Some(story) = &mut self.story {
                story.extend(actions.iter().map(|action| format!("    {action:?}")));
            }
            for action in &actions {
                self.carry_out(action);
            }
            if let Some(decided) = &mut self.decided {
                decided.extend(actions);
            }
            if self.broken.is_none() {
                self.broken = invariants::after_step(self);
            }
        }
    }

    /// The kernel tells something: usually at once.
    pub(crate) fn tell_from_kernel(&mut self, event: Event, faults: bool) {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(event.clone());
        if faults && self.chance.one_in(8) {
            self.held.push(event);
            return;
        }
        self.tell_now(event);
    }

    fn tell_now(&mut self, event: Event) {
        let emptied = if let Event::Emptied { id, run } = &event { Some((*id, *run)) } else { None };
        // The supervisor drops what it keeps of a run before it tells that the run is over.
        let closed = emptied.and_then(|(id, run)| {
            let channel = self.peers.channel_of(id)?;
            let is_of_run = self.peers.open.get(&channel).is_some_and(|peer| peer.run == run);
            is_of_run.then(|| self.peers.open.remove(&channel))?;
            Some(channel)
        });
        if let Some(channel) = closed {
            self.queue.push_back(event);
            self.tell(Event::ChannelClosed(channel));
        } else {
            self.tell(event);
        }
    }

    /// News that was late arrives. False: there was none.
    pub(crate) fn tell_late(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let event = self.held.swap_remove(self.chance.below(self.held.len()));
        self.tell_now(event);
        true
    }

    /// Old news comes again.
    pub(crate) fn tell_again(&mut self) {
        let index = self.chance.below(self.recent.len());
        if let Some(event) = self.recent.get(index).cloned() {
            self.tell(event);
        }
    }

    fn carry_out(&mut self, action: &Action) {
        match action {
            Action::Launch { id, run } => self.launch(*id, *run),
            Action::LaunchExec { exec } => {
                if let Some(session) = self.core.exec(*exec) {
                    let session = Session { workload: session.workload(), running: false, killed: false };
                    self.kernel.sessions.insert(*exec, session);
                }
            }
            Action::Signal { id, signal } => self.kernel.signal(*id, *signal),
            Action::SignalExec { exec, signal } => {
                if let Some(session) = self.kernel.sessions.get_mut(exec) {
                    session.killed |= *signal == 9;
                }
            }
            Action::KillAll { id, run } => {
                if !self.kernel.kill(*id, *run) {
                    self.queue.push_back(Event::Emptied { id: *id, run: *run });
                }
            }
            Action::RemoveFiles { id } => self.kernel.removals.push(*id),
            Action::Send { channel, message, .. } => self.sent(*channel, message),
            Action::Forget { id } => {
                if self.kernel.live.contains_key(id) {
                    self.fail(format!("{id} is forgotten while it lives"));
                }
            }
            Action::Finish(_) => self.finished = true,
            Action::ForgetExec { .. }
            | Action::CloseInput { .. }
            | Action::OfferLogs { .. }
            | Action::Sweep
            | Action::ReleaseLayers
            | Action::Say(_)
            | Action::Reexec
            | Action::Arm(_) => {}
        }
    }

    fn launch(&mut self, id: WorkloadId, run: u64) {
        if self.kernel.live.contains_key(&id) {
            self.fail(format!("{id} is started while an earlier run of it lives"));
        }
        let stuck = self.chance.one_in(40);
        let pod = self.core.workload(id).is_some_and(|workload| workload.definition().kind == Kind::Pod);
        self.kernel.live.insert(id, Live { run, first: First::Launching, killed: false, stuck, pod });
        let role = self.core.workload(id).and_then(|workload| {
            workload
                .definition()
                .grants
                .iter()
                .find_map(|grant| if let Grant::Control(role) = grant { Some(*role) } else { None })
        });
        if let Some(role) = role {
            if let Some(old) = self.peers.channel_of(id) {
                self.peers.open.remove(&old);
                self.queue.push_back(Event::ChannelClosed(old));
            }
            let channel = self.peers.open(role, id, run);
            self.queue.push_back(Event::ChannelOpened { channel, role });
        }
    }

    fn sent(&mut self, channel: ChannelId, message: &FromInit) {
        let Some(peer) = self.peers.open.get_mut(&channel) else { return };
        match message {
            FromInit::Answer { sequence, reply } => {
                if peer.role == Role::Api && !peer.calls.remove(sequence) {
                    self.fail(format!("call {sequence} has two answers, the last {reply:?}"));
                } else if let Reply::Created { id } = reply
                    && self.core.workload(*id).is_some()
                    && !self.peers.disk.contains_key(id)
                {
                    self.fail(format!("{id} was acknowledged before it was on disk"));
                }
            }
            FromInit::Notice(notice) => match &**notice {
                Notice::Record { record, change } => {
                    peer.records.insert(*record, (**change).clone());
                }
                Notice::Probe { id, number, aim, .. } => {
                    let is_held_back = *aim != Aim::Startup && peer.probes.contains_key(&(*id, Aim::Startup));
                    peer.probes.insert((*id, *aim), Asked { number: *number, told: None });
                    if is_held_back {
                        self.fail(format!("{id} is asked for its {aim} before it has started"));
                    }
                }
                Notice::ProbeEnd { id } => peer.probes.retain(|(of, _), _| of != id),
                Notice::Event(_)
                | Notice::ExecEnded { .. }
                | Notice::LogStream { .. }
                | Notice::LogRemove { .. }
                | Notice::LogRunEnded { .. }
                | Notice::AttachEnd
                | Notice::ShuttingDown => {}
                Notice::Attach { id, run, addresses, .. } => {
                    peer.attaches.insert(*id, (*run, addresses.clone()));
                }
                Notice::Detach { id } => {
                    peer.attaches.remove(id);
                    if self.kernel.live.contains_key(id) {
                        self.fail(format!("pod {id} is detached while it lives"));
                    }
                }
            },
        }
    }

    /// A service sends a message.
    pub(crate) fn say(&mut self, channel: ChannelId, request: Request, descriptors: usize) {
        self.fresh += 1;
        let mut sequence = 0;
        if let Some(peer) = self.peers.open.get_mut(&channel)
            && peer.role == Role::Api
        {
            self.peers.next_call += 1;
            sequence = self.peers.next_call;
            peer.calls.insert(sequence);
        }
        let context = CallContext { channel, descriptors, fresh: self.fresh };
        self.tell(Event::Called { context, call: Box::new(Call { sequence, request }) });
    }

    /// A client's call, if the API is there.
    pub(crate) fn call(&mut self, request: Request) {
        let descriptors = if matches!(request, Request::Exec { .. }) { 3 } else { 0 };
        if let Some((channel, _)) = self.peers.serving(Role::Api) {
            self.say(channel, request, descriptors);
        }
    }

    /// A service whose program runs does what it does first.
    pub(crate) fn service_starts(&mut self) -> bool {
        let kernel = &self.kernel;
        let new = self.peers.open.iter_mut().find(|(_, peer)| {
            !peer.started
                && kernel
                    .live
                    .get(&peer.workload)
                    .is_some_and(|live| live.first == First::Running && live.run == peer.run)
        });
        let Some((channel, peer)) = new else { return false };
        peer.started = true;
        let (channel, role, id, run) = (*channel, peer.role, peer.workload, peer.run);
        match role {
            Role::State => {
                let records: Vec<_> = self.peers.disk.values().cloned().collect();
                for record in records {
                    self.say(channel, Request::Replay(Box::new(record)), 0);
                }
                self.say(channel, Request::ReplayEnd, 0);
            }
            Role::Api => self.say(channel, Request::Subscribe, 0),
            Role::Log | Role::Probe | Role::Observer | Role::Update | Role::Network | Role::Trial => {}
        }
        self.tell(Event::Notified { id, run });
        true
    }

    /// The state service writes what it has, at most `most` of it.
    pub(crate) fn write_records(&mut self, most: usize, faults: bool) -> bool {
        let Some((channel, peer)) = self.peers.serving(Role::State) else { return false };
        let numbers: Vec<u64> = peer.records.keys().take(most).copied().collect();
        for number in &numbers {
            let Some(peer) = self.peers.open.get_mut(&channel) else { return true };
            let Some(change) = peer.records.remove(number) else { continue };
            if faults && self.chance.one_in(12) {
                let id = match &change {
                    byre_protocol::control::Change::Put(record) => record.id,
                    byre_protocol::control::Change::Remove(id) => *id,
                };
                self.peers.unwritten.insert(id);
                let text = "no space left on the state partition".to_owned();
                self.say(channel, Request::RecordFailed { record: *number, text }, 0);
                continue;
            }
            self.peers.write(change);
            // A service that dies between the write and its answer is asked again.
            if faults && self.chance.one_in(12) {
                if let Some(peer) = self.peers.open.get_mut(&channel) {
                    peer.started = false;
                    self.kernel.crash(peer.workload, ExitStatus::Signal(11), false);
                }
                return true;
            }
            self.say(channel, Request::Recorded { record: *number }, 0);
        }
        !numbers.is_empty()
    }

    /// The end of a service's process is seen on its channel as well.
    pub(crate) fn close_dead_channels(&mut self) -> bool {
        let kernel = &self.kernel;
        let dead = self.peers.open.iter().find(|(_, peer)| {
            kernel.live.get(&peer.workload).is_some_and(|live| live.first == First::Ended && live.run == peer.run)
        });
        let Some(channel) = dead.map(|(channel, _)| *channel) else { return false };
        self.peers.open.remove(&channel);
        self.tell(Event::ChannelClosed(channel));
        true
    }

    /// Programs that run and have yet to say READY=1, with their run.
    pub(crate) fn unsaid(&self) -> Vec<(WorkloadId, u64)> {
        self.core
            .workloads()
            .filter(|workload| matches!(workload.state(), State::Up { ready: false, .. }))
            .filter(|workload| workload.definition().readiness.when == ReadyWhen::Notify)
            // A service says so when it starts.
            .filter(|workload| workload.definition().grants.is_empty())
            .map(|workload| (workload.id(), workload.run()))
            .collect()
    }

    /// Everything that has a watchdog is heard of.
    pub(crate) fn watchdogs(&mut self) {
        let running: Vec<(WorkloadId, u64)> = self
            .core
            .workloads()
            .filter(|workload| {
                let liveness = workload.definition().liveness.as_ref();
                liveness.is_some_and(|probe| probe.check == Check::Watchdog)
            })
            .map(|workload| (workload.id(), workload.run()))
            .collect();
        for (id, run) in running {
            self.tell(Event::HeardOf { id, run });
        }
    }

    /// The probe service comes to a verdict.
    pub(crate) fn judge(&mut self, (id, aim): (WorkloadId, Aim), passed: bool) {
        let Some((channel, peer)) = self.peers.serving(Role::Probe) else { return };
        let Some(asked) = peer.probes.get_mut(&(id, aim)) else { return };
        asked.told = Some(passed);
        let number = asked.number;
        let is_up = |world: &Self| {
            let workload = world.core.workload(id).filter(|workload| workload.run() == number);
            workload.is_some_and(|workload| matches!(workload.state(), State::Up { .. }))
        };
        let was_up = is_up(self);
        self.say(channel, Request::Probed { id, number, aim, passed }, 0);
        if was_up && !passed && aim != Aim::Readiness && is_up(self) {
            self.fail(format!("{id} goes on after its {aim} probe failed"));
        }
    }

    /// The network service puts a pod into its networks, or cannot. False: there is none to be put.
    pub(crate) fn attach(&mut self, faults: bool) -> bool {
        let Some((channel, peer)) = self.peers.serving(Role::Network) else { return false };
        let Some((id, (run, had))) = peer.attaches.pop_first() else { return false };
        let is_running = |world: &Self| {
            let workload = world.core.workload(id).filter(|workload| workload.run() == run);
            workload.is_some_and(|workload| matches!(workload.state(), State::Up { .. }))
        };
        let was_up = is_running(self);
        if faults && self.chance.one_in(4) {
            self.say(channel, Request::AttachFailed { id, run, text: "no address is free".to_owned() }, 0);
            if was_up && is_running(self) {
                self.fail(format!("pod {id} goes on without its network"));
            }
            return true;
        }
        let address = std::net::IpAddr::from(std::net::Ipv4Addr::from(self.fresh.to_le_bytes().map(u32::from)[0]));
        let new =
            PodAddress { network: crate::definitions::name("byre"), interface: "eth0".to_owned(), address, prefix: 24 };
        let addresses = if had.is_empty() { vec![new] } else { had };
        self.say(channel, Request::Attached { id, run, addresses }, 0);
        true
    }

    /// The kernel does something that it can do now.
    pub(crate) fn kernel_advances(&mut self, faults: bool) -> bool {
        let Some(event) = self.kernel.advance(&mut self.chance, faults) else { return false };
        self.tell_from_kernel(event, faults);
        true
    }

    pub(crate) fn fail(&mut self, what: String) {
        if self.broken.is_none() {
            self.broken = Some(what);
        }
    }
}

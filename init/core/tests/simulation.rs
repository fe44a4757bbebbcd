//! The core against a simulated kernel, simulated services and hostile chance: random histories of client calls, failing launches,
//! crashing workloads, restarting services and time, with invariants checked after every step.
//!
//! The kernel's answers come in any order that a real one may give them in, later than anything else may happen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::wildcard_enum_match_arm, clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, BTreeSet};

use byre_core::{Action, Boot, CallContext, ChannelId, Core, Event, ExitStatus, LaunchOutcome, Subject};
use byre_plan::{LaunchRequest, Name, Policy, WorkloadId};
use byre_protocol::control::{Call, Change, FromInit, Notice, Reply, Request, ShutdownAction, Target};
use byre_protocol::definition::{Definition, Kind, RestartPolicy, Role};
use byre_protocol::handoff::Writer;
use byre_protocol::status::{Moment, StartFailure};
use proptest::prelude::*;

const API: ChannelId = ChannelId(1);
const NAMES: [&str; 4] = ["one", "two", "three", "four"];

fn definition(name: &str, kind: Kind) -> Definition {
    let launch: LaunchRequest = serde_json::from_value(serde_json::json!({
        "process": {"args": ["/bin/true"]},
        "root": if kind == Kind::Container { serde_json::json!({"layers": {"layers": [vec![7; 32]], "read_only": false}}) } else { "host".into() },
        "namespaces": {"user": if kind == Kind::Container { "automatic" } else { "host" }},
    }))
    .unwrap();
    let mut definition: Definition =
        serde_json::from_value(serde_json::json!({"name": name, "kind": "container", "launch": launch})).unwrap();
    definition.kind = kind;
    definition
}

fn policy() -> Policy {
    serde_json::from_value(serde_json::json!({
        "host_network": true, "host_namespaces": false, "host_users": false, "capabilities": 0,
        "bind_sources": [], "no_seccomp": false, "helpers": []
    }))
    .unwrap()
}

/// What may happen next.
#[derive(Debug, Clone)]
enum Step {
    Create {
        name: usize,
        start: bool,
        policy: u8,
        remove_on_exit: bool,
    },
    Start(usize),
    Stop(usize),
    Restart(usize),
    Kill(usize, u8),
    Remove(usize, bool),
    /// The kernel does one of the things that it owes, by a number that chooses it.
    Kernel(usize),
    /// A running program ends by itself.
    Crash {
        which: usize,
        code: u8,
    },
    Time(u64),
    /// The state service acknowledges what it has.
    Acknowledge,
    /// The state service restarts.
    StateRestart,
    /// The API service restarts.
    ApiRestart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0..NAMES.len();
    let step = prop_oneof![
        3 => (name.clone(), any::<bool>(), 0..4_u8, any::<bool>())
            .prop_map(|(name, start, policy, remove_on_exit)| Step::Create { name, start, policy, remove_on_exit }),
        2 => name.clone().prop_map(Step::Start),
        2 => name.clone().prop_map(Step::Stop),
        1 => name.clone().prop_map(Step::Restart),
        1 => (name.clone(), prop_oneof![Just(9_u8), Just(15)]).prop_map(|(name, signal)| Step::Kill(name, signal)),
        2 => (name, any::<bool>()).prop_map(|(name, force)| Step::Remove(name, force)),
        12 => any::<usize>().prop_map(Step::Kernel),
        2 => (any::<usize>(), 0..3_u8).prop_map(|(which, code)| Step::Crash { which, code }),
        3 => prop_oneof![Just(1_u64), Just(200), Just(11_000), Just(70_000)].prop_map(Step::Time),
        3 => Just(Step::Acknowledge),
        1 => Just(Step::StateRestart),
        1 => Just(Step::ApiRestart),
    ];
    prop::collection::vec(step, 1..120)
}

/// What the kernel owes PID 1.
#[derive(Debug, Clone, PartialEq)]
enum Owed {
    Report(WorkloadId, u64),
    Exit(WorkloadId, u64, ExitStatus),
    Empty(WorkloadId, u64),
    Files(WorkloadId),
}

#[derive(Default)]
struct World {
    core: Core,
    now: Moment,
    owed: Vec<Owed>,
    /// Programs that run, by workload.
    running: BTreeMap<WorkloadId, u64>,
    /// Runs whose processes may exist.
    alive: BTreeSet<(WorkloadId, u64)>,
    signalled: BTreeSet<WorkloadId>,
    records: BTreeMap<u64, Change>,
    disk: BTreeMap<WorkloadId, bool>,
    api: ChannelId_,
    state: ChannelId_,
    next_channel: u64,
    open_calls: BTreeSet<u64>,
    next_call: u64,
    fresh: u64,
    finished: bool,
}

/// A channel id with a default, for the derive.
struct ChannelId_(ChannelId);

impl Default for ChannelId_ {
    fn default() -> Self {
        Self(API)
    }
}

impl World {
    fn booted() -> Self {
        let mut world = Self { next_channel: 10, fresh: 1000, ..Self::default() };
        let service = |number, name| (WorkloadId(number), definition(name, Kind::Service));
        let boot = Boot { policy: policy(), services: vec![service(1, "state"), service(2, "api")] };
        world.step(Event::Boot(Box::new(boot)));
        world.open(Role::State);
        world.open(Role::Api);
        world.call_state(Request::ReplayEnd);
        world
    }

    fn open(&mut self, role: Role) {
        let channel = ChannelId(self.next_channel);
        self.next_channel += 1;
        if role == Role::State {
            self.state = ChannelId_(channel);
        } else {
            self.api = ChannelId_(channel);
            self.open_calls.clear();
        }
        self.step(Event::ChannelOpened { channel, role });
    }

    fn call_state(&mut self, request: Request) {
        let context = CallContext { channel: self.state.0, descriptors: 0, fresh: 0 };
        self.step(Event::Called { context, call: Box::new(Call { sequence: 0, request }) });
    }

    fn call(&mut self, request: Request) {
        self.next_call += 1;
        self.fresh += 1;
        self.open_calls.insert(self.next_call);
        let context = CallContext { channel: self.api.0, descriptors: 0, fresh: self.fresh };
        self.step(Event::Called { context, call: Box::new(Call { sequence: self.next_call, request }) });
    }

    fn step(&mut self, event: Event) {
        for action in self.core.step(event, self.now) {
            self.carry_out(action);
        }
        self.check();
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Launch { id, run } => {
                assert!(
                    !self.alive.iter().any(|(other, _)| *other == id),
                    "{id} is started while an earlier run lives"
                );
                self.alive.insert((id, run));
                self.owed.push(Owed::Report(id, run));
            }
            Action::Signal { id, .. } => {
                self.signalled.insert(id);
                if let Some(run) = self.running.get(&id).copied()
                    && id.0 % 2 == 0
                {
                    self.owe_exit(id, run, ExitStatus::Signal(15));
                }
            }
            Action::KillAll { id, run } => {
                if self.running.get(&id) == Some(&run) {
                    self.owe_exit(id, run, ExitStatus::Signal(9));
                }
                if !self.owed.contains(&Owed::Empty(id, run)) {
                    self.owed.push(Owed::Empty(id, run));
                }
            }
            Action::RemoveFiles { id } => self.owed.push(Owed::Files(id)),
            Action::Send { channel, message, .. } => self.sent(channel, *message),
            Action::Finish(_) => self.finished = true,
            Action::Forget { id } => {
                assert!(!self.alive.iter().any(|(other, _)| *other == id), "{id} is forgotten alive")
            }
            _ => {}
        }
    }

    fn owe_exit(&mut self, id: WorkloadId, run: u64, status: ExitStatus) {
        if !self.owed.iter().any(|owed| matches!(owed, Owed::Exit(other, _, _) if *other == id)) {
            self.owed.push(Owed::Exit(id, run, status));
        }
    }

    fn sent(&mut self, channel: ChannelId, message: FromInit) {
        match message {
            FromInit::Answer { sequence, reply } if channel == self.api.0 => {
                assert!(self.open_calls.remove(&sequence), "call {sequence} has two answers, the last {reply:?}");
                if let Reply::Created { id } = reply {
                    let gone = self.core.workload(id).is_none();
                    assert!(gone || self.disk.contains_key(&id), "{id} was acknowledged before it was on disk");
                }
            }
            FromInit::Notice(notice) => {
                if let Notice::Record { record, change } = *notice
                    && channel == self.state.0
                {
                    self.records.insert(record, *change);
                }
            }
            FromInit::Answer { .. } => {}
        }
    }

    /// The kernel does one thing that it owes, if that is possible now.
    fn kernel(&mut self, choice: usize) {
        if self.owed.is_empty() {
            return;
        }
        let owed = self.owed.remove(choice % self.owed.len());
        match owed {
            Owed::Report(id, run) => {
                let killed = self.owed.contains(&Owed::Empty(id, run));
                let outcome = if choice.is_multiple_of(5) || killed {
                    LaunchOutcome::Failed(StartFailure { step: "execute".into(), subject: "x".into(), errno: 2 })
                } else {
                    self.running.insert(id, run);
                    LaunchOutcome::Running { pid: 7, terminal: false }
                };
                self.step(Event::Launched { subject: Subject::Workload { id, run }, outcome });
            }
            Owed::Exit(id, run, status) => {
                self.running.remove(&id);
                self.step(Event::Exited { subject: Subject::Workload { id, run }, status, oom_kills: 0 });
            }
            Owed::Empty(id, run) => {
                let waits = self.running.get(&id) == Some(&run) || self.owed.contains(&Owed::Report(id, run));
                if waits {
                    self.owed.push(Owed::Empty(id, run));
                } else {
                    self.alive.remove(&(id, run));
                    self.signalled.remove(&id);
                    self.step(Event::Emptied { id, run });
                }
            }
            Owed::Files(id) => self.step(Event::FilesRemoved { id, removed: true }),
        }
    }

    fn acknowledge(&mut self) {
        for (record, change) in std::mem::take(&mut self.records) {
            match change {
                Change::Put(put) => {
                    self.disk.insert(put.id, put.wanted_up);
                }
                Change::Remove(id) => {
                    self.disk.remove(&id);
                }
            }
            self.call_state(Request::Recorded { record });
        }
    }

    /// PID 1 replaces itself: everything goes through bytes.
    fn replace(&mut self) {
        self.core = replaced(&self.core);
    }

    fn check(&self) {
        for workload in self.core.workloads() {
            let name = &workload.definition().name;
            let alive = self.alive.iter().any(|(id, _)| *id == workload.id());
            if alive && !self.owed.iter().any(|owed| matches!(owed, Owed::Empty(id, _) if *id == workload.id())) {
                let detail = format!("{workload:?}");
                assert!(!detail.contains("actual: Down"), "{name} lives and counts as down: {detail}");
            }
        }
    }

    /// Everything owed is done and all time passes that is waited for, but not for restarts without end.
    fn settle(&mut self) {
        for round in 0..2000_usize {
            self.acknowledge();
            if self.owed.is_empty() {
                match self.core.next_deadline_boot_ms() {
                    Some(at) if round < 1000 => self.now.boot_ms = self.now.boot_ms.max(at),
                    _ => break,
                }
                self.step(Event::Tick);
            } else {
                // Choices that are no multiple of five do not fail launches.
                self.kernel(round * 5 + 1);
            }
        }
        self.acknowledge();
    }
}

fn replaced(core: &Core) -> Core {
    Core::decode(&handed_over(core)).unwrap()
}

fn handed_over(core: &Core) -> Vec<u8> {
    let mut writer = Writer::new();
    core.hand_over(&mut writer).unwrap();
    writer.finish()
}

fn restart_policy(choice: u8) -> RestartPolicy {
    match choice {
        0 => RestartPolicy::Never,
        1 => RestartPolicy::OnFailure(2),
        2 => RestartPolicy::Always,
        _ => RestartPolicy::UnlessStopped,
    }
}

fn apply(world: &mut World, step: Step) {
    let target = |name: usize| Target::Name(Name::try_from(NAMES[name]).unwrap());
    match step {
        Step::Create { name, start, policy, remove_on_exit } => {
            let mut definition = definition(NAMES[name], Kind::Container);
            definition.restart.policy = restart_policy(policy);
            definition.remove_on_exit = remove_on_exit;
            world.call(Request::Create { definition: Box::new(definition), start });
        }
        Step::Start(name) => world.call(Request::Start { target: target(name) }),
        Step::Stop(name) => world.call(Request::Stop { target: target(name), grace_ms: None }),
        Step::Restart(name) => world.call(Request::Restart { target: target(name), grace_ms: Some(50) }),
        Step::Kill(name, signal) => world.call(Request::Kill { target: target(name), signal }),
        Step::Remove(name, force) => world.call(Request::Remove { target: target(name), force }),
        Step::Kernel(choice) => world.kernel(choice),
        Step::Crash { which, code } => {
            let running: Vec<(WorkloadId, u64)> = world.running.iter().map(|(id, run)| (*id, *run)).collect();
            if let Some((id, run)) = running.get(which % running.len().max(1)) {
                world.owe_exit(*id, *run, ExitStatus::Code(code));
            }
        }
        Step::Time(ms) => {
            world.now.boot_ms += ms;
            world.step(Event::Tick);
        }
        Step::Acknowledge => world.acknowledge(),
        Step::StateRestart => {
            let old = world.state.0;
            world.step(Event::ChannelClosed(old));
            world.records.clear();
            world.open(Role::State);
            world.call_state(Request::ReplayEnd);
        }
        Step::ApiRestart => {
            let old = world.api.0;
            world.step(Event::ChannelClosed(old));
            world.open(Role::Api);
        }
    }
}

proptest! {

    #[test]
    fn every_history_ends_with_what_was_wanted(history in steps()) {
        let mut world = World::booted();
        for step in history {
            apply(&mut world, step);
        }
        world.settle();
        prop_assert!(world.open_calls.is_empty(), "calls without an answer: {:?}", world.open_calls);
        prop_assert!(world.owed.is_empty() , "{:?}", world.owed);
        for workload in world.core.workloads() {
            let detail = format!("{workload:?}");
            if detail.contains("wanted: Up") {
                prop_assert!(detail.contains("actual: Up"), "wanted up and is not: {detail}");
            } else {
                prop_assert!(detail.contains("actual: Down"), "wanted down and is not: {detail}");
            }
            if !workload.is_built_in() {
                let on_disk = world.disk.get(&workload.id());
                prop_assert_eq!(on_disk, Some(&detail.contains("wanted: Up")), "disk differs: {}", detail);
            }
        }
    }

    #[test]
    fn every_shutdown_ends(history in steps(), choices in prop::collection::vec(any::<usize>(), 200)) {
        let mut world = World::booted();
        for step in history {
            apply(&mut world, step);
        }
        world.step(Event::ShutdownAsked(ShutdownAction::PowerOff));
        for choice in choices {
            world.kernel(choice);
        }
        // Even if the kernel owes something for ever, time ends it.
        world.now.boot_ms += 200_000;
        world.step(Event::Tick);
        prop_assert!(world.finished);
    }

    #[test]
    fn the_same_history_has_the_same_end(history in steps()) {
        let (mut first, mut second) = (World::booted(), World::booted());
        for step in history {
            apply(&mut first, step.clone());
            apply(&mut second, step);
        }
        prop_assert_eq!(format!("{:?}", first.core), format!("{:?}", second.core));
    }
}

proptest! {
    // Every one of these histories is a hundred replacements.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.div_ceil(8), ..ProptestConfig::default() })]

    #[test]
    fn a_replacement_at_any_moment_changes_nothing(history in steps()) {
        // Replaced after every step: what is equal after each one is equal for a replacement at any of them.
        let (mut whole, mut replaced) = (World::booted(), World::booted());
        for step in history {
            apply(&mut whole, step.clone());
            apply(&mut replaced, step);
            replaced.replace();
            prop_assert_eq!(format!("{:?}", whole.core), format!("{:?}", replaced.core));
            prop_assert_eq!(&whole.owed, &replaced.owed);
            prop_assert_eq!(&whole.open_calls, &replaced.open_calls);
            prop_assert_eq!(whole.core.next_deadline_boot_ms(), replaced.core.next_deadline_boot_ms());
        }
        whole.settle();
        replaced.settle();
        prop_assert_eq!(format!("{:?}", whole.core), format!("{:?}", replaced.core));
    }

    #[test]
    fn a_damaged_state_is_refused_or_is_a_state(history in steps(), at in any::<prop::sample::Index>(), bits in 1..=u8::MAX) {
        let mut world = World::booted();
        for step in history {
            apply(&mut world, step);
        }
        let mut bytes = handed_over(&world.core);
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        // What is taken in spite of the damage can be handed on.
        if let Ok(core) = Core::decode(&bytes) {
            replaced(&core);
        }
    }
}

/// A state of this version, written when the version was new: what a PID 1 of the same version may be handed.
///
/// Whoever changes a record raises `byre_protocol::handoff::VERSION` and runs this test once with `BYRE_WRITE_STATE=1`.
#[test]
fn a_change_of_the_records_is_a_new_version() {
    let path = format!("{}/tests/handoff/state-{}.bin", env!("CARGO_MANIFEST_DIR"), byre_protocol::handoff::VERSION);
    if std::env::var_os("BYRE_WRITE_STATE").is_some() {
        std::fs::write(&path, handed_over(&one_of_each())).unwrap();
    }
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; see this test's comment"));
    let core = Core::decode(&bytes).unwrap_or_else(|error| panic!("{path}: {error}; see this test's comment"));
    assert_eq!(handed_over(&core), bytes, "the records have changed; see this test's comment");
}

/// A machine with something in every table.
fn one_of_each() -> Core {
    let mut world = World::booted();
    let name = |name| Target::Name(Name::try_from(name).unwrap());
    for (index, policy) in [0, 1, 2].into_iter().enumerate() {
        apply(&mut world, Step::Create { name: index, start: true, policy, remove_on_exit: false });
    }
    world.kernel(1);
    world.acknowledge();
    world.kernel(1);
    let process =
        world.core.workloads().find(|workload| !workload.is_built_in()).unwrap().plan().request().process.clone();
    for name in ["one", "two", "three"].map(name) {
        world.next_call += 1;
        world.open_calls.insert(world.next_call);
        let request = Request::Exec { target: name, process: Box::new(process.clone()) };
        let context = CallContext { channel: world.api.0, descriptors: 3, fresh: 0 };
        world.step(Event::Called { context, call: Box::new(Call { sequence: world.next_call, request }) });
    }
    world.call(Request::Subscribe);
    world.call(Request::Stop { target: name("two"), grace_ms: None });
    world.call(Request::Remove { target: name("three"), force: true });
    world.core
}

#[test]
fn a_workload_waits_for_what_it_needs() {
    let mut core = Core::new();
    let mut web = definition("web", Kind::Service);
    web.needs = vec![Name::try_from("net").unwrap()];
    let net = definition("net", Kind::Job);
    let boot = Boot { policy: policy(), services: vec![(WorkloadId(1), web), (WorkloadId(2), net)] };
    let launches = |actions: Vec<Action>| -> Vec<WorkloadId> {
        actions
            .iter()
            .filter_map(|action| if let Action::Launch { id, .. } = action { Some(*id) } else { None })
            .collect()
    };
    assert_eq!(launches(core.step(Event::Boot(Box::new(boot)), Moment::default())), [WorkloadId(2)]);
    let subject = Subject::Workload { id: WorkloadId(2), run: 1 };
    let outcome = LaunchOutcome::Running { pid: 9, terminal: false };
    assert!(launches(core.step(Event::Launched { subject, outcome }, Moment::default())).is_empty());
    let exited = Event::Exited { subject, status: ExitStatus::Code(0), oom_kills: 0 };
    assert!(launches(core.step(exited, Moment::default())).is_empty());
    let emptied = Event::Emptied { id: WorkloadId(2), run: 1 };
    assert_eq!(launches(core.step(emptied, Moment::default())), [WorkloadId(1)]);
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let mut world = World::booted();
    let definition = definition("one", Kind::Container);
    world.call(Request::Create { definition: Box::new(definition), start: true });
    let (id, run) = *world.alive.iter().find(|(id, _)| id.0 > 1000).unwrap();
    world.owed.retain(|owed| *owed != Owed::Report(id, run));
    let failure = StartFailure { step: "execute".into(), subject: "/no".into(), errno: 2 };
    let subject = Subject::Workload { id, run };
    world.step(Event::Launched { subject, outcome: LaunchOutcome::Failed(failure) });
    world.settle();
    assert!(world.core.workload(id).is_none());
    assert!(world.disk.is_empty() && world.open_calls.is_empty());
}

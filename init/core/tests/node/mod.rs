//! A node for tests of single decisions: services, a state service and an API, and what they are told.
#![allow(dead_code, reason = "each test program uses a part of it")]

use byre_core::{Action, Boot, CallContext, ChannelId, Core, Event, ExitStatus, LaunchOutcome, Subject};
use byre_plan::{LaunchRequest, Name, Policy, Process, WorkloadId};
use byre_protocol::control::{Call, Change, FromInit, Notice, Reply, Request, Target};
use byre_protocol::definition::{Definition, Kind, Role};
use byre_protocol::status::Moment;

pub const API: ChannelId = ChannelId(1);
pub const STATE: ChannelId = ChannelId(2);
pub const NEW: WorkloadId = WorkloadId(1000);

pub fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

pub fn definition(text: &str, kind: Kind) -> Definition {
    let is_container = kind == Kind::Container;
    let root = if is_container {
        serde_json::json!({"layers": {"layers": [vec![7; 32]], "read_only": false}})
    } else {
        "host".into()
    };
    let launch: LaunchRequest = serde_json::from_value(serde_json::json!({
        "process": {"args": ["/bin/true"]},
        "root": root,
        "namespaces": {"user": if is_container { "automatic" } else { "host" }},
    }))
    .unwrap();
    let definition = serde_json::json!({"name": text, "kind": "container", "launch": launch});
    Definition { kind, ..serde_json::from_value(definition).unwrap() }
}

fn policy() -> Policy {
    serde_json::from_value(serde_json::json!({
        "host_network": true, "host_namespaces": false, "host_users": false, "capabilities": 0,
        "bind_sources": [], "no_seccomp": false, "helpers": []
    }))
    .unwrap()
}

/// A node with these services, a state service and an API.
pub struct Node {
    pub core: Core,
    pub now: Moment,
    sequence: u64,
}

impl Node {
    pub fn with(services: Vec<(WorkloadId, Definition)>) -> (Self, Vec<Action>) {
        Self::with_at(services, Moment::default())
    }

    /// One whose state service has not told yet what was on disk.
    pub fn booting() -> Self {
        let mut node = Self { core: Core::new(), now: Moment::default(), sequence: 0 };
        node.tell(Event::Boot(Box::new(Boot { policy: policy(), services: Vec::new() })));
        node.tell(Event::ChannelOpened { channel: STATE, role: Role::State });
        node.tell(Event::ChannelOpened { channel: API, role: Role::Api });
        node
    }

    /// One that boots at this moment.
    pub fn with_at(services: Vec<(WorkloadId, Definition)>, now: Moment) -> (Self, Vec<Action>) {
        let mut node = Self { core: Core::new(), now, sequence: 0 };
        let actions = node.tell(Event::Boot(Box::new(Boot { policy: policy(), services })));
        node.tell(Event::ChannelOpened { channel: STATE, role: Role::State });
        node.tell(Event::ChannelOpened { channel: API, role: Role::Api });
        node.ask(STATE, Request::ReplayEnd);
        (node, actions)
    }

    pub fn tell(&mut self, event: Event) -> Vec<Action> {
        self.core.step(event, self.now)
    }

    pub fn ask(&mut self, channel: ChannelId, request: Request) -> Vec<Action> {
        self.ask_as(channel, request, NEW.0)
    }

    /// With an identity for what is made.
    pub fn ask_fresh(&mut self, fresh: u64, channel: ChannelId, request: Request) -> Vec<Action> {
        self.ask_as(channel, request, fresh)
    }

    pub fn ask_as(&mut self, channel: ChannelId, request: Request, fresh: u64) -> Vec<Action> {
        self.sequence += 1;
        let context = CallContext { channel, descriptors: 0, fresh };
        self.tell(Event::Called { context, call: Box::new(Call { sequence: self.sequence, request }) })
    }

    pub fn launched(&mut self, id: WorkloadId, run: u64, outcome: LaunchOutcome) -> Vec<Action> {
        self.tell(Event::Launched { subject: Subject::Workload { id, run }, outcome })
    }

    /// A client's exec with its three descriptors.
    pub fn exec(&mut self, target: &Target, process: Box<Process>) -> Vec<Action> {
        self.sequence += 1;
        let request = Request::Exec { target: target.clone(), process };
        let context = CallContext { channel: API, descriptors: 3, fresh: 0 };
        self.tell(Event::Called { context, call: Box::new(Call { sequence: self.sequence, request }) })
    }

    /// Its program has run and has ended.
    pub fn runs_and_ends(&mut self, id: WorkloadId, code: u8) -> Vec<Action> {
        let subject = Subject::Workload { id, run: 1 };
        let mut actions = self.launched(id, 1, RUNNING);
        actions.extend(self.tell(Event::Exited { subject, status: ExitStatus::Code(code), oom_kills: 0 }));
        actions.extend(self.tell(Event::Emptied { id, run: 1 }));
        actions
    }

    pub fn at(&mut self, boot_ms: u64) -> Vec<Action> {
        self.now.boot_ms = boot_ms;
        self.tell(Event::Tick)
    }
}

pub const RUNNING: LaunchOutcome = LaunchOutcome::Running { pid: 9, terminal: false };

pub fn launches(actions: &[Action]) -> Vec<WorkloadId> {
    actions.iter().filter_map(|action| if let Action::Launch { id, .. } = action { Some(*id) } else { None }).collect()
}

/// What the API channel is answered.
pub fn answers(actions: &[Action]) -> Vec<Reply> {
    let sent = |action: &Action| match action {
        Action::Send { channel: API, message, .. } => match &**message {
            FromInit::Answer { reply, .. } => Some(reply.clone()),
            FromInit::Notice(_) => None,
        },
        _ => None,
    };
    actions.iter().filter_map(sent).collect()
}

/// What the state service is asked to write.
pub fn records(actions: &[Action]) -> Vec<(u64, Change)> {
    let sent = |action: &Action| match action {
        Action::Send { channel: STATE, message, .. } => match &**message {
            FromInit::Notice(notice) => match &**notice {
                Notice::Record { record, change } => Some((*record, (**change).clone())),
                _ => None,
            },
            FromInit::Answer { .. } => None,
        },
        _ => None,
    };
    actions.iter().filter_map(sent).collect()
}

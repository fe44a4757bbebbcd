//! What services ask for: the role decides whether, the tables and the policy decide how.

use byre_plan::{Name, Origin, Plan, Process, WorkloadId};
use byre_protocol::control::{Call, PAGE, Refused, RefusedCode, Reply, Request, ShutdownAction, Target, WORKLOADS};
use byre_protocol::definition::{
    DEFINITION_BYTES, DEPENDENCIES, Definition, HOOK_BYTES, HOOK_WORDS, Kind, LABEL_BYTES, LABELS, Role,
};
use byre_protocol::frame;
use byre_protocol::status::{Moment, Summary};

use crate::action::{Action, Attachment, Next};
use crate::core::Core;
use crate::event::{CallContext, ChannelId};
use crate::pending::{Await, Caller};
use crate::workload::{Actual, Wanted, Workload};

/// Bytes of summaries in one page: well below a message's 128 KiB.
const PAGE_BYTES: usize = 96 * 1024;
/// SIGKILL.
const KILL: u8 = 9;

/// A refusal as a reply.
pub(crate) fn refused(code: RefusedCode, text: &str) -> Refused {
    Refused { code, text: text.to_owned() }
}

fn role_may(role: Role, request: &Request) -> bool {
    match request {
        Request::Create { .. }
        | Request::Start { .. }
        | Request::Stop { .. }
        | Request::Restart { .. }
        | Request::Enable { .. }
        | Request::Disable { .. }
        | Request::Reset { .. }
        | Request::Kill { .. }
        | Request::Remove { .. }
        | Request::Inspect { .. }
        | Request::Why { .. }
        | Request::Exec { .. }
        | Request::KillExec { .. }
        | Request::OpenInput { .. }
        | Request::CloseInput { .. }
        | Request::OpenKernelLog
        | Request::Trace
        | Request::Subscribe
        | Request::ReleaseLayers
        | Request::Reexec => role == Role::Api,
        Request::List { .. } => matches!(role, Role::Api | Role::Trial),
        Request::Shutdown { action: ShutdownAction::Reboot } => matches!(role, Role::Api | Role::Update | Role::Trial),
        Request::Shutdown { action: ShutdownAction::PowerOff } => role == Role::Api,
        Request::Recorded { .. } | Request::RecordFailed { .. } | Request::Replay(_) | Request::ReplayEnd => {
            role == Role::State
        }
        Request::Probed { .. } => role == Role::Probe,
        Request::Arm { .. } | Request::Rollback | Request::Disarm => role == Role::Update,
        Request::Attached { .. } | Request::AttachFailed { .. } => role == Role::Network,
    }
}

/// The names on the way back to the first, in the order in which they wait.
fn way(first: &Name, seen: &[(&Name, Option<usize>)], mut from: Option<usize>) -> String {
    let mut names = vec![first.to_string()];
    while let Some((name, before)) = from.and_then(|at| seen.get(at)) {
        names.push(name.to_string());
        // A name was always seen after the one that led to it.
        from = before.filter(|before| from.is_some_and(|at| *before < at));
    }
    names.push(first.to_string());
    names.reverse();
    names.join(" -> ")
}

impl Core {
    pub(crate) fn called(&mut self, context: CallContext, call: Call) {
        let caller = Caller { channel: context.channel, sequence: call.sequence };
        let Some(role) = self.channels.get(&context.channel).map(|channel| channel.role) else { return };
        if !role_may(role, &call.request) {
            return self.refuse(caller, refused(RefusedCode::NotAllowed, "this channel's role may not ask that"));
        }
        match call.request {
            Request::Create { definition, start } => self.create(caller, *definition, start, context.fresh),
            Request::Start { target } => self.with_each(caller, &target, Self::start_asked),
            Request::Stop { target, grace_ms } => {
                self.with_each(caller, &target, |core, id| core.stop_asked(id, grace_ms));
            }
            Request::Restart { target, grace_ms } => {
                self.with_each(caller, &target, |core, id| core.restart_asked(id, grace_ms));
            }
            Request::Enable { target } => self.with_each(caller, &target, Self::enable_asked),
            Request::Disable { target } => self.with_each(caller, &target, Self::disable_asked),
            Request::Reset { target } => self.with_each(caller, &target, Self::reset_asked),
            Request::Kill { target, signal } => {
                self.with_target(caller, &target, |core, id| core.kill_asked(caller, id, signal));
            }
            Request::Remove { target, force } => {
                self.with_target(caller, &target, |core, id| core.remove_asked(caller, id, force));
            }
            Request::List { after } => self.list(caller, after),
            Request::Inspect { target } => self.with_target(caller, &target, |core, id| core.inspect(caller, id)),
            Request::Why { target } => self.with_target(caller, &target, |core, id| {
                let chain = core.why(id);
                core.answer(caller, Reply::Explained(chain), Attachment::None);
            }),
            Request::Exec { target, process } => {
                self.with_target(caller, &target, |core, id| core.exec_asked(context, caller, id, *process));
            }
            Request::KillExec { exec, signal } => self.kill_exec(caller, exec, signal),
            Request::OpenInput { target } => self.with_target(caller, &target, |core, id| core.open_input(caller, id)),
            Request::CloseInput { target } => self.with_target(caller, &target, |core, id| {
                core.actions.push(Action::CloseInput { id });
                core.answer(caller, Reply::Done, Attachment::None);
            }),
            Request::Trace => self.answer(caller, Reply::Descriptor, Attachment::Trace),
            Request::OpenKernelLog => self.answer(caller, Reply::Descriptor, Attachment::KernelLog),
            Request::Subscribe => self.subscribe(caller),
            Request::ReleaseLayers => {
                self.actions.push(Action::ReleaseLayers);
                self.answer(caller, Reply::Done, Attachment::None);
            }
            Request::Shutdown { action } => {
                self.answer(caller, Reply::Done, Attachment::None);
                self.shutdown_asked(action);
            }
            Request::Reexec => self.reexec_asked(caller),
            Request::Recorded { record } => self.recorded(record),
            Request::RecordFailed { record, text } => self.record_failed(record, &text),
            Request::Replay(record) => self.replay(*record),
            Request::ReplayEnd => self.replay_end(),
            Request::Probed { id, number, aim, passed } => self.probed(id, number, aim, passed),
            Request::Arm { statement, allow } => self.arm_asked(caller, Next::Release { statement, allow }),
            Request::Rollback => self.arm_asked(caller, Next::Back),
            Request::Disarm => self.arm_asked(caller, Next::Nothing),
            Request::Attached { id, run, addresses } => self.attached(id, run, addresses),
            Request::AttachFailed { id, run, text } => self.attach_failed(id, run, text),
        }
    }

    pub(crate) fn refuse(&mut self, caller: Caller, refused: Refused) {
        self.answer(caller, Reply::Refused(refused), Attachment::None);
    }

    fn find(&self, target: &Target) -> Option<WorkloadId> {
        match target {
            Target::Id(id) => self.workloads.contains_key(id).then_some(*id),
            Target::Name(name) => self.names.get(name).copied(),
        }
    }

    pub(crate) fn with_target(&mut self, caller: Caller, target: &Target, act: impl FnOnce(&mut Self, WorkloadId)) {
        match self.find(target) {
            Some(id) if self.pending.is_full() => {
                let text = format!("too many calls are under way to serve one for {id}; try again");
                self.refuse(caller, refused(RefusedCode::Full, &text));
            }
            Some(id) => act(self, id),
            None => {
                let text = match target {
                    Target::Id(id) => format!("no workload has the identity {id}"),
                    Target::Name(name) => format!("no workload is named {name}"),
                };
                self.refuse(caller, refused(RefusedCode::NotFound, &text));
            }
        }
    }

    fn create(&mut self, caller: Caller, definition: Definition, start: bool, fresh: u64) {
        match self.check_with_pod(definition, fresh) {
            Ok(made) => {
                let id = WorkloadId(fresh);
                let mut awaits = Vec::new();
                let mut starts = false;
                // The pod first: on disk, too, no container is without its own.
                for (id, definition, plan) in made {
                    let id_base = self.assign_ids(&definition);
                    let name = definition.name.clone();
                    let is_asked_for = id == WorkloadId(fresh);
                    let mut workload = Workload::new(id, definition, plan, id_base, self.now);
                    workload.wanted = if start && is_asked_for { Wanted::Up } else { Wanted::Down };
                    // What begins by itself has not begun yet: nothing of it can fail now.
                    let waits = start && is_asked_for && workload.wait_for_its_time(self.now);
                    starts |= start && is_asked_for && !waits;
                    workload.remove_if_start_fails = start && is_asked_for && !waits;
                    self.workloads.insert(id, workload);
                    self.names.insert(name, id);
                    self.tell(id, byre_protocol::control::What::Created);
                    awaits.extend(self.record_put(id).map(Await::Record));
                }
                if starts {
                    awaits.push(Await::Running(id));
                }
                if start {
                    // Its own pod is wanted as it is, also while it waits for its time.
                    self.reconsider();
                }
                self.answer_when(caller, awaits, Reply::Created { id }, 0);
            }
            Err(refused) => self.refuse(caller, refused),
        }
    }

    /// Checks a new workload, and the pod of its own that a container with a network is given.
    fn check_with_pod(
        &self,
        mut definition: Definition,
        fresh: u64,
    ) -> Result<Vec<(WorkloadId, Definition, Plan)>, Refused> {
        let plan = self.check_definition(&definition, fresh)?;
        if definition.kind == Kind::Pod {
            return Ok(vec![(WorkloadId(fresh), definition, plan)]);
        }
        let invalid = |text: String| Refused { code: RefusedCode::Invalid, text };
        let pod_name =
            Name::try_from(format!("pod-{}", WorkloadId(fresh))).map_err(|error| invalid(error.to_string()))?;
        let Some(pod) = definition.split_off_pod(pod_name) else {
            return Ok(vec![(WorkloadId(fresh), definition, plan)]);
        };
        let pod_plan = self.check_definition(&pod, !fresh)?;
        if self.workloads.len().saturating_add(1) >= WORKLOADS {
            let text =
                format!("a container with a network counts twice, and the node has {WORKLOADS} at most; remove some");
            return Err(refused(RefusedCode::Full, &text));
        }
        let policy = self.policy.clone().unwrap_or_default();
        let plan = Plan::check(definition.launch_in_pod(), &policy, Origin::Client)
            .map_err(|refusal| invalid(format!("{}: {refusal}", definition.name)))?;
        Ok(vec![(WorkloadId(!fresh), pod, pod_plan), (WorkloadId(fresh), definition, plan)])
    }

    fn check_definition(&self, definition: &Definition, fresh: u64) -> Result<Plan, Refused> {
        let invalid = |text: String| Err(Refused { code: RefusedCode::Invalid, text });
        let name = &definition.name;
        if self.ending.is_some() {
            return Err(refused(RefusedCode::ShuttingDown, "the node is shutting down"));
        }
        let (Some(policy), true) = (&self.policy, self.records.replayed) else {
            return Err(refused(RefusedCode::NotDurable, "the durable state is not loaded yet; try again"));
        };
        if self.names.contains_key(name) {
            let text = format!("name {name} is taken; choose another or remove that container");
            return Err(refused(RefusedCode::NameTaken, &text));
        }
        if let Some(refusal) = self.group_refusal(definition) {
            return Err(refusal);
        }
        if self.workloads.len() >= WORKLOADS || self.records.is_full() || self.pending.is_full() {
            let text = format!("the node has {} workloads, its most is {WORKLOADS}; remove some", self.workloads.len());
            return Err(refused(RefusedCode::Full, &text));
        }
        if self.workloads.contains_key(&WorkloadId(fresh)) {
            return Err(refused(RefusedCode::Full, "identity collision; try again"));
        }
        if definition.kind == Kind::Service {
            return invalid(format!("{name}: only containers and jobs can be made; services come with the system"));
        }
        if !definition.grants.is_empty() {
            return invalid(format!("{name}: a container can have no grants"));
        }
        if [&definition.needs, &definition.binds_to, &definition.after].iter().any(|names| names.len() > DEPENDENCIES) {
            return invalid(format!("{name}: at most {DEPENDENCIES} dependencies"));
        }
        if let Some(missing) = definition.requires().find(|needed| self.members(needed).next().is_none()) {
            return invalid(format!("{name} needs {missing}, which does not exist; make it first"));
        }
        if let Some(through) = self.waits_for_itself(definition) {
            return invalid(format!("{name} would wait for itself: {through}; leave one of these dependencies out"));
        }
        if definition.labels.len() > LABELS
            || definition.labels.iter().any(|(key, value)| key.len() > LABEL_BYTES || value.len() > LABEL_BYTES)
        {
            return invalid(format!("{name}: at most {LABELS} labels of {LABEL_BYTES} bytes each"));
        }
        // A longer one could be neither put on disk nor shown: its caller would wait for ever.
        if frame::encode(definition).map_or(usize::MAX, |bytes| bytes.len()) > DEFINITION_BYTES {
            return invalid(format!(
                "{name}: it takes more than {DEFINITION_BYTES} bytes; shorten its environment, arguments or labels"
            ));
        }
        if !(1..=64).contains(&definition.stop.signal) {
            return invalid(format!("{name}: stop signal {} is not 1 to 64", definition.stop.signal));
        }
        if !definition.stop.hook_is_bounded() {
            return invalid(format!(
                "{name}: a stop hook has at most {HOOK_WORDS} words of {HOOK_BYTES} bytes together"
            ));
        }
        if let Some(refusal) = definition.refusal() {
            return invalid(format!("{name}: {refusal}"));
        }
        if let Some(refusal) = self.pod_refusal(definition) {
            return invalid(format!("{name}: {refusal}"));
        }
        if definition.shutdown_priority > 99 {
            return invalid(format!("{name}: shutdown priority of a container is at most 99"));
        }
        Plan::check(definition.launch_in_pod(), policy, Origin::Client)
            .or_else(|refusal| invalid(format!("{name}: {refusal}")))
    }

    /// The way on which a new workload would wait for itself through others, such as `a -> b -> a`.
    fn waits_for_itself(&self, definition: &Definition) -> Option<String> {
        let mut seen: Vec<(&Name, Option<usize>)> = Vec::new();
        let mut open: Vec<(&Name, Option<usize>)> = definition.waits_for().map(|name| (name, None)).collect();
        while let Some((name, from)) = open.pop() {
            // A group that it is to be part of leads back to it, too.
            if *name == definition.name || Some(name) == definition.group.as_ref() {
                return Some(way(&definition.name, &seen, from));
            }
            if seen.iter().any(|(other, _)| *other == name) {
                continue;
            }
            let at = seen.len();
            seen.push((name, from));
            let next = self.members(name).flat_map(|next| next.definition.waits_for());
            open.extend(next.map(|name| (name, Some(at))));
        }
        None
    }

    fn refuse_for_service(&mut self, caller: Caller, id: WorkloadId, verb: &str) -> bool {
        match self.not_a_service(id, verb) {
            Ok(()) => false,
            Err(refused) => {
                self.refuse(caller, refused);
                true
            }
        }
    }

    fn kill_asked(&mut self, caller: Caller, id: WorkloadId, signal: u8) {
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        let name = workload.definition.name.clone();
        if !(1..=64).contains(&signal) {
            return self.refuse(caller, refused(RefusedCode::Invalid, &format!("signal {signal} is not 1 to 64")));
        }
        if workload.definition.kind == Kind::Pod {
            let text = format!("pod {name} has no process; stop it, or name a container of it");
            return self.refuse(caller, refused(RefusedCode::WrongState, &text));
        }
        if !matches!(workload.actual, Actual::Up { .. } | Actual::Stopping { .. }) {
            return self.refuse(caller, refused(RefusedCode::WrongState, &format!("{name} is not running")));
        }
        if signal == KILL {
            if !workload.built_in && workload.wanted == Wanted::Up {
                workload.wanted = Wanted::Down;
            }
            let run = workload.run;
            self.actions.push(Action::KillAll { id, run });
        } else {
            self.actions.push(Action::Signal { id, signal });
        }
        self.answer(caller, Reply::Done, Attachment::None);
    }

    fn remove_asked(&mut self, caller: Caller, id: WorkloadId, force: bool) {
        if self.refuse_for_service(caller, id, "removed") {
            return;
        }
        let Some(workload) = self.workloads.get(&id) else { return };
        let user = self.in_pod(&workload.definition.name).find(|user| user.wanted != Wanted::Gone);
        if let (Kind::Pod, Some(user)) = (workload.definition.kind, user) {
            let (pod, user) = (&workload.definition.name, &user.definition.name);
            let text = format!("{user} is in pod {pod}; remove that first");
            return self.refuse(caller, refused(RefusedCode::WrongState, &text));
        }
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        if workload.has_processes() && !force {
            let text = format!("{} is running; stop it first, or remove it with force", workload.definition.name);
            return self.refuse(caller, refused(RefusedCode::WrongState, &text));
        }
        workload.wanted = Wanted::Gone;
        workload.start_once_down = false;
        let already = matches!(workload.actual, Actual::Removing);
        let running = workload.has_processes();
        self.answer_when(caller, vec![Await::Gone(id)], Reply::Done, 0);
        self.give_up_waiting_for_start(id);
        if running {
            self.stop(id, None, 0);
        } else if !already {
            self.begin_removal(id);
        }
    }

    pub(crate) fn give_up_waiting_for_start(&mut self, id: WorkloadId) {
        let text = "it was stopped before its program ran";
        for (caller, reply) in self.pending.failed(Await::Running(id), RefusedCode::WrongState, text) {
            self.answer(caller, reply, Attachment::None);
        }
    }

    fn list(&mut self, caller: Caller, after: Option<WorkloadId>) {
        let behind = self
            .workloads
            .range((after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded), std::ops::Bound::Unbounded));
        let mut page: Vec<Summary> = Vec::new();
        let mut bytes = 0_usize;
        let mut more = false;
        for (_, workload) in behind {
            // Labels, and twice the path that a failed start names: neither is short for sure.
            let summary = workload.summary();
            let size = frame::encode(&summary).map_or(PAGE_BYTES, |encoded| encoded.len());
            if page.len() >= PAGE || (bytes.saturating_add(size) > PAGE_BYTES && !page.is_empty()) {
                more = true;
                break;
            }
            bytes = bytes.saturating_add(size);
            page.push(summary);
        }
        self.answer(caller, Reply::Page { workloads: page, more }, Attachment::None);
    }

    fn inspect(&mut self, caller: Caller, id: WorkloadId) {
        let Some(workload) = self.workloads.get(&id) else { return };
        let mut detail = workload.detail();
        let pod = workload.definition.pod.as_ref().and_then(|pod| self.workloads.get(self.names.get(pod)?));
        detail.addresses.extend(pod.into_iter().flat_map(|pod| pod.addresses.iter().cloned()));
        self.answer(caller, Reply::Inspected(Box::new(detail)), Attachment::None);
    }

    fn exec_asked(&mut self, context: CallContext, caller: Caller, id: WorkloadId, process: Process) {
        if self.refuse_for_service(caller, id, "entered") {
            return;
        }
        if self.pid_if_up(id).is_none() {
            let text = format!("{} is not running; start it first", self.name_of(id));
            return self.refuse(caller, refused(RefusedCode::WrongState, &text));
        }
        self.begin_exec(context, caller, id, process);
    }

    fn open_input(&mut self, caller: Caller, id: WorkloadId) {
        let Some(workload) = self.workloads.get(&id) else { return };
        let terminal = workload.definition.launch.process.terminal.is_some();
        if !terminal && !workload.definition.open_stdin {
            let text = format!("{} was made without open standard input (-i)", workload.definition.name);
            return self.refuse(caller, refused(RefusedCode::WrongState, &text));
        }
        if terminal && self.pid_if_up(id).is_none() {
            let text = format!("{} is not running; start it first", workload.definition.name);
            return self.refuse(caller, refused(RefusedCode::WrongState, &text));
        }
        self.answer(caller, Reply::Input { terminal }, Attachment::Input(id));
    }

    fn subscribe(&mut self, caller: Caller) {
        if let Some(channel) = self.channels.get_mut(&caller.channel) {
            channel.subscribed = true;
        }
        self.answer(caller, Reply::Done, Attachment::None);
    }

    fn name_of(&self, id: WorkloadId) -> String {
        self.workloads.get(&id).map(|workload| Name::to_string(&workload.definition.name)).unwrap_or_default()
    }

    /// The moment of the present step.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Channels of a role, for the supervisor's own messages.
    pub fn channels_of(&self, role: Role) -> impl Iterator<Item = ChannelId> + '_ {
        self.channels.iter().filter(move |(_, channel)| channel.role == role).map(|(id, _)| *id)
    }
}

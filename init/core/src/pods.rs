//! Pods: workloads that are namespaces and no process, and the containers in them.
//!
//! ```text
//!   launch child: namespaces made ─▶ Up, not ready ─ told to the network service ─▶ attached ─▶ ready ─▶ its containers start
//!                                        └─ no network asked for ─────────────────────────────▶ ┘
//!   stopped: its containers end first ─▶ namespaces released ─▶ told to the network service ─▶ Down
//! ```
//!
//! A network service that restarts is told of every pod again, with the addresses that it has, so nothing that runs notices. A container that asks
//! for a network is split in two when it is made: itself and a pod of its own, which is up while the container is wanted and goes with it.

use std::collections::BTreeMap;

use byre_plan::{Name, WorkloadId};
use byre_protocol::control::{Notice, RefusedCode};
use byre_protocol::definition::{Definition, Kind, Role};
use byre_protocol::pod::{ADDRESSES, PodAddress};
use byre_protocol::status::{Cause, StartFailure, Why};

use crate::action::{Action, Attachment};
use crate::core::Core;
use crate::event::ChannelId;
use crate::lifecycle::describe_failure;
use crate::pending::Await;
use crate::workload::{Actual, Ready, Wanted, Workload};

impl Core {
    /// A pod's namespaces are there.
    pub(crate) fn pod_made(&mut self, id: WorkloadId) {
        let since = self.now;
        self.set_actual(id, Actual::Up { since, ready: Ready::NotYet, pid: 0 });
        let asks = self.workloads.get(&id).is_some_and(|workload| asks_for_network(&workload.definition));
        if asks {
            let channels: Vec<ChannelId> = self.channels_of(Role::Network).collect();
            for channel in channels {
                self.offer_pod(channel, id);
            }
        } else {
            self.pod_is_ready(id);
        }
    }

    fn pod_is_ready(&mut self, id: WorkloadId) {
        self.begin_start(id);
        self.met(Await::Running(id));
    }

    /// The network service has put a pod into its networks, or has found it there.
    pub(crate) fn attached(&mut self, id: WorkloadId, run: u64, mut addresses: Vec<PodAddress>) {
        let Some(workload) = self.workloads.get_mut(&id).filter(|workload| workload.run == run) else { return };
        let Actual::Up { ready, .. } = &workload.actual else { return };
        addresses.truncate(ADDRESSES);
        let is_new = *ready == Ready::NotYet;
        workload.addresses = addresses;
        if is_new {
            self.pod_is_ready(id);
        }
    }

    /// The network service cannot: the run is over, and the restart policy decides.
    pub(crate) fn attach_failed(&mut self, id: WorkloadId, run: u64, text: String) {
        let Some(workload) = self.workloads.get(&id).filter(|workload| workload.run == run) else { return };
        let Actual::Up { since, .. } = workload.actual else { return };
        let failure = StartFailure { step: "attach to the network".to_owned(), subject: text, errno: 0 };
        self.set_actual(id, Actual::Draining { since, cause: Cause::StartFailed(failure) });
        self.actions.push(Action::KillAll { id, run });
    }

    /// A network service has (re)started: tell it of every pod.
    pub(crate) fn offer_pods(&mut self, channel: ChannelId) {
        let pods: Vec<WorkloadId> = self
            .workloads
            .values()
            .filter(|workload| matches!(workload.actual, Actual::Up { .. }) && asks_for_network(&workload.definition))
            .map(Workload::id)
            .collect();
        for id in pods {
            self.offer_pod(channel, id);
        }
        self.notify(channel, Notice::AttachEnd, Attachment::None);
    }

    fn offer_pod(&mut self, channel: ChannelId, id: WorkloadId) {
        let Some(workload) = self.workloads.get(&id) else { return };
        let Some(network) = &workload.definition.network else { return };
        let notice = Notice::Attach {
            id,
            run: workload.run,
            name: workload.definition.name.clone(),
            network: Box::new(network.clone()),
            addresses: workload.addresses.clone(),
        };
        self.notify(channel, notice, Attachment::Network(id));
    }

    /// A pod's run is over.
    pub(crate) fn pod_emptied(&mut self, id: WorkloadId) {
        let Some(workload) = self.workloads.get_mut(&id).filter(|workload| workload.definition.kind == Kind::Pod)
        else {
            return;
        };
        workload.addresses.clear();
        self.notify_role(Role::Network, &Notice::Detach { id }, Attachment::None);
    }

    /// A run of what may be in a pod is over; the pod may have waited for that.
    pub(crate) fn left_pod(&mut self, id: WorkloadId) {
        let pod = self.workloads.get(&id).and_then(|workload| workload.definition.pod.as_ref());
        if let Some(pod) = pod.and_then(|name| self.names.get(name)).copied() {
            self.end_pod_without_users(pod);
        }
    }

    /// A pod that is to stop and whose last container has ended has nothing to wait for.
    pub(crate) fn end_pod_without_users(&mut self, id: WorkloadId) {
        let Some(pod) = self.workloads.get(&id) else { return };
        let Actual::Stopping { since, rung: byre_protocol::status::Rung::Signal, because, .. } = &pod.actual else {
            return;
        };
        let (run, since, because) = (pod.run, *since, because.clone());
        if pod.definition.kind == Kind::Pod && !self.in_pod(&pod.definition.name).any(Workload::has_processes) {
            self.kill(id, run, since, because);
        }
    }

    /// What is in a pod of this name.
    pub(crate) fn in_pod<'a>(&'a self, pod: &'a Name) -> impl Iterator<Item = &'a Workload> {
        self.workloads.values().filter(move |workload| workload.definition.pod.as_ref() == Some(pod))
    }

    /// How long a pod waits for its containers: as long as the longest of them has, and the time of its kill.
    pub(crate) fn pod_grace_ms(&self, pod: &Name, own_ms: u32, kill_ms: u32) -> u32 {
        let graces = self.in_pod(pod).map(|workload| workload.definition.stop.grace_ms);
        graces.max().map_or(own_ms, |grace_ms| grace_ms.max(own_ms).saturating_add(kill_ms))
    }

    /// Pods that are containers' own are wanted as these are. Not before all of these are known.
    pub(crate) fn follow_containers(&mut self) {
        if !self.records.replayed {
            return;
        }
        // By pod: whether something in it is to run, or still does.
        let mut users: BTreeMap<&Name, bool> = BTreeMap::new();
        for workload in self.workloads.values() {
            if let Some(pod) = &workload.definition.pod {
                *users.entry(pod).or_default() |= workload.wanted == Wanted::Up || workload.has_processes();
            }
        }
        let own = |workload: &&Workload| {
            workload.definition.kind == Kind::Pod
                && workload.definition.remove_on_exit
                && !matches!(workload.actual, Actual::Removing)
        };
        let follow = |workload: &Workload| {
            let next = match users.get(&workload.definition.name) {
                None => Wanted::Gone,
                Some(true) => Wanted::Up,
                Some(false) => Wanted::Down,
            };
            (next != workload.wanted).then_some((workload.id, next))
        };
        let changes: Vec<(WorkloadId, Wanted)> = self.workloads.values().filter(own).filter_map(follow).collect();
        for (id, wanted) in changes {
            self.pod_is_wanted(id, wanted);
        }
    }

    fn pod_is_wanted(&mut self, id: WorkloadId, wanted: Wanted) {
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        workload.wanted = wanted;
        let has_processes = workload.has_processes();
        match wanted {
            Wanted::Up => {
                workload.streak = 0;
                match workload.actual {
                    Actual::Stopping { .. } | Actual::Draining { .. } => workload.start_once_down = true,
                    Actual::Down { .. } => workload.actual = Actual::Down { why: Why::Created },
                    Actual::Starting { .. } | Actual::Up { .. } | Actual::Backoff { .. } | Actual::Removing => {}
                }
            }
            Wanted::Down | Wanted::Disabled | Wanted::Gone => {
                workload.start_once_down = false;
                self.stop(id, None, 0);
            }
        }
        if wanted == Wanted::Gone && !has_processes {
            self.begin_removal(id);
        } else {
            self.record_put(id);
        }
    }

    /// A pod did not start: clients that wait for a container in it are told, as if it had failed itself.
    pub(crate) fn refuse_starts_in_pod(&mut self, id: WorkloadId, cause: &Cause) {
        let Some(pod) = self.workloads.get(&id).filter(|workload| workload.definition.kind == Kind::Pod) else {
            return;
        };
        let Cause::StartFailed(failure) = cause else { return };
        let users: Vec<WorkloadId> = self
            .in_pod(&pod.definition.name)
            .filter(|user| !user.has_processes() && self.pending.waits_for(Await::Running(user.id)))
            .map(Workload::id)
            .collect();
        for user in users {
            let Some(workload) = self.workloads.get_mut(&user) else { continue };
            let is_undone = workload.run == 0 && workload.remove_if_start_fails;
            workload.wanted = if is_undone { Wanted::Gone } else { Wanted::Down };
            let text = describe_failure(workload.definition.name.as_str(), failure);
            for (caller, reply) in self.pending.failed(Await::Running(user), RefusedCode::StartFailed, &text) {
                self.answer(caller, reply, Attachment::None);
            }
            self.set_actual(user, Actual::Down { why: Why::Stopped });
            if is_undone {
                self.begin_removal(user);
            } else {
                self.record_put(user);
            }
        }
    }

    /// What keeps a new workload from being what it says of pods, if something does.
    pub(crate) fn pod_refusal(&self, definition: &Definition) -> Option<String> {
        if let Some(refusal) = definition.pod_refusal() {
            return Some(refusal);
        }
        let pod = self.workloads.get(self.names.get(definition.pod.as_ref()?)?)?;
        if pod.definition.remove_on_exit {
            return Some(format!("pod {} is another container's own", pod.definition.name));
        }
        definition.cannot_join(&pod.definition)
    }
}

fn asks_for_network(definition: &Definition) -> bool {
    definition.kind == Kind::Pod && definition.network.as_ref().is_some_and(|network| !network.networks.is_empty())
}

//! The node's services as PID 1 sees them: channels that open with a run and close with its end, the state service's disk, the probes,
//! and the calls that clients wait for.

use std::collections::{BTreeMap, BTreeSet};

use byre_core::ChannelId;
use byre_plan::WorkloadId;
use byre_protocol::control::{Change, WorkloadRecord};
use byre_protocol::definition::Role;
use byre_protocol::pod::PodAddress;
use byre_protocol::probe::Aim;

/// A service's end of its control channel.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) role: Role,
    pub(crate) workload: WorkloadId,
    pub(crate) run: u64,
    /// It has done what it does first: the state service has replayed its disk, others have said that they are ready.
    pub(crate) started: bool,
    /// Role state: changes that it has not written yet.
    pub(crate) records: BTreeMap<u64, Change>,
    /// Role probe: what it is to ask.
    pub(crate) probes: BTreeMap<(WorkloadId, Aim), Asked>,
    /// Role network: pods that are to be put into their networks, with the run and the addresses they have.
    pub(crate) attaches: BTreeMap<WorkloadId, (u64, Vec<PodAddress>)>,
    /// Role api: calls without an answer.
    pub(crate) calls: BTreeSet<u64>,
}

/// A question of the probe service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) number: u64,
    /// The verdict that PID 1 was told last.
    pub(crate) told: Option<bool>,
}

/// All channels, and what outlives them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peers {
    pub(crate) open: BTreeMap<ChannelId, Peer>,
    next: u64,
    pub(crate) next_call: u64,
    pub(crate) disk: BTreeMap<WorkloadId, WorkloadRecord>,
    /// Workloads whose last change could not be written: the disk may differ for them.
    pub(crate) unwritten: BTreeSet<WorkloadId>,
}

impl Peers {
    /// A channel for a run that is about to start.
    pub(crate) fn open(&mut self, role: Role, workload: WorkloadId, run: u64) -> ChannelId {
        self.next += 1;
        let channel = ChannelId(self.next);
        let peer = Peer {
            role,
            workload,
            run,
            started: false,
            records: BTreeMap::new(),
            probes: BTreeMap::new(),
            attaches: BTreeMap::new(),
            calls: BTreeSet::new(),
        };
        self.open.insert(channel, peer);
        channel
    }

    /// The channel of a service, if it has one.
    pub(crate) fn channel_of(&self, workload: WorkloadId) -> Option<ChannelId> {
        self.open.iter().find(|(_, peer)| peer.workload == workload).map(|(channel, _)| *channel)
    }

    /// A service of this role that has started, if there is one.
    pub(crate) fn serving(&mut self, role: Role) -> Option<(ChannelId, &mut Peer)> {
        self.open.iter_mut().find(|(_, peer)| peer.role == role && peer.started).map(|(channel, peer)| (*channel, peer))
    }

    /// Puts a change on the disk.
    pub(crate) fn write(&mut self, change: Change) {
        match change {
            Change::Put(record) => {
                self.unwritten.remove(&record.id);
                self.disk.insert(record.id, *record);
            }
            Change::Remove(id) => {
                self.unwritten.remove(&id);
                self.disk.remove(&id);
            }
        }
    }
}

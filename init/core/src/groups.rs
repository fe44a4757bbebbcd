//! Groups: workloads that are started, stopped and waited for under one name. A group is nothing but its members; it is there as long
//! as one of them is, and its name is no workload's.

use byre_plan::{Name, WorkloadId};
use byre_protocol::control::{Refused, RefusedCode, Reply, Target};
use byre_protocol::definition::{Definition, GROUP_MEMBERS};

use crate::core::Core;
use crate::pending::{Await, Caller};
use crate::requests::refused;
use crate::workload::Workload;

/// What a request waits for before it is answered.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) awaits: Vec<Await>,
    pub(crate) grace_ms: u32,
}

impl Core {
    /// What a name stands for: a workload, or all of a group.
    pub(crate) fn members<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a Workload> {
        let one = self.names.get(name).and_then(|id| self.workloads.get(id));
        // Only a name that is no workload's can be a group's, so nobody looks for groups on the usual way.
        let group = one
            .is_none()
            .then(|| self.workloads.values().filter(move |workload| workload.definition.group.as_ref() == Some(name)));
        one.into_iter().chain(group.into_iter().flatten())
    }

    /// Whether there is something of this name, and all of it is ready.
    pub(crate) fn is_all_ready(&self, name: &Name) -> bool {
        let mut members = self.members(name).peekable();
        members.peek().is_some() && members.all(Workload::is_ready)
    }

    /// What of a name is not ready: a member, or the name itself if there is nothing of it.
    pub(crate) fn unready(&self, name: &Name) -> Option<Name> {
        let mut members = self.members(name).peekable();
        if members.peek().is_none() {
            return Some(name.clone());
        }
        members.find(|member| !member.is_ready()).map(|member| member.definition.name.clone())
    }

    /// What is wrong with the names that a new workload takes, if something is.
    pub(crate) fn group_refusal(&self, definition: &Definition) -> Option<Refused> {
        let name = &definition.name;
        if self.members(name).next().is_some() {
            let text = format!("name {name} is taken by a workload or a group; choose another");
            return Some(refused(RefusedCode::NameTaken, &text));
        }
        let group = definition.group.as_ref()?;
        if group == name || self.names.contains_key(group) {
            let text = format!("{name}: group {group} has the name of a workload; choose another");
            return Some(refused(RefusedCode::Invalid, &text));
        }
        if self.members(group).any(|member| member.built_in) {
            let text = format!("{name}: group {group} is the system's; choose another");
            return Some(refused(RefusedCode::NotAllowed, &text));
        }
        (self.members(group).count() >= GROUP_MEMBERS).then(|| {
            refused(RefusedCode::Full, &format!("group {group} has {GROUP_MEMBERS} members, its most; make another"))
        })
    }

    /// Does something to a workload or to all of a group; answers once all of it is so. The first refusal is the answer; what was done
    /// before it stays.
    pub(crate) fn with_each(
        &mut self,
        caller: Caller,
        target: &Target,
        act: impl Fn(&mut Self, WorkloadId) -> Result<Asked, Refused>,
    ) {
        let group: Vec<WorkloadId> = match target {
            Target::Name(name) if !self.names.contains_key(name) => self.members(name).map(Workload::id).collect(),
            Target::Name(_) | Target::Id(_) => Vec::new(),
        };
        if group.is_empty() {
            return self.with_target(caller, target, |core, id| match act(core, id) {
                Ok(Asked { awaits, grace_ms }) => core.answer_when(caller, awaits, Reply::Done, grace_ms),
                Err(refused) => core.refuse(caller, refused),
            });
        }
        if self.pending.is_full() {
            let text = "too many calls are under way to serve one for a group; try again";
            return self.refuse(caller, refused(RefusedCode::Full, text));
        }
        let mut all = Asked::default();
        for id in group {
            match act(self, id) {
                Ok(Asked { awaits, grace_ms }) => {
                    all.awaits.extend(awaits);
                    all.grace_ms = all.grace_ms.max(grace_ms);
                }
                Err(refused) => return self.refuse(caller, refused),
            }
        }
        self.answer_when(caller, all.awaits, Reply::Done, all.grace_ms);
    }
}

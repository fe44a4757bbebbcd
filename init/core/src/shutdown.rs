//! The end of the machine: workloads stop in the order of their priorities, each within its grace, all within one deadline.
//!
//! Nothing that ignores signals can hold it up: a stop ends with `cgroup.kill`, what sleeps in the kernel is left behind, and at the
//! last deadline the machine ends whatever is still there.

use byre_plan::WorkloadId;
use byre_protocol::control::{Notice, ShutdownAction};
use byre_protocol::status::Why;

use crate::action::{Action, Attachment};
use crate::core::Core;
use crate::event::ChannelId;
use crate::workload::{Actual, Workload};

/// The longest shutdown: Kubernetes' and docker's longest usual grace is 30 s; one for containers, one for services, one to spare.
const SHUTDOWN_MS: u64 = 90_000;
/// Of that, what everything that clients made has, whatever graces and priorities it asks for: what is left is the services', which have to
/// write down what became of it.
const OF_CLIENTS_MS: u64 = 60_000;
/// Services begin at this priority.
const SERVICES: u8 = 100;
/// The longest grace of one workload at shutdown.
const GRACE_MS: u32 = 30_000;

/// A shutdown under way.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    pub(crate) action: ShutdownAction,
    pub(crate) deadline_boot_ms: u64,
    pub(crate) finished: bool,
}

impl Ending {
    pub(crate) fn deadline_boot_ms(&self) -> Option<u64> {
        (!self.finished).then_some(self.deadline_boot_ms)
    }
}

impl Core {
    pub(crate) fn shutdown_asked(&mut self, action: ShutdownAction) {
        if self.ending.is_some() {
            return;
        }
        self.say(match action {
            ShutdownAction::PowerOff => "shutting down".to_owned(),
            ShutdownAction::Reboot => "rebooting".to_owned(),
        });
        let deadline_boot_ms = self.now.boot_ms.saturating_add(SHUTDOWN_MS);
        self.ending = Some(Ending { action, deadline_boot_ms, finished: false });
        let channels: Vec<ChannelId> = self.channels.keys().copied().collect();
        for channel in channels {
            self.notify(channel, Notice::ShuttingDown, Attachment::None);
        }
        let waiting: Vec<WorkloadId> = self
            .workloads
            .values()
            .filter(|workload| matches!(workload.actual, Actual::Backoff { .. }))
            .map(Workload::id)
            .collect();
        for id in waiting {
            self.set_actual(id, Actual::Down { why: Why::Shutdown });
        }
    }

    /// Stops what has the lowest priority of all that still runs; ends the machine when nothing does.
    pub(crate) fn advance_ending(&mut self) {
        let Some(ending) = &self.ending else { return };
        if ending.finished {
            return;
        }
        let action = ending.action;
        let out_of_time = ending.deadline_boot_ms <= self.now.boot_ms;
        let lowest = self
            .workloads
            .values()
            .filter(|workload| workload.has_processes())
            .map(|workload| workload.definition.shutdown_priority)
            .min();
        match lowest {
            Some(priority) if !out_of_time => self.stop_priority(priority),
            Some(_) | None => {
                if out_of_time {
                    self.say("shutdown is out of time; the rest is left behind".to_owned());
                }
                if let Some(ending) = &mut self.ending {
                    ending.finished = true;
                }
                self.actions.push(Action::Finish(action));
            }
        }
    }

    /// What of its share of the shutdown a priority has left.
    fn budget_ms(&self, priority: u8) -> u32 {
        let Some(ending) = &self.ending else { return 0 };
        let kept_back = if priority < SERVICES { SHUTDOWN_MS.saturating_sub(OF_CLIENTS_MS) } else { 0 };
        let end = ending.deadline_boot_ms.saturating_sub(kept_back);
        u32::try_from(end.saturating_sub(self.now.boot_ms)).unwrap_or(u32::MAX)
    }

    fn stop_priority(&mut self, priority: u8) {
        let budget_ms = self.budget_ms(priority);
        let due: Vec<(WorkloadId, u32)> = self
            .workloads
            .values()
            .filter(|workload| workload.definition.shutdown_priority == priority)
            .filter(|workload| matches!(workload.actual, Actual::Up { .. } | Actual::Starting { .. }))
            .map(|workload| (workload.id, workload.definition.stop.grace_ms.min(GRACE_MS).min(budget_ms)))
            .collect();
        for (id, grace_ms) in due {
            self.stop(id, None, grace_ms);
        }
    }
}

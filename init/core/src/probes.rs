//! Whether a workload has started, is ready, and is alive: who is asked what and when, and what the answers change.
//!
//! ```text
//!   program runs ─▶ start-up asked ── passed ──▶ started ─▶ readiness and liveness asked
//!               └── nothing to ask, or READY=1 ──▶ ┘
//! ```
//!
//! The service `probe` asks over the network and tells its verdicts. Commands are exec sessions that PID 1 starts, and a watchdog is a
//! message that must not stay away: their answers are counted here, in the same way. A service `probe` that is down asks nobody, so
//! nobody is stopped for it.

use byre_plan::WorkloadId;
use byre_protocol::control::Notice;
use byre_protocol::definition::{Definition, Kind, ReadyWhen, Role};
use byre_protocol::probe::{Aim, Check, Judgement, Probe};
use byre_protocol::status::Cause;

use crate::action::Attachment;
use crate::core::Core;
use crate::workload::{Actual, Ready, Workload};

/// A question that is being asked of the present run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Asking {
    /// When the first attempt is due.
    pub(crate) from_boot_ms: u64,
    /// When PID 1 itself does something next: the next command, or the end of a watchdog's patience. None while a command runs, and
    /// where the service `probe` asks.
    pub(crate) at_boot_ms: Option<u64>,
    pub(crate) judgement: Judgement,
    /// Attempts or verdicts of this run that said no, for people.
    pub(crate) failed: u32,
}

impl Core {
    /// A workload's program runs.
    pub(crate) fn begin_start(&mut self, id: WorkloadId) {
        let Some(workload) = self.workloads.get(&id) else { return };
        if workload.definition.startup.is_some() {
            self.ask(id, Aim::Startup);
        } else if workload.definition.readiness.when != ReadyWhen::Notify {
            self.start_is_over(id);
        }
    }

    /// It has started: whether it is ready and alive counts from here on.
    fn start_is_over(&mut self, id: WorkloadId) {
        let now_ms = self.now.boot_ms;
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        workload.started_boot_ms = Some(now_ms);
        if workload.asking.remove(&Aim::Startup).is_some() {
            self.notify_role(Role::Probe, &Notice::ProbeEnd { id }, Attachment::None);
        }
        self.ask(id, Aim::Readiness);
        self.ask(id, Aim::Liveness);
        if self.workloads.get(&id).is_some_and(Workload::ready_when_started) {
            self.becomes_ready(id);
        }
    }

    fn becomes_ready(&mut self, id: WorkloadId) {
        let Some(workload) = self.workloads.get(&id) else { return };
        let (kind, name) = (workload.definition.kind, workload.definition.name.clone());
        if let Actual::Up { since, ready: Ready::NotYet | Ready::NoLonger, pid } = workload.actual {
            if kind == Kind::Service {
                // A boot's chart is drawn from these lines.
                let took_ms = self.now.boot_ms.saturating_sub(since.boot_ms);
                self.say(format!("service {name} is ready after {took_ms} ms"));
            }
            self.set_actual(id, Actual::Up { since, ready: Ready::Now, pid });
        }
    }

    fn is_ready_no_longer(&mut self, id: WorkloadId) {
        let Some(workload) = self.workloads.get(&id) else { return };
        let name = workload.definition.name.clone();
        if let Actual::Up { since, ready: Ready::Now, pid } = workload.actual {
            self.say(format!("{name} is not ready any more"));
            self.set_actual(id, Actual::Up { since, ready: Ready::NoLonger, pid });
        }
    }

    fn ask(&mut self, id: WorkloadId, aim: Aim) {
        let now_ms = self.now.boot_ms;
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        let Some(probe) = workload.definition.probe(aim) else { return };
        let from_boot_ms = now_ms.saturating_add(u64::from(probe.initial_delay_ms));
        let at_boot_ms = first_attempt(probe, from_boot_ms);
        let asking = Asking { from_boot_ms, at_boot_ms, judgement: Judgement::default(), failed: 0 };
        workload.asking.insert(aim, asking);
        self.have_asked(id, aim);
    }

    /// Has the service `probe` ask, where that is its work.
    fn have_asked(&mut self, id: WorkloadId, aim: Aim) {
        let Some(workload) = self.workloads.get(&id) else { return };
        let (Some(probe), Some(asking)) = (workload.definition.probe(aim), workload.asking.get(&aim)) else { return };
        let Actual::Up { pid, .. } = workload.actual else { return };
        if !probe.check.is_asked_from_outside() {
            return;
        }
        let delay_ms = asking.from_boot_ms.saturating_sub(self.now.boot_ms);
        let probe = Probe { initial_delay_ms: u32::try_from(delay_ms).unwrap_or(u32::MAX), ..probe.clone() };
        let notice = Notice::Probe { id, number: workload.run, aim, probe, pid };
        self.notify_role(Role::Probe, &notice, Attachment::Process(id));
    }

    /// A probe service has (re)started: tell it of everything that it is to ask.
    pub(crate) fn offer_probes(&mut self) {
        let asked: Vec<(WorkloadId, Aim)> = self
            .workloads
            .values()
            .flat_map(|workload| workload.asking.keys().map(|aim| (workload.id, *aim)))
            .collect();
        for (id, aim) in asked {
            self.have_asked(id, aim);
        }
    }

    /// Begins the commands that are due, and counts the watchdogs that were not heard of.
    pub(crate) fn probes_due(&mut self) {
        let now_ms = self.now.boot_ms;
        let due: Vec<(WorkloadId, Aim)> = self
            .workloads
            .values()
            .filter(|workload| matches!(workload.actual, Actual::Up { .. }))
            .flat_map(|workload| workload.asking.iter().map(|(aim, asking)| (workload.id, *aim, asking.at_boot_ms)))
            .filter(|(_, _, at_boot_ms)| at_boot_ms.is_some_and(|at| at <= now_ms))
            .map(|(id, aim, _)| (id, aim))
            .collect();
        for (id, aim) in due {
            self.probe_is_due(id, aim);
        }
    }

    fn probe_is_due(&mut self, id: WorkloadId, aim: Aim) {
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        let run = workload.run;
        let Some(probe) = workload.definition.probe(aim).cloned() else { return };
        if let Some(asking) = workload.asking.get_mut(&aim) {
            asking.at_boot_ms = None;
        }
        match probe.check {
            Check::Exec { args } => self.begin_exec_probe(id, aim, args, probe.timeout_ms),
            Check::Watchdog => self.attempted(id, run, aim, false),
            Check::Tcp { .. } | Check::Http { .. } | Check::Grpc { .. } => {}
        }
    }

    /// An attempt of PID 1's own has an answer.
    pub(crate) fn attempted(&mut self, id: WorkloadId, run: u64, aim: Aim, passed: bool) {
        let now_ms = self.now.boot_ms;
        let Some(workload) = self.workloads.get_mut(&id).filter(|workload| workload.run == run) else { return };
        let Some(probe) = workload.definition.probe(aim).cloned() else { return };
        let Some(asking) = workload.asking.get_mut(&aim) else { return };
        asking.at_boot_ms = Some(now_ms.saturating_add(u64::from(probe.interval_ms)));
        asking.failed = asking.failed.saturating_add(u32::from(!passed));
        if let Some(passed) = asking.judgement.attempt(passed, &probe) {
            self.judged(id, aim, passed);
        }
    }

    /// The service `probe` tells its verdict.
    pub(crate) fn probed(&mut self, id: WorkloadId, run: u64, aim: Aim, passed: bool) {
        let Some(workload) = self.workloads.get_mut(&id).filter(|workload| workload.run == run) else { return };
        let is_its_work = workload.definition.probe(aim).is_some_and(|probe| probe.check.is_asked_from_outside());
        let Some(asking) = workload.asking.get_mut(&aim).filter(|_| is_its_work) else { return };
        asking.failed = asking.failed.saturating_add(u32::from(!passed));
        self.judged(id, aim, passed);
    }

    fn judged(&mut self, id: WorkloadId, aim: Aim, passed: bool) {
        let Some(workload) = self.workloads.get(&id) else { return };
        if !matches!(workload.actual, Actual::Up { .. }) {
            return;
        }
        match (aim, passed) {
            (Aim::Startup, true) => self.start_is_over(id),
            (Aim::Readiness, true) => self.becomes_ready(id),
            (Aim::Readiness, false) => self.is_ready_no_longer(id),
            (Aim::Liveness, true) => {}
            (Aim::Startup | Aim::Liveness, false) => {
                let grace_ms = workload.definition.stop.grace_ms;
                self.say(format!("the {aim} probe of {} failed, and it is stopped", workload.definition.name));
                self.stop(id, Some(Cause::Probe(aim)), grace_ms);
            }
        }
    }

    /// It said `READY=1`.
    pub(crate) fn notified(&mut self, id: WorkloadId, run: u64) {
        let Some(workload) = self.current_run(id, run) else { return };
        let is_first = workload.definition.readiness.when == ReadyWhen::Notify && workload.started_boot_ms.is_none();
        if is_first && matches!(workload.actual, Actual::Up { .. }) {
            self.start_is_over(id);
            self.becomes_ready(id);
        }
    }

    /// It said `WATCHDOG=1`.
    pub(crate) fn heard_of(&mut self, id: WorkloadId, run: u64) {
        let has_watchdog =
            |definition: &Definition| definition.liveness.as_ref().is_some_and(|probe| probe.check == Check::Watchdog);
        if self.current_run(id, run).is_some_and(|workload| has_watchdog(&workload.definition)) {
            self.attempted(id, run, Aim::Liveness, true);
        }
    }
}

impl Workload {
    /// When PID 1 has to ask it something, or to have heard of it.
    pub(crate) fn probe_deadline_boot_ms(&self) -> Option<u64> {
        let is_up = matches!(self.actual, Actual::Up { .. });
        self.asking.values().filter_map(|asking| asking.at_boot_ms).min().filter(|_| is_up)
    }

    /// After a crash of PID 1: the commands and messages of before are lost, and what the service `probe` asks it asks anew.
    pub(crate) fn ask_anew(&mut self, now_boot_ms: u64) {
        let Self { definition, asking, .. } = self;
        for (aim, asking) in asking {
            if let Some(probe) = definition.probe(*aim) {
                asking.at_boot_ms = first_attempt(probe, asking.from_boot_ms.max(now_boot_ms));
            }
        }
    }
}

fn first_attempt(probe: &Probe, from_boot_ms: u64) -> Option<u64> {
    match probe.check {
        Check::Exec { .. } => Some(from_boot_ms),
        Check::Watchdog => Some(from_boot_ms.saturating_add(u64::from(probe.interval_ms))),
        Check::Tcp { .. } | Check::Http { .. } | Check::Grpc { .. } => None,
    }
}

//! The simulated kernel: launch children, processes and their cgroups, and what it tells of them.
//!
//! It knows nothing of PID 1's mind. A run lives from its launch until its cgroup is told to be empty.

use std::collections::BTreeMap;

use byre_core::{Alive, Event, ExecId, ExitStatus, LaunchOutcome, Subject};
use byre_plan::WorkloadId;
use byre_protocol::status::StartFailure;

use crate::chance::Chance;

/// What a run's first process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// The launch child is at work.
    Launching,
    /// The program runs.
    Running,
    /// It will end so.
    Dying(ExitStatus),
    /// It has ended.
    Ended,
}

/// A run that may have processes.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) run: u64,
    pub(crate) first: First,
    /// Killed as a whole; PID 1 waits for it to be empty.
    pub(crate) killed: bool,
    /// A process of it sleeps in the kernel and does not see its kill.
    pub(crate) stuck: bool,
    /// It has no process: "running" is that its namespaces are there.
    pub(crate) pod: bool,
}

/// Further processes in a workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    pub(crate) workload: WorkloadId,
    pub(crate) running: bool,
    pub(crate) killed: bool,
}

/// Everything that lives.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kernel {
    pub(crate) live: BTreeMap<WorkloadId, Live>,
    pub(crate) sessions: BTreeMap<ExecId, Session>,
    /// Files that are being removed.
    pub(crate) removals: Vec<WorkloadId>,
    /// `oom_kill`, counted over all runs as the supervisor does.
    oom_kills: BTreeMap<WorkloadId, u32>,
}

/// Something that the kernel could do now.
#[derive(Debug, Clone, Copy)]
enum Possible {
    Report(WorkloadId),
    End(WorkloadId),
    Empty(WorkloadId),
    SessionReport(ExecId),
    SessionEnd(ExecId),
    Files(usize),
}

impl Kernel {
    /// A signal to the first process: most programs obey it.
    pub(crate) fn signal(&mut self, id: WorkloadId, signal: u8) {
        let obeys = !id.0.is_multiple_of(3);
        if let Some(live) = self.live.get_mut(&id)
            && live.first == First::Running
            && obeys
        {
            live.first = First::Dying(ExitStatus::Signal(signal));
        }
    }

    /// `cgroup.kill`. False: there is no such run, so nothing of it lives.
    pub(crate) fn kill(&mut self, id: WorkloadId, run: u64) -> bool {
        let Some(live) = self.live.get_mut(&id).filter(|live| live.run == run) else { return false };
        live.killed = true;
        if live.pod && live.first == First::Running {
            live.first = First::Ended;
        }
        if live.first == First::Running {
            live.first = First::Dying(ExitStatus::Signal(9));
        }
        for session in self.sessions.values_mut().filter(|session| session.workload == id) {
            session.killed = true;
        }
        true
    }

    /// The first process of a running workload ends by itself, or for want of memory.
    pub(crate) fn crash(&mut self, id: WorkloadId, status: ExitStatus, out_of_memory: bool) {
        if let Some(live) = self.live.get_mut(&id)
            && live.first == First::Running
        {
            live.first = First::Dying(status);
            if out_of_memory {
                let count = self.oom_kills.entry(id).or_default();
                *count = count.saturating_add(1);
            }
        }
    }

    /// PID 1 has crashed: whatever lay in the cgroup of launch children is killed, and so are exec sessions. Returns what is left.
    pub(crate) fn pid1_crashed(&mut self) -> BTreeMap<WorkloadId, Alive> {
        self.sessions.clear();
        self.removals.clear();
        let mut alive = BTreeMap::new();
        for (id, live) in &mut self.live {
            if live.first == First::Launching {
                live.first = First::Ended;
            }
            alive.insert(
                *id,
                match live.first {
                    First::Running | First::Dying(_) => Alive::Process { run: live.run },
                    First::Launching | First::Ended => Alive::Others,
                },
            );
        }
        alive
    }

    pub(crate) fn running(&self) -> Vec<WorkloadId> {
        self.live.iter().filter(|(_, live)| live.first == First::Running && !live.pod).map(|(id, _)| *id).collect()
    }

    fn possible(&self) -> Vec<Possible> {
        let mut all = Vec::new();
        for (id, live) in &self.live {
            let sessions_left = self.sessions.values().any(|session| session.workload == *id && session.running);
            match live.first {
                First::Launching => all.push(Possible::Report(*id)),
                First::Running => {}
                First::Dying(_) if live.stuck && live.killed => {}
                First::Dying(_) => all.push(Possible::End(*id)),
                First::Ended if live.killed && !live.stuck && !sessions_left => all.push(Possible::Empty(*id)),
                First::Ended => {}
            }
        }
        for (exec, session) in &self.sessions {
            all.push(if session.running { Possible::SessionEnd(*exec) } else { Possible::SessionReport(*exec) });
        }
        all.extend((0..self.removals.len()).map(Possible::Files));
        all
    }

    /// The kernel does one thing that it can do now and tells of it. With `faults`, it may also fail.
    pub(crate) fn advance(&mut self, chance: &mut Chance, faults: bool) -> Option<Event> {
        match *chance.pick(&self.possible())? {
            Possible::Report(id) => self.report(id, chance, faults),
            Possible::End(id) => {
                let live = self.live.get_mut(&id)?;
                let First::Dying(status) = live.first else { return None };
                live.first = First::Ended;
                let oom_kills = self.oom_kills.get(&id).copied().unwrap_or(0);
                Some(Event::Exited { subject: Subject::Workload { id, run: live.run }, status, oom_kills })
            }
            Possible::Empty(id) => {
                let run = self.live.remove(&id)?.run;
                Some(Event::Emptied { id, run })
            }
            Possible::SessionReport(exec) => {
                let session = self.sessions.get_mut(&exec)?;
                if session.killed || (faults && chance.one_in(6)) {
                    self.sessions.remove(&exec);
                    return Some(Event::Launched { subject: Subject::Exec(exec), outcome: failed("join") });
                }
                session.running = true;
                let outcome = LaunchOutcome::Running { pid: 9, terminal: chance.one_in(2) };
                Some(Event::Launched { subject: Subject::Exec(exec), outcome })
            }
            Possible::SessionEnd(exec) => {
                let session = self.sessions.remove(&exec)?;
                let status =
                    if session.killed { ExitStatus::Signal(9) } else { ExitStatus::Code(probe_code(chance, faults)) };
                Some(Event::Exited { subject: Subject::Exec(exec), status, oom_kills: 0 })
            }
            Possible::Files(index) => {
                let id = self.removals.swap_remove(index);
                Some(Event::FilesRemoved { id, removed: !faults || !chance.one_in(8) })
            }
        }
    }

    fn report(&mut self, id: WorkloadId, chance: &mut Chance, faults: bool) -> Option<Event> {
        let live = self.live.get_mut(&id)?;
        let subject = Subject::Workload { id, run: live.run };
        if live.killed || (faults && chance.one_in(8)) {
            live.first = First::Ended;
            let step =
                chance.pick(&["cgroup", "mount_root", "execute", "launch child died"]).copied().unwrap_or("execute");
            return Some(Event::Launched { subject, outcome: failed(step) });
        }
        live.first = First::Running;
        if live.pod {
            return Some(Event::Launched { subject, outcome: LaunchOutcome::Made });
        }
        Some(Event::Launched { subject, outcome: LaunchOutcome::Running { pid: 7, terminal: false } })
    }

    /// Whether it owes PID 1 something.
    pub(crate) fn owes(&self) -> bool {
        !self.possible().is_empty()
    }
}

fn probe_code(chance: &mut Chance, faults: bool) -> u8 {
    u8::from(faults && chance.one_in(2))
}

fn failed(step: &str) -> LaunchOutcome {
    LaunchOutcome::Failed(StartFailure { step: step.to_owned(), subject: "x".to_owned(), errno: 2 })
}

//! The one reaper: no workload's status is taken by anybody else, and no orphan stays a zombie.
//!
//! `waitid` peeks at a child that has ended. One that is known is consumed by its pidfd and becomes an event; any other was an orphan
//! of some workload and is consumed by its id. What a workload's first process left behind in `memory.events` is read before its end
//! is told, so that the core knows of the want of memory first.

use std::os::fd::AsFd;

use byre_core::{Event, ExitStatus, Subject};
use byre_plan::WorkloadId;
use byre_protocol::definition::Kind;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};

use super::Supervisor;
use super::kept::Watched;
use super::launches::Owner;
use super::sources::Source;
use crate::index::{Listed, Use};

/// Children looked at in one wake-up: a storm of orphans must not keep PID 1 from its other work.
const CHILDREN_PER_WAKE_UP: usize = 128;

fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    match status {
        WaitStatus::Exited(_, code) => Some(ExitStatus::Code(u8::try_from(code & 0xff).unwrap_or(255))),
        WaitStatus::Signaled(_, signal, _) => {
            #[expect(clippy::as_conversions, reason = "Signal is a fieldless enum of small numbers")]
            let number = signal as i32;
            Some(ExitStatus::Signal(u8::try_from(number).unwrap_or(255)))
        }
        WaitStatus::Stopped(..)
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive => None,
    }
}

impl Supervisor {
    /// SIGCHLD: looks at ended children, a bounded number at a time. Returns whether there may be more.
    pub(super) fn reap(&mut self) -> bool {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
        for _ in 0..CHILDREN_PER_WAKE_UP {
            let Ok(status) = waitid(Id::All, peek) else { return false };
            let Some(pid) = status.pid() else { return false };
            self.reap_one(pid);
        }
        true
    }

    fn reap_one(&mut self, pid: Pid) {
        let number = u32::try_from(pid.as_raw()).unwrap_or(0);
        if let Some(Owner::Stage(subject)) = self.processes.get(&number).copied() {
            // Its report may still be unread, and say that this very process became the program.
            self.report_ready(subject);
        } else if !self.processes.contains_key(&number) {
            self.read_reports();
        }
        match self.processes.get(&number).copied() {
            Some(Owner::Main(subject)) => self.process_ended(subject),
            Some(Owner::Task(task)) => {
                let ended_well = matches!(consume(Id::Pid(pid)), Some(ExitStatus::Code(0)));
                self.processes.remove(&number);
                self.task_ended(task, ended_well);
            }
            Some(Owner::Stage(subject)) => {
                consume(Id::Pid(pid));
                self.processes.remove(&number);
                if let Subject::Workload { id, .. } = subject {
                    self.check_emptied(id);
                }
            }
            None => {
                consume(Id::Pid(pid));
            }
        }
    }

    /// An unknown child has ended: what makes it known, as the first process of a start in two stages, may be a report that is still unread.
    /// Such a report is whole by now: stage 1 closes it before stage 2 goes on.
    fn read_reports(&mut self) {
        let runs = self.kept.iter().filter_map(|(id, kept)| {
            let run = kept.run.as_ref().filter(|run| run.report.is_some())?;
            Some(Subject::Workload { id: *id, run: run.number })
        });
        let execs = self.execs.iter().filter(|(_, kept)| kept.report.is_some()).map(|(exec, _)| Subject::Exec(*exec));
        let subjects: Vec<Subject> = runs.chain(execs).collect();
        for subject in subjects {
            self.report_ready(subject);
        }
    }

    /// The first process of a workload or an exec session has ended.
    pub(super) fn process_ended(&mut self, subject: Subject) {
        let Some(process) = self.process_of(subject) else { return };
        let Some(status) = consume(Id::PIDFd(process.fd.as_fd())) else { return };
        let (process, pid) = self.take_process(subject);
        self.unwatch(process);
        self.processes.remove(&pid);
        let oom_kills = self.oom_kills(subject);
        self.step(Event::Exited { subject, status, oom_kills });
        self.drain_queue();
        if let Subject::Workload { id, .. } = subject {
            self.check_emptied(id);
        }
    }

    fn process_of(&self, subject: Subject) -> Option<&Watched> {
        match subject {
            Subject::Workload { id, run } => {
                self.kept.get(&id)?.run.as_ref().filter(|kept| kept.number == run)?.process.as_ref()
            }
            Subject::Exec(exec) => self.execs.get(&exec)?.process.as_ref(),
        }
    }

    fn take_process(&mut self, subject: Subject) -> (Option<Watched>, u32) {
        match subject {
            Subject::Workload { id, .. } => match self.kept.get_mut(&id).and_then(|kept| kept.run.as_mut()) {
                Some(run) => (run.process.take(), run.pid),
                None => (None, 0),
            },
            Subject::Exec(exec) => match self.execs.get_mut(&exec) {
                Some(kept) => (kept.process.take(), kept.pid),
                None => (None, 0),
            },
        }
    }

    fn oom_kills(&self, subject: Subject) -> u32 {
        let Subject::Workload { id, .. } = subject else { return 0 };
        let run = self.kept.get(&id).and_then(|kept| kept.run.as_ref());
        // A cgroup starts at zero with each run; the core counts over all of them.
        let before = self.core.workload(id).map_or(0, byre_core::Workload::oom_kills_before_run);
        let of_run = run.and_then(|run| byre_launch::cgroup::oom_kills(run.cgroup.as_fd()).ok()).unwrap_or(0);
        u32::try_from(of_run).unwrap_or(u32::MAX).saturating_add(before)
    }

    /// Watches `cgroup.events` of a workload that is being ended.
    pub(super) fn watch_cgroup(&mut self, id: WorkloadId) {
        let Some(run) = self.kept.get(&id).and_then(|kept| kept.run.as_ref()).filter(|run| run.events.is_none()) else {
            return;
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(events) = rustix::fs::openat(&run.cgroup, "cgroup.events", flags, Mode::empty()) else { return };
        let Ok(token) = self.sources.add(events.as_fd(), Source::Cgroup(id), EventFlags::PRI) else { return };
        if let Some(run) = self.kept.get_mut(&id).and_then(|kept| kept.run.as_mut()) {
            run.events = Some(Watched { fd: Listed::new(events, Use::passing()), token });
        }
    }

    /// If nothing of an ending run lives any more, and its first process is reaped, removes the cgroup and tells the core.
    pub(super) fn check_emptied(&mut self, id: WorkloadId) {
        let Some(run) = self.kept.get(&id).and_then(|kept| kept.run.as_ref()).filter(|run| run.ending) else { return };
        // A pod has no process; the task that releases its namespaces tells.
        if self.core.workload(id).is_some_and(|workload| workload.definition().kind == Kind::Pod) {
            return;
        }
        if run.process.is_some() || run.report.is_some() {
            return;
        }
        // The descriptor of cgroup.events must be read for its next notice, and a new one says the same.
        if byre_launch::cgroup::populated(run.cgroup.as_fd()).unwrap_or(false) {
            rearm(run.events.as_ref());
            return;
        }
        let number = run.number;
        self.emptied(id, number);
    }

    /// A run is over: drops what is kept of it and tells the core.
    pub(super) fn emptied(&mut self, id: WorkloadId, number: u64) {
        if self.kept.get(&id).and_then(|kept| kept.run.as_ref()).is_some_and(|run| run.number == number) {
            self.end_run(id);
            self.remove_cgroup(id);
        }
        self.step(Event::Emptied { id, run: number });
        self.drain_queue();
    }

    fn remove_cgroup(&self, id: WorkloadId) {
        let Some(workload) = self.core.workload(id) else { return };
        let (parent, name) = self.environment.cgroup_of(workload);
        if let Err(errno) = byre_launch::cgroup::remove(parent.as_fd(), &name) {
            self.say(&format!("cgroup {name} is not removed: {errno}"));
        }
    }

    /// A workload says something of itself by sd_notify(3).
    pub(super) fn notified(&mut self, id: WorkloadId) {
        let Some(run) = self.kept.get(&id).and_then(|kept| kept.run.as_ref()) else { return };
        let number = run.number;
        let Some(socket) = &run.notify else { return };
        let (mut ready, mut alive) = (false, false);
        let mut buffer = [0_u8; 4096];
        while let Ok((length, _)) = rustix::net::recv(&socket.fd, &mut buffer, rustix::net::RecvFlags::DONTWAIT) {
            let text = buffer.get(..length).unwrap_or_default();
            let says = |what: &[u8]| text.split(|byte| *byte == b'\n').any(|line| line == what);
            ready |= says(b"READY=1");
            alive |= says(b"WATCHDOG=1");
        }
        if ready {
            self.step(Event::Notified { id, run: number });
        }
        if alive {
            self.step(Event::HeardOf { id, run: number });
        }
    }
}

/// Reads `cgroup.events` through the watched descriptor, so that the next change is told.
fn rearm(events: Option<&Watched>) {
    if let Some(events) = events {
        let _ = rustix::io::pread(&events.fd, &mut [0_u8; 256], 0);
    }
}

fn consume(id: Id<'_>) -> Option<ExitStatus> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    waitid(id, flags).ok().and_then(exit_status)
}

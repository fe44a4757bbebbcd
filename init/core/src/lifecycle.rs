//! A workload's way from down to up and back: launching, readiness, stopping, and what follows the end of a run.

use byre_plan::WorkloadId;
use byre_protocol::control::{Notice, RefusedCode, What};
use byre_protocol::definition::{Kind, RestartPolicy, Role, Stop};
use byre_protocol::status::{Cause, Moment, Run, Rung, StartFailure, Why};

use crate::action::{Action, Attachment};
use crate::core::Core;
use crate::event::{ExitStatus, LaunchOutcome};
use crate::pending::Await;
use crate::workload::{Actual, Ready, Task, Wanted, Workload};

/// How long `cgroup.kill` may take before PID 1 says so on the console. Only a process in uninterruptible sleep takes longer.
const KILL_PATIENCE_MS: u64 = 10_000;

impl Core {
    pub(crate) fn launch(&mut self, id: WorkloadId) {
        let since = self.now;
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        workload.run = workload.run.saturating_add(1);
        workload.asking.clear();
        workload.started_boot_ms = None;
        workload.start_once_down = false;
        let task = workload.task.get_or_insert(Task { begun: since, tries: 0 });
        task.tries = task.tries.saturating_add(1);
        let run = workload.run;
        self.set_actual(id, Actual::Starting { since });
        self.actions.push(Action::Launch { id, run });
    }

    pub(crate) fn launched(&mut self, id: WorkloadId, run: u64, outcome: LaunchOutcome) {
        let Some(workload) = self.current_run(id, run) else { return };
        let (since, stopping, because) = match &workload.actual {
            Actual::Starting { since } => (*since, false, None),
            Actual::Stopping { since, because, .. } => (*since, true, because.clone()),
            Actual::Down { .. }
            | Actual::Up { .. }
            | Actual::Draining { .. }
            | Actual::Backoff { .. }
            | Actual::Removing => return,
        };
        match outcome {
            LaunchOutcome::Failed(failure) => {
                let cause = because.unwrap_or(Cause::StartFailed(failure));
                self.set_actual(id, Actual::Draining { since, cause });
                self.actions.push(Action::KillAll { id, run });
            }
            LaunchOutcome::Running { .. } | LaunchOutcome::Made if stopping => {
                self.actions.push(Action::KillAll { id, run });
            }
            LaunchOutcome::Made => self.pod_made(id),
            LaunchOutcome::Running { pid, .. } => {
                let since = self.now;
                self.set_actual(id, Actual::Up { since, ready: Ready::NotYet, pid });
                self.begin_start(id);
                self.met(Await::Running(id));
            }
        }
    }

    pub(crate) fn exited(&mut self, id: WorkloadId, run: u64, status: ExitStatus, oom_kills: u32) {
        let Some(workload) = self.workloads.get_mut(&id).filter(|workload| workload.run == run) else { return };
        let killed_for_memory = oom_kills > workload.oom_kills;
        workload.oom_kills = oom_kills;
        let cause = match status {
            ExitStatus::Code(code) => Cause::Code(code),
            ExitStatus::Signal(9) if killed_for_memory => Cause::OutOfMemory,
            ExitStatus::Signal(signal) => Cause::Signal(signal),
        };
        let (since, cause) = match &workload.actual {
            Actual::Up { since, .. } => (*since, cause),
            Actual::Stopping { since, because, .. } => (*since, because.clone().unwrap_or(cause)),
            Actual::Starting { since } => (*since, cause),
            Actual::Down { .. } | Actual::Draining { .. } | Actual::Backoff { .. } | Actual::Removing => return,
        };
        if killed_for_memory {
            self.tell(id, What::OutOfMemory);
        }
        self.set_actual(id, Actual::Draining { since, cause });
        self.actions.push(Action::KillAll { id, run });
    }

    /// The last process of a run is gone: remember the run and decide what comes next.
    pub(crate) fn emptied(&mut self, id: WorkloadId, run: u64) {
        let Some(workload) = self.current_run(id, run) else { return };
        let (started, cause) = match &workload.actual {
            Actual::Draining { since, cause } => (*since, cause.clone()),
            Actual::Stopping { since, because, .. } => (*since, because.clone().unwrap_or(Cause::Signal(9))),
            Actual::Starting { since } | Actual::Up { since, .. } => (*since, Cause::Signal(9)),
            Actual::Down { .. } | Actual::Backoff { .. } | Actual::Removing => return,
        };
        let ended = Run { started, ended: self.now, cause: cause.clone() };
        self.say_end(id, &ended);
        if let Some(workload) = self.workloads.get_mut(&id) {
            workload.remember(ended.clone());
            workload.asking.clear();
        }
        self.tell(id, What::Ended(ended));
        self.notify_role(Role::Probe, &Notice::ProbeEnd { id }, Attachment::None);
        self.notify_role(Role::Log, &Notice::LogRunEnded { id }, Attachment::None);
        self.pod_emptied(id);
        self.settle(id, &cause, started.boot_ms);
        self.left_pod(id);
        self.met(Await::Down(id));
    }

    fn settle(&mut self, id: WorkloadId, cause: &Cause, started_boot_ms: u64) {
        // What it is bound to is gone for now: the start goes on when that is back.
        let is_unbound = matches!(cause, Cause::Dependency(_));
        if !is_unbound && !self.workloads.get(&id).is_some_and(|workload| workload.start_once_down) {
            self.refuse_start(id, cause);
            self.refuse_starts_in_pod(id, cause);
        }
        let now_ms = self.now.boot_ms;
        let is_ending = self.ending.is_some();
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        let next = if is_ending {
            Actual::Down { why: Why::Shutdown }
        } else if std::mem::take(&mut workload.start_once_down) {
            workload.wanted = Wanted::Up;
            workload.streak = 0;
            workload.task = None;
            Actual::Down { why: Why::Stopped }
        } else {
            match workload.wanted {
                Wanted::Disabled => Actual::Down { why: Why::Disabled },
                Wanted::Down | Wanted::Gone => Actual::Down { why: stopped_or_ended(cause) },
                Wanted::Up if is_unbound && !workload.is_out_of_time(now_ms) => {
                    // Nothing that it did ended this try.
                    if let Some(task) = &mut workload.task {
                        task.tries = task.tries.saturating_sub(1);
                    }
                    Actual::Down { why: Why::Created }
                }
                Wanted::Up => after_its_own_end(workload, cause, self.now, started_boot_ms),
            }
        };
        if workload.is_removed_on_exit() && workload.wanted == Wanted::Down && !is_ending {
            workload.wanted = Wanted::Gone;
        }
        let wanted = workload.wanted;
        self.set_actual(id, next);
        if wanted == Wanted::Gone {
            self.begin_removal(id);
        } else {
            self.record_put(id);
        }
    }

    /// A start that a client waits for and that fails is not tried again; if its creation was part of the call, it is undone.
    fn refuse_start(&mut self, id: WorkloadId, cause: &Cause) {
        if !self.pending.waits_for(Await::Running(id)) {
            return;
        }
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        let name = workload.definition.name.clone();
        workload.wanted = if workload.history.len() == 1 && workload.remove_if_start_fails {
            Wanted::Gone
        } else if workload.definition.schedule.is_some() {
            // The next time comes all the same.
            workload.wanted
        } else {
            Wanted::Down
        };
        let text = match cause {
            Cause::StartFailed(failure) => describe_failure(name.as_str(), failure),
            Cause::Code(_)
            | Cause::Signal(_)
            | Cause::OutOfMemory
            | Cause::NotReady
            | Cause::Dependency(_)
            | Cause::Interrupted
            | Cause::Probe(_)
            | Cause::RunLimit
            | Cause::Deadline => {
                format!("{name} ended before its program ran; see its log")
            }
        };
        for (caller, reply) in self.pending.failed(Await::Running(id), RefusedCode::StartFailed, &text) {
            self.answer(caller, reply, Attachment::None);
        }
    }

    /// Takes a workload down: its signal and a grace, or at once.
    pub(crate) fn stop(&mut self, id: WorkloadId, because: Option<Cause>, grace_ms: u32) {
        let now_ms = self.now.boot_ms;
        let Some(workload) = self.workloads.get(&id) else { return };
        let run = workload.run;
        let is_pod = workload.definition.kind == Kind::Pod;
        let grace_ms = if is_pod && grace_ms > 0 {
            self.pod_grace_ms(&workload.definition.name, grace_ms, u32::try_from(KILL_PATIENCE_MS).unwrap_or(0))
        } else {
            grace_ms
        };
        match &workload.actual {
            Actual::Up { since, .. } if grace_ms > 0 => {
                let (since, rung) = (*since, first_rung(&workload.definition.stop));
                let deadline_boot_ms = now_ms.saturating_add(u64::from(grace_ms));
                self.set_actual(id, Actual::Stopping { since, rung, deadline_boot_ms, because });
                match rung {
                    Rung::Signal | Rung::Hook | Rung::Kill if is_pod => self.end_pod_without_users(id),
                    Rung::Hook => self.begin_stop_hook(id, deadline_boot_ms),
                    Rung::Signal | Rung::Kill => self.send_stop_signal(id),
                }
            }
            Actual::Up { since, .. } | Actual::Starting { since } => self.kill(id, run, *since, because),
            Actual::Stopping { since, because, deadline_boot_ms, rung: rung @ (Rung::Hook | Rung::Signal) } => {
                // A second, shorter stop hastens the first.
                let (since, because, rung) = (*since, because.clone(), *rung);
                let deadline_boot_ms = now_ms.saturating_add(u64::from(grace_ms)).min(*deadline_boot_ms);
                self.set_actual_quietly(id, Actual::Stopping { since, rung, deadline_boot_ms, because });
            }
            Actual::Backoff { .. } => self.set_actual(id, Actual::Down { why: Why::Stopped }),
            Actual::Down { why: Why::Waiting(_) | Why::Created | Why::Scheduled(_) } => {
                self.set_actual(id, Actual::Down { why: Why::Stopped })
            }
            Actual::Stopping { rung: Rung::Kill, .. }
            | Actual::Draining { .. }
            | Actual::Down { .. }
            | Actual::Removing => {}
        }
    }

    /// The stop hook of a run is over, or could not run: the signal is next.
    pub(crate) fn stop_hook_ended(&mut self, id: WorkloadId, run: u64) {
        let Some(workload) = self.current_run(id, run) else { return };
        let Actual::Stopping { since, rung: Rung::Hook, deadline_boot_ms, because } = workload.actual.clone() else {
            return;
        };
        self.set_actual(id, Actual::Stopping { since, rung: Rung::Signal, deadline_boot_ms, because });
        self.send_stop_signal(id);
    }

    pub(crate) fn send_stop_signal(&mut self, id: WorkloadId) {
        if let Some(signal) = self.workloads.get(&id).map(|workload| workload.definition.stop.signal) {
            self.actions.push(Action::Signal { id, signal });
        }
    }

    pub(crate) fn kill(&mut self, id: WorkloadId, run: u64, since: Moment, because: Option<Cause>) {
        let deadline_boot_ms = self.now.boot_ms.saturating_add(KILL_PATIENCE_MS);
        self.set_actual(id, Actual::Stopping { since, rung: Rung::Kill, deadline_boot_ms, because });
        self.actions.push(Action::KillAll { id, run });
    }

    /// Does what is due by the clock.
    pub(crate) fn tick(&mut self) {
        let now_ms = self.now.boot_ms;
        let due: Vec<WorkloadId> = self
            .workloads
            .values()
            .filter(|workload| workload.deadline_boot_ms().is_some_and(|deadline| deadline <= now_ms))
            .map(Workload::id)
            .collect();
        for id in due {
            self.workload_is_due(id);
        }
        self.probes_due();
        self.kill_due_execs();
        self.end_overdue_calls();
    }

    fn workload_is_due(&mut self, id: WorkloadId) {
        let now_ms = self.now.boot_ms;
        let Some(workload) = self.workloads.get(&id) else { return };
        let (run, grace_ms) = (workload.run, workload.definition.stop.grace_ms);
        let name = workload.definition.name.clone();
        match workload.actual.clone() {
            Actual::Up { .. } | Actual::Starting { .. } if workload.is_out_of_time(now_ms) => {
                self.say(format!("{name} has not ended by its deadline and is stopped"));
                self.stop(id, Some(Cause::Deadline), grace_ms);
            }
            Actual::Backoff { .. } | Actual::Down { why: Why::Waiting(_) | Why::Created }
                if workload.is_out_of_time(now_ms) =>
            {
                self.say(format!("{name} has not ended by its deadline and is not tried again"));
                self.end_task(id);
            }
            Actual::Up { since, .. } if workload.is_over_its_limit(since, now_ms) => {
                self.say(format!("{name} runs longer than it may and is stopped"));
                self.stop(id, Some(Cause::RunLimit), grace_ms);
            }
            Actual::Up { ready: Ready::NotYet, .. } | Actual::Starting { .. } => {
                self.say(format!("{name} is not ready in time and is stopped"));
                self.stop(id, Some(Cause::NotReady), grace_ms);
            }
            Actual::Stopping { since, rung: Rung::Hook | Rung::Signal, because, .. } => {
                self.kill(id, run, since, because);
            }
            Actual::Stopping { since, rung: Rung::Kill, because, .. } => {
                self.say(format!("{name} was killed and still has a process; it sleeps in the kernel"));
                if self.ending.is_some() {
                    self.set_actual(id, Actual::Down { why: Why::Shutdown });
                } else {
                    let rung = Rung::Kill;
                    self.set_actual_quietly(id, Actual::Stopping { since, rung, deadline_boot_ms: u64::MAX, because });
                }
            }
            Actual::Backoff { .. } => {
                if let Some(workload) = self.workloads.get_mut(&id) {
                    workload.restarts = workload.restarts.saturating_add(1);
                }
                self.launch_when_possible(id);
            }
            Actual::Up { ready: Ready::Now | Ready::NoLonger, .. }
            | Actual::Down { .. }
            | Actual::Draining { .. }
            | Actual::Removing => {}
        }
    }

    /// A job's time is over while no process of it exists.
    fn end_task(&mut self, id: WorkloadId) {
        let text = "its deadline passed before its program ran";
        for (caller, reply) in self.pending.failed(Await::Running(id), RefusedCode::StartFailed, text) {
            self.answer(caller, reply, Attachment::None);
        }
        if let Some(workload) = self.workloads.get_mut(&id) {
            if workload.wait_for_its_time(self.now) {
                let started = self.now;
                workload.remember(Run { started, ended: started, cause: Cause::Deadline });
                return;
            }
            let removed = workload.is_removed_on_exit();
            workload.wanted = if removed { Wanted::Gone } else { Wanted::Down };
        }
        self.set_actual(id, Actual::Down { why: Why::Ended(Cause::Deadline) });
        if self.workloads.get(&id).is_some_and(|workload| workload.wanted == Wanted::Gone) {
            self.begin_removal(id);
        } else {
            self.record_put(id);
        }
    }

    pub(crate) fn launch_when_possible(&mut self, id: WorkloadId) {
        self.set_actual_quietly(id, Actual::Down { why: Why::Created });
        self.reconsider();
    }

    fn say_end(&mut self, id: WorkloadId, run: &Run) {
        let Some(workload) = self.workloads.get(&id) else { return };
        let name = workload.definition.name.clone();
        match (workload.definition.kind, &run.cause) {
            (Kind::Job, Cause::Code(0)) => {
                let took_ms = run.ended.boot_ms.saturating_sub(run.started.boot_ms);
                self.say(format!("job {name} is done in {took_ms} ms"));
            }
            (Kind::Container, _) | (Kind::Pod, Cause::Signal(9)) => {}
            (Kind::Job | Kind::Service | Kind::Pod, cause) => {
                self.say(format!("{name} ended: {}", describe_cause(name.as_str(), cause)))
            }
        }
    }

    pub(crate) fn current_run(&self, id: WorkloadId, run: u64) -> Option<&Workload> {
        self.workloads.get(&id).filter(|workload| workload.run == run)
    }
}

fn stopped_or_ended(cause: &Cause) -> Why {
    match cause {
        Cause::StartFailed(_) => Why::Ended(cause.clone()),
        Cause::Code(_)
        | Cause::Signal(_)
        | Cause::OutOfMemory
        | Cause::NotReady
        | Cause::Dependency(_)
        | Cause::Interrupted
        | Cause::Probe(_)
        | Cause::RunLimit
        | Cause::Deadline => Why::Stopped,
    }
}

/// What a polite stop begins with.
fn first_rung(stop: &Stop) -> Rung {
    if stop.hook.is_empty() { Rung::Signal } else { Rung::Hook }
}

/// What follows a run that nobody asked to end.
fn after_its_own_end(workload: &mut Workload, cause: &Cause, now: Moment, started_boot_ms: u64) -> Actual {
    let now_ms = now.boot_ms;
    let restart = workload.definition.restart;
    let failed = *cause != Cause::Code(0);
    let ran_ms = now_ms.saturating_sub(started_boot_ms);
    let started_at_all = !matches!(cause, Cause::StartFailed(_));
    // A job has so many tries, however long each takes.
    let is_job = workload.definition.kind == Kind::Job;
    workload.streak = if started_at_all && !is_job && ran_ms >= u64::from(restart.reset_after_ms) {
        1
    } else {
        workload.streak.saturating_add(1)
    };
    let again = match restart.policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure(0) => failed,
        RestartPolicy::OnFailure(limit) => failed && workload.streak <= limit,
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
    };
    let is_late = *cause == Cause::Deadline || workload.is_out_of_time(now_ms);
    if let Some(due) = workload.next_due(now).filter(|_| !again || is_late) {
        return Actual::Down { why: Why::Scheduled(due) };
    }
    if again && is_late {
        workload.wanted = Wanted::Down;
        return Actual::Down { why: Why::Ended(Cause::Deadline) };
    }
    if again {
        let doublings = workload.streak.saturating_sub(1).min(20);
        let delay_ms = u64::from(restart.initial_delay_ms)
            .saturating_mul(1_u64.checked_shl(doublings).unwrap_or(u64::MAX))
            .min(u64::from(restart.maximum_delay_ms));
        return Actual::Backoff { until_boot_ms: now_ms.saturating_add(delay_ms), streak: workload.streak };
    }
    workload.wanted = Wanted::Down;
    let gave_up = failed && matches!(restart.policy, RestartPolicy::OnFailure(_));
    Actual::Down { why: if gave_up { Why::GaveUp(cause.clone()) } else { Why::Ended(cause.clone()) } }
}

/// A failed start in words.
pub(crate) fn describe_failure(name: &str, failure: &StartFailure) -> String {
    let error = match failure.errno {
        0 => "failed".to_owned(),
        1 => "operation not permitted (EPERM)".to_owned(),
        2 => "no such file or directory (ENOENT)".to_owned(),
        5 => "input/output error (EIO)".to_owned(),
        8 => "not an executable format (ENOEXEC)".to_owned(),
        12 => "out of memory (ENOMEM)".to_owned(),
        13 => "permission denied (EACCES)".to_owned(),
        16 => "busy (EBUSY)".to_owned(),
        20 => "not a directory (ENOTDIR)".to_owned(),
        21 => "is a directory (EISDIR)".to_owned(),
        22 => "invalid argument (EINVAL)".to_owned(),
        28 => "no space left on device (ENOSPC)".to_owned(),
        40 => "too many symbolic links (ELOOP)".to_owned(),
        other => format!("error {other}"),
    };
    if failure.subject.is_empty() {
        format!("{name} was not started: step {}: {error}", failure.step)
    } else {
        format!("{name} was not started: step {} on {:?}: {error}", failure.step, failure.subject)
    }
}

/// The cause of an end in words.
pub(crate) fn describe_cause(name: &str, cause: &Cause) -> String {
    match cause {
        Cause::Code(code) => format!("exit code {code}"),
        Cause::Signal(signal) => format!("signal {signal}"),
        Cause::OutOfMemory => "out of memory".to_owned(),
        Cause::StartFailed(failure) => describe_failure(name, failure),
        Cause::NotReady => "not ready in time".to_owned(),
        Cause::Dependency(other) => format!("{other} stopped"),
        Cause::Interrupted => "the node stopped while it ran".to_owned(),
        Cause::Deadline => "it had not ended by its deadline".to_owned(),
        Cause::RunLimit => "it ran longer than it may".to_owned(),
        Cause::Probe(aim) => format!("its {aim} probe failed"),
    }
}

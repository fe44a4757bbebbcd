//! Exec sessions: further processes inside a running workload, on behalf of one channel, ending with it.

use byre_plan::{ExecPlan, Plan, Process, WorkloadId};
use byre_protocol::control::{EXECS_PER_WORKLOAD, Notice, RefusedCode, Reply, WORKLOADS};
use byre_protocol::probe::Aim;
use byre_protocol::status::Cause;

use crate::action::{Action, Attachment};
use crate::core::Core;
use crate::event::{CallContext, ChannelId, ExecId, ExitStatus, LaunchOutcome};
use crate::lifecycle::describe_failure;
use crate::pending::Caller;
use crate::requests::refused;
use crate::workload::Actual;

/// Exec sessions of one node at a time: 64 each in 16 busy containers.
pub(crate) const EXECS: usize = 1024;
/// All of them: two probes of a workload may run a command at a time, on top of what clients run.
pub(crate) const EXEC_SESSIONS: usize = EXECS + 2 * WORKLOADS;
/// What an exec session has after its hang-up before it is killed.
const HANG_UP_GRACE_MS: u64 = 3_000;
/// SIGHUP.
const HANG_UP: u8 = 1;
/// SIGKILL.
const KILL: u8 = 9;

/// What an exec session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A client's.
    Client(Caller),
    /// An attempt of a probe.
    Probe {
        /// Of which run.
        run: u64,
        /// Of which probe.
        aim: Aim,
    },
    /// The stop hook of this run.
    StopHook(u64),
}

impl Purpose {
    fn channel(self) -> Option<ChannelId> {
        match self {
            Self::Client(caller) => Some(caller.channel),
            Self::Probe { .. } | Self::StopHook(_) => None,
        }
    }
}

/// An exec session.
#[derive(Debug, Clone)]
pub struct Exec {
    pub(crate) workload: WorkloadId,
    pub(crate) plan: ExecPlan,
    pub(crate) purpose: Purpose,
    pub(crate) running: bool,
    pub(crate) kill_at_boot_ms: Option<u64>,
}

impl Exec {
    /// The workload it runs in.
    #[must_use]
    pub fn workload(&self) -> WorkloadId {
        self.workload
    }

    /// How it is started.
    #[must_use]
    pub fn plan(&self) -> &ExecPlan {
        &self.plan
    }
}

impl Core {
    pub(crate) fn begin_exec(&mut self, context: CallContext, caller: Caller, id: WorkloadId, process: Process) {
        let wants_terminal = process.terminal.is_some();
        if context.descriptors != if wants_terminal { 0 } else { 3 } {
            let text = "an exec carries stdin, stdout and stderr, or none of them with a terminal";
            return self.refuse(caller, refused(RefusedCode::Invalid, text));
        }
        let in_workload = self.execs.values().filter(|exec| exec.workload == id).count();
        if in_workload >= EXECS_PER_WORKLOAD || self.execs.len() >= EXECS {
            let text = format!("there are {in_workload} exec sessions in it already; end some first");
            return self.refuse(caller, refused(RefusedCode::Full, &text));
        }
        let (Some(workload), Some(policy)) = (self.workloads.get(&id), &self.policy) else { return };
        match Plan::check_exec(process, &workload.plan, policy, workload.origin()) {
            Ok(plan) => self.add_exec(id, plan, Purpose::Client(caller)),
            Err(refusal) => self.refuse(caller, refused(RefusedCode::Invalid, &refusal.to_string())),
        }
    }

    fn add_exec(&mut self, workload: WorkloadId, plan: ExecPlan, purpose: Purpose) {
        let exec = ExecId(self.next_exec);
        self.next_exec = self.next_exec.saturating_add(1);
        self.execs.insert(exec, Exec { workload, plan, purpose, running: false, kill_at_boot_ms: None });
        self.actions.push(Action::LaunchExec { exec });
    }

    /// Runs a probe's command inside the workload, as the workload's own user. One that takes longer than it may has failed.
    pub(crate) fn begin_exec_probe(&mut self, id: WorkloadId, aim: Aim, args: Vec<String>, timeout_ms: u32) {
        let kill_at = self.now.boot_ms.saturating_add(u64::from(timeout_ms));
        let (Some(workload), Some(policy)) = (self.workloads.get(&id), &self.policy) else { return };
        let process = Process { args, terminal: None, ..workload.plan.request().process.clone() };
        let run = workload.run;
        match Plan::check_exec(process, &workload.plan, policy, workload.origin()) {
            Ok(plan) => {
                let exec = ExecId(self.next_exec);
                self.add_exec(id, plan, Purpose::Probe { run, aim });
                if let Some(exec) = self.execs.get_mut(&exec) {
                    exec.kill_at_boot_ms = Some(kill_at);
                }
            }
            Err(refusal) => {
                self.say(format!("the {aim} probe of {} cannot run: {refusal}", workload.definition.name));
                self.attempted(id, run, aim, false);
            }
        }
    }

    /// Runs a stop hook inside the workload, as the workload's own user. One that cannot run brings the signal at once.
    pub(crate) fn begin_stop_hook(&mut self, id: WorkloadId, deadline_boot_ms: u64) {
        let (Some(workload), Some(policy)) = (self.workloads.get(&id), &self.policy) else { return };
        let (run, args) = (workload.run, workload.definition.stop.hook.clone());
        let process = Process { args, terminal: None, ..workload.plan.request().process.clone() };
        match Plan::check_exec(process, &workload.plan, policy, workload.origin()) {
            Ok(plan) => {
                let exec = ExecId(self.next_exec);
                self.add_exec(id, plan, Purpose::StopHook(run));
                if let Some(exec) = self.execs.get_mut(&exec) {
                    exec.kill_at_boot_ms = Some(deadline_boot_ms);
                }
            }
            Err(refusal) => {
                self.say(format!("stop hook of {id} cannot run: {refusal}"));
                self.stop_hook_ended(id, run);
            }
        }
    }

    pub(crate) fn exec_launched(&mut self, id: ExecId, outcome: LaunchOutcome) {
        // A report that comes twice says nothing new.
        let Some(exec) = self.execs.get_mut(&id).filter(|exec| !exec.running) else { return };
        let (purpose, workload) = (exec.purpose, exec.workload);
        match outcome {
            LaunchOutcome::Running { terminal, .. } => {
                exec.running = true;
                let attachment = if terminal { Attachment::ExecTerminal(id) } else { Attachment::None };
                match purpose {
                    Purpose::Client(caller) if self.channels.contains_key(&caller.channel) => {
                        self.answer(caller, Reply::ExecStarted { exec: id.0 }, attachment);
                    }
                    Purpose::Client(_) => self.signal_exec(id, KILL),
                    Purpose::Probe { .. } | Purpose::StopHook(_) => {}
                }
            }
            LaunchOutcome::Failed(failure) => {
                let name = exec.plan.process().args.first().cloned().unwrap_or_default();
                self.execs.remove(&id);
                self.actions.push(Action::ForgetExec { exec: id });
                match purpose {
                    Purpose::Client(caller) => {
                        self.refuse(caller, refused(RefusedCode::StartFailed, &describe_failure(&name, &failure)));
                    }
                    Purpose::Probe { run, aim } => self.attempted(workload, run, aim, false),
                    Purpose::StopHook(run) => self.stop_hook_ended(workload, run),
                }
            }
            // An exec makes no pod.
            LaunchOutcome::Made => {}
        }
    }

    pub(crate) fn exec_exited(&mut self, id: ExecId, status: ExitStatus) {
        let Some(exec) = self.execs.remove(&id) else { return };
        let cause = match status {
            ExitStatus::Code(code) => Cause::Code(code),
            ExitStatus::Signal(signal) => Cause::Signal(signal),
        };
        self.actions.push(Action::ForgetExec { exec: id });
        match exec.purpose {
            Purpose::Client(caller) => {
                if !exec.running {
                    let text = "it ended before it was known to run; try again";
                    self.refuse(caller, refused(RefusedCode::StartFailed, text));
                } else if self.channels.contains_key(&caller.channel) {
                    self.notify(caller.channel, Notice::ExecEnded { exec: id.0, cause }, Attachment::None);
                }
            }
            Purpose::Probe { run, aim } => self.attempted(exec.workload, run, aim, cause == Cause::Code(0)),
            Purpose::StopHook(run) => self.stop_hook_ended(exec.workload, run),
        }
    }

    pub(crate) fn kill_exec(&mut self, caller: Caller, number: u64, signal: u8) {
        let id = ExecId(number);
        let owned =
            self.execs.get(&id).is_some_and(|exec| exec.purpose.channel() == Some(caller.channel) && exec.running);
        if !owned {
            return self
                .refuse(caller, refused(RefusedCode::NotFound, &format!("exec session {number} is not running")));
        }
        self.signal_exec(id, signal);
        self.answer(caller, Reply::Done, Attachment::None);
    }

    /// The channel is gone: its sessions are hung up, and killed a little later.
    pub(crate) fn hang_up_execs(&mut self, channel: ChannelId) {
        let kill_at = self.now.boot_ms.saturating_add(HANG_UP_GRACE_MS);
        let mut orphans = Vec::new();
        for (id, exec) in self.execs.iter_mut().filter(|(_, exec)| exec.purpose.channel() == Some(channel)) {
            exec.kill_at_boot_ms = Some(kill_at);
            orphans.push(*id);
        }
        for id in orphans {
            self.signal_exec(id, HANG_UP);
        }
    }

    /// A workload is gone, and with it everything that ran in it: what has not been seen to end yet counts as killed.
    pub(crate) fn end_execs_of(&mut self, id: WorkloadId) {
        let of_it: Vec<ExecId> =
            self.execs.iter().filter(|(_, exec)| exec.workload == id).map(|(exec, _)| *exec).collect();
        for exec in of_it {
            self.exec_exited(exec, ExitStatus::Signal(KILL));
        }
    }

    pub(crate) fn kill_due_execs(&mut self) {
        let now_ms = self.now.boot_ms;
        let mut due = Vec::new();
        for (id, exec) in &mut self.execs {
            if exec.kill_at_boot_ms.is_some_and(|at| at <= now_ms) {
                exec.kill_at_boot_ms = None;
                due.push(*id);
            }
        }
        for id in due {
            self.signal_exec(id, KILL);
        }
    }

    fn signal_exec(&mut self, exec: ExecId, signal: u8) {
        self.actions.push(Action::SignalExec { exec, signal });
    }

    pub(crate) fn pid_if_up(&self, id: WorkloadId) -> Option<u32> {
        match self.workloads.get(&id).map(|workload| &workload.actual) {
            Some(Actual::Up { pid, .. }) => Some(*pid),
            Some(
                Actual::Down { .. }
                | Actual::Starting { .. }
                | Actual::Stopping { .. }
                | Actual::Draining { .. }
                | Actual::Backoff { .. }
                | Actual::Removing,
            )
            | None => None,
        }
    }
}

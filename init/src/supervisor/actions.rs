//! Carries out what the core decided: one `match`, no decisions.

use std::os::fd::AsFd;

use byre_core::{Action, Event, ExecId};
use byre_plan::WorkloadId;
use byre_protocol::definition::Kind;

use super::Supervisor;
use super::tasks::Purpose;
use crate::sys;

impl Supervisor {
    pub(super) fn carry_out(&mut self, action: Action) {
        match action {
            Action::Launch { id, run } => self.launch(id, run),
            Action::LaunchExec { exec } => self.launch_exec(exec),
            Action::Signal { id, signal } => self.signal(id, signal),
            Action::SignalExec { exec, signal } => self.signal_exec(exec, signal),
            Action::KillAll { id, run } => self.kill_all(id, run),
            Action::ForgetExec { exec } => self.forget_exec(exec),
            Action::Send { channel, message, attachment } => self.send(channel, &message, attachment),
            Action::CloseInput { id } => {
                if let Some(stdin) = self.kept.get_mut(&id).and_then(|kept| kept.stdin.as_mut()) {
                    stdin.writer = None;
                }
            }
            Action::OfferLogs { channel } => self.offer_all_outputs(channel),
            Action::RemoveFiles { id } => self.remove_files(id),
            Action::Sweep => self.sweep(),
            Action::ReleaseLayers => self.release_layers(),
            Action::Forget { id } => self.forget(id),
            Action::Say(line) => self.say(&line),
            Action::Finish(action) => self.finish(action),
            Action::Reexec => self.reexec(),
            Action::Arm(next) => self.arm(next),
        }
    }

    fn signal(&mut self, id: WorkloadId, signal: u8) {
        let process = self.kept.get(&id).and_then(|kept| kept.run.as_ref()).and_then(|run| run.process.as_ref());
        if let Some(process) = process {
            // The process may have ended meanwhile; its end is an event of its own.
            let _ = sys::pidfd_send_signal(&process.fd, signal);
        }
    }

    fn signal_exec(&mut self, exec: ExecId, signal: u8) {
        if let Some(process) = self.execs.get(&exec).and_then(|kept| kept.process.as_ref()) {
            let _ = sys::pidfd_send_signal(&process.fd, signal);
        }
    }

    fn kill_all(&mut self, id: WorkloadId, number: u64) {
        let run = self.kept.get_mut(&id).and_then(|kept| kept.run.as_mut()).filter(|run| run.number == number);
        let Some(run) = run else {
            // Its cgroup could not even be made: nothing of it lives.
            self.queue.push_back(Event::Emptied { id, run: number });
            return;
        };
        run.ending = true;
        if self.core.workload(id).is_some_and(|workload| workload.definition().kind == Kind::Pod) {
            return self.release_namespaces(id, number);
        }
        if let Err(errno) = byre_launch::cgroup::kill(run.cgroup.as_fd()) {
            self.say(&format!("cgroup.kill of {id}: {errno}"));
        }
        self.watch_cgroup(id);
        self.check_emptied(id);
    }

    /// Ends a pod. Its maker may still be at work: then its report brings the next end.
    fn release_namespaces(&mut self, id: WorkloadId, number: u64) {
        let is_made = self.kept.get(&id).and_then(|kept| kept.run.as_ref()).is_none_or(|run| run.report.is_none());
        let purpose = Purpose::ReleaseNamespaces { id, run: number };
        let is_under_way = self.tasks.running.values().any(|task| task.purpose == purpose);
        let Some(workload) = self.core.workload(id).filter(|_| is_made && !is_under_way) else { return };
        let words = vec!["release-namespaces".to_owned(), workload.definition().name.to_string()];
        if !self.begin_task(purpose, words) {
            self.emptied(id, number);
        }
    }

    fn forget(&mut self, id: WorkloadId) {
        self.end_run(id);
        self.kept.remove(&id);
    }
}

//! Short-lived children that do what may wait on a disk, so that PID 1 does not: they are started by the same code as everything
//! else, in the cgroup of launch children, and end with a code.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_core::Event;
use byre_launch::{Child, Descriptors, Stdio};
use byre_plan::{LaunchRequest, Origin, Plan, Policy, Process, WorkloadId};
use rustix::event::epoll::EventFlags;

use super::Supervisor;
use super::kept::Watched;
use super::launches::Owner;
use super::sources::Source;
use crate::index::{Listed, Use};

/// The capabilities of a task: all that this kernel may know.
const ALL_CAPABILITIES: u64 = (1 << 41) - 1;
/// Removals at a time; the rest waits its turn.
const REMOVALS: usize = 4;

/// What a task is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    RemoveFiles(WorkloadId),
    Sweep,
    ReleaseLayers,
    Unmount,
    DryRun,
    /// Of a pod.
    ReleaseNamespaces {
        id: WorkloadId,
        run: u64,
    },
    Arm,
}

pub(crate) struct Task {
    pub(crate) purpose: Purpose,
    pub(crate) report: Option<Watched>,
}

/// Layers are released by one task at a time, however often a client asks: what is asked for meanwhile is one more.
#[derive(Default, Clone, Copy)]
pub(crate) enum Releases {
    #[default]
    None,
    Running,
    RunningAndWanted,
}

impl Releases {
    /// Whether one more is wanted.
    pub(crate) fn again(self) -> bool {
        match self {
            Self::RunningAndWanted => true,
            Self::None | Self::Running => false,
        }
    }

    /// As it follows from the tasks under way.
    pub(crate) fn of(running: &BTreeMap<u64, Task>, again: bool) -> Self {
        match (running.values().any(|task| task.purpose == Purpose::ReleaseLayers), again) {
            (false, _) => Self::None,
            (true, false) => Self::Running,
            (true, true) => Self::RunningAndWanted,
        }
    }
}

/// Tasks under way.
#[derive(Default)]
pub(crate) struct Tasks {
    pub(crate) running: BTreeMap<u64, Task>,
    pub(crate) next: u64,
    pub(crate) waiting: Vec<WorkloadId>,
    pub(crate) releases: Releases,
}

impl Supervisor {
    pub(super) fn remove_files(&mut self, id: WorkloadId) {
        let removals =
            self.tasks.running.values().filter(|task| matches!(task.purpose, Purpose::RemoveFiles(_))).count();
        if removals >= REMOVALS {
            self.tasks.waiting.push(id);
            return;
        }
        if !self.begin_task(Purpose::RemoveFiles(id), vec!["remove-files".to_owned(), id.to_string()]) {
            self.queue.push_back(Event::FilesRemoved { id, removed: false });
        }
    }

    /// Removes files and logs of workloads that no longer exist.
    pub(super) fn sweep(&mut self) {
        let mut words = vec!["sweep".to_owned()];
        words.extend(self.core.workloads().map(|workload| workload.id().to_string()));
        self.begin_task(Purpose::Sweep, words);
    }

    /// Unmounts the layers of images that were removed.
    pub(super) fn release_layers(&mut self) {
        self.tasks.releases = match self.tasks.releases {
            Releases::None => {
                let begun = self.begin_task(Purpose::ReleaseLayers, vec!["release-layers".to_owned()]);
                if begun { Releases::Running } else { Releases::None }
            }
            Releases::Running | Releases::RunningAndWanted => Releases::RunningAndWanted,
        };
    }

    /// Syncs and unmounts; tells whether a child is at it.
    pub(super) fn begin_unmount(&mut self) -> bool {
        self.begin_task(Purpose::Unmount, vec!["unmount".to_owned()])
    }

    /// Runs this program's file on a copy of the state; returns the task's number and its process.
    pub(super) fn begin_dry_run_task(&mut self, named: Vec<(&str, BorrowedFd<'_>)>) -> Option<(u64, OwnedFd)> {
        self.begin_task_with(Purpose::DryRun, vec!["dry-run".to_owned()], named)
    }

    /// Arms the other slot; returns the task's number and its process.
    pub(super) fn begin_arm_task(&mut self, named: Vec<(&str, BorrowedFd<'_>)>) -> Option<(u64, OwnedFd)> {
        self.begin_task_with(Purpose::Arm, vec!["arm".to_owned()], named)
    }

    pub(super) fn begin_task(&mut self, purpose: Purpose, words: Vec<String>) -> bool {
        self.begin_task_with(purpose, words, Vec::new()).is_some()
    }

    fn begin_task_with(
        &mut self,
        purpose: Purpose,
        words: Vec<String>,
        named: Vec<(&str, BorrowedFd<'_>)>,
    ) -> Option<(u64, OwnedFd)> {
        let Some(Child { stage_pid, stage_pidfd, report }) = self.start_task(words, named) else {
            self.say(&format!("a task for {purpose:?} could not be started"));
            return None;
        };
        let number = self.tasks.next;
        self.tasks.next = number.saturating_add(1);
        let report = match self.sources.add(report.as_fd(), Source::TaskReport(number), EventFlags::RDHUP) {
            Ok(token) => Some(Watched { fd: Listed::new(report, Use::passing()), token }),
            Err(_) => None,
        };
        self.processes.insert(stage_pid, Owner::Task(number));
        self.tasks.running.insert(number, Task { purpose, report });
        Some((number, stage_pidfd))
    }

    fn start_task(&self, words: Vec<String>, named: Vec<(&str, BorrowedFd<'_>)>) -> Option<Child> {
        let mut args = vec!["/usr/bin/init".to_owned(), "task".to_owned()];
        args.extend(words);
        let plan = Plan::check(host_request(args), &Policy::default(), Origin::VerifiedRoot).ok()?;
        let cgroup = &self.environment.launch_cgroup;
        let context = self.environment.context(WorkloadId(0), None, cgroup, cgroup);
        let descriptors =
            Descriptors { stdin: Stdio::Null, stdout: Stdio::Null, stderr: Stdio::Null, named, further: Vec::new() };
        byre_launch::start(&plan, &context, &descriptors).ok()
    }

    /// The launch report of a task only matters for its end, which the reaper tells.
    pub(super) fn task_reported(&mut self, number: u64) {
        let Some(report) = self.tasks.running.get(&number).and_then(|task| task.report.as_ref()) else { return };
        if let Ok(None) = byre_launch::read_report(report.fd.as_fd()) {
            return;
        }
        let report = self.tasks.running.get_mut(&number).and_then(|task| task.report.take());
        self.unwatch(report);
    }

    pub(super) fn task_ended(&mut self, number: u64, ended_well: bool) {
        let Some(task) = self.tasks.running.remove(&number) else { return };
        self.unwatch(task.report);
        match task.purpose {
            Purpose::RemoveFiles(id) => {
                self.step(Event::FilesRemoved { id, removed: ended_well });
                if let Some(next) = self.tasks.waiting.pop() {
                    self.remove_files(next);
                }
            }
            Purpose::Sweep => {
                if !ended_well {
                    self.say("files of removed workloads were not all swept up");
                }
            }
            Purpose::ReleaseLayers => {
                if !ended_well {
                    self.say("layers of removed images stay mounted; the next removal tries again");
                }
                if std::mem::take(&mut self.tasks.releases).again() {
                    self.release_layers();
                }
            }
            Purpose::Unmount => self.unmounted(ended_well),
            Purpose::DryRun => self.dry_run_ended(number, ended_well),
            Purpose::ReleaseNamespaces { id, run } => {
                if !ended_well {
                    self.say(&format!("namespaces of pod {id} are not all released; its next start tries again"));
                }
                self.emptied(id, run);
            }
            Purpose::Arm => self.arming_ended(number, ended_well),
        }
    }
}

/// A program of the root with all of its powers.
fn host_request(args: Vec<String>) -> LaunchRequest {
    let capabilities = byre_plan::Capabilities {
        bounding: ALL_CAPABILITIES,
        effective: ALL_CAPABILITIES,
        permitted: ALL_CAPABILITIES,
        inheritable: 0,
        ambient: 0,
    };
    LaunchRequest::on_host(Process {
        program: byre_plan::Program::Path,
        args,
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: byre_plan::User::default(),
        terminal: None,
        capabilities,
        rlimits: Vec::new(),
        no_new_privileges: true,
        oom_score_adj: None,
        scheduling: byre_plan::Scheduling::default(),
        labels: byre_plan::Labels::default(),
    })
}

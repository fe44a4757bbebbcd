//! Starting programs: the cgroup, the descriptors, the clone, and the launch child's report.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use byre_core::{ChannelId, Event, ExecId, LaunchOutcome, Subject, Workload};
use byre_launch::{Context, Descriptors, Report, Stdio};
use byre_plan::{Principal, WorkloadId};
use byre_protocol::definition::{Definition, Grant, Kind};
use byre_protocol::pod::NAMESPACES;
use byre_protocol::status::StartFailure;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::Supervisor;
use super::kept::{Kept, KeptExec, KeptRun, Watched};
use super::listeners::{self, GrantError};
use super::setup::Environment;
use super::slots;
use super::sources::Source;
use crate::index::{Listed, Role, Use};

/// Below it, one socket for each service that says when it is ready.
pub(super) const NOTIFY_DIRECTORY: &str = "/run/byre/notify";

/// Where the store keeps the layers of images.
pub(crate) const STORE_LAYERS: &str = "/data/images/layers";
/// Where they are mounted for all containers.
pub(crate) const SHARED_LAYERS: &str = "/run/byre/layers";

/// Whose a process id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The process that was cloned: the first stage, or the program itself.
    Stage(Subject),
    /// The first process of a workload or an exec session.
    Main(Subject),
    /// A task's.
    Task(u64),
}

/// Processes that are known by their id, because `waitid` names them so.
pub(crate) type Processes = BTreeMap<u32, Owner>;

/// Why a launch did not get as far as a child.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("{0}")]
    Grant(#[from] GrantError),
    #[error("{step}: {errno}")]
    Step { step: &'static str, errno: Errno },
    #[error("{0}")]
    Start(#[from] byre_launch::StartError),
}

impl LaunchError {
    fn into_failure(self) -> StartFailure {
        match self {
            Self::Grant(error) => {
                StartFailure { step: "grant".to_owned(), subject: error.what, errno: error.errno.raw_os_error() }
            }
            Self::Step { step, errno } => {
                StartFailure { step: step.to_owned(), subject: String::new(), errno: errno.raw_os_error() }
            }
            Self::Start(error) => StartFailure { step: "clone".to_owned(), subject: error.to_string(), errno: 0 },
        }
    }
}

fn at(step: &'static str) -> impl Fn(Errno) -> LaunchError {
    move |errno| LaunchError::Step { step, errno }
}

/// What a service finds among its descriptors.
struct Granted {
    named: Vec<(String, OwnedFd)>,
    channel: Option<ChannelId>,
    notify: Option<Watched>,
}

impl Environment {
    /// Below which cgroup a workload's own lies, and its name there.
    pub(super) fn cgroup_of(&self, workload: &Workload) -> (&OwnedFd, String) {
        let tree = if workload.is_built_in() { &self.services_cgroup } else { &self.workloads_cgroup };
        (tree, workload.cgroup_name())
    }

    pub(super) fn context<'a>(
        &'a self,
        id: WorkloadId,
        id_base: Option<u32>,
        cgroup: &'a OwnedFd,
        leaf: &'a OwnedFd,
    ) -> Context<'a> {
        Context {
            id,
            id_base,
            cgroup: cgroup.as_fd(),
            leaf: leaf.as_fd(),
            launch_cgroup: self.launch_cgroup.as_fd(),
            store_layers: STORE_LAYERS,
            shared_layers: SHARED_LAYERS,
            containers: "/data/containers",
            volumes: "/data/volumes",
            namespaces: None,
            default_seccomp: &self.default_seccomp,
            helper_program: self.helper_program.as_fd(),
            device_program: self.device_program.as_fd(),
            denied_devices: &self.denied_devices,
            companion: None,
        }
    }
}

impl Supervisor {
    pub(super) fn launch(&mut self, id: WorkloadId, run: u64) {
        if let Err(error) = self.try_launch(id, run) {
            let outcome = LaunchOutcome::Failed(error.into_failure());
            self.queue.push_back(Event::Launched { subject: Subject::Workload { id, run }, outcome });
        }
    }

    fn try_launch(&mut self, id: WorkloadId, number: u64) -> Result<(), LaunchError> {
        self.end_run(id);
        self.make_pipes(id).map_err(at("pipes"))?;
        let Some(workload) = self.core.workload(id) else { return Ok(()) };
        let definition = workload.definition().clone();
        let (parent, name) = self.environment.cgroup_of(workload);
        let (cgroup, leaf) = byre_launch::cgroup::create(parent.as_fd(), &name).map_err(at("cgroup"))?;
        let granted = self.grant(id, &definition)?;
        let kept = self.kept.entry(id).or_default();
        let run = KeptRun {
            number,
            cgroup,
            leaf,
            report: None,
            process: None,
            pid: 0,
            notify: granted.notify,
            channel: granted.channel,
            events: None,
            ending: false,
        };
        kept.run = Some(run);
        let (Some(workload), Some(kept)) = (self.core.workload(id), self.kept.get(&id)) else { return Ok(()) };
        let Some(run) = &kept.run else { return Ok(()) };
        let directory = namespaces_of(workload);
        let context = Context {
            namespaces: directory.as_deref(),
            ..self.environment.context(id, workload.id_base(), &run.cgroup, &run.leaf)
        };
        let descriptors = descriptors(kept, &granted.named);
        let child = byre_launch::start(workload.plan(), &context, &descriptors)?;
        let subject = Subject::Workload { id, run: number };
        self.processes.insert(child.stage_pid, Owner::Stage(subject));
        let token =
            self.sources.add(child.report.as_fd(), Source::Report(subject), EventFlags::RDHUP).map_err(at("epoll"))?;
        if let Some(run) = self.kept.get_mut(&id).and_then(|kept| kept.run.as_mut()) {
            run.report = Some(Watched { fd: Listed::new(child.report, Use::passing()), token });
        }
        Ok(())
    }

    fn grant(&mut self, id: WorkloadId, definition: &Definition) -> Result<Granted, LaunchError> {
        let mut granted = Granted { named: Vec::new(), channel: None, notify: None };
        for (number, grant) in (0..).zip(&definition.grants) {
            match grant {
                Grant::Control(role) => {
                    let (channel, theirs) = self.open_channel(id, *role).map_err(at("control channel"))?;
                    granted.channel = Some(channel);
                    granted.named.push(("control".to_owned(), theirs));
                }
                Grant::ListenUnix { .. } | Grant::ListenTcp { .. } => {
                    granted.named.extend(self.listeners.duplicate(id, definition, number, grant)?);
                }
                Grant::KernelLog => {
                    granted.named.extend(listeners::open_kernel_log().map(|fd| ("kmsg".to_owned(), fd)))
                }
                // Made by the jobs that mount the partition they lie on, or at set-up when they lie in /run.
                Grant::Directory { .. } => {}
                Grant::SlotPartitions => granted.named.extend(slots::partitions()?),
            }
        }
        if definition.is_notified() {
            let uid = match &definition.launch.process.user.user {
                Principal::Id(uid) => *uid,
                Principal::Name(_) => 0,
            };
            let socket = listeners::notify_socket(&format!("{NOTIFY_DIRECTORY}/{}", definition.name), uid)?;
            let fd = Listed::new(socket, Use::of(Role::Notify, id));
            let token = self.sources.add(fd.as_fd(), Source::Notify(id), EventFlags::IN).map_err(at("epoll"))?;
            granted.notify = Some(Watched { fd, token });
        }
        Ok(granted)
    }

    pub(super) fn launch_exec(&mut self, exec: ExecId) {
        if let Err(error) = self.try_launch_exec(exec) {
            let outcome = LaunchOutcome::Failed(error.into_failure());
            self.queue.push_back(Event::Launched { subject: Subject::Exec(exec), outcome });
        }
    }

    fn try_launch_exec(&mut self, exec: ExecId) -> Result<(), LaunchError> {
        let Some(session) = self.core.exec(exec) else { return Ok(()) };
        let Some(workload) = self.core.workload(session.workload()) else { return Ok(()) };
        let run = self.kept.get(&workload.id()).and_then(|kept| kept.run.as_ref());
        let Some((run, process)) = run.and_then(|run| Some((run, run.process.as_ref()?))) else {
            return Err(at("join")(Errno::SRCH));
        };
        let context = self.environment.context(workload.id(), workload.id_base(), &run.cgroup, &run.leaf);
        let stdio =
            |index: usize| self.call_descriptors.get(index).map_or(Stdio::Null, |fd| Stdio::Descriptor(fd.as_fd()));
        let descriptors =
            Descriptors { stdin: stdio(0), stdout: stdio(1), stderr: stdio(2), named: Vec::new(), further: Vec::new() };
        let target = process.fd.as_fd();
        let child = byre_launch::exec(session.plan(), workload.plan(), target, &context, &descriptors)?;
        let subject = Subject::Exec(exec);
        self.processes.insert(child.stage_pid, Owner::Stage(subject));
        let token =
            self.sources.add(child.report.as_fd(), Source::Report(subject), EventFlags::RDHUP).map_err(at("epoll"))?;
        let report = Some(Watched { fd: Listed::new(child.report, Use::passing()), token });
        self.execs.insert(exec, KeptExec { report, process: None, pid: 0, terminal: None });
        Ok(())
    }

    /// A launch child has something to say, or is gone.
    pub(super) fn report_ready(&mut self, subject: Subject) {
        let Some(report) = self.report_of(subject) else { return };
        let read = match byre_launch::read_report(report.fd.as_fd()) {
            Ok(None) => return,
            Ok(Some(read)) => read,
            Err(_) => Report::Incomplete,
        };
        self.drop_report(subject);
        let outcome = match read {
            Report::Running { pid, pidfd, terminal } => {
                let has_terminal = terminal.is_some();
                match self.keep_process(subject, pid, pidfd, terminal) {
                    Ok(()) => LaunchOutcome::Running { pid, terminal: has_terminal },
                    Err(errno) => LaunchOutcome::Failed(StartFailure {
                        step: "watch process".to_owned(),
                        subject: pid.to_string(),
                        errno: errno.raw_os_error(),
                    }),
                }
            }
            Report::Made => LaunchOutcome::Made,
            Report::Failed { step, subject, errno } => LaunchOutcome::Failed(StartFailure { step, subject, errno }),
            Report::Incomplete => LaunchOutcome::Failed(StartFailure {
                step: byre_launch::CHILD_DIED.to_owned(),
                subject: String::new(),
                errno: 0,
            }),
        };
        self.step(Event::Launched { subject, outcome });
        self.drain_queue();
        if let Subject::Workload { id, .. } = subject {
            self.check_emptied(id);
        }
    }

    fn report_of(&self, subject: Subject) -> Option<&Watched> {
        match subject {
            Subject::Workload { id, run } => {
                self.kept.get(&id)?.run.as_ref().filter(|kept| kept.number == run)?.report.as_ref()
            }
            Subject::Exec(exec) => self.execs.get(&exec)?.report.as_ref(),
        }
    }

    fn drop_report(&mut self, subject: Subject) {
        let report = match subject {
            Subject::Workload { id, .. } => {
                self.kept.get_mut(&id).and_then(|kept| kept.run.as_mut()).and_then(|run| run.report.take())
            }
            Subject::Exec(exec) => self.execs.get_mut(&exec).and_then(|kept| kept.report.take()),
        };
        self.unwatch(report);
    }

    /// A process whose end could not be told is ended now: its start has failed.
    fn keep_process(
        &mut self,
        subject: Subject,
        pid: u32,
        pidfd: OwnedFd,
        terminal: Option<OwnedFd>,
    ) -> Result<(), rustix::io::Errno> {
        let token = match self.sources.add(pidfd.as_fd(), Source::Process(subject), EventFlags::IN) {
            Ok(token) => token,
            Err(errno) => {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                return Err(errno);
            }
        };
        self.processes.insert(pid, Owner::Main(subject));
        let is = match subject {
            Subject::Workload { id, run } => Use { number: run, ..Use::of(Role::Process, id) },
            Subject::Exec(_) => Use::of(Role::Exec, WorkloadId(0)),
        };
        let process = Some(Watched { fd: Listed::new(pidfd, is), token });
        match subject {
            Subject::Workload { id, .. } => {
                let has_terminal = terminal.is_some();
                if let Some(kept) = self.kept.get_mut(&id) {
                    kept.terminal = terminal.map(|fd| Listed::new(fd, Use::of(Role::Terminal, id)));
                    if let Some(run) = &mut kept.run {
                        run.process = process;
                        run.pid = pid;
                    }
                }
                if has_terminal {
                    self.offer_outputs(id);
                }
            }
            Subject::Exec(exec) => {
                if let Some(kept) = self.execs.get_mut(&exec) {
                    kept.process = process;
                    kept.pid = pid;
                    kept.terminal = terminal;
                }
            }
        }
        Ok(())
    }

    pub(super) fn unwatch(&mut self, watched: Option<Watched>) {
        if let Some(Watched { fd, token }) = watched {
            self.sources.remove(fd.as_fd(), token);
        }
    }

    pub(super) fn forget_exec(&mut self, exec: ExecId) {
        if let Some(kept) = self.execs.remove(&exec) {
            if kept.process.is_some() {
                // Not seen to end yet: whoever it is by then, it is reaped as an orphan.
                self.processes.remove(&kept.pid);
            }
            self.unwatch(kept.report);
            self.unwatch(kept.process);
        }
    }

    /// Drops what is kept of a workload's run.
    pub(super) fn end_run(&mut self, id: WorkloadId) {
        let Some(run) = self.kept.get_mut(&id).and_then(|kept| {
            kept.terminal = None;
            kept.run.take()
        }) else {
            return;
        };
        for watched in [run.report, run.process, run.notify, run.events] {
            self.unwatch(watched);
        }
        if let Some(channel) = run.channel {
            self.close_channel(channel);
        }
    }
}

/// Where a pod's namespaces are bound; `None` for what is no pod.
pub(super) fn namespaces_of(workload: &Workload) -> Option<String> {
    let definition = workload.definition();
    (definition.kind == Kind::Pod).then(|| format!("{NAMESPACES}/{}", definition.name))
}

fn descriptors<'a>(kept: &'a Kept, named: &'a [(String, OwnedFd)]) -> Descriptors<'a> {
    let writer = |pipe: &'a Option<super::kept::Pipe>| {
        pipe.as_ref().map_or(Stdio::Null, |pipe| Stdio::Descriptor(pipe.writer.as_fd()))
    };
    let stdin = kept.stdin.as_ref().map_or(Stdio::Null, |input| Stdio::Descriptor(input.reader.as_fd()));
    let named = named.iter().map(|(name, fd)| (name.as_str(), fd.as_fd())).collect();
    Descriptors { stdin, stdout: writer(&kept.stdout), stderr: writer(&kept.stderr), named, further: Vec::new() }
}

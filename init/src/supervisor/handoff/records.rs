//! The records of PID 1's descriptors and children, each made of the thing it stands for and made into it again.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use byre_core::{ChannelId, ExecId, Subject};
use byre_plan::{Name, WorkloadId};
use byre_protocol::handoff::{HandoffError, Writer};
use rustix::event::epoll::EventFlags;
use serde::{Deserialize, Serialize};

use super::ResumeError;
use crate::index::{Listed, Role, Use};
use crate::supervisor::channels::Channel;
use crate::supervisor::inherited::{Inherited, Kind};
use crate::supervisor::kept::{Input, Kept, KeptExec, KeptRun, Pipe, STDERR, STDOUT, Watched};
use crate::supervisor::launches::Owner;
use crate::supervisor::setup::{Environment, Surroundings};
use crate::supervisor::sources::{Source, Sources, Token};
use crate::supervisor::tasks::{Purpose, Task};

/// A descriptor by its number, which is the same before and after.
pub(super) type Fd = RawFd;

#[derive(Serialize, Deserialize)]
pub(super) struct SurroundingsRecord {
    services_cgroup: Fd,
    workloads_cgroup: Fd,
    launch_cgroup: Fd,
    device_program: Fd,
    denied_devices: Vec<(u32, u32)>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) surroundings: SurroundingsRecord,
    pub(super) began_boot_us: u64,
    pub(super) next_channel: u64,
    pub(super) next_task: u64,
    pub(super) waiting: Vec<WorkloadId>,
    /// Whether layers are to be released once more when the task that does so has ended.
    pub(super) release_again: bool,
    pub(super) uevents: Option<Fd>,
    pub(super) buttons: Vec<(u32, Fd)>,
    pub(super) watchdog: Option<Fd>,
    pub(super) next_feed_boot_ms: u64,
    pub(super) listeners: usize,
    pub(super) channels: usize,
    pub(super) kept: usize,
    pub(super) execs: usize,
    pub(super) processes: usize,
    pub(super) tasks: usize,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ListenerRecord {
    pub(super) service: Name,
    pub(super) name: String,
    pub(super) id: WorkloadId,
    pub(super) grant: u64,
    pub(super) fd: Fd,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ChannelRecord {
    pub(super) id: u64,
    pub(super) workload: WorkloadId,
    pub(super) fd: Fd,
    pub(super) messages: usize,
}

#[derive(Serialize, Deserialize)]
pub(super) struct MessageRecord {
    pub(super) bytes: Vec<u8>,
    pub(super) fd: Option<Fd>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct KeptRecord {
    pub(super) id: WorkloadId,
    pub(super) stdout: Option<(Fd, Fd)>,
    pub(super) stderr: Option<(Fd, Fd)>,
    pub(super) stdin: Option<(Fd, Option<Fd>)>,
    pub(super) terminal: Option<Fd>,
    pub(super) run: Option<RunRecord>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct RunRecord {
    pub(super) number: u64,
    pub(super) cgroup: Fd,
    pub(super) leaf: Fd,
    pub(super) report: Option<Fd>,
    pub(super) process: Option<Fd>,
    pub(super) pid: u32,
    pub(super) notify: Option<Fd>,
    pub(super) channel: Option<u64>,
    pub(super) events: Option<Fd>,
    pub(super) ending: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ExecRecord {
    pub(super) id: u64,
    pub(super) report: Option<Fd>,
    pub(super) process: Option<Fd>,
    pub(super) pid: u32,
    pub(super) terminal: Option<Fd>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum SubjectRecord {
    Workload { id: WorkloadId, run: u64 },
    Exec(u64),
}

#[derive(Serialize, Deserialize)]
pub(super) enum OwnerRecord {
    Stage(SubjectRecord),
    Main(SubjectRecord),
    Task(u64),
}

#[derive(Serialize, Deserialize)]
pub(super) struct ProcessRecord {
    pub(super) pid: u32,
    pub(super) owner: OwnerRecord,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TaskRecord {
    pub(super) number: u64,
    pub(super) purpose: PurposeRecord,
    pub(super) report: Option<Fd>,
}

#[derive(Serialize, Deserialize)]
pub(super) enum PurposeRecord {
    RemoveFiles(WorkloadId),
    Sweep,
    ReleaseLayers,
    Unmount,
    DryRun,
    ReleaseNamespaces { id: WorkloadId, run: u64 },
    Arm,
}

/// Writes records and remembers the descriptors they name.
pub(super) struct Scribe {
    pub(super) writer: Writer,
    pub(super) descriptors: Vec<RawFd>,
}

impl Scribe {
    pub(super) fn fd(&mut self, fd: &impl AsFd) -> Fd {
        let number = fd.as_fd().as_raw_fd();
        self.descriptors.push(number);
        number
    }

    pub(super) fn maybe(&mut self, fd: Option<&impl AsFd>) -> Option<Fd> {
        fd.map(|fd| self.fd(fd))
    }

    pub(super) fn watched(&mut self, watched: Option<&Watched>) -> Option<Fd> {
        watched.map(|Watched { fd, token: _ }| self.fd(fd))
    }

    pub(super) fn channel(&mut self, ChannelId(id): ChannelId, channel: &Channel) -> Result<(), HandoffError> {
        let fd = self.fd(&channel.fd);
        let messages = channel.queue.len();
        self.writer.push("channel", &ChannelRecord { id, workload: channel.workload, fd, messages })?;
        for (bytes, fd) in &channel.queue {
            let fd = self.maybe(fd.as_ref());
            self.writer.push("message", &MessageRecord { bytes: bytes.clone(), fd })?;
        }
        Ok(())
    }

    pub(super) fn task(&mut self, number: u64, task: &Task) -> Result<(), HandoffError> {
        let report = self.watched(task.report.as_ref());
        self.writer.push("task", &TaskRecord { number, purpose: PurposeRecord::of(task.purpose), report })
    }

    pub(super) fn pipe(&mut self, pipe: Option<&Pipe>) -> Option<(Fd, Fd)> {
        pipe.map(|Pipe { reader, writer }| (self.fd(reader), self.fd(writer)))
    }
}

pub(super) fn watch(
    sources: &mut Sources,
    fd: &impl AsFd,
    what: &'static str,
    source: Source,
    flags: EventFlags,
) -> Result<Token, ResumeError> {
    sources.add(fd.as_fd(), source, flags).map_err(|errno| ResumeError::Watch { what, errno })
}

impl Inherited {
    pub(super) fn maybe(&mut self, fd: Option<Fd>, kind: Kind) -> Result<Option<OwnedFd>, ResumeError> {
        fd.map(|fd| self.take(fd, kind)).transpose().map_err(Into::into)
    }

    pub(super) fn listed(&mut self, fd: Fd, kind: Kind, is: Use) -> Result<Listed, ResumeError> {
        Ok(Listed::new(self.take(fd, kind)?, is))
    }

    pub(super) fn maybe_listed(&mut self, fd: Option<Fd>, kind: Kind, is: Use) -> Result<Option<Listed>, ResumeError> {
        fd.map(|fd| self.listed(fd, kind, is)).transpose()
    }

    pub(super) fn pipe(
        &mut self,
        pipe: Option<(Fd, Fd)>,
        id: WorkloadId,
        (reading, writing): (Role, Role),
    ) -> Result<Option<Pipe>, ResumeError> {
        let Some((reader, writer)) = pipe else { return Ok(None) };
        let reader = self.listed(reader, Kind::Pipe, Use::of(reading, id))?;
        Ok(Some(Pipe { reader, writer: self.listed(writer, Kind::Pipe, Use::of(writing, id))? }))
    }

    pub(super) fn watched(
        &mut self,
        fd: Option<Fd>,
        kind: Kind,
        is: Use,
        sources: &mut Sources,
        (source, flags): (Source, EventFlags),
    ) -> Result<Option<Watched>, ResumeError> {
        let Some(fd) = self.maybe_listed(fd, kind, is)? else { return Ok(None) };
        let token = watch(sources, &fd, kind.name(), source, flags)?;
        Ok(Some(Watched { fd, token }))
    }
}

impl SurroundingsRecord {
    pub(super) fn of(environment: &Environment, scribe: &mut Scribe) -> Self {
        Self {
            services_cgroup: scribe.fd(&environment.services_cgroup),
            workloads_cgroup: scribe.fd(&environment.workloads_cgroup),
            launch_cgroup: scribe.fd(&environment.launch_cgroup),
            device_program: scribe.fd(&environment.device_program),
            denied_devices: environment.denied_devices.clone(),
        }
    }

    pub(super) fn into_surroundings(self, from: &mut Inherited) -> Result<Surroundings, ResumeError> {
        let Self { services_cgroup, workloads_cgroup, launch_cgroup, device_program, denied_devices } = self;
        Ok(Surroundings {
            services_cgroup: from.take(services_cgroup, Kind::Directory)?,
            workloads_cgroup: from.take(workloads_cgroup, Kind::Directory)?,
            launch_cgroup: from.take(launch_cgroup, Kind::Directory)?,
            // An anonymous inode: the kernel refuses it where it is no device program.
            device_program: from.take(device_program, Kind::Any)?,
            denied_devices,
        })
    }
}

impl KeptRecord {
    pub(super) fn of(id: WorkloadId, kept: &Kept, scribe: &mut Scribe) -> Self {
        let Kept { stdout, stderr, stdin, terminal, run } = kept;
        Self {
            id,
            stdout: scribe.pipe(stdout.as_ref()),
            stderr: scribe.pipe(stderr.as_ref()),
            stdin: stdin.as_ref().map(|Input { reader, writer }| (scribe.fd(reader), scribe.maybe(writer.as_ref()))),
            terminal: scribe.maybe(terminal.as_ref()),
            run: run.as_ref().map(|run| RunRecord::of(run, scribe)),
        }
    }

    pub(super) fn into_kept(self, inherited: &mut Inherited, sources: &mut Sources) -> Result<Kept, ResumeError> {
        let Self { id, stdout, stderr, stdin, terminal, run } = self;
        let stdin = match stdin {
            None => None,
            Some((reader, writer)) => Some(Input {
                reader: inherited.listed(reader, Kind::Pipe, Use::of(Role::StdinReader, id))?,
                writer: inherited.maybe_listed(writer, Kind::Pipe, Use::of(Role::StdinWriter, id))?,
            }),
        };
        Ok(Kept {
            stdout: inherited.pipe(stdout, id, STDOUT)?,
            stderr: inherited.pipe(stderr, id, STDERR)?,
            stdin,
            terminal: inherited.maybe_listed(terminal, Kind::Device, Use::of(Role::Terminal, id))?,
            run: run.map(|run| run.into_run(id, inherited, sources)).transpose()?,
        })
    }
}

impl RunRecord {
    pub(super) fn of(run: &KeptRun, scribe: &mut Scribe) -> Self {
        let KeptRun { number, cgroup, leaf, report, process, pid, notify, channel, events, ending } = run;
        Self {
            number: *number,
            cgroup: scribe.fd(cgroup),
            leaf: scribe.fd(leaf),
            report: scribe.watched(report.as_ref()),
            process: scribe.watched(process.as_ref()),
            pid: *pid,
            notify: scribe.watched(notify.as_ref()),
            channel: channel.map(|ChannelId(id)| id),
            events: scribe.watched(events.as_ref()),
            ending: *ending,
        }
    }

    pub(super) fn into_run(
        self,
        id: WorkloadId,
        from: &mut Inherited,
        sources: &mut Sources,
    ) -> Result<KeptRun, ResumeError> {
        let Self { number, cgroup, leaf, report, process, pid, notify, channel, events, ending } = self;
        let subject = Subject::Workload { id, run: number };
        let first = Use { number, ..Use::of(Role::Process, id) };
        let notifies = Use::of(Role::Notify, id);
        let (reports, ends) =
            ((Source::Report(subject), EventFlags::RDHUP), (Source::Process(subject), EventFlags::IN));
        let (says, empties) = ((Source::Notify(id), EventFlags::IN), (Source::Cgroup(id), EventFlags::PRI));
        Ok(KeptRun {
            number,
            cgroup: from.take(cgroup, Kind::Directory)?,
            leaf: from.take(leaf, Kind::Directory)?,
            report: from.watched(report, Kind::Socket, Use::passing(), sources, reports)?,
            process: from.watched(process, Kind::Process, first, sources, ends)?,
            pid,
            notify: from.watched(notify, Kind::Socket, notifies, sources, says)?,
            channel: channel.map(ChannelId),
            events: from.watched(events, Kind::File, Use::passing(), sources, empties)?,
            ending,
        })
    }
}

impl ExecRecord {
    pub(super) fn of(ExecId(id): ExecId, exec: &KeptExec, scribe: &mut Scribe) -> Self {
        let KeptExec { report, process, pid, terminal } = exec;
        Self {
            id,
            report: scribe.watched(report.as_ref()),
            process: scribe.watched(process.as_ref()),
            pid: *pid,
            terminal: scribe.maybe(terminal.as_ref()),
        }
    }

    pub(super) fn into_exec(self, from: &mut Inherited, sources: &mut Sources) -> Result<KeptExec, ResumeError> {
        let Self { id, report, process, pid, terminal } = self;
        let subject = Subject::Exec(ExecId(id));
        let (reports, ends) =
            ((Source::Report(subject), EventFlags::RDHUP), (Source::Process(subject), EventFlags::IN));
        let is = Use::of(Role::Exec, WorkloadId(0));
        Ok(KeptExec {
            report: from.watched(report, Kind::Socket, Use::passing(), sources, reports)?,
            process: from.watched(process, Kind::Process, is, sources, ends)?,
            pid,
            terminal: from.maybe(terminal, Kind::Device)?,
        })
    }
}

impl SubjectRecord {
    pub(super) fn of(subject: Subject) -> Self {
        match subject {
            Subject::Workload { id, run } => Self::Workload { id, run },
            Subject::Exec(ExecId(id)) => Self::Exec(id),
        }
    }

    pub(super) fn into_subject(self) -> Subject {
        match self {
            Self::Workload { id, run } => Subject::Workload { id, run },
            Self::Exec(id) => Subject::Exec(ExecId(id)),
        }
    }
}

impl OwnerRecord {
    pub(super) fn of(owner: Owner) -> Self {
        match owner {
            Owner::Stage(subject) => Self::Stage(SubjectRecord::of(subject)),
            Owner::Main(subject) => Self::Main(SubjectRecord::of(subject)),
            Owner::Task(number) => Self::Task(number),
        }
    }

    pub(super) fn into_owner(self) -> Owner {
        match self {
            Self::Stage(subject) => Owner::Stage(subject.into_subject()),
            Self::Main(subject) => Owner::Main(subject.into_subject()),
            Self::Task(number) => Owner::Task(number),
        }
    }
}

impl PurposeRecord {
    pub(super) fn of(purpose: Purpose) -> Self {
        match purpose {
            Purpose::RemoveFiles(id) => Self::RemoveFiles(id),
            Purpose::Sweep => Self::Sweep,
            Purpose::ReleaseLayers => Self::ReleaseLayers,
            Purpose::Unmount => Self::Unmount,
            Purpose::DryRun => Self::DryRun,
            Purpose::ReleaseNamespaces { id, run } => Self::ReleaseNamespaces { id, run },
            Purpose::Arm => Self::Arm,
        }
    }

    pub(super) fn into_purpose(self) -> Purpose {
        match self {
            Self::RemoveFiles(id) => Purpose::RemoveFiles(id),
            Self::Sweep => Purpose::Sweep,
            Self::ReleaseLayers => Purpose::ReleaseLayers,
            Self::Unmount => Purpose::Unmount,
            Self::DryRun => Purpose::DryRun,
            Self::ReleaseNamespaces { id, run } => Purpose::ReleaseNamespaces { id, run },
            Self::Arm => Purpose::Arm,
        }
    }
}

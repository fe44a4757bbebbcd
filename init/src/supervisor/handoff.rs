//! Everything PID 1 holds as records, for the program that follows it, and back: the core, then every descriptor with its role.
//!
//! Reading has two halves. [`State::decode`] needs nothing but bytes; a dry run does just that, in a child, before anything is risked.
//! [`State::supervisor`] then takes the descriptors over, one by one: each must be open, of the kind its role says, and named once.
//! What no record names is closed. Every table of the supervisor is taken apart without `..`: a new field does not compile until it
//! is carried over or said to be made anew.

mod records;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;

use byre_core::{ChannelId, Core, ExecId, TakeOverError};
use byre_plan::WorkloadId;
use byre_protocol::control::WORKLOADS;
use byre_protocol::handoff::{HandoffError, Reader, Writer};
use rustix::event::epoll::EventFlags;

use self::records::{
    ChannelRecord, ExecRecord, Head, KeptRecord, ListenerRecord, MessageRecord, OwnerRecord, ProcessRecord, Scribe,
    SurroundingsRecord, TaskRecord, watch,
};
use super::Supervisor;
use super::channels::{Channels, QUEUED_MESSAGES};
use super::inherited::{Inherited, InheritedError, Kind};
use super::listeners::Listeners;
use super::setup::{self, SetupError};
use super::sources::Source;
use super::tasks::{Releases, Task, Tasks};
use super::watchdog::Watchdog;
use crate::index::{Role, Use};

/// Workloads with descriptors: the core's bound, and as many of the node's own services as it allows.
const KEPT: usize = WORKLOADS + 256;
/// Processes that are known by number: of each workload its stage and its first process, and those of exec sessions.
const PROCESSES: usize = KEPT * 4;
/// Channels, listeners and tasks: a few for each of the node's services.
const OF_SERVICES: usize = 1024;

/// Why a state is not taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResumeError {
    #[error(transparent)]
    Core(#[from] TakeOverError),
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("the state has {count} {what}, the most is {most}")]
    TooMany { what: &'static str, count: usize, most: usize },
    #[error("descriptor of {what} cannot be watched: {errno}")]
    Watch { what: &'static str, errno: rustix::io::Errno },
    #[error("{what}: {errno}")]
    File { what: &'static str, errno: rustix::io::Errno },
}

/// A state as it was written, whose descriptors are numbers only.
pub(crate) struct State {
    core: Core,
    head: Head,
    listeners: Vec<ListenerRecord>,
    channels: Vec<(ChannelRecord, Vec<MessageRecord>)>,
    kept: Vec<KeptRecord>,
    execs: Vec<ExecRecord>,
    processes: Vec<ProcessRecord>,
    tasks: Vec<TaskRecord>,
}

/// The state as bytes, and every descriptor it names.
pub(crate) struct Written {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<RawFd>,
}

impl Supervisor {
    /// Writes everything this PID 1 holds. Between two wake-ups only, when nothing is left to be done.
    pub(super) fn hand_over(&self, began_boot_us: u64) -> Result<Written, HandoffError> {
        let Self {
            core,
            // Begins with the state that is handed over.
            trace: _,
            // What is dear to make and the open devices; the rest is made anew from the kernel and the verified root.
            environment,
            // An epoll is made anew from what it watches.
            sources: _,
            channels: Channels { open, next: next_channel, buffer: _ },
            listeners: Listeners { open: listeners },
            kept,
            execs,
            processes,
            tasks: Tasks { running, next: next_task, waiting, releases },
            watchdog,
            // Empty between two wake-ups.
            queue: _,
            call_descriptors: _,
            // A machine that ends is not replaced.
            finishing: _,
            replacing: _,
            // Of files that are written again.
            marks: _,
            // Made anew from the facts of this boot.
            unjudged: _,
            // No replacement begins while one is under way.
            arming: _,
        } = self;
        let mut scribe = Scribe { writer: Writer::new(), descriptors: Vec::new() };
        core.hand_over(&mut scribe.writer)?;
        let uevents = scribe.maybe(environment.uevents.as_ref());
        let buttons = environment.buttons.iter().map(|(number, fd)| (*number, scribe.fd(fd))).collect();
        let (watchdog, next_feed_boot_ms) = watchdog.parts();
        let surroundings = SurroundingsRecord::of(environment, &mut scribe);
        let head = Head {
            surroundings,
            began_boot_us,
            next_channel: *next_channel,
            next_task: *next_task,
            waiting: waiting.clone(),
            release_again: releases.again(),
            uevents,
            buttons,
            watchdog: scribe.maybe(watchdog),
            next_feed_boot_ms,
            listeners: listeners.len(),
            channels: open.len(),
            kept: kept.len(),
            execs: execs.len(),
            processes: processes.len(),
            tasks: running.len(),
        };
        scribe.writer.push("supervisor", &head)?;
        for ((service, name), listed) in listeners {
            let (fd, is) = (scribe.fd(listed), listed.is());
            let (service, name, id) = (service.clone(), name.clone(), WorkloadId(is.id));
            let record = ListenerRecord { service, name, id, grant: is.number, fd };
            scribe.writer.push("listener", &record)?;
        }
        for (id, channel) in open {
            scribe.channel(*id, channel)?;
        }
        for (id, kept) in kept {
            let record = KeptRecord::of(*id, kept, &mut scribe);
            scribe.writer.push("workload's descriptors", &record)?;
        }
        for (id, exec) in execs {
            let record = ExecRecord::of(*id, exec, &mut scribe);
            scribe.writer.push("exec session's descriptors", &record)?;
        }
        for (pid, owner) in processes {
            scribe.writer.push("process", &ProcessRecord { pid: *pid, owner: OwnerRecord::of(*owner) })?;
        }
        for (number, task) in running {
            scribe.task(*number, task)?;
        }
        Ok(Written { bytes: scribe.writer.finish(), descriptors: scribe.descriptors })
    }
}

fn bounded(what: &'static str, count: usize, most: usize) -> Result<usize, ResumeError> {
    if count <= most { Ok(count) } else { Err(ResumeError::TooMany { what, count, most }) }
}

fn records<T: serde::de::DeserializeOwned>(
    reader: &mut Reader<'_>,
    what: &'static str,
    count: usize,
    most: usize,
) -> Result<Vec<T>, ResumeError> {
    let mut records = Vec::new();
    for _ in 0..bounded(what, count, most)? {
        records.push(reader.next(what)?);
    }
    Ok(records)
}

impl State {
    /// Reads a state. Touches no descriptor.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ResumeError> {
        let mut reader = Reader::new(bytes)?;
        let core = Core::take_over(&mut reader)?;
        let head: Head = reader.next("supervisor")?;
        let listeners = records(&mut reader, "listener", head.listeners, OF_SERVICES)?;
        let mut channels = Vec::new();
        for _ in 0..bounded("channels", head.channels, OF_SERVICES)? {
            let channel: ChannelRecord = reader.next("channel")?;
            let messages = records(&mut reader, "message", channel.messages, QUEUED_MESSAGES)?;
            channels.push((channel, messages));
        }
        let kept = records(&mut reader, "workload's descriptors", head.kept, KEPT)?;
        let execs = records(&mut reader, "exec session's descriptors", head.execs, KEPT)?;
        let processes = records(&mut reader, "process", head.processes, PROCESSES)?;
        let tasks = records(&mut reader, "task", head.tasks, OF_SERVICES)?;
        reader.finish()?;
        Ok(Self { core, head, listeners, channels, kept, execs, processes, tasks })
    }

    /// When the program before this one stopped serving, on CLOCK_BOOTTIME in microseconds.
    pub(crate) fn began_boot_us(&self) -> u64 {
        self.head.began_boot_us
    }

    /// Takes everything over. The descriptors of `inherited` that no record names are closed.
    pub(crate) fn supervisor(self, mut inherited: Inherited) -> Result<Supervisor, ResumeError> {
        let Self { core, head, listeners, channels, kept, execs, processes, tasks } = self;
        let surroundings = head.surroundings.into_surroundings(&mut inherited)?;
        let (mut sources, mut environment) = setup::surroundings(None, Some(surroundings))?;
        environment.uevents = inherited.maybe(head.uevents, Kind::Socket)?;
        if let Some(socket) = &environment.uevents {
            watch(&mut sources, socket, "device events", Source::Uevents, EventFlags::IN)?;
        }
        for (number, fd) in head.buttons {
            let device = inherited.take(fd, Kind::Device)?;
            watch(&mut sources, &device, "a power button", Source::Button(number), EventFlags::IN)?;
            environment.buttons.insert(number, device);
        }
        let watchdog = Watchdog::of_parts(inherited.maybe(head.watchdog, Kind::Device)?, head.next_feed_boot_ms);
        let mut open = BTreeMap::new();
        for ListenerRecord { service, name, id, grant, fd } in listeners {
            let is = Use { number: grant, ..Use::of(Role::Listener, id) };
            open.insert((service, name), inherited.listed(fd, Kind::Socket, is)?);
        }
        let listeners = Listeners { open };
        let mut taken = Channels::new();
        taken.next = head.next_channel;
        for (record, messages) in channels {
            let fd = inherited.take(record.fd, Kind::Socket)?;
            let mut queue = VecDeque::new();
            for MessageRecord { bytes, fd } in messages {
                queue.push_back((bytes, inherited.maybe(fd, Kind::Any)?));
            }
            let failed = |errno| ResumeError::Watch { what: "a control channel", errno };
            taken.take(ChannelId(record.id), record.workload, fd, queue, &mut sources).map_err(failed)?;
        }
        let mut kept_by_id = BTreeMap::new();
        for record in kept {
            kept_by_id.insert(record.id, record.into_kept(&mut inherited, &mut sources)?);
        }
        let mut execs_by_id = BTreeMap::new();
        for record in execs {
            execs_by_id.insert(ExecId(record.id), record.into_exec(&mut inherited, &mut sources)?);
        }
        let mut running = BTreeMap::new();
        for TaskRecord { number, purpose, report } in tasks {
            let source = Source::TaskReport(number);
            let watch = (source, EventFlags::RDHUP);
            let report = inherited.watched(report, Kind::Socket, Use::passing(), &mut sources, watch)?;
            running.insert(number, Task { purpose: purpose.into_purpose(), report });
        }
        inherited.close_rest();
        Ok(Supervisor {
            channels: taken,
            listeners,
            kept: kept_by_id,
            execs: execs_by_id,
            processes: processes.into_iter().map(|record| (record.pid, record.owner.into_owner())).collect(),
            tasks: Tasks {
                releases: Releases::of(&running, head.release_again),
                running,
                next: head.next_task,
                waiting: head.waiting,
            },
            ..Supervisor::new(core, environment, sources, watchdog)
        })
    }
}

//! The service's loop: one thread, one epoll, no waiting anywhere else.
//!
//! PID 1's messages are handled before connections are, so that a client that asks after PID 1 answered it finds its workload known.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use byre_plan::{Name, WorkloadId};
use byre_protocol::control::{FromInit, Notice, Stream, WORKLOADS};
use byre_protocol::definition::LogPolicy;
use byre_protocol::frame::FrameError;
use byre_protocol::status::Moment;
use byre_sandbox::{Channel, Descriptors, Notifier, Termination, profiles};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::input::{Input, Moved};
use crate::reader::{Reader, ReaderError, RunState, Wants, directory_of, ends, id_of};

/// Where the files lie.
const DIRECTORY: &str = "/data/log";
/// Outputs at a time: two of every workload that a node may have.
const INPUTS: usize = 2 * WORKLOADS;
/// Clients at a time; each costs at most one piece (32 KiB) of memory. A node's kubelet and a few people stay far below.
const READERS: usize = 256;
/// A connection that has not sent its call by then is closed, so that idle ones cannot take all places.
const CALL_MS: u64 = 5_000;
/// Events taken per wake-up; more come with the next.
const EVENTS: usize = 64;
/// Messages of PID 1 taken per wake-up: a burst of a node's start, without forgetting the pipes.
const MESSAGES: usize = 256;
/// Turns given to an input whose run has ended or that is replaced: what a pipe holds at most (1 MiB) with room to spare.
const DRAIN_TURNS: usize = 64;

/// Tokens of the fixed descriptors; inputs and readers count up from [`FIRST_TOKEN`].
const CONTROL: u64 = 0;
const LISTENER: u64 = 1;
const TERMINATION: u64 = 2;
const FIRST_TOKEN: u64 = 16;

/// Why the service ended. PID 1 starts it anew.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// /dev/null is needed to throw bytes away.
    #[error("/dev/null: {0}")]
    Null(io::Error),
    /// PID 1 closed the channel or spoke another language.
    #[error(transparent)]
    Channel(#[from] FrameError),
    /// Waiting failed.
    #[error("epoll: {0}")]
    Epoll(#[from] Errno),
}

/// The service, started by PID 1: takes its descriptors, seals itself, serves until SIGTERM.
///
/// # Errors
/// If it cannot start or its channel fails.
pub fn run() -> Result<(), LogError> {
    let mut descriptors = Descriptors::from_environment()?;
    let control = descriptors.take("control")?;
    let listener = descriptors.take("unix")?;
    let notifier = Notifier::from_environment()?;
    let termination = byre_sandbox::termination()?;
    let service = Service::new(control, listener, Some(termination), Path::new(DIRECTORY))?;
    byre_sandbox::seal(&profiles::LOG)?;
    notifier.ready()?;
    service.serve()
}

/// The same without the sandbox, over given descriptors and directory; ends when PID 1 closes the channel.
///
/// # Errors
/// If its channel fails.
pub fn serve(control: OwnedFd, listener: OwnedFd, directory: &Path) -> Result<(), LogError> {
    Service::new(control, listener, None, directory)?.serve()
}

/// A workload whose output is taken in.
#[derive(Debug)]
struct Workload {
    inputs: BTreeMap<Stream, Place>,
    run: RunState,
}

/// An input and where it stands in the loop.
#[derive(Debug)]
struct Place {
    token: u64,
    input: Input,
    watch: Watch,
}

/// Whether epoll tells of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// When it is readable.
    Events,
    /// Not before this time.
    From(u64),
    /// Never again: its writers are gone.
    Ended,
}

struct Service {
    epoll: OwnedFd,
    channel: Channel,
    listener: OwnedFd,
    termination: Option<Termination>,
    root: PathBuf,
    null: File,
    workloads: BTreeMap<WorkloadId, Workload>,
    tokens: BTreeMap<u64, (WorkloadId, Stream)>,
    readers: BTreeMap<u64, Reader>,
    ending: BTreeSet<WorkloadId>,
    next_token: u64,
}

impl Service {
    fn new(
        control: OwnedFd,
        listener: OwnedFd,
        termination: Option<Termination>,
        root: &Path,
    ) -> Result<Self, LogError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let null = OpenOptions::new().write(true).open("/dev/null").map_err(LogError::Null)?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        epoll::add(&epoll, &control, epoll::EventData::new_u64(CONTROL), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        if let Some(termination) = &termination {
            epoll::add(&epoll, termination, epoll::EventData::new_u64(TERMINATION), epoll::EventFlags::IN)?;
        }
        Ok(Self {
            epoll,
            channel: Channel::new(control),
            listener,
            termination,
            root: root.to_owned(),
            null,
            workloads: BTreeMap::new(),
            tokens: BTreeMap::new(),
            readers: BTreeMap::new(),
            ending: BTreeSet::new(),
            next_token: FIRST_TOKEN,
        })
    }

    fn serve(mut self) -> Result<(), LogError> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
        loop {
            let timeout = self.timeout(now());
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let now = now();
            if self.take_messages(now)? == Flow::Closed {
                self.drain_all(now);
                return Ok(());
            }
            for event in &events {
                let (token, flags) = (event.data.u64(), event.flags);
                match token {
                    CONTROL => {}
                    LISTENER => self.accept(now),
                    TERMINATION => {
                        self.drain_all(now);
                        return Ok(());
                    }
                    token if self.tokens.contains_key(&token) => self.advance_input(token, now),
                    token if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) => {
                        self.readers.remove(&token);
                    }
                    token => self.advance_reader(token),
                }
            }
            self.run_timers(now);
            self.finish_runs(now);
        }
    }

    /// The time until something must be looked at again.
    fn timeout(&self, now: Moment) -> Option<Timespec> {
        let waiting = self.places().filter_map(|place| match place.watch {
            Watch::From(boot_ms) => Some(boot_ms),
            Watch::Events | Watch::Ended => None,
        });
        let asking =
            self.readers.values().filter(|reader| reader.is_asking()).map(|reader| reader.since_boot_ms + CALL_MS);
        let next = waiting.chain(asking).min()?;
        let milliseconds = i64::try_from(next.saturating_sub(now.boot_ms)).unwrap_or(i64::MAX);
        Some(Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 })
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.workloads.values().flat_map(|workload| workload.inputs.values())
    }

    fn take_messages(&mut self, now: Moment) -> Result<Flow, LogError> {
        for _ in 0..MESSAGES {
            match self.channel.receive() {
                Ok(Some((FromInit::Notice(notice), descriptors))) => self.take_notice(*notice, descriptors, now),
                Ok(Some((FromInit::Answer { .. }, _))) => {}
                Ok(None) => break,
                Err(FrameError::Closed) => return Ok(Flow::Closed),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Flow::Open)
    }

    fn take_notice(&mut self, notice: Notice, descriptors: Vec<OwnedFd>, now: Moment) {
        match notice {
            Notice::LogStream { id, name, stream, policy } => {
                let Some(fd) = descriptors.into_iter().next() else {
                    eprintln!("output of {name}: no descriptor came with it");
                    return;
                };
                self.take_stream(id, &name, stream, policy, fd, now);
            }
            Notice::LogRemove { id } => self.remove(id),
            Notice::LogRunEnded { id } => {
                if let Some(workload) = self.workloads.get_mut(&id) {
                    workload.run = RunState::Ending;
                    self.ending.insert(id);
                }
            }
            Notice::ShuttingDown
            | Notice::Event(_)
            | Notice::ExecEnded { .. }
            | Notice::Record { .. }
            | Notice::Probe { .. }
            | Notice::ProbeEnd { .. }
            | Notice::Attach { .. }
            | Notice::AttachEnd
            | Notice::Detach { .. } => {}
        }
    }

    /// A run begins, or this service was started anew: takes one of the workload's outputs.
    fn take_stream(
        &mut self,
        id: WorkloadId,
        name: &Name,
        stream: Stream,
        policy: LogPolicy,
        fd: OwnedFd,
        now: Moment,
    ) {
        if self.workloads.get(&id).is_some_and(|workload| workload.run == RunState::Ending) {
            self.end_run(id, now);
        }
        let workload =
            self.workloads.entry(id).or_insert_with(|| Workload { inputs: BTreeMap::new(), run: RunState::Live });
        workload.run = RunState::Live;
        for reader in self.readers.values_mut().filter(|reader| reader.workload() == Some(id)) {
            reader.run_begins();
        }
        if workload.inputs.get(&stream).is_some_and(|place| place.input.is_same(&fd)) {
            return;
        }
        if let Some(mut old) = workload.inputs.remove(&stream) {
            drain(&mut old.input, &self.null, now);
            self.tokens.remove(&old.token);
            // Dropping a descriptor of which PID 1 has a copy would leave it in the epoll set.
            let _ = epoll::delete(&self.epoll, &old.input);
        }
        if self.tokens.len() >= INPUTS {
            eprintln!("output of {name}: {INPUTS} outputs are open already, its output is not kept");
            return;
        }
        let input = match Input::new(fd, &directory_of(&self.root, id), stream, policy, now) {
            Ok(input) => input,
            Err(error) => return eprintln!("output of {name}: {error}"),
        };
        let token = self.next_token;
        self.next_token += 1;
        if let Err(errno) = epoll::add(&self.epoll, &input, epoll::EventData::new_u64(token), epoll::EventFlags::IN) {
            return eprintln!("output of {name}: epoll: {errno}");
        }
        self.tokens.insert(token, (id, stream));
        if let Some(workload) = self.workloads.get_mut(&id) {
            workload.inputs.insert(stream, Place { token, input, watch: Watch::Events });
        }
    }

    /// The workload is gone for good.
    fn remove(&mut self, id: WorkloadId) {
        if let Some(workload) = self.workloads.remove(&id) {
            for place in workload.inputs.into_values() {
                self.tokens.remove(&place.token);
                let _ = epoll::delete(&self.epoll, &place.input);
            }
        }
        self.ending.remove(&id);
        let readers: Vec<u64> = self.readers_of(id);
        for token in readers {
            if let Some(reader) = self.readers.get_mut(&token) {
                reader.run_begins();
                reader.run_ended(&BTreeMap::new());
            }
            self.advance_reader(token);
        }
        let directory = directory_of(&self.root, id);
        match std::fs::remove_dir_all(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => eprintln!("{}: {error}", directory.display()),
        }
    }

    fn readers_of(&self, id: WorkloadId) -> Vec<u64> {
        self.readers.iter().filter(|(_, reader)| reader.workload() == Some(id)).map(|(token, _)| *token).collect()
    }

    /// Moves one input's bytes, and sets when it is looked at again.
    fn advance_input(&mut self, token: u64, now: Moment) {
        let Some((id, stream)) = self.tokens.get(&token).copied() else { return };
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        let Some(place) = workload.inputs.get_mut(&stream) else { return };
        let moved = place.input.advance(&self.null, now);
        let watch = match moved {
            Moved::Some | Moved::Nothing => Watch::Events,
            Moved::NotBefore(boot_ms) => Watch::From(boot_ms),
            Moved::Ended => Watch::Ended,
        };
        if watch != place.watch {
            // A descriptor that hung up is told of for ever, whatever is asked for, so it is taken out of the set while it waits.
            let changed = match (place.watch, watch) {
                (Watch::Events, Watch::From(_) | Watch::Ended) => epoll::delete(&self.epoll, &place.input),
                (Watch::From(_) | Watch::Ended, Watch::Events) => {
                    epoll::add(&self.epoll, &place.input, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
                }
                (Watch::Events, Watch::Events) | (Watch::From(_) | Watch::Ended, Watch::From(_) | Watch::Ended) => {
                    Ok(())
                }
            };
            if let Err(errno) = changed {
                eprintln!("output of {id}: epoll: {errno}");
            }
            place.watch = watch;
        }
        if moved == Moved::Some {
            // Output after the end of a run is the next run's.
            if workload.run == RunState::Ended {
                workload.run = RunState::Live;
            }
            for token in self.readers_of(id) {
                self.advance_reader(token);
            }
        }
    }

    fn run_timers(&mut self, now: Moment) {
        let is_due = |place: &&Place| matches!(place.watch, Watch::From(boot_ms) if boot_ms <= now.boot_ms);
        let due: Vec<u64> = self.places().filter(is_due).map(|place| place.token).collect();
        for token in due {
            self.advance_input(token, now);
        }
        let late = |reader: &Reader| reader.is_asking() && reader.since_boot_ms + CALL_MS <= now.boot_ms;
        self.readers.retain(|_, reader| !late(reader));
    }

    /// Ends the runs whose pipes are drained.
    fn finish_runs(&mut self, now: Moment) {
        let is_drained = |id: &&WorkloadId| match self.workloads.get(id) {
            Some(workload) => workload.inputs.values().all(|place| place.input.is_drained()),
            None => true,
        };
        let drained: Vec<WorkloadId> = self.ending.iter().filter(is_drained).copied().collect();
        for id in drained {
            self.end_run(id, now);
        }
    }

    /// Takes what the pipes of a run still hold, and lets its followers end there.
    fn end_run(&mut self, id: WorkloadId, now: Moment) {
        self.ending.remove(&id);
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        for place in workload.inputs.values_mut() {
            drain(&mut place.input, &self.null, now);
        }
        workload.run = RunState::Ended;
        let positions = ends(&directory_of(&self.root, id)).unwrap_or_default();
        for token in self.readers_of(id) {
            if let Some(reader) = self.readers.get_mut(&token) {
                reader.run_ended(&positions);
            }
            self.advance_reader(token);
        }
    }

    fn accept(&mut self, now: Moment) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            if self.readers.len() >= READERS {
                // Closing it at once tells the client to come back.
                continue;
            }
            let token = self.next_token;
            self.next_token += 1;
            let reader = Reader::new(socket, now);
            if epoll::add(&self.epoll, &reader, epoll::EventData::new_u64(token), epoll::EventFlags::IN).is_ok() {
                self.readers.insert(token, reader);
            }
        }
    }

    /// Serves one reader as far as its socket takes it.
    fn advance_reader(&mut self, token: u64) {
        let Some(reader) = self.readers.get_mut(&token) else { return };
        let asked = |reader: &mut Reader| -> Result<Wants, ReaderError> {
            if reader.is_asking() {
                let Some(call) = reader.receive()? else { return Ok(Wants::Reading) };
                let run = self.workloads.get(&id_of(&call)).map_or(RunState::Ended, |workload| workload.run);
                reader.begin(&call, &self.root, run)?;
            }
            reader.advance(&self.root)
        };
        let flags = match asked(reader) {
            Ok(Wants::Reading) => epoll::EventFlags::IN,
            Ok(Wants::Writing) => epoll::EventFlags::OUT,
            // Nothing to wait for but its going away, which is always told.
            Ok(Wants::Output) => epoll::EventFlags::empty(),
            Ok(Wants::Nothing) => return drop(self.readers.remove(&token)),
            Err(error) => {
                if let ReaderError::File(error) = &error {
                    eprintln!("a reader is sent away: {error}");
                }
                return drop(self.readers.remove(&token));
            }
        };
        let _ = epoll::modify(&self.epoll, reader.as_fd(), epoll::EventData::new_u64(token), flags);
    }

    /// Before an orderly end: everything that is in the pipes goes to the files.
    fn drain_all(&mut self, now: Moment) {
        for place in self.workloads.values_mut().flat_map(|workload| workload.inputs.values_mut()) {
            drain(&mut place.input, &self.null, now);
        }
        // Kept until here, so that a second SIGTERM stays harmless.
        drop(self.termination.take());
    }
}

/// Whether PID 1 is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    Closed,
}

/// Takes what an input holds, within bounds.
fn drain(input: &mut Input, null: &File, now: Moment) {
    for _ in 0..DRAIN_TURNS {
        if input.advance(null, now) != Moved::Some {
            return;
        }
    }
}

/// Both clocks.
fn now() -> Moment {
    let milliseconds = |clock| {
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1000).saturating_add(u64::try_from(time.tv_nsec / 1_000_000).unwrap_or(0))
    };
    Moment { boot_ms: milliseconds(ClockId::Boottime), wall_ms: milliseconds(ClockId::Realtime) }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;

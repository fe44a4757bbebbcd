//! PID 1 after the switch of root: one thread, one epoll, one state machine.
//!
//! A wake-up is decoded into events, `byre_core::Core::step` turns each into actions, and one `match` carries them out. Nothing here
//! decides, and nothing here waits: what may touch a disk runs in a short-lived child, what another process has to answer comes back
//! as an event, and a peer that does not read is cut off.

mod actions;
mod arming;
mod channels;
mod finish;
mod handoff;
mod inherited;
mod kept;
mod launches;
mod listeners;
mod outputs;
mod power;
mod reaper;
mod reexec;
mod rescue;
mod setup;
mod slots;
mod sources;
mod tasks;
mod trial;
mod watchdog;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

use byre_core::{Core, Event, ExecId, Trace};
use byre_plan::WorkloadId;

use crate::console;
use channels::Channels;
use kept::{Kept, KeptExec};
use launches::Processes;
pub(crate) use launches::{SHARED_LAYERS, STORE_LAYERS};
use listeners::Listeners;
use setup::Environment;
use sources::{Source, Sources};
use tasks::Tasks;
use watchdog::Watchdog;

pub(crate) use reexec::dry_run;
pub(crate) use rescue::UNHEALTHY;

/// Events taken from the kernel in one wake-up; the rest waits for the next one.
const EVENTS_PER_WAKE_UP: usize = 64;

/// Everything PID 1 holds.
pub(crate) struct Supervisor {
    core: Core,
    trace: Trace,
    environment: Environment,
    sources: Sources,
    channels: Channels,
    listeners: Listeners,
    kept: BTreeMap<WorkloadId, Kept>,
    execs: BTreeMap<ExecId, KeptExec>,
    processes: Processes,
    tasks: Tasks,
    watchdog: Watchdog,
    /// What happened while actions were carried out; stepped before the next wait.
    queue: VecDeque<Event>,
    /// Descriptors that came with the call that is being stepped.
    call_descriptors: Vec<OwnedFd>,
    finishing: Option<finish::Finishing>,
    replacing: Option<reexec::Replacing>,
    marks: rescue::Marks,
    unjudged: trial::Unjudged,
    arming: Option<arming::Arming>,
}

/// Runs the system until it ends. Returns only if it could not be set up.
pub(crate) fn run() -> Result<std::convert::Infallible, setup::SetupError> {
    setup::supervisor()?.serve()
}

/// Goes on where the program before stopped: its state lies in the descriptor of this number.
pub(crate) fn resume(number: &str) -> Result<std::convert::Infallible, handoff::ResumeError> {
    reexec::resume(number.parse().unwrap_or(-1))?.serve()
}

/// Begins anew after a crash: the index of descriptors lies in the descriptor of this number.
pub(crate) fn rescue(number: &str) -> Result<std::convert::Infallible, handoff::ResumeError> {
    rescue::rescue(number.parse().unwrap_or(-1))?.serve()
}

impl Supervisor {
    /// One that has nothing yet.
    fn new(core: Core, environment: Environment, sources: Sources, watchdog: Watchdog) -> Self {
        Self {
            core,
            trace: Trace::new(),
            environment,
            sources,
            channels: Channels::new(),
            listeners: Listeners::default(),
            kept: BTreeMap::new(),
            execs: BTreeMap::new(),
            processes: Processes::new(),
            tasks: Tasks::default(),
            watchdog,
            queue: VecDeque::new(),
            call_descriptors: Vec::new(),
            finishing: None,
            replacing: None,
            marks: rescue::Marks::new(),
            unjudged: trial::Unjudged::from_facts(),
            arming: None,
        }
    }

    fn serve<E>(mut self) -> Result<std::convert::Infallible, E> {
        loop {
            self.drain_queue();
            self.reexec_if_ready();
            self.arm_timer();
            for source in self.sources.wait(EVENTS_PER_WAKE_UP) {
                self.wake(source);
                self.drain_queue();
            }
            self.watchdog.feed_if_due();
        }
    }

    /// One source has something to say.
    fn wake(&mut self, source: Source) {
        match source {
            Source::Signals => self.signals(),
            Source::Timer => self.timer(),
            Source::Clock => self.clock_was_set(),
            Source::Uevents => self.uevents(),
            Source::Button(number) => self.button(number),
            Source::Channel(channel) => self.channel_ready(channel),
            Source::Report(subject) => self.report_ready(subject),
            Source::Process(subject) => self.process_ended(subject),
            Source::Cgroup(id) => self.check_emptied(id),
            Source::Notify(id) => self.notified(id),
            Source::TaskReport(task) => self.task_reported(task),
        }
    }

    fn drain_queue(&mut self) {
        while let Some(event) = self.queue.pop_front() {
            self.step(event);
        }
    }

    /// Lets the core decide about one event and carries the actions out.
    fn step(&mut self, event: Event) {
        let actions = self.trace.step(&mut self.core, event, setup::now());
        self.keep_records();
        for action in actions {
            self.carry_out(action);
        }
        self.call_descriptors.clear();
    }

    fn timer(&mut self) {
        self.sources.timer_fired();
        self.queue.push_back(Event::Tick);
        self.check_finish_deadline();
        self.check_reexec_deadline();
        self.check_trial_deadline();
        self.check_arming_deadline();
    }

    /// What is planned by the calendar is planned anew.
    fn clock_was_set(&mut self) {
        self.sources.clock_was_set();
        self.queue.push_back(Event::Tick);
    }

    fn arm_timer(&mut self) {
        let core = self.core.next_deadline_boot_ms();
        let finish = self.finishing.as_ref().map(finish::Finishing::deadline_boot_ms);
        let watchdog = self.watchdog.next_feed_boot_ms();
        let replacing = self.replacing.as_ref().and_then(reexec::Replacing::deadline_boot_ms);
        let arming = self.arming.as_ref().map(arming::Arming::deadline_boot_ms);
        let unjudged = self.unjudged.deadline_boot_ms();
        let next = [core, finish, watchdog, replacing, unjudged, arming].into_iter().flatten().min();
        self.sources.arm_timer(next);
    }

    fn say(&self, line: &str) {
        console::say(line);
    }
}

//! What PID 1 waits for: one epoll, a typed source behind every descriptor in it, one timer.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use byre_core::{ChannelId, Subject};
use byre_plan::WorkloadId;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// What a descriptor in the epoll belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The signal pipe.
    Signals,
    /// The timer.
    Timer,
    /// Somebody has set the clock on the wall.
    Clock,
    /// The kernel's device events.
    Uevents,
    /// An input device with a power button.
    Button(u32),
    /// A control channel.
    Channel(ChannelId),
    /// A launch child's report.
    Report(Subject),
    /// A process ended.
    Process(Subject),
    /// A cgroup may have become empty.
    Cgroup(WorkloadId),
    /// A workload's notification socket.
    Notify(WorkloadId),
    /// A task's launch report.
    TaskReport(u64),
}

/// A descriptor's place in the epoll. It must be given back with [`Sources::remove`] before the descriptor is closed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Token(u64);

/// The epoll and its sources.
pub(crate) struct Sources {
    epoll: OwnedFd,
    timer: OwnedFd,
    clock: OwnedFd,
    armed_boot_ms: Option<u64>,
    known: BTreeMap<u64, Source>,
    next: u64,
}

impl Sources {
    /// An epoll with its timer in it.
    pub(crate) fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)?;
        let clock = rustix::time::timerfd_create(TimerfdClockId::Realtime, flags)?;
        let mut sources = Self { epoll, timer, clock, armed_boot_ms: None, known: BTreeMap::new(), next: 0 };
        sources.watch_own(Source::Timer)?;
        sources.watch_own(Source::Clock)?;
        sources.arm_clock();
        Ok(sources)
    }

    /// Watches a timer of its own, which lives as long as it does.
    fn watch_own(&mut self, source: Source) -> Result<(), Errno> {
        let token = self.next;
        let timer = if source == Source::Clock { &self.clock } else { &self.timer };
        epoll::add(&self.epoll, timer, EventData::new_u64(token), EventFlags::IN)?;
        self.next = token.saturating_add(1);
        self.known.insert(token, source);
        Ok(())
    }

    /// A timer that never fires, and is cancelled when the clock on the wall is set.
    fn arm_clock(&self) {
        let never = Timespec { tv_sec: i64::MAX / 1_000_000_000, tv_nsec: 0 };
        let setting = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let _ = rustix::time::timerfd_settime(&self.clock, flags, &setting);
    }

    /// The clock was set: takes the notice away, so that the next one is told.
    pub(crate) fn clock_was_set(&self) {
        let mut count = [0_u8; 8];
        let _ = rustix::io::read(&self.clock, &mut count);
        self.arm_clock();
    }

    /// Watches a descriptor.
    pub(crate) fn add(&mut self, fd: BorrowedFd<'_>, source: Source, flags: EventFlags) -> Result<Token, Errno> {
        let token = self.next;
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)?;
        self.next = token.saturating_add(1);
        self.known.insert(token, source);
        Ok(Token(token))
    }

    /// Changes what is watched for.
    pub(crate) fn modify(&self, fd: BorrowedFd<'_>, token: &Token, flags: EventFlags) {
        // The descriptor is in the epoll, or its removal is under way; neither is worth a word.
        let _ = epoll::modify(&self.epoll, fd, EventData::new_u64(token.0), flags);
    }

    /// Stops watching.
    pub(crate) fn remove(&mut self, fd: BorrowedFd<'_>, token: Token) {
        let _ = epoll::delete(&self.epoll, fd);
        self.known.remove(&token.0);
    }

    /// Waits until something happens and returns at most `most` sources.
    pub(crate) fn wait(&self, most: usize) -> Vec<Source> {
        let mut events = Vec::with_capacity(most);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(_) => {}
        }
        events.iter().filter_map(|event| self.known.get(&event.data.u64()).copied()).collect()
    }

    /// Sets the timer, if it is not set so already.
    pub(crate) fn arm_timer(&mut self, at_boot_ms: Option<u64>) {
        if self.armed_boot_ms == at_boot_ms {
            return;
        }
        self.armed_boot_ms = at_boot_ms;
        // A time of zero would disarm the timer, so what is due already is due after a millisecond of uptime.
        let at_ms = at_boot_ms.map_or(0, |at| at.clamp(1, i64::MAX.unsigned_abs()));
        let value = Timespec {
            tv_sec: i64::try_from(at_ms / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from((at_ms % 1000).saturating_mul(1_000_000)).unwrap_or(0),
        };
        let setting = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &setting);
    }

    /// The timer fired: takes its count away.
    pub(crate) fn timer_fired(&mut self) {
        let mut count = [0_u8; 8];
        let _ = rustix::io::read(&self.timer, &mut count);
        self.armed_boot_ms = None;
    }
}

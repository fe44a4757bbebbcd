//! The service's loop: which probes there are, when each is asked next, and what is told to PID 1.
//!
//! PID 1 is told when a verdict differs from the one before (the first always does), not of each attempt: at rest nothing is sent.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use byre_plan::WorkloadId;
use byre_protocol::control::{FromInit, Notice, Request, WORKLOADS};
use byre_protocol::frame::FrameError;
use byre_protocol::probe::{Aim, Judgement, LONGEST_ATTEMPT_MS, LONGEST_MS, Probe as Question, SHORTEST_MS, is_target};
use byre_sandbox::channel::ChannelError;
use byre_sandbox::{Channel, Descriptors, Notifier, profiles};
use rustix::event::{PollFd, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use rustix::time::{ClockId, clock_gettime};

use crate::attempt::{Ask, Attempt, Progress, Target};

/// Questions of all workloads: the start-up, readiness and liveness of each.
const PROBES: usize = WORKLOADS * Aim::ALL.len();

/// Why the service ended. PID 1 starts it anew, and sends the probes again.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// Its own network namespace cannot be opened.
    #[error("/proc/thread-self/ns/net: {0}")]
    Home(Errno),
    /// It could not leave a workload's network namespace, and so must end.
    #[error("back to the own network namespace: {0}")]
    Return(Errno),
    /// PID 1 closed the channel or spoke another language.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Waiting failed.
    #[error("poll: {0}")]
    Poll(Errno),
}

impl From<FrameError> for ProbeError {
    fn from(error: FrameError) -> Self {
        Self::Channel(error.into())
    }
}

/// The service, started by PID 1.
///
/// # Errors
/// If it cannot start or its channel fails.
pub fn run() -> Result<(), ProbeError> {
    let mut descriptors = Descriptors::from_environment()?;
    let control = descriptors.take("control")?;
    let notifier = Notifier::from_environment()?;
    let home = own_namespace()?;
    byre_sandbox::seal(&profiles::PROBE)?;
    notifier.ready()?;
    Service { channel: Channel::new(control), home, probes: BTreeMap::new() }.serve()
}

fn own_namespace() -> Result<OwnedFd, ProbeError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty()).map_err(ProbeError::Home)
}

/// What a probe is doing.
#[derive(Debug)]
enum Phase {
    /// Asks next at this time.
    Waiting { until_boot_ms: u64 },
    /// Asks.
    Asking { attempt: Attempt, deadline_boot_ms: u64 },
    /// There is nothing that it could ask.
    Refused,
}

/// A probe of one workload.
#[derive(Debug)]
struct Probe {
    number: u64,
    process: OwnedFd,
    target: Target,
    question: Question,
    judgement: Judgement,
    phase: Phase,
    /// A verdict that PID 1 has not been told yet.
    untold: Option<bool>,
}

struct Service {
    channel: Channel,
    home: OwnedFd,
    probes: BTreeMap<(WorkloadId, Aim), Probe>,
}

impl Service {
    fn serve(mut self) -> Result<(), ProbeError> {
        loop {
            self.channel.flush()?;
            self.wait()?;
            while let Some((message, descriptors)) = self.channel.receive()? {
                if let FromInit::Notice(notice) = message {
                    self.take(*notice, descriptors)?;
                }
            }
            let now = now_boot_ms();
            let keys: Vec<(WorkloadId, Aim)> = self.probes.keys().copied().collect();
            for key in keys {
                self.advance(key, now)?;
            }
        }
    }

    /// Waits for PID 1, for a socket, or for the next attempt.
    fn wait(&self) -> Result<(), ProbeError> {
        let now = now_boot_ms();
        let mut wanted = vec![PollFd::new(&self.channel, self.channel.interest())];
        let mut next: Option<u64> = None;
        for probe in self.probes.values() {
            let at = match &probe.phase {
                Phase::Waiting { until_boot_ms } => *until_boot_ms,
                Phase::Asking { attempt, deadline_boot_ms } => {
                    wanted.push(PollFd::new(attempt, attempt.interest()));
                    *deadline_boot_ms
                }
                Phase::Refused => continue,
            };
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        let timeout = next.map(|next| {
            let milliseconds = i64::try_from(next.saturating_sub(now)).unwrap_or(i64::MAX);
            Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 }
        });
        match poll(&mut wanted, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(ProbeError::Poll(errno)),
        }
    }

    fn take(&mut self, notice: Notice, descriptors: Vec<OwnedFd>) -> Result<(), ProbeError> {
        match notice {
            Notice::Probe { id, number, aim, probe: question, pid: _ } => {
                let target = Target::of(question.check.clone()).filter(|_| self.probes.len() < PROBES);
                let (Some(process), Some(target)) = (descriptors.into_iter().next(), target) else {
                    eprintln!("workload {id}: this {aim} probe cannot be asked here");
                    self.channel.send(Request::Probed { id, number, aim, passed: false }, vec![])?;
                    return Ok(());
                };
                let until_boot_ms = now_boot_ms().saturating_add(u64::from(question.initial_delay_ms.min(LONGEST_MS)));
                let (phase, judgement) = (Phase::Waiting { until_boot_ms }, Judgement::default());
                let probe = Probe { number, process, target, question, judgement, phase, untold: None };
                self.probes.insert((id, aim), probe);
            }
            Notice::ProbeEnd { id } => self.probes.retain(|(of, _), _| *of != id),
            Notice::ShuttingDown => self.probes.clear(),
            Notice::Event(_)
            | Notice::ExecEnded { .. }
            | Notice::LogStream { .. }
            | Notice::LogRemove { .. }
            | Notice::LogRunEnded { .. }
            | Notice::Record { .. }
            | Notice::Attach { .. }
            | Notice::AttachEnd
            | Notice::Detach { .. } => {}
        }
        Ok(())
    }

    /// Takes one probe as far as it goes now.
    fn advance(&mut self, key: (WorkloadId, Aim), now: u64) -> Result<(), ProbeError> {
        let Some(probe) = self.probes.get_mut(&key) else { return Ok(()) };
        if let Phase::Waiting { until_boot_ms } = probe.phase
            && until_boot_ms <= now
        {
            let timeout_ms = u64::from(probe.question.timeout_ms.clamp(SHORTEST_MS, LONGEST_ATTEMPT_MS));
            probe.phase = match begin(&self.home, probe)? {
                Begun::Attempt(attempt) => Phase::Asking { attempt, deadline_boot_ms: now.saturating_add(timeout_ms) },
                Begun::NotNow => return self.answered(key, false, now),
                Begun::Never => Phase::Refused,
            };
            return Ok(());
        }
        let Phase::Asking { attempt, deadline_boot_ms } = &mut probe.phase else { return Ok(()) };
        let is_ready = {
            let mut wanted = [PollFd::new(attempt, attempt.interest())];
            poll(&mut wanted, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
        };
        let progress = if is_ready { attempt.advance() } else { Progress::Waits };
        match progress {
            Progress::Waits if now < *deadline_boot_ms => Ok(()),
            Progress::Waits | Progress::Failed => self.answered(key, false, now),
            Progress::Passed => self.answered(key, true, now),
        }
    }

    /// An attempt is over: tells PID 1 if that changes the verdict, and waits for the next.
    fn answered(&mut self, key: (WorkloadId, Aim), passed: bool, now: u64) -> Result<(), ProbeError> {
        let Some(probe) = self.probes.get_mut(&key) else { return Ok(()) };
        let interval_ms = u64::from(probe.question.interval_ms.clamp(SHORTEST_MS, LONGEST_MS));
        probe.phase = Phase::Waiting { until_boot_ms: now.saturating_add(interval_ms) };
        probe.untold = probe.judgement.attempt(passed, &probe.question).or(probe.untold);
        let Some(verdict) = probe.untold else { return Ok(()) };
        let (id, aim) = key;
        match self.channel.send(Request::Probed { id, number: probe.number, aim, passed: verdict }, vec![]) {
            Ok(_) => probe.untold = None,
            // PID 1 is busy; the next attempt tells it.
            Err(ChannelError::Full) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// How an attempt began.
enum Begun {
    Attempt(Attempt),
    /// Nothing listens, or the process is just ending.
    NotNow,
    /// The target can never be asked.
    Never,
}

/// Makes a socket in the workload's network namespace and begins to connect it.
fn begin(home: &OwnedFd, probe: &Probe) -> Result<Begun, ProbeError> {
    let target = &probe.target;
    if matches!(&target.ask, Ask::Http { path } if !is_target(path)) {
        return Ok(Begun::Never);
    }
    if move_into_namespace(&probe.process).is_err() {
        return Ok(Begun::NotNow);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
    move_into_namespace(home).map_err(ProbeError::Return)?;
    let Ok(socket) = socket else { return Ok(Begun::NotNow) };
    match connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, target.port)) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(_) => return Ok(Begun::NotNow),
    }
    Ok(Begun::Attempt(Attempt::new(socket, target)))
}

/// Joins the network namespace that a namespace descriptor is, or that a process has.
fn move_into_namespace(of: &OwnedFd) -> Result<(), Errno> {
    move_into_thread_name_spaces(of.as_fd(), ThreadNameSpaceType::NETWORK)
}

fn now_boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::try_from(time.tv_nsec / 1_000_000).unwrap_or(0))
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;

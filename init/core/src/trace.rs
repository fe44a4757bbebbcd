//! The bounded trace of a run: what happened, what was decided, and a state to begin from, so that it can be played again.
//!
//! ```text
//!   state ─▶ step, step, ... full ─▶ state ─▶ step, step, ...
//!   └───── the part before ──────┘   └──── the present part ───▶
//! ```
//!
//! Two parts are kept. When the present one is full, the part before is dropped and a new one begins with the state as it is then, so
//! the last decisions are always there, at least a whole part of them. Boot and rescue are no steps: a part begins after them.

use std::borrow::Cow;

use byre_protocol::control::{FromInit, Reply};
use byre_protocol::handoff::Writer;
use byre_protocol::status::Moment;
use byre_protocol::trace::{self, Done, Exit, Sent, Step, TraceError};

use crate::action::Action;
use crate::core::Core;
use crate::event::{CallContext, ChannelId, Event, ExecId, ExitStatus, LaunchOutcome, Reexecuted, Subject};
use crate::handoff::TakeOverError;

/// Bytes of one part's steps: some thousand decisions of a busy node. One step more may lie above it.
const PART_BYTES: usize = 128 * 1024;

/// What is kept of the decisions.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    before: Vec<u8>,
    present: Vec<u8>,
    /// Bytes of the present part's state.
    state_bytes: usize,
}

impl Trace {
    /// One that begins with the next event.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Decides about an event, and keeps it with what was decided.
    pub fn step(&mut self, core: &mut Core, event: Event, now: Moment) -> Vec<Action> {
        let is_new = self.present.is_empty();
        let is_full = self.present.len().saturating_sub(self.state_bytes) >= PART_BYTES;
        if is_new || is_full {
            self.begin_part(core);
        }
        // The event is consumed by the step, so what it says is written before; its actions follow.
        let begun = record(&event).map(|event| trace::begin_step(now, &event));
        let actions = core.step(event, now);
        match begun {
            Some(begun) => {
                let done: Vec<Done> = actions.iter().map(done).collect();
                if !trace::push(&mut self.present, begun, &done) {
                    self.present.clear();
                }
            }
            // A part begins behind it.
            None => self.present.clear(),
        }
        actions
    }

    fn begin_part(&mut self, core: &Core) {
        let mut writer = Writer::new();
        let state = match core.hand_over(&mut writer) {
            Ok(()) => writer.finish(),
            // Too long to be handed over: nothing to begin from.
            Err(_) => Vec::new(),
        };
        let begun = trace::begin(&state);
        self.state_bytes = begun.len();
        self.before = std::mem::replace(&mut self.present, begun);
    }

    /// The two parts, the older one first; empty ones are left out.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        [self.before.as_slice(), self.present.as_slice()].into_iter().filter(|part| !part.is_empty())
    }
}

/// Why a trace does not play again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Its state cannot be taken over.
    #[error("the state that the trace begins with: {0}")]
    State(#[from] TakeOverError),
    /// Another decision.
    #[error("step {step}: {event}: decided {now}, then {then}")]
    Differs {
        /// Which step.
        step: usize,
        /// The event.
        event: String,
        /// What is decided now.
        now: String,
        /// What was decided then.
        then: String,
    },
}

/// Plays a trace again; returns how many steps decided what they decided then.
///
/// # Errors
/// If it cannot be read, or at the first step that decides something else.
pub fn replay(bytes: &[u8]) -> Result<usize, ReplayError> {
    let (state, steps) = trace::read(bytes)?;
    let mut core = Core::decode(state)?;
    let count = steps.len();
    for (number, Step { at, event, actions: then }) in steps.into_iter().enumerate() {
        let words = format!("{event:?}");
        let now: Vec<Done> = core.step(into_event(event), at).iter().map(done).collect();
        if now != then {
            let (now, then) = (format!("{now:?}"), format!("{then:?}"));
            return Err(ReplayError::Differs { step: number, event: words, now, then });
        }
    }
    Ok(count)
}

fn subject(subject: Subject) -> trace::Subject {
    match subject {
        Subject::Workload { id, run } => trace::Subject::Workload(id, run),
        Subject::Exec(ExecId(exec)) => trace::Subject::Exec(exec),
    }
}

fn into_subject(subject: trace::Subject) -> Subject {
    match subject {
        trace::Subject::Workload(id, run) => Subject::Workload { id, run },
        trace::Subject::Exec(exec) => Subject::Exec(ExecId(exec)),
    }
}

/// An event as a record; none for those that a part begins behind.
fn record(event: &Event) -> Option<trace::Event<'_>> {
    Some(match event {
        Event::Boot(_) | Event::Rescued(_) => return None,
        Event::Armed(refusal) => trace::Event::Armed { refusal: refusal.as_deref().map(Cow::Borrowed) },
        Event::ChannelOpened { channel, role } => trace::Event::ChannelOpened { channel: channel.0, role: *role },
        Event::ChannelClosed(channel) => trace::Event::ChannelClosed { channel: channel.0 },
        Event::Called { context: CallContext { channel, descriptors, fresh }, call } => trace::Event::Called {
            channel: channel.0,
            descriptors: u64::try_from(*descriptors).unwrap_or(u64::MAX),
            fresh: *fresh,
            call: Cow::Borrowed(call),
        },
        Event::Launched { subject: whose, outcome: LaunchOutcome::Running { pid, terminal } } => {
            trace::Event::Running { subject: subject(*whose), pid: *pid, terminal: *terminal }
        }
        Event::Launched { subject: whose, outcome: LaunchOutcome::Made } => {
            trace::Event::Made { subject: subject(*whose) }
        }
        Event::Launched { subject: whose, outcome: LaunchOutcome::Failed(failure) } => {
            trace::Event::NotStarted { subject: subject(*whose), failure: Cow::Borrowed(failure) }
        }
        Event::Exited { subject: whose, status, oom_kills } => {
            let exit = match status {
                ExitStatus::Code(code) => Exit::Code(*code),
                ExitStatus::Signal(signal) => Exit::Signal(*signal),
            };
            trace::Event::Exited { subject: subject(*whose), exit, oom_kills: *oom_kills }
        }
        Event::Emptied { id, run } => trace::Event::Emptied { id: *id, run: *run },
        Event::Notified { id, run } => trace::Event::Notified { id: *id, run: *run },
        Event::HeardOf { id, run } => trace::Event::HeardOf { id: *id, run: *run },
        Event::FilesRemoved { id, removed } => trace::Event::FilesRemoved { id: *id, removed: *removed },
        Event::Tick => trace::Event::Tick,
        Event::ShutdownAsked(action) => trace::Event::ShutdownAsked(*action),
        Event::Reexecuted(Reexecuted::Done { gap_us }) => trace::Event::Reexecuted { gap_us: *gap_us },
        Event::Reexecuted(Reexecuted::Refused(text)) => trace::Event::NotReexecuted { text: Cow::Borrowed(text) },
    })
}

fn into_event(event: trace::Event<'_>) -> Event {
    use trace::Event as E;
    match event {
        E::ChannelOpened { channel, role } => Event::ChannelOpened { channel: ChannelId(channel), role },
        E::ChannelClosed { channel } => Event::ChannelClosed(ChannelId(channel)),
        E::Called { channel, descriptors, fresh, call } => {
            let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
            let context = CallContext { channel: ChannelId(channel), descriptors, fresh };
            Event::Called { context, call: Box::new(call.into_owned()) }
        }
        E::Running { subject, pid, terminal } => {
            Event::Launched { subject: into_subject(subject), outcome: LaunchOutcome::Running { pid, terminal } }
        }
        E::NotStarted { subject, failure } => {
            let outcome = LaunchOutcome::Failed(failure.into_owned());
            Event::Launched { subject: into_subject(subject), outcome }
        }
        E::Armed { refusal } => Event::Armed(refusal.map(Cow::into_owned)),
        E::Made { subject } => Event::Launched { subject: into_subject(subject), outcome: LaunchOutcome::Made },
        E::Exited { subject, exit, oom_kills } => {
            let status = match exit {
                Exit::Code(code) => ExitStatus::Code(code),
                Exit::Signal(signal) => ExitStatus::Signal(signal),
            };
            Event::Exited { subject: into_subject(subject), status, oom_kills }
        }
        E::Emptied { id, run } => Event::Emptied { id, run },
        E::Notified { id, run } => Event::Notified { id, run },
        E::HeardOf { id, run } => Event::HeardOf { id, run },
        E::FilesRemoved { id, removed } => Event::FilesRemoved { id, removed },
        E::Tick => Event::Tick,
        E::ShutdownAsked(action) => Event::ShutdownAsked(action),
        E::Reexecuted { gap_us } => Event::Reexecuted(Reexecuted::Done { gap_us }),
        E::NotReexecuted { text } => Event::Reexecuted(Reexecuted::Refused(text.into_owned())),
    }
}

fn done(action: &Action) -> Done {
    match action {
        Action::Launch { id, run } => Done::Launch { id: *id, run: *run },
        Action::LaunchExec { exec } => Done::LaunchExec { exec: exec.0 },
        Action::Signal { id, signal } => Done::Signal { id: *id, signal: *signal },
        Action::SignalExec { exec, signal } => Done::SignalExec { exec: exec.0, signal: *signal },
        Action::KillAll { id, run } => Done::KillAll { id: *id, run: *run },
        Action::ForgetExec { exec } => Done::ForgetExec { exec: exec.0 },
        Action::Send { channel, message, attachment: _ } => {
            let (what, hash) = sent(message);
            Done::Send { channel: channel.0, what, hash }
        }
        Action::CloseInput { id } => Done::CloseInput { id: *id },
        Action::OfferLogs { channel } => Done::OfferLogs { channel: channel.0 },
        Action::RemoveFiles { id } => Done::RemoveFiles { id: *id },
        Action::Sweep => Done::Sweep,
        Action::ReleaseLayers => Done::ReleaseLayers,
        Action::Forget { id } => Done::Forget { id: *id },
        Action::Say(line) => Done::Say(line.clone()),
        Action::Finish(action) => Done::Finish(*action),
        Action::Reexec => Done::Reexec,
        Action::Arm(_) => Done::Arm,
    }
}

/// What a message is, and a hash of all it says that is the same in every program (FNV-1a of its encoding).
fn sent(message: &FromInit) -> (Sent, u64) {
    let what = match message {
        FromInit::Answer { sequence, reply: Reply::Refused(_) } => Sent::Refusal(*sequence),
        FromInit::Answer { sequence, reply: _ } => Sent::Answer(*sequence),
        FromInit::Notice(_) => Sent::Notice,
    };
    let bytes = byre_protocol::frame::encode(message).unwrap_or_default();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    (what, hash)
}

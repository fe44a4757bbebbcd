//! What PID 1 decided and upon what: a state, and every event since with the actions that followed.
//!
//! Enough to play it again on a developer's machine: the state is what one PID 1 hands to the next, the events are whole. The actions are
//! kept by what they are, not by all they say: of a message its kind, its length and a hash. A trace holds what clients put into their
//! definitions, secrets in environments with it, so only administrators read it.
//!
//! A trace is a header (magic, version, length of the state), the state, and steps, each with its length. Reading trusts nothing: it
//! never panics and refuses by name.

use std::borrow::Cow;

use byre_plan::WorkloadId;
use serde::{Deserialize, Serialize};

use crate::control::{Call, ShutdownAction};
use crate::definition::Role;
use crate::status::{Moment, StartFailure};

/// Version of the steps; that of the state is in the state.
pub const VERSION: u32 = 1;
/// Longest step: a call of a whole message, and what is done about it.
pub const STEP_BYTES: usize = 512 * 1024;
const MAGIC: [u8; 8] = *b"byre-trc";
const HEADER_BYTES: usize = 8 + 4 + 8;
const LENGTH_BYTES: usize = 4;

/// One decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step<'a> {
    /// When.
    pub at: Moment,
    /// Upon what.
    pub event: Event<'a>,
    /// What was done about it, in order.
    pub actions: Vec<Done>,
}

/// Whose process something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// The first process of this run of a workload.
    Workload(WorkloadId, u64),
    /// An exec session.
    Exec(u64),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// With this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the core's events, by their names")]
pub enum Event<'a> {
    /// A service's control channel is open.
    ChannelOpened { channel: u64, role: Role },
    /// It is closed.
    ChannelClosed { channel: u64 },
    /// A service asks for something.
    Called { channel: u64, descriptors: u64, fresh: u64, call: Cow<'a, Call> },
    /// A launch child said that the program runs.
    Running { subject: Subject, pid: u32, terminal: bool },
    /// A launch child said that it does not.
    NotStarted { subject: Subject, failure: Cow<'a, StartFailure> },
    /// A process ended.
    Exited { subject: Subject, exit: Exit, oom_kills: u32 },
    /// Nothing of a run is left.
    Emptied { id: WorkloadId, run: u64 },
    /// `READY=1`.
    Notified { id: WorkloadId, run: u64 },
    /// `WATCHDOG=1`.
    HeardOf { id: WorkloadId, run: u64 },
    /// A removed workload's files are gone, or could not be removed.
    FilesRemoved { id: WorkloadId, removed: bool },
    /// Time passed.
    Tick,
    /// The end was asked for.
    ShutdownAsked(ShutdownAction),
    /// The program was replaced.
    Reexecuted { gap_us: u64 },
    /// It was not.
    NotReexecuted { text: Cow<'a, str> },
    /// A pod's namespaces are there.
    Made { subject: Subject },
    /// The child that arms an update has ended; with a refusal, nothing was committed.
    Armed { refusal: Option<Cow<'a, str>> },
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the core's actions, by their names")]
pub enum Done {
    /// A program is started.
    Launch { id: WorkloadId, run: u64 },
    /// An exec session is started.
    LaunchExec { exec: u64 },
    /// A signal is sent to a first process.
    Signal { id: WorkloadId, signal: u8 },
    /// A signal is sent to a session.
    SignalExec { exec: u64, signal: u8 },
    /// Everything of a run is killed.
    KillAll { id: WorkloadId, run: u64 },
    /// A session is forgotten.
    ForgetExec { exec: u64 },
    /// A message is sent; this is its hash.
    Send { channel: u64, what: Sent, hash: u64 },
    /// An input is closed.
    CloseInput { id: WorkloadId },
    /// Outputs are offered.
    OfferLogs { channel: u64 },
    /// Files are removed.
    RemoveFiles { id: WorkloadId },
    /// Files of what is not known are removed.
    Sweep,
    /// Layers are unmounted.
    ReleaseLayers,
    /// A workload is forgotten.
    Forget { id: WorkloadId },
    /// A line on the console.
    Say(String),
    /// The machine ends.
    Finish(ShutdownAction),
    /// The program is to be replaced.
    Reexec,
    /// The other slot is to be armed.
    Arm,
}

/// A kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sent {
    /// The answer to the call of this number.
    Answer(u64),
    /// A refusal of the call of this number.
    Refusal(u64),
    /// A notice.
    Notice,
}

/// Why a trace was not read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Not one at all, or cut short.
    #[error("this is no whole trace of a PID 1")]
    NotWhole,
    /// Of another version.
    #[error("the trace has version {0}, this program reads version {VERSION}")]
    Version(u32),
    /// A step is not what it should be.
    #[error("step {0} of the trace cannot be read")]
    Step(usize),
}

/// The beginning of a trace that goes on with steps.
#[must_use]
pub fn begin(state: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES.saturating_add(state.len()));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&u64::try_from(state.len()).unwrap_or(u64::MAX).to_le_bytes());
    bytes.extend_from_slice(state);
    bytes
}

/// The first half of a step, while its actions are not known; nothing if it cannot be written.
#[must_use]
pub fn begin_step(at: Moment, event: &Event<'_>) -> Vec<u8> {
    // A struct is its fields one behind the other.
    postcard::to_allocvec(&(at, event)).unwrap_or_default()
}

/// Appends a whole step to a trace. One that is too long is left out, and nothing behind it can be played again; false says so.
#[must_use]
pub fn push(bytes: &mut Vec<u8>, begun: Vec<u8>, actions: &[Done]) -> bool {
    let Ok(encoded) = postcard::to_extend(actions, begun) else { return false };
    let length = u32::try_from(encoded.len()).ok().filter(|_| encoded.len() <= STEP_BYTES);
    let Some(length) = length else { return false };
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&encoded);
    true
}

/// A trace's state and its steps.
///
/// # Errors
/// If it is no trace, or a step cannot be read.
pub fn read(bytes: &[u8]) -> Result<(&[u8], Vec<Step<'static>>), TraceError> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(TraceError::NotWhole)?;
    let (magic, numbers) = header.split_at_checked(MAGIC.len()).ok_or(TraceError::NotWhole)?;
    let (version, length) = numbers.split_first_chunk::<4>().ok_or(TraceError::NotWhole)?;
    if magic != MAGIC {
        return Err(TraceError::NotWhole);
    }
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(TraceError::Version(version));
    }
    let length = length.first_chunk::<8>().map(|length| u64::from_le_bytes(*length)).ok_or(TraceError::NotWhole)?;
    let length = usize::try_from(length).map_err(|_| TraceError::NotWhole)?;
    let (state, mut rest) = rest.split_at_checked(length).ok_or(TraceError::NotWhole)?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let malformed = || TraceError::Step(steps.len());
        let (length, behind) = rest.split_first_chunk::<LENGTH_BYTES>().ok_or_else(malformed)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| malformed())?;
        if length > STEP_BYTES {
            return Err(malformed());
        }
        let (encoded, behind) = behind.split_at_checked(length).ok_or_else(malformed)?;
        let step: Step<'static> = match postcard::take_from_bytes(encoded) {
            Ok((step, [])) => step,
            Ok(_) | Err(_) => return Err(malformed()),
        };
        steps.push(step);
        rest = behind;
    }
    Ok((state, steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = begin(b"a state");
        let at = Moment { boot_ms: 5, wall_ms: 7 };
        assert!(push(&mut bytes, begin_step(at, &Event::Tick), &[Done::Sweep, Done::Say("x".into())]));
        let failure = Cow::Owned(StartFailure { step: "clone".into(), subject: String::new(), errno: 12 });
        let event = Event::NotStarted { subject: Subject::Workload(WorkloadId(3), 4), failure };
        assert!(push(&mut bytes, begin_step(at, &event), &[]));
        bytes
    }

    #[test]
    fn steps_come_back_in_order() {
        let bytes = sample();
        let (state, steps) = read(&bytes).unwrap();
        assert_eq!(state, b"a state");
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[0].actions.len(), 2);
        assert!(matches!(steps[1].event, Event::NotStarted { .. }));
    }

    #[test]
    fn a_trace_that_is_cut_within_a_step_or_damaged_is_refused() {
        let bytes = sample();
        let whole: Vec<usize> = (0..=bytes.len()).filter(|length| read(&bytes[..*length]).is_ok()).collect();
        assert_eq!(whole.len(), 3, "only between two steps is it whole: {whole:?}");
        let mut other = bytes.clone();
        other[8] = 9;
        assert!(matches!(read(&other), Err(TraceError::Version(9))));
    }
}

//! PID 1's trace for clients: as it is, or each step in words.
//!
//! PID 1 hands over a sealed memory and is done with it; here it is read, bounded, and told. What the words leave out (definitions with
//! their environments) is in the raw trace.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use byre_api::proto;
use byre_plan::WorkloadId;
use byre_protocol::control::{Call, Reply, Request as Ask, Target};
use byre_protocol::trace::{self, Done, Event, Exit, Sent, Step, Subject};
use tonic::Status;

use crate::backend::Backend;
use crate::control::ControlError;
use crate::convert;

/// Longest trace: two parts, each a state of at most 64 MiB and some hundred KiB of steps; a state that large is that of 2048 containers with
/// their messages unread.
const TRACE_BYTES: u64 = 130 << 20;
/// Bytes of a raw trace in one message.
const PIECE_BYTES: usize = 256 * 1024;
/// Begins each part: its length.
const LENGTH_BYTES: usize = 8;

/// The answers to a call for the trace.
///
/// # Errors
/// PID 1's refusal, or `INTERNAL` if what it handed over cannot be read.
pub(crate) async fn trace(backend: &Backend, raw: bool) -> Result<Vec<Result<proto::TraceResponse, Status>>, Status> {
    let answer = backend.control.call(Ask::Trace).await?;
    let (Reply::Descriptor, Some(memory)) = (answer.reply, answer.descriptors.into_iter().next()) else {
        return Err(ControlError::Unexpected.into());
    };
    let bytes = read_all(memory).map_err(|error| Status::internal(format!("PID 1's trace: {error}")))?;
    if raw {
        let piece =
            |piece: &[u8]| proto::TraceResponse { what: Some(proto::trace_response::What::Raw(piece.to_vec().into())) };
        return Ok(bytes.chunks(PIECE_BYTES).map(|bytes| Ok(piece(bytes))).collect());
    }
    let names: HashMap<WorkloadId, String> =
        backend.list().await?.into_iter().map(|summary| (summary.id, summary.name.to_string())).collect();
    let mut answers = Vec::new();
    for part in parts(&bytes).ok_or_else(|| Status::internal("PID 1's trace is not whole"))? {
        let (_, steps) = trace::read(part).map_err(|error| Status::internal(error.to_string()))?;
        answers.extend(steps.iter().map(|step| Ok(told(step, &names))));
    }
    Ok(answers)
}

fn read_all(memory: OwnedFd) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::from(memory);
    let length = file.metadata()?.len();
    if length > TRACE_BYTES {
        return Err(std::io::Error::other(format!("{length} bytes are more than {TRACE_BYTES}")));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The parts, each behind its length.
fn parts(mut rest: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk::<LENGTH_BYTES>()?;
        let (part, behind) = behind.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        parts.push(part);
        rest = behind;
    }
    Some(parts)
}

fn told(step: &Step<'_>, names: &HashMap<WorkloadId, String>) -> proto::TraceResponse {
    let step = proto::TraceStep {
        at: Some(convert::timestamp(step.at.wall_ms)),
        boot_ms: step.at.boot_ms,
        event: event_text(&step.event, names),
        actions: step.actions.iter().map(|done| done_text(done, names)).collect(),
    };
    proto::TraceResponse { what: Some(proto::trace_response::What::Step(step)) }
}

/// A workload's name, as long as it is known.
fn name(id: WorkloadId, names: &HashMap<WorkloadId, String>) -> String {
    names.get(&id).cloned().unwrap_or_else(|| id.to_string())
}

fn whose(subject: Subject, names: &HashMap<WorkloadId, String>) -> String {
    match subject {
        Subject::Workload(id, run) => format!("{} (run {run})", name(id, names)),
        Subject::Exec(exec) => format!("exec session {exec}"),
    }
}

fn event_text(event: &Event<'_>, names: &HashMap<WorkloadId, String>) -> String {
    match event {
        Event::ChannelOpened { channel, role } => format!("channel {channel} opened for {role:?}").to_lowercase(),
        Event::ChannelClosed { channel } => format!("channel {channel} closed"),
        Event::Called { channel, call, .. } => format!("channel {channel} asks: {}", call_text(call, names)),
        Event::Running { subject, pid, .. } => format!("{} runs as process {pid}", whose(*subject, names)),
        Event::NotStarted { subject, failure } => {
            format!("{} {}", whose(*subject, names), convert::start_failed_text(failure))
        }
        Event::Exited { subject, exit: Exit::Code(code), .. } => {
            format!("{} exited with code {code}", whose(*subject, names))
        }
        Event::Exited { subject, exit: Exit::Signal(signal), .. } => {
            format!("{} was ended by {}", whose(*subject, names), byre_spec::signal_name(*signal))
        }
        Event::Emptied { id, run } => format!("nothing of {} (run {run}) is left", name(*id, names)),
        Event::Notified { id, .. } => format!("{} says READY=1", name(*id, names)),
        Event::HeardOf { id, .. } => format!("{} says WATCHDOG=1", name(*id, names)),
        Event::FilesRemoved { id, removed: true } => format!("the files of {id} are removed"),
        Event::FilesRemoved { id, removed: false } => format!("the files of {id} could not all be removed"),
        Event::Tick => "time passed, or the clock was set".to_owned(),
        Event::ShutdownAsked(action) => format!("the end is asked for: {action:?}").to_lowercase(),
        Event::Reexecuted { gap_us } => format!("PID 1 replaced itself in {gap_us} us"),
        Event::Made { subject } => format!("the namespaces of {} are there", whose(*subject, names)),
        Event::Armed { refusal: None } => "the other slot is armed".to_owned(),
        Event::Armed { refusal: Some(text) } => format!("the other slot is not armed: {text}"),
        Event::NotReexecuted { text } => format!("PID 1 was not replaced: {text}"),
    }
}

fn call_text(call: &Call, names: &HashMap<WorkloadId, String>) -> String {
    let target = |target: &Target| match target {
        Target::Id(id) => name(*id, names),
        Target::Name(name) => name.to_string(),
    };
    let text = match &call.request {
        Ask::Create { definition, start } => {
            format!("make {}{}", definition.name, if *start { " and start it" } else { "" })
        }
        Ask::Start { target: of } => format!("start {}", target(of)),
        Ask::Stop { target: of, .. } => format!("stop {}", target(of)),
        Ask::Restart { target: of, .. } => format!("restart {}", target(of)),
        Ask::Kill { target: of, signal } => format!("send {} to {}", byre_spec::signal_name(*signal), target(of)),
        Ask::Remove { target: of, .. } => format!("remove {}", target(of)),
        Ask::Enable { target: of } => format!("enable {}", target(of)),
        Ask::Disable { target: of } => format!("disable {}", target(of)),
        Ask::Reset { target: of } => format!("reset {}", target(of)),
        Ask::Inspect { target: of } => format!("show {}", target(of)),
        Ask::Why { target: of } => format!("explain {}", target(of)),
        Ask::Exec { target: of, .. } => format!("run a command in {}", target(of)),
        Ask::Recorded { record } => format!("record {record} is on disk"),
        Ask::RecordFailed { record, text } => format!("record {record} is not on disk: {text}"),
        Ask::Replay(record) => format!("{} was on disk", record.definition.name),
        Ask::Probed { id, aim, passed, .. } => {
            format!("the {aim} probe of {} {}", name(*id, names), if *passed { "passed" } else { "failed" })
        }
        Ask::Attached { id, .. } => format!("pod {} is in its networks", name(*id, names)),
        Ask::AttachFailed { id, text, .. } => format!("pod {} cannot be attached: {text}", name(*id, names)),
        // Their names say all.
        other @ (Ask::List { .. }
        | Ask::KillExec { .. }
        | Ask::OpenInput { .. }
        | Ask::CloseInput { .. }
        | Ask::OpenKernelLog
        | Ask::Subscribe
        | Ask::Shutdown { .. }
        | Ask::Reexec
        | Ask::ReplayEnd
        | Ask::ReleaseLayers
        | Ask::Arm { .. }
        | Ask::Rollback
        | Ask::Disarm
        | Ask::Trace) => {
            let words = format!("{other:?}");
            words.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
        }
    };
    format!("{text} (call {})", call.sequence)
}

fn done_text(done: &Done, names: &HashMap<WorkloadId, String>) -> String {
    match done {
        Done::Launch { id, run } => format!("start {} (run {run})", name(*id, names)),
        Done::LaunchExec { exec } => format!("start exec session {exec}"),
        Done::Signal { id, signal } => format!("send {} to {}", byre_spec::signal_name(*signal), name(*id, names)),
        Done::SignalExec { exec, signal } => {
            format!("send {} to exec session {exec}", byre_spec::signal_name(*signal))
        }
        Done::KillAll { id, run } => format!("kill all of {} (run {run})", name(*id, names)),
        Done::ForgetExec { exec } => format!("forget exec session {exec}"),
        Done::Send { channel, what: Sent::Answer(call), .. } => format!("answer call {call} on channel {channel}"),
        Done::Send { channel, what: Sent::Refusal(call), .. } => format!("refuse call {call} on channel {channel}"),
        Done::Send { channel, what: Sent::Notice, .. } => format!("tell channel {channel}"),
        Done::CloseInput { id } => format!("close the input of {}", name(*id, names)),
        Done::OfferLogs { channel } => format!("offer all output to channel {channel}"),
        Done::RemoveFiles { id } => format!("remove the files of {id}"),
        Done::Sweep => "remove the files of what is not known".to_owned(),
        Done::ReleaseLayers => "unmount layers of removed images".to_owned(),
        Done::Forget { id } => format!("forget {id}"),
        Done::Say(line) => format!("say: {line}"),
        Done::Finish(action) => format!("end the machine: {action:?}").to_lowercase(),
        Done::Reexec => "replace the program".to_owned(),
        Done::Arm => "arm the other slot".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_behind_their_lengths_and_nothing_else_is() {
        let bytes = [&3_u64.to_le_bytes()[..], b"abc", &0_u64.to_le_bytes(), &1_u64.to_le_bytes(), b"x"].concat();
        assert_eq!(parts(&bytes).unwrap(), [&b"abc"[..], b"", b"x"]);
        assert_eq!(parts(&bytes[..bytes.len() - 1]), None);
        assert_eq!(parts(&u64::MAX.to_le_bytes()), None);
    }

    #[test]
    fn a_step_is_told_with_names_and_without_definitions() {
        let names = HashMap::from([(WorkloadId(7), "web".to_owned())]);
        let ended = Event::Exited { subject: Subject::Workload(WorkloadId(7), 2), exit: Exit::Code(3), oom_kills: 0 };
        assert_eq!(event_text(&ended, &names), "web (run 2) exited with code 3");
        assert_eq!(done_text(&Done::KillAll { id: WorkloadId(7), run: 2 }, &names), "kill all of web (run 2)");
        let call = Call { sequence: 4, request: Ask::OpenKernelLog };
        assert_eq!(call_text(&call, &names), "OpenKernelLog (call 4)");
    }
}

//! From the protocol's words to the API's: states, causes, refusals, times. Pure; every own enum is matched whole, so that a new variant is a
//! compile error here and not a wrong word for a client.

use std::time::Duration;

use byre_api::proto;
use byre_protocol::control::{Event, Refused, RefusedCode, Stream, What};
use byre_protocol::definition::{Kind, RestartPolicy};
use byre_protocol::peer::{ImageRecord, ImageRefusal};
use byre_protocol::status::{Cause, Due, Moment, Run, Rung, StartFailure, State, Summary, Why};
use prost_types::Timestamp;
use tonic::Status;

use crate::control::ControlError;

/// Labels with this prefix are ours and are shown in their own fields instead.
pub(crate) const OWN_LABELS: &str = "byre.";
/// The image's reference as it was asked for.
pub(crate) const LABEL_IMAGE: &str = "byre.image";
/// The image's identity.
pub(crate) const LABEL_IMAGE_ID: &str = "byre.image-id";
/// The command as one line.
pub(crate) const LABEL_COMMAND: &str = "byre.command";
/// The specification that a container was made from; further parts are numbered.
pub(crate) const LABEL_SPEC: &str = "byre.spec";

/// Now, by both clocks.
#[must_use]
pub(crate) fn now() -> Moment {
    let millis = |clock| {
        let time = rustix::time::clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1000).saturating_add(u64::try_from(time.tv_nsec / 1_000_000).unwrap_or(0))
    };
    Moment { boot_ms: millis(rustix::time::ClockId::Boottime), wall_ms: millis(rustix::time::ClockId::Realtime) }
}

/// Milliseconds since 1970 as the API's time.
#[must_use]
pub(crate) fn timestamp(wall_ms: u64) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(wall_ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(wall_ms % 1000).unwrap_or(0) * 1_000_000,
    }
}

/// The API's time as milliseconds since 1970; times before that are 1970.
#[must_use]
pub(crate) fn wall_ms(time: &Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::try_from(time.nanos / 1_000_000).unwrap_or(0))
}

/// A duration of the API in milliseconds, at most `u32::MAX` of them.
///
/// # Errors
/// `INVALID_ARGUMENT` if it is negative; `what` names it.
pub(crate) fn duration_ms(duration: &prost_types::Duration, what: &str) -> Result<u32, Status> {
    let seconds = u64::try_from(duration.seconds);
    let nanos = u64::try_from(duration.nanos);
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) => {
            let millis = seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000);
            Ok(u32::try_from(millis).unwrap_or(u32::MAX))
        }
        (Err(_), _) | (_, Err(_)) => {
            Err(Status::invalid_argument(format!("{what} is negative: give 0 or more seconds")))
        }
    }
}

/// How a run ended.
#[must_use]
pub(crate) fn exit(cause: &Cause) -> proto::Exit {
    let plain = |code: u32, reason: String| proto::Exit { code, signal: 0, out_of_memory: false, reason };
    match cause {
        Cause::Code(code) => plain(u32::from(*code), String::new()),
        Cause::Signal(signal) => {
            let number = u32::from(*signal);
            let reason = format!("killed by {}", byre_spec::signal_name(*signal));
            proto::Exit { code: 128 + number, signal: number, out_of_memory: false, reason }
        }
        Cause::OutOfMemory => proto::Exit {
            code: 137,
            signal: 9,
            out_of_memory: true,
            reason: "killed for want of memory: raise its memory limit".into(),
        },
        Cause::StartFailed(failure) => plain(start_failed_code(failure), start_failed_text(failure)),
        Cause::NotReady => plain(137, "stopped: it was not ready in time".into()),
        Cause::Dependency(name) => plain(143, format!("stopped, because {name} that it needs stopped")),
        Cause::Deadline => plain(137, "stopped: it had not ended by its deadline".into()),
        Cause::RunLimit => plain(137, "stopped: it ran longer than it may".into()),
        Cause::Probe(aim) => plain(137, format!("stopped: its {aim} probe failed")),
        Cause::Interrupted => plain(137, "the node lost power or restarted while it ran".into()),
    }
}

fn is_execution(failure: &StartFailure) -> bool {
    failure.step.contains("exec")
}

/// What a shell would say: 127 no such program, 126 not executable, 125 anything before that.
fn start_failed_code(failure: &StartFailure) -> u32 {
    match failure.errno {
        libc::ENOENT if is_execution(failure) => 127,
        libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::EPERM if is_execution(failure) => 126,
        _ => 125,
    }
}

/// A failed start for people.
#[must_use]
pub(crate) fn start_failed_text(failure: &StartFailure) -> String {
    let error = match failure.errno {
        0 => String::new(),
        errno => format!(": {}", std::io::Error::from_raw_os_error(errno)),
    };
    let subject = if failure.subject.is_empty() { String::new() } else { format!(" {:?}", failure.subject) };
    let remedy = match start_failed_code(failure) {
        127 => "; name a program that the image has",
        126 => "; name a program that may be executed",
        _ => "",
    };
    format!("could not be started: {}{subject}{error}{remedy}", failure.step)
}

/// One run.
#[must_use]
pub(crate) fn run(run: &Run) -> proto::Run {
    proto::Run {
        started: Some(timestamp(run.started.wall_ms)),
        ended: Some(timestamp(run.ended.wall_ms)),
        exit: Some(exit(&run.cause)),
    }
}

fn kind(kind: Kind) -> proto::WorkloadKind {
    match kind {
        Kind::Service => proto::WorkloadKind::Service,
        Kind::Job => proto::WorkloadKind::Job,
        Kind::Container => proto::WorkloadKind::Container,
        Kind::Pod => proto::WorkloadKind::Pod,
    }
}

/// The protocol's kind of an API kind; `None` for the unspecified one.
#[must_use]
pub(crate) fn kind_of(kind: proto::WorkloadKind) -> Option<Kind> {
    match kind {
        proto::WorkloadKind::Unspecified => None,
        proto::WorkloadKind::Service => Some(Kind::Service),
        proto::WorkloadKind::Job => Some(Kind::Job),
        proto::WorkloadKind::Container => Some(Kind::Container),
        proto::WorkloadKind::Pod => Some(Kind::Pod),
    }
}

fn phase(state: &State) -> proto::WorkloadPhase {
    match state {
        State::Down { .. } => proto::WorkloadPhase::Down,
        State::Starting { .. } => proto::WorkloadPhase::Starting,
        State::Up { .. } => proto::WorkloadPhase::Up,
        State::Stopping { .. } => proto::WorkloadPhase::Stopping,
        State::Draining { .. } => proto::WorkloadPhase::Draining,
        State::Backoff { .. } => proto::WorkloadPhase::Backoff,
    }
}

/// A length of time in its largest unit, such as `2 minutes`.
#[must_use]
pub(crate) fn about(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    if number == 1 { format!("1 {unit}") } else { format!("{number} {unit}s") }
}

/// How long ago a moment was.
#[must_use]
pub(crate) fn since(now: Moment, then: Moment) -> String {
    // The boot clock does not run while the machine is off; a moment of an earlier boot is told by the wall clock.
    let millis = if then.boot_ms <= now.boot_ms && now.wall_ms.abs_diff(then.wall_ms) < now.boot_ms.saturating_mul(2) {
        now.boot_ms - then.boot_ms
    } else {
        now.wall_ms.saturating_sub(then.wall_ms)
    };
    about(Duration::from_millis(millis))
}

fn status_text(summary: &Summary, now: Moment) -> String {
    match &summary.state {
        State::Down { why: Why::Created } => "Created".into(),
        State::Down { why: Why::Disabled } => "Disabled".into(),
        State::Down { why: Why::Scheduled(due) } => {
            let left_ms = match due {
                Due::Boot(at) => at.saturating_sub(now.boot_ms),
                Due::Wall(at) => at.saturating_sub(now.wall_ms),
            };
            format!("Scheduled in {}", about(Duration::from_millis(left_ms)))
        }
        State::Down { why: _ } => match &summary.last_run {
            Some(run) if run.cause == Cause::OutOfMemory => {
                format!("Exited (137, out of memory) {} ago", since(now, run.ended))
            }
            Some(run) => format!("Exited ({}) {} ago", exit(&run.cause).code, since(now, run.ended)),
            None => "Not running".into(),
        },
        State::Starting { since: then } => format!("Starting for {}", since(now, *then)),
        State::Up { since: then, ready: true, .. } => format!("Up {}", since(now, *then)),
        State::Up { since: then, ready: false, .. } => format!("Up {} (not ready)", since(now, *then)),
        State::Stopping { rung: Rung::Hook | Rung::Signal, .. } => "Stopping".into(),
        State::Stopping { rung: Rung::Kill, .. } => "Stopping (killed)".into(),
        State::Draining { .. } => "Ending".into(),
        State::Backoff { until_boot_ms, streak } => {
            let left = Duration::from_millis(until_boot_ms.saturating_sub(now.boot_ms));
            format!("Restarting in {} (failure {streak})", about(left))
        }
    }
}

fn cause_text(cause: &Cause) -> String {
    let exit = exit(cause);
    if exit.reason.is_empty() { format!("it exited with code {}", exit.code) } else { exit.reason }
}

fn why_text(summary: &Summary) -> String {
    match &summary.state {
        State::Down { why } => match why {
            Why::Created => "it was made and not started yet: start it".into(),
            Why::Stopped => "it was stopped: start it".into(),
            Why::Ended(cause) => format!("{}; its restart policy leaves it so", cause_text(cause)),
            Why::Waiting(name) => format!("it waits for {name} to be ready"),
            Why::GaveUp(cause) => format!("it failed too often in a row; last: {}", cause_text(cause)),
            Why::Shutdown => "the node is shutting down".into(),
            Why::Scheduled(_) => "it is a job that begins by itself when its time comes".into(),
            Why::Disabled => "it is disabled: enable it".into(),
        },
        State::Backoff { streak, .. } => {
            let last = summary.last_run.as_ref().map(|run| cause_text(&run.cause)).unwrap_or_default();
            format!("it failed {streak} times in a row and is started again soon; last: {last}")
        }
        State::Starting { .. } => "it is being started".into(),
        State::Draining { cause } => format!("{}; what is left of it is being ended", cause_text(cause)),
        State::Up { .. } | State::Stopping { .. } => String::new(),
    }
}

/// A label's value, if it is there.
#[must_use]
pub(crate) fn label<'a>(labels: &'a [(String, String)], key: &str) -> Option<&'a str> {
    labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// One line of a list.
#[must_use]
pub(crate) fn workload(summary: &Summary, now: Moment) -> proto::Workload {
    let (started, pid, ready) = match &summary.state {
        State::Up { since, ready, pid } => (Some(timestamp(since.wall_ms)), *pid, *ready),
        State::Starting { since } => (Some(timestamp(since.wall_ms)), 0, false),
        State::Down { .. } | State::Stopping { .. } | State::Draining { .. } | State::Backoff { .. } => {
            (None, 0, false)
        }
    };
    let own = |key| label(&summary.labels, key).unwrap_or_default().to_owned();
    proto::Workload {
        id: summary.id.to_string(),
        name: summary.name.to_string(),
        kind: kind(summary.kind).into(),
        phase: phase(&summary.state).into(),
        ready,
        wanted_up: summary.wanted_up,
        status: status_text(summary, now),
        why: why_text(summary),
        image: own(LABEL_IMAGE),
        command: own(LABEL_COMMAND),
        created: Some(timestamp(summary.created.wall_ms)),
        started,
        pid,
        restarts: summary.restarts,
        last_run: summary.last_run.as_ref().map(run),
        labels: summary.labels.iter().filter(|(key, _)| !key.starts_with(OWN_LABELS)).cloned().collect(),
    }
}

/// Whether a run is under way or about to be.
#[must_use]
pub(crate) fn is_running(state: &State) -> bool {
    match state {
        State::Starting { .. } | State::Up { .. } | State::Stopping { .. } | State::Draining { .. } => true,
        State::Down { .. } | State::Backoff { .. } => false,
    }
}

/// Whether a list of running workloads shows it: what waits for its next start is part of the picture.
#[must_use]
pub(crate) fn is_listed(state: &State) -> bool {
    match state {
        State::Starting { .. }
        | State::Up { .. }
        | State::Stopping { .. }
        | State::Draining { .. }
        | State::Backoff { .. } => true,
        State::Down { .. } => false,
    }
}

/// An event.
#[must_use]
pub(crate) fn event(event: &Event) -> proto::EventsResponse {
    let (action, exit, detail) = match &event.what {
        What::Created => ("created", None, String::new()),
        What::State(state) => match state {
            State::Down { why } => ("down", None, format!("{why:?}").to_lowercase()),
            State::Starting { .. } => ("starting", None, String::new()),
            State::Up { ready: false, pid, .. } => ("up", None, format!("pid {pid}")),
            State::Up { ready: true, pid, .. } => ("ready", None, format!("pid {pid}")),
            State::Stopping { rung: Rung::Hook, .. } => ("stopping", None, "hook".into()),
            State::Stopping { rung: Rung::Signal, .. } => ("stopping", None, "signal".into()),
            State::Stopping { rung: Rung::Kill, .. } => ("stopping", None, "kill".into()),
            State::Draining { cause } => ("draining", Some(self::exit(cause)), String::new()),
            State::Backoff { streak, .. } => ("backoff", None, format!("failure {streak}")),
        },
        What::Ended(run) => ("exited", Some(self::exit(&run.cause)), String::new()),
        What::OutOfMemory => ("oom", None, String::new()),
        What::Removed => ("removed", None, String::new()),
    };
    proto::EventsResponse {
        number: event.number,
        at: Some(timestamp(event.at.wall_ms)),
        id: event.id.to_string(),
        name: event.name.to_string(),
        action: action.into(),
        exit,
        detail,
    }
}

/// One output of a workload.
#[must_use]
pub(crate) fn stream(stream: Stream) -> proto::OutputStream {
    match stream {
        Stream::Stdout => proto::OutputStream::Stdout,
        Stream::Stderr => proto::OutputStream::Stderr,
        Stream::Terminal => proto::OutputStream::Terminal,
    }
}

/// A restart policy as PID 1 takes it.
#[must_use]
pub(crate) fn restart_policy(policy: proto::RestartPolicy, maximum_retries: u32) -> RestartPolicy {
    match policy {
        proto::RestartPolicy::Unspecified | proto::RestartPolicy::Never => RestartPolicy::Never,
        proto::RestartPolicy::OnFailure => RestartPolicy::OnFailure(maximum_retries),
        proto::RestartPolicy::Always => RestartPolicy::Always,
        proto::RestartPolicy::UnlessStopped => RestartPolicy::UnlessStopped,
    }
}

/// PID 1's refusal.
#[must_use]
pub(crate) fn refused(refused: &Refused) -> Status {
    let text = refused.text.clone();
    match refused.code {
        RefusedCode::NotFound => Status::not_found(text),
        RefusedCode::NameTaken => Status::already_exists(text),
        RefusedCode::Invalid => Status::invalid_argument(text),
        RefusedCode::WrongState | RefusedCode::StartFailed => Status::failed_precondition(text),
        RefusedCode::Full | RefusedCode::NotDurable => Status::resource_exhausted(text),
        RefusedCode::NotAllowed => Status::permission_denied(text),
        RefusedCode::ShuttingDown => Status::unavailable(text),
    }
}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Self {
        match &error {
            ControlError::Refused(refusal) => refused(refusal),
            ControlError::TooLarge(_) => Self::invalid_argument(error.to_string()),
            ControlError::Closed => Self::unavailable(error.to_string()),
            ControlError::Unexpected => Self::internal(error.to_string()),
        }
    }
}

/// The image service's refusal.
#[must_use]
pub(crate) fn image_refused(code: ImageRefusal, text: String) -> Status {
    match code {
        ImageRefusal::NotFound => Status::not_found(text),
        ImageRefusal::Invalid => Status::invalid_argument(text),
        ImageRefusal::InUse => Status::failed_precondition(text),
        ImageRefusal::NoSpace => Status::resource_exhausted(text),
        ImageRefusal::Internal => Status::internal(text),
        ImageRefusal::Denied => Status::permission_denied(text),
        ImageRefusal::Unavailable => Status::unavailable(text),
    }
}

/// An image.
#[must_use]
pub(crate) fn image(record: ImageRecord) -> proto::Image {
    proto::Image {
        id: record.id,
        names: record.names,
        manifest_digest: record.manifest_digest.unwrap_or_default(),
        size_bytes: record.size_bytes,
        created: Some(timestamp(record.created_wall_ms)),
        layers: record.layers.iter().map(|layer| format!("sha256:{layer}")).collect(),
        config_json: record.config_json,
        origins: record.origins,
        accepted: record.accepted,
        verdict: record.verdict,
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;

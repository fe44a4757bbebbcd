//! A link of PID 1's chain of causes as the API tells it: a word for programs, a sentence with the remedy for people, and the details.
//! Pure; every own enum is matched whole.

use std::collections::BTreeMap;
use std::time::Duration;

use byre_api::proto;
use byre_protocol::definition::{ReadyWhen, RestartPolicy};
use byre_protocol::probe::Check;
use byre_protocol::status::{Because, Cause, Due, Link, Moment, Rung};

use crate::convert::{about, since, start_failed_text};

/// What is said of a link.
struct Said {
    reason: &'static str,
    text: String,
    details: Vec<(&'static str, String)>,
}

fn said(reason: &'static str, text: impl Into<String>) -> Said {
    Said { reason, text: text.into(), details: Vec::new() }
}

impl Said {
    fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.details.push((key, value.to_string()));
        self
    }
}

/// One link.
#[must_use]
pub(crate) fn cause(link: &Link, now: Moment) -> proto::Cause {
    let Said { reason, text, details } = because(&link.because, now);
    let details: BTreeMap<String, String> = details.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    proto::Cause { workload: link.name.to_string(), reason: reason.to_owned(), text, details }
}

fn because(because: &Because, now: Moment) -> Said {
    match because {
        Because::Ready { since: then } => said("ready", format!("it has run for {} and is ready", since(now, *then))),
        Because::Done => said("done", "it is a job, and has ended well"),
        Because::NotReady { since: then, when, failed } => {
            let text = format!("it has run for {} and is not ready: {}", since(now, *then), not_ready(when, *failed));
            said("not_ready", text).with("failed_probes", failed)
        }
        Because::StartingUp { since: then, check, failed } => {
            let text =
                format!("it has run for {} and has not started: {}", since(now, *then), unanswered(check, *failed));
            said("starting_up", text).with("failed_probes", failed)
        }
        Because::Starting { since: then } => {
            said("starting", format!("it has been starting for {}", since(now, *then)))
        }
        Because::Stopping { rung: Rung::Hook } => {
            said("stopping", "its stop hook runs; its stop signal is next").with("rung", "hook")
        }
        Because::Stopping { rung: Rung::Signal } => {
            said("stopping", "it was told to end by its stop signal, and has its grace").with("rung", "signal")
        }
        Because::Stopping { rung: Rung::Kill } => {
            said("stopping", "all its processes were killed and are not all gone yet").with("rung", "kill")
        }
        Because::Draining => said("draining", "its first process has ended, and the rest of it is being ended"),
        Because::Backoff { until_boot_ms, streak } => {
            let left = Duration::from_millis(until_boot_ms.saturating_sub(now.boot_ms));
            let text = format!("it has failed {streak} times in a row and is started again in {}", about(left));
            said("backoff", text).with("failures", streak).with("left_ms", left.as_millis())
        }
        Because::Waiting { other } => {
            said("waiting", format!("it waits for {other}, which it needs or comes after")).with("waits_for", other)
        }
        Because::Missing => said("missing", "there is no workload of this name: make it, or make this one without it"),
        Because::Created => said("created", "it was made and not started yet: start it"),
        Because::Stopped => said("stopped", "somebody stopped it: start it"),
        Because::Removing => said("removing", "it is being removed"),
        Because::Policy(policy) => left_down(*policy),
        Because::Ended(cause) => ended(cause),
        Because::MemoryLimit { bytes } => {
            let text = format!("it may use {bytes} bytes of memory: raise its limit, or have it use less");
            said("memory_limit", text).with("limit_bytes", bytes)
        }
        Because::Tried { times } => {
            said("tried", format!("it was tried {times} times, and did not end with code 0")).with("times", times)
        }
        Because::TimeLimit { ms } => {
            let text = format!(
                "it has {} for that: give it more, or less to do",
                about(Duration::from_millis(u64::from(*ms)))
            );
            said("time_limit", text).with("limit_ms", ms)
        }
        Because::Scheduled(Due::Boot(at)) => {
            let left = Duration::from_millis(at.saturating_sub(now.boot_ms));
            said("scheduled", format!("it begins by itself in {}", about(left))).with("at_boot_ms", at)
        }
        Because::Scheduled(Due::Wall(at)) => {
            let left = Duration::from_millis(at.saturating_sub(now.wall_ms));
            said("scheduled", format!("it begins by itself in {}, by the calendar", about(left))).with("at_unix_ms", at)
        }
        Because::Disabled => said("disabled", "it is disabled, and nothing starts it: enable it"),
        Because::Shutdown => said("shutdown", "the node is shutting down"),
        Because::Attaching { since: then } => said(
            "attaching",
            format!("its namespaces have been there for {}, and it is not in its networks yet", since(now, *then)),
        ),
    }
}

fn not_ready(when: &ReadyWhen, failed: u32) -> String {
    match when {
        ReadyWhen::Started => "it is a job, and has not ended".to_owned(),
        ReadyWhen::Notify => "it has not said READY=1 on its NOTIFY_SOCKET".to_owned(),
        ReadyWhen::Probe(probe) => unanswered(&probe.check, failed),
    }
}

fn unanswered(check: &Check, failed: u32) -> String {
    let times = if failed == 1 { "once".to_owned() } else { format!("{failed} times") };
    match check {
        Check::Tcp { port } if failed == 0 => format!("port {port} has not answered yet"),
        Check::Tcp { port } => format!("port {port} does not accept connections"),
        Check::Http { port, path } if failed == 0 => format!("http on port {port}, {path}, has not answered yet"),
        Check::Http { port, path } => format!("http on port {port}, {path}, does not answer with 200 to 399"),
        Check::Grpc { port, .. } if failed == 0 => format!("the health service on port {port} has not answered yet"),
        Check::Grpc { port, .. } => format!("the health service on port {port} does not say that it serves"),
        Check::Exec { args } => format!("its probe {:?} has failed {times}", args.first().map_or("", String::as_str)),
        Check::Watchdog => "it has not said WATCHDOG=1".to_owned(),
    }
}

fn left_down(policy: RestartPolicy) -> Said {
    match policy {
        RestartPolicy::Never => said("policy", "its restart policy is never: start it").with("policy", "never"),
        RestartPolicy::OnFailure(0) => {
            said("policy", "its restart policy is on-failure, and it did not fail").with("policy", "on-failure")
        }
        RestartPolicy::OnFailure(most) => {
            let text = format!("its restart policy is on-failure, {most} times in a row at most: start it");
            said("policy", text).with("policy", "on-failure").with("maximum_retries", most)
        }
        RestartPolicy::Always => said("policy", "it is being decided when it starts again").with("policy", "always"),
        RestartPolicy::UnlessStopped => {
            said("policy", "it is being decided when it starts again").with("policy", "unless-stopped")
        }
    }
}

fn ended(cause: &Cause) -> Said {
    match cause {
        Cause::Code(code) => said("ended", format!("its program exited with code {code}")).with("code", code),
        Cause::Signal(signal) => {
            let name = byre_spec::signal_name(*signal);
            said("ended", format!("its program was ended by {name}")).with("signal", signal)
        }
        Cause::OutOfMemory => said("out_of_memory", "the kernel killed it for want of memory"),
        Cause::StartFailed(failure) => {
            // A layer that is not there is an image that is not there.
            let is_layer = failure.step.contains("image layer") && failure.errno == libc::ENOENT;
            let remedy = if is_layer { "; its image is gone: load it again" } else { "" };
            said("start_failed", format!("it {}{remedy}", start_failed_text(failure)))
                .with("step", &failure.step)
                .with("subject", &failure.subject)
                .with("errno", failure.errno)
        }
        Cause::NotReady => said("readiness_timeout", "it was not ready in time and was stopped"),
        Cause::Dependency(other) => {
            said("dependency", format!("{other}, which it needs, stopped")).with("waits_for", other)
        }
        Cause::Probe(aim) => {
            let text = format!("its {aim} probe failed and it was stopped: see its log for why it did not answer");
            said("probe", text).with("probe", aim)
        }
        Cause::Deadline => said("deadline", "it had not ended by its deadline, and is not tried again: start it"),
        Cause::RunLimit => said("run_limit", "one run took longer than it may and was stopped"),
        Cause::Interrupted => said("interrupted", "the node lost power or restarted while it ran"),
    }
}

#[cfg(test)]
mod tests {
    use byre_plan::Name;
    use byre_protocol::status::StartFailure;

    use super::*;

    fn told(because: Because) -> proto::Cause {
        let now = Moment { boot_ms: 100_000, wall_ms: 1_700_000_000_000 };
        cause(&Link { name: Name::try_from("web").unwrap(), because }, now)
    }

    #[test]
    fn a_link_says_a_word_a_sentence_and_its_details() {
        let backoff = told(Because::Backoff { until_boot_ms: 104_000, streak: 3 });
        assert_eq!((backoff.workload.as_str(), backoff.reason.as_str()), ("web", "backoff"));
        assert!(backoff.text.contains("3 times") && backoff.text.contains("4 seconds"), "{}", backoff.text);
        assert_eq!(backoff.details["left_ms"], "4000");
    }

    #[test]
    fn an_image_that_is_gone_is_named_as_the_cause() {
        let failure =
            StartFailure { step: "mount image layer".into(), subject: "sha256:0".into(), errno: libc::ENOENT };
        let told = told(Because::Ended(Cause::StartFailed(failure)));
        assert_eq!(told.reason, "start_failed");
        assert!(told.text.ends_with("load it again"), "{}", told.text);
    }
}

//! How a workload is asked whether it has started, is ready, and is alive: one mechanism for all three.
//!
//! ```text
//!   start-up ── passed ──▶ readiness ── passed ──▶ ready ◀──▶ not ready
//!      │                └▶ liveness ── failed ──▶ stopped; its restart policy decides
//!      └─ failed ──▶ stopped
//! ```
//!
//! Whoever asks (the service `probe`, or PID 1 by a command inside the workload) counts answers with the same [`Judgement`], so that
//! thresholds mean the same everywhere. Nothing here asks anybody.

use serde::{Deserialize, Serialize};

use crate::definition::{HOOK_BYTES, HOOK_WORDS};

/// Bytes of an HTTP path or of the name of a gRPC service: no health check has a longer one.
pub const TARGET_BYTES: usize = 1024;
/// The shortest time between two attempts, and the least that one has: a shorter one would be a load of its own.
pub const SHORTEST_MS: u32 = 50;
/// The longest time between two attempts, and the longest delay of the first: an hour.
pub const LONGEST_MS: u32 = 3_600_000;
/// The longest that one attempt has: a probe asks for health, not for patience.
pub const LONGEST_ATTEMPT_MS: u32 = 60_000;
/// Attempts in a row that a verdict may take.
pub const MOST_IN_A_ROW: u16 = 1000;

/// What a probe finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// Whether it has started: the other two are held back until then.
    Startup,
    /// Whether it is ready.
    Readiness,
    /// Whether it is alive.
    Liveness,
}

impl Aim {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];
}

impl std::fmt::Display for Aim {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Startup => "start-up",
            Self::Readiness => "readiness",
            Self::Liveness => "liveness",
        })
    }
}

/// A question that is asked again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What is asked.
    pub check: Check,
    /// Before the first attempt.
    #[serde(default)]
    pub initial_delay_ms: u32,
    /// Between the end of an attempt and the next one.
    #[serde(default = "interval_ms")]
    pub interval_ms: u32,
    /// An attempt that has no answer by then has failed.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u32,
    /// So many failures in a row are a failure.
    #[serde(default = "failures")]
    pub failures: u16,
    /// So many successes in a row are a success.
    #[serde(default = "successes")]
    pub successes: u16,
}

// What Kubernetes takes where nothing is said.
fn interval_ms() -> u32 {
    10_000
}

fn timeout_ms() -> u32 {
    1_000
}

fn failures() -> u16 {
    3
}

fn successes() -> u16 {
    1
}

/// What is asked, and what is a good answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Something accepts on this TCP port in its network namespace (asked by `byred probe`, as the next two are).
    Tcp {
        /// Port.
        port: u16,
    },
    /// A GET answers with 200 to 399.
    Http {
        /// Port.
        port: u16,
        /// Path, beginning with a slash.
        path: String,
    },
    /// The gRPC health service, version 1, answers that it serves (without TLS).
    Grpc {
        /// Port.
        port: u16,
        /// Name of the service that is asked about; empty for the server as a whole.
        #[serde(default)]
        service: String,
    },
    /// This command ends with code 0 inside the workload.
    Exec {
        /// The command.
        args: Vec<String>,
    },
    /// It says `WATCHDOG=1` by sd_notify(3); each interval without is a failed attempt. For liveness only.
    Watchdog,
}

impl Check {
    /// Whether `byred probe` asks it.
    #[must_use]
    pub fn is_asked_from_outside(&self) -> bool {
        match self {
            Self::Tcp { .. } | Self::Http { .. } | Self::Grpc { .. } => true,
            Self::Exec { .. } | Self::Watchdog => false,
        }
    }
}

impl Probe {
    /// A probe with the usual times and thresholds.
    #[must_use]
    pub fn of(check: Check) -> Self {
        Self {
            check,
            initial_delay_ms: 0,
            interval_ms: interval_ms(),
            timeout_ms: timeout_ms(),
            failures: failures(),
            successes: successes(),
        }
    }

    /// What is wrong with it, if it is to find out `aim`.
    #[must_use]
    pub fn refusal(&self, aim: Aim) -> Option<String> {
        let between = |what: &str, value: u32, least: u32, most: u32| {
            (value < least || value > most)
                .then(|| format!("{what} of the {aim} probe is {value}: give {least} to {most}"))
        };
        let checked = match &self.check {
            Check::Http { path, .. } if !is_target(path) => {
                Some(format!("path {path:?} of the {aim} probe: begin it with a slash, without spaces"))
            }
            Check::Grpc { service, .. } if service.len() > TARGET_BYTES || !service.is_ascii() => {
                Some(format!("the {aim} probe's service name is not at most {TARGET_BYTES} bytes of ASCII"))
            }
            Check::Exec { args } => {
                let bytes = args.iter().fold(0_usize, |sum, word| sum.saturating_add(word.len()));
                (args.is_empty() || args.len() > HOOK_WORDS || bytes > HOOK_BYTES).then(|| {
                    format!("the {aim} probe's command is not 1 to {HOOK_WORDS} words of {HOOK_BYTES} bytes together")
                })
            }
            Check::Watchdog if aim != Aim::Liveness => {
                Some(format!("a watchdog is no {aim} probe: use it for liveness"))
            }
            Check::Tcp { .. } | Check::Http { .. } | Check::Grpc { .. } | Check::Watchdog => None,
        };
        checked
            .or_else(|| between("initial_delay_ms", self.initial_delay_ms, 0, LONGEST_MS))
            .or_else(|| between("interval_ms", self.interval_ms, SHORTEST_MS, LONGEST_MS))
            .or_else(|| between("timeout_ms", self.timeout_ms, SHORTEST_MS, LONGEST_ATTEMPT_MS))
            .or_else(|| between("failures", u32::from(self.failures), 1, u32::from(MOST_IN_A_ROW)))
            .or_else(|| between("successes", u32::from(self.successes), 1, u32::from(MOST_IN_A_ROW)))
    }
}

/// Whether a path can be asked for: any other would be a request of the definition's writer's making.
#[must_use]
pub fn is_target(path: &str) -> bool {
    path.len() <= TARGET_BYTES && path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What the attempts so far come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Judgement {
    verdict: Option<bool>,
    /// Of the last attempts.
    passed: bool,
    in_a_row: u16,
}

impl Judgement {
    /// Counts one attempt; returns the verdict if it is news.
    pub fn attempt(&mut self, passed: bool, probe: &Probe) -> Option<bool> {
        self.in_a_row = if self.passed == passed { self.in_a_row.saturating_add(1) } else { 1 };
        self.passed = passed;
        let needed = if passed { probe.successes } else { probe.failures };
        let is_news = self.in_a_row >= needed && self.verdict != Some(passed);
        is_news.then(|| {
            self.verdict = Some(passed);
            passed
        })
    }

    /// What was found last; `None` while too few attempts agree.
    #[must_use]
    pub fn verdict(&self) -> Option<bool> {
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_takes_as_many_answers_in_a_row_as_it_says_and_is_news_once() {
        let probe = Probe { failures: 3, successes: 2, ..Probe::of(Check::Tcp { port: 1 }) };
        let mut judgement = Judgement::default();
        let mut news = |answers: &str| -> Vec<Option<bool>> {
            answers.bytes().map(|answer| judgement.attempt(answer == b'+', &probe)).collect()
        };
        assert_eq!(news("+-+"), [None; 3]);
        assert_eq!(news("+++"), [Some(true), None, None]);
        assert_eq!(news("--+--"), [None; 5]);
        assert_eq!(news("--"), [Some(false), None]);
        assert_eq!(news("+-++"), [None, None, None, Some(true)]);
    }

    #[test]
    fn mistakes_are_named() {
        let good = Probe::of(Check::Tcp { port: 80 });
        assert_eq!(good.refusal(Aim::Readiness), None);
        let says = |probe: Probe, aim, what: &str| {
            let refusal = probe.refusal(aim).unwrap();
            assert!(refusal.contains(what), "{refusal}");
        };
        says(Probe { interval_ms: 1, ..good.clone() }, Aim::Liveness, "interval_ms of the liveness probe");
        says(Probe { failures: 0, ..good.clone() }, Aim::Startup, "failures");
        says(Probe { timeout_ms: 90_000, ..good }, Aim::Startup, "timeout_ms");
        says(Probe::of(Check::Watchdog), Aim::Readiness, "use it for liveness");
        says(Probe::of(Check::Exec { args: vec![] }), Aim::Readiness, "command");
        says(Probe::of(Check::Http { port: 80, path: "/a b".into() }), Aim::Readiness, "slash");
    }
}

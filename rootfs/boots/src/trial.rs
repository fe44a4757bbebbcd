//! Trials of updates: what held when one was armed, what came of it, and the judgement.
//!
//! ```text
//! Armed -> Blessed                                     the new system did its job for the settling time
//! Armed -> Failed{why} -> Failed | Inconclusive        after the way back the old system is held to the same: if it fails too, the
//!                                                      update was not the cause, and may be tried again
//! Armed -> Reverted                                    somebody went back before it was judged
//! ```
//! The record is a file on the state partition, replaced whole. It says what an update must keep, never whether something may boot.

use serde::{Deserialize, Serialize};

/// Longest record in bytes.
pub const FILE_BYTES: usize = 256 * 1024;
/// Trials that are remembered, the newest last.
pub const TRIALS: usize = 16;
/// Names in one list of what held.
pub const NAMES: usize = 512;
/// How long all must hold without a break.
pub const SETTLE_MS: u64 = 30_000;
/// From the judge's first look to its judgement at the latest: what is slow to start has time, and a person need not wait long. Time that a slow
/// disk took before is not the release's.
pub const LIMIT_MS: u64 = 300_000;
/// The label that marks a container as critical, and its value.
pub const CRITICAL: (&str, &str) = ("critical", "true");
const FORMAT: u32 = 1;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// Too long.
    #[error("the record of trials has {0} bytes, more than {FILE_BYTES}; it is not used")]
    TooLong(usize),
    /// Not one.
    #[error("the record of trials cannot be read: {0}; it is not used")]
    Malformed(String),
}

/// What held when a trial was armed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Services and jobs of the node that were ready.
    pub services: Vec<String>,
    /// Containers that are marked as critical, or have a probe of their readiness, and were ready.
    pub workloads: Vec<String>,
}

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is not judged yet.
    Armed,
    /// It is good.
    Blessed,
    /// It is not; the old system runs and has not been held to the same yet.
    Failed {
        /// What did not hold.
        why: String,
        /// Whether the old system was held to the same, and kept it.
        confirmed: bool,
    },
    /// The old system failed the same.
    Inconclusive {
        /// What held in neither.
        why: String,
    },
    /// Somebody went back.
    Reverted,
}

/// One trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The slot on trial, `a` or `b`.
    pub slot: char,
    /// The release.
    pub version: String,
    /// Its root hash: what is really remembered as failed.
    pub root_hash: String,
    /// The version of its loader entry on this machine.
    pub install: u64,
    /// When it was armed, in seconds since 1970.
    pub armed_wall_s: u64,
    /// What held then.
    pub held: Held,
    /// Rises with each trial: which copy of the configuration belongs to it.
    pub generation: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// All that are remembered, the newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trials {
    /// Of this file; a later one may only add.
    format: u32,
    /// The trials.
    pub trials: Vec<Trial>,
}

impl Trials {
    /// Reads a record.
    ///
    /// # Errors
    /// If it is too long or not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, TrialError> {
        if bytes.len() > FILE_BYTES {
            return Err(TrialError::TooLong(bytes.len()));
        }
        let mut read: Self = serde_json::from_slice(bytes).map_err(|error| TrialError::Malformed(error.to_string()))?;
        if read.format < FORMAT {
            return Err(TrialError::Malformed(format!("format {}", read.format)));
        }
        read.bound();
        Ok(read)
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bounded = Self { format: FORMAT, ..self.clone() };
        bounded.bound();
        serde_json::to_vec_pretty(&bounded).unwrap_or_default()
    }

    fn bound(&mut self) {
        let over = self.trials.len().saturating_sub(TRIALS);
        self.trials.drain(..over);
        for trial in &mut self.trials {
            trial.held.services.truncate(NAMES);
            trial.held.workloads.truncate(NAMES);
        }
    }

    /// Adds one that is armed; gives its generation.
    pub fn arm(&mut self, trial: Trial) -> u64 {
        let generation = self.trials.iter().map(|trial| trial.generation).max().unwrap_or(0).saturating_add(1);
        self.revert();
        self.trials.push(Trial { generation, outcome: Outcome::Armed, ..trial });
        self.bound();
        generation
    }

    /// What is armed is not tried.
    pub fn revert(&mut self) {
        if let Some(last) = self.trials.last_mut().filter(|last| last.outcome == Outcome::Armed) {
            last.outcome = Outcome::Reverted;
        }
    }

    /// The newest trial of the release with this root hash.
    #[must_use]
    pub fn of_root(&self, root_hash: &str) -> Option<&Trial> {
        self.trials.iter().rev().find(|trial| trial.root_hash == root_hash)
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> Option<&Trial> {
        self.trials.last()
    }

    /// Why this release may not be armed again without being told so: it failed here, and the old system then did not.
    #[must_use]
    pub fn refusal(&self, root_hash: &str) -> Option<String> {
        let trial = self.of_root(root_hash)?;
        match &trial.outcome {
            Outcome::Failed { why, .. } => Some(format!(
                "release {} failed its trial on this machine: {why}; it can be tried again with --retry",
                trial.version
            )),
            Outcome::Armed | Outcome::Blessed | Outcome::Inconclusive { .. } | Outcome::Reverted => None,
        }
    }
}

/// What a boot is for the last trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// None: there is nothing to judge.
    None,
    /// It is the trial.
    Trial,
    /// The trial was in the other slot and is over: this is the old system, and nobody has said yet why.
    CameBack,
    /// As before, and the trial has said itself what did not hold.
    CameBackWith,
}

/// The loader entry that a trial was committed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// There is none: a cut came before the commit, or another took its place.
    No,
    /// It has tries left, or none to count.
    Waits,
    /// It has no tries left.
    RanOut,
}

/// What the running slot is for `last`; `on_trial` is what its own loader entry says, `committed` is that of `last`.
#[must_use]
pub fn part(last: Option<&Trial>, running: char, on_trial: bool, committed: Committed) -> Part {
    match (last, on_trial) {
        (_, true) => Part::Trial,
        (Some(trial), false) if trial.slot != running => match (&trial.outcome, committed) {
            (Outcome::Armed, Committed::RanOut) => Part::CameBack,
            (Outcome::Failed { confirmed: false, .. }, _) => Part::CameBackWith,
            (Outcome::Armed, Committed::No | Committed::Waits)
            | (
                Outcome::Failed { confirmed: true, .. }
                | Outcome::Blessed
                | Outcome::Inconclusive { .. }
                | Outcome::Reverted,
                _,
            ) => Part::None,
        },
        // Blessed on the boot partition and cut before it was written here.
        (Some(_) | None, false) => Part::None,
    }
}

/// One workload as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Whether it came with the system.
    pub service: bool,
    /// Whether it is ready; a job: whether it has ended well.
    pub ready: bool,
    /// Whether it is marked as critical or has a probe of its readiness.
    pub counts: bool,
    /// What it is doing instead of being ready.
    pub state: String,
}

/// What holds now, for arming.
#[must_use]
pub fn held(seen: &[Seen]) -> Held {
    let names = |service: bool| {
        let those = seen.iter().filter(|one| one.service == service && one.ready && (service || one.counts));
        those.map(|one| one.name.clone()).take(NAMES).collect()
    };
    Held { services: names(true), workloads: names(false) }
}

/// What does not hold that must: every service of the running system, and the workloads that held when the trial was armed. `except`
/// are those who wait for the answer.
#[must_use]
pub fn missing(held: &Held, seen: &[Seen], except: &[&str]) -> Vec<String> {
    let services = seen.iter().filter(|one| one.service && !one.ready && !except.contains(&one.name.as_str()));
    let mut found: Vec<String> = services.map(|one| format!("service {} is {}", one.name, one.state)).collect();
    for name in &held.workloads {
        match seen.iter().find(|one| one.name == *name && !one.service) {
            Some(one) if one.ready => {}
            Some(one) => found.push(format!("workload {name} is {}", one.state)),
            None => found.push(format!("workload {name} is gone")),
        }
    }
    found
}

/// What the judge knows after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Look again.
    Open,
    /// All held for the settling time.
    Good,
    /// Time is over and this does not hold.
    Bad(String),
}

/// The judge: looks until all has held for long enough, or time is over.
#[derive(Debug, Clone, Copy, Default)]
pub struct Judge {
    began_ms: Option<u64>,
    whole_since_ms: Option<u64>,
}

impl Judge {
    /// One look at `now_ms`, by a clock that counts on; the first one begins the trial's time.
    pub fn look(&mut self, now_ms: u64, missing: &[String]) -> Verdict {
        let began_ms = *self.began_ms.get_or_insert(now_ms);
        if missing.is_empty() {
            let since = *self.whole_since_ms.get_or_insert(now_ms);
            if now_ms.saturating_sub(since) >= SETTLE_MS {
                return Verdict::Good;
            }
        } else {
            self.whole_since_ms = None;
        }
        if now_ms.saturating_sub(began_ms) < LIMIT_MS {
            return Verdict::Open;
        }
        // What holds at the limit gets its settling time.
        match (missing.first(), missing.len().saturating_sub(1)) {
            (None, _) => Verdict::Open,
            (Some(first), 0) => Verdict::Bad(first.clone()),
            (Some(first), more) => Verdict::Bad(format!("{first}, and {more} more")),
        }
    }
}

/// What becomes of a failed trial once the old system was held to the same.
#[must_use]
pub fn after_return(why: &str, old: &Verdict) -> Outcome {
    match old {
        Verdict::Open | Verdict::Good => Outcome::Failed { why: why.to_owned(), confirmed: true },
        Verdict::Bad(old) => Outcome::Inconclusive { why: format!("{why}; the old system fails as well: {old}") },
    }
}

#[cfg(test)]
#[path = "trial_tests.rs"]
mod tests;

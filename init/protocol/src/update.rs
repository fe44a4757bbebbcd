//! Messages between `byred api` and `byred update`, as those of [`crate::peer`]. PID 1 itself never reads these.

use serde::{Deserialize, Serialize};

use crate::control::Allow;

/// Socket of `byred update`.
pub const UPDATE_SOCKET: &str = "/run/byre/update.sock";

/// What is asked of `byred update`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateCall {
    /// How things stand. Answered with one [`UpdateAnswer::Status`].
    Status,
    /// Look whether the channel has a newer release. Answered with [`UpdateAnswer::Status`].
    Check,
    /// Take the channel's newest release, or go on where an earlier call ended. Answered with a [`UpdateAnswer::Status`] for each step and then
    /// [`UpdateAnswer::Done`]; the update goes on when the caller goes away.
    Apply {
        /// What is allowed beyond an ordinary update.
        allow: Allow,
        /// Reboot into it once it is armed.
        reboot: bool,
    },
    /// As `Apply`, from a bundle, which follows on the connection until its writing side is shut down.
    ApplyBundle {
        /// What is allowed beyond an ordinary update.
        allow: Allow,
        /// Reboot into it once it is armed.
        reboot: bool,
        /// Its snapshot and timestamp may have expired, and the time need not be known.
        offline: bool,
    },
    /// End what is under way; what was written stays, and `Apply` goes on with it.
    Cancel,
    /// Go back to the release in the other slot.
    Rollback {
        /// Reboot into it.
        reboot: bool,
    },
    /// What was done before, newest first.
    History,
}

/// A release by its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseName {
    /// For people.
    pub version: String,
    /// Orders releases.
    pub install: u64,
}

impl std::fmt::Display for ReleaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.version, self.install)
    }
}

/// Where an update is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    /// Nothing is under way.
    Idle,
    /// The repository's metadata is fetched and checked.
    Checking,
    /// A release is being written into the inactive slot.
    Writing {
        /// Which.
        release: ReleaseName,
        /// Bytes that are in the slot and checked.
        done_bytes: u64,
        /// Bytes of the whole release.
        total_bytes: u64,
    },
    /// The slot is read back past the cache and checked.
    Verifying {
        /// Which.
        release: ReleaseName,
        /// Bytes that were read back.
        done_bytes: u64,
        /// Bytes of the whole release.
        total_bytes: u64,
    },
    /// It is in the slot, whole and checked, and not armed yet.
    Written {
        /// Which.
        release: ReleaseName,
    },
    /// It boots next, on trial.
    Armed {
        /// Which.
        release: ReleaseName,
    },
    /// An update was begun and not finished; it can go on.
    Interrupted {
        /// Which.
        release: ReleaseName,
    },
}

/// How things stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// The running release.
    pub running: ReleaseName,
    /// Whether the running slot is known to do its job; until then nothing is written.
    pub blessed: bool,
    /// Where the update is.
    pub state: UpdateState,
    /// The channel's newest release, as far as it is known and newer than the running one.
    pub available: Option<ReleaseName>,
    /// The configured repository; empty for none.
    pub repository: String,
    /// The configured channel.
    pub channel: String,
    /// What automatic updates wait for; empty when nothing waits.
    pub waiting: String,
    /// Why the last check or update ended as it did not succeed; empty after success.
    pub last_error: String,
    /// When the repository was last asked with success, in milliseconds since 1970.
    pub checked_wall_ms: Option<u64>,
}

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateEvent {
    /// When, in milliseconds since 1970, by the clock as it was.
    pub wall_ms: u64,
    /// Which release it is about.
    pub release: ReleaseName,
    /// What happened.
    pub what: UpdateEventKind,
    /// More, for people; may be empty.
    pub text: String,
}

/// What happened to a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateEventKind {
    /// Its writing began.
    Begun,
    /// It was interrupted.
    Interrupted,
    /// It is in the slot and boots next.
    Armed,
    /// It runs and is blessed.
    Good,
    /// It was armed, and another release runs: it did not do its job, or was never reached.
    FellBack,
    /// Somebody asked for the other slot's release.
    RolledBack,
}

/// What `byred update` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateAnswer {
    /// How things stand.
    Status(Box<UpdateStatus>),
    /// It is done; says what follows.
    Done(String),
    /// Newest first.
    History(Vec<UpdateEvent>),
    /// It was not done.
    Refused {
        /// For programs.
        code: UpdateRefusal,
        /// For people: what is wrong and the remedy.
        text: String,
    },
}

/// Classes of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateRefusal {
    /// Not now: not blessed, another update under way, the time is not known.
    NotNow,
    /// The release or its metadata is not what it should be.
    NotTrusted,
    /// A downgrade, a failed version, a release that is too large.
    NotAllowed,
    /// No repository is configured, or the channel has no release.
    NotFound,
    /// The repository cannot be reached, or its answers break off.
    Unreachable,
    /// Somebody cancelled it.
    Cancelled,
    /// The slot or the state partition fails.
    Internal,
}

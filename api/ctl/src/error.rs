//! How a command fails: one line for a person on stderr, and an exit code for a program.
//!
//! Text from a node is shown with its control characters made visible: a node that was taken over must not drive the terminal of
//! whoever asks it something.

use byre_api::client::ConnectError;
use byre_api::contexts::ContextError;
use tonic::{Code, Status};

use crate::text::printable;

/// Exit code: refused or failed.
pub(crate) const FAILED: u8 = 1;
/// Exit code: wrong usage (clap's own as well).
pub(crate) const USAGE: u8 = 2;
/// Exit code: the container of `run`, or the program of `exec`, could not be started (docker's number).
pub(crate) const NOT_STARTED: u8 = 125;
/// Exit codes from here: ended by the signal of that number above it.
pub(crate) const SIGNAL_BASE: u8 = 128;
/// Exit code: whoever read stdout is gone, as if SIGPIPE had ended us.
const CLOSED: u8 = SIGNAL_BASE + 13;

/// Why a command did not end well, or ended with a code of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line asks for something that cannot be.
    #[error("{what}: {remedy}")]
    Usage { what: String, remedy: String },
    /// Something on this side did not work.
    #[error("{what}: {remedy}")]
    Failed { what: String, remedy: String },
    /// The node answered no; its message names the thing and the remedy.
    #[error("{}", printable(.0.message()))]
    Refused(Box<Status>),
    /// The node cannot be reached; the error says what to check.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke during a session.
    #[error("the connection to the node was lost ({}): {remedy}", printable(.detail))]
    Lost { detail: String, remedy: String },
    /// A container or program that could not be started.
    #[error("{0}")]
    NotStarted(Box<Failure>),
    /// The file of contexts.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Some of several things failed; each has been said.
    #[error("{0} failed")]
    Several(usize),
    /// The program's own exit code.
    #[error("exit code {0}")]
    Exit(u8),
    /// Nobody reads stdout any more.
    #[error("stdout was closed")]
    Closed,
}

impl Failure {
    pub(crate) fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), remedy: remedy.into() }
    }

    pub(crate) fn failed(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), remedy: remedy.into() }
    }

    /// Reading or writing something local failed.
    pub(crate) fn io(what: &str, error: &std::io::Error) -> Self {
        let remedies = [
            (std::io::ErrorKind::NotFound, "check the path"),
            (std::io::ErrorKind::PermissionDenied, "check the permissions"),
            (std::io::ErrorKind::StorageFull, "make room on the disk"),
        ];
        let known = remedies.iter().find(|(kind, _)| *kind == error.kind());
        let remedy = known.map_or("mend that and try again", |(_, remedy)| remedy);
        Self::failed(format!("{} ({error})", printable(what)), remedy)
    }

    /// What happened before a container or program ran, for the exit code 125.
    pub(crate) fn not_started(self) -> Self {
        match self {
            Self::Closed | Self::Exit(_) | Self::Usage { .. } | Self::NotStarted(_) => self,
            Self::Failed { .. }
            | Self::Connect(_)
            | Self::Refused(_)
            | Self::Lost { .. }
            | Self::Context(_)
            | Self::Several(_) => Self::NotStarted(Box::new(self)),
        }
    }

    /// What the process exits with.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage { .. } => USAGE,
            Self::NotStarted(_) => NOT_STARTED,
            Self::Exit(code) => *code,
            Self::Closed => CLOSED,
            Self::Failed { .. }
            | Self::Refused(_)
            | Self::Connect(_)
            | Self::Lost { .. }
            | Self::Context(_)
            | Self::Several(_) => FAILED,
        }
    }

    /// Whether there is nothing left to say.
    pub(crate) fn silent(&self) -> bool {
        matches!(self, Self::Exit(_) | Self::Closed | Self::Several(_))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let transport = std::error::Error::source(&status).is_some();
        let text = printable(status.message());
        let code = status.code();
        if transport && matches!(code, Code::Unavailable | Code::Unknown) {
            if reason(&status).contains("fatal alert") {
                let remedy = "check the certificate and key of the context; the node's authority must have signed them";
                return Self::failed(format!("the node refused this certificate ({})", reason(&status)), remedy);
            }
            return Self::Lost { detail: reason(&status), remedy: "check that the node runs, then try again".into() };
        }
        if code == Code::Unimplemented {
            let remedy = "update the node, or use an older byrectl";
            return Self::failed(format!("the node does not know this call ({text})"), remedy);
        }
        if code == Code::DeadlineExceeded {
            return Self::failed(format!("no answer in time ({text})"), "try again, or see `byrectl node`");
        }
        if text.is_empty() {
            let what = format!("refused: {}", code.description());
            return Self::failed(what, "see `byrectl node` and the node's log");
        }
        Self::Refused(Box::new(status))
    }
}

/// The innermost cause, which says most in the fewest words.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_the_nodes_words_without_control_characters() {
        let failure = Failure::from(Status::not_found("no workload web\u{1b}[2J: see `byrectl ps -a`"));
        assert_eq!(failure.to_string(), "no workload web\\u{1b}[2J: see `byrectl ps -a`");
        assert_eq!(failure.code(), 1);
    }

    #[test]
    fn codes_are_the_documented_ones() {
        assert_eq!(Failure::usage("a", "b").code(), 2);
        assert_eq!(Failure::usage("a", "b").not_started().code(), 2);
        assert_eq!(Failure::failed("a", "b").not_started().code(), 125);
        assert_eq!(Failure::Exit(42).not_started().code(), 42);
        assert_eq!(Failure::Closed.code(), 141);
    }
}

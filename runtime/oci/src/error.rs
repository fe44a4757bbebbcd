//! Why a command failed. Each error says what was tried and, where there is one, what to do instead.

use std::io;

use byre_plan::Refusal;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The bundle asks for what is not supported or not well formed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A call of the kernel's failed.
    #[error("cannot {what}: {source}")]
    System { what: String, source: io::Error },
    /// A step of a start failed in the launch child.
    #[error("cannot {step}{}{subject}: {source}", if subject.is_empty() { "" } else { ": " })]
    Start { step: String, subject: String, source: io::Error },
    /// The command does not fit the container's state, or its arguments do not fit together.
    #[error("{problem}; {remedy}")]
    Wrong { problem: String, remedy: String },
    /// A hook failed.
    #[error("{kind} hook {path}: {reason}")]
    Hook { kind: &'static str, path: String, reason: String },
}

/// Names what was tried.
pub(crate) fn cannot<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    move |source| Error::System { what: what.into(), source: source.into() }
}

/// A command that does not fit, and what to do.
pub(crate) fn wrong(problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Wrong { problem: problem.into(), remedy: remedy.into() }
}

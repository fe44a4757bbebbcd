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
    #[error("cannot {what}: {}", kernel(source))]
    System { what: String, source: io::Error },
    /// A step of a start failed in the launch child.
    #[error("cannot {}: {}", tried(step, subject), kernel(source))]
    Start { step: String, subject: String, source: io::Error },
    /// The command does not fit the container's state, or its arguments do not fit together.
    #[error("{problem}; {remedy}")]
    Wrong { problem: String, remedy: String },
    /// A hook failed.
    #[error("error running {kind} hook #{number}: {path}: {reason}")]
    Hook { kind: &'static str, number: usize, path: String, reason: String },
}

/// What the kernel says, in words and without its number, as callers of other runtimes look for it.
fn kernel(source: &io::Error) -> String {
    let text = source.to_string();
    let text = text.split(" (os error ").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// A step and what it was about. The last one is named as callers of other runtimes look for it.
fn tried(step: &str, subject: &str) -> String {
    match (step, subject) {
        ("execute", program) => format!("exec {program}"),
        (step, "") => step.to_owned(),
        (step, subject) => format!("{step}: {subject}"),
    }
}

/// Names what was tried.
pub(crate) fn cannot<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    move |source| Error::System { what: what.into(), source: source.into() }
}

/// A command that does not fit, and what to do.
pub(crate) fn wrong(problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Wrong { problem: problem.into(), remedy: remedy.into() }
}

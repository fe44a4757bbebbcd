//! Why a registry did not give what was asked for. Every text names the host and what to do; none holds a credential or a token.

use std::time::Duration;

/// Characters of a registry's own words that are passed on.
const SAID_CHARACTERS: usize = 300;

/// Why it failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum RegistryError {
    /// An address that is none.
    #[error("{0:?} is not an http or https address")]
    Url(String),
    /// No address for the name.
    #[error("the address of {host} cannot be found: {why}; check the name and the node's name servers")]
    Resolve {
        /// The host.
        host: String,
        /// Why.
        why: String,
    },
    /// Nobody answers.
    #[error("{host} cannot be reached: {why}")]
    Connect {
        /// The host.
        host: String,
        /// Why.
        why: String,
    },
    /// The secure connection failed.
    #[error(
        "{host}: no secure connection: {why}; a private authority is named by `ca_pem` in `registries.hosts`, a registry without TLS by `plain_http`"
    )]
    Tls {
        /// The host.
        host: String,
        /// Why.
        why: String,
    },
    /// A certificate that cannot be read.
    #[error("the certificates for {host} cannot be used: {why}")]
    Authorities {
        /// Whose.
        host: String,
        /// Why.
        why: String,
    },
    /// The proxy did not make a connection.
    #[error("the proxy {proxy} made no connection to {host}: {why}")]
    Proxy {
        /// The proxy.
        proxy: String,
        /// The target.
        host: String,
        /// Why.
        why: String,
    },
    /// It went silent, or drips.
    #[error("{host} sends too slowly: {what}")]
    Slow {
        /// The host.
        host: String,
        /// What was waited for.
        what: String,
    },
    /// An answer that is not HTTP, or an oversized head.
    #[error("{host} sent a malformed answer: {why}")]
    Malformed {
        /// The host.
        host: String,
        /// Why.
        why: String,
    },
    /// Any other status.
    #[error("{host} answered {status}{said}")]
    Status {
        /// The host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// Its own words, with a colon before them, or nothing.
        said: String,
    },
    /// It stays overloaded.
    #[error("{host} is overloaded or failing: it answered {status} to {tries} tries{said}; try again later")]
    Busy {
        /// The host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// How often it was asked.
        tries: u32,
        /// Its own words.
        said: String,
    },
    /// It wants us to wait for longer than we do.
    #[error("{host} asks to be left alone for {} s; try again then", .wait.as_secs())]
    Wait {
        /// The host.
        host: String,
        /// How long.
        wait: Duration,
    },
    /// Not allowed.
    #[error("{host} refuses access to {repository}{said}; give credentials that may read it, or check the name")]
    Denied {
        /// The host.
        host: String,
        /// The repository.
        repository: String,
        /// Its own words.
        said: String,
    },
    /// Not there.
    #[error("{host} has no {what}")]
    NotFound {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// More than is taken.
    #[error("{host}: {what} is larger than {limit} bytes")]
    TooLarge {
        /// The host.
        host: String,
        /// What.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Not the stated size.
    #[error("{host} says that {what} has {found} bytes, its manifest says {expected}")]
    Size {
        /// The host.
        host: String,
        /// What.
        what: String,
        /// In the manifest.
        expected: u64,
        /// In the answer.
        found: u64,
    },
    /// A body that ended early.
    #[error("{host} ended {what} after {got} of {expected} bytes")]
    Truncated {
        /// The host.
        host: String,
        /// What.
        what: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that were to come.
        expected: u64,
    },
    /// A range that was not asked for.
    #[error("{host} answered with another range than the one asked for: {found:?}")]
    Range {
        /// The host.
        host: String,
        /// Its header.
        found: String,
    },
    /// Redirected without end.
    #[error("{host} redirects more than {limit} times")]
    Redirects {
        /// The first host.
        host: String,
        /// The limit.
        limit: u32,
    },
    /// Redirected to nowhere.
    #[error("{host} redirects to {to:?}: {why}")]
    Redirect {
        /// The host.
        host: String,
        /// The target.
        to: String,
        /// Why it is not followed.
        why: &'static str,
    },
    /// An authentication that is not known.
    #[error("{host} asks for authentication in an unknown way: {why}")]
    Challenge {
        /// The host.
        host: String,
        /// Why.
        why: String,
    },
    /// The token server.
    #[error("the token server {host} gave no token: {why}")]
    Token {
        /// The token server.
        host: String,
        /// Why.
        why: String,
    },
    /// The receiver is gone.
    #[error("cancelled")]
    Cancelled,
}

impl RegistryError {
    /// Whether the same question may be answered better in a moment.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Slow { .. } | Self::Truncated { .. } | Self::Busy { .. } => true,
            Self::Resolve { .. } | Self::Malformed { .. } => true,
            Self::Url(_)
            | Self::Tls { .. }
            | Self::Authorities { .. }
            | Self::Proxy { .. }
            | Self::Status { .. }
            | Self::Wait { .. }
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::TooLarge { .. }
            | Self::Size { .. }
            | Self::Range { .. }
            | Self::Redirects { .. }
            | Self::Redirect { .. }
            | Self::Challenge { .. }
            | Self::Token { .. }
            | Self::Cancelled => false,
        }
    }
}

/// What a registry said, for people: printable, short, with a colon before it; empty if it said nothing.
pub(crate) fn said(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(SAID_CHARACTERS).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

//! Where a pull's bytes come from: a process with a network, seen from one without.
//!
//! A source is not trusted: it may give any bytes for any question. What it gives is counted, hashed and compared by who asked.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::digest::Digest;
use crate::reference::Reference;

/// Set once, when nobody wants the result any more. Whoever waits looks at it a few times a second.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Stops the work.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was stopped.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Classes of failures, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceFault {
    /// There is no such image.
    NotFound,
    /// The registry wants other credentials.
    Denied,
    /// The registry cannot be reached or asks to be left alone; later it may work.
    Unavailable,
    /// What came is not what was asked for.
    Invalid,
    /// Nobody wants it any more.
    Cancelled,
}

/// Why a source gave nothing.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{text}")]
pub struct SourceError {
    /// For programs.
    pub fault: SourceFault,
    /// For people; it names the host.
    pub text: String,
}

/// A manifest or index as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its bytes, at most [`crate::archive::MAX_JSON_LEN`].
    pub bytes: Vec<u8>,
    /// The media type that came with it; may be empty.
    pub media_type: String,
    /// The digest that was stated with it, if any.
    pub stated_digest: Option<String>,
}

/// A blob that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes that are here already.
    pub offset: u64,
    /// Ask no mirror: one has given something else.
    pub origin_only: bool,
}

/// Gives manifests and blobs of repositories.
pub trait Source: Sync {
    /// The manifest with this tag or digest.
    ///
    /// # Errors
    /// [`SourceError`].
    fn manifest(
        &self,
        repository: &Reference,
        which: &str,
        origin_only: bool,
        stop: &Stop,
    ) -> Result<Fetched, SourceError>;

    /// The bytes of a blob from its offset on. The reader's errors hold a [`SourceError`] where one is the reason.
    ///
    /// # Errors
    /// [`SourceError`].
    fn blob(&self, repository: &Reference, wanted: Wanted, stop: &Stop) -> Result<Box<dyn Read + Send>, SourceError>;
}

/// The source's own reason in an I/O error.
pub(crate) fn reason(error: &std::io::Error) -> Option<&SourceError> {
    error.get_ref()?.downcast_ref()
}

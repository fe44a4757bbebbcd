//! What the updater must know after a cut: what it meant to do, what became of what it did, and which releases failed here.
//!
//! One small file on the state partition, replaced whole: written beside, flushed, renamed, directory flushed. It holds no progress that is
//! believed: the slot itself says what is in it. A file that cannot be read is a lost memory and not a danger, so it is set aside and said.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use byre_protocol::control::Allow;
use byre_protocol::update::{ReleaseName, UpdateEvent};
use serde::{Deserialize, Serialize};

/// The format of the file. One that is higher is of a later release, whose journal this one does not touch.
pub const VERSION: u32 = 1;
/// Bytes of the file: a statement in hexadecimal digits, the history, the failed releases.
pub const JOURNAL_BYTES: usize = 256 * 1024;
/// Events that are kept: two years of monthly updates with two events each.
const EVENTS: usize = 64;
/// Failed releases that are remembered. An older one is below any release that is offered by then.
const FAILED: usize = 16;
const NAME: &str = "journal";

/// Where a release comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The configured repository: can be gone on with by itself.
    Repository,
    /// A bundle: goes on when it is sent again.
    Bundle,
}

/// How far an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Parts of it may be in the slot.
    Writing {
        /// Bytes of the kernel image that were flushed.
        uki_kept: u64,
    },
    /// It is in the slot, read back and checked.
    Written,
    /// PID 1 was asked to make it boot next, and its answer is not known: after a cut both may be so.
    Arming,
    /// PID 1 said that it boots next.
    Armed,
}

/// An update that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The signed statement, in hexadecimal digits. Verified again whenever it is used.
    #[serde(with = "hex::serde")]
    pub statement: Vec<u8>,
    /// Its names.
    pub release: ReleaseName,
    /// Where it comes from.
    pub source: Source,
    /// How far it is.
    pub stage: Stage,
    /// What was allowed for it.
    pub allow: Allow,
    /// Reboot into it.
    pub reboot: bool,
    /// The release that ran when it was begun.
    pub from: ReleaseName,
    /// The boot in which it was armed, by the kernel's own identity of it.
    pub armed_in_boot: String,
}

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The format.
    pub version: u32,
    /// What is under way.
    pub intent: Option<Intent>,
    /// The release in the other slot, when it ran here before.
    #[serde(default)]
    pub previous: Option<ReleaseName>,
    /// The highest minimum of any release that was in use here: never goes back.
    pub floor: u64,
    /// Install numbers of releases that did not do their job here.
    pub failed: Vec<u64>,
    /// What was done, oldest first.
    pub events: Vec<UpdateEvent>,
    /// When the repository was last asked with success, in milliseconds since 1970.
    pub checked_wall_ms: Option<u64>,
}

/// Why the journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The state partition.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Too long, or not of its form.
    #[error("the journal of updates cannot be read: {0}")]
    Malformed(String),
    /// Of a later release.
    #[error("the journal of updates has format {0}, this release reads format {VERSION}: it is left as it is")]
    Later(u32),
}

/// Reads a journal's content.
///
/// # Errors
/// [`JournalError::Malformed`] or [`JournalError::Later`].
pub fn decode(bytes: &[u8]) -> Result<Content, JournalError> {
    if bytes.len() > JOURNAL_BYTES {
        return Err(JournalError::Malformed(format!("more than {JOURNAL_BYTES} bytes")));
    }
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let malformed = |error: serde_json::Error| JournalError::Malformed(error.to_string());
    let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
    if head.version > VERSION {
        return Err(JournalError::Later(head.version));
    }
    serde_json::from_slice(bytes).map_err(malformed)
}

/// The journal.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    content: Content,
}

impl Journal {
    /// Opens the one in `directory`; returns also what is to be said about one that was set aside.
    ///
    /// # Errors
    /// When the state partition fails, or the journal is of a later release.
    pub fn open(directory: &Path) -> Result<(Self, Option<String>), JournalError> {
        let path = directory.join(NAME);
        let failed = |source| JournalError::File { path: path.clone(), source };
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                file.take(JOURNAL_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let content = Content { version: VERSION, ..Content::default() };
                return Ok((Self { directory: directory.to_owned(), content }, None));
            }
            Err(error) => return Err(failed(error)),
        }
        match decode(&bytes) {
            Ok(content) => Ok((Self { directory: directory.to_owned(), content }, None)),
            Err(JournalError::Malformed(why)) => {
                std::fs::rename(&path, directory.join("journal.unreadable")).map_err(failed)?;
                let content = Content { version: VERSION, ..Content::default() };
                let said = format!("the journal of updates cannot be read and begins anew: {why}");
                Ok((Self { directory: directory.to_owned(), content }, Some(said)))
            }
            Err(error @ (JournalError::File { .. } | JournalError::Later(_))) => Err(error),
        }
    }

    /// What it says.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Changes it; the change is on disk when this returns.
    ///
    /// # Errors
    /// When it is not. The journal then says what it said before.
    pub fn change(&mut self, change: impl FnOnce(&mut Content)) -> Result<(), JournalError> {
        let mut content = self.content.clone();
        change(&mut content);
        let surplus = content.events.len().saturating_sub(EVENTS);
        content.events.drain(..surplus);
        let surplus = content.failed.len().saturating_sub(FAILED);
        content.failed.drain(..surplus);
        let bytes = serde_json::to_vec(&content).map_err(|error| JournalError::Malformed(error.to_string()))?;
        replace(&self.directory, NAME, &bytes)?;
        self.content = content;
        Ok(())
    }
}

/// Replaces a file of the state partition whole.
///
/// # Errors
/// When that is not on disk; the old file is then still there.
pub fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), JournalError> {
    let (path, beside) = (directory.join(name), directory.join(format!("{name}.new")));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| JournalError::File { path: path.clone(), source })
}

//! The repository's metadata: fetched, checked by TUF's rules, remembered across reboots, and refused by name.
//!
//! `byre-tuf` decides; here is what it decides about: files of a repository or a bundle on one side, on the other the files that this node
//! remembers. Each is remembered as soon as it is trusted, whole, flushed and renamed: a refusal further on does not undo it (TUF 5.3 to 5.6).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use byre_release::{ReleaseKeys, STATEMENT_BYTES, Statement, StatementError, Unverified};
pub use byre_tuf::Expirations;
use byre_tuf::{Taken, Trusted, TufError};
use url::Url;

use crate::http::{Client, HttpError};
use crate::journal::{JournalError, replace};

/// Bytes of any one metadata file: ours have a few thousand.
pub const METADATA_BYTES: u64 = 1 << 20;
/// Rotations of the root keys that a node may have missed: with one a month, twenty years.
const ROOT_UPDATES: u64 = 256;

/// Why the repository's metadata was refused.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Too old: or the repository shows an old state for ever.
    #[error(
        "the repository is frozen: its {0}; its owner must sign it anew, or somebody shows this node an old repository"
    )]
    Expired(TufError),
    /// Older than what was seen before.
    #[error("the repository was rolled back: its {0}")]
    RolledBack(TufError),
    /// Files of different states.
    #[error("the repository is a mixture: its {0}")]
    Mixed(TufError),
    /// Not by those who may.
    #[error("the repository is not signed as the trusted root metadata demands: its {0}")]
    Signature(TufError),
    /// Not metadata.
    #[error("the repository's {0}")]
    Malformed(TufError),
    /// More rotations than any.
    #[error("the repository has more than {ROOT_UPDATES} versions of the root metadata that this node has not seen")]
    Rotations,
    /// The network.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A file is missing.
    #[error("the repository lacks {0}")]
    Missing(String),
    /// A part is not as the statement says.
    #[error("{name} has {found} bytes in the repository's metadata, the signed statement says {expected}")]
    Size {
        /// The target.
        name: String,
        /// Listed.
        found: u64,
        /// Stated.
        expected: u64,
    },
    /// The trusted root itself.
    #[error("the root metadata of the running release cannot be used: {0}")]
    TrustedRoot(TufError),
    /// The state partition.
    #[error(transparent)]
    Remembering(#[from] JournalError),
    /// The same, when it is read.
    #[error("{path}: {source}")]
    Store {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// No such channel.
    #[error("the repository has no channel {0}")]
    Channel(String),
    /// The channel's statement.
    #[error(transparent)]
    Statement(#[from] StatementError),
}

impl From<TufError> for MetadataError {
    fn from(error: TufError) -> Self {
        match error {
            TufError::Malformed { .. } => Self::Malformed(error),
            TufError::Signature { .. } => Self::Signature(error),
            TufError::Expired { .. } => Self::Expired(error),
            TufError::RolledBack { .. } => Self::RolledBack(error),
            TufError::Mixed { .. } => Self::Mixed(error),
        }
    }
}

/// Where metadata and small targets come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A repository on the network.
    Http(Client, Url),
    /// The files of a bundle, by their names below `metadata/` and `targets/`. Its targets have no digest before their names.
    Files(Arc<std::collections::HashMap<String, Vec<u8>>>),
}

impl Source {
    fn url(&self, path: &str) -> Result<Url, HttpError> {
        match self {
            Self::Http(_, base) => base.join(path).map_err(|_| HttpError::Url(path.to_owned())),
            Self::Files(_) => Err(HttpError::Url(path.to_owned())),
        }
    }

    /// A whole metadata file; `None` when it is not there. Any other failure is one: who can break connections must not be able to hold a node
    /// at old keys.
    async fn metadata(&self, name: &str) -> Result<Option<Vec<u8>>, HttpError> {
        let path = format!("metadata/{name}");
        match self {
            Self::Http(client, _) => match client.get_all(&self.url(&path)?, METADATA_BYTES).await {
                Ok(bytes) => Ok(Some(bytes)),
                Err(HttpError::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            },
            Self::Files(files) => Ok(files.get(&path).cloned()),
        }
    }

    async fn needed(&self, name: &str) -> Result<Vec<u8>, MetadataError> {
        self.metadata(name).await?.ok_or_else(|| MetadataError::Missing(name.to_owned()))
    }

    async fn target(&self, file: &str, name: &str, bytes: u64) -> Result<Vec<u8>, MetadataError> {
        match self {
            Self::Http(client, _) => Ok(client.get_all(&self.url(&format!("targets/{file}"))?, bytes).await?),
            Self::Files(files) => {
                files.get(&format!("targets/{name}")).cloned().ok_or_else(|| MetadataError::Missing(name.to_owned()))
            }
        }
    }
}

/// Where a node remembers metadata.
#[derive(Debug, Clone)]
pub struct Memory {
    /// The directory of the remembered files.
    pub kept: PathBuf,
}

impl Memory {
    /// Below the updater's directory on the state partition.
    #[must_use]
    pub fn below(directory: &Path) -> Self {
        Self { kept: directory.join("tuf") }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, MetadataError> {
        let path = self.kept.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(MetadataError::Store { path, source }),
        }
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), MetadataError> {
        std::fs::create_dir_all(&self.kept)
            .map_err(|source| MetadataError::Store { path: self.kept.clone(), source })?;
        Ok(replace(&self.kept, name, bytes)?)
    }

    /// Begins with the newer of the remembered root and the one of the running release: revocations are never forgotten.
    fn begin(&self, shipped: &[u8], now: i64, expirations: Expirations) -> Result<Trusted, MetadataError> {
        let of_release = Trusted::begin(shipped, now, expirations).map_err(MetadataError::TrustedRoot)?;
        let kept = self.read("root.json")?.and_then(|kept| Trusted::begin(&kept, now, expirations).ok());
        match kept {
            Some(kept) if kept.root_version() > of_release.root_version() => Ok(kept),
            Some(_) => Ok(of_release),
            None => {
                self.keep("root.json", shipped)?;
                Ok(of_release)
            }
        }
    }
}

/// Metadata that was checked.
#[derive(Debug)]
pub struct Metadata {
    trusted: Trusted,
    source: Source,
}

/// Loads and checks the metadata of a repository or a bundle.
///
/// # Errors
/// [`MetadataError`], which names what is wrong.
pub async fn load(
    source: Source,
    shipped_root: &[u8],
    memory: &Memory,
    expirations: Expirations,
) -> Result<Metadata, MetadataError> {
    let mut trusted = memory.begin(shipped_root, byre_tuf::now(), expirations)?;
    let last = trusted.root_version().saturating_add(ROOT_UPDATES);
    while let Some(root) = source.metadata(&format!("{}.root.json", trusted.root_version() + 1)).await? {
        trusted.take_root(&root)?;
        memory.keep("root.json", &root)?;
        if trusted.root_version() >= last {
            return Err(MetadataError::Rotations);
        }
    }
    trusted.end_roots()?;
    let remembered = memory.read("timestamp.json")?;
    let timestamp = source.needed("timestamp.json").await?;
    if trusted.take_timestamp(remembered.as_deref(), &timestamp)? == Taken::New {
        memory.keep("timestamp.json", &timestamp)?;
    }
    let remembered = memory.read("snapshot.json")?;
    if !remembered.as_deref().is_some_and(|remembered| trusted.keep_snapshot(remembered)) {
        let snapshot = source.needed(&trusted.snapshot_name()?).await?;
        trusted.take_snapshot(remembered.as_deref(), &snapshot)?;
        memory.keep("snapshot.json", &snapshot)?;
    }
    let remembered = memory.read("targets.json")?;
    if !remembered.as_deref().is_some_and(|remembered| trusted.keep_targets(remembered)) {
        let targets = source.needed(&trusted.targets_name()?).await?;
        trusted.take_targets(&targets)?;
        memory.keep("targets.json", &targets)?;
    }
    Ok(Metadata { trusted, source })
}

impl Metadata {
    /// The newest release of a channel, as its signed statement says it.
    ///
    /// # Errors
    /// [`MetadataError::Channel`] when there is none; otherwise what is wrong with it.
    pub async fn newest(&self, channel: &str, keys: &ReleaseKeys) -> Result<(Unverified, Statement), MetadataError> {
        let bytes = self.target(&format!("channel-{channel}"), STATEMENT_BYTES as u64).await?;
        let bytes = bytes.ok_or_else(|| MetadataError::Channel(channel.to_owned()))?;
        let unverified = Unverified::new(&bytes)?;
        let statement = unverified.verify(keys)?;
        Ok((unverified, statement))
    }

    /// A whole small target of at most `limit` bytes, checked by length and digest; `None` when the metadata lists none.
    ///
    /// # Errors
    /// [`MetadataError`].
    pub async fn target(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, MetadataError> {
        let (Some(target), Some(file)) = (self.trusted.target(name), self.trusted.target_file(name)) else {
            return Ok(None);
        };
        if target.length > limit {
            return Err(MetadataError::Size { name: name.to_owned(), found: target.length, expected: limit });
        }
        let bytes = self.source.target(&file, name, target.length).await?;
        self.trusted.check_target(name, &bytes)?;
        Ok(Some(bytes))
    }

    /// Checks that the metadata lists a part of a release with the size that its statement says.
    ///
    /// # Errors
    /// [`MetadataError::Missing`], [`MetadataError::Size`].
    pub fn check_part(&self, install: u64, suffix: &str, expected: u64) -> Result<String, MetadataError> {
        let name = format!("byre-{install}.{suffix}");
        let listed = self.trusted.target(&name).zip(self.trusted.target_file(&name));
        match listed {
            Some((target, file)) if target.length == expected => Ok(file),
            Some((target, _)) => Err(MetadataError::Size { name, found: target.length, expected }),
            None => Err(MetadataError::Missing(name)),
        }
    }

    /// Where a part of a release lies.
    ///
    /// # Errors
    /// As [`Self::check_part`].
    pub fn part_url(&self, install: u64, suffix: &str, expected: u64) -> Result<Url, MetadataError> {
        let file = self.check_part(install, suffix, expected)?;
        Ok(self.source.url(&format!("targets/{file}"))?)
    }
}

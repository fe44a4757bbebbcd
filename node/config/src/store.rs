//! The accepted configuration on the state partition: one file, replaced whole.
//!
//! The file is the document itself behind one comment line that says for which instance of the machine it was accepted, so that both
//! change in the same rename. A power cut leaves the old or the new one.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::schema::{self, Configuration, DOCUMENT_BYTES};
use crate::source::{Instance, read_bounded};

/// Begins the comment line; the digit is the version of the line, not of the document.
const MARK: &str = "# byre-accepted-1 ";
/// The line holds two identities and an origin.
const HEADER_BYTES: usize = 4096;
const CURRENT: &str = "current.toml";

/// What the first line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    instance: Instance,
    origin: String,
}

/// A stored configuration that this system can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// For which instance it was accepted.
    pub instance: Instance,
    /// Where it came from then.
    pub origin: String,
    /// What it says.
    pub configuration: Configuration,
}

/// Why the stored configuration cannot be used or replaced.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A call failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The first line is not ours.
    #[error("{path} does not begin with the line that says for which machine it was accepted; it is not used")]
    NoHeader {
        /// The file.
        path: PathBuf,
    },
    /// A secret would be readable by the wrong group.
    #[error(
        "files in {path} belong to group {found} instead of {group}: the directory needs group {group} and mode 2755"
    )]
    Group {
        /// The directory.
        path: PathBuf,
        /// Whose its files are.
        found: u32,
        /// Whose they must be.
        group: u32,
    },
    /// The document is not acceptable (any more).
    #[error("the stored configuration is not used: {0}")]
    Refused(#[from] schema::Refused),
}

/// Reads the stored configuration; `None` if there has never been one.
pub(crate) fn load(directory: &Path) -> Result<Option<Stored>, StoreError> {
    let path = directory.join(CURRENT);
    let bytes = match read_bounded(&path, DOCUMENT_BYTES + HEADER_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { action: "read", path, source }),
    };
    decode(&bytes, &path).map(Some)
}

/// The content of that file.
pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<Stored, StoreError> {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (line, rest) = bytes.split_at(end);
    let header = line.strip_prefix(MARK.as_bytes()).and_then(|json| serde_json::from_slice::<Header>(json).ok());
    let Some(Header { instance, origin }) = header else { return Err(StoreError::NoHeader { path: path.to_owned() }) };
    let document = rest.strip_prefix(b"\n").unwrap_or(rest);
    let configuration = schema::parse(document, &format!("{} (after its first line)", path.display()))?;
    Ok(Stored { instance, origin, configuration })
}

/// Replaces the stored configuration; when this returns it is on disk.
pub(crate) fn save(directory: &Path, instance: &Instance, origin: &str, document: &[u8]) -> Result<(), StoreError> {
    replace(directory, CURRENT, 0o600, &encode(instance, origin, document), Durability::OnDisk)
}

/// What [`decode`] reads.
pub(crate) fn encode(instance: &Instance, origin: &str, document: &[u8]) -> Vec<u8> {
    let header = Header { instance: instance.clone(), origin: origin.to_owned() };
    // Strings and options of strings always encode.
    let json = serde_json::to_string(&header).unwrap_or_default();
    let mut bytes = format!("{MARK}{json}\n").into_bytes();
    bytes.extend_from_slice(document);
    bytes
}

/// Whether a file must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Flushed before and after the rename.
    OnDisk,
    /// On a tmpfs.
    Volatile,
}

/// Replaces `name` in `directory` in one step; readers see the old or the new file.
pub(crate) fn replace(
    directory: &Path,
    name: &str,
    mode: u32,
    bytes: &[u8],
    durability: Durability,
) -> Result<(), StoreError> {
    replace_as(directory, name, mode, None, bytes, durability)
}

/// [`replace`] that refuses to hand the file to any but this group.
pub(crate) fn replace_as(
    directory: &Path,
    name: &str,
    mode: u32,
    group: Option<u32>,
    bytes: &[u8],
    durability: Durability,
) -> Result<(), StoreError> {
    let temporary = directory.join(format!(".{name}.new"));
    let path = directory.join(name);
    let failed = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| StoreError::Io { action, path, source }
    };
    // What an earlier run left half-written must not lend its mode or owner.
    match std::fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(StoreError::Io { action: "remove", path: temporary, source }),
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed("create", &temporary))?;
    file.write_all(bytes).map_err(failed("write", &temporary))?;
    if let Some(group) = group {
        let found = file.metadata().map_err(failed("look at", &temporary))?.gid();
        if found != group {
            return Err(StoreError::Group { path: directory.to_path_buf(), found, group });
        }
    }
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))
        .map_err(|error| failed("set the mode of", &temporary)(error.into()))?;
    if durability == Durability::OnDisk {
        file.sync_all().map_err(failed("flush", &temporary))?;
    }
    std::fs::rename(&temporary, &path).map_err(failed("rename to", &path))?;
    if durability == Durability::OnDisk {
        let parent = File::open(directory).map_err(failed("open", directory))?;
        parent.sync_all().map_err(failed("flush", directory))?;
    }
    Ok(())
}

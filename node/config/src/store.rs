//! Configurations on the state partition: one file for each, replaced whole.
//!
//! A file is the document itself behind one comment line that says for which instance of the machine it was accepted, and when, so that all of it
//! changes in the same rename. A power cut leaves the old or the new one. What is where stands in docs/configuration.md, "On disk": an
//! update's trial relies on it.

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
/// The confirmed configuration.
pub(crate) const CURRENT: &str = "current.toml";
/// The one that is in force and not confirmed.
pub(crate) const PENDING: &str = "pending.toml";
/// One that takes the place of the confirmed one at the next start.
pub(crate) const RESTORE: &str = "restore.toml";
/// Generations that are kept: a few weeks of changes by hand, at most 1 MiB.
const GENERATIONS: usize = 16;
/// Entries of the directory that are looked at: what we make, with room for what others left.
const ENTRIES: usize = 256;

/// What the first line says. Fields that an older system does not know are ignored by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// For which instance of the machine it was accepted.
    pub instance: Instance,
    /// Where it came from then.
    pub origin: String,
    /// Its number; files of systems that did not count have 0.
    #[serde(default)]
    pub generation: u64,
    /// When it was accepted, in milliseconds since 1970.
    #[serde(default)]
    pub wall_ms: u64,
    /// Whether it was undone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undone: bool,
}

/// A stored configuration that this system can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// What is known of it.
    pub header: Header,
    /// What it says.
    pub configuration: Configuration,
    /// The text.
    pub document: Vec<u8>,
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

/// Reads one of the files; `None` if there is none of that name.
pub(crate) fn load_named(directory: &Path, name: &str) -> Result<Option<Stored>, StoreError> {
    let path = directory.join(name);
    let bytes = match read_bounded(&path, DOCUMENT_BYTES + HEADER_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { action: "read", path, source }),
    };
    decode(&bytes, &path).map(Some)
}

/// The confirmed configuration; if this system cannot read it (it may be of a later one), the newest older generation that it can. Says on the way
/// what was passed over. `None` if there has never been one.
pub(crate) fn load(directory: &Path, lines: &mut Vec<String>) -> Option<Stored> {
    match load_named(directory, CURRENT) {
        Ok(found) => return found,
        Err(error) => lines.push(error.to_string()),
    }
    for generation in generations(directory).into_iter().rev() {
        match load_named(directory, &file_name(generation)) {
            Ok(Some(stored)) if !stored.header.undone => {
                lines.push(format!("using generation {generation} instead, the newest that this system can read"));
                return Some(stored);
            }
            Ok(_) => {}
            Err(error) => lines.push(error.to_string()),
        }
    }
    None
}

/// Numbers of the generations that are kept, ascending.
pub(crate) fn generations(directory: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<u64> = entries
        .take(ENTRIES)
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_prefix("generation-")?.strip_suffix(".toml")?.parse().ok()
        })
        .collect();
    found.sort_unstable();
    found
}

/// The file of a generation.
pub(crate) fn file_name(generation: u64) -> String {
    format!("generation-{generation}.toml")
}

/// The content of a file.
pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<Stored, StoreError> {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (line, rest) = bytes.split_at(end);
    let header = line.strip_prefix(MARK.as_bytes()).and_then(|json| serde_json::from_slice::<Header>(json).ok());
    let Some(header) = header else { return Err(StoreError::NoHeader { path: path.to_owned() }) };
    let document = rest.strip_prefix(b"\n").unwrap_or(rest);
    let configuration = schema::parse(document, &format!("{} (after its first line)", path.display()))?;
    Ok(Stored { header, configuration, document: document.to_vec() })
}

/// Makes this the confirmed configuration and keeps it as a generation; when this returns it is on disk.
pub(crate) fn confirm(directory: &Path, stored: &Stored) -> Result<(), StoreError> {
    keep(directory, stored)?;
    save(directory, CURRENT, stored)?;
    remove(directory, PENDING)
}

/// Keeps a generation, and forgets the oldest ones.
pub(crate) fn keep(directory: &Path, stored: &Stored) -> Result<(), StoreError> {
    save(directory, &file_name(stored.header.generation), stored)?;
    let kept = generations(directory);
    for old in kept.iter().take(kept.len().saturating_sub(GENERATIONS)) {
        remove(directory, &file_name(*old))?;
    }
    Ok(())
}

/// Replaces one of the files; when this returns it is on disk.
pub(crate) fn save(directory: &Path, name: &str, stored: &Stored) -> Result<(), StoreError> {
    replace(directory, name, 0o600, &encode(&stored.header, &stored.document), Durability::OnDisk)
}

/// Removes one of the files, if it is there; when this returns it is gone from disk.
pub(crate) fn remove(directory: &Path, name: &str) -> Result<(), StoreError> {
    let path = directory.join(name);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(StoreError::Io { action: "remove", path, source }),
    }
    flush(directory)
}

fn flush(directory: &Path) -> Result<(), StoreError> {
    let flushed = File::open(directory).and_then(|directory| directory.sync_all());
    flushed.map_err(|source| StoreError::Io { action: "flush", path: directory.to_path_buf(), source })
}

/// What [`decode`] reads.
pub(crate) fn encode(header: &Header, document: &[u8]) -> Vec<u8> {
    // Strings and numbers always encode.
    let json = serde_json::to_string(header).unwrap_or_default();
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

/// [`replace`] of a volatile file for one group alone, which this process belongs to.
pub(crate) fn replace_for(directory: &Path, name: &str, group: Option<u32>, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = directory.join(format!(".{name}.given"));
    let path = directory.join(name);
    let failed = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| StoreError::Io { action, path, source }
    };
    // Closed to all until it belongs to its group.
    replace(directory, &format!(".{name}.given"), 0o600, bytes, Durability::Volatile)?;
    let file = File::open(&temporary).map_err(failed("open", &temporary))?;
    if let Some(group) = group {
        std::os::unix::fs::fchown(&file, None, Some(group)).map_err(failed("set the group of", &temporary))?;
    }
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o640))
        .map_err(|error| failed("set the mode of", &temporary)(error.into()))?;
    std::fs::rename(&temporary, &path).map_err(failed("rename to", &path))
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
        flush(directory)?;
    }
    Ok(())
}

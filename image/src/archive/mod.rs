//! Image archives on a pipe: OCI archives, docker archives old and new.
//!
//! ```text
//! stage: every file of the tar into a file of the staging directory, hashed once as it passes
//!   -> resolve: index or manifest.json -> manifest -> config, layers; every digest compared
//!     -> the store converts the layers
//! ```
//! A tar has no order, so nothing can be decided before its end. Staged files have numbers for names: a name from the
//! archive never becomes a path.

pub(crate) mod manifest;
mod resolve;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::compression;
use crate::digest::{Digest, DigestError, HashingReader};
use crate::erofs::{PathFault, TreePath};
use crate::reference::ReferenceError;
use crate::tar::{Entry, EntryKind, TarError, TarReader, quote};

pub(crate) use resolve::{ARCHITECTURE, MAX_INDEX_DEPTH, MAX_MANIFESTS, check_platform, fitting};
pub use resolve::{FoundImage, FoundLayer, resolve};

/// Most files in an archive: 64 images of 128 layers, in the old form with its two small files beside each layer.
pub const MAX_ARCHIVE_ENTRIES: usize = 32_768;
/// Longest name of a file in an archive: two digests and a word are 140 bytes; names stay in memory.
const MAX_ENTRY_NAME_LEN: usize = 512;
/// Largest manifest, index or configuration; registries refuse larger ones too.
pub const MAX_JSON_LEN: u64 = 4 << 20;
/// Most images in one archive.
pub const MAX_IMAGES: usize = 64;
/// Most layers of one image: docker allows 127, overlayfs 500.
pub const MAX_LAYERS: usize = 128;
/// Most links followed from one name to a blob; docker makes one.
const MAX_LINK_HOPS: usize = 4;
/// Bytes read at once.
const COPY_LEN: usize = 128 << 10;

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not a proper tar stream.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A staged file cannot be written or read.
    #[error("{path}: {source}")]
    Io {
        /// The staged file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk has no room for the archive.
    #[error("the archive needs {needed} bytes and {free} are free")]
    NoSpace {
        /// Bytes of all its files.
        needed: u64,
        /// Bytes that may be used.
        free: u64,
    },
    /// An entry's name is hostile.
    #[error("archive entry {entry:?}: {fault}")]
    Path {
        /// The entry.
        entry: String,
        /// What is wrong.
        fault: PathFault,
    },
    /// An entry that no image archive has.
    #[error("archive entry {entry:?}: {what}")]
    Entry {
        /// The entry.
        entry: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Too many files.
    #[error("the archive has more than {MAX_ARCHIVE_ENTRIES} entries")]
    TooManyEntries,
    /// Too many bytes.
    #[error("the archive is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// Neither index.json nor manifest.json.
    #[error("not an image archive: it has neither index.json nor manifest.json (a tar of a file system is no image)")]
    NotAnImage,
    /// A file the manifest names is absent.
    #[error("the archive lacks {0:?}, which its manifest names; save it again")]
    Missing(String),
    /// Content does not have the digest it is named by.
    #[error("{name:?} has digest {found}, not {expected}: the archive is damaged")]
    Digest {
        /// What it was called.
        name: String,
        /// The digest in the manifest.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// Content does not have the size that is stated.
    #[error("{name:?} has {found} bytes, not {expected}: the archive is damaged")]
    Size {
        /// What it was called.
        name: String,
        /// The size in the manifest.
        expected: u64,
        /// The size of the file.
        found: u64,
    },
    /// A JSON file that is too large.
    #[error("{name:?} has {found} bytes; a manifest or configuration has at most {MAX_JSON_LEN}")]
    JsonTooLarge {
        /// The file.
        name: String,
        /// Its size.
        found: u64,
    },
    /// A JSON file that cannot be read.
    #[error("{name:?} cannot be read: {why}")]
    Json {
        /// The file.
        name: String,
        /// The parser's words.
        why: String,
    },
    /// A media type that is not a container image's.
    #[error("media type {0:?} is not one of a container image")]
    MediaType(String),
    /// No image for this machine.
    #[error("no image for {wanted} in it; it has: {found}")]
    Platform {
        /// This machine.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// Layers in the manifest and in the configuration do not match.
    #[error("the manifest has {manifest} layers and the configuration {config}")]
    LayerCount {
        /// In the manifest.
        manifest: usize,
        /// In the configuration.
        config: usize,
    },
    /// More than the limit.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A name in the archive that is none.
    #[error("image name {name:?} in the archive: {source}; give another with --name")]
    Name {
        /// The name.
        name: String,
        /// Why.
        source: ReferenceError,
    },
    /// A digest that is none.
    #[error(transparent)]
    DigestText(#[from] DigestError),
}

/// What bounds the staging.
#[derive(Debug, Clone, Copy)]
pub struct StageLimits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Bytes that may be used on the disk.
    pub free: u64,
}

/// A file of the archive, on disk under a number.
#[derive(Debug, Clone)]
pub struct StagedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// Its digest.
    pub digest: Digest,
}

/// All files of an archive by the names they had in it.
#[derive(Debug, Default)]
pub struct Staged {
    files: BTreeMap<String, StagedFile>,
    links: BTreeMap<String, String>,
    bytes: u64,
}

/// Reads a whole archive, which may be compressed, into files in the existing directory `dir`.
///
/// `progress` is told the bytes staged so far and stops the work by returning false.
///
/// # Errors
/// [`ArchiveError`]; the caller removes the directory.
pub fn stage(
    source: impl Read,
    dir: &Path,
    limits: StageLimits,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Staged, ArchiveError> {
    let plain = compression::decoder(BufReader::with_capacity(COPY_LEN, source)).map_err(TarError::Io)?;
    let mut tar = TarReader::new(plain);
    let mut staged = Staged::default();
    let mut entries = 0;
    while let Some(entry) = tar.next_entry()? {
        entries += 1;
        if entries > MAX_ARCHIVE_ENTRIES {
            return Err(ArchiveError::TooManyEntries);
        }
        let name = entry_name(&entry)?;
        match &entry.kind {
            EntryKind::Directory => {}
            EntryKind::File if entry.sparse.is_some() => return Err(refuse(&entry, "a sparse file")),
            EntryKind::File => {
                staged.bytes = staged.bytes.saturating_add(entry.size);
                if staged.bytes > limits.bytes {
                    return Err(ArchiveError::TooLarge { limit: limits.bytes });
                }
                let path = dir.join(format!("blob-{entries}"));
                staged.add_file((name, entry.size), path, &mut tar, limits.free, progress)?;
            }
            EntryKind::HardLink(target) => {
                let target = link_target(&[], target).ok_or_else(|| refuse(&entry, "a link that leads outside"))?;
                staged.links.insert(name, target);
            }
            EntryKind::Symlink(target) => {
                let parents: Vec<&str> = name.split('/').collect();
                let target = link_target(&parents[..parents.len() - 1], target)
                    .ok_or_else(|| refuse(&entry, "a link that leads outside"))?;
                staged.links.insert(name, target);
            }
            EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } | EntryKind::Fifo => {
                return Err(refuse(&entry, "image archives hold only files; a file system's tar is no image"));
            }
        }
    }
    // A writer on the other end of a pipe must not die of SIGPIPE because of padding.
    io::copy(&mut tar.into_inner().take(limits.bytes), &mut io::sink()).map_err(TarError::Io)?;
    if staged.bytes > limits.free {
        return Err(ArchiveError::NoSpace { needed: staged.bytes, free: limits.free });
    }
    Ok(staged)
}

fn refuse(entry: &Entry, what: &'static str) -> ArchiveError {
    ArchiveError::Entry { entry: quote(&entry.path), what }
}

fn entry_name(entry: &Entry) -> Result<String, ArchiveError> {
    let path = TreePath::parse(&entry.path)
        .map_err(|fault| ArchiveError::Path { entry: quote(&entry.path), fault })?
        .components()
        .join(&b'/');
    if path.len() > MAX_ENTRY_NAME_LEN {
        return Err(refuse(entry, "a name longer than any in an image archive"));
    }
    String::from_utf8(path).map_err(|_| refuse(entry, "the name is not UTF-8"))
}

/// Where a link leads, by its text alone.
fn link_target(parents: &[&str], target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?;
    let mut at: Vec<&str> = if target.starts_with('/') { Vec::new() } else { parents.to_vec() };
    for component in target.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                at.pop()?;
            }
            name => at.push(name),
        }
    }
    Some(at.join("/"))
}

impl Staged {
    fn add_file(
        &mut self,
        (name, size): (String, u64),
        path: PathBuf,
        tar: &mut TarReader<impl Read>,
        free: u64,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ArchiveError> {
        let io_error = |source| ArchiveError::Io { path: path.clone(), source };
        let before = self.bytes - size;
        // Past the free space only counting goes on, so that the error can say how much is needed.
        let mut out = if self.bytes > free { None } else { Some(File::create_new(&path).map_err(io_error)?) };
        let mut reader = HashingReader::new(tar);
        let mut buffer = vec![0; COPY_LEN];
        loop {
            let n = reader.read(&mut buffer).map_err(TarError::Io)?;
            if n == 0 {
                break;
            }
            if let Some(file) = &mut out {
                match file.write_all(&buffer[..n]) {
                    Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                        return Err(ArchiveError::NoSpace { needed: self.bytes, free: before + reader.count() });
                    }
                    other => other.map_err(io_error)?,
                }
            }
            if !progress(before + reader.count()) {
                return Err(TarError::Io(io::Error::other("cancelled")).into());
            }
        }
        let (digest, size) = reader.finish();
        let known = self.files.insert(name.clone(), StagedFile { path, size, digest });
        if known.is_some_and(|known| known.digest != digest) {
            return Err(ArchiveError::Entry { entry: name, what: "it is there twice, with different content" });
        }
        Ok(())
    }

    /// The file that had this name, links followed.
    ///
    /// # Errors
    /// `Missing`.
    pub fn file(&self, name: &str) -> Result<&StagedFile, ArchiveError> {
        let mut at = name;
        for _ in 0..=MAX_LINK_HOPS {
            if let Some(file) = self.files.get(at) {
                return Ok(file);
            }
            match self.links.get(at) {
                Some(target) => at = target,
                None => break,
            }
        }
        Err(ArchiveError::Missing(name.to_owned()))
    }

    /// Whether there is such a file.
    pub fn has(&self, name: &str) -> bool {
        self.file(name).is_ok()
    }

    /// Content of a JSON file.
    fn json(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let file = self.file(name)?;
        if file.size > MAX_JSON_LEN {
            return Err(ArchiveError::JsonTooLarge { name: name.to_owned(), found: file.size });
        }
        std::fs::read(&file.path).map_err(|source| ArchiveError::Io { path: file.path.clone(), source })
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! The image store: content-addressed files below one directory, and one record for each image.
//!
//! ```text
//! lock                      held by the one process that has the store open
//! staging/                  blobs of a load under way; emptied at every start
//! partial/<blob>-<diff_id>  what has come of a pull's blob; kept for a while when the pull ends early, so that the next one resumes
//! layers/<diff_id>.erofs    layers, mode 0444, fs-verity where the file system has it
//! layers/<diff_id>.verity   then the digest that fs-verity holds the layer to: 64 hexadecimal digits, compared when it is mounted
//! configs/<id>.json         configurations, byte for byte
//! records/<id>.json         written last, removed first: an image exists when its record does
//! ```
//! A load makes layers and configuration durable, then the record. So at any instant the store holds the old state or
//! the new one, and files that no record names, which the next start removes.

mod durable;
mod leases;
mod load;
mod maker;
mod naming;
mod open;
mod record;
mod removal;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::archive::ArchiveError;
use crate::check::CheckError;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::layer::LayerError;
use crate::policy::{Policy, Verdict};
use crate::reference::Reference;

use leases::Leases;
pub use load::{Loaded, Progress};
pub(crate) use load::{NewImage, now};
pub(crate) use maker::Maker;
pub use naming::{LayerCheck, LayerState};
pub use open::Recovery;
pub(crate) use record::fuzz_record;
pub use record::{Image, LayerInfo, Origin};
pub use removal::{PruneScope, Pruned, Removed};

/// Most images: each is one small file that is read at every start.
pub const MAX_STORED_IMAGES: usize = 4096;
/// Shortest id prefix taken for an id: shorter ones are more likely a name.
const MIN_PREFIX_LEN: usize = 4;

/// Why the store cannot do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the store failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("the image store {0} is in use by another process")]
    Locked(PathBuf),
    /// The disk has no room.
    #[error("no space left for the image: {needed} bytes are needed and {free} are free; remove images or containers")]
    NoSpace {
        /// Bytes needed by the part that did not fit.
        needed: u64,
        /// Bytes that could be used.
        free: u64,
    },
    /// No such image.
    #[error("no image {0:?}; `byrectl image ls` lists them, `byrectl pull` or `byrectl image load` brings one")]
    NotFound(String),
    /// An id prefix that several images share.
    #[error("{prefix:?} is the start of several image ids: {ids}; give more digits")]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// What it could mean.
        ids: String,
    },
    /// The caller says that it is in use.
    #[error("image {0} is in use by a container; remove the container first, or force it")]
    InUse(String),
    /// An id with several names.
    #[error("image {id} has the names {names}; remove them one by one, or force it")]
    SeveralNames {
        /// The image.
        id: String,
        /// Its names.
        names: String,
    },
    /// The archive was refused.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A layer was refused.
    #[error("layer {diff_id}: {source}")]
    Layer {
        /// The layer.
        diff_id: Digest,
        /// Why.
        source: Box<LayerError>,
    },
    /// A layer is not what the configuration says.
    #[error("layer {found} is not the one that the configuration names, {expected}: the image is damaged")]
    DiffId {
        /// In the configuration.
        expected: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// A layer file that must not be mounted.
    #[error("layer {diff_id} was written wrongly and is not used: {source}")]
    Check {
        /// The layer.
        diff_id: Digest,
        /// Why.
        source: CheckError,
    },
    /// One name for several images.
    #[error("the archive holds {0} images; a name can be given for one only")]
    NameForSeveral(usize),
    /// A name that pins a digest.
    #[error("{0} pins a digest and cannot be given as a name; use name:tag")]
    PinnedName(Reference),
    /// The store is full.
    #[error("the store holds {MAX_STORED_IMAGES} images; remove some")]
    TooManyImages,
    /// Too many names.
    #[error("an image has at most {0} names; take one away first")]
    TooManyNames(usize),
    /// The node's own rules.
    #[error("the node's policy does not take {name}: {why}")]
    Policy {
        /// The image.
        name: String,
        /// The rule and what it misses.
        why: String,
    },
    /// The caller stopped it.
    #[error("cancelled")]
    Cancelled,
    /// A stored file is not what it was.
    #[error("image {id} is damaged: {what}; remove it and load it again")]
    Damaged {
        /// The image.
        id: Digest,
        /// What is wrong.
        what: String,
    },
}

/// Limits of a store.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of an archive.
    pub archive_bytes: u64,
    /// Bytes of one layer, as a tar stream and as a file.
    pub layer_bytes: u64,
    /// Bytes of the disk that are never used.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    /// 64 GiB each, twice the largest images in use; 64 MiB stay free for logs and container state.
    fn default() -> Self {
        Self { archive_bytes: 64 << 30, layer_bytes: 64 << 30, reserve_bytes: 64 << 20 }
    }
}

/// An image, ready to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The image.
    pub image: Image,
    /// Its configuration.
    pub config: ImageConfig,
    /// Its layer files, lowest first.
    pub layer_paths: Vec<PathBuf>,
}

/// What the store takes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Images.
    pub images: u64,
    /// Layer files.
    pub layers: u64,
    /// Bytes of all layer files, shared ones once.
    pub layer_bytes: u64,
    /// Bytes that can still be used, the reserve left out.
    pub free_bytes: u64,
}

/// An open image store. One process has it at a time.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
    images: BTreeMap<Digest, Image>,
    next_sequence: u64,
    /// Layers that somebody is about to need.
    leases: Leases,
    policy: Arc<Policy>,
    /// Held locked as long as the store is open.
    _lock: File,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    |source| StoreError::Io { path: path.to_owned(), source }
}

impl Store {
    fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn configs_dir(&self) -> PathBuf {
        configs_dir(&self.root)
    }

    fn records_dir(&self) -> PathBuf {
        self.root.join("records")
    }

    fn staging_dir(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// From now on images are judged by these rules.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = Arc::new(policy);
    }

    pub(crate) fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    pub(crate) fn maker(&self) -> Maker {
        Maker::new(&self.root, self.limits)
    }

    /// Where the layer with this diff id is, or would be.
    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers_dir().join(layer_names(diff_id).0)
    }

    /// Removes a layer and what is known of it.
    fn remove_layer(&self, diff_id: &Digest) -> Result<(), StoreError> {
        let (layer, digest) = layer_names(diff_id);
        for name in [layer, digest] {
            let path = self.layers_dir().join(name);
            durable::remove(&path).map_err(at(&path))?;
        }
        Ok(())
    }

    /// All images, by id.
    pub fn list(&self) -> impl Iterator<Item = &Image> {
        self.images.values()
    }

    /// The image that `text` means: a name, a whole id with or without `sha256:`, or the start of an id.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`.
    pub fn find(&self, text: &str) -> Result<&Image, StoreError> {
        find(&self.images, text)
    }

    /// What is in the store now, for those who only read: it stays as it is while a load goes on.
    pub fn catalog(&self) -> Catalog {
        Catalog { root: self.root.clone(), images: self.images.clone(), policy: Arc::clone(&self.policy) }
    }

    /// The image that `text` means, with its configuration and the paths of its layers.
    ///
    /// # Errors
    /// Of [`Store::find`]; `Damaged` if a file is missing or its configuration is not the one that was loaded.
    pub fn resolve(&self, text: &str) -> Result<Resolved, StoreError> {
        let image = self.find(text)?.clone();
        let bytes = self.config_bytes(&image)?;
        let damaged = |what: String| StoreError::Damaged { id: image.id, what };
        let config = ImageConfig::parse(&bytes).map_err(damaged)?;
        let layer_paths: Vec<PathBuf> = image.layers.iter().map(|layer| self.layer_path(&layer.diff_id)).collect();
        if let Some(missing) = layer_paths.iter().find(|path| !path.is_file()) {
            return Err(damaged(format!("{} is missing", missing.display())));
        }
        Ok(Resolved { image, config, layer_paths })
    }

    /// The configuration blob of an image, as it was loaded.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn config_bytes(&self, image: &Image) -> Result<Vec<u8>, StoreError> {
        config_bytes(&self.root, image)
    }

    /// What the store takes up now.
    ///
    /// # Errors
    /// `Io`.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let layers: BTreeMap<Digest, u64> =
            self.images.values().flat_map(|image| &image.layers).map(|layer| (layer.diff_id, layer.bytes)).collect();
        Ok(Usage {
            images: self.images.len() as u64,
            layers: layers.len() as u64,
            layer_bytes: layers.values().sum(),
            free_bytes: self.free_bytes()?,
        })
    }

    fn free_bytes(&self) -> Result<u64, StoreError> {
        self.maker().free_bytes()
    }

    /// Writes an image's record and takes note of it.
    fn write_record(&mut self, image: Image) -> Result<(), StoreError> {
        let dir = self.records_dir();
        let bytes = record::encode(&image).map_err(|e| at(&dir)(e.into()))?;
        durable::write(&dir, &format!("{}{}", image.id.hex(), record::SUFFIX), &bytes).map_err(|source| {
            if source.kind() == io::ErrorKind::StorageFull {
                StoreError::NoSpace { needed: bytes.len() as u64, free: 0 }
            } else {
                at(&dir)(source)
            }
        })?;
        self.images.insert(image.id, image);
        Ok(())
    }

    fn take_sequence(&mut self) -> u64 {
        self.next_sequence += 1;
        self.next_sequence
    }
}

/// The images of a store at one moment, for reading.
#[derive(Debug, Clone)]
pub struct Catalog {
    root: PathBuf,
    images: BTreeMap<Digest, Image>,
    policy: Arc<Policy>,
}

impl Catalog {
    /// What the node's policy says of an image that was found by `text`.
    pub fn verdict(&self, image: &Image, text: &str) -> Verdict {
        let name = text.parse::<Reference>().ok();
        let is_name = |name: &Reference| {
            let same = |other: &Reference| other.domain() == name.domain() && other.path() == name.path();
            image.names.contains(name) || image.origins.iter().any(|origin| same(&origin.reference))
        };
        self.policy.judge_image(image, name.filter(is_name).as_ref())
    }

    /// All images, by id.
    pub fn list(&self) -> impl Iterator<Item = &Image> {
        self.images.values()
    }

    /// As [`Store::find`].
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`.
    pub fn find(&self, text: &str) -> Result<&Image, StoreError> {
        find(&self.images, text)
    }

    /// As [`Store::config_bytes`]; `Io` if the image was removed meanwhile.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn config_bytes(&self, image: &Image) -> Result<Vec<u8>, StoreError> {
        config_bytes(&self.root, image)
    }
}

/// Names of a layer's file and of the file with its fs-verity digest.
fn layer_names(diff_id: &Digest) -> (String, String) {
    (format!("{}.erofs", diff_id.hex()), format!("{}.verity", diff_id.hex()))
}

fn configs_dir(root: &Path) -> PathBuf {
    root.join("configs")
}

fn config_bytes(root: &Path, image: &Image) -> Result<Vec<u8>, StoreError> {
    let path = configs_dir(root).join(format!("{}{}", image.id.hex(), record::SUFFIX));
    let bytes = std::fs::read(&path).map_err(at(&path))?;
    if Digest::of(&bytes) != image.id {
        return Err(StoreError::Damaged { id: image.id, what: "its configuration has another digest".to_owned() });
    }
    Ok(bytes)
}

fn find<'a>(images: &'a BTreeMap<Digest, Image>, text: &str) -> Result<&'a Image, StoreError> {
    let not_found = || StoreError::NotFound(text.chars().take(200).collect());
    if let Ok(reference) = text.parse::<Reference>() {
        if let Some(image) = images.values().find(|image| image.names.contains(&reference)) {
            return Ok(image);
        }
        if let Some(digest) = reference.digest() {
            // A pinned name: the manifest's digest decides, and the repository has to be one the image goes by.
            let repository = |name: &Reference| name.domain() == reference.domain() && name.path() == reference.path();
            let pinned = |image: &&Image| {
                let is_origin = |origin: &record::Origin| {
                    repository(&origin.reference)
                        && (origin.reference.digest() == Some(digest) || image.manifest == Some(*digest))
                };
                image.manifest == Some(*digest) && image.names.iter().any(repository)
                    || image.origins.iter().any(is_origin)
            };
            return images.values().find(pinned).ok_or_else(not_found);
        }
    }
    let prefix = text.strip_prefix("sha256:").unwrap_or(text);
    if prefix.len() < MIN_PREFIX_LEN || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(not_found());
    }
    let mut matching = images.values().filter(|image| image.id.hex().starts_with(prefix));
    let first = matching.next().ok_or_else(not_found)?;
    let others: Vec<&Image> = matching.collect();
    if others.is_empty() {
        return Ok(first);
    }
    let ids: Vec<String> = std::iter::once(first).chain(others).map(|image| image.id.hex()).take(8).collect();
    Err(StoreError::Ambiguous { prefix: prefix.to_owned(), ids: ids.join(", ") })
}

#[cfg(test)]
mod tests;

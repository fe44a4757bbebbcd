//! Loading an archive into the store.
//!
//! ```text
//! stage -> resolve -> for each layer: convert, compare diff_id, check, publish -> configuration -> record
//! ```
//! Nothing is visible before the record; whatever fails, the half-made files are removed at once.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::record::{Image, LayerInfo, MAX_ORIGINS, Origin};
use super::{MAX_STORED_IMAGES, Store, StoreError, at, durable, record};
use crate::archive::{self, ArchiveError, FoundImage, FoundLayer, StageLimits};
use crate::compression;
use crate::digest::Digest;
use crate::policy::{Judged, Otherwise};
use crate::reference::Reference;
use crate::signature::{MAX_SIGNATURES, Signature};

/// Bytes between two calls of the progress function: a call must cost nothing beside the work.
const PROGRESS_STEP: u64 = 1 << 20;
/// Bytes of a staged blob read at once.
const READ_LEN: usize = 128 << 10;

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The archive is coming in.
    Receiving {
        /// Bytes so far.
        bytes: u64,
    },
    /// A layer is being converted.
    Converting {
        /// Which layer.
        diff_id: Digest,
        /// Its place in the image, from 0.
        index: usize,
        /// Layers of the image.
        count: usize,
        /// Bytes of the stored blob done.
        done: u64,
        /// Bytes of the stored blob.
        total: u64,
    },
    /// A layer was in the store already.
    Kept {
        /// Which layer.
        diff_id: Digest,
    },
    /// An image is in the store, durably.
    Stored {
        /// Its id.
        id: Digest,
    },
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The image, with all its names. Without any it can be used by its id only.
    pub image: Image,
    /// Layers that were made; the others were in the store.
    pub new_layers: usize,
}

/// An image that is about to exist.
pub(crate) struct NewImage<'a> {
    pub(crate) id: Digest,
    pub(crate) names: Vec<Reference>,
    pub(crate) manifest: Option<Digest>,
    pub(crate) config_bytes: &'a [u8],
    pub(crate) created: Option<String>,
    pub(crate) layers: Vec<LayerInfo>,
    pub(crate) origin: Option<Origin>,
    pub(crate) signatures: Vec<Signature>,
}

/// Tells the caller how far the work is, not too often; the caller can stop it.
struct Reporter<'a> {
    tell: &'a mut dyn FnMut(Progress) -> bool,
    last: u64,
    cancelled: bool,
}

impl Reporter<'_> {
    /// False if the caller wants no more.
    fn tell(&mut self, progress: Progress) -> bool {
        self.cancelled = self.cancelled || !(self.tell)(progress);
        !self.cancelled
    }

    fn step(&mut self, bytes: u64, progress: impl FnOnce(u64) -> Progress) -> bool {
        if bytes.saturating_sub(self.last) < PROGRESS_STEP {
            return !self.cancelled;
        }
        self.last = bytes;
        self.tell(progress(bytes))
    }
}

/// Removes the directory of a load when it ends, however it ends.
struct Staging {
    dir: PathBuf,
}

impl Drop for Staging {
    fn drop(&mut self) {
        // If this fails, the sweep at the next start does it.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Store {
    /// Loads all images of an archive. `name` replaces the names in the archive.
    ///
    /// `progress` is called now and then and stops the load by returning false.
    ///
    /// # Errors
    /// [`StoreError`]; the store is then as it was, but for images of the archive that were already complete.
    pub fn load(
        &mut self,
        source: impl Read,
        name: Option<&Reference>,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Vec<Loaded>, StoreError> {
        if let Some(name) = name.filter(|name| name.digest().is_some() || name.tag().is_none()) {
            return Err(StoreError::PinnedName(name.clone()));
        }
        let mut reporter = Reporter { tell: progress, last: 0, cancelled: false };
        let result = self.load_all(source, name, &mut reporter);
        if reporter.cancelled && result.is_err() { Err(StoreError::Cancelled) } else { result }
    }

    fn load_all(
        &mut self,
        source: impl Read,
        name: Option<&Reference>,
        reporter: &mut Reporter<'_>,
    ) -> Result<Vec<Loaded>, StoreError> {
        let staging = Staging { dir: self.staging_dir().join("load") };
        if staging.dir.exists() {
            fs::remove_dir_all(&staging.dir).map_err(at(&staging.dir))?;
        }
        fs::create_dir(&staging.dir).map_err(at(&staging.dir))?;
        let limits = StageLimits { bytes: self.limits.archive_bytes, free: self.free_bytes()? };
        let receiving = &mut |bytes| reporter.step(bytes, |bytes| Progress::Receiving { bytes });
        let staged = archive::stage(source, &staging.dir, limits, receiving).map_err(no_space)?;
        let mut found = archive::resolve(&staged)?;
        if let Some(name) = name {
            match found.as_mut_slice() {
                [one] => one.names = vec![name.clone()],
                several => return Err(StoreError::NameForSeveral(several.len())),
            }
        }
        let several = found.len() > 1;
        let mut loaded = Vec::new();
        for image in found {
            loaded.push(self.load_image(image, several, reporter)?);
        }
        Ok(loaded)
    }

    fn load_image(
        &mut self,
        found: FoundImage,
        keep_blobs: bool,
        reporter: &mut Reporter<'_>,
    ) -> Result<Loaded, StoreError> {
        self.judge(&found)?;
        let mut made = Vec::new();
        let result = self.load_layers(&found, keep_blobs, &mut made, reporter).and_then(|layers| {
            self.commit(NewImage {
                id: found.id,
                names: found.names.clone(),
                manifest: found.manifest_digest,
                config_bytes: &found.config_bytes,
                created: found.config.created.clone(),
                layers,
                origin: None,
                signatures: Vec::new(),
            })
        });
        match result {
            Ok(image) => {
                reporter.tell(Progress::Stored { id: image.id });
                Ok(Loaded { image, new_layers: made.len() })
            }
            Err(e) => {
                self.undo(&found.id, &made);
                Err(e)
            }
        }
    }

    /// Whether the policy takes the image under all of its names: each of them is to lead to it.
    fn judge(&self, found: &FoundImage) -> Result<(), StoreError> {
        let known = self.images.get(&found.id);
        let mut digests: Vec<Digest> = found.manifest_digest.into_iter().collect();
        digests.extend(known.iter().flat_map(|image| &image.origins).filter_map(|origin| origin.reference.digest()));
        let signatures = known.map(|image| image.signatures.as_slice()).unwrap_or_default();
        let judged = Judged { digests: &digests, signatures };
        for name in &found.names {
            let verdict = self.policy.judge(&judged, name);
            if !verdict.accepted {
                return Err(StoreError::Policy { name: name.short(), why: verdict.text });
            }
        }
        if found.names.is_empty() && self.policy.default == Otherwise::Reject {
            let why = "it has no name that a rule is for, and the default is to reject".to_owned();
            return Err(StoreError::Policy { name: found.id.to_string(), why });
        }
        Ok(())
    }

    /// Takes back what a failed load published. Errors are left to the sweep at the next start.
    fn undo(&self, id: &Digest, made: &[Digest]) {
        if self.images.contains_key(id) {
            // The image was there before, or its record was written: what was made belongs to it.
            return;
        }
        let name = format!("{}{}", id.hex(), record::SUFFIX);
        // The record first: it may have got its name although the write then failed.
        let _ = durable::remove(&self.records_dir().join(&name));
        let _ = durable::remove(&self.configs_dir().join(&name));
        for diff_id in made.iter().filter(|diff_id| !self.leases.holds(diff_id)) {
            let _ = self.remove_layer(diff_id);
        }
    }

    /// Makes the layers that are missing; `made` holds those already published, also after an error.
    fn load_layers(
        &self,
        found: &FoundImage,
        keep_blobs: bool,
        made: &mut Vec<Digest>,
        reporter: &mut Reporter<'_>,
    ) -> Result<Vec<LayerInfo>, StoreError> {
        // The same layer twice in one image is legal and one file.
        let mut last_use = BTreeSet::new();
        let mut layers = Vec::new();
        for (index, layer) in found.layers.iter().enumerate() {
            if let Some(bytes) = self.maker().existing(&layer.diff_id)? {
                layers.push(LayerInfo { diff_id: layer.diff_id, bytes });
                if last_use.insert(layer.diff_id) && !reporter.tell(Progress::Kept { diff_id: layer.diff_id }) {
                    return Err(StoreError::Cancelled);
                }
                continue;
            }
            last_use.insert(layer.diff_id);
            let place = (index, found.layers.len());
            let bytes = self.make_layer(layer, place, reporter)?;
            made.push(layer.diff_id);
            layers.push(LayerInfo { diff_id: layer.diff_id, bytes });
            if !keep_blobs && !found.layers[index + 1..].iter().any(|later| later.path == layer.path) {
                durable::remove(&layer.path).map_err(at(&layer.path))?;
            }
        }
        let dir = self.layers_dir();
        durable::sync_dir(&dir).map_err(at(&dir))?;
        Ok(layers)
    }

    /// Converts one layer and gives it its name; gives its bytes.
    fn make_layer(
        &self,
        layer: &FoundLayer,
        (index, count): (usize, usize),
        reporter: &mut Reporter<'_>,
    ) -> Result<u64, StoreError> {
        let (diff_id, total) = (layer.diff_id, layer.size);
        let maker = self.maker();
        maker.make(&diff_id, "", |file| {
            let blob = File::open(&layer.path).map_err(at(&layer.path))?;
            let read = Cell::new(0);
            let counted = Counted { inner: blob, read: &read };
            let plain = compression::decoder(BufReader::with_capacity(READ_LEN, counted)).map_err(at(&layer.path))?;
            reporter.last = 0;
            let mut progress =
                |_| reporter.step(read.get(), |done| Progress::Converting { diff_id, index, count, done, total });
            maker.convert(diff_id, plain, file, &mut progress)
        })
    }

    /// Makes an image exist whose layers are durable: its configuration, then its record; and takes its names from other images.
    pub(crate) fn commit(&mut self, new: NewImage<'_>) -> Result<Image, StoreError> {
        if self.images.len() >= MAX_STORED_IMAGES && !self.images.contains_key(&new.id) {
            return Err(StoreError::TooManyImages);
        }
        let dir = self.configs_dir();
        let name = format!("{}{}", new.id.hex(), record::SUFFIX);
        durable::write(&dir, &name, new.config_bytes).map_err(at(&dir))?;
        let known = self.images.get(&new.id);
        let mut names = new.names;
        names.extend(known.iter().flat_map(|image| image.names.clone()));
        names.sort();
        names.dedup();
        let mut origins: Vec<Origin> = known.map(|image| image.origins.clone()).unwrap_or_default();
        if let Some(origin) = new.origin {
            origins.retain(|known| known.reference != origin.reference);
            origins.push(origin);
            let excess = origins.len().saturating_sub(MAX_ORIGINS);
            origins.drain(..excess);
        }
        let mut signatures = new.signatures;
        for signature in known.iter().flat_map(|image| &image.signatures) {
            if signatures.len() < MAX_SIGNATURES && !signatures.contains(signature) {
                signatures.push(signature.clone());
            }
        }
        let image = Image {
            id: new.id,
            names,
            manifest: new.manifest.or_else(|| known.and_then(|image| image.manifest)),
            layers: new.layers,
            created: new.created,
            loaded_at: now(),
            sequence: self.take_sequence(),
            origins,
            signatures,
        };
        self.write_record(image.clone())?;
        self.take_names(&image)?;
        Ok(image)
    }

    /// Takes the names of `image`, whose record is written, from all others.
    pub(super) fn take_names(&mut self, image: &Image) -> Result<(), StoreError> {
        let losers: Vec<Image> = self
            .images
            .values()
            .filter(|other| other.id != image.id && other.names.iter().any(|name| image.names.contains(name)))
            .cloned()
            .collect();
        for mut loser in losers {
            // A cut before this is settled by the sequence numbers at the next start.
            loser.names.retain(|name| !image.names.contains(name));
            self.write_record(loser)?;
        }
        Ok(())
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

fn no_space(error: ArchiveError) -> StoreError {
    if let ArchiveError::NoSpace { needed, free } = error {
        StoreError::NoSpace { needed, free }
    } else {
        StoreError::Archive(error)
    }
}

/// Counts what is read, for the progress display.
struct Counted<'c, R> {
    inner: R,
    read: &'c Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

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
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::record::{Image, LayerInfo};
use super::{MAX_STORED_IMAGES, Store, StoreError, at, durable, layer_names, record};
use crate::archive::{self, ArchiveError, FoundImage, FoundLayer, StageLimits};
use crate::check;
use crate::compression;
use crate::digest::Digest;
use crate::erofs::Budget;
use crate::layer;
use crate::reference::Reference;

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
        if self.images.len() >= MAX_STORED_IMAGES && !self.images.contains_key(&found.id) {
            return Err(StoreError::TooManyImages);
        }
        let mut made = Vec::new();
        let result = self.load_layers(&found, keep_blobs, &mut made, reporter).and_then(|layers| {
            let dir = self.configs_dir();
            let name = format!("{}{}", found.id.hex(), record::SUFFIX);
            durable::write(&dir, &name, &found.config_bytes).map_err(at(&dir))?;
            self.commit(&found, layers)
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
        for diff_id in made {
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
            let path = self.layer_path(&layer.diff_id);
            match fs::metadata(&path) {
                Ok(meta) if meta.is_file() => {
                    layers.push(LayerInfo { diff_id: layer.diff_id, bytes: meta.len() });
                    if last_use.insert(layer.diff_id) && !reporter.tell(Progress::Kept { diff_id: layer.diff_id }) {
                        return Err(StoreError::Cancelled);
                    }
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Ok(_) => return Err(at(&path)(io::Error::other("not a file"))),
                Err(e) => return Err(at(&path)(e)),
            }
            last_use.insert(layer.diff_id);
            let place = (index, found.layers.len());
            let bytes = self.make_layer(layer, place, &path, reporter)?;
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
        path: &Path,
        reporter: &mut Reporter<'_>,
    ) -> Result<u64, StoreError> {
        let (temporary, file) = durable::create(&self.layers_dir(), &layer.diff_id.hex()).map_err(at(path))?;
        let result = self.convert_layer(layer, (index, count), file, reporter).and_then(|made| {
            // A file system may find only now that it has no room (delayed allocation).
            let (layer_name, digest_name) = layer_names(&layer.diff_id);
            match durable::publish_layer(&temporary, made.file, &self.layers_dir(), &layer_name, &digest_name) {
                Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                    Err(StoreError::NoSpace { needed: made.bytes, free: self.free_bytes()? })
                }
                other => other.map(|()| made.bytes).map_err(at(path)),
            }
        });
        if result.is_err() {
            // The first error is the one to report; the sweep at the next start removes what this could not.
            let _ = durable::remove(&temporary);
        }
        result
    }

    fn convert_layer(
        &self,
        layer: &FoundLayer,
        (index, count): (usize, usize),
        file: File,
        reporter: &mut Reporter<'_>,
    ) -> Result<layer::Layer, StoreError> {
        let diff_id = layer.diff_id;
        let refuse = |source| StoreError::Layer { diff_id, source: Box::new(source) };
        let free = self.free_bytes()?;
        let budget = Budget { limit: self.limits.layer_bytes, space: free };
        let blob = File::open(&layer.path).map_err(at(&layer.path))?;
        let read = Cell::new(0);
        let counted = Counted { inner: blob, read: &read };
        let plain = compression::decoder(BufReader::with_capacity(READ_LEN, counted)).map_err(at(&layer.path))?;
        reporter.last = 0;
        let total = layer.size;
        let mut progress =
            |_| reporter.step(read.get(), |done| Progress::Converting { diff_id, index, count, done, total });
        let made = layer::convert(plain, file, budget, &mut progress).map_err(|e| match e.space_needed() {
            Some(needed) => StoreError::NoSpace { needed, free },
            None => refuse(e),
        })?;
        if made.diff_id != diff_id {
            return Err(StoreError::DiffId { expected: diff_id, found: made.diff_id });
        }
        check::check(&made.file).map_err(|source| StoreError::Check { diff_id, source })?;
        Ok(made)
    }

    /// Writes the record, after everything that it names is durable, and takes its names from other images.
    fn commit(&mut self, found: &FoundImage, layers: Vec<LayerInfo>) -> Result<Image, StoreError> {
        let mut names = found.names.clone();
        let known = self.images.get(&found.id);
        names.extend(known.iter().flat_map(|image| image.names.clone()));
        names.sort();
        names.dedup();
        let image = Image {
            id: found.id,
            names,
            manifest: found.manifest_digest.or_else(|| known.and_then(|image| image.manifest)),
            layers,
            created: found.config.created.clone(),
            loaded_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
            sequence: self.take_sequence(),
        };
        self.write_record(image.clone())?;
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
        Ok(image)
    }
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

//! Making one layer file: convert, compare the diff_id, check the bounds, make durable, name it.
//!
//! It touches nothing but its own temporary file until the layer has its name, so several can be made at once and none needs the
//! store's lock. Two makers of one layer write the same bytes, and the later name replaces the earlier one.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Limits, StoreError, at, durable, layer_names};
use crate::check;
use crate::digest::Digest;
use crate::erofs::Budget;
use crate::layer::{self, Layer};

/// Makes layers in a store's directory.
#[derive(Debug, Clone)]
pub(crate) struct Maker {
    root: PathBuf,
    limits: Limits,
}

impl Maker {
    pub(super) fn new(root: &Path, limits: Limits) -> Self {
        Self { root: root.to_owned(), limits }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Where what came of interrupted blobs lies.
    pub(crate) fn partial_dir(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Length of the layer's file, if it is there.
    pub(crate) fn existing(&self, diff_id: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.layers_dir().join(layer_names(diff_id).0);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
            Ok(_) => Err(at(&path)(io::Error::other("not a file"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at(&path)(e)),
        }
    }

    /// Bytes of the disk that may be used.
    pub(crate) fn free_bytes(&self) -> Result<u64, StoreError> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|e| at(&self.root)(e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(self.limits.reserve_bytes))
    }

    /// Makes a layer with `convert`, which fills the empty file, and gives it its name; gives its bytes. `maker` tells the temporary
    /// files of those apart who may make the same layer at the same time.
    pub(crate) fn make(
        &self,
        diff_id: &Digest,
        maker: &str,
        convert: impl FnOnce(File) -> Result<Layer, StoreError>,
    ) -> Result<u64, StoreError> {
        let dir = self.layers_dir();
        let (layer_name, digest_name) = layer_names(diff_id);
        let path = dir.join(&layer_name);
        let (temporary, file) = durable::create(&dir, &format!("{}{maker}", diff_id.hex())).map_err(at(&path))?;
        let result = convert(file).and_then(|made| {
            // A file system may find only now that it has no room (delayed allocation).
            match durable::publish_layer(&temporary, made.file, &dir, &layer_name, &digest_name) {
                Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                    Err(StoreError::NoSpace { needed: made.bytes, free: self.free_bytes()? })
                }
                other => other.map(|()| made.bytes).map_err(at(&path)),
            }
        });
        if result.is_err() {
            // The first error is the one to report; the sweep at the next start removes what this could not.
            let _ = durable::remove(&temporary);
        }
        result
    }

    /// Converts the plain tar stream of a layer into `file` and checks it.
    pub(crate) fn convert(
        &self,
        diff_id: Digest,
        plain: impl Read,
        file: File,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Layer, StoreError> {
        let free = self.free_bytes()?;
        let budget = Budget { limit: self.limits.layer_bytes, space: free };
        let made = layer::convert(plain, file, budget, progress).map_err(|e| match e.space_needed() {
            Some(needed) => StoreError::NoSpace { needed, free },
            None => StoreError::Layer { diff_id, source: Box::new(e) },
        })?;
        if made.diff_id != diff_id {
            return Err(StoreError::DiffId { expected: diff_id, found: made.diff_id });
        }
        check::check(&made.file).map_err(|source| StoreError::Check { diff_id, source })?;
        Ok(made)
    }
}

//! Removing names, images, and the layers that nothing needs any more.
//!
//! The record goes first and durably; only then files go that no other record names. A cut in between leaves files that
//! the next start sweeps away. A layer file that is still mounted keeps its bytes until it is unmounted; that is the
//! kernel's doing and harms nobody.

use std::collections::BTreeSet;

use super::record::{self, Image};
use super::{Store, StoreError, at, durable};
use crate::digest::Digest;
use crate::reference::Reference;

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Reference>,
    /// The image, if it went with its last name.
    pub deleted: Option<Digest>,
    /// Bytes of layer files that were freed.
    pub freed_bytes: u64,
}

/// Which images a pruning may remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneScope {
    /// Those without a name.
    Nameless,
    /// All that are not in use.
    Unused,
}

/// What a pruning did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images that are gone.
    pub deleted: Vec<Digest>,
    /// Bytes of layer files that were freed.
    pub freed_bytes: u64,
}

impl Store {
    /// Removes what `text` means: a name, and with its last name the image; or an image by its id.
    ///
    /// `in_use` holds the ids that containers need; those are refused unless `force`.
    ///
    /// # Errors
    /// Of [`Store::find`]; `InUse`, `SeveralNames`, `Io`.
    pub fn remove(&mut self, text: &str, in_use: &BTreeSet<Digest>, force: bool) -> Result<Removed, StoreError> {
        let mut image = self.find(text)?.clone();
        let name = text.parse::<Reference>().ok().filter(|name| image.names.contains(name));
        if let Some(name) = name.filter(|_| image.names.len() > 1) {
            image.names.retain(|known| *known != name);
            image.sequence = self.take_sequence();
            self.write_record(image)?;
            return Ok(Removed { untagged: vec![name], ..Removed::default() });
        }
        if in_use.contains(&image.id) && !force {
            return Err(StoreError::InUse(text.to_owned()));
        }
        if image.names.len() > 1 && !force {
            let names: Vec<String> = image.names.iter().map(Reference::short).collect();
            return Err(StoreError::SeveralNames { id: image.id.hex(), names: names.join(", ") });
        }
        let freed_bytes = self.delete(&image)?;
        Ok(Removed { untagged: image.names, deleted: Some(image.id), freed_bytes })
    }

    /// Removes images that are not `in_use`.
    ///
    /// # Errors
    /// `Io`; what was removed before it stays removed.
    pub fn prune(&mut self, in_use: &BTreeSet<Digest>, scope: PruneScope) -> Result<Pruned, StoreError> {
        let removable = |image: &&Image| {
            !in_use.contains(&image.id)
                && match scope {
                    PruneScope::Nameless => image.names.is_empty(),
                    PruneScope::Unused => true,
                }
        };
        let images: Vec<Image> = self.images.values().filter(removable).cloned().collect();
        let mut pruned = Pruned { freed_bytes: self.drop_leftovers()? + self.trim_partials(0)?, ..Pruned::default() };
        for image in images {
            pruned.freed_bytes += self.delete(&image)?;
            pruned.deleted.push(image.id);
        }
        Ok(pruned)
    }

    /// Removes an image and its unshared layers; gives the bytes freed.
    fn delete(&mut self, image: &Image) -> Result<u64, StoreError> {
        let name = format!("{}{}", image.id.hex(), record::SUFFIX);
        let (records, configs, layers) = (self.records_dir(), self.configs_dir(), self.layers_dir());
        let path = records.join(&name);
        durable::remove(&path).map_err(at(&path))?;
        durable::sync_dir(&records).map_err(at(&records))?;
        self.images.remove(&image.id);

        let path = configs.join(&name);
        durable::remove(&path).map_err(at(&path))?;
        let needed: BTreeSet<Digest> =
            self.images.values().flat_map(|image| &image.layers).map(|layer| layer.diff_id).collect();
        let held = |diff_id: &Digest| needed.contains(diff_id) || self.leases.holds(diff_id);
        let mut gone = BTreeSet::new();
        let mut freed = 0;
        for layer in image.layers.iter().filter(|layer| !held(&layer.diff_id)) {
            if gone.insert(layer.diff_id) {
                self.remove_layer(&layer.diff_id)?;
                freed += layer.bytes;
            }
        }
        durable::sync_dir(&configs).map_err(at(&configs))?;
        durable::sync_dir(&layers).map_err(at(&layers))?;
        Ok(freed)
    }
}

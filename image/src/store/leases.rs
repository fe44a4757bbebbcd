//! What keeps files alive that no record names: leases of pulls under way, and what pulls that ended early left for the next one.
//!
//! A lease lives in memory: after a restart nobody is about to need anything, and the sweep removes what no record names. Partial blobs
//! outlive a restart, within a bound of bytes and age.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::open::names_in;
use super::{Store, StoreError, at, durable};
use crate::digest::Digest;

/// How long the finished layers of a pull that ended early stay: long enough to type the command again, or to mend a line.
const LEFTOVER_LIFE: Duration = Duration::from_secs(3600);
/// How long a partial blob stays.
const PARTIAL_LIFE: Duration = Duration::from_secs(7 * 86_400);
/// Bytes of all partial blobs at a start: some large layers.
pub(super) const MAX_PARTIAL_BYTES: u64 = 4 << 30;

/// Layers that must not go although no record names them.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// How many pulls are about to need the layer.
    held: BTreeMap<Digest, u32>,
    /// Since when it has been left over.
    left: BTreeMap<Digest, Instant>,
}

impl Leases {
    /// Whether somebody is about to need this layer.
    pub(super) fn holds(&self, diff_id: &Digest) -> bool {
        self.held.contains_key(diff_id)
    }
}

impl Store {
    /// Keeps these layers, there already or yet to come, from being removed until [`Store::release`].
    pub(crate) fn lease(&mut self, diff_ids: &[Digest]) {
        for diff_id in diff_ids {
            *self.leases.held.entry(*diff_id).or_default() += 1;
            self.leases.left.remove(diff_id);
        }
    }

    /// Gives up a lease. A layer that no record names by then is left over: the next pull finds it, and in an hour it goes.
    pub(crate) fn release(&mut self, diff_ids: &[Digest]) {
        for diff_id in diff_ids {
            if let Some(count) = self.leases.held.get_mut(diff_id) {
                *count -= 1;
                if *count == 0 {
                    self.leases.held.remove(diff_id);
                    if !self.is_needed(diff_id) && self.layer_path(diff_id).is_file() {
                        self.leases.left.insert(*diff_id, Instant::now());
                    }
                }
            }
        }
    }

    fn is_needed(&self, diff_id: &Digest) -> bool {
        self.images.values().flat_map(|image| &image.layers).any(|layer| layer.diff_id == *diff_id)
    }

    /// Removes what was left over for too long.
    pub(crate) fn drop_old_leftovers(&mut self) -> Result<u64, StoreError> {
        let old = |since: &Instant| since.elapsed() >= LEFTOVER_LIFE;
        let gone: Vec<Digest> = self.leases.left.iter().filter(|(_, since)| old(since)).map(|(id, _)| *id).collect();
        self.drop_layers(&gone)
    }

    /// Removes everything that is left over; gives the bytes.
    pub(super) fn drop_leftovers(&mut self) -> Result<u64, StoreError> {
        let gone: Vec<Digest> = self.leases.left.keys().copied().collect();
        self.drop_layers(&gone)
    }

    fn drop_layers(&mut self, diff_ids: &[Digest]) -> Result<u64, StoreError> {
        let mut freed = 0;
        for diff_id in diff_ids {
            self.leases.left.remove(diff_id);
            // An archive that was loaded meanwhile may have brought an image that needs it.
            if self.is_needed(diff_id) || self.leases.holds(diff_id) {
                continue;
            }
            freed += std::fs::metadata(self.layer_path(diff_id)).map_or(0, |meta| meta.len());
            self.remove_layer(diff_id)?;
        }
        Ok(freed)
    }

    /// Removes partial blobs that are old, and the oldest ones until the rest has at most `keep` bytes; gives the bytes removed. One that
    /// is being written goes on without its name.
    pub(crate) fn trim_partials(&self, keep: u64) -> Result<u64, StoreError> {
        let dir = self.maker().partial_dir();
        let mut files = Vec::new();
        for name in names_in(&dir)? {
            let path = dir.join(name);
            let meta = std::fs::metadata(&path).map_err(at(&path))?;
            let age = meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
            files.push((age, meta.len(), path));
        }
        // The newest first.
        files.sort();
        let (mut kept, mut removed) = (0_u64, 0);
        for (age, bytes, path) in files {
            kept = kept.saturating_add(bytes);
            if age > PARTIAL_LIFE || kept > keep {
                durable::remove(&path).map_err(at(&path))?;
                removed += bytes;
            }
        }
        Ok(removed)
    }
}

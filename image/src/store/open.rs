//! Opening the store: take the lock, read the records, sweep away what a cut left behind.
//!
//! Reads before it removes: a record that cannot be read keeps nothing alive but is reported, never deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::leases::Leases;
use super::leases::MAX_PARTIAL_BYTES;
use super::record::{self, Image, MAX_RECORD_LEN};
use super::{Limits, MAX_STORED_IMAGES, Store, StoreError, at, durable, layer_names};
use crate::digest::Digest;

/// What opening found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Files of unfinished loads or removals that were removed.
    pub swept: u64,
    /// Their bytes.
    pub swept_bytes: u64,
    /// Images that cannot run because a layer or their configuration is missing; their records are kept.
    pub incomplete: Vec<Digest>,
    /// Records that cannot be read, with the reason.
    pub unreadable: Vec<(String, String)>,
}

impl Store {
    /// Opens the store in the directory `root`, making what is missing in it.
    ///
    /// # Errors
    /// `Locked`, `Io`.
    pub fn open(root: &Path, limits: Limits) -> Result<(Self, Recovery), StoreError> {
        let lock_path = root.join("lock");
        fs::create_dir_all(root).map_err(at(root))?;
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(at(&lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            if e == rustix::io::Errno::WOULDBLOCK {
                StoreError::Locked(root.to_owned())
            } else {
                at(&lock_path)(e.into())
            }
        })?;
        let policy = Arc::default();
        let mut store = Self {
            root: root.to_owned(),
            limits,
            images: BTreeMap::new(),
            next_sequence: 0,
            leases: Leases::default(),
            policy,
            _lock: lock,
        };
        let partial = store.maker().partial_dir();
        for dir in [store.layers_dir(), store.configs_dir(), store.records_dir(), store.staging_dir(), partial] {
            fs::create_dir_all(&dir).map_err(at(&dir))?;
        }
        durable::sync_dir(root).map_err(at(root))?;
        let mut recovery = Recovery::default();
        store.read_records(&mut recovery)?;
        store.settle_names();
        store.sweep(&mut recovery)?;
        store.trim_partials(MAX_PARTIAL_BYTES)?;
        for image in store.images.values() {
            let complete = image.layers.iter().all(|layer| {
                fs::metadata(store.layer_path(&layer.diff_id)).is_ok_and(|meta| meta.len() == layer.bytes)
            });
            if !complete || store.config_bytes(image).is_err() {
                recovery.incomplete.push(image.id);
            }
        }
        Ok((store, recovery))
    }

    fn read_records(&mut self, recovery: &mut Recovery) -> Result<(), StoreError> {
        let dir = self.records_dir();
        for name in names_in(&dir)? {
            let Some(name) = name.to_str().filter(|name| !name.starts_with(durable::TEMPORARY_PREFIX)) else {
                continue;
            };
            if self.images.len() >= MAX_STORED_IMAGES {
                return Err(StoreError::TooManyImages);
            }
            match read_record(&dir, name) {
                Ok(image) => {
                    self.next_sequence = self.next_sequence.max(image.sequence);
                    self.images.insert(image.id, image);
                }
                Err(why) => recovery.unreadable.push((name.to_owned(), why)),
            }
        }
        Ok(())
    }

    /// A cut between two records can leave one name with two images: the later one has it.
    fn settle_names(&mut self) {
        let mut order: Vec<(u64, Digest)> = self.images.values().map(|image| (image.sequence, image.id)).collect();
        order.sort_unstable();
        let mut taken = BTreeSet::new();
        for (_, id) in order.iter().rev() {
            if let Some(image) = self.images.get_mut(id) {
                image.names.retain(|name| taken.insert(name.clone()));
            }
        }
    }

    fn sweep(&self, recovery: &mut Recovery) -> Result<(), StoreError> {
        let staging = self.staging_dir();
        for name in names_in(&staging)? {
            let path = staging.join(name);
            recovery.swept += 1;
            recovery.swept_bytes += tree_bytes(&path);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(at(&path))?;
        }
        // Whatever an unreadable record names must not be swept away with it.
        let keep_all = !recovery.unreadable.is_empty();
        let layers: BTreeSet<OsString> = self
            .images
            .values()
            .flat_map(|image| &image.layers)
            .flat_map(|layer| <[String; 2]>::from(layer_names(&layer.diff_id)))
            .map(OsString::from)
            .collect();
        let configs: BTreeSet<OsString> =
            self.images.keys().map(|id| format!("{}{}", id.hex(), record::SUFFIX).into()).collect();
        for (dir, known) in
            [(self.layers_dir(), Some(&layers)), (self.configs_dir(), Some(&configs)), (self.records_dir(), None)]
        {
            for name in names_in(&dir)? {
                let temporary = name.to_str().is_some_and(|name| name.starts_with(durable::TEMPORARY_PREFIX));
                let unknown = known.is_some_and(|known| !known.contains(&name)) && !keep_all;
                if temporary || unknown {
                    let path = dir.join(&name);
                    recovery.swept += 1;
                    recovery.swept_bytes += tree_bytes(&path);
                    durable::remove(&path).map_err(at(&path))?;
                }
            }
            durable::sync_dir(&dir).map_err(at(&dir))?;
        }
        Ok(())
    }
}

pub(super) fn names_in(dir: &Path) -> Result<Vec<OsString>, StoreError> {
    let entries = fs::read_dir(dir).map_err(at(dir))?;
    let mut names: Vec<OsString> =
        entries.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<_>>().map_err(at(dir))?;
    names.sort();
    Ok(names)
}

/// Bytes of a file or of the files of one directory; for the report only.
fn tree_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return fs::metadata(path).map_or(0, |meta| meta.len());
    };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|meta| meta.len()).sum()
}

fn read_record(dir: &Path, name: &str) -> Result<Image, String> {
    let file = File::open(dir.join(name)).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_RECORD_LEN + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_RECORD_LEN {
        return Err(format!("it is larger than {MAX_RECORD_LEN} bytes"));
    }
    let image = record::decode(&bytes)?;
    if format!("{}{}", image.id.hex(), record::SUFFIX) != name {
        return Err("it has the name of another image".to_owned());
    }
    Ok(image)
}

//! Changing files so that a cut leaves the old state or the new one.
//!
//! ```text
//! replace:  data into free clusters | flush | their chain in both tables | flush | the one record that names them | flush |
//!           the old chain becomes free
//! rename:   the one record of the long name
//! remove:   the file's records | flush | its chain becomes free
//! ```
//! What a cut leaves over is clusters that nobody names; [`Fat::reclaim`] frees them before the next change.

use std::collections::BTreeSet;

use super::records::{REMOVED, check_name, free_short, long_record, own_record};
use super::{END, Entry, FILE_BYTES, FIRST, FREE, Fat, FatError, SECTOR_BYTES, split};
use crate::Device;

/// Directories below each other that are walked: `loader/entries` is two.
const DEPTH: usize = 4;
/// Files and directories that are walked: there are about ten.
const WALKED: usize = 512;

impl<D: Device> Fat<D> {
    /// Puts `size` bytes, which `fill` hands out in order, at `path`, in place of the file that is there or as a new one.
    ///
    /// # Errors
    /// If they do not fit or the source fails, nothing is changed. Those of the device.
    pub fn replace(
        &mut self,
        path: &str,
        size: u64,
        fill: &mut dyn FnMut(&mut [u8]) -> std::io::Result<()>,
    ) -> Result<(), FatError> {
        let (directory, name) = split(path);
        check_name(name)?;
        let size_field = u32::try_from(size).ok().filter(|size| u64::from(*size) <= FILE_BYTES);
        let size_field = size_field.ok_or(FatError::Full { needed: size, free: FILE_BYTES })?;
        let entries = self.list(directory)?;
        let present = entries.iter().find(|entry| entry.is_named(name)).cloned();
        let old = match &present {
            Some(entry) if entry.directory => return Err(FatError::Exists(path.to_owned())),
            Some(entry) => self.chain(entry.cluster, path)?,
            None => Vec::new(),
        };
        let chain = self.allocate(size)?;
        self.write_data(&chain, size, fill)?;
        self.device.flush()?;
        self.link(&chain)?;
        self.device.flush()?;
        let first = chain.first().copied().unwrap_or(0);
        match &present {
            Some(entry) => self.point(entry, first, size_field)?,
            None => self.insert(directory, name, &entries, first, size_field)?,
        }
        self.device.flush()?;
        self.unlink(&old)
    }

    /// Gives a file of a directory another name: one record of one sector.
    ///
    /// # Errors
    /// If there is no such file, the new name is taken or not one of ours, or the device fails.
    pub fn rename(&mut self, directory: &str, from: &str, to: &str) -> Result<(), FatError> {
        check_name(to)?;
        let entries = self.list(directory)?;
        let path = |name: &str| format!("{directory}/{name}");
        let entry = entries.iter().find(|entry| entry.is_named(from)).ok_or_else(|| FatError::Missing(path(from)))?;
        if entries.iter().any(|other| other.is_named(to)) {
            return Err(FatError::Exists(path(to)));
        }
        if let [long, _] = entry.records.as_slice() {
            let record = long_record(to, &entry.short);
            self.change_sector(*long, &record)?;
        } else {
            // Made by somebody else, in other records: the new name stands before the old one goes, and both mean the same file.
            self.insert(directory, to, &entries, entry.cluster, entry.size)?;
            self.device.flush()?;
            self.strike(&[entry])?;
        }
        self.device.flush()?;
        Ok(())
    }

    /// Removes files of a directory, in as few writes as they have sectors; names that are not there are no error.
    ///
    /// # Errors
    /// Those of the device, or damage.
    pub fn remove(&mut self, directory: &str, names: &[String]) -> Result<(), FatError> {
        let entries = self.list(directory)?;
        let gone: Vec<&Entry> =
            entries.iter().filter(|entry| names.iter().any(|name| entry.is_named(name)) && !entry.directory).collect();
        let (gone, left): (Vec<&Entry>, Vec<&Entry>) =
            (gone.clone(), entries.iter().filter(|entry| !gone.contains(entry)).collect());
        self.strike(&gone)?;
        self.device.flush()?;
        for entry in gone {
            // Two names on one chain are what a cut in firmware's rename leaves: the chain stays with the other name.
            if !left.iter().any(|other| other.cluster == entry.cluster) {
                let chain = self.chain(entry.cluster, &entry.name)?;
                self.unlink(&chain)?;
            }
        }
        Ok(())
    }

    /// Frees clusters that no file has, and makes the further tables say what the first says.
    ///
    /// # Errors
    /// Those of the device; a tree that is damaged, which is then left alone.
    pub fn reclaim(&mut self) -> Result<(), FatError> {
        let mut used = BTreeSet::new();
        let mut open = vec![String::new()];
        let mut walked = 0_usize;
        while let Some(directory) = open.pop() {
            for entry in self.list(&directory)? {
                walked = walked.saturating_add(1);
                let path =
                    if directory.is_empty() { entry.name.clone() } else { format!("{directory}/{}", entry.name) };
                used.extend(self.chain(entry.cluster, &path)?);
                if entry.directory && path.split('/').count() <= DEPTH {
                    open.push(path);
                }
                if walked > WALKED {
                    return Err(FatError::Damaged { path: directory, what: "more files than such a partition has" });
                }
            }
        }
        let lost: Vec<u16> = (FIRST..=self.geometry.clusters.saturating_add(1))
            .filter(|cluster| self.table.get(usize::from(*cluster)).is_some_and(|value| *value != FREE))
            .filter(|cluster| !used.contains(cluster))
            .collect();
        let sectors = if self.tables_agree { BTreeSet::new() } else { self.all_table_sectors() };
        self.set(&lost, |_| FREE, sectors)?;
        self.device.flush()?;
        self.tables_agree = true;
        Ok(())
    }

    /// Free clusters for so many bytes, the lowest first.
    fn allocate(&self, size: u64) -> Result<Vec<u16>, FatError> {
        let needed = usize::try_from(size.div_ceil(self.geometry.cluster_bytes)).unwrap_or(usize::MAX);
        let last = self.geometry.clusters.saturating_add(1);
        let is_free = |cluster: &u16| self.table.get(usize::from(*cluster)) == Some(&FREE);
        let chain: Vec<u16> = (FIRST..=last).filter(is_free).take(needed).collect();
        if chain.len() == needed { Ok(chain) } else { Err(FatError::Full { needed: size, free: self.free_bytes() }) }
    }

    fn write_data(
        &mut self,
        chain: &[u16],
        size: u64,
        fill: &mut dyn FnMut(&mut [u8]) -> std::io::Result<()>,
    ) -> Result<(), FatError> {
        let bytes = usize::try_from(self.geometry.cluster_bytes).unwrap_or(0);
        let mut left = usize::try_from(size).unwrap_or(0);
        let mut buffer = vec![0_u8; bytes];
        for cluster in chain {
            let part = left.min(bytes);
            let (used, rest) = buffer.split_at_mut(part);
            fill(used)?;
            rest.fill(0);
            let offset = self.geometry.cluster_offset(*cluster).unwrap_or(0);
            self.device.write_at(&buffer, offset)?;
            left = left.saturating_sub(part);
        }
        Ok(())
    }

    fn link(&mut self, chain: &[u16]) -> Result<(), FatError> {
        let next: std::collections::BTreeMap<u16, u16> =
            chain.iter().copied().zip(chain.iter().copied().skip(1)).collect();
        self.set(chain, |cluster| next.get(&cluster).copied().unwrap_or(0xffff), BTreeSet::new())
    }

    fn unlink(&mut self, chain: &[u16]) -> Result<(), FatError> {
        self.set(chain, |_| FREE, BTreeSet::new())?;
        self.device.flush()?;
        Ok(())
    }

    /// Sets values of clusters in memory and writes the sectors of the tables that hold them, and `sectors` beside.
    fn set(
        &mut self,
        clusters: &[u16],
        value: impl Fn(u16) -> u16,
        mut sectors: BTreeSet<usize>,
    ) -> Result<(), FatError> {
        for cluster in clusters {
            if let Some(target) = self.table.get_mut(usize::from(*cluster)) {
                *target = value(*cluster);
                sectors.insert(usize::from(*cluster) / 256);
            }
        }
        for index in sectors {
            let values = self.table.iter().copied().skip(index.saturating_mul(256)).take(256);
            let mut bytes: Vec<u8> = values.flat_map(u16::to_le_bytes).collect();
            bytes.resize(512, 0);
            let inside = u64::try_from(index).unwrap_or(0).saturating_mul(SECTOR_BYTES);
            for copy in 0..self.geometry.tables {
                let start = self.geometry.table_bytes.saturating_mul(copy).saturating_add(self.geometry.tables_offset);
                self.device.write_at(&bytes, start.saturating_add(inside))?;
            }
        }
        Ok(())
    }

    fn all_table_sectors(&self) -> BTreeSet<usize> {
        (0..self.table.len().div_ceil(256)).collect()
    }

    /// Makes a file's own record name another chain and size.
    fn point(&mut self, entry: &Entry, cluster: u16, size: u32) -> Result<(), FatError> {
        let Some(place) = entry.own_record() else { return Err(FatError::Missing(entry.name.clone())) };
        let mut fields = cluster.to_le_bytes().to_vec();
        fields.extend_from_slice(&size.to_le_bytes());
        self.change_sector(place.saturating_add(26), &fields)
    }

    /// Writes one sector anew with these bytes in it.
    fn change_sector(&mut self, place: u64, bytes: &[u8]) -> Result<(), FatError> {
        self.change(sector_of(place), &[(place % SECTOR_BYTES, bytes)])
    }

    /// Reads a sector, puts bytes at places inside, writes it once.
    fn change(&mut self, sector: u64, changes: &[(u64, &[u8])]) -> Result<(), FatError> {
        let mut content = [0_u8; 512];
        self.device.read_at(&mut content, sector)?;
        for (inside, bytes) in changes {
            let start = usize::try_from(*inside).unwrap_or(usize::MAX);
            let target = content.get_mut(start..).and_then(|rest| rest.get_mut(..bytes.len()));
            let damaged = || FatError::Damaged { path: String::new(), what: "a record across two sectors" };
            target.ok_or_else(damaged)?.copy_from_slice(bytes);
        }
        self.device.write_at(&content, sector)?;
        Ok(())
    }

    /// Writes a name's two records into one sector.
    fn insert(
        &mut self,
        directory: &str,
        name: &str,
        taken: &[Entry],
        cluster: u16,
        size: u32,
    ) -> Result<(), FatError> {
        let full = || FatError::DirectoryFull(directory.to_owned());
        let short = free_short(name, taken).ok_or_else(full)?;
        let records = [long_record(name, &short), own_record(&short, cluster, size)].concat();
        // Once a record says that all behind it are free, all of them must say so: what lies there was never written.
        let mut ended = false;
        for sector in self.directory_sectors(directory)? {
            let mut content = [0_u8; 512];
            self.device.read_at(&mut content, sector)?;
            let firsts: Vec<u8> = content.chunks_exact(32).filter_map(|record| record.first().copied()).collect();
            if ended && firsts.first() != Some(&0) {
                return Err(FatError::Damaged { path: directory.to_owned(), what: "records behind its end" });
            }
            let is_free = |first: Option<&u8>| matches!(first, Some(&0 | &REMOVED));
            let place = (0..15_usize).find(|at| is_free(firsts.get(*at)) && is_free(firsts.get(at.saturating_add(1))));
            if let Some(at) = place {
                let inside = u64::try_from(at.saturating_mul(32)).unwrap_or(0);
                return self.change(sector, &[(inside, &records)]);
            }
            match firsts.iter().position(|first| *first == 0) {
                None => {}
                // The end is this sector's last record, too short for two: it becomes a removed one, and the next sector goes on.
                Some(15) => {
                    self.change(sector, &[(15 * 32, &[REMOVED])])?;
                    self.device.flush()?;
                    ended = true;
                }
                Some(_) => {
                    return Err(FatError::Damaged { path: directory.to_owned(), what: "records behind its end" });
                }
            }
        }
        Err(full())
    }

    /// Marks the records of entries as removed, each sector in one write.
    fn strike(&mut self, entries: &[&Entry]) -> Result<(), FatError> {
        let places: Vec<u64> = entries.iter().flat_map(|entry| entry.records.iter().copied()).collect();
        let sectors: BTreeSet<u64> = places.iter().copied().map(sector_of).collect();
        for sector in sectors {
            let inside = places.iter().filter(|place| sector_of(**place) == sector);
            let changes: Vec<(u64, &[u8])> = inside.map(|place| (place % SECTOR_BYTES, [REMOVED].as_slice())).collect();
            self.change(sector, &changes)?;
        }
        Ok(())
    }
}

/// Where the sector of a place begins.
fn sector_of(place: u64) -> u64 {
    place & !(SECTOR_BYTES.wrapping_sub(1))
}

/// The value that ends a chain is above this one.
const _: () = assert!(END < 0xffff);

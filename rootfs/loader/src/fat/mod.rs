//! FAT16 as the image build makes it (Microsoft's specification of 2000): reading files, and changing them so that a cut at any instant
//! leaves the old state or the new one.
//!
//! Own code and no mounted file system, because the order of writes is the point: a kernel's vfat writes its buffers in whatever order it
//! likes between two flushes. The first copy of the allocation table counts, as it does for firmware.

mod records;
mod write;

use std::io;

use crate::Device;
pub use records::Entry;
use records::{RECORD_BYTES, parse};

/// The only sector size that images are made for.
pub const SECTOR_BYTES: u64 = 512;
/// Records of a directory that are read: loader/entries has one cluster of 4 KiB.
const DIRECTORY_RECORDS: usize = 4096;
/// Largest file: a kernel image's partition has 80 MiB.
pub const FILE_BYTES: u64 = 80 << 20;
/// Clusters of a FAT16: fewer is FAT12, more is FAT32.
const CLUSTERS: std::ops::Range<u64> = 4085..65_525;
/// From here on a value of the table ends a chain.
const END: u16 = 0xfff8;
/// A cluster that is free.
const FREE: u16 = 0;
/// The number of the first cluster.
const FIRST: u16 = 2;

/// Why the file system cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FatError {
    /// The device.
    #[error("the boot partition: {0}")]
    Io(#[from] io::Error),
    /// Not one that the image build makes.
    #[error(
        "the boot partition holds no FAT16 file system as the image has it: {0}; write the image to the disk again"
    )]
    Geometry(&'static str),
    /// A chain or a directory that contradicts itself.
    #[error("the boot partition is damaged at {path}: {what}")]
    Damaged {
        /// Which file or directory.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// No such file.
    #[error("the boot partition has no {0}")]
    Missing(String),
    /// There is one already.
    #[error("the boot partition has a {0} already")]
    Exists(String),
    /// Longer than one record holds, or with other characters than names of ours.
    #[error("{0:?} is no name for a file of the boot partition: 1 to 13 letters, digits, '.', '+', '-'")]
    Name(String),
    /// Too little room.
    #[error("{needed} bytes do not fit the boot partition, {free} are free; nothing was changed")]
    Full {
        /// Wanted.
        needed: u64,
        /// There.
        free: u64,
    },
    /// The directory has no two records in one sector left.
    #[error("directory {0} of the boot partition is full")]
    DirectoryFull(String),
}

/// Where things lie, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    cluster_bytes: u64,
    tables_offset: u64,
    table_bytes: u64,
    tables: u64,
    root_offset: u64,
    root_records: usize,
    data_offset: u64,
    clusters: u16,
}

impl Geometry {
    fn parse(sector: &[u8]) -> Result<Self, FatError> {
        let word =
            |at: usize| sector.get(at..).and_then(|rest| rest.first_chunk::<2>()).map(|raw| u16::from_le_bytes(*raw));
        let long =
            |at: usize| sector.get(at..).and_then(|rest| rest.first_chunk::<4>()).map(|raw| u32::from_le_bytes(*raw));
        let byte = |at: usize| u64::from(sector.get(at).copied().unwrap_or(0));
        let field = |at: usize| u64::from(word(at).unwrap_or(0));
        let wrong = FatError::Geometry;
        if word(510) != Some(0xaa55) || field(11) != SECTOR_BYTES {
            return Err(wrong("its first sector is not one of FAT with 512-byte sectors"));
        }
        let (per_cluster, reserved, tables, root_records, table_sectors) =
            (byte(13), field(14), byte(16), field(17), field(22));
        let small = field(19);
        let sectors = if small == 0 { u64::from(long(32).unwrap_or(0)) } else { small };
        if !per_cluster.is_power_of_two() || reserved == 0 || !(1..=2).contains(&tables) || table_sectors == 0 {
            return Err(wrong("its clusters or tables are not those of FAT16"));
        }
        if root_records == 0 || !root_records.is_multiple_of(16) {
            return Err(wrong("its root directory is not whole sectors"));
        }
        // None of these can overflow: each factor has at most 32 bits.
        let times = |left: u64, right: u64| left.saturating_mul(right);
        let tables_offset = times(reserved, SECTOR_BYTES);
        let table_bytes = times(table_sectors, SECTOR_BYTES);
        let root_offset = tables_offset.saturating_add(times(table_bytes, tables));
        let data_offset = root_offset.saturating_add(times(root_records, 32));
        let cluster_bytes = times(per_cluster, SECTOR_BYTES);
        let data_bytes = times(sectors, SECTOR_BYTES).saturating_sub(data_offset);
        let clusters = data_bytes.checked_div(cluster_bytes).unwrap_or(0);
        if !CLUSTERS.contains(&clusters) || times(clusters.saturating_add(2), 2) > table_bytes {
            return Err(wrong("its number of clusters is not one of FAT16"));
        }
        let clusters = u16::try_from(clusters).map_err(|_| wrong("it has too many clusters"))?;
        let root_records = usize::try_from(root_records).map_err(|_| wrong("its root directory is too large"))?;
        Ok(Self { cluster_bytes, tables_offset, table_bytes, tables, root_offset, root_records, data_offset, clusters })
    }

    /// Where a cluster lies; `None` if there is no such one.
    fn cluster_offset(&self, cluster: u16) -> Option<u64> {
        let index = cluster.checked_sub(FIRST).filter(|index| *index < self.clusters)?;
        self.data_offset.checked_add(u64::from(index).checked_mul(self.cluster_bytes)?)
    }
}

/// An open file system.
#[derive(Debug)]
pub struct Fat<D> {
    device: D,
    geometry: Geometry,
    /// The first table, as it is on the device.
    table: Vec<u16>,
    /// Whether the further tables say the same.
    tables_agree: bool,
}

impl<D: Device> Fat<D> {
    /// Reads the first sector and the tables.
    ///
    /// # Errors
    /// Those of the device, or that it holds no FAT16.
    pub fn open(device: D) -> Result<Self, FatError> {
        let mut sector = [0_u8; 512];
        device.read_at(&mut sector, 0)?;
        let geometry = Geometry::parse(&sector)?;
        let used = u64::from(geometry.clusters).saturating_add(2).saturating_mul(2);
        let mut raw = vec![0_u8; usize::try_from(used).unwrap_or(0)];
        device.read_at(&mut raw, geometry.tables_offset)?;
        let table = raw.chunks_exact(2).filter_map(|pair| pair.first_chunk::<2>().map(|raw| u16::from_le_bytes(*raw)));
        let table = table.collect();
        let mut tables_agree = true;
        if geometry.tables > 1 {
            let mut second = vec![0_u8; raw.len()];
            device.read_at(&mut second, geometry.tables_offset.saturating_add(geometry.table_bytes))?;
            tables_agree = second == raw;
        }
        Ok(Self { device, geometry, table, tables_agree })
    }

    /// The device, when the file system is no longer needed.
    pub fn into_device(self) -> D {
        self.device
    }

    /// Bytes of a cluster: what a file's size is rounded up to.
    #[must_use]
    pub fn cluster_bytes(&self) -> u64 {
        self.geometry.cluster_bytes
    }

    /// Bytes that no file has.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        let free = self.table.iter().skip(FIRST.into()).filter(|value| **value == FREE).count();
        u64::try_from(free).unwrap_or(0).saturating_mul(self.geometry.cluster_bytes)
    }

    /// The clusters of a chain.
    fn chain(&self, first: u16, path: &str) -> Result<Vec<u16>, FatError> {
        let damaged = |what| FatError::Damaged { path: path.to_owned(), what };
        let mut chain = Vec::new();
        let mut cluster = first;
        while cluster != 0 && cluster < END {
            self.geometry.cluster_offset(cluster).ok_or_else(|| damaged("a cluster that does not exist"))?;
            if chain.len() > usize::from(self.geometry.clusters) {
                return Err(damaged("a chain that never ends"));
            }
            chain.push(cluster);
            cluster = self.table.get(usize::from(cluster)).copied().unwrap_or(FREE);
            if cluster == FREE {
                return Err(damaged("a chain that ends in a free cluster"));
            }
        }
        Ok(chain)
    }

    /// The places of a directory's sectors, in order; the root for an empty path.
    fn directory_sectors(&self, path: &str) -> Result<Vec<u64>, FatError> {
        let sectors = |offset: u64, bytes: u64| {
            (0..bytes / SECTOR_BYTES).map(move |index| offset.saturating_add(index.saturating_mul(SECTOR_BYTES)))
        };
        let root_bytes = u64::try_from(self.geometry.root_records).unwrap_or(0).saturating_mul(32);
        let mut places: Vec<u64> = sectors(self.geometry.root_offset, root_bytes).collect();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let entry = self.entries_in(&places, path)?.into_iter().find(|entry| entry.is_named(name));
            let entry = entry.filter(|entry| entry.directory).ok_or_else(|| FatError::Missing(path.to_owned()))?;
            let chain = self.chain(entry.cluster, path)?;
            places = chain
                .into_iter()
                .filter_map(|cluster| self.geometry.cluster_offset(cluster))
                .flat_map(|offset| sectors(offset, self.geometry.cluster_bytes))
                .collect();
        }
        Ok(places)
    }

    fn entries_in(&self, sectors: &[u64], path: &str) -> Result<Vec<Entry>, FatError> {
        let records = sectors.len().saturating_mul(16);
        if records > DIRECTORY_RECORDS {
            return Err(FatError::Damaged { path: path.to_owned(), what: "a directory of more than 4096 records" });
        }
        let mut raw = Vec::with_capacity(records.saturating_mul(RECORD_BYTES));
        for place in sectors {
            let mut sector = [0_u8; 512];
            self.device.read_at(&mut sector, *place)?;
            raw.extend_from_slice(&sector);
        }
        Ok(parse(&raw, sectors))
    }

    /// The files and directories of a directory, in their order.
    ///
    /// # Errors
    /// If there is none, it is damaged, or the device fails.
    pub fn list(&self, directory: &str) -> Result<Vec<Entry>, FatError> {
        let sectors = self.directory_sectors(directory)?;
        self.entries_in(&sectors, directory)
    }

    /// A file by its path.
    ///
    /// # Errors
    /// If there is none, it is damaged, or the device fails.
    pub fn find(&self, path: &str) -> Result<Entry, FatError> {
        let (directory, name) = split(path);
        let found = self.list(directory)?.into_iter().find(|entry| entry.is_named(name) && !entry.directory);
        found.ok_or_else(|| FatError::Missing(path.to_owned()))
    }

    /// Hands a file's bytes to `take`, a cluster at a time.
    ///
    /// # Errors
    /// If its chain does not have its size, or the device fails.
    pub fn read_to(&self, entry: &Entry, take: &mut dyn FnMut(&[u8])) -> Result<(), FatError> {
        let mut left = usize::try_from(entry.size).unwrap_or(usize::MAX);
        let bytes = usize::try_from(self.geometry.cluster_bytes).unwrap_or(0);
        let mut buffer = vec![0_u8; bytes];
        for cluster in self.chain(entry.cluster, &entry.name)? {
            if left == 0 {
                break;
            }
            let part = left.min(bytes);
            let offset = self.geometry.cluster_offset(cluster).unwrap_or(0);
            let Some(target) = buffer.get_mut(..part) else { break };
            self.device.read_at(target, offset)?;
            take(target);
            left = left.saturating_sub(part);
        }
        if left == 0 {
            Ok(())
        } else {
            Err(FatError::Damaged { path: entry.name.clone(), what: "fewer clusters than its size needs" })
        }
    }

    /// Where a file's clusters lie on the device, in order.
    ///
    /// # Errors
    /// If its chain is damaged.
    pub fn places(&self, entry: &Entry) -> Result<Vec<u64>, FatError> {
        let chain = self.chain(entry.cluster, &entry.name)?;
        Ok(chain.into_iter().filter_map(|cluster| self.geometry.cluster_offset(cluster)).collect())
    }

    /// A small file's bytes.
    ///
    /// # Errors
    /// As [`Fat::read_to`], and if it has more than `most` bytes.
    pub fn read(&self, entry: &Entry, most: u32) -> Result<Vec<u8>, FatError> {
        if entry.size > most {
            return Err(FatError::Damaged { path: entry.name.clone(), what: "larger than such a file is" });
        }
        let mut bytes = Vec::new();
        self.read_to(entry, &mut |part| bytes.extend_from_slice(part))?;
        Ok(bytes)
    }
}

/// Directory and name of a path.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A small but true first sector, for damage.
    fn first_sector() -> Vec<u8> {
        let mut sector = vec![0_u8; 512];
        for (at, bytes) in [
            (11, &[0, 2][..]),
            (13, &[8]),
            (14, &[1, 0]),
            (16, &[2]),
            (17, &[0, 2]),
            (19, &[0, 0xa0]),
            (22, &[20, 0]),
            (510, &[0x55, 0xaa]),
        ] {
            sector[at..at + bytes.len()].copy_from_slice(bytes);
        }
        sector
    }

    #[test]
    fn the_geometry_of_a_small_partition() {
        let geometry = Geometry::parse(&first_sector()).unwrap();
        assert_eq!((geometry.cluster_bytes, geometry.tables_offset, geometry.root_offset), (4096, 512, 512 + 40 * 512));
        assert_eq!(geometry.cluster_offset(1), None);
        assert_eq!(geometry.cluster_offset(2), Some(geometry.data_offset));
    }

    proptest! {
        #[test]
        fn a_damaged_partition_is_read_or_refused_without_a_panic(
            hits in proptest::collection::vec((0usize..40_960, any::<u8>()), 0..40)
        ) {
            let mut image = first_sector();
            image.resize(1 << 20, 0);
            for (at, byte) in hits {
                image[at] = byte;
            }
            if let Ok(fat) = Fat::open(image) {
                for entry in fat.list("").unwrap_or_default() {
                    let _ = fat.read(&entry, 1 << 16);
                }
                let _ = fat.list("loader/entries");
            }
        }
    }
}

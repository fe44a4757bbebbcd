//! The log that QEMU's `blklogwrites` driver leaves: the format of the kernel's dm-log-writes.
//!
//! A superblock, then for each request a sector with its header, and for writes the data behind it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
/// A log of an update has some ten thousand entries.
const ENTRIES: u64 = 4_000_000;
/// Longest single write.
const WRITE_BYTES: u64 = 64 << 20;

/// One request that reached the disk, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Bytes at a place of the disk; where they lie in the log.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Where in the log.
        at: u64,
        /// On stable storage at once.
        through: bool,
    },
    /// Zeros, or nothing that anybody may rely on.
    Discard {
        /// First byte on the disk.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// All before is on stable storage.
    Flush,
}

/// Where the bytes of writes lie.
#[derive(Debug)]
enum Data {
    File(File),
    Memory(Vec<u8>),
}

/// A log.
#[derive(Debug)]
pub struct Log {
    data: Data,
    /// What happened.
    pub requests: Vec<Request>,
}

impl Log {
    /// Reads the headers of a log.
    ///
    /// # Errors
    /// If it is none, or ends early.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("no log {}", path.display()))?;
        let mut head = [0_u8; 512];
        file.read_exact_at(&mut head, 0).context("the log has no superblock")?;
        let long = |bytes: &[u8], at: usize| -> u64 {
            bytes.get(at..at + 8).and_then(|raw| raw.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        ensure!(long(&head, 0) == MAGIC && long(&head, 8) == 1, "{} is no log of writes", path.display());
        let (count, sector) = (long(&head, 16), long(&head, 24) & 0xffff_ffff);
        ensure!(
            (512..=4096).contains(&sector) && count <= ENTRIES,
            "a log of {count} entries with sectors of {sector}"
        );
        let mut requests = Vec::new();
        let mut at = sector;
        for number in 0..count {
            let mut entry = [0_u8; 32];
            file.read_exact_at(&mut entry, at)
                .with_context(|| format!("the log ends before entry {number} of {count}"))?;
            let (offset, bytes, flags) = (long(&entry, 0) * sector, long(&entry, 8) * sector, long(&entry, 16));
            at += sector;
            if flags & DISCARD != 0 {
                requests.push(Request::Discard { offset, bytes });
            } else if bytes > 0 {
                ensure!(bytes <= WRITE_BYTES, "entry {number} writes {bytes} bytes at once");
                // A flush that comes with a write comes before it.
                if flags & FLUSH != 0 {
                    requests.push(Request::Flush);
                }
                requests.push(Request::Write { offset, bytes, at, through: flags & FUA != 0 });
                at += bytes;
            } else if flags & FLUSH != 0 {
                requests.push(Request::Flush);
            }
        }
        Ok(Self { data: Data::File(file), requests })
    }

    /// One that was made here: requests whose places are in `data`.
    #[must_use]
    pub fn in_memory(requests: Vec<Request>, data: Vec<u8>) -> Self {
        Self { data: Data::Memory(data), requests }
    }

    /// The bytes of a write.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn data(&self, at: u64, bytes: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(bytes)?;
        match &self.data {
            Data::File(file) => {
                let mut data = vec![0_u8; length];
                file.read_exact_at(&mut data, at).context("the log cannot be read")?;
                Ok(data)
            }
            Data::Memory(all) => {
                let start = usize::try_from(at)?;
                Ok(all.get(start..start + length).context("the log ends early")?.to_vec())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_in_order_with_their_data() {
        let mut bytes = Vec::new();
        let mut sector = |fields: &[u64]| {
            let mut content: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
            content.resize(512, 0);
            bytes.extend(content);
        };
        sector(&[MAGIC, 1, 4, 512]);
        sector(&[10, 1, 0, 0]);
        sector(&[7; 64]);
        sector(&[0, 0, FLUSH, 0]);
        sector(&[20, 1, FUA | FLUSH, 0]);
        sector(&[8; 64]);
        sector(&[30, 2, DISCARD, 0]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, bytes).unwrap();
        let log = Log::open(&path).unwrap();
        let write = |offset, at, through| Request::Write { offset, bytes: 512, at, through };
        assert_eq!(
            log.requests,
            [
                write(5120, 1024, false),
                Request::Flush,
                Request::Flush,
                write(10_240, 2560, true),
                Request::Discard { offset: 15_360, bytes: 1024 }
            ]
        );
        assert_eq!(log.data(1024, 8).unwrap(), 7_u64.to_le_bytes());
        std::fs::write(&path, [0; 600]).unwrap();
        assert!(Log::open(&path).is_err());
    }
}

//! A boot partition in memory for the tests: made here, written through a device that remembers every write and flush.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use byre_loader::Device;

/// What reached the device.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Write(u64, Vec<u8>),
    Flush,
}

/// Sectors over a base that is shared.
#[derive(Debug, Clone)]
pub(crate) struct Overlay {
    pub(crate) base: Arc<Vec<u8>>,
    pub(crate) changed: BTreeMap<u64, [u8; 512]>,
    pub(crate) log: Vec<Op>,
}

impl Overlay {
    pub(crate) fn new(base: Vec<u8>) -> Self {
        Self { base: Arc::new(base), changed: BTreeMap::new(), log: Vec::new() }
    }

    /// Writes whole sectors without remembering it.
    pub(crate) fn put(&mut self, bytes: &[u8], offset: u64) {
        assert_eq!(offset % 512, 0);
        for (sector, content) in (offset / 512..).zip(bytes.chunks_exact(512)) {
            self.changed.insert(sector, content.try_into().unwrap());
        }
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.base.to_vec();
        for (sector, content) in &self.changed {
            let at = usize::try_from(sector * 512).unwrap();
            bytes[at..at + 512].copy_from_slice(content);
        }
        bytes
    }
}

impl Device for Overlay {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.base.read_at(buffer, offset)?;
        let last = (offset + buffer.len() as u64).div_ceil(512);
        for (sector, content) in self.changed.range(offset / 512..last) {
            for (at, byte) in (sector * 512..).zip(content) {
                if let Some(inside) = at.checked_sub(offset)
                    && let Some(target) = buffer.get_mut(usize::try_from(inside).unwrap())
                {
                    *target = *byte;
                }
            }
        }
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.put(bytes, offset);
        self.log.push(Op::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.push(Op::Flush);
        Ok(())
    }
}

const SECTORS: u32 = 40_960;
const TABLE_SECTORS: u16 = 20;

/// An empty FAT16 of 20 MiB with 4 KiB clusters and the directories of the image.
pub(crate) fn formatted() -> Vec<u8> {
    let mut image = vec![0_u8; SECTORS as usize * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xeb, 0x3c, 0x90]);
    put(3, b"BYRETEST");
    put(11, &512_u16.to_le_bytes());
    put(13, &[8]);
    put(14, &1_u16.to_le_bytes());
    put(16, &[2]);
    put(17, &512_u16.to_le_bytes());
    put(19, &u16::try_from(SECTORS).unwrap().to_le_bytes());
    put(21, &[0xf8]);
    put(22, &TABLE_SECTORS.to_le_bytes());
    put(24, &[32, 0, 64, 0]);
    put(36, &[0x80, 0, 0x29, 1, 2, 3, 4]);
    put(43, b"NO NAME    FAT16   ");
    put(510, &[0x55, 0xaa]);
    let (first, second) = (512, 512 + usize::from(TABLE_SECTORS) * 512);
    let root = second + usize::from(TABLE_SECTORS) * 512;
    let data = root + 512 * 32;
    // loader (2), byre (3), loader/entries (4): each one cluster.
    for table in [first, second] {
        put(table, &[0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }
    let record = |name: &[u8; 11], cluster: u16| -> Vec<u8> {
        let mut record = vec![0_u8; 32];
        record[..11].copy_from_slice(name);
        record[11] = 0x10;
        record[24] = 0x21;
        record[26..28].copy_from_slice(&cluster.to_le_bytes());
        record
    };
    put(root, &[record(b"LOADER     ", 2), record(b"BYRE       ", 3)].concat());
    let dots = |own, parent| [record(b".          ", own), record(b"..         ", parent)].concat();
    put(data, &[dots(2, 0), record(b"ENTRIES    ", 4)].concat());
    put(data + 4096, &dots(3, 0));
    put(data + 8192, &dots(4, 2));
    image
}

//! A disk as a base that is shared and the blocks that were changed: thousands of states of it take little memory, and comparing content
//! takes no reading of what did not change.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result};

use super::BLOCK;

/// A block's content and its fingerprint.
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    print: u64,
}

/// The fingerprint of a block's content.
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// The disk as it was before the recording.
#[derive(Debug)]
pub struct Base {
    file: File,
    prints: RefCell<HashMap<u64, u64>>,
    /// Bytes of the disk.
    pub bytes: u64,
}

impl Base {
    /// Opens an image.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(path: &Path) -> Result<Rc<Self>> {
        let file = File::open(path).with_context(|| format!("no disk {}", path.display()))?;
        let bytes = file.metadata()?.len();
        Ok(Rc::new(Self { file, prints: RefCell::default(), bytes }))
    }

    fn print(&self, block: u64) -> io::Result<u64> {
        if let Some(print) = self.prints.borrow().get(&block) {
            return Ok(*print);
        }
        let mut bytes = vec![0_u8; BLOCK as usize];
        self.file.read_exact_at(&mut bytes, block * BLOCK)?;
        let print = fingerprint(&bytes);
        self.prints.borrow_mut().insert(block, print);
        Ok(print)
    }
}

/// One state of the disk. A copy shares all that it does not change.
#[derive(Debug, Clone)]
pub struct Disk {
    base: Rc<Base>,
    changed: BTreeMap<u64, Rc<Block>>,
}

impl Disk {
    /// The base unchanged.
    #[must_use]
    pub fn new(base: &Rc<Base>) -> Self {
        Self { base: Rc::clone(base), changed: BTreeMap::new() }
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.base.bytes
    }

    /// Writes.
    ///
    /// # Errors
    /// If the base cannot be read.
    pub fn write(&mut self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let (block, inside) = (offset / BLOCK, (offset % BLOCK) as usize);
            let part = bytes.len().min(BLOCK as usize - inside);
            let mut content = vec![0_u8; BLOCK as usize];
            if part < content.len() {
                self.read(&mut content, block * BLOCK)?;
            }
            content[inside..inside + part].copy_from_slice(&bytes[..part]);
            let print = fingerprint(&content);
            self.changed.insert(block, Rc::new(Block { bytes: content, print }));
            bytes = &bytes[part..];
            offset += part as u64;
        }
        Ok(())
    }

    /// Reads.
    ///
    /// # Errors
    /// If the base cannot be read, or the range is not inside.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.base.file.read_exact_at(buffer, offset)?;
        let end = offset + buffer.len() as u64;
        for (block, content) in self.changed.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let start = block * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            let source = &content.bytes[(from - start) as usize..(to - start) as usize];
            buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        Ok(())
    }

    /// Fingerprints of `count` blocks from `block`.
    ///
    /// # Errors
    /// If the base cannot be read.
    pub fn prints(&self, block: u64, count: u64) -> io::Result<Vec<u64>> {
        (block..block + count)
            .map(|block| self.changed.get(&block).map_or_else(|| self.base.print(block), |content| Ok(content.print)))
            .collect()
    }

    /// A fingerprint of what was changed among `count` blocks from `block`: equal ones hold the same.
    #[must_use]
    pub fn changes(&self, block: u64, count: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (block, content) in self.changed.range(block..block + count) {
            (block, content.print).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Writes the whole state into a new sparse file.
    ///
    /// # Errors
    /// Of the file system.
    pub fn save(&self, base: &Path, to: &Path) -> Result<()> {
        let copied = std::process::Command::new("cp").arg("--sparse=always").arg(base).arg(to).status()?;
        anyhow::ensure!(copied.success(), "{} cannot be copied", base.display());
        let file = File::options().write(true).open(to)?;
        for (block, content) in &self.changed {
            file.write_all_at(&content.bytes, block * BLOCK)?;
        }
        Ok(())
    }
}

impl byre_slots::gpt::ReadAt for Disk {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buffer, offset)
    }
}

/// A partition of a state, for the reader of the boot partition.
#[derive(Debug)]
pub struct Part<'a> {
    /// The state.
    pub disk: &'a Disk,
    /// First byte.
    pub offset: u64,
}

impl byre_loader::Device for Part<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read(buffer, self.offset + offset)
    }

    fn write_at(&mut self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_has_its_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base");
        std::fs::write(&path, vec![1_u8; 4 * BLOCK as usize]).unwrap();
        let base = Base::open(&path).unwrap();
        let before = Disk::new(&base);
        let mut after = before.clone();
        after.write(&[2; 5000], 3000).unwrap();
        let mut bytes = vec![0_u8; 9000];
        after.read(&mut bytes, 1000).unwrap();
        assert!(bytes[..2000].iter().all(|byte| *byte == 1) && bytes[2000..7000].iter().all(|byte| *byte == 2));
        assert!(bytes[7000..].iter().all(|byte| *byte == 1));
        let (old, new) = (before.prints(0, 4).unwrap(), after.prints(0, 4).unwrap());
        assert!(old[0] != new[0] && old[1] != new[1] && old[2..] == new[2..]);
        let saved = folder.path().join("saved");
        after.save(&path, &saved).unwrap();
        let whole = std::fs::read(&saved).unwrap();
        assert_eq!(fingerprint(&whole[..4096]), new[0]);
    }
}

//! Checks an erofs file before a kernel may mount it. Meant for a second process than the one that wrote the file.
//!
//! The writer reads hostile archives; if one took it over, what it wrote is hostile too, and the kernel's erofs code was
//! not made for that. So nothing of the writer is reused but the constants, and only the exact subset of the format that
//! it writes is accepted: every offset inside the file, every name plain and sorted, every directory reached once, no
//! attribute that could fool overlayfs. Reads by offset, with bounded memory; nothing is changed.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::erofs::path::MAX_DEPTH;
use crate::erofs::xattr::{ENTRY_LEN, HEADER_LEN, area_len};
use crate::erofs::*;

const MAX_NANOSECONDS: u32 = 1_000_000_000;

/// Why a file must not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It cannot be read.
    #[error("reading the layer file: {0}")]
    Io(#[from] io::Error),
    /// The superblock is not what the writer writes.
    #[error("superblock: {0}")]
    Superblock(&'static str),
    /// An inode lies about itself.
    #[error("inode {slot}: {what}")]
    Inode {
        /// Its number.
        slot: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// More than a layer may have.
    #[error("more than {MAX_ENTRIES} entries")]
    TooManyEntries,
}

/// What a checked file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Names, without `.` and `..`.
    pub entries: u64,
    /// Directories, the root included.
    pub directories: u64,
}

/// Checks all of `file`.
///
/// # Errors
/// [`CheckError`]; the file is then not to be used.
pub fn check(file: &File) -> Result<Checked, CheckError> {
    let len = file.metadata()?.len();
    let mut checker = Checker { file, len, seen: HashSet::new(), pending: Vec::new(), entries: 0 };
    checker.superblock()?;
    let root = u64::from(ROOT_SLOT);
    if checker.inode(root)?.kind != FileType::Directory {
        return Err(CheckError::Superblock("the root is not a directory"));
    }
    checker.enter(root, root, 0)?;
    while let Some(directory) = checker.pending.pop() {
        checker.directory(&directory)?;
    }
    Ok(Checked { entries: checker.entries, directories: checker.seen.len() as u64 })
}

struct Checker<'f> {
    file: &'f File,
    len: u64,
    /// Directories found so far. One found twice would be a cycle or have two parents.
    seen: HashSet<u64>,
    pending: Vec<Pending>,
    entries: u64,
}

struct Pending {
    slot: u64,
    parent: u64,
    depth: usize,
}

/// An inode whose offsets are all inside the file.
struct CheckedInode {
    kind: FileType,
    size: u64,
    /// Where the data in whole blocks starts, and where the inline rest is.
    blocks_at: u64,
    inline_at: Option<u64>,
}

fn u16_at(raw: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([raw[at], raw[at + 1]])
}

fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from(u16_at(raw, at)) | u32::from(u16_at(raw, at + 2)) << 16
}

fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from(u32_at(raw, at)) | u64::from(u32_at(raw, at + 4)) << 32
}

fn zero(raw: &[u8]) -> bool {
    raw.iter().all(|b| *b == 0)
}

impl Checker<'_> {
    fn superblock(&self) -> Result<(), CheckError> {
        let wrong = |what| Err(CheckError::Superblock(what));
        if self.len > MAX_FILE_LEN || self.len < 2 * BLOCK_LEN as u64 || !self.len.is_multiple_of(BLOCK_LEN as u64) {
            return wrong("the file's length is impossible");
        }
        let mut block = [0; BLOCK_LEN];
        self.file.read_exact_at(&mut block, 0)?;
        if !zero(&block[..SUPERBLOCK_OFFSET]) || !zero(&block[SUPERBLOCK_OFFSET + SUPERBLOCK_LEN..]) {
            return wrong("something else shares its block");
        }
        let stated = u32_at(&block, SUPERBLOCK_OFFSET + 4);
        block[SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8].fill(0);
        if crc32c(&block[SUPERBLOCK_OFFSET..]) != stated {
            return wrong("the checksum is wrong");
        }
        let sb = &block[SUPERBLOCK_OFFSET..SUPERBLOCK_OFFSET + SUPERBLOCK_LEN];
        if u32_at(sb, 0) != MAGIC || u32_at(sb, 8) != COMPAT_CHECKSUM | COMPAT_MTIME || sb[12] != BLOCK_BITS {
            return wrong("not a file of ours");
        }
        if u32::from(u16_at(sb, 14)) != ROOT_SLOT || u64::from(u32_at(sb, 36)) != self.len / BLOCK_LEN as u64 {
            return wrong("the root or the length is not where it should be");
        }
        // Extension slots, build time, metadata and attribute areas; volume name, incompatible features, devices, the rest.
        if sb[13] != 0 || !zero(&sb[24..36]) || !zero(&sb[40..48]) || !zero(&sb[64..]) {
            return wrong("it uses a feature that layers do not have");
        }
        Ok(())
    }

    fn inode(&self, slot: u64) -> Result<CheckedInode, CheckError> {
        let wrong = |what| Err(CheckError::Inode { slot, what });
        let at = slot.checked_mul(SLOT_LEN).filter(|at| *at >= BLOCK_LEN as u64 && self.inside(*at, INODE_LEN as u64));
        let Some(at) = at else { return wrong("its number lies outside of the file") };
        let mut raw = [0; INODE_LEN];
        self.file.read_exact_at(&mut raw, at)?;
        let format = u16_at(&raw, 0);
        let inline = match format {
            plain if plain == FORMAT_EXTENDED | (LAYOUT_FLAT_PLAIN << LAYOUT_SHIFT) => false,
            inline if inline == FORMAT_EXTENDED | (LAYOUT_FLAT_INLINE << LAYOUT_SHIFT) => true,
            _ => return wrong("its format is not one that layers have"),
        };
        let Some(kind) = FileType::from_mode(u16_at(&raw, 4)) else { return wrong("its mode has no known type") };
        if u32_at(&raw, 40) >= MAX_NANOSECONDS || u32_at(&raw, 44) == 0 || !zero(&raw[48..]) || u16_at(&raw, 6) != 0 {
            return wrong("a field has an impossible value");
        }
        let area = area_len(u16_at(&raw, 2)) as u64;
        let area_at = at + INODE_LEN as u64;
        if !self.inside(area_at, area) {
            return wrong("its attributes lie outside of the file");
        }
        self.xattrs(slot, area_at, area as usize)?;

        let size = u64_at(&raw, 8);
        match kind {
            FileType::File => {}
            FileType::Directory if size > 0 => {}
            FileType::Symlink if (1..=MAX_LINK_LEN as u64).contains(&size) => {}
            FileType::CharDevice | FileType::BlockDevice | FileType::Fifo if size == 0 && !inline => {}
            FileType::Directory | FileType::Symlink | FileType::CharDevice | FileType::BlockDevice | FileType::Fifo => {
                return wrong("its size does not fit its type");
            }
        }
        let tail = if inline { size % BLOCK_LEN as u64 } else { 0 };
        let inline_at = area_at + area;
        if inline
            && (tail == 0 || inline_at % BLOCK_LEN as u64 + tail > BLOCK_LEN as u64 || !self.inside(inline_at, tail))
        {
            return wrong("its inline data does not fit its block");
        }
        let has_blocks = matches!(kind, FileType::File | FileType::Directory | FileType::Symlink) && size > tail;
        let blocks_at = if has_blocks { u64::from(u32_at(&raw, 16)) * BLOCK_LEN as u64 } else { 0 };
        if has_blocks {
            let blocks_len = (size - tail).checked_next_multiple_of(BLOCK_LEN as u64).unwrap_or(u64::MAX);
            if blocks_at < BLOCK_LEN as u64 || !self.inside(blocks_at, blocks_len) {
                return wrong("its data lies outside of the file");
            }
        }
        Ok(CheckedInode { kind, size, blocks_at, inline_at: inline.then_some(inline_at) })
    }

    fn inside(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len)
    }

    fn xattrs(&self, slot: u64, at: u64, len: usize) -> Result<(), CheckError> {
        let wrong = |what| Err(CheckError::Inode { slot, what });
        if len == 0 {
            return Ok(());
        }
        let mut area = vec![0; len];
        self.file.read_exact_at(&mut area, at)?;
        if !zero(&area[..HEADER_LEN]) {
            return wrong("its attributes are shared or filtered");
        }
        let mut rest = &area[HEADER_LEN..];
        while !rest.is_empty() {
            // The area is a whole number of 4-byte units.
            let (name_len, index, value_len) = (usize::from(rest[0]), rest[1], usize::from(u16_at(rest, 2)));
            let used = ENTRY_LEN + name_len + value_len;
            let (Some(name), Some(value)) =
                (rest.get(ENTRY_LEN..ENTRY_LEN + name_len), rest.get(ENTRY_LEN + name_len..used))
            else {
                return wrong("an attribute reaches beyond its area");
            };
            let allowed = match index {
                1 => !name.is_empty() && !name.starts_with(b"overlay."),
                2 | 3 => name.is_empty(),
                4 => name == b"overlay.opaque" && value == b"y",
                6 => name == b"capability",
                _ => false,
            };
            if !allowed || name.contains(&0) {
                return wrong("an attribute that layers do not have");
            }
            rest = rest.get(used.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn enter(&mut self, slot: u64, parent: u64, depth: usize) -> Result<(), CheckError> {
        if depth > MAX_DEPTH {
            return Err(CheckError::Inode { slot, what: "it is too deep" });
        }
        if !self.seen.insert(slot) {
            return Err(CheckError::Inode { slot, what: "a directory that is reached twice" });
        }
        self.pending.push(Pending { slot, parent, depth });
        Ok(())
    }

    fn directory(&mut self, directory: &Pending) -> Result<(), CheckError> {
        let inode = self.inode(directory.slot)?;
        let mut last_name = Vec::new();
        let mut dots = 0;
        let mut done = 0;
        while done < inode.size {
            let len = (inode.size - done).min(BLOCK_LEN as u64);
            let at = match inode.inline_at {
                Some(inline_at) if len < BLOCK_LEN as u64 => inline_at,
                Some(_) | None => inode.blocks_at + done,
            };
            let mut block = vec![0; len as usize];
            self.file.read_exact_at(&mut block, at)?;
            dots += self.block(directory, &block, &mut last_name)?;
            done += len;
        }
        if dots != 2 {
            return Err(CheckError::Inode { slot: directory.slot, what: "a directory without '.' and '..'" });
        }
        Ok(())
    }

    /// Checks one block of entries; gives how many of `.` and `..` it had.
    fn block(&mut self, directory: &Pending, block: &[u8], last_name: &mut Vec<u8>) -> Result<u32, CheckError> {
        let wrong = |what| Err(CheckError::Inode { slot: directory.slot, what });
        let first = block.get(8..DIRENT_LEN).map_or(0, |raw| usize::from(u16_at(raw, 0)));
        if first == 0 || first % DIRENT_LEN != 0 || first >= block.len() {
            return wrong("a block of entries without a proper start");
        }
        let count = first / DIRENT_LEN;
        let mut dots = 0;
        for index in 0..count {
            let entry = &block[index * DIRENT_LEN..(index + 1) * DIRENT_LEN];
            let start = usize::from(u16_at(entry, 8));
            let end = if index + 1 < count {
                usize::from(u16_at(&block[(index + 1) * DIRENT_LEN..], 8))
            } else {
                let rest = block.get(start..).unwrap_or_default();
                start + rest.iter().position(|b| *b == 0).unwrap_or(rest.len())
            };
            let name = block.get(start..end).filter(|_| start >= first).unwrap_or_default();
            if name.is_empty() || name.len() > MAX_NAME_LEN || name.contains(&b'/') || name.contains(&0) {
                return wrong("an entry's name is impossible");
            }
            if name <= last_name.as_slice() {
                return wrong("its entries are not sorted");
            }
            name.clone_into(last_name);
            let slot = u64_at(entry, 0);
            let (kind, reserved) = (entry[10], entry[11]);
            let special = match name {
                b"." => Some(directory.slot),
                b".." => Some(directory.parent),
                _ => None,
            };
            if reserved != 0 {
                return wrong("an entry has a reserved field set");
            }
            match special {
                Some(expected) if slot == expected && kind == FileType::Directory as u8 => dots += 1,
                Some(_) => return wrong("'.' or '..' leads elsewhere"),
                None => self.child(directory, slot, kind)?,
            }
        }
        Ok(dots)
    }

    fn child(&mut self, directory: &Pending, slot: u64, kind: u8) -> Result<(), CheckError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES as u64 {
            return Err(CheckError::TooManyEntries);
        }
        let inode = self.inode(slot)?;
        if inode.kind as u8 != kind {
            return Err(CheckError::Inode { slot, what: "its type is not the one its entry says" });
        }
        if inode.kind == FileType::Directory {
            self.enter(slot, directory.slot, directory.depth + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

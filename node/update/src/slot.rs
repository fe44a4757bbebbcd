//! The inactive slot: three partitions (in tests, three files), what may be written there, and how it is read back.
//!
//! A block of the root is written only when the checked hash tree vouches for it; the tree itself is checked whole first. The kernel image has
//! one digest over all of it, so it is checked at its end: until then it is in a partition that nothing boots from. What is in the slot already
//! is found out by hashing it, never by remembering: after a cut, a cancel or a bad server the same scan says what is left to do.

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use byre_release::Statement;
use byre_verity::{BLOCK_BYTES, CheckError, CheckedTree, RootHash};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

/// Bytes that are written or read back at once: large enough for a disk's full rate, small enough to cancel between two.
pub const PIECE_BYTES: usize = 1 << 20;
/// What a direct read must be aligned to on any disk of ours.
const ALIGNMENT: usize = 4096;

/// A part of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The root's erofs image.
    Root,
    /// Its hash tree.
    Verity,
    /// The kernel image.
    Uki,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Verity => "hash tree",
            Self::Uki => "kernel image",
        })
    }
}

/// Why a slot does not hold a release.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The disk.
    #[error("the inactive slot's {part} partition: {action}: {source}")]
    Disk {
        /// Which partition.
        part: Part,
        /// What was done.
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// It does not fit.
    #[error(
        "the release's {part} has {bytes} bytes, the slot has room for {room}: the slots of this machine cannot take this release"
    )]
    Room {
        /// Which part.
        part: Part,
        /// What it has.
        bytes: u64,
        /// What there is.
        room: u64,
    },
    /// The tree that came is not the statement's.
    #[error("the hash tree that came is not the one of the signed statement: {0}")]
    Tree(#[from] CheckError),
    /// A block that came is not the statement's. Nothing of it was written.
    #[error("block {block} of the root that came is not the one that the signed statement vouches for")]
    Block {
        /// From 0.
        block: u64,
    },
    /// The kernel image is not the statement's.
    #[error("the kernel image that came is not the one of the signed statement")]
    Uki,
    /// What was written does not read back.
    #[error("the {part} does not read back as it was written: the disk loses or changes data")]
    ReadBack {
        /// Which part.
        part: Part,
    },
    /// Fewer bytes came than belong to it.
    #[error("the {part} ended after {found} of {expected} bytes")]
    Short {
        /// Which part.
        part: Part,
        /// Came.
        found: u64,
        /// Belong to it.
        expected: u64,
    },
}

/// The slot that may be written.
#[derive(Debug)]
pub struct Slot {
    root: File,
    verity: File,
    uki: File,
}

impl Slot {
    /// Over what PID 1 granted.
    #[must_use]
    pub fn new(root: File, verity: File, uki: File) -> Self {
        Self { root, verity, uki }
    }

    fn file(&self, part: Part) -> &File {
        match part {
            Part::Root => &self.root,
            Part::Verity => &self.verity,
            Part::Uki => &self.uki,
        }
    }

    /// Checks that the release fits, before anything is written.
    ///
    /// # Errors
    /// [`SlotError::Room`].
    pub fn check_room(&self, statement: &Statement) -> Result<(), SlotError> {
        let parts = [
            (Part::Root, statement.root_bytes()),
            (Part::Verity, statement.verity_bytes),
            (Part::Uki, statement.uki_bytes),
        ];
        for (part, bytes) in parts {
            let room = self.file(part).seek_end().map_err(|source| at(part, "size")(source))?;
            if bytes > room {
                return Err(SlotError::Room { part, bytes, room });
            }
        }
        Ok(())
    }

    /// Puts a whole tree there, if it is the statement's.
    ///
    /// # Errors
    /// [`SlotError::Tree`], or of the disk.
    pub fn write_tree(&self, bytes: Vec<u8>, statement: &Statement) -> Result<CheckedTree, SlotError> {
        let tree = CheckedTree::check(bytes, RootHash(statement.root_hash), statement.root_blocks)?;
        self.verity.write_all_at(tree.bytes(), 0).map_err(at(Part::Verity, "write"))?;
        self.flush(Part::Verity)?;
        Ok(tree)
    }

    /// The statement's tree, if it lies there already.
    #[must_use]
    pub fn present_tree(&self, statement: &Statement) -> Option<CheckedTree> {
        let length = byre_verity::tree_bytes(statement.root_blocks)?;
        let mut bytes = vec![0; length];
        self.verity.read_exact_at(&mut bytes, 0).ok()?;
        CheckedTree::check(bytes, RootHash(statement.root_hash), statement.root_blocks).ok()
    }

    /// Which blocks of the root lie there already.
    ///
    /// # Errors
    /// Of the disk.
    pub fn present_blocks(&self, tree: &CheckedTree) -> Result<Blocks, SlotError> {
        let mut present = Blocks::none(tree.data_blocks());
        let mut piece = vec![0; PIECE_BYTES];
        let mut number = 0;
        while number < tree.data_blocks() {
            let left = tree.data_blocks() - number;
            let blocks = left.min((PIECE_BYTES / BLOCK_BYTES) as u64);
            let length = usize::try_from(blocks).unwrap_or(0) * BLOCK_BYTES;
            let buffer = &mut piece[..length];
            self.root.read_exact_at(buffer, number * BLOCK_BYTES as u64).map_err(at(Part::Root, "read"))?;
            for (block, at) in buffer.chunks(BLOCK_BYTES).zip(number..) {
                if tree.vouches_for(at, block) {
                    present.set(at);
                }
            }
            number += blocks;
        }
        Ok(present)
    }

    /// Flushes a part.
    ///
    /// # Errors
    /// Of the disk.
    pub fn flush(&self, part: Part) -> Result<(), SlotError> {
        self.file(part).sync_data().map_err(at(part, "flush"))
    }

    /// A writer of the root from block `first` on.
    pub fn root_writer<'a>(&'a self, tree: &'a CheckedTree, present: &'a mut Blocks, first: u64) -> RootWriter<'a> {
        RootWriter { slot: self, tree, present, next: first, buffer: Vec::with_capacity(PIECE_BYTES) }
    }

    /// A writer of the kernel image that goes on behind `kept` bytes that were written earlier. If those are not what they should be, the
    /// whole image's digest says so at the end.
    ///
    /// # Errors
    /// Of the disk.
    pub fn uki_writer(&self, kept: u64) -> Result<UkiWriter<'_>, SlotError> {
        let mut hasher = Sha256::new();
        let mut piece = vec![0; PIECE_BYTES];
        let mut offset = 0;
        while offset < kept {
            let length = usize::try_from(kept - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            self.uki.read_exact_at(&mut piece[..length], offset).map_err(at(Part::Uki, "read"))?;
            hasher.update(&piece[..length]);
            offset += length as u64;
        }
        Ok(UkiWriter { slot: self, hasher, offset, buffer: Vec::with_capacity(PIECE_BYTES) })
    }

    /// Whether the statement's kernel image lies there.
    ///
    /// # Errors
    /// Of the disk.
    pub fn has_uki(&self, statement: &Statement) -> Result<bool, SlotError> {
        let writer = self.uki_writer(statement.uki_bytes)?;
        Ok(writer.hasher.finalize()[..] == statement.uki_sha256)
    }

    /// Reads the whole slot from the disk itself, past the cache, and checks it. `progress` is told the bytes so far and says whether to go on.
    ///
    /// # Errors
    /// [`SlotError::ReadBack`], or of the disk. `Ok(false)` when `progress` ended it.
    pub fn verify(&self, statement: &Statement, progress: &mut dyn FnMut(u64) -> bool) -> Result<bool, SlotError> {
        let mut done = 0;
        let mut tree = Vec::new();
        let mut go_on = read_past_cache(&self.verity, Part::Verity, statement.verity_bytes, &mut |piece, _| {
            tree.extend_from_slice(piece);
            done += piece.len() as u64;
            Ok(progress(done))
        })?;
        let tree = CheckedTree::check(tree, RootHash(statement.root_hash), statement.root_blocks)
            .map_err(|_| SlotError::ReadBack { part: Part::Verity })?;
        go_on = go_on
            && read_past_cache(&self.root, Part::Root, statement.root_bytes(), &mut |piece, offset| {
                let first = offset / BLOCK_BYTES as u64;
                let whole =
                    piece.chunks(BLOCK_BYTES).zip(first..).all(|(block, number)| tree.vouches_for(number, block));
                if !whole {
                    return Err(SlotError::ReadBack { part: Part::Root });
                }
                done += piece.len() as u64;
                Ok(progress(done))
            })?;
        let mut hasher = Sha256::new();
        go_on = go_on
            && read_past_cache(&self.uki, Part::Uki, statement.uki_bytes, &mut |piece, _| {
                hasher.update(piece);
                done += piece.len() as u64;
                Ok(progress(done))
            })?;
        if go_on && hasher.finalize()[..] != statement.uki_sha256 {
            return Err(SlotError::ReadBack { part: Part::Uki });
        }
        Ok(go_on)
    }
}

fn at(part: Part, action: &'static str) -> impl Fn(std::io::Error) -> SlotError {
    move |source| SlotError::Disk { part, action, source }
}

trait SeekEnd {
    fn seek_end(&self) -> std::io::Result<u64>;
}

impl SeekEnd for File {
    /// Its size: a block device has none in its metadata.
    fn seek_end(&self) -> std::io::Result<u64> {
        let mut file = self;
        file.seek(SeekFrom::End(0))
    }
}

type OnPiece<'a> = &'a mut dyn FnMut(&[u8], u64) -> Result<bool, SlotError>;

/// Reads the first `bytes` bytes in pieces, from the disk and not from memory. `Ok(false)` when `on_piece` ended it.
fn read_past_cache(file: &File, part: Part, bytes: u64, on_piece: OnPiece<'_>) -> Result<bool, SlotError> {
    let read = at(part, "read back");
    let flags = rustix::fs::fcntl_getfl(file).map_err(|errno| read(errno.into()))?;
    let direct = rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).is_ok();
    if !direct {
        // A file system in memory has nothing behind its cache; the others know direct reads or forget what is clean.
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }
    let result = read_pieces(file, part, bytes, on_piece);
    if direct {
        rustix::fs::fcntl_setfl(file, flags).map_err(|errno| read(errno.into()))?;
    }
    result
}

fn read_pieces(file: &File, part: Part, bytes: u64, on_piece: OnPiece<'_>) -> Result<bool, SlotError> {
    let mut room = vec![0_u8; PIECE_BYTES + ALIGNMENT];
    let skip = room.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let piece = &mut room[skip..skip + PIECE_BYTES];
    let mut offset = 0;
    while offset < bytes {
        let wanted = usize::try_from(bytes - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        // Direct reads are of whole blocks; a partition has them to its end, a file may not.
        let mut filled = 0;
        while filled < wanted {
            let end = wanted.next_multiple_of(ALIGNMENT).min(PIECE_BYTES);
            match file.read_at(&mut piece[filled..end], offset + filled as u64) {
                Ok(0) => return Err(at(part, "read back")(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(at(part, "read back")(error)),
            }
        }
        if !on_piece(&piece[..wanted], offset)? {
            return Ok(false);
        }
        offset += wanted as u64;
    }
    Ok(true)
}

/// A set of block numbers.
#[derive(Debug, Clone)]
pub struct Blocks {
    bits: Vec<bool>,
}

impl Blocks {
    fn none(blocks: u64) -> Self {
        Self { bits: vec![false; usize::try_from(blocks).unwrap_or(0)] }
    }

    fn set(&mut self, number: u64) {
        if let Some(bit) = usize::try_from(number).ok().and_then(|number| self.bits.get_mut(number)) {
            *bit = true;
        }
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn has(&self, number: u64) -> bool {
        usize::try_from(number).ok().and_then(|number| self.bits.get(number)).copied().unwrap_or(false)
    }

    /// How many are in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.bits.iter().filter(|bit| **bit).count() as u64
    }

    /// The first that is not in the set.
    #[must_use]
    pub fn first_missing(&self) -> Option<u64> {
        self.bits.iter().position(|bit| !bit).map(|number| number as u64)
    }
}

/// Takes the root's bytes in order and writes each block that the tree vouches for and that is not there yet.
pub struct RootWriter<'a> {
    slot: &'a Slot,
    tree: &'a CheckedTree,
    present: &'a mut Blocks,
    next: u64,
    buffer: Vec<u8>,
}

impl RootWriter<'_> {
    /// Takes some more.
    ///
    /// # Errors
    /// [`SlotError::Block`] for a block that is not the statement's; those before it are written.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), SlotError> {
        while !bytes.is_empty() && self.next < self.tree.data_blocks() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PIECE_BYTES {
                self.write()?;
            }
        }
        Ok(())
    }

    /// Bytes that are there, checked.
    #[must_use]
    pub fn present_bytes(&self) -> u64 {
        self.present.count() * BLOCK_BYTES as u64
    }

    /// Writes what is whole and flushes. The root is there when no block is missing.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn finish(mut self) -> Result<(), SlotError> {
        self.write()?;
        self.slot.flush(Part::Root)
    }

    /// Writes the whole blocks of the buffer, those side by side at once.
    fn write(&mut self) -> Result<(), SlotError> {
        let whole = self.buffer.len() - self.buffer.len() % BLOCK_BYTES;
        let first = self.next;
        let mut run: Option<(u64, usize, usize)> = None;
        let mut refused = None;
        for (index, block) in self.buffer[..whole].chunks(BLOCK_BYTES).enumerate() {
            let number = first + index as u64;
            if number >= self.tree.data_blocks() {
                break;
            }
            if !self.tree.vouches_for(number, block) {
                refused = Some(number);
                break;
            }
            let start = index * BLOCK_BYTES;
            if self.present.has(number) {
                self.put(run.take())?;
            } else {
                self.present.set(number);
                run = Some(
                    run.map_or((number, start, start + BLOCK_BYTES), |(at, from, _)| (at, from, start + BLOCK_BYTES)),
                );
            }
            self.next = number + 1;
        }
        self.put(run)?;
        match refused {
            Some(block) => Err(SlotError::Block { block }),
            None => {
                self.buffer.drain(..whole);
                Ok(())
            }
        }
    }

    fn put(&self, run: Option<(u64, usize, usize)>) -> Result<(), SlotError> {
        let Some((number, from, to)) = run else { return Ok(()) };
        let offset = number * BLOCK_BYTES as u64;
        self.slot.root.write_all_at(&self.buffer[from..to], offset).map_err(at(Part::Root, "write"))
    }
}

/// Takes the kernel image's bytes in order.
pub struct UkiWriter<'a> {
    slot: &'a Slot,
    hasher: Sha256,
    offset: u64,
    buffer: Vec<u8>,
}

impl UkiWriter<'_> {
    /// Bytes so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    /// Takes some more, at most up to `limit` in all.
    ///
    /// # Errors
    /// Of the disk.
    pub fn take(&mut self, bytes: &[u8], limit: u64) -> Result<(), SlotError> {
        let room = usize::try_from(limit.saturating_sub(self.offset())).unwrap_or(usize::MAX);
        let mut bytes = &bytes[..bytes.len().min(room)];
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PIECE_BYTES {
                self.write()?;
            }
        }
        Ok(())
    }

    /// Puts on disk what came, so that it can be gone on with.
    ///
    /// # Errors
    /// Of the disk.
    pub fn keep(&mut self) -> Result<u64, SlotError> {
        self.write()?;
        self.slot.flush(Part::Uki)?;
        Ok(self.offset)
    }

    /// The end: the image is whole, and the statement's.
    ///
    /// # Errors
    /// [`SlotError::Short`], [`SlotError::Uki`], or of the disk.
    pub fn finish(mut self, statement: &Statement) -> Result<(), SlotError> {
        self.keep()?;
        if self.offset < statement.uki_bytes {
            let (found, expected) = (self.offset, statement.uki_bytes);
            return Err(SlotError::Short { part: Part::Uki, found, expected });
        }
        if self.hasher.finalize()[..] == statement.uki_sha256 { Ok(()) } else { Err(SlotError::Uki) }
    }

    fn write(&mut self) -> Result<(), SlotError> {
        self.slot.uki.write_all_at(&self.buffer, self.offset).map_err(at(Part::Uki, "write"))?;
        self.hasher.update(&self.buffer);
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Reads a part of a bundle whole, up to what it may have.
///
/// # Errors
/// [`SlotError::Short`], or of the source as of the disk.
pub fn read_part(from: &mut impl Read, part: Part, bytes: u64) -> Result<Vec<u8>, SlotError> {
    let mut read = Vec::new();
    from.take(bytes).read_to_end(&mut read).map_err(at(part, "read of the bundle"))?;
    let found = read.len() as u64;
    if found < bytes { Err(SlotError::Short { part, found, expected: bytes }) } else { Ok(read) }
}

//! Where blocks go: allocation, buffered writing, packing of inodes, and counting on when the disk is full.
//!
//! Blocks are handed out in order and never taken back. When the file system is full, writing stops but allocation goes
//! on, so that the error can say how much space the layer needs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::writer::{Budget, ErofsError};
use super::{BLOCK_LEN, MAX_FILE_LEN, SLOT_LEN};

/// Bytes gathered before a write: large enough that the call costs nothing beside the copy.
const BUFFER_LEN: usize = 256 << 10;
/// Partly filled inode blocks kept open; a later small inode fills the rest of one. More gains nothing measurable.
const MAX_OPEN_BLOCKS: usize = 8;
/// Inode blocks are reserved in runs, so that a walk over many files reads few places.
const MAX_RUN: u64 = 32;

pub(super) struct Output {
    file: File,
    next_block: u64,
    limit_blocks: u64,
    /// Blocks that may really be written.
    space_blocks: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
    /// The disk is full: nothing is written any more, only counted.
    counting: bool,
    open: Vec<OpenBlock>,
    run_next: u64,
    run_end: u64,
    run_len: u64,
}

struct OpenBlock {
    block: u64,
    used: usize,
    data: Box<[u8; BLOCK_LEN]>,
}

impl Output {
    /// Writes into the empty `file`.
    pub(super) fn new(file: File, budget: Budget, first_block: u64) -> Self {
        Self {
            file,
            next_block: first_block,
            limit_blocks: budget.limit.min(MAX_FILE_LEN) / BLOCK_LEN as u64,
            space_blocks: budget.space / BLOCK_LEN as u64,
            buffer: Vec::with_capacity(BUFFER_LEN),
            buffer_at: 0,
            counting: false,
            open: Vec::new(),
            run_next: 0,
            run_end: 0,
            run_len: 1,
        }
    }

    /// Reserves `count` blocks in a row; gives the first one's number.
    pub(super) fn allocate(&mut self, count: u64) -> Result<u32, ErofsError> {
        let start = self.next_block;
        let end = start.checked_add(count).filter(|end| *end <= self.limit_blocks);
        self.next_block = end.ok_or(ErofsError::TooLarge { limit: self.limit_blocks * BLOCK_LEN as u64 })?;
        if self.next_block > self.space_blocks && !self.counting {
            self.stop_writing()?;
        }
        u32::try_from(start).map_err(|_| ErofsError::TooLarge { limit: MAX_FILE_LEN })
    }

    /// Blocks handed out so far.
    pub(super) fn blocks(&self) -> u64 {
        self.next_block
    }

    /// Puts `bytes` at byte `at` of the file; that range must have been allocated. Later writes win.
    pub(super) fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let end = self.buffer_at + self.buffer.len() as u64;
        if at != end || self.buffer.len() + bytes.len() > BUFFER_LEN {
            self.flush()?;
            self.buffer_at = at;
        }
        if bytes.len() >= BUFFER_LEN {
            self.buffer_at = at + bytes.len() as u64;
            return self.write_through(at, bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let result = self.write_through(self.buffer_at, &buffer);
        self.buffer_at += buffer.len() as u64;
        self.buffer = buffer;
        self.buffer.clear();
        result
    }

    fn write_through(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.counting || bytes.is_empty() {
            return Ok(());
        }
        match self.file.write_all_at(bytes, at) {
            Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                self.stop_writing()
            }
            other => other,
        }
    }

    /// Goes on counting only, and gives back what the half-made file holds: others need it more.
    fn stop_writing(&mut self) -> io::Result<()> {
        self.counting = true;
        self.file.set_len(0)
    }

    /// Packs an inode with what follows it into a block; gives its slot. `bytes` that do not fit one block get their own.
    pub(super) fn place(&mut self, bytes: &[u8]) -> Result<u32, ErofsError> {
        if bytes.len() > BLOCK_LEN {
            let block = self.allocate(bytes.len().div_ceil(BLOCK_LEN) as u64)?;
            let at = u64::from(block) * BLOCK_LEN as u64;
            self.write_at(at, bytes)?;
            return Ok(slot(at));
        }
        let fits = |open: &OpenBlock| BLOCK_LEN - open.used >= bytes.len();
        let best = self.open.iter().enumerate().filter(|(_, open)| fits(open)).max_by_key(|(_, open)| open.used);
        let best = match best.map(|(at, _)| at) {
            Some(at) => at,
            None => self.open_block()?,
        };
        let open = &mut self.open[best];
        let start = open.used;
        open.data[start..start + bytes.len()].copy_from_slice(bytes);
        open.used = (start + bytes.len()).next_multiple_of(SLOT_LEN as usize);
        Ok(slot(open.block * BLOCK_LEN as u64 + start as u64))
    }

    /// Opens an empty block, closing the fullest if there are too many; gives its place in `open`.
    fn open_block(&mut self) -> Result<usize, ErofsError> {
        if self.open.len() >= MAX_OPEN_BLOCKS {
            let fullest = (0..self.open.len()).max_by_key(|at| self.open[*at].used).unwrap_or(0);
            let done = self.open.swap_remove(fullest);
            self.write_at(done.block * BLOCK_LEN as u64, &done.data[..])?;
        }
        if self.run_next == self.run_end {
            self.run_next = u64::from(self.allocate(self.run_len)?);
            self.run_end = self.run_next + self.run_len;
            self.run_len = (self.run_len * 2).min(MAX_RUN);
        }
        self.open.push(OpenBlock { block: self.run_next, used: 0, data: Box::new([0; BLOCK_LEN]) });
        self.run_next += 1;
        Ok(self.open.len() - 1)
    }

    /// Writes all open inode blocks; later ones go to new blocks.
    pub(super) fn close_blocks(&mut self) -> Result<(), ErofsError> {
        for done in std::mem::take(&mut self.open) {
            self.write_at(done.block * BLOCK_LEN as u64, &done.data[..])?;
        }
        Ok(())
    }

    /// A block that nothing else uses: the rest of a reserved run first.
    pub(super) fn spare_block(&mut self) -> Result<u32, ErofsError> {
        if self.run_next < self.run_end {
            self.run_next += 1;
            return Ok((self.run_next - 1) as u32);
        }
        self.allocate(1)
    }

    /// Sets the final length and gives the file back.
    pub(super) fn finish(mut self) -> Result<File, ErofsError> {
        self.flush()?;
        let needed = self.next_block * BLOCK_LEN as u64;
        if !self.counting {
            match self.file.set_len(needed) {
                Err(e) if e.kind() == io::ErrorKind::StorageFull => self.counting = true,
                other => other?,
            }
        }
        if self.counting { Err(ErofsError::NoSpace { needed }) } else { Ok(self.file) }
    }
}

fn slot(at: u64) -> u32 {
    // MAX_FILE_LEN / SLOT_LEN fits 31 bits.
    (at / SLOT_LEN) as u32
}

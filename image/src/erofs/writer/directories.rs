//! The last part of a layer file: directory inodes and their entries.
//!
//! Two passes, because an entry names its child's slot: first every directory gets its place, then all are written.

use std::iter;

use super::*;

/// Places inodes one after the other, none across a block boundary unless it is larger than a block.
struct Cursor {
    at: u64,
    end: u64,
}

impl Cursor {
    fn take(&mut self, len: u64, out: &mut Output) -> Result<u64, ErofsError> {
        if self.at + len > self.end {
            let block =
                if len > BLOCK_LEN as u64 { out.allocate(len.div_ceil(BLOCK_LEN as u64))? } else { out.spare_block()? };
            self.at = u64::from(block) * BLOCK_LEN as u64;
            self.end = self.at + len.next_multiple_of(BLOCK_LEN as u64);
        }
        let at = self.at;
        self.at = (at + len).next_multiple_of(SLOT_LEN);
        Ok(at)
    }
}

impl Writer {
    /// Writes all directories; `order` is what [`Tree::seal`] gave.
    pub(super) fn write_directories(&mut self, order: &[u32]) -> Result<(), ErofsError> {
        for dir in self.tree.dirs.iter_mut().filter(|dir| dir.opaque) {
            dir.xattrs.set(OPAQUE_XATTR, b"y")?;
        }
        let live: Vec<u32> = (0..self.tree.nodes.len() as u32)
            .filter(|node| self.tree.node(*node).kind == NodeKind::Directory)
            .collect();
        // The root is node 0, and its place is fixed.
        let mut cursor = Cursor { at: BLOCK_LEN as u64, end: 2 * BLOCK_LEN as u64 };
        for node in &live {
            self.lay_out(*node, order, &mut cursor)?;
        }
        self.inodes += live.len() as u64 - 1;
        for node in &live {
            self.write_directory(*node, order)?;
        }
        Ok(())
    }

    /// Decides where a directory's inode and entries go.
    fn lay_out(&mut self, node: u32, order: &[u32], cursor: &mut Cursor) -> Result<(), ErofsError> {
        let mut splitter = Splitter::default();
        let mut blocks_before = 0u64;
        for (name, _) in entries(&self.tree, order, node) {
            blocks_before += u64::from(splitter.starts_block(name));
        }
        let size = blocks_before * BLOCK_LEN as u64 + splitter.used as u64;
        let Some(dir) = self.tree.dir_mut(node) else { return Ok(()) };
        let fixed = INODE_LEN + dir.xattrs.encoded_len();
        if node == ROOT && fixed > BLOCK_LEN {
            return Err(XattrFault::TooLarge.into());
        }
        let (blocks, inline) = split_data(size, fixed);
        let at = cursor.take((fixed + inline) as u64, &mut self.out)?;
        dir.start_block = if blocks > 0 { self.out.allocate(blocks)? } else { 0 };
        dir.slot = (at / SLOT_LEN) as u32;
        dir.size = size;
        Ok(())
    }

    fn write_directory(&mut self, node: u32, order: &[u32]) -> Result<(), ErofsError> {
        let Some(dir) = self.tree.dir_mut(node) else { return Ok(()) };
        let xattrs = std::mem::take(&mut dir.xattrs).encode();
        let (blocks, inline) = split_data(dir.size, INODE_LEN + xattrs.len());
        let inode = Inode {
            kind: FileType::Directory,
            meta: dir.meta,
            xattr_len: xattrs.len(),
            size: dir.size,
            location: dir.start_block,
            inline: inline > 0,
            links: 2 + dir.subdirs,
        };
        let at = u64::from(dir.slot) * SLOT_LEN;
        let data_at = u64::from(dir.start_block) * BLOCK_LEN as u64;
        let number = dir.slot;

        let mut splitter = Splitter::default();
        let mut block = Vec::new();
        let mut done = 0u64;
        for (name, child) in entries(&self.tree, order, node) {
            if splitter.starts_block(name) {
                let mut bytes = encode_block(&self.tree, &block);
                bytes.resize(BLOCK_LEN, 0);
                self.out.write_at(data_at + done * BLOCK_LEN as u64, &bytes)?;
                done += 1;
                block.clear();
            }
            block.push((name, child));
        }
        let mut last = encode_block(&self.tree, &block);
        if done < blocks {
            self.out.write_at(data_at + done * BLOCK_LEN as u64, &last)?;
            last.clear();
        }
        let bytes = [&inode.encode(number)[..], &xattrs, &last].concat();
        self.out.write_at(at, &bytes)?;
        Ok(())
    }
}

/// Blocks of their own and bytes kept with the inode, for `size` bytes of entries behind `fixed` bytes of inode.
fn split_data(size: u64, fixed: usize) -> (u64, usize) {
    let tail = (size % BLOCK_LEN as u64) as usize;
    if tail > 0 && fixed + tail <= BLOCK_LEN {
        (size / BLOCK_LEN as u64, tail)
    } else {
        (size.div_ceil(BLOCK_LEN as u64), 0)
    }
}

/// Entries of a directory as names and nodes, sorted as the kernel's binary search needs them.
fn entries<'t>(tree: &'t Tree, order: &'t [u32], node: u32) -> impl Iterator<Item = (&'t [u8], u32)> {
    let this = tree.node(node);
    let range = tree.dirs[this.slot as usize].children.clone();
    let children = &order[range.start as usize..range.end as usize];
    let dot = children.partition_point(|child| tree.name(*child) < &b"."[..]);
    let dot_dot = children.partition_point(|child| tree.name(*child) < &b".."[..]);
    let named = |nodes: &'t [u32]| nodes.iter().map(|child| (tree.name(*child), *child));
    named(&children[..dot])
        .chain(iter::once((&b"."[..], node)))
        .chain(named(&children[dot..dot_dot]))
        .chain(iter::once((&b".."[..], this.parent)))
        .chain(named(&children[dot_dot..]))
}

/// Fills blocks with entries in order; none crosses a boundary.
#[derive(Default)]
struct Splitter {
    used: usize,
}

impl Splitter {
    /// Adds an entry; true if it begins another block.
    fn starts_block(&mut self, name: &[u8]) -> bool {
        let need = DIRENT_LEN + name.len();
        let new = self.used + need > BLOCK_LEN;
        self.used = if new { need } else { self.used + need };
        new
    }
}

/// One block: the fixed-size entries, then their names.
fn encode_block(tree: &Tree, block: &[(&[u8], u32)]) -> Vec<u8> {
    let mut name_at = block.len() * DIRENT_LEN;
    let mut bytes = Vec::with_capacity(BLOCK_LEN);
    for (name, node) in block {
        let node = tree.node(*node);
        let slot = if node.kind == NodeKind::Directory { tree.dirs[node.slot as usize].slot } else { node.slot };
        // Only living nodes are listed, and those all have a type.
        let kind = node.kind.file_type().map_or(0, |kind| kind as u8);
        bytes.extend_from_slice(&u64::from(slot).to_le_bytes());
        bytes.extend_from_slice(&(name_at as u16).to_le_bytes());
        bytes.extend_from_slice(&[kind, 0]);
        name_at += name.len();
    }
    for (name, _) in block {
        bytes.extend_from_slice(name);
    }
    bytes
}

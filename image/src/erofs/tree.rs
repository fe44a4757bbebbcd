//! The names of one layer in memory, compactly: 16 bytes and the name for each, and a table to find them by.
//!
//! A million entries have to fit into the memory that the unpacking service has, so there is no map of boxed names.
//! Nodes are only ever added; one that a later entry replaces is marked dead. A node's parent always has a lower index.

use std::hash::{BuildHasher, RandomState};

use super::writer::Meta;
use super::{FileType, MAX_ENTRIES, Xattrs};

/// Most bytes of all names: 64 on average for the largest number of entries.
const MAX_NAMES_LEN: usize = 64 << 20;
const INITIAL_TABLE_LEN: usize = 1024;
const EMPTY: u32 = u32::MAX;
/// Index of the root directory.
pub(super) const ROOT: u32 = 0;

/// What stands at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeKind {
    File,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Whiteout,
    Directory,
    /// Replaced by a later entry.
    Dead,
}

impl NodeKind {
    /// Type in a directory entry; `None` for what is not written.
    pub(super) fn file_type(self) -> Option<FileType> {
        match self {
            Self::File => Some(FileType::File),
            Self::Symlink => Some(FileType::Symlink),
            Self::CharDevice | Self::Whiteout => Some(FileType::CharDevice),
            Self::BlockDevice => Some(FileType::BlockDevice),
            Self::Fifo => Some(FileType::Fifo),
            Self::Directory => Some(FileType::Directory),
            Self::Dead => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    name_at: u32,
    pub(super) parent: u32,
    /// The inode's slot; for a directory its place in `dirs`.
    pub(super) slot: u32,
    name_len: u8,
    pub(super) kind: NodeKind,
    /// More than one name leads to the inode.
    pub(super) linked: bool,
}

/// A directory: its inode is written last.
pub(super) struct Dir {
    pub(super) meta: Meta,
    pub(super) xattrs: Xattrs,
    pub(super) opaque: bool,
    /// Filled by the layout: inode slot, first data block, bytes of entries, children in the sorted order.
    pub(super) slot: u32,
    pub(super) start_block: u32,
    pub(super) size: u64,
    pub(super) children: std::ops::Range<u32>,
    pub(super) subdirs: u32,
}

pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    pub(super) dirs: Vec<Dir>,
    names: Vec<u8>,
    table: Vec<u32>,
    hasher: RandomState,
}

/// The tree is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Tree {
    pub(super) fn new(root: Meta) -> Self {
        let mut tree = Self {
            nodes: Vec::new(),
            dirs: Vec::new(),
            names: Vec::new(),
            table: vec![EMPTY; INITIAL_TABLE_LEN],
            // Keyed at random: names from outside must not be able to make every lookup a long one.
            hasher: RandomState::new(),
        };
        tree.dirs.push(Dir::new(root));
        tree.nodes.push(Node {
            name_at: 0,
            parent: ROOT,
            slot: 0,
            name_len: 0,
            kind: NodeKind::Directory,
            linked: false,
        });
        tree
    }

    pub(super) fn name(&self, node: u32) -> &[u8] {
        let node = &self.nodes[node as usize];
        &self.names[node.name_at as usize..node.name_at as usize + usize::from(node.name_len)]
    }

    pub(super) fn node(&self, node: u32) -> &Node {
        &self.nodes[node as usize]
    }

    /// The directory record of `node`, if it is a directory.
    pub(super) fn dir_mut(&mut self, node: u32) -> Option<&mut Dir> {
        let node = self.nodes[node as usize];
        (node.kind == NodeKind::Directory).then(|| &mut self.dirs[node.slot as usize])
    }

    /// Child of `parent` called `name`.
    pub(super) fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let node = self.table[self.position(parent, name)];
        (node != EMPTY).then_some(node)
    }

    /// Where `name` is in the table, or the empty place where it belongs.
    fn position(&self, parent: u32, name: &[u8]) -> usize {
        let mask = self.table.len() - 1;
        let mut at = self.hasher.hash_one((parent, name)) as usize & mask;
        // The table is never full (see `grow`), so an empty place ends the search.
        while self.table[at] != EMPTY {
            let node = self.table[at];
            if self.nodes[node as usize].parent == parent && self.name(node) == name {
                break;
            }
            at = (at + 1) & mask;
        }
        at
    }

    /// Adds a node; one of the same name dies with everything below it.
    pub(super) fn add(&mut self, parent: u32, name: &[u8], kind: NodeKind, slot: u32) -> Result<u32, Full> {
        if self.nodes.len() >= MAX_ENTRIES || self.names.len() + name.len() > MAX_NAMES_LEN {
            return Err(Full);
        }
        let index = self.nodes.len() as u32;
        let name_at = self.names.len() as u32;
        let name_len = u8::try_from(name.len()).map_err(|_| Full)?;
        let at = self.position(parent, name);
        if self.table[at] != EMPTY {
            self.nodes[self.table[at] as usize].kind = NodeKind::Dead;
        }
        self.names.extend_from_slice(name);
        self.nodes.push(Node { name_at, parent, slot, name_len, kind, linked: false });
        self.table[at] = index;
        if self.nodes.len() * 2 > self.table.len() {
            self.grow();
        }
        Ok(index)
    }

    /// Adds a directory.
    pub(super) fn add_dir(&mut self, parent: u32, name: &[u8], meta: Meta) -> Result<u32, Full> {
        let slot = self.dirs.len() as u32;
        let node = self.add(parent, name, NodeKind::Directory, slot)?;
        self.dirs.push(Dir::new(meta));
        Ok(node)
    }

    fn grow(&mut self) {
        let live: Vec<u32> = std::mem::take(&mut self.table);
        self.table = vec![EMPTY; live.len() * 2];
        for node in live.into_iter().filter(|node| *node != EMPTY) {
            let at = self.position(self.nodes[node as usize].parent, self.name(node));
            self.table[at] = node;
        }
    }

    /// Ends the adding: dead branches are marked, and the living nodes but the root are sorted by parent and name,
    /// each directory knowing its children and how many of them are directories. Gives the sorted nodes.
    pub(super) fn seal(&mut self) -> Vec<u32> {
        self.table = Vec::new();
        for index in 1..self.nodes.len() {
            let parent = self.nodes[index].parent as usize;
            if self.nodes[parent].kind == NodeKind::Dead {
                self.nodes[index].kind = NodeKind::Dead;
            }
        }
        let mut order: Vec<u32> =
            (1..self.nodes.len() as u32).filter(|n| self.nodes[*n as usize].kind != NodeKind::Dead).collect();
        order.sort_unstable_by(|a, b| {
            (self.nodes[*a as usize].parent, self.name(*a)).cmp(&(self.nodes[*b as usize].parent, self.name(*b)))
        });
        for (at, node) in order.iter().enumerate() {
            let node = self.nodes[*node as usize];
            if let Some(dir) = self.dir_mut(node.parent) {
                if dir.children.is_empty() {
                    dir.children = at as u32..at as u32;
                }
                dir.children.end = at as u32 + 1;
                dir.subdirs += u32::from(node.kind == NodeKind::Directory);
            }
        }
        order
    }
}

impl Dir {
    fn new(meta: Meta) -> Self {
        Self {
            meta,
            xattrs: Xattrs::default(),
            opaque: false,
            slot: 0,
            start_block: 0,
            size: 0,
            children: 0..0,
            subdirs: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_directory_takes_its_branch_with_it() {
        let mut tree = Tree::new(Meta::default());
        let a = tree.add_dir(ROOT, b"a", Meta::default()).unwrap();
        tree.add(a, b"x", NodeKind::File, 1).unwrap();
        let file = tree.add(ROOT, b"a", NodeKind::File, 2).unwrap();
        assert_eq!(tree.find(ROOT, b"a"), Some(file));
        assert_eq!(tree.seal(), [file]);
    }

    #[test]
    fn many_names_are_found_again_and_come_out_sorted() {
        let mut tree = Tree::new(Meta::default());
        for i in (0..5000u32).rev() {
            tree.add(ROOT, format!("{i:05}").as_bytes(), NodeKind::File, i).unwrap();
        }
        for i in 0..5000u32 {
            let node = tree.find(ROOT, format!("{i:05}").as_bytes()).unwrap();
            assert_eq!(tree.node(node).slot, i);
        }
        assert_eq!(tree.find(ROOT, b"5000"), None);
        let order = tree.seal();
        let slots: Vec<u32> = order.iter().map(|n| tree.node(*n).slot).collect();
        assert!(slots.is_sorted());
        assert_eq!(tree.dirs[0].children, 0..5000);
    }
}

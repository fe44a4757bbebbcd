//! Writes one erofs file while a layer streams in.
//!
//! File bytes go to their blocks at once and an inode follows when its file ends, so memory holds names only. Directories
//! come last, when all names are known. Given the same calls the file is the same, byte for byte.
//!
//! ```text
//! block 0: superblock | 1: root inode | 2..: file blocks, and runs of inode blocks | directories
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use super::output::Output;
use super::path::TreePath;
use super::tree::{Full, NodeKind, ROOT, Tree};
use super::xattr::{self, Xattrs};
use super::*;
use crate::tar::quote;

/// overlayfs hides everything below a directory that carries it.
const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";
/// Mode of a directory that an archive uses without listing it.
const IMPLICIT_DIR_MODE: u16 = 0o755;
const FIRST_FREE_BLOCK: u64 = 2;

/// Owner, permission bits and time of an inode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, 0 to 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds after that.
    pub nanoseconds: u32,
}

/// What a special file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Character device: major and minor number.
    Char(u32, u32),
    /// Block device: major and minor number.
    Block(u32, u32),
    /// Named pipe.
    Fifo,
}

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The file cannot be written.
    #[error("writing the layer file: {0}")]
    Io(#[from] io::Error),
    /// The file system is full.
    #[error("no space left: the layer needs {needed} bytes")]
    NoSpace {
        /// Size of the whole layer file, as far as it was counted.
        needed: u64,
    },
    /// More bytes than allowed.
    #[error("the layer is larger than {limit} bytes when unpacked")]
    TooLarge {
        /// The limit that was set.
        limit: u64,
    },
    /// More names than allowed.
    #[error("the layer has more than {MAX_ENTRIES} files, or names too long in total")]
    TooManyEntries,
    /// A parent of the entry is something else than a directory.
    #[error("its parent {0:?} is not a directory")]
    ParentNotDirectory(String),
    /// A hard link to nothing.
    #[error("it is a hard link to {0:?}, which is not an earlier file of the same layer")]
    LinkMissing(String),
    /// A hard link to a directory.
    #[error("it is a hard link to {0:?}, which is a directory")]
    LinkToDirectory(String),
    /// The root has to be a directory.
    #[error("it stands for the root of the image, which must be a directory")]
    Root,
    /// A device number that Linux has not.
    #[error("device number {0}:{1} does not exist; 0:0 is overlayfs's mark for a deleted file")]
    DeviceNumber(u32, u32),
    /// A symbolic link's target is empty or too long.
    #[error("the symbolic link's target is empty, has a NUL byte in it or is longer than {MAX_LINK_LEN} bytes")]
    LinkTarget,
    /// Attributes that cannot be stored.
    #[error(transparent)]
    Xattr(#[from] XattrFault),
}

impl From<Full> for ErofsError {
    fn from(_: Full) -> Self {
        Self::TooManyEntries
    }
}

/// How much may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// A file that would be larger is refused.
    pub limit: u64,
    /// Bytes free on the disk. A file that would be larger is counted to its end, and the error says how large it is.
    pub space: u64,
}

impl Budget {
    /// `limit` bytes, on a disk that has room for them.
    pub fn of(limit: u64) -> Self {
        Self { limit, space: limit }
    }
}

/// A finished layer file.
#[derive(Debug)]
pub struct Summary {
    /// The file, complete but not yet synced.
    pub file: File,
    /// Its length in bytes.
    pub bytes: u64,
    /// Inodes in it.
    pub inodes: u64,
}

/// Writes an erofs file.
pub struct Writer {
    out: Output,
    tree: Tree,
    current: Option<OpenFile>,
    inodes: u64,
    whiteout: Option<u32>,
}

struct OpenFile {
    parent: u32,
    name: Vec<u8>,
    meta: Meta,
    xattrs: Vec<u8>,
    size: u64,
    start_block: u32,
    /// Bytes that go to blocks of their own; the rest is `tail`, kept with the inode.
    in_blocks: u64,
    tail: Vec<u8>,
}

/// The fields of an inode that differ.
struct Inode {
    kind: FileType,
    meta: Meta,
    xattr_len: usize,
    size: u64,
    /// First block, or the device number.
    location: u32,
    inline: bool,
    links: u32,
}

impl Writer {
    /// Starts in the empty `file`.
    pub fn new(file: File, budget: Budget) -> Self {
        let root = Meta { mode: IMPLICIT_DIR_MODE, ..Meta::default() };
        let out = Output::new(file, budget, FIRST_FREE_BLOCK);
        Self { out, tree: Tree::new(root), current: None, inodes: 1, whiteout: None }
    }

    /// Names so far, directories that were only implied included.
    pub fn entries(&self) -> usize {
        self.tree.nodes.len()
    }

    /// Adds a directory, or changes the one that is there.
    ///
    /// # Errors
    /// [`ErofsError`]; after one the writer is to be dropped.
    pub fn directory(&mut self, path: &TreePath, meta: Meta, xattrs: Xattrs) -> Result<(), ErofsError> {
        let node = match path.split_last() {
            None => ROOT,
            Some((parents, name)) => {
                let parent = self.directory_of(parents)?;
                self.directory_at(parent, name, meta)?
            }
        };
        if node == ROOT && INODE_LEN + xattrs.encoded_len() > BLOCK_LEN {
            return Err(XattrFault::TooLarge.into());
        }
        if let Some(dir) = self.tree.dir_mut(node) {
            (dir.meta, dir.xattrs) = (meta, xattrs);
        }
        Ok(())
    }

    /// Starts a regular file of `size` bytes; all are zero until [`Writer::write_data`] gives others.
    ///
    /// # Errors
    /// See [`Writer::directory`].
    pub fn begin_file(&mut self, path: &TreePath, meta: Meta, xattrs: Xattrs, size: u64) -> Result<(), ErofsError> {
        let (parent, name) = self.place_for(path)?;
        let xattrs = xattrs.encode();
        let tail = size % BLOCK_LEN as u64;
        let inline = tail > 0 && INODE_LEN + xattrs.len() + tail as usize <= BLOCK_LEN;
        let in_blocks = if inline { size - tail } else { size };
        let blocks = in_blocks.div_ceil(BLOCK_LEN as u64);
        let start_block = if blocks > 0 { self.out.allocate(blocks)? } else { 0 };
        let tail = vec![0; (size - in_blocks) as usize];
        let name = name.to_vec();
        self.current = Some(OpenFile { parent, name, meta, xattrs, size, start_block, in_blocks, tail });
        Ok(())
    }

    /// Gives bytes of the file that was begun; they must lie inside it.
    ///
    /// # Errors
    /// See [`Writer::directory`].
    pub fn write_data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ErofsError> {
        let outside = || io::Error::other("data outside of a file");
        let current = self.current.as_mut().ok_or_else(outside)?;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > current.size) {
            return Err(outside().into());
        }
        let first = current.in_blocks.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (blocks, tail) = bytes.split_at(first);
        if !blocks.is_empty() {
            let at = u64::from(current.start_block) * BLOCK_LEN as u64 + offset;
            self.out.write_at(at, blocks)?;
        }
        if !tail.is_empty() {
            let start = (offset + first as u64 - current.in_blocks) as usize;
            current.tail[start..start + tail.len()].copy_from_slice(tail);
        }
        Ok(())
    }

    /// Ends the file that was begun.
    ///
    /// # Errors
    /// See [`Writer::directory`].
    pub fn end_file(&mut self) -> Result<(), ErofsError> {
        let Some(file) = self.current.take() else { return Ok(()) };
        let inode = Inode {
            kind: FileType::File,
            meta: file.meta,
            xattr_len: file.xattrs.len(),
            size: file.size,
            location: file.start_block,
            inline: !file.tail.is_empty(),
            links: 1,
        };
        let slot = self.place_inode(&inode, &file.xattrs, &file.tail)?;
        self.tree.add(file.parent, &file.name, NodeKind::File, slot)?;
        Ok(())
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// See [`Writer::directory`].
    pub fn symlink(&mut self, path: &TreePath, meta: Meta, xattrs: Xattrs, target: &[u8]) -> Result<(), ErofsError> {
        if target.is_empty() || target.len() > MAX_LINK_LEN || target.contains(&0) {
            return Err(ErofsError::LinkTarget);
        }
        let (parent, name) = self.place_for(path)?;
        let xattrs = xattrs.encode();
        let inline = INODE_LEN + xattrs.len() + target.len() <= BLOCK_LEN;
        let location = if inline { 0 } else { self.out.allocate(1)? };
        if !inline {
            self.out.write_at(u64::from(location) * BLOCK_LEN as u64, target)?;
        }
        let size = target.len() as u64;
        let meta = Meta { mode: 0o777, ..meta };
        let kind = FileType::Symlink;
        let inode = Inode { kind, meta, xattr_len: xattrs.len(), size, location, inline, links: 1 };
        let slot = self.place_inode(&inode, &xattrs, if inline { target } else { &[] })?;
        self.tree.add(parent, name, NodeKind::Symlink, slot)?;
        Ok(())
    }

    /// Adds a device node or a named pipe.
    ///
    /// # Errors
    /// See [`Writer::directory`].
    pub fn special(&mut self, path: &TreePath, meta: Meta, xattrs: Xattrs, device: Device) -> Result<(), ErofsError> {
        let (kind, node, location) = match device {
            Device::Char(0, 0) => return Err(ErofsError::DeviceNumber(0, 0)),
            Device::Char(major, minor) => (FileType::CharDevice, NodeKind::CharDevice, encode_device(major, minor)?),
            Device::Block(major, minor) => (FileType::BlockDevice, NodeKind::BlockDevice, encode_device(major, minor)?),
            Device::Fifo => (FileType::Fifo, NodeKind::Fifo, 0),
        };
        let (parent, name) = self.place_for(path)?;
        let xattrs = xattrs.encode();
        let inode = Inode { kind, meta, xattr_len: xattrs.len(), size: 0, location, inline: false, links: 1 };
        let slot = self.place_inode(&inode, &xattrs, &[])?;
        self.tree.add(parent, name, node, slot)?;
        Ok(())
    }

    /// Gives the inode at `target` another name.
    ///
    /// # Errors
    /// See [`Writer::directory`]; `LinkMissing` when no earlier entry made `target`.
    pub fn hard_link(&mut self, path: &TreePath, target: &TreePath) -> Result<(), ErofsError> {
        let shown = || quote(&target.components().join(&b'/'));
        let mut from = ROOT;
        for component in target.components() {
            from = self.tree.find(from, component).ok_or_else(|| ErofsError::LinkMissing(shown()))?;
        }
        let source = *self.tree.node(from);
        match source.kind {
            NodeKind::Directory => return Err(ErofsError::LinkToDirectory(shown())),
            NodeKind::Whiteout | NodeKind::Dead => return Err(ErofsError::LinkMissing(shown())),
            NodeKind::File | NodeKind::Symlink | NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo => {}
        }
        let (parent, name) = self.place_for(path)?;
        self.tree.nodes[from as usize].linked = true;
        let node = self.tree.add(parent, name, source.kind, source.slot)?;
        self.tree.nodes[node as usize].linked = true;
        Ok(())
    }

    /// Marks `path` as deleted from the layers below. Beside an entry of this layer of that name it hides only what lies
    /// below (image-spec 1.1, "Whiteouts": they apply to lower layers).
    ///
    /// # Errors
    /// See [`Writer::directory`].
    pub fn whiteout(&mut self, path: &TreePath) -> Result<(), ErofsError> {
        let Some((parents, name)) = path.split_last() else { return Err(ErofsError::Root) };
        let parent = self.directory_of(parents)?;
        if let Some(node) = self.tree.find(parent, name) {
            if let Some(dir) = self.tree.dir_mut(node) {
                dir.opaque = true;
            }
            return Ok(());
        }
        let slot = match self.whiteout {
            Some(slot) => slot,
            None => {
                let kind = FileType::CharDevice;
                let meta = Meta::default();
                let inode = Inode { kind, meta, xattr_len: 0, size: 0, location: 0, inline: false, links: 1 };
                let slot = self.place_inode(&inode, &[], &[])?;
                *self.whiteout.insert(slot)
            }
        };
        // All share one inode, as overlayfs's own do.
        let node = self.tree.add(parent, name, NodeKind::Whiteout, slot)?;
        self.tree.nodes[node as usize].linked = true;
        Ok(())
    }

    /// Hides what the layers below have in the directory `path`.
    ///
    /// # Errors
    /// See [`Writer::directory`].
    pub fn opaque(&mut self, path: &TreePath) -> Result<(), ErofsError> {
        let node = self.directory_of(path.components())?;
        if let Some(dir) = self.tree.dir_mut(node) {
            dir.opaque = true;
        }
        Ok(())
    }

    /// Writes the directories and the superblock.
    ///
    /// # Errors
    /// See [`Writer::directory`]; `NoSpace` if the file system became full at any time.
    pub fn finish(mut self, uuid: [u8; 16]) -> Result<Summary, ErofsError> {
        self.end_file()?;
        self.out.close_blocks()?;
        let order = self.tree.seal();
        self.write_directories(&order)?;
        self.write_link_counts(&order)?;
        self.write_superblock(uuid)?;
        let bytes = self.out.blocks() * BLOCK_LEN as u64;
        Ok(Summary { file: self.out.finish()?, bytes, inodes: self.inodes })
    }

    /// The parent's node and the last name for an entry that is not a directory.
    fn place_for<'p>(&mut self, path: &'p TreePath) -> Result<(u32, &'p [u8]), ErofsError> {
        let (parents, name) = path.split_last().ok_or(ErofsError::Root)?;
        Ok((self.directory_of(parents)?, name))
    }

    /// Node of the directory at `components`, made where missing.
    fn directory_of(&mut self, components: &[Vec<u8>]) -> Result<u32, ErofsError> {
        let mut at = ROOT;
        for (depth, name) in components.iter().enumerate() {
            let known = self.tree.find(at, name).map(|node| (node, self.tree.node(node).kind));
            at = match known {
                Some((node, NodeKind::Directory)) => node,
                None | Some((_, NodeKind::Whiteout | NodeKind::Dead)) => {
                    self.directory_at(at, name, Meta { mode: IMPLICIT_DIR_MODE, ..Meta::default() })?
                }
                // A symbolic link among them: following it is how archives have escaped before.
                Some((
                    _,
                    NodeKind::File | NodeKind::Symlink | NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo,
                )) => return Err(ErofsError::ParentNotDirectory(quote(&components[..=depth].join(&b'/')))),
            };
        }
        Ok(at)
    }

    /// The directory `name` in `parent`, made if there is none. One that takes a whiteout's place hides what is below.
    fn directory_at(&mut self, parent: u32, name: &[u8], meta: Meta) -> Result<u32, ErofsError> {
        let known = self.tree.find(parent, name).map(|node| (node, self.tree.node(node).kind));
        if let Some((node, NodeKind::Directory)) = known {
            return Ok(node);
        }
        let opaque = matches!(known, Some((_, NodeKind::Whiteout)));
        let node = self.tree.add_dir(parent, name, meta)?;
        if let Some(dir) = self.tree.dir_mut(node) {
            dir.opaque = opaque;
        }
        Ok(node)
    }

    fn place_inode(&mut self, inode: &Inode, xattrs: &[u8], tail: &[u8]) -> Result<u32, ErofsError> {
        self.inodes += 1;
        let bytes = [&inode.encode(self.inodes as u32)[..], xattrs, tail].concat();
        self.out.place(&bytes)
    }

    fn write_link_counts(&mut self, order: &[u32]) -> Result<(), ErofsError> {
        let mut links = BTreeMap::new();
        for node in order {
            let node = self.tree.node(*node);
            if node.linked {
                *links.entry(node.slot).or_insert(0u32) += 1;
            }
        }
        for (slot, count) in links {
            self.out.write_at(u64::from(slot) * SLOT_LEN + INODE_LINKS_AT, &count.to_le_bytes())?;
        }
        Ok(())
    }

    fn write_superblock(&mut self, uuid: [u8; 16]) -> Result<(), ErofsError> {
        let mut block = [0; BLOCK_LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            block[SUPERBLOCK_OFFSET + at..SUPERBLOCK_OFFSET + at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &(ROOT_SLOT as u16).to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &(self.out.blocks() as u32).to_le_bytes());
        put(48, &uuid);
        let checksum = crc32c(&block[SUPERBLOCK_OFFSET..]);
        block[SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
        self.out.write_at(0, &block)?;
        Ok(())
    }
}

/// Offset of the link count in an inode.
const INODE_LINKS_AT: u64 = 44;

impl Inode {
    fn encode(&self, number: u32) -> [u8; INODE_LEN] {
        let mut raw = [0; INODE_LEN];
        let layout = if self.inline { LAYOUT_FLAT_INLINE } else { LAYOUT_FLAT_PLAIN };
        let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(FORMAT_EXTENDED | (layout << LAYOUT_SHIFT)).to_le_bytes());
        put(2, &xattr::count_field(self.xattr_len).to_le_bytes());
        put(4, &(self.kind.mode() | self.meta.mode).to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.location.to_le_bytes());
        put(20, &number.to_le_bytes());
        put(24, &self.meta.uid.to_le_bytes());
        put(28, &self.meta.gid.to_le_bytes());
        put(32, &self.meta.seconds.to_le_bytes());
        put(40, &self.meta.nanoseconds.to_le_bytes());
        put(INODE_LINKS_AT as usize, &self.links.to_le_bytes());
        raw
    }
}

/// Linux's 32-bit device number: 12 bits major, 20 bits minor.
fn encode_device(major: u32, minor: u32) -> Result<u32, ErofsError> {
    if major > 0xfff || minor > 0xf_ffff {
        return Err(ErofsError::DeviceNumber(major, minor));
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

mod directories;

//! The erofs files that layers become: uncompressed, written front to back from a stream, without a mount.
//!
//! The on-disk format is `fs/erofs/erofs_fs.h` of Linux 6.12; of it only what a layer needs: 64-byte inodes, flat data
//! with the last part inline where it fits, inline extended attributes, no compression, no chunks, no devices. That subset
//! is what [`crate::check`] accepts. The writer knows nothing of tar or of image policy ([`crate::layer`] does).

mod output;
pub(crate) mod path;
mod tree;
mod writer;
pub(crate) mod xattr;

pub use path::{PathFault, TreePath};
pub use writer::{Budget, Device, ErofsError, Meta, Summary, Writer};
pub use xattr::{XattrFault, Xattrs};

/// Block size; what every kernel with 4 KiB pages mounts.
pub(crate) const BLOCK_LEN: usize = 4096;
pub(crate) const BLOCK_BITS: u8 = 12;
/// Inode numbers count units of this size.
pub(crate) const SLOT_LEN: u64 = 32;
pub(crate) const SUPERBLOCK_OFFSET: usize = 1024;
pub(crate) const SUPERBLOCK_LEN: usize = 128;
pub(crate) const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock's checksum covers the rest of its block.
pub(crate) const COMPAT_CHECKSUM: u32 = 0x1;
/// Inodes carry mtime, not ctime.
pub(crate) const COMPAT_MTIME: u32 = 0x2;
pub(crate) const INODE_LEN: usize = 64;
/// Bit 0 of an inode's format: the 64-byte form.
pub(crate) const FORMAT_EXTENDED: u16 = 1;
/// Bits 1 to 3: where the data is.
pub(crate) const LAYOUT_SHIFT: u16 = 1;
pub(crate) const LAYOUT_FLAT_PLAIN: u16 = 0;
pub(crate) const LAYOUT_FLAT_INLINE: u16 = 2;
pub(crate) const DIRENT_LEN: usize = 12;
/// Largest name of a directory entry.
pub(crate) const MAX_NAME_LEN: usize = 255;
/// Largest symbolic link target: PATH_MAX without its NUL.
pub(crate) const MAX_LINK_LEN: usize = 4095;
/// The root inode starts block 1: its number is only 16 bits wide, and directories are written last.
pub(crate) const ROOT_SLOT: u32 = 128;
/// Most entries of one layer: ten times the largest real images, and what memory for their names allows.
pub const MAX_ENTRIES: usize = 1_000_000;
/// Largest layer file: slots fit 32 bits up to twice this, and no sane layer comes near.
pub const MAX_FILE_LEN: u64 = 64 << 30;

/// File type bits of `st_mode`.
pub(crate) mod mode {
    pub(crate) const TYPE_MASK: u16 = 0o170_000;
    pub(crate) const FIFO: u16 = 0o010_000;
    pub(crate) const CHAR: u16 = 0o020_000;
    pub(crate) const DIRECTORY: u16 = 0o040_000;
    pub(crate) const BLOCK: u16 = 0o060_000;
    pub(crate) const FILE: u16 = 0o100_000;
    pub(crate) const SYMLINK: u16 = 0o120_000;
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FileType {
    File = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Symlink = 7,
}

impl FileType {
    /// The type bits of its mode.
    pub(crate) fn mode(self) -> u16 {
        match self {
            Self::File => mode::FILE,
            Self::Directory => mode::DIRECTORY,
            Self::CharDevice => mode::CHAR,
            Self::BlockDevice => mode::BLOCK,
            Self::Fifo => mode::FIFO,
            Self::Symlink => mode::SYMLINK,
        }
    }

    /// From the type bits of a mode.
    pub(crate) fn from_mode(bits: u16) -> Option<Self> {
        Some(match bits & mode::TYPE_MASK {
            mode::FILE => Self::File,
            mode::DIRECTORY => Self::Directory,
            mode::CHAR => Self::CharDevice,
            mode::BLOCK => Self::BlockDevice,
            mode::FIFO => Self::Fifo,
            mode::SYMLINK => Self::Symlink,
            _ => return None,
        })
    }
}

/// CRC-32C without the final inversion, as the kernel keeps it in the superblock.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        // One block per file: a table would be more code than time saved.
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_matches_the_published_check_value() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}

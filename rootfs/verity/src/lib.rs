//! dm-verity: the hash tree of a root image, and the device-mapper calls that open it.
//!
//! Linked into PID 1, so nothing here may panic, and nothing here trusts a byte that it read from a disk: the only
//! trusted input is the root hash with its block count, which come from the kernel image's own signed section.
//! The on-disk format is dm-verity version 1 as the kernel's `Documentation/admin-guide/device-mapper/verity.rst` and
//! cryptsetup's superblock give it: one superblock block, then the hash levels from the top down.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

mod dm;
mod tree;

pub use dm::{DeviceMapper, DeviceNumber, DmError, Verity};
pub use tree::{
    BLOCK_BYTES, BuildError, CheckError, CheckedTree, RootHash, SALT, Tree, TreeCheck, build, check_tree_top,
    hash_block, parse_root_hash, tree_bytes,
};

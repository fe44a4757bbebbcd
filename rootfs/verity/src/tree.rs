//! Builds and checks a hash tree. Pure: reads from a `Read`, returns bytes; opens nothing and decides nothing.
//!
//! The salt is one constant for every release. A salt protects nothing here (the tree is public); a constant one makes
//! equal blocks of two releases have equal leaf hashes, which is what block-wise updates compare.

use sha2::{Digest, Sha256};
use std::io::Read;

/// Data and hash block size in bytes: the page size, the largest that dm-verity takes on x86-64.
pub const BLOCK_BYTES: usize = 4096;

/// The salt of every tree (32 bytes of ASCII, so that a hex dump shows whose it is).
pub const SALT: [u8; 32] = *b"byre dm-verity salt, version 1.\n";

/// More than any root slot will ever have (1 GiB): bounds the memory that a tree can take to 8 MiB.
const MAX_DATA_BLOCKS: u64 = 262_144;

/// Bytes of the superblock that carry meaning; the rest of its block is zero.
const SUPERBLOCK_BYTES: usize = 512;

/// The digest that the whole root hangs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootHash(pub [u8; 32]);

impl std::fmt::Display for RootHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A finished tree: what is written to a verity partition and what the kernel command line names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Digest of the top hash block.
    pub root_hash: RootHash,
    /// Data blocks of [`BLOCK_BYTES`] that the tree covers.
    pub data_blocks: u64,
    /// Superblock and hash levels, a multiple of [`BLOCK_BYTES`].
    pub bytes: Vec<u8>,
}

/// Why no tree was made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Too small or too large to be a root.
    #[error("a root of {blocks} blocks is outside 2..={MAX_DATA_BLOCKS}; build an image of between 8 KiB and 1 GiB")]
    Size {
        /// What was asked for.
        blocks: u64,
    },
    /// The data could not be read to its stated end.
    #[error("cannot read data block {block}: {source}; the image is shorter than stated or the disk fails")]
    Read {
        /// Block number, from 0.
        block: u64,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Digest of one block under [`SALT`] (dm-verity version 1: the salt comes first).
pub fn hash_block(block: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(SALT);
    hasher.update(block);
    hasher.finalize().into()
}

/// Reads `data_blocks` blocks from `data` and returns their tree.
///
/// # Errors
/// [`BuildError`] if the size is out of bounds or `data` ends early.
pub fn build(data: &mut impl Read, data_blocks: u64) -> Result<Tree, BuildError> {
    if !(2..=MAX_DATA_BLOCKS).contains(&data_blocks) {
        return Err(BuildError::Size { blocks: data_blocks });
    }
    let mut leaves = Vec::new();
    let mut block = [0u8; BLOCK_BYTES];
    for number in 0..data_blocks {
        data.read_exact(&mut block).map_err(|source| BuildError::Read { block: number, source })?;
        leaves.extend_from_slice(&hash_block(&block));
    }
    let mut levels = vec![padded(leaves)];
    while let Some(level) = levels.last()
        && level.len() > BLOCK_BYTES
    {
        let next = level.chunks(BLOCK_BYTES).flat_map(hash_block).collect();
        levels.push(padded(next));
    }
    let root_hash = RootHash(hash_block(levels.last().map(Vec::as_slice).unwrap_or_default()));
    let mut bytes = superblock(data_blocks);
    for level in levels.iter().rev() {
        bytes.extend_from_slice(level);
    }
    Ok(Tree { root_hash, data_blocks, bytes })
}

/// Fills `level` with zeros up to a whole number of blocks.
fn padded(mut level: Vec<u8>) -> Vec<u8> {
    level.resize(level.len().next_multiple_of(BLOCK_BYTES), 0);
    level
}

/// The block that tells other tools (veritysetup) how to read the tree. Byre's own boot takes nothing from it on trust.
fn superblock(data_blocks: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.extend_from_slice(b"verity\0\0");
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&1u32.to_le_bytes());
    // The tree's identity is its root hash; a fixed UUID keeps the build reproducible.
    out.extend_from_slice(b"byre verity tree");
    let mut algorithm = b"sha256".to_vec();
    algorithm.resize(32, 0);
    out.extend_from_slice(&algorithm);
    out.extend_from_slice(&4096u32.to_le_bytes());
    out.extend_from_slice(&4096u32.to_le_bytes());
    out.extend_from_slice(&data_blocks.to_le_bytes());
    out.extend_from_slice(&32u16.to_le_bytes());
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(&SALT);
    out.resize(SUPERBLOCK_BYTES, 0);
    out.resize(BLOCK_BYTES, 0);
    out
}

/// What the start of a verity partition says about an expected root hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeCheck {
    /// The top block hashes to the root hash: this slot holds that root.
    Matches,
    /// It is another root's tree.
    OtherRoot,
    /// Too short, or no tree at all.
    NotATree,
}

/// Checks the first two blocks of a verity partition (superblock and top of the tree) against `expected`.
pub fn check_tree_top(first_blocks: &[u8], expected: RootHash) -> TreeCheck {
    let Some((head, rest)) = first_blocks.split_at_checked(BLOCK_BYTES) else {
        return TreeCheck::NotATree;
    };
    let Some(top) = rest.get(..BLOCK_BYTES) else {
        return TreeCheck::NotATree;
    };
    if !head.starts_with(b"verity\0\0") {
        return TreeCheck::NotATree;
    }
    if hash_block(top) == expected.0 { TreeCheck::Matches } else { TreeCheck::OtherRoot }
}

/// Reads a root hash from 64 hexadecimal digits; `None` for anything else.
pub fn parse_root_hash(text: &str) -> Option<RootHash> {
    let mut bytes = [0u8; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(RootHash(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 digests that fit a hash block.
    const HASHES_PER_BLOCK: usize = 128;

    fn data(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK_BYTES).map(|i| (i / 7 % 251) as u8).collect()
    }

    #[test]
    fn levels_are_top_first_and_the_top_hashes_to_the_root_hash() {
        // 129 leaves need two blocks, so there is a second level: superblock, top, two leaf blocks.
        let image = data(HASHES_PER_BLOCK + 1);
        let tree = build(&mut image.as_slice(), 129).unwrap();
        assert_eq!(tree.bytes.len(), 4 * BLOCK_BYTES);
        assert_eq!(check_tree_top(&tree.bytes, tree.root_hash), TreeCheck::Matches);
        let leaf = &tree.bytes[2 * BLOCK_BYTES..3 * BLOCK_BYTES];
        assert_eq!(&leaf[..32], &hash_block(&image[..BLOCK_BYTES]));
        assert_eq!(&tree.bytes[BLOCK_BYTES..BLOCK_BYTES + 32], &hash_block(leaf));
    }

    #[test]
    fn one_flipped_bit_anywhere_changes_the_root_hash() {
        let mut image = data(200);
        let before = build(&mut image.as_slice(), 200).unwrap();
        image[150 * BLOCK_BYTES + 17] ^= 1;
        let after = build(&mut image.as_slice(), 200).unwrap();
        assert_ne!(before.root_hash, after.root_hash);
        assert_eq!(check_tree_top(&after.bytes, before.root_hash), TreeCheck::OtherRoot);
    }

    #[test]
    fn short_and_foreign_trees_are_refused() {
        assert_eq!(check_tree_top(&[], RootHash([0; 32])), TreeCheck::NotATree);
        assert_eq!(check_tree_top(&[0; 8192], RootHash([0; 32])), TreeCheck::NotATree);
        assert!(build(&mut [0u8; 4096].as_slice(), 1).is_err());
        assert!(build(&mut [0u8; 4096].as_slice(), 2).is_err());
    }

    #[test]
    fn a_root_hash_is_64_hex_digits_and_nothing_else() {
        let hash = RootHash([0xab; 32]);
        assert_eq!(parse_root_hash(&hash.to_string()), Some(hash));
        for wrong in ["", "ab", "zz", &"a".repeat(63), &"a".repeat(66)] {
            assert_eq!(parse_root_hash(wrong), None);
        }
    }
}

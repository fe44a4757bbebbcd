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

/// Bytes of a SHA-256 digest.
const DIGEST_BYTES: usize = 32;

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

/// A tree whose every digest was checked up to a root hash: it says of any block whether it belongs to the root.
#[derive(Debug, Clone)]
pub struct CheckedTree {
    bytes: Vec<u8>,
    /// Where the digests of data blocks begin.
    leaves_at: usize,
    data_blocks: u64,
}

/// Why bytes are not the tree of a root hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// A root of such a size is not possible.
    #[error("a root of {0} blocks is outside 2..={MAX_DATA_BLOCKS}")]
    Size(u64),
    /// Another size than a tree over so many blocks has.
    #[error("the hash tree has {found} bytes, one over this root has {expected}")]
    Length {
        /// What is there.
        found: usize,
        /// What belongs there.
        expected: usize,
    },
    /// The first block says something else.
    #[error("the hash tree's superblock is of another tree")]
    Superblock,
    /// A block does not have the digest that the level above names.
    #[error("block {block} of the hash tree is not the one that the root hash vouches for")]
    Block {
        /// Counted from the superblock.
        block: usize,
    },
}

/// Bytes of the tree over so many blocks, superblock included; `None` when no root has so many.
pub fn tree_bytes(data_blocks: u64) -> Option<usize> {
    let levels = level_blocks(data_blocks)?;
    let blocks = levels.iter().try_fold(1_usize, |sum, level| sum.checked_add(*level))?;
    blocks.checked_mul(BLOCK_BYTES)
}

/// Hash blocks of each level, from the leaves up.
fn level_blocks(data_blocks: u64) -> Option<Vec<usize>> {
    if !(2..=MAX_DATA_BLOCKS).contains(&data_blocks) {
        return None;
    }
    let mut hashes = usize::try_from(data_blocks).ok()?;
    let mut levels = Vec::new();
    loop {
        hashes = hashes.div_ceil(BLOCK_BYTES / DIGEST_BYTES);
        levels.push(hashes);
        if hashes == 1 {
            return Some(levels);
        }
    }
}

impl CheckedTree {
    /// Checks a whole tree, superblock included.
    ///
    /// # Errors
    /// [`CheckError`] naming the first block that is wrong.
    pub fn check(bytes: Vec<u8>, root_hash: RootHash, data_blocks: u64) -> Result<Self, CheckError> {
        let levels = level_blocks(data_blocks).ok_or(CheckError::Size(data_blocks))?;
        let expected = tree_bytes(data_blocks).ok_or(CheckError::Size(data_blocks))?;
        if bytes.len() != expected {
            return Err(CheckError::Length { found: bytes.len(), expected });
        }
        if bytes.get(..BLOCK_BYTES) != Some(superblock(data_blocks).as_slice()) {
            return Err(CheckError::Superblock);
        }
        // From the top down: each level's blocks against the digests in the level above, the top one against the root hash.
        let mut above: Vec<u8> = root_hash.0.to_vec();
        let mut at = BLOCK_BYTES;
        for blocks in levels.iter().rev() {
            let end = blocks.saturating_mul(BLOCK_BYTES).saturating_add(at);
            let level = bytes.get(at..end).unwrap_or_default();
            for (number, block) in level.chunks(BLOCK_BYTES).enumerate() {
                if digest_in(&above, number) != Some(hash_block(block).as_slice()) {
                    return Err(CheckError::Block { block: (at / BLOCK_BYTES).saturating_add(number) });
                }
            }
            above = level.to_vec();
            at = end;
        }
        let leaves_at = bytes.len().saturating_sub(above.len());
        Ok(Self { bytes, leaves_at, data_blocks })
    }

    /// The whole tree, as it lies on a verity partition.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Blocks of the root.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Whether this is block `number` of the root.
    pub fn vouches_for(&self, number: u64, block: &[u8]) -> bool {
        if number >= self.data_blocks || block.len() != BLOCK_BYTES {
            return false;
        }
        let leaves = self.bytes.get(self.leaves_at..).unwrap_or_default();
        usize::try_from(number).is_ok_and(|number| digest_in(leaves, number) == Some(hash_block(block).as_slice()))
    }
}

/// The digest with this number among others.
fn digest_in(digests: &[u8], number: usize) -> Option<&[u8]> {
    let start = number.checked_mul(DIGEST_BYTES)?;
    digests.get(start..start.checked_add(DIGEST_BYTES)?)
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
    fn a_checked_tree_vouches_for_its_own_blocks_only() {
        let image = data(300);
        let tree = build(&mut image.as_slice(), 300).unwrap();
        assert_eq!(tree_bytes(300), Some(tree.bytes.len()));
        let checked = CheckedTree::check(tree.bytes.clone(), tree.root_hash, 300).unwrap();
        for (number, block) in (0..).zip(image.chunks(BLOCK_BYTES)) {
            assert!(checked.vouches_for(number, block), "{number}");
            assert!(!checked.vouches_for(number + 1, block), "{number}");
        }
        assert!(!checked.vouches_for(299, &image[..100]));
        for at in [0, 100, 600, BLOCK_BYTES, 2 * BLOCK_BYTES + 5, tree.bytes.len() - 1] {
            let mut changed = tree.bytes.clone();
            changed[at] ^= 1;
            assert!(CheckedTree::check(changed, tree.root_hash, 300).is_err(), "{at}");
        }
        let short = tree.bytes[..tree.bytes.len() - 1].to_vec();
        assert!(matches!(CheckedTree::check(short, tree.root_hash, 300), Err(CheckError::Length { .. })));
        assert!(matches!(CheckedTree::check(vec![], tree.root_hash, 1), Err(CheckError::Size(1))));
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

//! An empty file system as a small file: its blocks that are not zero. The image build makes it, so that a node can put a whole file
//! system where a damaged one lies without a program that makes file systems.
//!
//! ```text
//! "BYREFS01" | blocks of the file system: u32 | blocks that follow: u32 | { index: u32, 4096 bytes } ...      all little-endian
//! ```
//! It lies in the verified root, so it carries no checksum of its own; sizes are checked all the same.

use std::io::{self, Read, Write};

/// Blocks of the file systems that are described so.
pub const BLOCK_BYTES: usize = 4096;
/// Most blocks that are not zero: an empty ext4 of the state partition's size has about 50.
pub const BLOCKS: usize = 1024;
const MAGIC: &[u8; 8] = b"BYREFS01";

/// Why a template cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// Not one, or cut short.
    #[error("the template of the file system is damaged: {0}")]
    Malformed(&'static str),
    /// The file system is not empty, or of another block size.
    #[error("the file system has {0} blocks that are not zero; {BLOCKS} are the most")]
    NotEmpty(usize),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The template of the file system image that `source` holds.
///
/// # Errors
/// If it cannot be read, is no whole number of blocks or not nearly empty.
pub fn encode(source: &mut impl Read) -> Result<Vec<u8>, TemplateError> {
    let mut kept = Vec::new();
    let (mut index, mut count) = (0_u32, 0_usize);
    let mut block = [0_u8; BLOCK_BYTES];
    while read_block(source, &mut block)? {
        if block.iter().any(|byte| *byte != 0) {
            kept.extend(index.to_le_bytes());
            kept.extend(block);
            count = count.saturating_add(1);
        }
        index = index.checked_add(1).ok_or(TemplateError::Malformed("too large"))?;
    }
    if count > BLOCKS {
        return Err(TemplateError::NotEmpty(count));
    }
    let mut encoded = MAGIC.to_vec();
    encoded.extend(index.to_le_bytes());
    encoded.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    encoded.extend(kept);
    Ok(encoded)
}

/// Fills one block; false at the end.
fn read_block(source: &mut impl Read, block: &mut [u8; BLOCK_BYTES]) -> Result<bool, TemplateError> {
    let mut filled = 0_usize;
    while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest)? {
            0 if filled == 0 => return Ok(false),
            0 => return Err(TemplateError::Malformed("not a whole number of blocks")),
            count => filled = filled.saturating_add(count),
        }
    }
    Ok(true)
}

/// An empty file system, block by block.
#[derive(Debug)]
pub struct Template<'a> {
    blocks: u32,
    kept: &'a [u8],
}

impl<'a> Template<'a> {
    /// Reads a template.
    ///
    /// # Errors
    /// If it is not one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TemplateError> {
        let malformed = TemplateError::Malformed;
        let rest = bytes.strip_prefix(MAGIC).ok_or(malformed("it does not begin as one"))?;
        let (blocks, rest) = number(rest).ok_or(malformed("it is cut short"))?;
        let (count, kept) = number(rest).ok_or(malformed("it is cut short"))?;
        let wanted = usize::try_from(count).ok().filter(|count| *count <= BLOCKS);
        let wanted = wanted.and_then(|count| count.checked_mul(BLOCK_BYTES.saturating_add(4)));
        if wanted == Some(kept.len()) { Ok(Self { blocks, kept }) } else { Err(malformed("its length is wrong")) }
    }

    /// Bytes of the file system.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks).saturating_mul(u64::try_from(BLOCK_BYTES).unwrap_or(0))
    }

    /// Its blocks that are not zero, by their index.
    fn kept(&self) -> impl Iterator<Item = (u32, &'a [u8])> {
        self.kept.chunks_exact(BLOCK_BYTES.saturating_add(4)).filter_map(number)
    }

    /// One block that is not zero.
    #[must_use]
    pub fn block(&self, index: u32) -> Option<&'a [u8]> {
        self.kept().find_map(|(kept, block)| (kept == index).then_some(block))
    }

    /// Writes the whole file system, zeros included, from the place where `target` stands; zeros too for the blocks that are held back.
    ///
    /// # Errors
    /// Those of writing; blocks out of order.
    pub fn write(&self, target: &mut impl Write, held_back: &[u32]) -> Result<(), TemplateError> {
        const ZERO: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
        let mut kept = self.kept().peekable();
        for index in 0..self.blocks {
            match kept.next_if(|(kept, _)| *kept == index) {
                Some((_, block)) if !held_back.contains(&index) => target.write_all(block)?,
                Some(_) | None => target.write_all(&ZERO)?,
            }
        }
        if kept.next().is_some() { Err(TemplateError::Malformed("its blocks are out of order")) } else { Ok(()) }
    }
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0; 5 * BLOCK_BYTES];
        image[17] = 1;
        image[3 * BLOCK_BYTES + 4095] = 2;
        image
    }

    #[test]
    fn what_was_encoded_is_written_again() {
        let encoded = encode(&mut image().as_slice()).unwrap();
        assert_eq!(encoded.len(), 16 + 2 * (BLOCK_BYTES + 4));
        let template = Template::parse(&encoded).unwrap();
        assert_eq!(template.bytes(), 5 * 4096);
        let mut written = Vec::new();
        template.write(&mut written, &[]).unwrap();
        assert_eq!(written, image());
        let mut without = Vec::new();
        template.write(&mut without, &[0]).unwrap();
        assert!(
            without[..BLOCK_BYTES].iter().all(|byte| *byte == 0) && without[BLOCK_BYTES..] == image()[BLOCK_BYTES..]
        );
        assert_eq!(template.block(0), Some(&image()[..BLOCK_BYTES]));
        assert_eq!(template.block(1), None);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        let encoded = encode(&mut image().as_slice()).unwrap();
        for broken in [&encoded[..encoded.len() - 1], &encoded[1..], &encoded[..11], &[][..]] {
            assert!(Template::parse(broken).is_err());
        }
        assert!(encode(&mut &image()[..5000]).is_err());
        assert!(encode(&mut vec![1; (BLOCKS + 1) * BLOCK_BYTES].as_slice()).is_err());
        // Blocks out of order, or behind the end.
        let mut swapped = encoded.clone();
        swapped[16] = 4;
        assert!(Template::parse(&swapped).unwrap().write(&mut Vec::new(), &[]).is_err());
    }
}

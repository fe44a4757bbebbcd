//! The raw copy of a slot's kernel image: how long it is, and which root it wants.

use byre_loader::{Device, Span};
use byre_slots::uki::{self, HEADER_BYTES, MAX_CMDLINE_BYTES};

use super::TaskError;

/// Longest kernel image: its partition's size.
const MOST_BYTES: u64 = 80 << 20;

/// Bytes of the kernel image at the beginning of a partition: to the end of its last section. `None` if there is none.
pub(crate) fn length(raw: &Span) -> std::io::Result<Option<u64>> {
    let mut header = vec![0_u8; HEADER_BYTES];
    raw.read_at(&mut header, 0)?;
    Ok(uki::length(&header).filter(|length| *length <= MOST_BYTES))
}

/// The root hash and the number of data blocks in its command line.
pub(crate) fn root(raw: &Span) -> Result<(String, u64), TaskError> {
    let invalid = |text: &str| TaskError::Invalid(format!("the raw kernel image {text}"));
    let read = |error: std::io::Error| TaskError::Invalid(format!("the raw kernel image: {error}"));
    let mut header = vec![0_u8; HEADER_BYTES];
    raw.read_at(&mut header, 0).map_err(read)?;
    let section = uki::find(&header, ".cmdline").filter(|section| section.size <= MAX_CMDLINE_BYTES);
    let section = section.ok_or_else(|| invalid("has no command line"))?;
    let mut text = vec![0_u8; usize::try_from(section.size).unwrap_or(0)];
    raw.read_at(&mut text, section.offset).map_err(read)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let first = |key: &str| text.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
    let hash = first("byre.root=").ok_or_else(|| invalid("names no root"))?;
    let blocks = first("byre.blocks=").and_then(|blocks| blocks.parse().ok());
    Ok((hash, blocks.ok_or_else(|| invalid("names no number of blocks"))?))
}

/// Refuses a kernel image that wants another root than this one: it must not be put in place of what boots.
pub(crate) fn belongs_to(raw: &Span, root_hash: &str) -> Result<(), TaskError> {
    let (found, _) = root(raw)?;
    if found == root_hash {
        Ok(())
    } else {
        Err(TaskError::Invalid(format!("the raw kernel image wants root {found}, and {root_hash} runs")))
    }
}

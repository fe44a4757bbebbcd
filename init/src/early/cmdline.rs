//! The two arguments that the early stage takes from the kernel command line.
//!
//! The first occurrence counts. The signed section of the kernel image comes first and always has both, so nothing that
//! firmware, loader or hypervisor appends can change them.

use super::EarlyError;
use byre_verity::{RootHash, parse_root_hash};

/// What a verified boot needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CommandLine {
    /// `byre.root=`: digest of the verity tree's top block.
    pub(super) root_hash: RootHash,
    /// `byre.blocks=`: data blocks of 4096 bytes that it covers.
    pub(super) data_blocks: u64,
}

/// Reads `/proc/cmdline`.
pub(super) fn read() -> Result<CommandLine, EarlyError> {
    let path = "/proc/cmdline";
    let text = std::fs::read_to_string(path).map_err(|source| EarlyError::File {
        action: "read",
        path: path.into(),
        source,
    })?;
    parse(&text)
}

/// Takes them from a command line.
pub(super) fn parse(text: &str) -> Result<CommandLine, EarlyError> {
    let first = |key: &str| text.split_ascii_whitespace().find_map(|word| word.strip_prefix(key));
    let root_hash =
        first("byre.root=").and_then(parse_root_hash).ok_or(EarlyError::CommandLine("byre.root=<root hash>"))?;
    let data_blocks = first("byre.blocks=")
        .and_then(|blocks| blocks.parse().ok())
        .filter(|blocks| *blocks > 1)
        .ok_or(EarlyError::CommandLine("byre.blocks=<data blocks>"))?;
    Ok(CommandLine { root_hash, data_blocks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_changes_nothing() {
        let (good, evil) = ("ab".repeat(32), "cd".repeat(32));
        let line = parse(&format!("quiet byre.root={good} byre.blocks=7 byre.root={evil} byre.blocks=9\n")).unwrap();
        assert_eq!(line, CommandLine { root_hash: RootHash([0xab; 32]), data_blocks: 7 });
    }

    #[test]
    fn a_line_without_them_is_refused() {
        assert!(parse("quiet").is_err());
        assert!(parse("byre.root=12 byre.blocks=7").is_err());
        assert!(parse(&format!("byre.root={} byre.blocks=x", "ab".repeat(32))).is_err());
        assert!(parse(&format!("byre.root={} byre.blocks=0", "ab".repeat(32))).is_err());
    }
}

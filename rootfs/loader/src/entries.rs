//! The loader's entries: small text files in `loader/entries`, one for each slot (Boot Loader Specification, type 1).
//!
//! ```text
//! title Byre (slot a)
//! sort-key byre
//! version 7
//! uki /byre/a.efi
//! ```
//! `version` is no release's: it rises on this machine with each installation, so that what was installed last is tried first, a release
//! that is older than the one before it included.

use byre_slots::Slot;
use byre_slots::entry::{EntryName, Trial};

use crate::Device;
use crate::fat::{Fat, FatError};

/// Where entries lie.
pub const DIRECTORY: &str = "loader/entries";
/// Longest entry that is read; ours have 70 bytes.
pub const ENTRY_BYTES: u32 = 4096;

/// One entry that the loader shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderEntry {
    /// Its file's name.
    pub file: String,
    /// What the name says.
    pub name: EntryName,
    /// Its version; 0 if it has none that is a number.
    pub install: u64,
    /// The kernel image that it starts, as a path of the partition.
    pub image: String,
}

/// The text of `slot`'s entry of this version.
#[must_use]
pub fn text(slot: Slot, install: u64) -> String {
    let letter = slot.letter();
    format!("title Byre (slot {letter})\nsort-key byre\nversion {install}\nuki /byre/{letter}.efi\n")
}

/// Where the kernel image of a slot lies.
#[must_use]
pub fn image_path(slot: Slot) -> String {
    format!("byre/{}.efi", slot.letter())
}

/// Version and kernel image of an entry's text; `None` if it starts nothing.
#[must_use]
pub fn parse(text: &[u8]) -> Option<(u64, String)> {
    let text = std::str::from_utf8(text).ok()?;
    let value = |key: &str| {
        let pairs = text.lines().filter_map(|line| line.trim().split_once([' ', '\t']));
        pairs.filter(|(found, _)| *found == key).map(|(_, value)| value.trim()).next_back()
    };
    let image = value("uki")?.trim_start_matches('/').to_owned();
    let install = value("version").and_then(|version| version.parse().ok()).unwrap_or(0);
    (!image.is_empty()).then_some((install, image))
}

/// All entries with a name of ours and a text that starts something, in the order of the directory.
///
/// # Errors
/// If the directory is missing or damaged, or the device fails. An entry that cannot be read is left out, as the loader does.
pub fn read<D: Device>(fat: &Fat<D>) -> Result<Vec<LoaderEntry>, FatError> {
    let mut found = Vec::new();
    for file in fat.list(DIRECTORY)? {
        let Some(name) = EntryName::parse(&file.name) else { continue };
        let Some((install, image)) = fat.read(&file, ENTRY_BYTES).ok().and_then(|text| parse(&text)) else { continue };
        found.push(LoaderEntry { file: file.name, name, install, image });
    }
    Ok(found)
}

/// How a slot stands with the loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has no entry.
    Absent,
    /// Its entry has no counter.
    Blessed,
    /// It is on trial, or was.
    Counted {
        /// Tries left.
        left: u8,
    },
}

/// How `slot` stands: by its newest entry, and of two names that a cut in a rename left on one entry, by the one without a counter.
#[must_use]
pub fn standing(entries: &[LoaderEntry], slot: Slot) -> Standing {
    let newest = entries.iter().filter(|entry| entry.name.slot == slot).map(|entry| entry.install).max();
    let mut standing = Standing::Absent;
    for entry in entries.iter().filter(|entry| entry.name.slot == slot && Some(entry.install) == newest) {
        standing = match (entry.name.trial, standing) {
            (Trial::Blessed, _) | (_, Standing::Blessed) => Standing::Blessed,
            (Trial::Counted { left, done: _ }, Standing::Counted { left: other }) => {
                Standing::Counted { left: left.min(other) }
            }
            (Trial::Counted { left, done: _ }, Standing::Absent) => Standing::Counted { left },
        };
    }
    standing
}

/// The version that the next installation gets.
#[must_use]
pub fn next_install(entries: &[LoaderEntry]) -> u64 {
    entries.iter().map(|entry| entry.install).max().unwrap_or(0).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(file: &str, install: u64) -> LoaderEntry {
        LoaderEntry { file: file.to_owned(), name: EntryName::parse(file).unwrap(), install, image: String::new() }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(parse(text(Slot::B, 17).as_bytes()), Some((17, "byre/b.efi".to_owned())));
        assert_eq!(parse(b"version 3\n"), None);
        assert_eq!(parse(b"uki /x.efi\nversion today\n"), Some((0, "x.efi".to_owned())));
    }

    #[test]
    fn of_two_names_on_one_entry_the_blessed_one_counts() {
        let both = [entry("a+1-1.conf", 4), entry("a.conf", 4), entry("b.conf", 9)];
        assert_eq!(standing(&both, Slot::A), Standing::Blessed);
        assert_eq!(standing(&[entry("a.conf", 1), entry("a+2.conf", 3)], Slot::A), Standing::Counted { left: 2 });
        assert_eq!(standing(&both[..2], Slot::B), Standing::Absent);
        assert_eq!(next_install(&both), 10);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&text);
        }
    }
}

//! Reads an offline bundle: a tar file with metadata, a channel's statement, and the parts of its release, in this order.
//!
//! The file comes as a stream and is read once. Only its head is kept in memory, bounded; the parts go into the slot as they come. Nothing in it is
//! believed for being in it: the metadata is checked by TUF's rules, the parts by the signed statement.

use std::collections::HashMap;
use std::io::Read;

use tar::{Entries, Entry};

/// Metadata files of a bundle: a root for each rotation, and three more.
const HEAD_FILES: usize = 300;
/// Bytes of all of them.
const HEAD_BYTES: u64 = 8 << 20;
/// Bytes of one.
const FILE_BYTES: u64 = 1 << 20;
/// Bytes of a name in a bundle of ours.
const NAME_BYTES: usize = 128;
const CHANNEL: &str = "targets/channel-";

/// Why a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The connection or the archive.
    #[error("the bundle cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// It ends too early.
    #[error("the bundle ends before {0}: it was cut off, or is no bundle of a release")]
    Ends(String),
    /// Something else stands where this should.
    #[error("the bundle has {found} where {expected} belongs: make it anew with cargo xtask release")]
    Order {
        /// What is there.
        found: String,
        /// What belongs there.
        expected: String,
    },
    /// More than any bundle of ours.
    #[error("the bundle's metadata is larger than any: {0}")]
    TooLarge(&'static str),
}

/// What comes before the parts.
#[derive(Debug)]
pub struct Head {
    /// Contents by name: `metadata/...`, and one `targets/channel-...`.
    pub files: HashMap<String, Vec<u8>>,
    /// The channel that it was made from.
    pub channel: String,
}

/// Reads the head, up to and with the channel's statement.
///
/// # Errors
/// [`BundleError`].
pub fn read_head<R: Read>(entries: &mut Entries<'_, R>) -> Result<Head, BundleError> {
    let mut files = HashMap::new();
    let mut bytes = 0;
    loop {
        let Some(entry) = entries.next() else { return Err(BundleError::Ends("the channel's statement".to_owned())) };
        let mut entry = entry?;
        let name = name_of(&entry)?;
        let channel = name.strip_prefix(CHANNEL).map(str::to_owned);
        if channel.is_none() && !name.starts_with("metadata/") {
            return Err(BundleError::Order { found: name, expected: "metadata or a channel's statement".to_owned() });
        }
        let size = entry.header().entry_size()?;
        bytes += size.min(HEAD_BYTES + 1);
        if size > FILE_BYTES {
            return Err(BundleError::TooLarge("one file has more than 1 MiB"));
        }
        if bytes > HEAD_BYTES || files.len() >= HEAD_FILES {
            return Err(BundleError::TooLarge("more than 300 files or 8 MiB"));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.insert(name, content);
        if let Some(channel) = channel {
            return Ok(Head { files, channel });
        }
    }
}

/// The next part, which must be this one.
///
/// # Errors
/// [`BundleError`].
pub fn part<'a, R: Read>(entries: &mut Entries<'a, R>, name: &str) -> Result<Entry<'a, R>, BundleError> {
    let expected = format!("targets/{name}");
    let Some(entry) = entries.next() else { return Err(BundleError::Ends(expected)) };
    let entry = entry?;
    let found = name_of(&entry)?;
    if found == expected { Ok(entry) } else { Err(BundleError::Order { found, expected }) }
}

fn name_of<R: Read>(entry: &Entry<'_, R>) -> Result<String, BundleError> {
    let other = |found: &str| BundleError::Order { found: found.to_owned(), expected: "a plain file".to_owned() };
    if entry.header().entry_type() != tar::EntryType::Regular {
        return Err(other("something that is no file"));
    }
    let raw = entry.path_bytes();
    let name = std::str::from_utf8(&raw).ok().filter(|name| name.len() <= NAME_BYTES && name.is_ascii());
    name.map(str::to_owned).ok_or_else(|| other("a name that is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn head(bytes: &[u8]) -> Result<Head, BundleError> {
        read_head(&mut tar::Archive::new(bytes).entries().unwrap())
    }

    #[test]
    fn the_head_ends_with_the_channel_and_parts_follow_in_order() {
        let bytes = bundle(&[
            ("metadata/1.root.json", b"root"),
            ("metadata/timestamp.json", b"time"),
            ("targets/channel-stable", b"statement"),
            ("targets/byre-2.verity", b"tree"),
        ]);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entries = archive.entries().unwrap();
        let head = read_head(&mut entries).unwrap();
        assert_eq!(head.channel, "stable");
        assert_eq!(head.files.len(), 3);
        let mut tree = Vec::new();
        part(&mut entries, "byre-2.verity").unwrap().read_to_end(&mut tree).unwrap();
        assert_eq!(tree, b"tree");
        assert!(matches!(part(&mut entries, "byre-2.root"), Err(BundleError::Ends(_))));
    }

    #[test]
    fn what_is_no_bundle_is_refused_by_name() {
        assert!(matches!(head(b""), Err(BundleError::Ends(_))));
        assert!(matches!(head(&bundle(&[("etc/passwd", b"x")])), Err(BundleError::Order { .. })));
        let large = vec![0; (FILE_BYTES + 1) as usize];
        assert!(matches!(head(&bundle(&[("metadata/a", &large)])), Err(BundleError::TooLarge(_))));
        let many: Vec<String> = (0..=HEAD_FILES).map(|number| format!("metadata/{number}")).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
        assert!(matches!(head(&bundle(&many)), Err(BundleError::TooLarge(_))));
        let mut cut = bundle(&[("metadata/1.root.json", &[7; 2000])]);
        cut.truncate(1000);
        assert!(head(&cut).is_err());
    }
}

//! The release statement: 512 bytes that say what a release is, signed.
//!
//! Numbers are little-endian; what a field does not use is zero, and so is the reserved part, so that a statement has one form only.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `byre-rel` |
//! | 8..12 | format, [`FORMAT`] |
//! | 12..16 | zero |
//! | 16..80 | version: its length, then at most 63 bytes of text |
//! | 80..88 | install number |
//! | 88..96 | minimum: the lowest install number that may ever be installed once this release is in use |
//! | 96..104 | build time, seconds since 1970 |
//! | 104..112 | blocks of 4096 bytes of the root |
//! | 112..120 | bytes of the hash tree with its superblock |
//! | 120..128 | bytes of the kernel image |
//! | 128..160 | dm-verity root hash |
//! | 160..192 | SHA-256 of the kernel image |
//! | 192..200 | name of the key that signed |
//! | 200..448 | zero |
//! | 448..512 | ed25519 signature over bytes 0..448 |

use crate::keys::{KeyId, ReleaseKeys, SigningKey};

/// Bytes of a statement: one sector.
pub const STATEMENT_BYTES: usize = 512;
/// The format that this program reads and writes.
pub const FORMAT: u32 = 1;
/// Bytes of a version's text.
pub const VERSION_BYTES: usize = 63;
/// What is signed.
const SIGNED_BYTES: usize = STATEMENT_BYTES - SIGNATURE_BYTES;
const SIGNATURE_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"byre-rel";
/// Bytes between the key's name and the signature.
const RESERVED_BYTES: usize = 248;
/// A block of the root.
const BLOCK_BYTES: u64 = 4096;
/// The most that any slot has room for (1 GiB), as `byre-verity` bounds a tree.
const ROOT_BLOCKS: u64 = 262_144;
/// The most that a kernel image may have: FAT and the stub's loader are far from their limits there.
const UKI_BYTES: u64 = 256 << 20;

/// Why bytes are no statement that can be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Shorter or longer.
    #[error("a release statement has {STATEMENT_BYTES} bytes, this has {0}")]
    Length(usize),
    /// Something else.
    #[error("this is no release statement")]
    Magic,
    /// Of the future.
    #[error(
        "the release statement has format {0}, this system reads format {FORMAT}: install a release between the two first"
    )]
    Format(u32),
    /// By a key that this system does not know.
    #[error("the release statement is signed by key {0}, which is not among the release keys of the running system")]
    UnknownKey(KeyId),
    /// By nobody.
    #[error("the signature of the release statement by key {0} is wrong")]
    Signature(KeyId),
    /// Signed, and yet not possible: made by a faulty tool.
    #[error("the release statement is signed, but its {0} cannot be: make the release anew")]
    Field(&'static str),
}

/// Why a text is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no version: 1 to {VERSION_BYTES} letters, digits and `.`, `-`, `+`, `_`, `~`, beginning with a letter or digit"
)]
pub struct VersionError(String);

/// A version's text, checked: it goes into names of files and loader entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(String);

impl Version {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-+_~".contains(&byte);
        let starts = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if starts && text.len() <= VERSION_BYTES && text.bytes().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(VersionError(text.chars().take(VERSION_BYTES).collect()))
    }
}

/// What a release is, by a signature that was checked (or, on the side that makes releases, about to be signed).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// For people.
    pub version: Version,
    /// Rises with every release; this alone orders releases.
    pub install: u64,
    /// Once this release is in use, nothing below this install number is installed any more, whoever allows it.
    pub minimum_install: u64,
    /// Seconds since 1970.
    pub build_time: u64,
    /// Blocks of 4096 bytes of the root.
    pub root_blocks: u64,
    /// Bytes of the hash tree, superblock included: a whole number of blocks.
    pub verity_bytes: u64,
    /// Bytes of the kernel image.
    pub uki_bytes: u64,
    /// dm-verity's root hash.
    pub root_hash: [u8; 32],
    /// SHA-256 of the kernel image.
    pub uki_sha256: [u8; 32],
}

impl Statement {
    /// Bytes of the root.
    #[must_use]
    pub fn root_bytes(&self) -> u64 {
        self.root_blocks.saturating_mul(BLOCK_BYTES)
    }

    /// The statement in its one form, signed.
    ///
    /// # Errors
    /// [`StatementError::Field`] for what no reader would take.
    pub fn sign(&self, key: &SigningKey) -> Result<[u8; STATEMENT_BYTES], StatementError> {
        self.check()?;
        let mut bytes = Vec::with_capacity(STATEMENT_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let text = self.version.as_str().as_bytes();
        bytes.push(u8::try_from(text.len()).map_err(|_| StatementError::Field("version"))?);
        bytes.extend_from_slice(text);
        bytes.resize(80, 0);
        let numbers =
            [self.install, self.minimum_install, self.build_time, self.root_blocks, self.verity_bytes, self.uki_bytes];
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.root_hash);
        bytes.extend_from_slice(&self.uki_sha256);
        bytes.extend_from_slice(&key.id().0);
        bytes.resize(SIGNED_BYTES, 0);
        let signature = key.sign(&bytes);
        bytes.extend_from_slice(&signature);
        bytes.try_into().map_err(|bytes: Vec<u8>| StatementError::Length(bytes.len()))
    }

    /// What must hold of each field by itself.
    fn check(&self) -> Result<(), StatementError> {
        let fields = [
            ("install number", self.install > 0),
            ("minimum", self.minimum_install <= self.install),
            ("root size", (2..=ROOT_BLOCKS).contains(&self.root_blocks)),
            ("hash tree size", Some(self.verity_bytes) == tree_bytes(self.root_blocks)),
            ("kernel image size", (1..=UKI_BYTES).contains(&self.uki_bytes)),
        ];
        match fields.into_iter().find(|(_, holds)| !holds) {
            Some((field, _)) => Err(StatementError::Field(field)),
            None => Ok(()),
        }
    }
}

/// Bytes of the hash tree over so many blocks: a superblock and levels of 128 digests a block, up to one block.
fn tree_bytes(data_blocks: u64) -> Option<u64> {
    let mut level = data_blocks;
    let mut blocks = 1_u64;
    loop {
        level = level.div_ceil(128);
        blocks = blocks.checked_add(level)?;
        if level <= 1 {
            return blocks.checked_mul(BLOCK_BYTES);
        }
    }
}

/// Bytes that claim to be a statement. [`Self::verify`] makes one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unverified([u8; STATEMENT_BYTES]);

impl Unverified {
    /// Takes exactly [`STATEMENT_BYTES`].
    ///
    /// # Errors
    /// [`StatementError::Length`].
    pub fn new(bytes: &[u8]) -> Result<Self, StatementError> {
        bytes.try_into().map(Self).map_err(|_| StatementError::Length(bytes.len()))
    }

    /// As they were taken.
    #[must_use]
    pub fn bytes(&self) -> &[u8; STATEMENT_BYTES] {
        &self.0
    }

    /// The statement, if one of these keys signed it. Nothing of it is looked at before, but for its format and the key's name.
    ///
    /// # Errors
    /// [`StatementError`] saying what is wrong with it.
    pub fn verify(&self, keys: &ReleaseKeys) -> Result<Statement, StatementError> {
        let mut reader = Reader(&self.0);
        if reader.array::<8>()? != MAGIC {
            return Err(StatementError::Magic);
        }
        let format = u32::from_le_bytes(reader.array()?);
        if format != FORMAT {
            return Err(StatementError::Format(format));
        }
        let zeros: [u8; 4] = reader.array()?;
        let version: [u8; 64] = reader.array()?;
        let mut numbers = [0_u64; 6];
        for number in &mut numbers {
            *number = u64::from_le_bytes(reader.array()?);
        }
        let (root_hash, uki_sha256) = (reader.array()?, reader.array()?);
        let key = KeyId(reader.array()?);
        let reserved: [u8; RESERVED_BYTES] = reader.array()?;
        let signature: [u8; SIGNATURE_BYTES] = reader.array()?;
        let (signed, _) = self.0.split_at_checked(SIGNED_BYTES).ok_or(StatementError::Length(self.0.len()))?;
        match keys.verify(key, signed, &signature) {
            Some(true) => {}
            Some(false) => return Err(StatementError::Signature(key)),
            None => return Err(StatementError::UnknownKey(key)),
        }
        if zeros != [0; 4] || reserved.iter().any(|byte| *byte != 0) {
            return Err(StatementError::Field("reserved part"));
        }
        let [install, minimum_install, build_time, root_blocks, verity_bytes, uki_bytes] = numbers;
        let statement = Statement {
            version: read_version(&version).ok_or(StatementError::Field("version"))?,
            install,
            minimum_install,
            build_time,
            root_blocks,
            verity_bytes,
            uki_bytes,
            root_hash,
            uki_sha256,
        };
        statement.check()?;
        Ok(statement)
    }
}

fn read_version(field: &[u8; 64]) -> Option<Version> {
    let (length, rest) = field.split_first()?;
    let (text, padding) = rest.split_at_checked(usize::from(*length))?;
    if padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// What has not been read yet.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], StatementError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(StatementError::Magic)?;
        self.0 = rest;
        Ok(*array)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    fn keys(seeds: &[u8]) -> ReleaseKeys {
        let file: String = seeds.iter().map(|seed| key(*seed).public_line("test")).collect();
        ReleaseKeys::parse(file.as_bytes()).unwrap()
    }

    fn statement() -> Statement {
        Statement {
            version: "1.2.3-rc.1".parse().unwrap(),
            install: 42,
            minimum_install: 40,
            build_time: 1_795_000_000,
            root_blocks: 129,
            verity_bytes: 4 * 4096,
            uki_bytes: 13_000_001,
            root_hash: [7; 32],
            uki_sha256: [9; 32],
        }
    }

    fn read(bytes: &[u8], keys: &ReleaseKeys) -> Result<Statement, StatementError> {
        Unverified::new(bytes)?.verify(keys)
    }

    #[test]
    fn a_statement_reads_back_by_any_key_of_the_file() {
        let bytes = statement().sign(&key(2)).unwrap();
        assert_eq!(read(&bytes, &keys(&[1, 2])), Ok(statement()));
        assert_eq!(read(&bytes, &keys(&[1])), Err(StatementError::UnknownKey(key(2).id())));
    }

    #[test]
    fn a_flipped_bit_in_any_byte_is_noticed() {
        let bytes = statement().sign(&key(1)).unwrap();
        let keys = keys(&[1]);
        for byte in 0..STATEMENT_BYTES {
            let mut changed = bytes;
            changed[byte] ^= 1 << (byte % 8);
            assert!(read(&changed, &keys).is_err(), "byte {byte}");
        }
        for length in [0, 1, 511, 513, 1024] {
            let wrong = vec![0; length];
            assert_eq!(read(&wrong, &keys), Err(StatementError::Length(length)));
        }
    }

    #[test]
    fn what_cannot_be_is_neither_signed_nor_believed() {
        let wrong = [
            Statement { install: 0, minimum_install: 0, ..statement() },
            Statement { minimum_install: 43, ..statement() },
            Statement { root_blocks: 1, ..statement() },
            Statement { root_blocks: u64::MAX, ..statement() },
            Statement { verity_bytes: 3 * 4096, ..statement() },
            Statement { uki_bytes: 0, ..statement() },
        ];
        for statement in wrong {
            assert!(matches!(statement.sign(&key(1)), Err(StatementError::Field(_))), "{statement:?}");
        }
        // Signed by a faulty tool: fields are checked again behind the signature.
        for place in [12, 16, 80, 300] {
            let mut bytes = statement().sign(&key(1)).unwrap();
            bytes[place] = 0xee;
            if place == 80 {
                bytes[80..88].fill(0);
            }
            let signature = key(1).sign(&bytes[..SIGNED_BYTES]);
            bytes[SIGNED_BYTES..].copy_from_slice(&signature);
            assert!(matches!(read(&bytes, &keys(&[1])), Err(StatementError::Field(_))), "{place}");
        }
    }

    #[test]
    fn a_later_format_is_named_before_its_signature_is_looked_at() {
        let mut bytes = statement().sign(&key(1)).unwrap();
        bytes[8] = 2;
        assert_eq!(read(&bytes, &keys(&[1])), Err(StatementError::Format(2)));
    }

    #[test]
    fn versions_are_names_of_files_too() {
        for good in ["1", "0.1.0", "2026.11-rc1+g12ab~1"] {
            assert!(good.parse::<Version>().is_ok(), "{good}");
        }
        for bad in ["", ".", "../1", "1/2", "1 2", "-1", &"1".repeat(64), "1\n", "ä"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), STATEMENT_BYTES)) {
            prop_assert!(read(&bytes, &keys(&[1])).is_err());
        }

        #[test]
        fn every_possible_statement_reads_back(install in 1_u64.., behind in any::<u64>(), blocks in 2..=ROOT_BLOCKS, time in any::<u64>()) {
            let statement = Statement {
                install,
                minimum_install: install.saturating_sub(behind),
                build_time: time,
                root_blocks: blocks,
                verity_bytes: tree_bytes(blocks).unwrap(),
                ..statement()
            };
            let bytes = statement.sign(&key(1)).unwrap();
            prop_assert_eq!(read(&bytes, &keys(&[1])), Ok(statement));
        }
    }
}

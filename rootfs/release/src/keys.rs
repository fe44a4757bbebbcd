//! The keys that may sign a release statement.
//!
//! The public ones lie in the verified root as text, one `ed25519 <64 hexadecimal digits> <remark>` a line, so that a running release says
//! which releases may follow it. A statement by any one of them is believed: more than one is for changing keys, not for a threshold.
//! Thresholds are the repository's (TUF), which every online update passes before its statement is looked at.

use ed25519_dalek::{Signature, Signer as _, VerifyingKey};
use sha2::{Digest as _, Sha256};

/// Keys of one file: the one in use, the one that comes after it, and room for a rotation that takes several releases.
pub const KEYS: usize = 8;
/// Bytes of a key file: eight lines with long remarks.
pub const KEY_FILE_BYTES: usize = 4096;
/// Begins a line with a key.
const ALGORITHM: &str = "ed25519";

/// Names a key in a statement: the first eight bytes of the SHA-256 of the public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId(pub [u8; 8]);

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Why a key file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Too long for what it is.
    #[error("a file of release keys has at most {KEY_FILE_BYTES} bytes, this one has {0}")]
    FileTooLong(usize),
    /// Not text.
    #[error("a file of release keys is text in UTF-8")]
    NotText,
    /// A line that is neither a key nor a remark.
    #[error(
        "line {line} of the release keys is no key: write `ed25519 <64 hexadecimal digits> <remark>`, or `#` and a remark"
    )]
    Line {
        /// From 1.
        line: usize,
    },
    /// Not a point of the curve, or one of its weak ones.
    #[error("line {line} of the release keys is no public key of ed25519")]
    Point {
        /// From 1.
        line: usize,
    },
    /// The same key again: probably meant to be another.
    #[error("line {line} of the release keys repeats a key")]
    Twice {
        /// From 1.
        line: usize,
    },
    /// More than one rotation needs.
    #[error("a file of release keys has at most {KEYS} keys")]
    TooMany,
    /// Nothing could ever be verified.
    #[error("the file of release keys has no key: releases could not be checked")]
    None,
}

/// Public keys, each checked to be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseKeys(Vec<VerifyingKey>);

impl ReleaseKeys {
    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyError`] on the first line that is not as it should be.
    pub fn parse(file: &[u8]) -> Result<Self, KeyError> {
        if file.len() > KEY_FILE_BYTES {
            return Err(KeyError::FileTooLong(file.len()));
        }
        let text = std::str::from_utf8(file).map_err(|_| KeyError::NotText)?;
        let mut keys = Vec::new();
        for (line, content) in (1..).zip(text.lines()) {
            if content.trim().is_empty() || content.starts_with('#') {
                continue;
            }
            let mut words = content.split_whitespace();
            let (Some(ALGORITHM), Some(digits)) = (words.next(), words.next()) else {
                return Err(KeyError::Line { line });
            };
            let mut bytes = [0_u8; 32];
            hex::decode_to_slice(digits, &mut bytes).map_err(|_| KeyError::Line { line })?;
            let key = VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak());
            let key = key.ok_or(KeyError::Point { line })?;
            if keys.contains(&key) {
                return Err(KeyError::Twice { line });
            }
            if keys.len() >= KEYS {
                return Err(KeyError::TooMany);
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(KeyError::None) } else { Ok(Self(keys)) }
    }

    /// The names of all keys, in the order of the file.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(id_of)
    }

    /// Whether a key of this file that has this name signed `message` so; `None` when no key has the name.
    pub(crate) fn verify(&self, id: KeyId, message: &[u8], signature: &[u8; 64]) -> Option<bool> {
        let key = self.0.iter().find(|key| id_of(key) == id)?;
        Some(key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }
}

/// A secret key, for those who make releases. PID 1 never has one.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.id())
    }
}

impl SigningKey {
    /// The key of a seed (the 32 secret bytes of RFC 8032, section 5.1.5).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        id_of(&self.0.verifying_key())
    }

    /// The 32 bytes of the public key.
    #[must_use]
    pub fn public_bytes(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Its public key as a line of a key file.
    #[must_use]
    pub fn public_line(&self, remark: &str) -> String {
        format!("{ALGORITHM} {} {remark}\n", hex::encode(self.public_bytes()))
    }

    /// The key for other formats that sign with it.
    #[must_use]
    pub fn ed25519(&self) -> &ed25519_dalek::SigningKey {
        &self.0
    }

    /// An ed25519 signature over `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

fn id_of(key: &VerifyingKey) -> KeyId {
    let digest = Sha256::digest(key.as_bytes());
    let mut id = [0; 8];
    for (to, from) in id.iter_mut().zip(digest) {
        *to = from;
    }
    KeyId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seed: u8) -> String {
        SigningKey::from_seed(&[seed; 32]).public_line("a remark of several words")
    }

    #[test]
    fn a_file_has_remarks_and_up_to_eight_keys() {
        let file = format!("# whose they are\n\n{}{}", line(1), line(2));
        let keys = ReleaseKeys::parse(file.as_bytes()).unwrap();
        let expected = [1, 2].map(|seed| SigningKey::from_seed(&[seed; 32]).id());
        assert!(keys.ids().eq(expected));
        let nine: String = (1..=9).map(line).collect();
        assert_eq!(ReleaseKeys::parse(nine.as_bytes()), Err(KeyError::TooMany));
    }

    #[test]
    fn what_is_no_key_is_refused_with_its_line() {
        assert_eq!(ReleaseKeys::parse(b"# none\n"), Err(KeyError::None));
        assert_eq!(ReleaseKeys::parse(&[0xff; 4]), Err(KeyError::NotText));
        assert_eq!(ReleaseKeys::parse(&[b'#'; 5000]), Err(KeyError::FileTooLong(5000)));
        assert_eq!(ReleaseKeys::parse(format!("{0}{0}", line(1)).as_bytes()), Err(KeyError::Twice { line: 2 }));
        for bad in ["rsa 00", "ed25519", "ed25519 00", "ed25519 zz", &format!("ed25519 {}", "0".repeat(66))] {
            assert_eq!(ReleaseKeys::parse(bad.as_bytes()), Err(KeyError::Line { line: 1 }), "{bad}");
        }
        // The neutral element: any signature by it can be forged.
        let weak = format!("ed25519 01{}", "0".repeat(62));
        assert_eq!(ReleaseKeys::parse(weak.as_bytes()), Err(KeyError::Point { line: 1 }));
    }
}

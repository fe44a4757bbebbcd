//! Names and identities that cross processes: validated when decoded, so that a value of these types is always well formed.

use serde::{Deserialize, Serialize};

/// Longest workload name in bytes: a DNS label, since names become host names.
pub const NAME_BYTES: usize = 63;

/// Why a text is no workload name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name {0:?} is not valid: use 1 to 63 of a-z, A-Z, 0-9, '-', '_' and '.', beginning with a letter or digit")]
pub struct InvalidName(pub String);

/// A workload's name: 1 to 63 bytes of `[A-Za-z0-9][A-Za-z0-9_.-]*`. Safe as a file name and as a host name's base.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        let mut bytes = text.bytes();
        let first_is_good = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest_is_good = bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        if first_is_good && rest_is_good && text.len() <= NAME_BYTES {
            Ok(Self(text))
        } else {
            Err(InvalidName(text.chars().take(NAME_BYTES).collect()))
        }
    }
}

impl TryFrom<&str> for Name {
    type Error = InvalidName;
    fn try_from(text: &str) -> Result<Self, InvalidName> {
        Self::try_from(text.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A workload's identity on this node: 64 random bits, written as 16 hexadecimal digits. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkloadId(pub u64);

impl std::fmt::Display for WorkloadId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl std::str::FromStr for WorkloadId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let well_formed = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(text, 16) {
            Ok(value) if well_formed => Ok(Self(value)),
            Ok(_) | Err(_) => Err(InvalidName(text.chars().take(NAME_BYTES).collect())),
        }
    }
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {0:?} is not valid: 64 lower-case hexadecimal digits are needed")]
pub struct InvalidDigest(pub String);

/// A SHA-256 digest. Names a layer by its `diff_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl std::fmt::Display for Digest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl std::str::FromStr for Digest {
    type Err = InvalidDigest;
    /// Takes 64 hexadecimal digits, with or without `sha256:` before them.
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest(text.chars().take(80).collect());
        let digits = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        if digits.len() != 64 {
            return Err(invalid());
        }
        let mut bytes = [0_u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let mut value = 0_u8;
            for digit in pair {
                let nibble = match digit {
                    b'0'..=b'9' => digit.wrapping_sub(b'0'),
                    b'a'..=b'f' => digit.wrapping_sub(b'a').wrapping_add(10),
                    _ => return Err(invalid()),
                };
                value = (value << 4) | nibble;
            }
            *byte = value;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leaves_its_directory() {
        for bad in ["", ".", "..", "a/b", "-a", "_x", "a b", "a\0", "ä", &"a".repeat(64)] {
            assert!(Name::try_from(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "web-1", "A.b_c", &"a".repeat(63)] {
            assert_eq!(Name::try_from(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn ids_and_digests_read_back_what_they_write() {
        let id = WorkloadId(0xab);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("AB".parse::<WorkloadId>().is_err());
        assert!("+0000000000000ab".parse::<WorkloadId>().is_err());
        let digest = Digest([0x5c; 32]);
        assert_eq!(format!("sha256:{digest}").parse(), Ok(digest));
        assert!("5C".repeat(32).parse::<Digest>().is_err());
    }
}

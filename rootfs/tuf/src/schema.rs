//! The metadata files. Fields that are not known are kept, because signatures are over them as well.

use std::collections::BTreeMap;

use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::SPEC_VERSION;
use crate::canonical::canonical;

type Extra = BTreeMap<String, Value>;

/// The four top-level roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Which keys count.
    Root,
    /// What is newest.
    Timestamp,
    /// Which metadata belongs together.
    Snapshot,
    /// Which targets there are.
    Targets,
}

impl Role {
    /// As it stands in metadata.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Timestamp => "timestamp",
            Self::Snapshot => "snapshot",
            Self::Targets => "targets",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A file: what is signed, as it came, and signatures over its canonical form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// What is signed.
    pub signed: Value,
    /// Over that.
    pub signatures: Vec<Signature>,
}

/// A signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Whose.
    pub keyid: String,
    /// In hexadecimal digits.
    pub sig: String,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// `ed25519`; others are kept and never believed.
    pub keytype: String,
    /// `ed25519`.
    pub scheme: String,
    /// The key itself.
    pub keyval: KeyValue,
    /// What else stands there.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyValue {
    /// In hexadecimal digits.
    pub public: String,
    /// What else stands there.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Key {
    /// Of 32 bytes.
    #[must_use]
    pub fn ed25519(public: &[u8; 32]) -> Self {
        let keyval = KeyValue { public: hex::encode(public), extra: Extra::new() };
        Self { keytype: "ed25519".to_owned(), scheme: "ed25519".to_owned(), keyval, extra: Extra::new() }
    }

    /// As a key that can verify, if it is one.
    pub(crate) fn verifying(&self) -> Option<VerifyingKey> {
        if self.keytype != "ed25519" || self.scheme != "ed25519" {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(&self.keyval.public, &mut bytes).ok()?;
        VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak())
    }
}

/// The name of a key: the SHA-256 of its canonical form.
#[must_use]
pub fn key_id(key: &Key) -> String {
    let form = serde_json::to_value(key).ok().and_then(|value| canonical(&value)).unwrap_or_default();
    hex::encode(Sha256::digest(form))
}

/// The keys of a role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// Names of its keys.
    pub keyids: Vec<String>,
    /// How many of them must sign.
    pub threshold: u64,
    /// What else stands there.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Which keys count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Root {
    /// `root`.
    #[serde(rename = "_type")]
    pub kind: Role,
    /// See [`SPEC_VERSION`].
    pub spec_version: String,
    /// Whether names of files carry versions and digests.
    pub consistent_snapshot: bool,
    /// Rises by one.
    pub version: u64,
    /// RFC 3339, in UTC.
    pub expires: String,
    /// All keys, by name.
    pub keys: BTreeMap<String, Key>,
    /// Whose they are.
    pub roles: BTreeMap<Role, RoleKeys>,
    /// What else stands there.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What one file says of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Its version.
    pub version: u64,
    /// Its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Its digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<BTreeMap<String, String>>,
    /// What else stands there.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Meta {
    /// With a version alone.
    #[must_use]
    pub fn plain(version: u64) -> Self {
        Self { version, length: None, hashes: None, extra: Extra::new() }
    }

    /// With length and digest of these bytes.
    #[must_use]
    pub fn of(version: u64, bytes: &[u8]) -> Self {
        Self { length: Some(bytes.len() as u64), hashes: Some(digests(bytes)), ..Self::plain(version) }
    }
}

fn digests(bytes: &[u8]) -> BTreeMap<String, String> {
    BTreeMap::from([("sha256".to_owned(), hex::encode(Sha256::digest(bytes)))])
}

macro_rules! online_role {
    ($(#[$meta:meta])* $name:ident, $role:expr, $field:ident: $of:ty) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            /// The role.
            #[serde(rename = "_type")]
            pub kind: Role,
            /// See [`SPEC_VERSION`].
            pub spec_version: String,
            /// Rises.
            pub version: u64,
            /// RFC 3339, in UTC.
            pub expires: String,
            /// What it lists.
            pub $field: BTreeMap<String, $of>,
            /// What else stands there.
            #[serde(flatten)]
            pub extra: Extra,
        }

        impl $name {
            /// One that lists nothing yet.
            #[must_use]
            pub fn new(version: u64, expires: String) -> Self {
                let (kind, spec_version) = ($role, SPEC_VERSION.to_owned());
                Self { kind, spec_version, version, expires, $field: BTreeMap::new(), extra: Extra::new() }
            }
        }
    };
}

online_role!(
    /// What is newest: the snapshot.
    Timestamp, Role::Timestamp, meta: Meta
);
online_role!(
    /// Which metadata belongs together.
    Snapshot, Role::Snapshot, meta: Meta
);
online_role!(
    /// Which targets there are.
    Targets, Role::Targets, targets: Target
);

/// A target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Its bytes.
    pub length: u64,
    /// Its digests.
    pub hashes: BTreeMap<String, String>,
    /// What its owner says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Value>,
    /// What else stands there.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Target {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { length: bytes.len() as u64, hashes: digests(bytes), custom: None, extra: Extra::new() }
    }

    /// Its SHA-256 in hexadecimal digits, if it has one.
    #[must_use]
    pub fn sha256(&self) -> Option<&str> {
        let digest = self.hashes.get("sha256")?;
        (digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(digest.as_str())
    }
}

/// A file of this metadata, signed with all of these keys; `None` for what has no canonical form.
#[must_use]
pub fn sign<'a>(signed: &impl Serialize, keys: impl IntoIterator<Item = &'a SigningKey>) -> Option<Vec<u8>> {
    use ed25519_dalek::Signer as _;
    let signed = serde_json::to_value(signed).ok()?;
    let form = canonical(&signed)?;
    let signature = |key: &SigningKey| Signature {
        keyid: key_id(&Key::ed25519(&key.verifying_key().to_bytes())),
        sig: hex::encode(key.sign(&form).to_bytes()),
    };
    let signatures = keys.into_iter().map(signature).collect();
    let mut bytes = serde_json::to_vec_pretty(&Document { signed, signatures }).ok()?;
    bytes.push(b'\n');
    Some(bytes)
}

/// The time in seconds since 1970.
#[must_use]
pub fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// A time in seconds since 1970, as metadata has it.
#[must_use]
pub fn timestamp_text(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

/// The reverse.
pub(crate) fn seconds_of(text: &str) -> Option<i64> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

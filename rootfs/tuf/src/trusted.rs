//! The client's workflow: what of a repository's metadata is trusted, given what was trusted before.
//!
//! ```text
//! begin -> take_root* -> end_roots -> take_timestamp -> (keep|take)_snapshot -> (keep|take)_targets
//! ```
//!
//! Section numbers are those of the specification, version 1.0.31. Remembered files are checked like fetched ones, but for their expiry; one
//! that does not verify by the newest root is forgotten, which is how a repository recovers from versions that a thief drove up.

use std::collections::BTreeSet;

use ed25519_dalek::Signature as Ed25519;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::SPEC_VERSION;
use crate::canonical::canonical;
use crate::schema::{Document, Meta, Role, Root, Snapshot, Target, Targets, Timestamp, seconds_of};

/// Why metadata was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TufError {
    /// Not of its form.
    #[error("{role} metadata: {what}")]
    Malformed {
        /// Which.
        role: Role,
        /// What is wrong.
        what: String,
    },
    /// Too few keys signed.
    #[error("{role} metadata is signed by {valid} of the {threshold} keys that must")]
    Signature {
        /// Which.
        role: Role,
        /// Keys that signed and count.
        valid: usize,
        /// Keys that must.
        threshold: u64,
    },
    /// Too old.
    #[error("{role} metadata has expired")]
    Expired {
        /// Which.
        role: Role,
    },
    /// Older than what was trusted.
    #[error("{role} metadata has version {found}, and had version {trusted} before")]
    RolledBack {
        /// Which.
        role: Role,
        /// Now.
        found: u64,
        /// Before.
        trusted: u64,
    },
    /// Not what another file says of it.
    #[error("{role} metadata is not what the repository's other metadata says of it: {what}")]
    Mixed {
        /// Which.
        role: Role,
        /// What differs.
        what: &'static str,
    },
}

/// Which expirations count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expirations {
    /// All.
    All,
    /// Those of root and targets: an operator said that this is an offline bundle.
    RootAndTargets,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is trusted, and to be remembered.
    New,
    /// The remembered one stays.
    Kept,
}

/// What is trusted.
#[derive(Debug, Clone)]
pub struct Trusted {
    now: i64,
    expirations: Expirations,
    root: Root,
    timestamp: Option<Timestamp>,
    snapshot: Option<Snapshot>,
    targets: Option<Targets>,
}

fn malformed(role: Role, what: impl Into<String>) -> TufError {
    TufError::Malformed { role, what: what.into() }
}

/// The parts that all four have.
trait Metadata: DeserializeOwned {
    const ROLE: Role;
    fn head(&self) -> (Role, &str, u64, &str);
}

macro_rules! metadata {
    ($name:ident, $role:expr) => {
        impl Metadata for $name {
            const ROLE: Role = $role;
            fn head(&self) -> (Role, &str, u64, &str) {
                (self.kind, &self.spec_version, self.version, &self.expires)
            }
        }
    };
}

metadata!(Root, Role::Root);
metadata!(Timestamp, Role::Timestamp);
metadata!(Snapshot, Role::Snapshot);
metadata!(Targets, Role::Targets);

/// Reads a file without believing it.
fn parse<T: Metadata>(bytes: &[u8]) -> Result<(Document, T), TufError> {
    let failed = |error: serde_json::Error| malformed(T::ROLE, error.to_string());
    let document: Document = serde_json::from_slice(bytes).map_err(failed)?;
    let metadata = T::deserialize(&document.signed).map_err(failed)?;
    let (role, spec_version, version, expires) = metadata.head();
    let major = |text: &str| text.split('.').next().map(str::to_owned);
    if role != T::ROLE {
        return Err(malformed(T::ROLE, format!("this is {role} metadata")));
    }
    if major(spec_version) != major(SPEC_VERSION) {
        return Err(malformed(T::ROLE, format!("it follows version {spec_version} of the specification")));
    }
    if version == 0 {
        return Err(malformed(T::ROLE, "its version is 0"));
    }
    if seconds_of(expires).is_none() {
        return Err(malformed(T::ROLE, format!("`{expires}` is no time")));
    }
    Ok((document, metadata))
}

impl Root {
    /// Whether enough different keys of a role signed the document. However often, and under however many names, a key counts once.
    fn check(&self, role: Role, document: &Document) -> Result<(), TufError> {
        let keys = self.roles.get(&role).ok_or_else(|| malformed(Role::Root, format!("the role {role} is missing")))?;
        if keys.threshold == 0 {
            return Err(malformed(Role::Root, format!("the threshold of {role} is 0")));
        }
        let form = canonical(&document.signed).ok_or_else(|| malformed(role, "it has numbers that are not whole"))?;
        let mut valid = BTreeSet::new();
        for signature in &document.signatures {
            if !keys.keyids.contains(&signature.keyid) {
                continue;
            }
            let Some(key) = self.keys.get(&signature.keyid).and_then(crate::Key::verifying) else { continue };
            let mut bytes = [0; 64];
            if hex::decode_to_slice(&signature.sig, &mut bytes).is_ok()
                && key.verify_strict(&form, &Ed25519::from_bytes(&bytes)).is_ok()
            {
                valid.insert(key.to_bytes());
            }
        }
        if valid.len() as u64 >= keys.threshold {
            return Ok(());
        }
        Err(TufError::Signature { role, valid: valid.len(), threshold: keys.threshold })
    }
}

/// Whether bytes are what another file says of them.
fn check_listed(role: Role, meta: &Meta, bytes: &[u8]) -> Result<(), TufError> {
    if meta.length.is_some_and(|length| length != bytes.len() as u64) {
        return Err(TufError::Mixed { role, what: "its length" });
    }
    check_digest(role, meta.hashes.as_ref().map(|hashes| hashes.get("sha256")), bytes)
}

fn check_digest(role: Role, listed: Option<Option<&String>>, bytes: &[u8]) -> Result<(), TufError> {
    match listed {
        None => Ok(()),
        Some(Some(digest)) if digest.eq_ignore_ascii_case(&hex::encode(Sha256::digest(bytes))) => Ok(()),
        Some(Some(_)) => Err(TufError::Mixed { role, what: "its SHA-256" }),
        Some(None) => Err(TufError::Mixed { role, what: "no SHA-256 is given" }),
    }
}

fn check_version(role: Role, found: u64, listed: u64) -> Result<(), TufError> {
    if found == listed { Ok(()) } else { Err(TufError::Mixed { role, what: "its version" }) }
}

fn check_not_older(role: Role, found: u64, trusted: u64) -> Result<(), TufError> {
    if found >= trusted { Ok(()) } else { Err(TufError::RolledBack { role, found, trusted }) }
}

/// The snapshot that a timestamp names, and nothing else (5.4.3).
fn listed_snapshot(timestamp: &Timestamp) -> Result<&Meta, TufError> {
    let only = (timestamp.meta.len() == 1).then(|| timestamp.meta.get("snapshot.json")).flatten();
    only.ok_or_else(|| malformed(Role::Timestamp, "it does not name exactly one snapshot"))
}

impl Trusted {
    /// Begins with root metadata that is trusted already (5.2). `now` is the time of the whole update, in seconds since 1970 (5.1).
    ///
    /// # Errors
    /// If that is not root metadata signed by its own keys.
    pub fn begin(root: &[u8], now: i64, expirations: Expirations) -> Result<Self, TufError> {
        let (document, root) = parse::<Root>(root)?;
        root.check(Role::Root, &document)?;
        Ok(Self { now, expirations, root, timestamp: None, snapshot: None, targets: None })
    }

    /// The version of the root metadata.
    #[must_use]
    pub fn root_version(&self) -> u64 {
        self.root.version
    }

    /// The next version of the root metadata, signed by the keys of the trusted and of the new one (5.3.4 to 5.3.7). It is to be remembered at once.
    ///
    /// # Errors
    /// [`TufError`]; the trusted one stays.
    pub fn take_root(&mut self, bytes: &[u8]) -> Result<(), TufError> {
        let (document, root) = parse::<Root>(bytes)?;
        self.root.check(Role::Root, &document)?;
        root.check(Role::Root, &document)?;
        if Some(root.version) != self.root.version.checked_add(1) {
            return Err(TufError::RolledBack { role: Role::Root, found: root.version, trusted: self.root.version });
        }
        self.root = root;
        Ok(())
    }

    /// There is no newer root: the last one must not have expired (5.3.10).
    ///
    /// # Errors
    /// [`TufError::Expired`].
    pub fn end_roots(&self) -> Result<(), TufError> {
        self.check_expiry(&self.root)
    }

    fn check_expiry<T: Metadata>(&self, metadata: &T) -> Result<(), TufError> {
        let (role, _, _, expires) = metadata.head();
        let counts = match (self.expirations, role) {
            (Expirations::All, _) | (Expirations::RootAndTargets, Role::Root | Role::Targets) => true,
            (Expirations::RootAndTargets, Role::Timestamp | Role::Snapshot) => false,
        };
        let good = seconds_of(expires).is_some_and(|expires| expires > self.now);
        if counts && !good { Err(TufError::Expired { role }) } else { Ok(()) }
    }

    /// A remembered file, if it still counts.
    fn remembered<T: Metadata>(&self, bytes: Option<&[u8]>) -> Option<T> {
        let (document, metadata) = parse::<T>(bytes?).ok()?;
        self.root.check(T::ROLE, &document).ok()?;
        Some(metadata)
    }

    /// The timestamp (5.4).
    ///
    /// # Errors
    /// [`TufError`].
    pub fn take_timestamp(&mut self, remembered: Option<&[u8]>, bytes: &[u8]) -> Result<Taken, TufError> {
        let (document, timestamp) = parse::<Timestamp>(bytes)?;
        self.root.check(Role::Timestamp, &document)?;
        let listed = listed_snapshot(&timestamp)?.version;
        let old = self.remembered::<Timestamp>(remembered);
        let (timestamp, taken) = match old {
            Some(old) => {
                check_not_older(Role::Timestamp, timestamp.version, old.version)?;
                if timestamp.version == old.version {
                    // 5.4.3.1: nothing new can be said under an old number.
                    (old, Taken::Kept)
                } else {
                    check_not_older(Role::Snapshot, listed, listed_snapshot(&old)?.version)?;
                    (timestamp, Taken::New)
                }
            }
            None => (timestamp, Taken::New),
        };
        self.check_expiry(&timestamp)?;
        self.timestamp = Some(timestamp);
        Ok(taken)
    }

    fn snapshot_meta(&self) -> Result<&Meta, TufError> {
        let timestamp = self.timestamp.as_ref().ok_or_else(|| malformed(Role::Timestamp, "none was taken"))?;
        listed_snapshot(timestamp)
    }

    /// The name of the snapshot's file.
    ///
    /// # Errors
    /// Before a timestamp is trusted.
    pub fn snapshot_name(&self) -> Result<String, TufError> {
        Ok(self.file_name(Role::Snapshot, self.snapshot_meta()?.version))
    }

    fn file_name(&self, role: Role, version: u64) -> String {
        if self.root.consistent_snapshot { format!("{version}.{role}.json") } else { format!("{role}.json") }
    }

    /// Whether the remembered snapshot is the one that the timestamp names; then it need not be fetched.
    pub fn keep_snapshot(&mut self, remembered: &[u8]) -> bool {
        let Ok(meta) = self.snapshot_meta() else { return false };
        let listed = check_listed(Role::Snapshot, meta, remembered).is_ok();
        let version = meta.version;
        match self.remembered::<Snapshot>(Some(remembered)) {
            Some(snapshot) if listed && snapshot.version == version && self.check_expiry(&snapshot).is_ok() => {
                self.snapshot = Some(snapshot);
                true
            }
            Some(_) | None => false,
        }
    }

    /// The snapshot (5.5).
    ///
    /// # Errors
    /// [`TufError`].
    pub fn take_snapshot(&mut self, remembered: Option<&[u8]>, bytes: &[u8]) -> Result<(), TufError> {
        let meta = self.snapshot_meta()?;
        check_listed(Role::Snapshot, meta, bytes)?;
        let version = meta.version;
        let (document, snapshot) = parse::<Snapshot>(bytes)?;
        self.root.check(Role::Snapshot, &document)?;
        check_version(Role::Snapshot, snapshot.version, version)?;
        if let Some(old) = self.remembered::<Snapshot>(remembered) {
            for (name, old) in &old.meta {
                let new = snapshot.meta.get(name).map_or(0, |meta| meta.version);
                check_not_older(Role::Targets, new, old.version)?;
            }
        }
        self.check_expiry(&snapshot)?;
        self.snapshot = Some(snapshot);
        Ok(())
    }

    fn targets_meta(&self) -> Result<&Meta, TufError> {
        let snapshot = self.snapshot.as_ref().ok_or_else(|| malformed(Role::Snapshot, "none was taken"))?;
        snapshot.meta.get("targets.json").ok_or_else(|| malformed(Role::Snapshot, "it does not name targets.json"))
    }

    /// The name of the targets' file.
    ///
    /// # Errors
    /// Before a snapshot is trusted.
    pub fn targets_name(&self) -> Result<String, TufError> {
        Ok(self.file_name(Role::Targets, self.targets_meta()?.version))
    }

    /// Whether the remembered targets metadata is the one that the snapshot names.
    pub fn keep_targets(&mut self, remembered: &[u8]) -> bool {
        let Ok(meta) = self.targets_meta() else { return false };
        let listed = check_listed(Role::Targets, meta, remembered).is_ok();
        let version = meta.version;
        match self.remembered::<Targets>(Some(remembered)) {
            Some(targets) if listed && targets.version == version && self.check_expiry(&targets).is_ok() => {
                self.targets = Some(targets);
                true
            }
            Some(_) | None => false,
        }
    }

    /// The targets (5.6).
    ///
    /// # Errors
    /// [`TufError`].
    pub fn take_targets(&mut self, bytes: &[u8]) -> Result<(), TufError> {
        let meta = self.targets_meta()?;
        check_listed(Role::Targets, meta, bytes)?;
        let version = meta.version;
        let (document, targets) = parse::<Targets>(bytes)?;
        self.root.check(Role::Targets, &document)?;
        check_version(Role::Targets, targets.version, version)?;
        self.check_expiry(&targets)?;
        self.targets = Some(targets);
        Ok(())
    }

    /// A target, once targets metadata is trusted.
    #[must_use]
    pub fn target(&self, name: &str) -> Option<&Target> {
        self.targets.as_ref()?.targets.get(name)
    }

    /// Where a target's file lies below the repository's `targets/`: a digest before its name, if the repository is consistent (5.7.3).
    #[must_use]
    pub fn target_file(&self, name: &str) -> Option<String> {
        let digest = self.target(name)?.sha256()?;
        Some(if self.root.consistent_snapshot { format!("{digest}.{name}") } else { name.to_owned() })
    }

    /// Whether these are the bytes of a target (5.7.2).
    ///
    /// # Errors
    /// [`TufError::Mixed`].
    pub fn check_target(&self, name: &str, bytes: &[u8]) -> Result<(), TufError> {
        let target = self.target(name).ok_or(TufError::Mixed { role: Role::Targets, what: "no such target" })?;
        if target.length != bytes.len() as u64 {
            return Err(TufError::Mixed { role: Role::Targets, what: "a target's length" });
        }
        check_digest(Role::Targets, Some(target.hashes.get("sha256")), bytes)
    }
}

//! The repository: a folder of static files that any HTTP server can serve, and the operations that change it.
//!
//! `metadata/` has TUF metadata with consistent snapshots, `targets/` the artefacts by digest. New files are written first, the timestamp last and
//! by a rename: a client that comes in between sees the old repository or the new one, never a mixture. Names of targets are flat:
//! clients differ in where they put a digest before a name with folders.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use byre_release::{STATEMENT_BYTES, SigningKey, Statement};
use byre_tuf::{Document, Expirations, Meta, Root, Snapshot, Target, Targets, Timestamp, Trusted, timestamp_text};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::keys::{KeyFolder, Role};
use crate::metadata::{new_root, sign};

/// Begins the name of the target that is a channel's newest statement.
pub const CHANNEL_PREFIX: &str = "channel-";
/// Releases that stay in a repository: nodes that are behind take the newest anyway.
const RELEASES_KEPT: usize = 4;
const DAY_SECONDS: i64 = 86_400;

/// The parts of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Artefact {
    /// The signed statement.
    Statement,
    /// The hash tree.
    Verity,
    /// The root.
    Root,
    /// The kernel image.
    Uki,
    /// The bill of materials.
    Sbom,
}

impl Artefact {
    /// In the order in which a node takes them.
    pub const ALL: [Self; 5] = [Self::Statement, Self::Verity, Self::Root, Self::Uki, Self::Sbom];

    fn suffix(self) -> &'static str {
        match self {
            Self::Statement => "statement",
            Self::Verity => "verity",
            Self::Root => "root",
            Self::Uki => "uki",
            Self::Sbom => "sbom",
        }
    }
}

/// The target name of a release's part.
#[must_use]
pub fn artefact_name(install: u64, artefact: Artefact) -> String {
    format!("byre-{install}.{}", artefact.suffix())
}

/// The target name of a channel.
#[must_use]
pub fn channel_target(channel: &str) -> String {
    format!("{CHANNEL_PREFIX}{channel}")
}

/// For how long metadata is good.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// Root and targets, in days: as often as the key holders meet.
    pub offline_days: i64,
    /// Snapshot and timestamp, in days: a node that is shown nothing newer for so long says so.
    pub online_days: i64,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { offline_days: 365, online_days: 14 }
    }
}

impl Lifetimes {
    fn offline(self, now: i64) -> String {
        timestamp_text(now + self.offline_days * DAY_SECONDS)
    }

    fn online(self, now: i64) -> String {
        timestamp_text(now + self.online_days * DAY_SECONDS)
    }
}

/// A release that is to be published.
#[derive(Debug)]
pub struct NewRelease<'a> {
    /// What it is.
    pub statement: &'a Statement,
    /// That, signed.
    pub signed_statement: [u8; STATEMENT_BYTES],
    /// Hash tree, root, kernel image and bill of materials.
    pub files: [(Artefact, &'a Path); 4],
    /// The channel whose newest release it becomes.
    pub channel: &'a str,
}

/// A repository on disk.
#[derive(Debug)]
pub struct Repository {
    folder: PathBuf,
    keys: Vec<KeyFolder>,
    lifetimes: Lifetimes,
    now: i64,
}

impl Repository {
    /// The repository in `folder`, with the secret keys of these folders, at this time in seconds since 1970.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path, keys: &[KeyFolder], lifetimes: Lifetimes, now: i64) -> Result<Self> {
        for directory in ["metadata", "targets"] {
            let path = folder.join(directory);
            std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        Ok(Self { folder: folder.to_owned(), keys: keys.to_vec(), lifetimes, now })
    }

    /// All secret keys of a role.
    fn secret(&self, role: Role) -> Result<Vec<SigningKey>> {
        let mut keys = Vec::new();
        for folder in &self.keys {
            keys.extend(folder.load(role)?);
        }
        Ok(keys)
    }

    fn metadata(&self, name: &str) -> PathBuf {
        self.folder.join("metadata").join(name)
    }

    fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.metadata(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        let document: Document = serde_json::from_slice(&bytes).with_context(|| format!("{name} is not metadata"))?;
        Ok(Some(serde_json::from_value(document.signed).with_context(|| format!("{name} is not metadata"))?))
    }

    /// The newest root, as a client would come to trust it from the first.
    fn trusted(&self) -> Result<Trusted> {
        let first = self.bytes("1.root.json")?;
        let first = first.with_context(|| format!("{} has no 1.root.json", self.folder.display()))?;
        let mut trusted = Trusted::begin(&first, self.now, Expirations::All)?;
        while let Some(next) = self.bytes(&format!("{}.root.json", trusted.root_version() + 1))? {
            trusted.take_root(&next)?;
        }
        Ok(trusted)
    }

    /// Writes the first root metadata, or the next one with the keys that are there now; returns its version and its bytes. It is signed by all root
    /// keys in the folders, those of the version before among them.
    ///
    /// # Errors
    /// When too few keys are there for a threshold.
    pub fn write_root(&self, thresholds: &[(Role, u64)]) -> Result<(u64, Vec<u8>)> {
        let old = if self.bytes("1.root.json")?.is_some() { Some(self.trusted()?) } else { None };
        let version = old.as_ref().map_or(1, |old| old.root_version() + 1);
        let mut held = Vec::new();
        for role in [Role::Root, Role::Targets, Role::Snapshot, Role::Timestamp] {
            let threshold = thresholds.iter().find(|(which, _)| *which == role).map_or(1, |(_, threshold)| *threshold);
            held.push((role, self.secret(role)?, threshold));
        }
        let keys: Vec<_> = held.iter().map(|(role, keys, threshold)| (*role, keys.as_slice(), *threshold)).collect();
        let root: Root = new_root(version, self.lifetimes.offline(self.now), &keys)?;
        let bytes = sign(&root, &self.secret(Role::Root)?)?;
        match old {
            Some(mut old) => {
                old.take_root(&bytes).context("attach the folders of the old root keys and of the new ones")?
            }
            None => drop(Trusted::begin(&bytes, self.now, Expirations::All)?),
        }
        write_new(&self.metadata(&format!("{version}.root.json")), &bytes)?;
        Ok((version, bytes))
    }

    /// The highest install number that was ever published here, 0 if none was.
    ///
    /// # Errors
    /// When the metadata cannot be read.
    pub fn last_install(&self) -> Result<u64> {
        let Some(targets) = self.newest_targets()? else { return Ok(0) };
        Ok(installs(&targets).into_iter().max().unwrap_or(0))
    }

    fn newest_targets(&self) -> Result<Option<Targets>> {
        let Some(timestamp) = self.read::<Timestamp>("timestamp.json")? else { return Ok(None) };
        let snapshot = timestamp.meta.get("snapshot.json").context("the timestamp names no snapshot")?.version;
        let snapshot: Snapshot = self.read(&format!("{snapshot}.snapshot.json"))?.context("the snapshot is missing")?;
        let targets = snapshot.meta.get("targets.json").context("the snapshot names no targets")?.version;
        self.read(&format!("{targets}.targets.json"))
    }

    /// Publishes a release.
    ///
    /// # Errors
    /// When its install number is not higher than all before, or files cannot be read or written.
    pub fn publish(&self, release: &NewRelease<'_>) -> Result<()> {
        let statement = release.statement;
        let last = self.last_install()?;
        ensure!(
            statement.install > last,
            "install number {} is not higher than {last}, which this repository has published: nodes would refuse it",
            statement.install
        );
        let old = self.newest_targets()?;
        let version = old.as_ref().map_or(1, |old| old.version + 1);
        let mut targets = Targets::new(version, self.lifetimes.offline(self.now));
        targets.targets = old.map(|old| old.targets).unwrap_or_default();
        let mut add = |name: String, bytes: &[u8]| -> Result<()> {
            let target = Target::of(bytes);
            let digest = target.sha256().context("a target without a digest")?;
            write_new(&self.folder.join("targets").join(format!("{digest}.{name}")), bytes)?;
            targets.targets.insert(name, target);
            Ok(())
        };
        add(artefact_name(statement.install, Artefact::Statement), &release.signed_statement)?;
        for (artefact, path) in release.files {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            add(artefact_name(statement.install, artefact), &bytes)?;
        }
        let channel = channel_target(release.channel);
        add(channel.clone(), &release.signed_statement)?;
        if let Some(target) = targets.targets.get_mut(&channel) {
            target.custom = Some(json!({"version": statement.version.as_str(), "install": statement.install}));
        }
        forget_old(&mut targets);
        let bytes = sign(&targets, &self.secret(Role::Targets)?)?;
        self.write_online(version, &bytes)
    }

    /// Signs snapshot and timestamp anew, so that they are good for longer.
    ///
    /// # Errors
    /// When nothing has been published, or keys are missing.
    pub fn refresh(&self) -> Result<()> {
        let version = self.newest_targets()?.context("nothing has been published")?.version;
        let bytes = self.bytes(&format!("{version}.targets.json"))?.context("the targets metadata is missing")?;
        self.write_online(version, &bytes)
    }

    /// Writes the targets metadata with a snapshot and a timestamp of it, once a client would take all three.
    fn write_online(&self, targets_version: u64, targets: &[u8]) -> Result<()> {
        let old: Option<Timestamp> = self.read("timestamp.json")?;
        let old_snapshot = old.as_ref().and_then(|old| old.meta.get("snapshot.json")).map_or(0, |meta| meta.version);
        let mut snapshot = Snapshot::new(old_snapshot + 1, self.lifetimes.online(self.now));
        snapshot.meta.insert("targets.json".to_owned(), Meta::of(targets_version, targets));
        let version = snapshot.version;
        let snapshot = sign(&snapshot, &self.secret(Role::Snapshot)?)?;
        let mut timestamp = Timestamp::new(old.map_or(0, |old| old.version) + 1, self.lifetimes.online(self.now));
        timestamp.meta.insert("snapshot.json".to_owned(), Meta::of(version, &snapshot));
        let timestamp = sign(&timestamp, &self.secret(Role::Timestamp)?)?;
        let mut trusted = self.trusted()?;
        let attach = "attach the folders of all keys that its threshold needs";
        trusted.take_timestamp(None, &timestamp).context(attach)?;
        trusted.take_snapshot(None, &snapshot).context(attach)?;
        trusted.take_targets(targets).context(attach)?;
        write_new(&self.metadata(&format!("{targets_version}.targets.json")), targets)?;
        write_new(&self.metadata(&format!("{version}.snapshot.json")), &snapshot)?;
        write_new(&self.metadata("timestamp.json"), &timestamp)
    }

    /// Where a target of the newest metadata lies, with its name.
    ///
    /// # Errors
    /// When it is not there.
    pub fn target_file(&self, name: &str) -> Result<PathBuf> {
        let targets = self.newest_targets()?.context("nothing has been published")?;
        let digest = targets.targets.get(name).and_then(Target::sha256).with_context(|| format!("no target {name}"))?;
        Ok(self.folder.join("targets").join(format!("{digest}.{name}")))
    }

    /// Names and contents of the metadata that a client needs, in the order in which it does: every root, then the newest of the rest.
    ///
    /// # Errors
    /// When nothing has been published.
    pub fn current_metadata(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let newest = self.trusted()?.root_version();
        let mut names: Vec<String> = (1..=newest).map(|version| format!("{version}.root.json")).collect();
        let timestamp: Timestamp = self.read("timestamp.json")?.context("nothing has been published")?;
        let snapshot = timestamp.meta.get("snapshot.json").context("no snapshot")?.version;
        let targets = self.newest_targets()?.context("no targets")?.version;
        names.extend([
            "timestamp.json".to_owned(),
            format!("{snapshot}.snapshot.json"),
            format!("{targets}.targets.json"),
        ]);
        let read = |name: String| {
            let bytes = self.bytes(&name)?.with_context(|| format!("{name} is missing"))?;
            Ok((name, bytes))
        };
        names.into_iter().map(read).collect()
    }
}

fn install_of(name: &str) -> Option<u64> {
    name.strip_prefix("byre-")?.split_once('.')?.0.parse().ok()
}

fn installs(targets: &Targets) -> std::collections::BTreeSet<u64> {
    targets.targets.keys().filter_map(|name| install_of(name)).collect()
}

/// Leaves out all but the newest releases. Their files stay: a node may be in the middle of one.
fn forget_old(targets: &mut Targets) {
    let kept: Vec<u64> = installs(targets).into_iter().rev().take(RELEASES_KEPT).collect();
    targets.targets.retain(|name, _| install_of(name).is_none_or(|install| kept.contains(&install)));
}

/// Writes a file whole or not at all.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_added_extension("new");
    let write = || -> std::io::Result<()> {
        std::fs::write(&temporary, bytes)?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

//! Folders of secret keys: one file a key, named after its role, so that who holds which key is seen by looking.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use byre_release::{ReleaseKeys, SigningKey};
use byre_tuf::Role as TufRole;

/// Name of the role that signs release statements; it is none of TUF's.
pub const RELEASE_ROLE: &str = "release";
/// Begins a key file.
const ALGORITHM: &str = "ed25519-seed";
/// Keys of one role in one folder.
const KEYS_PER_ROLE: usize = 16;

/// Whom a key signs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Release statements.
    Release,
    /// Which keys count.
    Root,
    /// Which releases there are.
    Targets,
    /// Which metadata belongs together.
    Snapshot,
    /// What is newest.
    Timestamp,
}

impl Role {
    /// All.
    pub const ALL: [Self; 5] = [Self::Release, Self::Root, Self::Targets, Self::Snapshot, Self::Timestamp];

    /// As in names of files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => RELEASE_ROLE,
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Snapshot => "snapshot",
            Self::Timestamp => "timestamp",
        }
    }

    /// TUF's role, if it is one.
    #[must_use]
    pub fn of_tuf(self) -> Option<TufRole> {
        match self {
            Self::Release => None,
            Self::Root => Some(TufRole::Root),
            Self::Targets => Some(TufRole::Targets),
            Self::Snapshot => Some(TufRole::Snapshot),
            Self::Timestamp => Some(TufRole::Timestamp),
        }
    }
}

impl std::str::FromStr for Role {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.with_context(|| format!("no role is named {text}: release, root, targets, snapshot or timestamp"))
    }
}

/// A folder with `ROLE-NUMBER.key` files.
#[derive(Debug, Clone)]
pub struct KeyFolder {
    path: PathBuf,
}

impl KeyFolder {
    /// The folder at `path`, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The public keys that a root is built with.
    #[must_use]
    pub fn release_keys_file(&self) -> PathBuf {
        self.path.join("release-keys")
    }

    /// The root metadata that a root is built with.
    #[must_use]
    pub fn root_file(&self) -> PathBuf {
        self.path.join("root.json")
    }

    /// The secret keys of a role, by number.
    ///
    /// # Errors
    /// When a file is none of ours.
    pub fn load(&self, role: Role) -> Result<Vec<SigningKey>> {
        self.files(role)?.iter().map(|file| read_key(file)).collect()
    }

    fn files(&self, role: Role) -> Result<Vec<PathBuf>> {
        let paths = (1..=KEYS_PER_ROLE).map(|number| self.path.join(format!("{}-{number}.key", role.name())));
        Ok(paths.filter(|path| path.exists()).collect())
    }

    /// Makes one more key of a role.
    ///
    /// # Errors
    /// When there are too many, or it cannot be written.
    pub fn add(&self, role: Role) -> Result<SigningKey> {
        let free = (1..=KEYS_PER_ROLE).map(|number| self.path.join(format!("{}-{number}.key", role.name())));
        let path = free.into_iter().find(|path| !path.exists());
        let path = path.with_context(|| format!("{} has {KEYS_PER_ROLE} {} keys", self.path.display(), role.name()))?;
        let mut seed = [0_u8; 32];
        getrandom::fill(&mut seed).context("no random numbers")?;
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        writeln!(file, "{ALGORITHM} {}", hex::encode(seed))?;
        file.sync_all()?;
        Ok(SigningKey::from_seed(&seed))
    }

    /// Writes the public halves of the release keys that lie here, as a root takes them.
    ///
    /// # Errors
    /// When there is none, or the file cannot be written.
    pub fn write_release_keys(&self) -> Result<()> {
        let keys = self.load(Role::Release)?;
        ensure!(!keys.is_empty(), "{} has no release key", self.path.display());
        let text: String =
            (1..).zip(&keys).map(|(number, key)| key.public_line(&format!("{RELEASE_ROLE}-{number}"))).collect();
        ReleaseKeys::parse(text.as_bytes())?;
        std::fs::write(self.release_keys_file(), text)?;
        Ok(())
    }
}

fn read_key(path: &Path) -> Result<SigningKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut words = text.split_whitespace();
    let (Some(ALGORITHM), Some(digits), None) = (words.next(), words.next(), words.next()) else {
        bail!("{} is no key file: it says `{ALGORITHM} <64 hexadecimal digits>`", path.display());
    };
    let mut seed = [0_u8; 32];
    hex::decode_to_slice(digits, &mut seed).with_context(|| format!("{} is no key file", path.display()))?;
    Ok(SigningKey::from_seed(&seed))
}

//! The committed ledger of fuzzing: how long each target has run since a file of its decoder last changed.
//!
//! It is honest by construction: an entry carries the digest of the decoder's sources, and counts only while they have it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::target::Target;

const PATH: &str = "tests/fuzz/ledger.json";

/// What is known of each target, by name.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Ledger {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Of the decoder's sources.
    sources: String,
    /// With these sources.
    seconds: u32,
    /// With these sources.
    executions: u64,
}

impl Ledger {
    /// The committed one; empty where there is none yet.
    pub(super) fn read(root: &Path) -> Result<Self> {
        match fs::read_to_string(root.join(PATH)) {
            Ok(text) => serde_json::from_str(&text).context(PATH),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).context(PATH),
        }
    }

    /// Writes it, to be committed.
    pub(super) fn write(&self, root: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(root.join(PATH), text).context(PATH)
    }

    /// Adds a run of a target with its present sources.
    pub(super) fn add(&mut self, root: &Path, target: &Target, seconds: u32, executions: u64) -> Result<()> {
        let sources = digest(root, &target.sources)?;
        let entry = self.entries.entry(target.name.clone()).and_modify(|entry| {
            if entry.sources != sources {
                entry.clone_from(&Entry { sources: sources.clone(), seconds: 0, executions: 0 });
            }
        });
        let entry = entry.or_insert(Entry { sources, seconds: 0, executions: 0 });
        entry.seconds = entry.seconds.saturating_add(seconds);
        entry.executions = entry.executions.saturating_add(executions);
        Ok(())
    }

    /// How long a target has run with its present sources.
    pub(super) fn seconds(&self, root: &Path, target: &Target) -> Result<u32> {
        let sources = digest(root, &target.sources)?;
        Ok(self.entries.get(&target.name).filter(|entry| entry.sources == sources).map_or(0, |entry| entry.seconds))
    }
}

/// Digest of files, and of all files below folders, with their names.
fn digest(root: &Path, sources: &[String]) -> Result<String> {
    let mut files = Vec::new();
    let mut open: Vec<PathBuf> = sources.iter().map(PathBuf::from).collect();
    while let Some(path) = open.pop() {
        let here = root.join(&path);
        if here.is_dir() {
            for entry in fs::read_dir(&here).with_context(|| here.display().to_string())? {
                open.push(path.join(entry?.file_name()));
            }
        } else {
            files.push(path);
        }
    }
    files.sort();
    files.dedup();
    let mut hasher = Sha256::new();
    for path in files {
        let bytes = fs::read(root.join(&path)).with_context(|| path.display().to_string())?;
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update([0]);
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    // 64 bits tell a few versions of a few files apart.
    Ok(hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_until_a_source_changes() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("tests/fuzz")).unwrap();
        fs::create_dir(root.path().join("src")).unwrap();
        fs::write(root.path().join("src/a.rs"), "one").unwrap();
        let target = Target::named("a", &["src"]);
        let mut ledger = Ledger::read(root.path()).unwrap();
        ledger.add(root.path(), &target, 30, 5).unwrap();
        ledger.add(root.path(), &target, 30, 5).unwrap();
        ledger.write(root.path()).unwrap();
        let ledger = Ledger::read(root.path()).unwrap();
        assert_eq!(ledger.seconds(root.path(), &target).unwrap(), 60);
        fs::write(root.path().join("src/a.rs"), "two").unwrap();
        assert_eq!(ledger.seconds(root.path(), &target).unwrap(), 0);
        fs::write(root.path().join("src/a.rs"), "one").unwrap();
        fs::write(root.path().join("src/b.rs"), "").unwrap();
        assert_eq!(ledger.seconds(root.path(), &target).unwrap(), 0);
    }
}

//! The committed lock: which packages, which versions, and how far a build may depart from them.
//!
//! A build uses what is locked. When the archive no longer has a locked file it takes the newest version of the same suite
//! within the lock's bounds, from the signed index, and says so; it never changes the lock by itself.

use crate::Progress;
use crate::archive::{Archive, Mirrors, Stanza};
use crate::version::compare;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a package is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// The kernel and its modules.
    Kernel,
    /// Boot loader and boot stub.
    Loader,
    /// Files that ship in the root.
    Root,
    /// Programs that run in the build and their libraries.
    Tool,
}

/// One locked package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name in the archive.
    pub name: String,
    /// Where the version is part of the name: other names that a substitute may have, with one `*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Suite whose signed index lists it.
    pub suite: String,
    /// Lowest version that works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<String>,
    /// First version that is not known to work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub below: Option<String>,
    /// What it is for.
    #[serde(rename = "use")]
    pub purpose: Use,
    /// Locked version.
    #[serde(default)]
    pub version: String,
    /// Architecture, or `all`.
    #[serde(default)]
    pub arch: String,
    /// Hash of the package file.
    #[serde(default)]
    pub sha256: String,
    /// Size of the package file in bytes.
    #[serde(default)]
    pub size: u64,
    /// Path under the mirror.
    #[serde(default)]
    pub path: String,
}

/// The whole lock.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Seconds since 1970: every timestamp in the image.
    pub epoch: i64,
    /// Packages in the order of the file.
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
}

/// A package that lies on this machine, checked.
#[derive(Debug, Clone)]
pub(crate) struct Fetched {
    pub(crate) package: Package,
    pub(crate) file: PathBuf,
}

impl Package {
    /// Whether `stanza` may stand in for this package.
    fn admits(&self, stanza: &Stanza) -> bool {
        let name = match self.pattern.as_deref().and_then(|pattern| pattern.split_once('*')) {
            Some((start, end)) => {
                stanza.name.len() >= start.len() + end.len()
                    && stanza.name.starts_with(start)
                    && stanza.name.ends_with(end)
            }
            None => stanza.name == self.name,
        };
        let low = self.at_least.as_deref().is_none_or(|low| compare(&stanza.version, low) != Ordering::Less);
        let high = self.below.as_deref().is_none_or(|high| compare(&stanza.version, high) == Ordering::Less);
        name && low && high
    }

    /// This package at the newest admitted version of `stanzas`.
    fn newest(&self, stanzas: &[Stanza]) -> Result<Self> {
        let best = stanzas
            .iter()
            .filter(|stanza| self.admits(stanza))
            .max_by(|left, right| compare(&left.version, &right.version))
            .with_context(|| {
                format!("{} has no {} within the lock's bounds; widen them in packages.lock", self.suite, self.name)
            })?
            .clone();
        Ok(Self {
            name: best.name,
            version: best.version,
            arch: best.arch,
            sha256: best.sha256,
            size: best.size,
            path: best.path,
            ..self.clone()
        })
    }
}

impl Lock {
    /// Reads `rootfs/build/packages.lock`.
    ///
    /// # Errors
    /// When it is missing or not of this form.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a package lock", path.display()))
    }

    /// Every package as a checked file.
    pub(crate) fn fetch(&self, archive: &Archive, progress: Progress<'_>) -> Result<Vec<Fetched>> {
        let mut indexes = BTreeMap::new();
        let mut fetched = Vec::new();
        for package in &self.packages {
            let locked = archive.package(&package.suite, &package.path, &package.sha256, package.size)?;
            if let Some(file) = locked {
                fetched.push(Fetched { package: package.clone(), file });
                continue;
            }
            if !indexes.contains_key(&package.suite) {
                indexes.insert(package.suite.clone(), archive.suite(&package.suite)?);
            }
            let newest = package.newest(&indexes[&package.suite].stanzas)?;
            progress(&format!(
                "{} {} is no longer in the archive; taking {} {} (cargo xtask image --update-lock records that)",
                package.name, package.version, newest.name, newest.version
            ));
            let Some(file) = archive.package(&newest.suite, &newest.path, &newest.sha256, newest.size)? else {
                bail!("{} is in the index of {} but not in the archive; try again later", newest.path, newest.suite);
            };
            fetched.push(Fetched { package: newest, file });
        }
        Ok(fetched)
    }
}

/// Rewrites the lock at `path` with the newest versions within its bounds.
///
/// # Errors
/// When an index cannot be fetched or checked, or a package has no version within bounds.
pub fn update_lock(path: &Path, keyring: &Path, cache: &Path, progress: Progress<'_>) -> Result<()> {
    let old_text = std::fs::read_to_string(path)?;
    let mut lock = Lock::read(path)?;
    let archive = Archive::new(Mirrors::of_this_machine(), keyring.to_owned(), cache.to_owned())?;
    let mut indexes = BTreeMap::new();
    for package in &mut lock.packages {
        if !indexes.contains_key(&package.suite) {
            progress(&format!("reading the index of {}", package.suite));
            indexes.insert(package.suite.clone(), archive.suite(&package.suite)?);
        }
        let newest = package.newest(&indexes[&package.suite].stanzas)?;
        if newest.version != package.version {
            progress(&format!("{}: {} -> {}", newest.name, package.version, newest.version));
        }
        *package = newest;
    }
    lock.epoch = indexes.values().map(|suite| suite.signed_at).max().context("the lock names no package")?;
    let comments: String =
        old_text.lines().take_while(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    std::fs::write(path, format!("{comments}\n{}", toml::to_string(&lock)?))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(pattern: Option<&str>, below: Option<&str>) -> Package {
        Package {
            name: "kernel-6.12.1-cloud".to_owned(),
            pattern: pattern.map(str::to_owned),
            suite: "s".to_owned(),
            at_least: Some("6.12".to_owned()),
            below: below.map(str::to_owned),
            purpose: Use::Kernel,
            version: String::new(),
            arch: String::new(),
            sha256: String::new(),
            size: 0,
            path: String::new(),
        }
    }

    fn stanza(name: &str, version: &str) -> Stanza {
        Stanza {
            name: name.to_owned(),
            version: version.to_owned(),
            arch: "amd64".to_owned(),
            sha256: "0".repeat(64),
            size: 1,
            path: "p".to_owned(),
        }
    }

    #[test]
    fn a_substitute_is_the_newest_within_bounds() {
        let stanzas = [
            stanza("kernel-6.12.9-cloud", "6.12.9-1"),
            stanza("kernel-6.12.10-cloud", "6.12.10-1"),
            stanza("kernel-6.13.1-cloud", "6.13.1-1"),
            stanza("kernel-6.1.1-cloud", "6.1.1-1"),
            stanza("kernel-6.12.11-rt", "6.12.11-1"),
        ];
        let newest = package(Some("kernel-*-cloud"), Some("6.13")).newest(&stanzas).unwrap();
        assert_eq!((newest.name.as_str(), newest.version.as_str()), ("kernel-6.12.10-cloud", "6.12.10-1"));
        assert!(package(None, Some("6.13")).newest(&stanzas).is_err());
    }
}

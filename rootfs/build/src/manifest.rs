//! `manifest.json`: what a built image is. Tests and the update repository read it instead of looking into the files.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One partition of the disk image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Label.
    pub label: String,
    /// Number in the table, from 1.
    pub number: u32,
    /// First byte.
    pub offset_bytes: u64,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// Everything that is stated about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Byre's version.
    pub version: String,
    /// Its install number, which orders releases.
    pub install: u64,
    /// The lowest install number that may be installed once this release is in use.
    pub minimum_install: u64,
    /// `uname -r` of its kernel.
    pub kernel_version: String,
    /// Build time in seconds since 1970 (the lock's epoch).
    pub epoch: i64,
    /// Verity root hash in hexadecimal.
    pub root_hash: String,
    /// Blocks of 4096 bytes that it covers.
    pub data_blocks: u64,
    /// The kernel command line.
    pub cmdline: String,
    /// Bytes of `root.erofs`.
    pub root_bytes: u64,
    /// Bytes of `root.verity`.
    pub verity_bytes: u64,
    /// Bytes of `uki.efi`.
    pub uki_bytes: u64,
    /// Bytes of `kernel`.
    pub kernel_bytes: u64,
    /// Bytes of `initrd`.
    pub initrd_bytes: u64,
    /// SHA-256 of each artefact, by file name.
    pub sha256: std::collections::BTreeMap<String, String>,
    /// The disk's partitions.
    pub partitions: Vec<PartitionRecord>,
}

impl Manifest {
    /// Reads `manifest.json` of an image directory.
    ///
    /// # Errors
    /// When there is none: build the image first.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("manifest.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("no image at {}; build one with: cargo xtask image", directory.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a manifest", path.display()))
    }

    /// The partition with `label`.
    ///
    /// # Errors
    /// When the image has none.
    pub fn partition(&self, label: &str) -> Result<&PartitionRecord> {
        self.partitions
            .iter()
            .find(|partition| partition.label == label)
            .with_context(|| format!("the image has no partition {label}"))
    }
}

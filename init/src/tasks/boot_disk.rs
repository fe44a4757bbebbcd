//! What the early stage found out about the disk that was booted: handed to PID 1 by its environment, and by PID 1 to everybody else
//! through one small file in /run.

use std::os::linux::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::{TaskError, on};

/// Where PID 1 leaves the facts of this boot.
pub(crate) const BOOT_FACTS: &str = "/run/byre/boot.json";

/// Facts of this boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootFacts {
    /// `a` or `b`.
    pub(crate) slot: String,
    /// The disk that was booted, such as `/dev/vda`.
    pub(crate) disk: String,
    /// Partitions of that disk by what they are for.
    pub(crate) boot_partition: String,
    pub(crate) state_partition: String,
    pub(crate) data_partition: String,
    /// Verity root hash in hexadecimal digits.
    pub(crate) root_hash: String,
    /// Counts the boots of this disk from 1; 0 if it could not be recorded.
    #[serde(default)]
    pub(crate) boot_number: u64,
    /// Whether this boot is the trial of an update.
    #[serde(default)]
    pub(crate) on_trial: bool,
}

impl BootFacts {
    /// From PID 1's environment and the kernel's command line.
    pub(crate) fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let root_hash = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix("byre.root="));
        Self {
            slot: variable("BYRE_SLOT"),
            disk: variable("BYRE_DISK"),
            boot_partition: variable("BYRE_BOOT_PARTITION"),
            state_partition: variable("BYRE_STATE_PARTITION"),
            data_partition: variable("BYRE_DATA_PARTITION"),
            root_hash: root_hash.unwrap_or_default().to_owned(),
            boot_number: variable("BYRE_BOOT_NUMBER").parse().unwrap_or(0),
            on_trial: variable("BYRE_TRIAL") == "1",
        }
    }

    /// Leaves the facts for everybody. Root writes it before any service runs, so nobody sees half of it.
    pub(crate) fn leave(&self) -> Result<(), TaskError> {
        let text = serde_json::to_string(self).map_err(|error| TaskError::Invalid(error.to_string()))?;
        std::fs::write(BOOT_FACTS, text).map_err(on("write", BOOT_FACTS))
    }

    /// What PID 1 left.
    pub(crate) fn read() -> Result<Self, TaskError> {
        let text = std::fs::read_to_string(BOOT_FACTS).map_err(on("read", BOOT_FACTS))?;
        serde_json::from_str(&text).map_err(|error| TaskError::Invalid(format!("{BOOT_FACTS}: {error}")))
    }
}

/// Major and minor numbers that no container may open: the booted disk and its partitions.
pub(crate) fn device_numbers() -> Option<Vec<(u32, u32)>> {
    let disk = std::env::var("BYRE_DISK").ok()?;
    let name = disk.strip_prefix("/dev/")?.to_owned();
    let mut numbers = Vec::new();
    numbers.extend(number_of(&disk));
    for entry in std::fs::read_dir(format!("/sys/class/block/{name}")).ok()?.flatten() {
        let child = entry.file_name();
        if let Some(child) = child.to_str().filter(|child| child.starts_with(&name)) {
            numbers.extend(number_of(&format!("/dev/{child}")));
        }
    }
    // The verified root's own device.
    numbers.extend(number_of("/dev/dm-0"));
    Some(numbers)
}

fn number_of(path: &str) -> Option<(u32, u32)> {
    let device = std::fs::metadata(path).ok()?.st_rdev();
    Some((rustix::fs::major(device), rustix::fs::minor(device)))
}

//! What only few workloads ask the kernel for: nodes, a time namespace, scheduling and the like.

use serde::{Deserialize, Serialize};

use super::{IdMap, Propagation};

/// Something made below the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Absolute path inside the root; directories above it are made.
    pub path: String,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner, as seen inside the workload's user namespace.
    pub uid: u32,
    /// Group, as seen inside the workload's user namespace.
    pub gid: u32,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// A character device.
    Character {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Pipe,
    /// A symbolic link to this. One that is there already stays.
    Link(String),
}

/// Settings of the kernel that few workloads have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct KernelSettings {
    /// NIS domain name; only with a new UTS namespace.
    pub domain_name: Option<String>,
    /// A new time namespace, with clocks that differ from the host's so much.
    pub time: Option<TimeOffsets>,
    /// Propagation of the root and everything below it.
    pub root_propagation: Option<Propagation>,
    /// personality(2) of the processes.
    pub personality: Option<u32>,
    /// Where their memory comes from on a machine with several nodes of it.
    pub memory_policy: Option<MemoryPolicy>,
    /// Bind mounts that show other ids than those on disk.
    pub mapped_mounts: Vec<MappedMount>,
    /// SELinux label of the files of mounts that are made.
    pub mount_label: Option<String>,
}

/// A bind mount that shows other ids than those on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MappedMount {
    /// Its number in the request's mounts.
    pub mount: u16,
    /// The mounts below it, too.
    pub recursive: bool,
    /// Which ids it shows.
    pub ids: MountIds,
}

/// Which ids a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountIds {
    /// Id N of the disk as the workload's id N, by its user namespace.
    Workload,
    /// Id `inside` of the disk as the host's id `outside`.
    Mapped {
        /// User id maps.
        uids: Vec<IdMap>,
        /// Group id maps.
        gids: Vec<IdMap>,
    },
}

/// set_mempolicy(2) of the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryPolicy {
    /// MPOL_* and its MPOL_F_* flags.
    pub mode: u32,
    /// The nodes that it is about.
    pub nodes: NumberSet,
}

/// A set of numbers from 0 to 1023: processors or memory nodes, as the kernel's masks have them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberSet([u64; 16]);

impl NumberSet {
    /// How many numbers there can be.
    pub const NUMBERS: u32 = 1024;

    /// Adds a number; false if it is too large.
    pub fn insert(&mut self, number: u32) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|index| self.0.get_mut(index));
        match (word, 1_u64.checked_shl(number % 64)) {
            (Some(word), Some(bit)) => {
                *word |= bit;
                true
            }
            (Some(_) | None, Some(_) | None) => false,
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The words of the kernel's mask, lowest numbers first.
    #[must_use]
    pub fn words(&self) -> &[u64; 16] {
        &self.0
    }
}

/// Processors that a further process of a workload runs on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct Affinity {
    /// Before it is in the workload's cgroup.
    pub initial: Option<NumberSet>,
    /// From then on.
    pub last: Option<NumberSet>,
}

/// What security modules are told of a process. Where the module is not there, the start fails.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct Labels {
    /// AppArmor profile, which must be loaded.
    pub apparmor: Option<String>,
    /// SELinux label.
    pub selinux: Option<String>,
}

/// Offsets of a time namespace's clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct TimeOffsets {
    /// CLOCK_MONOTONIC: seconds and nanoseconds.
    pub monotonic: (i64, u32),
    /// CLOCK_BOOTTIME: seconds and nanoseconds.
    pub boottime: (i64, u32),
}

/// How a process is scheduled. `None` leaves what the launching process has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct Scheduling {
    /// For sched_setattr(2).
    pub processor: Option<Scheduler>,
    /// For ioprio_set(2): class in the upper 3 of 16 bits, priority in the lower 13.
    pub disk: Option<u16>,
    /// Processors of an exec's process; a workload's first process has its cgroup's.
    pub processors: Affinity,
}

/// `struct sched_attr` of sched_setattr(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduler {
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub runtime: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub deadline: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub period: u64,
}

//! What only few workloads ask the kernel for: nodes, a time namespace, scheduling and the like.

use serde::{Deserialize, Serialize};

use super::Propagation;

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

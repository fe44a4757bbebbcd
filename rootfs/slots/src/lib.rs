//! Where the two slots are and what the boot left behind: partition table, attempt counter, loader entry names.
//!
//! Pure parsing and encoding, linked into PID 1: nothing here may panic, open a device or decide what boots. Every byte
//! it reads comes from a disk that may be damaged, so everything is bounded and checksummed before it is believed.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod attempts;
pub mod efivar;
pub mod entry;
pub mod gpt;
mod guid;
pub mod template;
pub mod uki;

pub use guid::Guid;

/// One of the two places for an OS root.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Slot {
    /// Partitions `root-a`, `verity-a`, `uki-a`.
    A,
    /// Partitions `root-b`, `verity-b`, `uki-b`.
    B,
}

impl Slot {
    /// Both, in the order in which they are tried when nothing else says.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// `"a"` or `"b"`, as in partition labels and entry names.
    pub fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The slot of a letter.
    pub fn from_letter(letter: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|slot| slot.letter() == letter)
    }

    /// The one that this is not.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Label of this slot's root partition.
    pub fn root_label(self) -> &'static str {
        match self {
            Self::A => "root-a",
            Self::B => "root-b",
        }
    }

    /// Label of this slot's hash tree partition.
    pub fn verity_label(self) -> &'static str {
        match self {
            Self::A => "verity-a",
            Self::B => "verity-b",
        }
    }

    /// Label of this slot's raw kernel image partition.
    pub fn uki_label(self) -> &'static str {
        match self {
            Self::A => "uki-a",
            Self::B => "uki-b",
        }
    }
}

/// Label of the partition that firmware and loader read.
pub const BOOT_LABEL: &str = "boot";
/// Label of the small partition for identity and records.
pub const STATE_LABEL: &str = "state";
/// Blocks (of 4096 bytes) in a group of the state partition's file system, and so the place of its second superblock.
pub const STATE_BLOCKS_PER_GROUP: u32 = 8192;
/// Where the root keeps the [`template`] of the state partition's empty file system.
pub const STATE_TEMPLATE: &str = "/usr/lib/byre/state.template";
/// Label of the partition for images, containers, volumes and logs.
pub const DATA_LABEL: &str = "data";

//! The boot partition: its FAT file system, the loader's entries on it, the order in which the loader takes them, and the steps that
//! arm, bless, run out and repair a slot.
//!
//! Every step is a sequence of single-sector changes with a flush between those whose order matters; the crash test plays each of them
//! to every cut. Nothing here opens a device, decides whether a release may boot, or trusts a byte of the partition: it is read within
//! bounds, and what is not as it was made is refused.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod commit;
mod device;
pub mod entries;
pub mod fat;
pub mod order;

pub use device::{Device, Span};

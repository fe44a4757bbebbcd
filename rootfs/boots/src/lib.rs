//! What a machine remembers of its boots: the flight recorder's ring, and the trials of updates with what they were judged by.
//!
//! Encoding, decoding and judging only: who calls it reads and writes the disk. Every byte comes from a disk that may be damaged or was
//! written by another release, so it is bounded, checksummed and versioned before it is believed.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod log;
pub mod ring;
pub mod trial;

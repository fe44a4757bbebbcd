//! What crosses to PID 1 to start a process, and the check that makes it trusted.
//!
//! A [`LaunchRequest`] is declarative and bounded: it names a program, a root, namespaces and limits, never steps. It comes
//! from processes that may have been taken over, so it is unchecked data; [`Plan::check`] consumes it against a [`Policy`]
//! and is the only way to make a [`Plan`]. The steps that start a process are derived from the plan by `byre-launch`, behind
//! the check, and are never a message.
//!
//! This crate does no I/O, has no clock and no `unsafe`; it must not panic on any input, since PID 1 links it.
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

mod capability;
mod check;
pub mod limits;
pub mod name;
mod policy;
mod request;
pub mod seccomp;

pub use capability::CAPABILITY_NAMES;
pub use name::{Digest, InvalidDigest, InvalidName, Name, WorkloadId};
pub use policy::{ExecPlan, Origin, Plan, Policy, Refusal};
pub use request::*;

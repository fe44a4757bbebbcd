//! PID 1's decisions against a simulated machine: a kernel with processes, cgroups and clocks, the node's services, clients, and chance.
//!
//! A history is made from one number. It boots the node, lets anything happen that a real one may see (and late, doubled and lost news
//! that it should never see), and then ends in one of two ways: the faults stop and everything must become as it is wanted, or the
//! machine shuts down and must end. What must always hold is checked after every step (`invariants`).
//!
//! What the kernel holds (an ended child, an empty cgroup) can be late, doubled or out of order, never lost: PID 1 reads it from
//! descriptors that stay ready until it did. Messages, notifications and timer ticks are lost for good.
//!
//! This crate runs on a developer's machine without privilege. It must not read a clock, a file or an address: the same number is the
//! same history everywhere, so that a failing one can be kept and played again.
#![forbid(unsafe_code)]
#![allow(clippy::arithmetic_side_effects, reason = "a mistake in the simulation may end it")]

mod chance;
mod definitions;
mod history;
mod invariants;
mod kernel;
mod peers;
mod world;

pub use history::{Ended, Failure, records, run, run_crashed, run_replaced, run_traced, story};

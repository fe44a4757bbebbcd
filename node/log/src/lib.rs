//! `byred log`: the only reader of what workloads write.
//!
//! PID 1 opens the pipes and terminals, keeps both ends of them open, and hands the reading ends over; this service moves what
//! comes out into files, serves `logs` and `attach` from those files, and holds no byte in between: it can be killed at any instant
//! without losing or doubling one (a terminal's bytes excepted, which pass through its memory a few at a time). It decides nothing about
//! workloads and opens nothing but its own directory.

mod cursor;
pub mod fuzz;
mod index;
mod input;
mod limit;
mod reader;
mod service;
mod store;

pub use service::{LogError, run, serve};

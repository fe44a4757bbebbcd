//! `byred update`: finds, checks and writes releases of the OS into the inactive slot.
//!
//! It has the network and the inactive slot, and for that nothing else: no device by name, no boot partition, no say in what boots. All that
//! comes in (metadata, statements, blocks, bundles) is checked before it is used, by signatures that lead to keys of the running, verified root; what
//! is written is checked again by PID 1's `arm` before it can ever be booted.

pub mod bundle;
mod control;
pub mod engine;
pub mod error;
mod fetch;
pub mod http;
pub mod journal;
pub mod metadata;
mod outcome;
pub mod service;
mod settings;
pub mod slot;

pub use service::run;

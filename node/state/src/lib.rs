//! `byred state`: keeps the durable wanted state, so that PID 1 never waits for a disk.
//!
//! ```text
//! PID 1 --Record--> append to the journal --> fsync --> Recorded --> PID 1 answers its client
//! start: read the journal --> Replay for each workload --> ReplayEnd --> ready
//! ```
//! What was acknowledged is in the journal whatever is cut. This process decides nothing: at boot it hands PID 1 the records back as
//! ordinary requests, which PID 1 checks against its policy like any other. It has no network and reads nothing from outside but
//! its own file and its control channel.

pub mod journal;
mod record;
mod service;

pub use journal::{Journal, JournalError, Opened};
pub use service::{StateError, run, serve};

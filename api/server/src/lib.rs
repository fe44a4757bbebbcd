//! The node's API: `byre.node.v1` over a unix socket and over TCP with certificates on both sides.
//!
//! This process has its own user and no capabilities. It translates: what clients ask becomes bounded messages to PID 1 and to the other
//! services, and nothing that came from a network reaches PID 1 undigested. It must never mount, open devices or touch cgroups; it keeps no
//! state but the node's key, so it can be killed at any moment: containers and their output do not notice.
//!
//! Way of a call: `listen` accepts and names the peer, `gate` checks its role before a byte of the message is decoded, a service asks
//! PID 1 through `control`, and `audit` records what changes something.

mod attach;
mod audit;
mod backend;
mod boots;
mod config;
mod control;
mod convert;
mod copy;
mod debugging;
mod descriptor;
mod exec;
mod figures;
pub mod fuzz;
mod gate;
mod identity;
mod images;
mod listen;
mod logs;
mod networking;
mod node;
mod peers;
mod probes;
mod processes;
mod pull;
mod readiness;
mod say;
mod schedules;
mod server;
mod session;
mod settings;
mod sockets;
mod spec;
mod supervision;
mod tls;
mod trace;
mod update;
mod why;
mod workloads;

pub use audit::AuditError;
pub use backend::Sockets;
pub use config::{ApiConfig, ConfigError};
pub use control::ControlError;
pub use node::{FactsSource, NodeCondition, NodeFacts, NodeVersion};
pub use server::{Error, Options, run, serve};
pub use tls::TlsError;

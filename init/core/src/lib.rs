//! PID 1's decisions: a pure state machine. Events go in with the time, actions come out; it does no I/O, reads no clock and has
//! no `unsafe`, so that the same code runs in a simulation and a recorded run can be played again.
//!
//! A workload's life:
//!
//! ```text
//!             wanted up, needs ready              Running
//!   Down ────────────────────────────▶ Starting ─────────▶ Up ── exited ──▶ Draining
//!    ▲ ▲                                  │ failed          │ stop wanted      ▲ │
//!    │ │                                  └─────────┐       ▼ or not ready     │ │
//!    │ │                                            │    Stopping ── exited ───┘ │
//!    │ │                                            └──────────────▶ Draining    │
//!    │ └── nothing starts it again ◀───────────────── settle ◀── cgroup empty ───┘
//!    └──── Backoff ◀── restart policy ─────────────────┘
//! ```
//!
//! Happy path: `Boot` puts the root's services in as `Down`; those whose needs are ready are launched; a launch child reports
//! `Running`; readiness makes the next ones start. A client's `Create` adds a container; its record goes to `byred state`, and the
//! client has its answer when the record is on disk.
//!
//! What this crate must not do: wait for anybody, trust a number from a message as an index, or forget a workload whose
//! processes may live.
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod action;
mod arming;
mod calendar;
mod core;
mod durable;
mod event;
mod execs;
mod groups;
mod handoff;
mod lifecycle;
mod pending;
mod pods;
mod probes;
mod reexec;
mod requests;
mod rescue;
mod schedule;
mod shutdown;
mod tables;
mod trace;
mod verbs;
mod why;
mod workload;

pub use action::{Action, Attachment, Next};
pub use core::Core;
pub use event::{Boot, CallContext, ChannelId, Event, ExecId, ExitStatus, LaunchOutcome, Reexecuted, Subject};
pub use execs::Exec;
pub use handoff::TakeOverError;
pub use rescue::{Alive, Known, Rescued, Stray, UNKNOWN};
pub use tables::Table;
pub use trace::{ReplayError, Trace, replay};
pub use workload::{Wanted, Workload};

//! The messages between PID 1 and the node's services, and between the services themselves.
//!
//! Everything here is bounded and versioned, because PID 1 decodes it: a message is at most [`frame::MESSAGE_BYTES`] long, is
//! one datagram of a `SOCK_SEQPACKET` pair, and carries at most [`frame::DESCRIPTORS`] descriptors. Decoding never panics; the
//! fuzz targets `control` and `core` hold it to that. PID 1 reads only from sockets that it made itself and gave to a service of the
//! verified root, so a peer's role is known from the socket and never from a message.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod control;
pub mod definition;
pub mod frame;
pub mod handoff;
pub mod peer;
pub mod pod;
pub mod probe;
pub mod schedule;
pub mod settings;
pub mod status;
pub mod trace;
pub mod update;

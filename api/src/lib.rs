//! The node's API as seen from both ends: the messages of `byre.node.v1`, the proofs and roles that both ends must agree on, and, with
//! the feature `client`, the way to connect to a node and to join it.
//!
//! The messages are compiled from `proto/`, which is the contract. Nothing here may depend on the node's own protocol: a client of
//! another release, or of another language, sees the proto files only.
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod contexts;
pub mod join;
#[cfg(feature = "client")]
pub mod pki;
pub mod role;

/// The messages, and the clients and server traits, of `byre.node.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::wildcard_enum_match_arm, clippy::too_many_lines)]
pub mod proto {
    tonic::include_proto!("byre.node.v1");

    /// The compiled proto files with their imports, for reflection.
    #[cfg(feature = "server")]
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

//! The Update Framework (specification 1.0), as far as a repository of releases needs it: the metadata of the four top-level roles, ed25519
//! signatures over canonical JSON, and the client's workflow (section 5) as decisions without I/O.
//!
//! No delegations, no other key types, no names of targets with folders: a repository of ours has none. The workflow takes bytes and says what is
//! trusted; who fetches and who remembers is somebody else. Nothing is kept that was not verified in the order of the specification.

mod canonical;
mod schema;
mod trusted;

pub use canonical::canonical;
pub use schema::{
    Document, Key, KeyValue, Meta, Role, RoleKeys, Root, Signature, Snapshot, Target, Targets, Timestamp, key_id, now,
    sign, timestamp_text,
};
pub use trusted::{Expirations, Taken, Trusted, TufError};

/// The version of the specification that is written, and whose first number must agree in what is read.
pub const SPEC_VERSION: &str = "1.0.31";

//! What a release of the OS is: the signed statement about it, the keys that may sign one, and the bundle that carries one offline.
//!
//! Linked into PID 1's `arm` child, so nothing here may panic, open anything or allocate by what the input says. A statement is the whole
//! chain from a release key to the bytes of a slot: it names the root hash, with which each block of root and hash tree is checked, and
//! the digest of the kernel image. Whatever else says so (repository metadata, names of files) is only how the statement was found.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

mod facts;
mod keys;
mod statement;

pub use facts::{FACTS_BYTES, Facts, FactsError};
pub use keys::{KEY_FILE_BYTES, KEYS, KeyError, KeyId, ReleaseKeys, SigningKey};
pub use statement::{
    FORMAT, STATEMENT_BYTES, Statement, StatementError, Unverified, VERSION_BYTES, Version, VersionError,
};

/// Where the verified root keeps the public release keys, in the form of [`ReleaseKeys::parse`].
pub const RELEASE_KEYS: &str = "/usr/lib/byre/release-keys";
/// Where the verified root keeps the TUF root metadata with which the first contact with a repository begins.
pub const TUF_ROOT: &str = "/usr/lib/byre/tuf-root.json";
/// Where the verified root keeps the [`Facts`] of the release that it is.
pub const RELEASE_FILE: &str = "/usr/lib/byre/release";

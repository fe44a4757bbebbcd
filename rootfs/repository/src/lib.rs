//! Makes what nodes update from: keys, TUF metadata, a static repository of releases, and one-file bundles of it.
//!
//! Runs where releases are made, never on a node. It signs with whatever secret keys lie in the folders that it is given, so that the keys of
//! one role can stay on a medium that is attached only for that role; it never sends anything anywhere. The format of the metadata is TUF 1.0.

mod bundle;
mod keys;
mod metadata;
mod publish;

pub use bundle::write_bundle;
pub use keys::{KeyFolder, RELEASE_ROLE, Role};
pub use metadata::{new_root, sign};
pub use publish::{Artefact, CHANNEL_PREFIX, Lifetimes, NewRelease, Repository, artefact_name, channel_target};

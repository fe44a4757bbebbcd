//! Container images without privilege: archives in, content-addressed erofs layers and records out.
//!
//! For a process of its own uid that has no capability, no network of its own, and one directory it may write to. Everything read
//! here is hostile: every size, count and depth has a limit, and nothing resolves a path from an image. It must not know
//! PID 1, its protocol, or the API, and it never mounts: who runs a container gets the paths of layer files.
//!
//! ```text
//! archive (tar on a pipe) -> staged blobs -> manifest -> config, layers -> tar -> erofs -> store
//! ```
//! What a registry has comes through `pull`, as a stream of each blob; a layer is then converted while it arrives.

pub mod archive;
pub mod check;
pub mod compression;
pub mod config;
pub mod digest;
pub mod erofs;
pub mod fuzz;
pub mod layer;
pub mod pack;
pub mod policy;
pub mod pull;
pub mod reference;
pub mod shared;
pub mod signature;
pub mod store;
mod sys;
pub mod tar;

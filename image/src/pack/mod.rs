//! Makes container images: deterministic tar and OCI archives for the README's images, developer commands and tests.
//!
//! Nothing on a node calls this. Same input, same bytes.

pub mod tarball;

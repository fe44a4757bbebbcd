//! A client of container registries: OCI distribution 1.1 and Docker's v2, over HTTP/1.1 and TLS.
//!
//! It brings bytes and judges none of them: which manifest is taken, what a layer must be and what is kept is decided by `byre-image`,
//! in another process. Everything the other side names (sizes, hosts, waits, numbers of redirects) has a limit here; a credential goes
//! to the origin it was given for and to the token server that this origin names, and nowhere else. It must not know PID 1, its
//! protocol or the API, and it writes no file.
//!
//! ```text
//! reference -> mirrors, then the registry: connect -> 401? token or basic -> answer -> redirects -> body, resumed where it broke
//! ```

pub mod blocking;
mod challenge;
mod client;
pub mod credentials;
mod error;
pub mod fuzz;
pub mod settings;
#[cfg(any(test, feature = "test-registry"))]
pub mod testing;
mod tls;
mod token;
mod transport;
mod url;

pub use client::{Blob, Body, Client, Repository};
pub use credentials::Credential;
pub use error::RegistryError;
pub use settings::{Host, Limits, Settings, SettingsError};

#[cfg(test)]
mod client_tests;

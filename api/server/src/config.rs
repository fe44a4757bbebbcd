//! What the API is told from outside: the form of `/run/byre/config/api.json`, which `byred config` writes and this service reads once, at its start.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Bytes of the file: an authority of a few certificates, a token and a name.
const FILE_BYTES: u64 = 256 * 1024;

/// The API's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiConfig {
    /// Certificates of the authority that signs clients and this node, PEM. Without it nothing is served over TCP.
    #[serde(default)]
    pub ca_pem: Option<String>,
    /// What a client must know to install this node's certificate, at least 32 characters. Without it no certificate can be installed.
    #[serde(default)]
    pub join_token: Option<String>,
    /// The node's name.
    #[serde(default)]
    pub hostname: Option<String>,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{0}: {1}")]
    Read(String, std::io::Error),
    /// It is not of the right form.
    #[error("{0}: {1}; `byred config` and `byred api` must be from one release")]
    Malformed(String, serde_json::Error),
    /// It is longer than the bound.
    #[error("{0} is longer than {FILE_BYTES} bytes: shorten the authority's certificates")]
    TooLong(String),
}

impl ApiConfig {
    /// Reads the file; one that is not there is an empty configuration.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = || path.display().to_string();
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > FILE_BYTES => return Err(ConfigError::TooLong(name())),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(ConfigError::Read(name(), error)),
        }
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read(name(), error))?;
        serde_json::from_str(&text).map_err(|error| ConfigError::Malformed(name(), error))
    }
}

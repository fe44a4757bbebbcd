//! User names, passwords and refresh tokens: how they are kept, and how docker's `config.json` writes them.
//!
//! A secret has no text form: it can be printed neither on purpose nor by accident, and leaves only in an `Authorization` header or the
//! body for a token server.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Longest `config.json`: some hundred registries.
pub const MAX_CONFIG_LEN: usize = 32 << 10;
/// Most registries in it.
const MAX_AUTHS: usize = 256;
/// Longest user name, password or token; cloud registries use tokens of some kilobytes for passwords.
pub const MAX_SECRET_LEN: usize = 8 << 10;

/// What is shown to a registry or its token server.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Credential {
    /// A user name and a password.
    Password {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A refresh token for the token server.
    Identity {
        /// The token.
        token: String,
    },
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(hidden)",
            Self::Identity { .. } => "Identity(hidden)",
        })
    }
}

/// Why credentials cannot be used. No text holds any part of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CredentialError {
    /// Longer than the limit.
    #[error("docker's config.json is longer than {MAX_CONFIG_LEN} bytes; only `auths` is needed")]
    TooLong,
    /// Not JSON of that form.
    #[error("docker's config.json cannot be read at line {line}: it needs `auths`, and in it objects with `auth`")]
    Json {
        /// Line, from 1.
        line: usize,
    },
    /// A program that fetches credentials.
    #[error(
        "docker's config.json names a credential helper (`{0}`), a program that a node does not have; put the credential into `auths`"
    )]
    Helper(&'static str),
    /// An entry that cannot be read.
    #[error(
        "docker's config.json: the entry of {0:?} has no usable `auth`, `username` and `password`, or `identitytoken`"
    )]
    Entry(String),
    /// Too many.
    #[error("docker's config.json has more than {MAX_AUTHS} registries")]
    TooMany,
    /// A user name or password that cannot be sent.
    #[error(
        "a user name has no colon, no control character and neither it nor a password more than {MAX_SECRET_LEN} bytes"
    )]
    Unusable,
}

impl Credential {
    /// A user name and a password.
    ///
    /// # Errors
    /// [`CredentialError::Unusable`].
    pub fn password(username: &str, password: &str) -> Result<Self, CredentialError> {
        let fits = |text: &str| text.len() <= MAX_SECRET_LEN && !text.chars().any(char::is_control);
        if username.is_empty() || username.contains(':') || !fits(username) || !fits(password) {
            return Err(CredentialError::Unusable);
        }
        Ok(Self::Password { username: username.to_owned(), password: password.to_owned() })
    }

    /// The value of an `Authorization` header, where a password can be shown in one.
    pub(crate) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { username, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            }
            Self::Identity { .. } => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
    creds_store: Option<serde::de::IgnoredAny>,
    cred_helpers: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Reads docker's (and podman's) `config.json`: credentials by registry, as references name it.
///
/// # Errors
/// [`CredentialError`].
pub fn docker_config(text: &str) -> Result<BTreeMap<String, Credential>, CredentialError> {
    if text.len() > MAX_CONFIG_LEN {
        return Err(CredentialError::TooLong);
    }
    // Serde's own words may repeat a secret.
    let config: DockerConfig = serde_json::from_str(text).map_err(|e| CredentialError::Json { line: e.line() })?;
    if config.creds_store.is_some() {
        return Err(CredentialError::Helper("credsStore"));
    }
    if config.cred_helpers.is_some_and(|helpers| !helpers.is_empty()) {
        return Err(CredentialError::Helper("credHelpers"));
    }
    if config.auths.len() > MAX_AUTHS {
        return Err(CredentialError::TooMany);
    }
    let mut found = BTreeMap::new();
    for (key, auth) in config.auths {
        let credential = entry(&auth).ok_or_else(|| CredentialError::Entry(key.chars().take(100).collect()))?;
        found.insert(registry_of_key(&key), credential);
    }
    Ok(found)
}

fn entry(auth: &DockerAuth) -> Option<Credential> {
    if let Some(token) = auth.identitytoken.as_deref().filter(|token| !token.is_empty()) {
        return (token.len() <= MAX_SECRET_LEN).then(|| Credential::Identity { token: token.to_owned() });
    }
    if let (Some(username), Some(password)) = (&auth.username, &auth.password) {
        return Credential::password(username, password).ok();
    }
    let decoded = STANDARD.decode(auth.auth.as_deref()?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.trim_end_matches('\0').split_once(':')?;
    Credential::password(username, password).ok()
}

/// Docker writes whole addresses for its own registry and hosts for others.
fn registry_of_key(key: &str) -> String {
    let host = key.trim_start_matches("https://").trim_start_matches("http://");
    match host.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_file_is_read_and_never_printed() {
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"R.example:5000":{{"username":"u","password":"p:w"}},
            "t.example":{{"identitytoken":"refresh","auth":""}}}},"HttpHeaders":{{}}}}"#,
            STANDARD.encode("me:secret")
        );
        let found = docker_config(&text).unwrap();
        assert_eq!(found["docker.io"], Credential::password("me", "secret").unwrap());
        assert_eq!(found["r.example:5000"], Credential::password("u", "p:w").unwrap());
        assert_eq!(found["t.example"], Credential::Identity { token: "refresh".into() });
        let printed = format!("{found:?}");
        assert!(!printed.contains("secret") && !printed.contains("refresh") && !printed.contains("p:w"));
    }

    #[test]
    fn helpers_and_broken_entries_are_refused_without_repeating_them() {
        assert_eq!(docker_config(r#"{"credsStore":"pass"}"#), Err(CredentialError::Helper("credsStore")));
        assert_eq!(docker_config(r#"{"credHelpers":{"x":"y"}}"#), Err(CredentialError::Helper("credHelpers")));
        assert_eq!(docker_config(r#"{"auths":{"x":{"auth":"!!"}}}"#), Err(CredentialError::Entry("x".into())));
        assert_eq!(docker_config("{\n\"auths\": \"s3cret\"}"), Err(CredentialError::Json { line: 2 }));
        assert!(Credential::password("a:b", "x").is_err());
        assert!(Credential::password("a", "x\r\ny").is_err(), "a line break would be a header of its own");
    }
}

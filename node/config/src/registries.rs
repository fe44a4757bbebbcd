//! What the configuration says of container registries: mirrors, authorities, proxies, credentials.
//!
//! The shapes are the document's; what they must fulfil is decided by the registry client's own check, so that a document that was
//! accepted cannot be refused later. Values that may be secret have no text form.

use std::collections::BTreeMap;
use std::fmt;

use byre_registry::credentials::MAX_CONFIG_LEN;
use byre_registry::settings::{Proxy, SettingsError};
use byre_registry::{Credential, Host, Settings};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// How images are brought from registries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "UncheckedRegistries", deny_unknown_fields)]
#[schemars(!try_from)]
pub struct Registries {
    /// An HTTP proxy for all registries: `http://[user:password@]host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Secret>,
    /// Hosts, addresses, or domains beginning with a dot, that are reached without the proxy.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub no_proxy: Vec<String>,
    /// Docker's `config.json` with `auths`: credentials for registries that have none in `hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_config_json: Option<Secret>,
    /// By host, or host and port, as image names begin with: `docker.io`, `registry.example:5000`.
    #[serde(default)]
    pub hosts: BTreeMap<String, RegistryHost>,
}

/// One registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryHost {
    /// Addresses that are asked first, in this order, such as `https://mirror.example/prefix`.
    #[schemars(length(max = 4))]
    pub mirrors: Vec<String>,
    /// Certificates of this host's authorities, as PEM, instead of the public ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// The host speaks HTTP without TLS, and that is meant.
    pub plain_http: bool,
    /// User name; with `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password or access token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
}

/// As written, before it has been checked as a whole.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedRegistries {
    proxy: Option<Secret>,
    #[serde(default)]
    no_proxy: Vec<String>,
    docker_config_json: Option<Secret>,
    #[serde(default)]
    hosts: BTreeMap<String, RegistryHost>,
}

impl TryFrom<UncheckedRegistries> for Registries {
    type Error = String;

    fn try_from(raw: UncheckedRegistries) -> Result<Self, String> {
        let UncheckedRegistries { proxy, no_proxy, docker_config_json, hosts } = raw;
        if let Some((host, _)) = hosts.iter().find(|(_, host)| host.username.is_some() != host.password.is_some()) {
            return Err(format!("`registries.hosts` of {host:?} has `username` or `password` without the other"));
        }
        if docker_config_json.as_ref().is_some_and(|text| text.0.len() > MAX_CONFIG_LEN) {
            return Err(format!("`docker_config_json` is longer than {MAX_CONFIG_LEN} bytes; only `auths` is needed"));
        }
        let this = Self { proxy, no_proxy, docker_config_json, hosts };
        this.settings().map_err(|error| error.to_string())?;
        Ok(this)
    }
}

impl Registries {
    /// Whether there is anything in it that only an administrator may see.
    pub(crate) fn has_secrets(&self) -> bool {
        *self != self.without_secrets()
    }

    /// The same without what only an administrator may see: a proxy's address may hold a password.
    pub(crate) fn without_secrets(&self) -> Self {
        let mut this = Self { proxy: None, docker_config_json: None, ..self.clone() };
        for host in this.hosts.values_mut() {
            (host.username, host.password) = (None, None);
        }
        this
    }

    /// As the registry client wants it.
    ///
    /// # Errors
    /// What is wrong; for a value of this type, nothing.
    pub(crate) fn settings(&self) -> Result<Settings, SettingsError> {
        let mut settings = Settings { no_proxy: self.no_proxy.clone(), ..Settings::default() };
        settings.proxy = self.proxy.as_ref().map(|proxy| Proxy::parse(&proxy.0)).transpose()?;
        for (name, host) in &self.hosts {
            let credential = match (&host.username, &host.password) {
                (Some(username), Some(password)) => Some(Credential::password(username, &password.0)?),
                (Some(_) | None, Some(_) | None) => None,
            };
            let (mirrors, ca_pem, plain_http) = (host.mirrors.clone(), host.ca_pem.clone(), host.plain_http);
            settings.hosts.insert(name.clone(), Host { mirrors, ca_pem, plain_http, credential });
        }
        if let Some(text) = &self.docker_config_json {
            settings.add_docker_config(&text.0)?;
        }
        settings.check()?;
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use crate::schema::parse;

    const GOOD: &str = r#"version = 1
[registries]
proxy = "http://me:proxy-word@proxy.example:3128"
no_proxy = [".lan"]
docker_config_json = '{"auths":{"other.example":{"username":"you","password":"docker-word"}}}'
[registries.hosts."docker.io"]
mirrors = ["https://mirror.example/hub"]
[registries.hosts."registry.lan:5000"]
plain_http = true
username = "me"
password = "host-word"
"#;

    #[test]
    fn a_document_becomes_the_clients_settings() {
        let configuration = parse(GOOD.as_bytes(), "test").unwrap();
        let settings = configuration.registries.settings().unwrap();
        assert_eq!(settings.hosts.len(), 3);
        assert!(settings.hosts["registry.lan:5000"].plain_http && settings.hosts["other.example"].credential.is_some());
        let shown = crate::plan::document_without_secrets(&configuration);
        assert!(shown.contains("an administrator sees them") && parse(shown.as_bytes(), "shown").is_ok(), "{shown}");
        let printed = format!("{configuration:?} {settings:?} {shown}");
        assert!(!printed.contains("-word"), "{printed}");
        let json = serde_json::to_vec(&settings).unwrap();
        assert_eq!(serde_json::from_slice::<byre_registry::Settings>(&json).unwrap(), settings);
    }

    #[test]
    fn what_is_wrong_is_refused_without_repeating_secrets() {
        for (table, words) in [
            ("proxy = \"https://me:hush@x\"", "`proxy` is not"),
            ("docker_config_json = '{\"auths\":\"hush\"}'", "line 1"),
            ("docker_config_json = '{\"credsStore\":\"hush\"}'", "credential helper"),
            ("hosts = { \"no host\" = {} }", "is not a registry"),
            ("hosts = { \"x.example\" = { username = \"hush\" } }", "without the other"),
            ("hosts = { \"x.example\" = { username = \"a:hush\", password = \"b\" } }", "no colon"),
            ("hosts = { \"x.example\" = { mirrors = [\"http://y.example\"] } }", "has no TLS"),
            ("hosts = { \"x.example\" = { mirrors = [\"https://me:hush@y.example\"] } }", "is not an address"),
            ("hosts = { \"x.example\" = { ca_pem = \"hush\" } }", "ca_pem"),
            ("hosts = { \"x.example\" = { insecure = true } }", "unknown field"),
        ] {
            let text = format!("version = 1\n[registries]\n{table}\n");
            let error = parse(text.as_bytes(), "test").unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("hush"), "{table}: {error}");
        }
    }
}

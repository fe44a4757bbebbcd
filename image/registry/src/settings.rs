//! What a node knows of registries: mirrors, authorities, proxies, credentials; and the limits of every exchange.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::credentials::{Credential, CredentialError, docker_config};
use crate::tls;
use crate::url::{Scheme, Url};

/// Registries that a node can know apart.
pub const MAX_HOSTS: usize = 64;
/// Mirrors of one registry: each that fails costs its timeouts.
pub const MAX_MIRRORS: usize = 4;
/// Exceptions of the proxy.
pub const MAX_NO_PROXY: usize = 64;

/// What is known of registries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// By host and port, as image names begin with: `docker.io`, `registry.example:5000`.
    pub hosts: BTreeMap<String, Host>,
    /// An HTTP proxy for everything: `http://[user:password@]host:port`.
    pub proxy: Option<Proxy>,
    /// Hosts, addresses, or domains beginning with a dot, that are reached without it.
    pub no_proxy: Vec<String>,
    /// Certificates of public authorities, PEM.
    pub authorities: PathBuf,
}

/// The proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// `http://host:port`.
    pub address: String,
    /// What it wants to be shown.
    pub credential: Option<Credential>,
}

/// What is known of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Asked first, in this order: `https://host[:port][/prefix]`.
    pub mirrors: Vec<String>,
    /// Authorities of this host, PEM, instead of the public ones.
    pub ca_pem: Option<String>,
    /// It speaks HTTP without TLS.
    pub plain_http: bool,
    /// What it is shown when a pull brings no credential of its own.
    pub credential: Option<Credential>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            proxy: None,
            no_proxy: Vec::new(),
            authorities: "/etc/ssl/certs/ca-certificates.crt".into(),
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// Too many of something.
    #[error("`{what}` has more than {limit} entries")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A host that no image name can begin with.
    #[error("{0:?} is not a registry as image names begin with: host or host:port")]
    Host(String),
    /// A mirror that cannot be asked.
    #[error("the mirror {0:?} is not an address such as https://mirror.example/prefix")]
    Mirror(String),
    /// A mirror without TLS that nobody allowed.
    #[error(
        "the mirror {0:?} has no TLS: say `plain_http = true` in `registries.hosts` of that host, if that is meant"
    )]
    PlainMirror(String),
    /// Both.
    #[error("{0:?} has `ca_pem` and `plain_http`: one of them is wrong")]
    Both(String),
    /// Certificates that cannot be read.
    #[error("`ca_pem` of {host:?}: {why}")]
    Authorities {
        /// Whose.
        host: String,
        /// Why.
        why: String,
    },
    /// A proxy that cannot be used.
    #[error(
        "`proxy` is not an address such as http://proxy.example:3128, with user:password@ before the host if it wants them"
    )]
    Proxy,
    /// Credentials that cannot be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

impl Proxy {
    /// Parses `http://[user:password@]host:port`.
    ///
    /// # Errors
    /// [`SettingsError::Proxy`]; it repeats nothing, since the text may hold a password.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let rest = text.strip_prefix("http://").ok_or(SettingsError::Proxy)?;
        let (credential, host) = match rest.rsplit_once('@') {
            Some((user, host)) => {
                let (name, password) = user.split_once(':').ok_or(SettingsError::Proxy)?;
                (Some(Credential::password(name, password)?), host)
            }
            None => (None, rest),
        };
        let address = format!("http://{host}");
        let url = Url::parse(&address).map_err(|_| SettingsError::Proxy)?;
        if url.target != "/" {
            return Err(SettingsError::Proxy);
        }
        Ok(Self { address, credential })
    }
}

impl Settings {
    /// Adds the credentials of a docker `config.json` for registries that have none yet.
    ///
    /// # Errors
    /// [`SettingsError::Credential`].
    pub fn add_docker_config(&mut self, text: &str) -> Result<(), SettingsError> {
        for (host, credential) in docker_config(text)? {
            self.hosts.entry(host).or_default().credential.get_or_insert(credential);
        }
        Ok(())
    }

    /// Checks everything that can be checked without a network.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn check(&self) -> Result<(), SettingsError> {
        let count =
            |count, limit, what| if count > limit { Err(SettingsError::TooMany { what, limit }) } else { Ok(()) };
        count(self.hosts.len(), MAX_HOSTS, "registries.hosts")?;
        count(self.no_proxy.len(), MAX_NO_PROXY, "registries.no_proxy")?;
        if let Some(proxy) = &self.proxy {
            Proxy::parse(&proxy.address)?;
        }
        for (name, host) in &self.hosts {
            count(host.mirrors.len(), MAX_MIRRORS, "mirrors")?;
            // A host is what an image name can begin with, so the parser of names decides.
            let image: Result<byre_image::reference::Reference, _> = format!("{name}/x").parse();
            if !image.is_ok_and(|image| image.domain() == name) {
                return Err(SettingsError::Host(name.clone()));
            }
            if host.plain_http && host.ca_pem.is_some() {
                return Err(SettingsError::Both(name.clone()));
            }
            if let Some(pem) = &host.ca_pem {
                tls::check_authorities(pem).map_err(|why| SettingsError::Authorities { host: name.clone(), why })?;
            }
            for mirror in &host.mirrors {
                // One with a user name is refused, and its password not repeated.
                let shown = mirror.rsplit('@').next().unwrap_or_default().to_owned();
                let url = Url::parse(mirror).map_err(|_| SettingsError::Mirror(shown))?;
                if url.target.contains('?') {
                    return Err(SettingsError::Mirror(mirror.clone()));
                }
                if url.origin.scheme == Scheme::Http && !self.is_plain(&url.origin.authority()) {
                    return Err(SettingsError::PlainMirror(mirror.clone()));
                }
            }
        }
        Ok(())
    }

    /// Whether this host may be spoken to without TLS.
    pub(crate) fn is_plain(&self, authority: &str) -> bool {
        self.hosts.get(authority).is_some_and(|host| host.plain_http)
    }

    /// Whether this host is reached without the proxy.
    pub(crate) fn is_direct(&self, host: &str) -> bool {
        let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        loopback
            || self.no_proxy.iter().any(|entry| {
                entry == "*"
                    || entry.eq_ignore_ascii_case(host)
                    || (entry.starts_with('.') && host.ends_with(entry.as_str()))
            })
    }
}

/// What bounds an exchange. The constants of [`Limits::default`] say why.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For a connection, and once more for its TLS.
    pub connect: Duration,
    /// From a request to the head of its answer.
    pub head: Duration,
    /// In each such span a body must bring `least_bytes`.
    pub window: Duration,
    /// See `window`.
    pub least_bytes: u64,
    /// Times a request is sent that meets a passing failure and brings nothing new.
    pub tries: u32,
    /// The wait before the second try; doubled for each further one.
    pub first_wait: Duration,
    /// The longest wait, also of those that a registry asks for.
    pub longest_wait: Duration,
    /// Redirects of one request.
    pub redirects: u32,
    /// Bytes of a manifest.
    pub manifest_bytes: u64,
}

impl Default for Limits {
    /// A layer on a slow line (4 KiB in 30 s) comes, a drip does not; four tries with waits of 1, 2 and 4 s span a registry's restart;
    /// registries themselves refuse manifests above 4 MiB.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            head: Duration::from_secs(30),
            window: Duration::from_secs(30),
            least_bytes: 4096,
            tries: 4,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
            redirects: 5,
            manifest_bytes: 4 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(host: &str, settings: Host) -> Settings {
        Settings { hosts: BTreeMap::from([(host.to_owned(), settings)]), ..Settings::default() }
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        assert_eq!(with("docker.io", Host::default()).check(), Ok(()));
        assert_eq!(with("localhost:5000", Host { plain_http: true, ..Host::default() }).check(), Ok(()));
        for host in ["library", "https://x.example", "x.example/path", ""] {
            assert!(matches!(with(host, Host::default()).check(), Err(SettingsError::Host(_))), "{host}");
        }
        let mirror = |text: &str| with("docker.io", Host { mirrors: vec![text.to_owned()], ..Host::default() }).check();
        assert_eq!(mirror("https://mirror.example/hub"), Ok(()));
        assert!(matches!(mirror("mirror.example"), Err(SettingsError::Mirror(_))));
        assert!(matches!(mirror("http://mirror.example"), Err(SettingsError::PlainMirror(_))));
        let bad = Host { ca_pem: Some("not a certificate".into()), ..Host::default() };
        assert!(matches!(with("x.example", bad).check(), Err(SettingsError::Authorities { .. })));
    }

    #[test]
    fn a_proxy_keeps_its_password_to_itself() {
        let proxy = Proxy::parse("http://me:sesame@proxy.example:3128").unwrap();
        assert_eq!(proxy.address, "http://proxy.example:3128");
        assert!(!format!("{proxy:?}").contains("sesame"));
        for text in ["https://proxy.example", "proxy:3128", "http://me@proxy", "http://proxy/path", "http://"] {
            assert!(Proxy::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_proxy_takes_hosts_and_domains() {
        let settings = Settings { no_proxy: vec![".lan".into(), "10.0.0.1".into()], ..Settings::default() };
        assert!(
            settings.is_direct("registry.lan") && settings.is_direct("10.0.0.1") && settings.is_direct("127.0.0.1")
        );
        assert!(!settings.is_direct("lan.example") && !settings.is_direct("10.0.0.11"));
    }
}

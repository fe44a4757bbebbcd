//! Addresses of registries: what is connected to, and what may get a credential.
//!
//! Two addresses have one origin when scheme, host and port are the same; a credential never crosses from one origin to another.

use std::fmt;

use http::Uri;

use crate::error::RegistryError;

/// Longest address: storage services sign theirs into some kilobytes.
const MAX_URL_LEN: usize = 16 << 10;

/// With TLS or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// What is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Origin {
    pub(crate) scheme: Scheme,
    /// A name or an address; IPv6 in brackets. Lower case.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) origin: Origin,
    /// Path and query, beginning with `/`.
    pub(crate) target: String,
}

impl Origin {
    /// `host` or `host:port`, the port left out where it is the scheme's own.
    pub(crate) fn authority(&self) -> String {
        if self.port == self.scheme.port() { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// The host without brackets, as a resolver and a certificate know it.
    pub(crate) fn name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl Scheme {
    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.authority())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.target)
    }
}

impl Url {
    /// Parses an absolute address. User names in it are refused: they would end in logs.
    pub(crate) fn parse(text: &str) -> Result<Self, RegistryError> {
        let bad = || RegistryError::Url(text.chars().take(200).collect());
        if text.len() > MAX_URL_LEN {
            return Err(bad());
        }
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            Some(_) | None => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad());
        }
        let port = match authority.port() {
            Some(port) => port.as_str().parse().ok().filter(|port| *port != 0).ok_or_else(bad)?,
            // Also a number that is no port.
            None if authority.as_str().len() != authority.host().len() => return Err(bad()),
            None => scheme.port(),
        };
        let host = authority.host().to_ascii_lowercase();
        let target = match uri.path_and_query() {
            Some(target) if target.as_str().starts_with('/') => target.as_str().to_owned(),
            Some(target) => format!("/{}", target.as_str()),
            None => "/".to_owned(),
        };
        Ok(Self { origin: Origin { scheme, host, port }, target })
    }

    /// Where a `Location` header leads.
    pub(crate) fn join(&self, location: &str) -> Result<Self, RegistryError> {
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(&format!("{}://{rest}", self.origin.scheme.name()));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{}{location}", self.origin));
        }
        if location.contains("://") {
            return Self::parse(location);
        }
        let path = self.target.split('?').next().unwrap_or("/");
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        Self::parse(&format!("{}{folder}/{location}", self.origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_equal_only_with_scheme_host_and_port() {
        let origin = |text: &str| Url::parse(text).unwrap().origin;
        assert_eq!(origin("https://Registry.example/v2/"), origin("https://registry.example:443/other?x=1"));
        assert_ne!(origin("https://registry.example/"), origin("http://registry.example/"));
        assert_ne!(origin("https://registry.example/"), origin("https://registry.example:5000/"));
        assert_ne!(origin("https://registry.example/"), origin("https://registry.example.evil/"));
    }

    #[test]
    fn a_location_is_joined_in_each_form() {
        let base = Url::parse("https://a.example/v2/x/blobs/y?z=1").unwrap();
        let join = |location: &str| base.join(location).unwrap().to_string();
        assert_eq!(join("/else"), "https://a.example/else");
        assert_eq!(join("//b.example/else"), "https://b.example/else");
        assert_eq!(join("http://b.example:81/else?s=t"), "http://b.example:81/else?s=t");
        assert_eq!(join("sibling"), "https://a.example/v2/x/blobs/sibling");
    }

    #[test]
    fn addresses_of_another_kind_are_refused() {
        for text in [
            "",
            "ftp://x/",
            "https://",
            "https://user:word@x/",
            "https://x:0/",
            "https://x:99999/",
            "x/y",
            "file:///etc/passwd",
        ] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }
}

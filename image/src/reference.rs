//! Image references as people type them, and their one canonical form.
//!
//! Follows the distribution reference grammar with docker's short forms: `nginx` is `docker.io/library/nginx:latest`.
//! A reference never becomes a path on disk; the store names files by digest only.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// Longest text looked at: 255 for the name, 1+128 for a tag, 1+71 for a digest, rounded up.
const MAX_REFERENCE_LEN: usize = 512;
/// The distribution specification's limit for domain and path together.
const MAX_NAME_LEN: usize = 255;
/// The distribution specification's limit for a tag.
const MAX_TAG_LEN: usize = 128;
const DEFAULT_DOMAIN: &str = "docker.io";
const DEFAULT_DOMAIN_ALIAS: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// A parsed, normalised image reference.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("the image name is empty; give one such as nginx or registry.example/app:1.2")]
    Empty,
    /// Longer than any valid reference.
    #[error("the image name is longer than {MAX_REFERENCE_LEN} bytes")]
    TooLong,
    /// The registry part is not a host with an optional port.
    #[error("{0:?} is not a registry host with an optional port")]
    Domain(String),
    /// A repository path component breaks the grammar.
    #[error("{0:?} is not a repository name; use lower-case letters and digits, joined by '.', '_', '__', '-' or '/'")]
    Path(String),
    /// The tag breaks the grammar.
    #[error("{0:?} is not a tag; use up to {MAX_TAG_LEN} letters, digits, '_', '.', '-', not starting with '.' or '-'")]
    Tag(String),
    /// The digest is malformed.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A bare 64-digit id is not a name.
    #[error("{0} is an image id, not a name; names of 64 hexadecimal digits are not allowed")]
    IsId(String),
}

impl Reference {
    /// Registry host with its port if any, such as `docker.io`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository below the registry, such as `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Tag; `latest` if neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest, if the reference pins one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The form for people: without `docker.io/library/` or `docker.io/`, tag always shown.
    pub fn short(&self) -> String {
        let path = if self.domain == DEFAULT_DOMAIN {
            self.path.strip_prefix(OFFICIAL_PREFIX).filter(|rest| !rest.contains('/')).unwrap_or(&self.path).to_owned()
        } else {
            format!("{}/{}", self.domain, self.path)
        };
        // A bare first component that looks like a host would be read back as one.
        let path = if self.domain == DEFAULT_DOMAIN
            && path.split_once('/').is_some_and(|(first, _)| looks_like_domain(first))
        {
            format!("{}/{}", self.domain, self.path)
        } else {
            path
        };
        self.with_suffix(path)
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(format!("{}/{}", self.domain, self.path)))
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > MAX_REFERENCE_LEN {
            return Err(ReferenceError::TooLong);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (domain, rest) = split_domain(rest);
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if domain.is_none() && tag.is_none() && digest.is_none() && Digest::from_hex(path).is_ok() {
            return Err(ReferenceError::IsId(path.to_owned()));
        }
        check_path(path)?;
        let domain = match domain {
            None | Some(DEFAULT_DOMAIN_ALIAS) => DEFAULT_DOMAIN,
            Some(domain) => {
                check_domain(domain)?;
                domain
            }
        };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL_PREFIX}{path}")
        } else {
            path.to_owned()
        };
        if domain.len() + 1 + path.len() > MAX_NAME_LEN {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => {
                check_tag(tag)?;
                Some(tag.to_owned())
            }
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self { domain: domain.to_owned(), path, tag, digest })
    }
}

/// Docker's rule for whether the text before the first slash is a registry.
fn looks_like_domain(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn split_domain(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest)) if looks_like_domain(first) => (Some(first), rest),
        Some(_) | None => (None, text),
    }
}

fn check_domain(domain: &str) -> Result<(), ReferenceError> {
    let refuse = || ReferenceError::Domain(domain.to_owned());
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or_else(refuse)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| refuse())?;
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return Err(refuse()),
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        }
    };
    let label_ok = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.is_some_and(|host| !host.split('.').all(label_ok)) {
        return Err(refuse());
    }
    if port.is_some_and(|port| !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err()) {
        return Err(refuse());
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), ReferenceError> {
    if path.split('/').all(path_component_ok) { Ok(()) } else { Err(ReferenceError::Path(path.to_owned())) }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn path_component_ok(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes
        .split(|b| alphanumeric(*b))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    let ok = bytes.first().is_some_and(|b| word(*b))
        && bytes.len() <= MAX_TAG_LEN
        && bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'-'));
    if ok { Ok(()) } else { Err(ReferenceError::Tag(tag.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_get_dockers_defaults() {
        assert_eq!(canonical("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(canonical("nginx:1.27"), "docker.io/library/nginx:1.27");
        assert_eq!(canonical("grafana/grafana"), "docker.io/grafana/grafana:latest");
        assert_eq!(canonical("index.docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(canonical("localhost/app"), "localhost/app:latest");
        assert_eq!(canonical("localhost:5000/a/b:x"), "localhost:5000/a/b:x");
        assert_eq!(canonical("[::1]:5000/a"), "[::1]:5000/a:latest");
        let pin = format!("nginx@{}", Digest::of(b""));
        assert_eq!(canonical(&pin), format!("docker.io/library/{pin}"));
    }

    #[test]
    fn the_short_form_is_what_people_type() {
        let short = |text: &str| text.parse::<Reference>().unwrap().short();
        assert_eq!(short("docker.io/library/nginx:latest"), "nginx:latest");
        assert_eq!(short("docker.io/grafana/grafana:1"), "grafana/grafana:1");
        assert_eq!(short("quay.io/a/b"), "quay.io/a/b:latest");
    }

    #[test]
    fn broken_references_are_refused() {
        for text in ["", "Nginx", "a//b", "/a", "a/", "a:", "a:-x", "a@sha256:12", "a b", "..", "a/../b", "-a", "a..b"]
        {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        for text in ["ex_ample.com/a", "a.b:99999/x", "a.b:/x:y:z", "[::1/x", "[::1]5/x", "a\0b", "é"] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        assert!(matches!("a".repeat(64).parse::<Reference>(), Err(ReferenceError::IsId(_))));
        assert_eq!("a".repeat(600).parse::<Reference>(), Err(ReferenceError::TooLong));
        assert!("x".repeat(250).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_both_forms_read_back(text in ".{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(&reference.short().parse::<Reference>().unwrap(), &reference);
            }
        }

        #[test]
        fn valid_references_read_back(
            domain in prop::option::of("(localhost|[a-z][a-z0-9]{0,8}\\.[a-z]{2,4})(:[1-9][0-9]{0,3})?"),
            path in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}){0,3}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        ) {
            let mut text = domain.map(|d| d + "/").unwrap_or_default() + &path;
            if let Some(tag) = tag { text = text + ":" + &tag; }
            // Without a domain, a first component with a dot is taken for one, and that may be a bad one.
            let Ok(reference) = text.parse::<Reference>() else {
                prop_assert!(text.split_once('/').is_some_and(|(first, _)| first.contains('.')));
                return Ok(());
            };
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.short().parse::<Reference>().unwrap(), &reference);
        }
    }
}

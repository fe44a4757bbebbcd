//! Which images may be pulled, loaded and run: rules by repository, and what each wants to see.
//!
//! Decided from the image's record alone, so the answer is the same at a pull, at a load and, without a network, at every start. Nothing
//! here fetches anything; `pull` brings signatures along, and the record keeps them.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::reference::Reference;
use crate::signature::{KeyError, PublicKey, Signature};
use crate::store::Image;

/// Most rules.
pub const MAX_RULES: usize = 64;
/// Most keys of one rule: an old and a new one while one replaces the other, for a few teams.
pub const MAX_KEYS: usize = 8;
/// Most digests of one rule.
pub const MAX_DIGESTS: usize = 64;
/// Longest pattern: the longest repository.
const MAX_PATTERN_LEN: usize = 255;

/// The rules of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// What becomes of an image that no rule is for.
    pub default: Otherwise,
    /// The most specific rule that fits a repository counts.
    pub rules: Vec<Rule>,
}

/// What becomes of an image that no rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Otherwise {
    /// It is taken.
    #[default]
    Accept,
    /// It is refused.
    Reject,
}

/// A rule for some repositories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A repository, `registry.example/team/app`; or, with `/*` at its end, all below; `*` is all.
    pub repository: String,
    /// What it wants.
    pub require: Requirement,
}

/// What a rule wants to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Requirement {
    /// Nothing.
    Accept,
    /// It refuses.
    Reject,
    /// That the image is one of these: digests of manifests or indexes.
    Digests(Vec<Digest>),
    /// A signature of one of these keys.
    Signature {
        /// Public keys, PEM.
        keys_pem: Vec<String>,
        /// The repository that signatures name, where it is not the one that the image is pulled from: a copy or a mirror.
        signed_as: Option<String>,
    },
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Too many of something.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A pattern that fits nothing.
    #[error("{0:?} is not a repository such as registry.example/team/app, registry.example/team/* or *")]
    Repository(String),
    /// Two rules for the same.
    #[error("there are two rules for {0:?}")]
    Twice(String),
    /// A rule without anything to compare with.
    #[error(
        "the rule for {0:?} has no key or no digest, so that nothing could fulfil it; write `reject` if that is meant"
    )]
    Empty(String),
    /// A key that cannot be read.
    #[error("a key of the rule for {repository:?}: {source}")]
    Key {
        /// Whose.
        repository: String,
        /// Why.
        source: KeyError,
    },
}

/// What the policy says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may be used.
    pub accepted: bool,
    /// Why, for people: it names the rule.
    pub text: String,
}

impl Policy {
    /// Checks the rules.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn check(&self) -> Result<(), PolicyError> {
        let limited =
            |count, limit, what| if count > limit { Err(PolicyError::TooMany { what, limit }) } else { Ok(()) };
        limited(self.rules.len(), MAX_RULES, "rules")?;
        for (index, rule) in self.rules.iter().enumerate() {
            check_pattern(&rule.repository)?;
            if self.rules[..index].iter().any(|other| other.repository == rule.repository) {
                return Err(PolicyError::Twice(rule.repository.clone()));
            }
            let empty = || PolicyError::Empty(rule.repository.clone());
            match &rule.require {
                Requirement::Accept | Requirement::Reject => {}
                Requirement::Digests(digests) => {
                    limited(digests.len(), MAX_DIGESTS, "digests")?;
                    if digests.is_empty() {
                        return Err(empty());
                    }
                }
                Requirement::Signature { keys_pem, signed_as } => {
                    limited(keys_pem.len(), MAX_KEYS, "keys")?;
                    if keys_pem.is_empty() {
                        return Err(empty());
                    }
                    for pem in keys_pem {
                        PublicKey::parse(pem)
                            .map_err(|source| PolicyError::Key { repository: rule.repository.clone(), source })?;
                    }
                    if let Some(repository) = signed_as {
                        check_repository(repository)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether any rule could want a signature for this repository, so that a pull should bring some.
    #[must_use]
    pub fn wants_signatures(&self, name: &Reference) -> bool {
        matches!(self.rule_for(&repository(name)).map(|rule| &rule.require), Some(Requirement::Signature { .. }))
    }

    /// Why nothing by this name can ever be taken, if that is so: then its registry need not be asked.
    #[must_use]
    pub fn refuses_outright(&self, name: &Reference) -> Option<String> {
        let refuses = match self.rule_for(&repository(name)) {
            Some(rule) => rule.require == Requirement::Reject,
            None => self.default == Otherwise::Reject,
        };
        refuses.then(|| self.judge(&Judged { digests: &[], signatures: &[] }, name).text)
    }

    /// Judges an image under one of its names.
    #[must_use]
    pub fn judge(&self, image: &Judged<'_>, name: &Reference) -> Verdict {
        let repository = repository(name);
        let Some(rule) = self.rule_for(&repository) else {
            return match self.default {
                Otherwise::Accept => Verdict { accepted: true, text: "accepted: no rule is for it".to_owned() },
                Otherwise::Reject => Verdict {
                    accepted: false,
                    text: format!("no rule is for {repository}, and the default is to reject"),
                },
            };
        };
        let of = &rule.repository;
        let (accepted, text) = match &rule.require {
            Requirement::Accept => (true, format!("accepted by the rule for {of}")),
            Requirement::Reject => (false, format!("the rule for {of} rejects it")),
            Requirement::Digests(digests) => match image.digests.iter().find(|digest| digests.contains(digest)) {
                Some(digest) => (true, format!("accepted by the rule for {of}: {digest} is one of its digests")),
                None => (false, format!("the rule for {of} has other digests than {}", list(image.digests))),
            },
            Requirement::Signature { keys_pem, signed_as } => {
                let named = signed_as.as_deref().unwrap_or(&repository);
                match signed(keys_pem, image, named) {
                    Ok(key) => (true, format!("accepted by the rule for {of}: signed by {key}")),
                    Err(why) => (false, format!("the rule for {of} wants a signature: {why}")),
                }
            }
        };
        Verdict { accepted, text }
    }

    /// Judges an image that is asked for by `name`, or by its identity: then each of its names may speak for it.
    #[must_use]
    pub fn judge_image(&self, image: &Image, name: Option<&Reference>) -> Verdict {
        let digests: Vec<Digest> = image
            .manifest
            .into_iter()
            .chain(image.origins.iter().filter_map(|o| o.reference.digest().copied()))
            .collect();
        let judged = Judged { digests: &digests, signatures: &image.signatures };
        let own: Vec<&Reference> = match name {
            Some(name) => vec![name],
            None => image.names.iter().chain(image.origins.iter().map(|origin| &origin.reference)).collect(),
        };
        let mut last = None;
        for name in own {
            let verdict = self.judge(&judged, name);
            if verdict.accepted {
                return verdict;
            }
            last = Some(verdict);
        }
        last.unwrap_or_else(|| match self.default {
            Otherwise::Accept => Verdict { accepted: true, text: "accepted: it has no name that a rule is for".into() },
            Otherwise::Reject => {
                Verdict { accepted: false, text: "it has no name, and the default is to reject".into() }
            }
        })
    }

    /// The most specific rule: the repository itself, then the longest prefix, then `*`.
    fn rule_for(&self, repository: &str) -> Option<&Rule> {
        let fits = |rule: &&Rule| match rule.repository.strip_suffix('*') {
            Some(prefix) => repository.starts_with(prefix),
            None => rule.repository == repository,
        };
        let weight = |rule: &&Rule| (!rule.repository.ends_with('*'), rule.repository.len());
        self.rules.iter().filter(fits).max_by_key(weight)
    }
}

/// What is known of an image when it is judged.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// Digests of its manifest and of the indexes that led to it.
    pub digests: &'a [Digest],
    /// The signatures that came with it.
    pub signatures: &'a [Signature],
}

/// The key that signed one of the image's digests for this repository.
fn signed(keys_pem: &[String], image: &Judged<'_>, repository: &str) -> Result<String, String> {
    let mut why = "it has none".to_owned();
    for signature in image.signatures {
        for key in keys_pem.iter().filter_map(|pem| PublicKey::parse(pem).ok()) {
            match signature.verify(&key, image.digests, repository) {
                Ok(()) => return Ok(key.name()),
                Err(error) => why = error.to_string(),
            }
        }
    }
    Err(why)
}

fn repository(name: &Reference) -> String {
    format!("{}/{}", name.domain(), name.path())
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn check_pattern(pattern: &str) -> Result<(), PolicyError> {
    match pattern.strip_suffix("/*") {
        _ if pattern == "*" => Ok(()),
        Some(prefix) => check_repository(prefix).or_else(|error| {
            // A host alone is a prefix too, and no repository.
            if check_repository(&format!("{prefix}/x")).is_ok() { Ok(()) } else { Err(error) }
        }),
        None => check_repository(pattern),
    }
}

fn check_repository(text: &str) -> Result<(), PolicyError> {
    let bad = || PolicyError::Repository(text.chars().take(100).collect());
    if text.len() > MAX_PATTERN_LEN {
        return Err(bad());
    }
    let name: Reference = text.parse().map_err(|_| bad())?;
    // Written as the canonical form has it, so that it fits what it seems to fit.
    if repository(&name) == text { Ok(()) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(repository: &str, require: Requirement) -> Rule {
        Rule { repository: repository.into(), require }
    }

    fn name(text: &str) -> Reference {
        text.parse().unwrap()
    }

    const NOTHING: Judged<'static> = Judged { digests: &[], signatures: &[] };

    #[test]
    fn the_most_specific_rule_counts() {
        let policy = Policy {
            default: Otherwise::Reject,
            rules: vec![
                rule("*", Requirement::Reject),
                rule("r.example/*", Requirement::Accept),
                rule("r.example/team/*", Requirement::Reject),
                rule("r.example/team/app", Requirement::Accept),
            ],
        };
        policy.check().unwrap();
        for (text, accepted) in [
            ("r.example/x", true),
            ("r.example/team/other", false),
            ("r.example/team/app:1", true),
            ("r.example/team/app2", false),
            ("r.example.evil/x", false),
            ("nginx", false),
        ] {
            assert_eq!(policy.judge(&NOTHING, &name(text)).accepted, accepted, "{text}");
        }
        assert!(Policy::default().judge(&NOTHING, &name("nginx")).accepted);
        assert!(!Policy { default: Otherwise::Reject, rules: vec![] }.judge(&NOTHING, &name("nginx")).accepted);
    }

    #[test]
    fn digests_are_compared_with_all_that_led_to_the_image() {
        let digest = Digest::of(b"x");
        let policy =
            Policy { rules: vec![rule("r.example/app", Requirement::Digests(vec![digest]))], ..Policy::default() };
        let judged =
            |digests: &[Digest]| policy.judge(&Judged { digests, signatures: &[] }, &name("r.example/app:1")).accepted;
        assert!(judged(&[Digest::of(b"y"), digest]));
        assert!(!judged(&[Digest::of(b"y")]) && !judged(&[]));
    }

    #[test]
    fn rules_that_could_mean_something_else_are_refused() {
        let tried =
            |pattern: &str| Policy { rules: vec![rule(pattern, Requirement::Accept)], ..Policy::default() }.check();
        for pattern in ["*", "r.example/*", "docker.io/library/nginx", "docker.io/library/*"] {
            assert_eq!(tried(pattern), Ok(()), "{pattern}");
        }
        for pattern in ["nginx", "r.example/app:1", "r.example/a*", "*/x", "", "r.example/app@sha256:0"] {
            assert!(tried(pattern).is_err(), "{pattern}");
        }
        let empty = Requirement::Signature { keys_pem: vec![], signed_as: None };
        assert!(Policy { rules: vec![rule("*", empty)], ..Policy::default() }.check().is_err());
    }
}

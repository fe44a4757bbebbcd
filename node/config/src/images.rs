//! What the configuration says of images: which may be pulled, loaded and run.
//!
//! The shapes are the document's; what they must fulfil is decided by the policy's own check.

use byre_image::digest::Digest;
use byre_image::policy::{Otherwise, Policy, Requirement, Rule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which images may be pulled, loaded and run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "UncheckedImages", deny_unknown_fields)]
#[schemars(!try_from)]
pub struct Images {
    /// What becomes of an image that no rule is for.
    #[serde(default)]
    pub default: ImageDefault,
    /// Rules by repository; the most specific one that fits counts.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub rules: Vec<ImageRule>,
}

/// What becomes of an image that no rule is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageDefault {
    /// It is taken.
    #[default]
    Accept,
    /// It is refused.
    Reject,
}

/// A rule for some repositories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRule {
    /// A repository in full, such as `registry.example/team/app`; with `/*` at its end all below; `*` is all.
    pub repository: String,
    /// What is wanted.
    pub require: ImageRequirement,
    /// With `signature`: public keys as PEM, one of which must have signed.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub keys_pem: Vec<String>,
    /// With `signature`: the repository that signatures name, for a copy or a mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_as: Option<String>,
    /// With `digest`: the manifests or indexes that are taken, `sha256:…`.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub digests: Vec<String>,
}

/// What a rule wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageRequirement {
    /// Nothing.
    Accept,
    /// It refuses.
    Reject,
    /// One of `digests`.
    Digest,
    /// A signature of one of `keys_pem`.
    Signature,
}

/// As written, before it has been checked as a whole.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedImages {
    #[serde(default)]
    default: ImageDefault,
    #[serde(default)]
    rules: Vec<ImageRule>,
}

impl TryFrom<UncheckedImages> for Images {
    type Error = String;

    fn try_from(raw: UncheckedImages) -> Result<Self, String> {
        let this = Self { default: raw.default, rules: raw.rules };
        this.policy()?;
        Ok(this)
    }
}

/// What is in force if rules were lost: a node without its rules would take anything.
pub(crate) fn reject_all() -> Policy {
    Policy { default: Otherwise::Reject, rules: Vec::new() }
}

impl Images {
    /// As the image service wants it.
    ///
    /// # Errors
    /// What is wrong; for a value of this type, nothing.
    pub(crate) fn policy(&self) -> Result<Policy, String> {
        let rules = self.rules.iter().map(ImageRule::rule).collect::<Result<_, String>>()?;
        let default = match self.default {
            ImageDefault::Accept => Otherwise::Accept,
            ImageDefault::Reject => Otherwise::Reject,
        };
        let policy = Policy { default, rules };
        policy.check().map_err(|error| format!("`images.rules`: {error}"))?;
        Ok(policy)
    }
}

impl ImageRule {
    fn rule(&self) -> Result<Rule, String> {
        let of = &self.repository;
        let unused = |field: &str| format!("`images.rules` of {of:?}: `{field}` means nothing with this `require`");
        if self.require != ImageRequirement::Signature && (!self.keys_pem.is_empty() || self.signed_as.is_some()) {
            return Err(unused("keys_pem` or `signed_as"));
        }
        if self.require != ImageRequirement::Digest && !self.digests.is_empty() {
            return Err(unused("digests"));
        }
        let require = match self.require {
            ImageRequirement::Accept => Requirement::Accept,
            ImageRequirement::Reject => Requirement::Reject,
            ImageRequirement::Signature => {
                Requirement::Signature { keys_pem: self.keys_pem.clone(), signed_as: self.signed_as.clone() }
            }
            ImageRequirement::Digest => {
                let parsed =
                    self.digests.iter().map(|text| text.parse::<Digest>().map_err(|e| format!("`digests`: {e}")));
                Requirement::Digests(parsed.collect::<Result<_, String>>()?)
            }
        };
        Ok(Rule { repository: of.clone(), require })
    }
}

#[cfg(test)]
mod tests {
    use crate::schema::parse;

    #[test]
    fn a_document_becomes_a_policy_or_is_refused_at_its_line() {
        let good = "version = 1\n[images]\ndefault = \"reject\"\n[[images.rules]]\nrepository = \"r.example/team/*\"\n\
            require = \"digest\"\ndigests = [\"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"]\n";
        let policy = parse(good.as_bytes(), "test").unwrap().images.policy().unwrap();
        assert_eq!(policy.rules.len(), 1);
        assert!(
            !policy
                .judge(&byre_image::policy::Judged { digests: &[], signatures: &[] }, &"nginx".parse().unwrap())
                .accepted
        );
        for (rule, words) in [
            ("repository = \"nginx\"\nrequire = \"accept\"", "is not a repository"),
            ("repository = \"*\"\nrequire = \"signature\"", "no key"),
            ("repository = \"*\"\nrequire = \"signature\"\nkeys_pem = [\"x\"]", "BEGIN PUBLIC KEY"),
            ("repository = \"*\"\nrequire = \"digest\"\ndigests = [\"sha256:1\"]", "is not a digest"),
            ("repository = \"*\"\nrequire = \"accept\"\ndigests = [\"x\"]", "means nothing"),
            ("repository = \"*\"\nrequire = \"trust\"", "unknown variant"),
        ] {
            let text = format!("version = 1\n[[images.rules]]\n{rule}\n");
            let error = parse(text.as_bytes(), "test").unwrap_err().to_string();
            assert!(error.contains(words), "{rule}: {error}");
        }
    }
}

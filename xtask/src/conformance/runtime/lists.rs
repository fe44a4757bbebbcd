//! The committed list of what is known to differ, with a reason for each test, and of what only one peer has.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// `tests/conformance/runtime.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Lists {
    /// Fails with us, passes with a peer.
    differs: Vec<Differs>,
    /// Tests of what only that peer has: at most a tenth of a suite.
    specific: Vec<Specific>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Differs {
    suite: String,
    tests: Vec<String>,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Specific {
    suite: String,
    tests: Vec<String>,
    feature: String,
}

impl Lists {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let lists: Self = toml::from_str(&text).with_context(|| format!("{} is malformed", path.display()))?;
        let mut all: Vec<(&str, &str)> = Vec::new();
        for (suite, tests) in lists.differs.iter().map(|one| (&one.suite, &one.tests)) {
            all.extend(tests.iter().map(|test| (suite.as_str(), test.as_str())));
        }
        for (suite, tests) in lists.specific.iter().map(|one| (&one.suite, &one.tests)) {
            all.extend(tests.iter().map(|test| (suite.as_str(), test.as_str())));
        }
        all.sort_unstable();
        let twice = all.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(twice.is_none(), "{}: {twice:?} stands there twice", path.display());
        Ok(lists)
    }

    /// The reason why a test fails with us.
    pub(super) fn differs(&self, suite: &str, test: &str) -> Option<&str> {
        let found = self.differs.iter().find(|one| one.suite == suite && one.tests.iter().any(|name| name == test));
        found.map(|one| one.reason.as_str())
    }

    /// What a test tests that only one peer has.
    pub(super) fn specific(&self, suite: &str, test: &str) -> Option<&str> {
        let found = self.specific.iter().find(|one| one.suite == suite && one.tests.iter().any(|name| name == test));
        found.map(|one| one.feature.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_list_is_well_formed() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance/runtime.toml");
        let lists = Lists::read(&path).unwrap();
        assert!(lists.differs.iter().all(|one| one.reason.len() > 20), "a reason says why");
        let specific: usize = lists.specific.iter().filter(|one| one.suite == "crun").map(|one| one.tests.len()).sum();
        // The suite has 104 tests.
        assert!(specific <= 10, "{specific} tests are called crun's own");
    }
}

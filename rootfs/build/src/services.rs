//! Service definitions: TOML sources in, one compiled file out. The compiled form is what PID 1 reads, so that it never
//! parses TOML; a definition that does not compile fails the image build, not a boot.

use anyhow::{Context, Result};
use std::path::Path;

/// A definition file: name without `.toml`, and text.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// The definitions in `directory`, by name. A missing directory has none.
pub(crate) fn read(directory: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    if !directory.exists() {
        return Ok(sources);
    }
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let name =
                path.file_stem().and_then(|stem| stem.to_str()).context("a service name is not UTF-8")?.to_owned();
            sources.push(Source { name, text: std::fs::read_to_string(&path)? });
        }
    }
    sources.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(sources)
}

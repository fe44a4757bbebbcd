//! The software bill of materials: SPDX 2.3 as JSON, of the packages and crates that an image is made from.

use crate::lock::{Fetched, Use};
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;

#[derive(Deserialize)]
struct CargoLock {
    package: Vec<Crate>,
}

#[derive(Deserialize)]
struct Crate {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The document. `root_hash` makes its namespace unique, as SPDX asks.
pub(crate) fn document(
    packages: &[Fetched],
    cargo_lock: &Path,
    version: &str,
    root_hash: &str,
    epoch: i64,
) -> Result<String> {
    let text = std::fs::read_to_string(cargo_lock).with_context(|| format!("cannot read {}", cargo_lock.display()))?;
    let crates: CargoLock = toml::from_str(&text).context("Cargo.lock is not what cargo writes")?;
    let created = time::OffsetDateTime::from_unix_timestamp(epoch)?
        .format(time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z"))?;
    let mut entries = vec![entry("Byre", "byre", version, None, "NOASSERTION", None)];
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Byre")];
    for fetched in packages {
        let package = &fetched.package;
        let id = identifier("deb", &package.name, &package.version);
        let purl = format!("pkg:deb/debian/{}@{}?arch={}", package.name, package.version, package.arch);
        entries.push(entry(&id, &package.name, &package.version, Some(&package.sha256), &package.path, Some(&purl)));
        let kind = match package.purpose {
            Use::Kernel | Use::Loader | Use::Root => "CONTAINS",
            Use::Tool => "BUILD_DEPENDENCY_OF",
        };
        relations.push(match package.purpose {
            Use::Kernel | Use::Loader | Use::Root => relation("SPDXRef-Byre", kind, &format!("SPDXRef-{id}")),
            Use::Tool => relation(&format!("SPDXRef-{id}"), kind, "SPDXRef-Byre"),
        });
    }
    for one in &crates.package {
        let Some(checksum) = &one.checksum else { continue };
        let id = identifier("crate", &one.name, &one.version);
        let purl = format!("pkg:cargo/{}@{}", one.name, one.version);
        entries.push(entry(&id, &one.name, &one.version, Some(checksum), "NOASSERTION", Some(&purl)));
        relations.push(relation("SPDXRef-Byre", "DEPENDS_ON", &format!("SPDXRef-{id}")));
    }
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("byre-{version}"),
        "documentNamespace": format!("https://spdx.org/spdxdocs/byre-{version}-{root_hash}"),
        "creationInfo": { "created": created, "creators": ["Tool: byre-xtask"] },
        "packages": entries,
        "relationships": relations,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn entry(id: &str, name: &str, version: &str, sha256: Option<&str>, source: &str, purl: Option<&str>) -> Value {
    let mut value = json!({
        "SPDXID": format!("SPDXRef-{id}"),
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
    });
    if let Some(sha256) = sha256 {
        value["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": sha256 }]);
    }
    if source != "NOASSERTION" {
        value["sourceInfo"] = json!(format!("Debian archive: {source}"));
    }
    if let Some(purl) = purl {
        value["externalRefs"] = json!([{
            "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl,
        }]);
    }
    value
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

/// SPDX identifiers have letters, digits, dots and hyphens only.
fn identifier(kind: &str, name: &str, version: &str) -> String {
    format!("{kind}-{name}-{version}")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_have_only_the_allowed_characters() {
        assert_eq!(identifier("deb", "libext2fs2t64", "1.47.2-3+b12"), "deb-libext2fs2t64-1.47.2-3-b12");
    }
}

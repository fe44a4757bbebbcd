//! What a registry's answer is, and which image of it is for this machine. Pure: bytes in, decisions out.

use crate::archive::manifest::{Descriptor, Index, Manifest, MediaKind, media_kind};
use crate::archive::{ArchiveError, MAX_JSON_LEN, MAX_LAYERS, MAX_MANIFESTS, fitting};
use crate::digest::Digest;
use serde::Deserialize;

use super::PullError;

/// An answer, understood.
#[derive(Debug)]
pub(crate) enum Document {
    /// Several images, of which one is for this machine: its digest and size.
    Index {
        /// The chosen manifest.
        digest: Digest,
        /// Its length.
        size: u64,
        /// What it is to be.
        media_type: Option<String>,
    },
    /// One image.
    Manifest(Plan),
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Its configuration's digest and length.
    pub(crate) config: (Digest, u64),
    /// The blobs of its layers, lowest first.
    pub(crate) layers: Vec<(Digest, u64)>,
}

/// The fields by which a document shows what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    media_type: Option<String>,
    schema_version: Option<u64>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

/// Reads an answer. `stated` is the media type that came with it or that its index names.
pub(crate) fn read(bytes: &[u8], stated: &str) -> Result<Document, PullError> {
    let json = |error: serde_json::Error| PullError::Json { what: "manifest", why: error.to_string() };
    if bytes.len() as u64 > MAX_JSON_LEN {
        return Err(PullError::TooLarge { what: "the manifest", limit: MAX_JSON_LEN });
    }
    let shape: Shape = serde_json::from_slice(bytes).map_err(json)?;
    // A document that is both means one thing to one reader and another to the next (CVE-2021-41190).
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(PullError::Ambiguous);
    }
    if shape.schema_version == Some(1) {
        return Err(PullError::OldSchema);
    }
    let kind = kind(shape.media_type.as_deref(), stated, shape.manifests.is_some())?;
    match kind {
        MediaKind::Index => {
            let index: Index = serde_json::from_slice(bytes).map_err(json)?;
            limit(index.manifests.len(), MAX_MANIFESTS, "manifests in an index")?;
            let mut usable = fitting(&index.manifests)?;
            let Descriptor { digest, size, media_type, .. } = usable.swap_remove(0);
            Ok(Document::Index { digest, size, media_type })
        }
        MediaKind::Manifest => {
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
            plan(&manifest).map(Document::Manifest)
        }
        MediaKind::Config | MediaKind::Layer => Err(PullError::MediaType(stated.to_owned())),
    }
}

/// What a document is: what it says itself and what was said of it must agree; where neither says anything, its form decides.
fn kind(own: Option<&str>, stated: &str, has_manifests: bool) -> Result<MediaKind, PullError> {
    let unknown = |text: &str| PullError::MediaType(text.chars().take(200).collect());
    let of = |text: &str| media_kind(text).map_err(|_| unknown(text));
    match (own, stated) {
        (Some(own), "" | "application/json" | "text/plain" | "application/octet-stream") => of(own),
        (Some(own), stated) if own == stated => of(own),
        (Some(own), stated) => Err(PullError::TwoTypes { own: short(own), stated: short(stated) }),
        (None, "" | "application/json" | "text/plain" | "application/octet-stream") => {
            Ok(if has_manifests { MediaKind::Index } else { MediaKind::Manifest })
        }
        (None, stated) => of(stated),
    }
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

fn plan(manifest: &Manifest) -> Result<Plan, PullError> {
    let expect = |descriptor: &Descriptor, kind: MediaKind| {
        let text = descriptor.media_type.as_deref().unwrap_or_default();
        match media_kind(text) {
            Ok(found) if found == kind => Ok(()),
            Ok(_) | Err(_) => Err(PullError::MediaType(short(text))),
        }
    };
    expect(&manifest.config, MediaKind::Config)?;
    if manifest.config.size > MAX_JSON_LEN {
        return Err(PullError::TooLarge { what: "the configuration", limit: MAX_JSON_LEN });
    }
    limit(manifest.layers.len(), MAX_LAYERS, "layers")?;
    for layer in &manifest.layers {
        expect(layer, MediaKind::Layer)?;
    }
    let layers = manifest.layers.iter().map(|layer| (layer.digest, layer.size)).collect();
    Ok(Plan { config: (manifest.config.digest, manifest.config.size), layers })
}

fn limit(count: usize, limit: usize, what: &'static str) -> Result<(), PullError> {
    if count > limit { Err(ArchiveError::TooMany { what, limit }.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn manifest() -> serde_json::Value {
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"c"), "size": 1},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": Digest::of(b"l"), "size": 7}],
        })
    }

    fn tried(value: &serde_json::Value, stated: &str) -> Result<Document, PullError> {
        read(value.to_string().as_bytes(), stated)
    }

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        for stated in [MANIFEST, "", "application/json"] {
            let Ok(Document::Manifest(plan)) = tried(&manifest(), stated) else { panic!("{stated}") };
            assert_eq!(plan.layers, [(Digest::of(b"l"), 7)]);
        }
        let index = json!({"schemaVersion": 2, "manifests": [
            {"mediaType": MANIFEST, "digest": Digest::of(b"s390"), "size": 3, "platform": {"os": "linux", "architecture": "s390x"}},
            {"mediaType": MANIFEST, "digest": Digest::of(b"ours"), "size": 4, "platform": {"os": "linux", "architecture": crate::archive::ARCHITECTURE}},
        ]});
        let Ok(Document::Index { digest, size: 4, .. }) = tried(&index, INDEX) else { panic!() };
        assert_eq!(digest, Digest::of(b"ours"));
    }

    #[test]
    fn what_means_two_things_is_refused_by_name() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        assert!(matches!(tried(&both, MANIFEST), Err(PullError::Ambiguous)));
        assert!(matches!(tried(&manifest(), INDEX), Err(PullError::TwoTypes { .. })));
        assert!(matches!(tried(&json!({"schemaVersion": 1}), ""), Err(PullError::OldSchema)));
        let mut other = manifest();
        other["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        assert!(matches!(tried(&other, MANIFEST), Err(PullError::MediaType(text)) if text.contains("helm")));
        assert!(matches!(read(&vec![b' '; (4 << 20) + 1], MANIFEST), Err(PullError::TooLarge { .. })));
        let mut many = manifest();
        many["layers"] = json!(vec![many["layers"][0].clone(); MAX_LAYERS + 1]);
        assert!(tried(&many, MANIFEST).is_err());
    }
}

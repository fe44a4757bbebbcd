//! The signatures that lie beside an image, where cosign puts them: a manifest under a tag made of the image's digest.
//!
//! They are only brought and bounded here. Whether one counts is `policy`'s business, now and at every start.

use std::collections::BTreeMap;
use std::io::Read as _;

use serde::Deserialize;

use super::source::{Source, SourceFault, Stop, Wanted};
use super::{PullError, broken};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::signature::{MAX_PAYLOAD_LEN, MAX_SIGNATURES, PAYLOAD_TYPE, SIGNATURE_ANNOTATION, Signature};

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: Digest,
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
}

/// The signatures of the image with this digest; none if there are none.
pub(super) fn fetch(
    source: &dyn Source,
    name: &Reference,
    digest: &Digest,
    stop: &Stop,
) -> Result<Vec<Signature>, PullError> {
    let tag = format!("sha256-{}.sig", digest.hex());
    let fetched = match source.manifest(name, &tag, false, stop) {
        Ok(fetched) => fetched,
        Err(error) if error.fault == SourceFault::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let manifest: Manifest = serde_json::from_slice(&fetched.bytes)
        .map_err(|error| PullError::Json { what: "manifest of the signatures", why: error.to_string() })?;
    let mut found = Vec::new();
    for layer in manifest.layers {
        let signature = layer.annotations.and_then(|mut all| all.remove(SIGNATURE_ANNOTATION));
        let Some(signature) = signature.filter(|_| layer.media_type == PAYLOAD_TYPE) else { continue };
        // More than that, or larger, is not what cosign makes; what counts may still be among the first.
        if found.len() >= MAX_SIGNATURES || layer.size > MAX_PAYLOAD_LEN as u64 || signature.len() > 2048 {
            continue;
        }
        let wanted = Wanted { digest: layer.digest, size: layer.size, offset: 0, origin_only: false };
        let mut payload = Vec::new();
        let reader = source.blob(name, wanted, stop)?;
        reader.take(MAX_PAYLOAD_LEN as u64 + 1).read_to_end(&mut payload).map_err(|error| broken(&error))?;
        let digest = Digest::of(&payload);
        if digest != layer.digest {
            let what = "the payload of a signature".to_owned();
            return Err(PullError::Digest { what, expected: layer.digest, found: digest });
        }
        if let Ok(payload) = String::from_utf8(payload) {
            found.push(Signature { payload, signature });
        }
    }
    Ok(found)
}

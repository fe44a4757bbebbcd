//! The record of one image: the file whose existence says that the image is in the store.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::reference::Reference;
use crate::signature::Signature;

/// Version of the record's format.
const VERSION: u32 = 1;
/// Largest record: 128 layers, 64 names of 512 bytes and 8 signatures of 10 KiB, with room to spare.
pub(super) const MAX_RECORD_LEN: u64 = 256 << 10;
/// Suffix of record and configuration files.
pub(super) const SUFFIX: &str = ".json";

/// One layer of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest of the plain tar stream; the layer file is named by it.
    pub diff_id: Digest,
    /// Length of the layer file in bytes.
    pub bytes: u64,
}

/// Most places an image is known to come from; the oldest is forgotten.
pub(super) const MAX_ORIGINS: usize = 16;

/// Where an image came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The name it was asked for by, with the digest that the registry's answer had: of the index, if there is one.
    pub reference: Reference,
    /// When: seconds since 1970.
    pub pulled_at: u64,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration.
    pub id: Digest,
    /// Names, canonical, sorted. Each name leads to one image only.
    pub names: Vec<Reference>,
    /// Digest of its manifest, if it came with one.
    pub manifest: Option<Digest>,
    /// Lowest first.
    pub layers: Vec<LayerInfo>,
    /// When it was built, as its configuration says.
    pub created: Option<String>,
    /// When it was loaded: seconds since 1970.
    pub loaded_at: u64,
    /// Rises with each load or rename: of two records with the same name, the higher one has it.
    pub(super) sequence: u64,
    /// The registries it was pulled from, oldest first.
    pub origins: Vec<Origin>,
    /// The signatures that came with it; whether one counts is said by the policy.
    pub signatures: Vec<Signature>,
}

impl Image {
    /// Bytes of its layer files; shared ones count fully.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).sum()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    id: Digest,
    names: Vec<String>,
    manifest: Option<Digest>,
    layers: Vec<RecordLayer>,
    created: Option<String>,
    loaded_at: u64,
    sequence: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    origins: Vec<RecordOrigin>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordOrigin {
    reference: String,
    pulled_at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordLayer {
    diff_id: Digest,
    bytes: u64,
}

/// The record's bytes.
pub(super) fn encode(image: &Image) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Record {
        version: VERSION,
        id: image.id,
        names: image.names.iter().map(ToString::to_string).collect(),
        manifest: image.manifest,
        layers: image.layers.iter().map(|l| RecordLayer { diff_id: l.diff_id, bytes: l.bytes }).collect(),
        created: image.created.clone(),
        loaded_at: image.loaded_at,
        sequence: image.sequence,
        origins: image
            .origins
            .iter()
            .map(|origin| RecordOrigin { reference: origin.reference.to_string(), pulled_at: origin.pulled_at })
            .collect(),
        signatures: image.signatures.clone(),
    })
}

/// Reads a record back; the error says what is wrong with it.
pub(super) fn decode(bytes: &[u8]) -> Result<Image, String> {
    let record: Record = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if record.version != VERSION {
        return Err(format!("its version is {}, not {VERSION}", record.version));
    }
    let origin = |origin: &RecordOrigin| {
        let reference = origin.reference.parse().map_err(|e| format!("{e}"))?;
        Ok::<_, String>(Origin { reference, pulled_at: origin.pulled_at })
    };
    let names = record.names.iter().map(|name| name.parse().map_err(|e| format!("{e}")));
    Ok(Image {
        id: record.id,
        names: names.collect::<Result<_, String>>()?,
        manifest: record.manifest,
        layers: record.layers.iter().map(|l| LayerInfo { diff_id: l.diff_id, bytes: l.bytes }).collect(),
        created: record.created,
        loaded_at: record.loaded_at,
        sequence: record.sequence,
        origins: record.origins.iter().map(origin).collect::<Result<_, String>>()?,
        signatures: record.signatures.clone(),
    })
}

/// See [`crate::fuzz::fuzz_record`].
pub(crate) fn fuzz_record(data: &[u8]) -> bool {
    let Ok(image) = decode(data) else { return false };
    let again = encode(&image).expect("a record can be written");
    assert_eq!(decode(&again).as_ref(), Ok(&image));
    // Sums of what a disk says must not overflow.
    let _ = image.bytes();
    true
}

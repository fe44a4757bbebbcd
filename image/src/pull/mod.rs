//! Pulling an image: from a name to a record, with nothing visible before the end.
//!
//! ```text
//! name -> policy -> manifest (or index -> manifest) -> signatures, policy -> configuration -> leases -> layers, two at once, joined with other pulls -> record
//!   layer: blob comes -> hash, inflate, convert as it comes -> digest and diff_id compared -> fsync, fs-verity, name
//! ```
//! The source of the bytes is not trusted and not named here. A pull that ends early leaves finished layers and what has come of large
//! blobs for the next one, within the bounds of `store/leases.rs`; it leaves no image.

mod blob;
pub(crate) mod document;
mod layers;
mod signatures;
mod source;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::archive::{ArchiveError, MAX_INDEX_DEPTH, MAX_JSON_LEN, check_platform};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::policy::Judged;
use crate::reference::Reference;
use crate::shared::SharedStore;
use crate::signature::{MAX_SIGNATURES, Signature};
use crate::store::{Image, LayerInfo, NewImage, Origin, StoreError, now};

use document::{Document, Plan};
pub(crate) use layers::Works;
pub use layers::{LayerProgress, LayerStep};
pub use source::{Fetched, Source, SourceError, SourceFault, Stop, Wanted};

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest that is not for us.
    #[error("the manifest is refused: {0}")]
    Manifest(#[from] ArchiveError),
    /// A document that cannot be read.
    #[error("the {what} cannot be read: {why}")]
    Json {
        /// Which.
        what: &'static str,
        /// The parser's words.
        why: String,
    },
    /// Image and index in one.
    #[error(
        "the manifest has fields of an index as well, so that two programs may see two images in it: it is refused"
    )]
    Ambiguous,
    /// Docker's first schema.
    #[error(
        "the manifest is of Docker's schema 1, which names no configuration: push the image again with a newer builder"
    )]
    OldSchema,
    /// A type that is no image.
    #[error("media type {0:?} is not one of a container image")]
    MediaType(String),
    /// Two types.
    #[error("the manifest says that it is {own:?}, and was delivered as {stated:?}: it is refused")]
    TwoTypes {
        /// In it.
        own: String,
        /// Of it.
        stated: String,
    },
    /// More than is taken.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Other content than asked for.
    #[error(
        "{what} has the digest {found}, not {expected}: the registry or a mirror gives something else than was asked for"
    )]
    Digest {
        /// What.
        what: String,
        /// In the name or manifest.
        expected: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// A header that contradicts its body.
    #[error("the registry calls its answer {stated:?}, and its digest is {found}: the answer was changed on its way")]
    Stated {
        /// The registry's header.
        stated: String,
        /// Of the bytes.
        found: Digest,
    },
    /// Another length.
    #[error("{what} has {found} bytes, its manifest says {expected}")]
    Size {
        /// What.
        what: String,
        /// In the manifest.
        expected: u64,
        /// Of the bytes.
        found: u64,
    },
    /// Manifest and configuration do not fit.
    #[error("the manifest has {manifest} layers and the configuration {config}")]
    LayerCount {
        /// In the manifest.
        manifest: usize,
        /// In the configuration.
        config: usize,
    },
    /// The node's own rules.
    #[error("the node's policy does not take {name}: {why}")]
    Policy {
        /// The image.
        name: String,
        /// The rule and what it misses.
        why: String,
    },
    /// The caller stopped it.
    #[error("cancelled")]
    Cancelled,
}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image, with all its names.
    pub image: Image,
    /// The name it was asked for by, with the digest of what the registry answered.
    pub reference: Reference,
    /// Layers that came; the others were here or came for another pull.
    pub new_layers: usize,
}

/// What a manifest request gave.
struct Found {
    /// Digest of the first answer, which is what a name with a digest names.
    top: Digest,
    /// Digest of the image's own manifest.
    manifest: Digest,
    plan: Plan,
}

/// Pulls `name` from `source` into the store.
///
/// `tell` is called a few times a second with the state of all layers, and stops the pull by returning false.
///
/// # Errors
/// [`PullError`]; there is then no new image.
pub fn pull(
    store: &SharedStore,
    source: &dyn Source,
    name: &Reference,
    tell: &mut dyn FnMut(&[LayerProgress]) -> bool,
) -> Result<Pulled, PullError> {
    let stop = Stop::default();
    if !tell(&[]) {
        return Err(PullError::Cancelled);
    }
    if let Some(why) = store.policy().refuses_outright(name) {
        return Err(PullError::Policy { name: name.short(), why });
    }
    let found = find(source, name, &stop)?;
    let signatures = judged(store, source, name, &found, &stop)?;
    let config_bytes = config(source, name, found.plan.config, &stop)?;
    let config = ImageConfig::parse(&config_bytes).map_err(|why| PullError::Json { what: "configuration", why })?;
    check_platform(&config)?;
    if config.diff_ids.len() != found.plan.layers.len() {
        return Err(PullError::LayerCount { manifest: found.plan.layers.len(), config: config.diff_ids.len() });
    }
    check_sizes(store, &found.plan)?;
    let wanted: Vec<layers::Layer> = found
        .plan
        .layers
        .iter()
        .zip(&config.diff_ids)
        .map(|((blob, size), diff_id)| layers::Layer { blob: *blob, size: *size, diff_id: *diff_id })
        .collect();
    let lease = Lease::take(store, &config.diff_ids)?;
    let (layers, new_layers) = layers::fetch(store, source, name, &wanted, &stop, tell)?;
    let reference = pinned(name, &found.top)?;
    let image = store.change(|store| {
        store.commit(NewImage {
            id: found.plan.config.0,
            names: if name.tag().is_some() && name.digest().is_none() { vec![name.clone()] } else { Vec::new() },
            manifest: Some(found.manifest),
            config_bytes: &config_bytes,
            created: config.created.clone(),
            layers: layers.iter().zip(&config.diff_ids).map(|(b, d)| LayerInfo { diff_id: *d, bytes: *b }).collect(),
            origin: Some(Origin { reference: reference.clone(), pulled_at: now() }),
            signatures: signatures.clone(),
        })
    })?;
    drop(lease);
    Ok(Pulled { image, reference, new_layers })
}

/// The signatures of what was found, if its rule wants some and is content with them.
fn judged(
    store: &SharedStore,
    source: &dyn Source,
    name: &Reference,
    found: &Found,
    stop: &Stop,
) -> Result<Vec<Signature>, PullError> {
    let digests = [found.top, found.manifest];
    let mut signatures = Vec::new();
    if store.policy().wants_signatures(name) {
        signatures = signatures::fetch(source, name, &found.top, stop)?;
        if found.manifest != found.top {
            signatures.extend(signatures::fetch(source, name, &found.manifest, stop)?);
            signatures.truncate(MAX_SIGNATURES);
        }
    }
    let verdict = store.policy().judge(&Judged { digests: &digests, signatures: &signatures }, name);
    if verdict.accepted { Ok(signatures) } else { Err(PullError::Policy { name: name.short(), why: verdict.text }) }
}

/// The name with the digest of what it led to.
fn pinned(name: &Reference, digest: &Digest) -> Result<Reference, PullError> {
    let tag = name.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
    let text = format!("{}/{}{tag}@{digest}", name.domain(), name.path());
    text.parse().map_err(|error| PullError::Json { what: "name", why: format!("{error}") })
}

/// Follows the name to a manifest for this machine.
fn find(source: &dyn Source, name: &Reference, stop: &Stop) -> Result<Found, PullError> {
    let mut which = match (name.digest(), name.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.to_owned(),
        (None, None) => "latest".to_owned(),
    };
    let mut expected = name.digest().copied();
    let (mut size, mut media_type, mut top) = (None, None, None);
    for _ in 0..=MAX_INDEX_DEPTH {
        let fetched = fetch_manifest(source, name, &which, expected, stop)?;
        let found = Digest::of(&fetched.bytes);
        if let Some(expected) = size.filter(|size| *size != fetched.bytes.len() as u64) {
            return Err(PullError::Size { what: which, expected, found: fetched.bytes.len() as u64 });
        }
        let top = *top.get_or_insert(found);
        // What an index says of a manifest counts more than what the answer's header does.
        let stated = media_type.take().unwrap_or(fetched.media_type);
        match document::read(&fetched.bytes, &stated)? {
            Document::Manifest(plan) => return Ok(Found { top, manifest: found, plan }),
            Document::Index { digest, size: bytes, media_type: kind } => {
                which = digest.to_string();
                (expected, size, media_type) = (Some(digest), Some(bytes), kind);
            }
        }
    }
    Err(ArchiveError::TooMany { what: "nested indexes", limit: MAX_INDEX_DEPTH }.into())
}

/// Fetches a manifest and compares its digest, from the registry itself if a mirror gave another.
fn fetch_manifest(
    source: &dyn Source,
    name: &Reference,
    which: &str,
    expected: Option<Digest>,
    stop: &Stop,
) -> Result<Fetched, PullError> {
    let mut origin_only = false;
    loop {
        let fetched = source.manifest(name, which, origin_only, stop)?;
        let found = Digest::of(&fetched.bytes);
        let wrong = match (expected, &fetched.stated_digest) {
            (Some(expected), _) if expected != found => {
                PullError::Digest { what: "the manifest".to_owned(), expected, found }
            }
            (None, Some(stated)) if stated.parse::<Digest>().is_ok_and(|stated| stated != found) => {
                PullError::Stated { stated: stated.clone(), found }
            }
            (Some(_) | None, Some(_) | None) => return Ok(fetched),
        };
        if origin_only {
            return Err(wrong);
        }
        origin_only = true;
    }
}

fn config(
    source: &dyn Source,
    name: &Reference,
    (digest, size): (Digest, u64),
    stop: &Stop,
) -> Result<Vec<u8>, PullError> {
    let mut origin_only = false;
    loop {
        let wanted = Wanted { digest, size, offset: 0, origin_only };
        let mut bytes = Vec::new();
        let reader = source.blob(name, wanted, stop)?;
        // The size was compared with the limit when the manifest was read.
        std::io::Read::take(reader, size.min(MAX_JSON_LEN) + 1).read_to_end(&mut bytes).map_err(|e| broken(&e))?;
        let what = || "the configuration".to_owned();
        let found = Digest::of(&bytes);
        if found == digest {
            return Ok(bytes);
        }
        if origin_only {
            return Err(PullError::Digest { what: what(), expected: digest, found });
        }
        origin_only = true;
    }
}

use std::io::Read as _;

/// The error of a stream that a source gave.
fn broken(error: &std::io::Error) -> PullError {
    match source::reason(error) {
        Some(reason) => reason.clone().into(),
        None => SourceError {
            fault: SourceFault::Unavailable,
            text: format!("what the registry sends does not come through: {error}; try again"),
        }
        .into(),
    }
}

/// Refuses early what cannot fit.
fn check_sizes(store: &SharedStore, plan: &Plan) -> Result<(), PullError> {
    let limits = store.maker().limits();
    let total = plan.layers.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(*size));
    if total > limits.archive_bytes {
        return Err(PullError::TooLarge { what: "the image", limit: limits.archive_bytes });
    }
    Ok(())
}

/// Keeps layers for as long as it lives.
struct Lease<'s> {
    store: &'s SharedStore,
    diff_ids: Vec<Digest>,
}

impl<'s> Lease<'s> {
    fn take(store: &'s SharedStore, diff_ids: &[Digest]) -> Result<Self, PullError> {
        store.change(|store| {
            store.drop_old_leftovers()?;
            store.lease(diff_ids);
            Ok(())
        })?;
        Ok(Self { store, diff_ids: diff_ids.to_vec() })
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Nothing in it can fail.
        let _ = self.store.change(|store| {
            store.release(&self.diff_ids);
            Ok(())
        });
    }
}

/// A handle that can be shared by threads.
pub type SharedSource = Arc<dyn Source + Send>;

//! From a staged archive to the images in it: which manifest, which configuration, which layer files.
//!
//! Every digest and size that a manifest states is compared with what was staged. With both `index.json` and
//! `manifest.json` (docker 25 and newer) the index decides what the image is, and the other only adds names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;

use super::manifest::{Descriptor, DockerImage, Index, Manifest, MediaKind, Platform, media_kind};
use super::{ArchiveError, MAX_IMAGES, MAX_LAYERS, Staged, StagedFile};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::reference::Reference;

/// An index may name another index (buildx and `skopeo copy --all` nest once).
pub(crate) const MAX_INDEX_DEPTH: usize = 3;
/// Most manifests of one index.
pub(crate) const MAX_MANIFESTS: usize = 256;
/// Most names of one image.
const MAX_NAMES: usize = 64;
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// This machine's architecture in Go's words.
pub(crate) const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// A layer that was found.
#[derive(Debug, Clone)]
pub struct FoundLayer {
    /// The staged file, compressed or not.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// Digest of the plain tar stream, as the configuration claims.
    pub diff_id: Digest,
}

/// An image that was found.
#[derive(Debug, Clone)]
pub struct FoundImage {
    /// What the archive calls it; may be empty.
    pub names: Vec<Reference>,
    /// Digest of its manifest; docker's old archives have none.
    pub manifest_digest: Option<Digest>,
    /// Digest of its configuration: the image's id.
    pub id: Digest,
    /// The configuration as it is.
    pub config_bytes: Vec<u8>,
    /// The configuration, parsed.
    pub config: ImageConfig,
    /// Lowest first.
    pub layers: Vec<FoundLayer>,
}

/// Finds the images for this machine.
///
/// # Errors
/// [`ArchiveError`].
pub fn resolve(staged: &Staged) -> Result<Vec<FoundImage>, ArchiveError> {
    let docker: Vec<DockerImage> =
        if staged.has("manifest.json") { parse("manifest.json", &staged.json("manifest.json")?)? } else { Vec::new() };
    limit(docker.len(), MAX_IMAGES, "images in manifest.json")?;
    let mut images = if staged.has("index.json") {
        oci_images(staged)?
    } else if staged.has("manifest.json") {
        docker.iter().map(|image| docker_image(staged, image)).collect::<Result<_, _>>()?
    } else {
        return Err(ArchiveError::NotAnImage);
    };
    for image in &docker {
        let id = staged.file(&image.config)?.digest;
        for found in images.iter_mut().filter(|found| found.id == id) {
            for name in image.repo_tags.iter().flatten() {
                add_name(&mut found.names, parse_name(name)?)?;
            }
        }
    }
    images.dedup_by(|b, a| a.id == b.id && merge_names(&mut a.names, &b.names));
    for image in &images {
        check_platform(&image.config)?;
    }
    Ok(images)
}

fn merge_names(into: &mut Vec<Reference>, from: &[Reference]) -> bool {
    for name in from {
        if !into.contains(name) {
            into.push(name.clone());
        }
    }
    true
}

fn limit(count: usize, limit: usize, what: &'static str) -> Result<(), ArchiveError> {
    if count > limit { Err(ArchiveError::TooMany { what, limit }) } else { Ok(()) }
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|e| ArchiveError::Json { name: name.to_owned(), why: e.to_string() })
}

fn parse_name(name: &str) -> Result<Reference, ArchiveError> {
    name.parse().map_err(|source| ArchiveError::Name { name: name.chars().take(200).collect(), source })
}

fn add_name(names: &mut Vec<Reference>, name: Reference) -> Result<(), ArchiveError> {
    // A pinned name says nothing that the digest does not.
    if name.tag().is_some() && name.digest().is_none() && !names.contains(&name) {
        names.push(name);
    }
    limit(names.len(), MAX_NAMES, "names of one image")
}

pub(crate) fn check_platform(config: &ImageConfig) -> Result<(), ArchiveError> {
    // Some builders leave these empty; the kernel then says it at the first start.
    let fits = |value: &str, wanted: &str| value.is_empty() || value == wanted;
    if fits(&config.os, "linux") && fits(&config.architecture, ARCHITECTURE) {
        return Ok(());
    }
    Err(ArchiveError::Platform {
        wanted: format!("linux/{ARCHITECTURE}"),
        found: format!("{}/{}", config.os, config.architecture),
    })
}

fn docker_image(staged: &Staged, image: &DockerImage) -> Result<FoundImage, ArchiveError> {
    let file = staged.file(&image.config)?;
    let config_bytes = staged.json(&image.config)?;
    // Docker names the file by its digest; podman and others may not.
    let stem = image.config.rsplit('/').next().unwrap_or_default();
    if let Ok(expected) = Digest::from_hex(stem.strip_suffix(".json").unwrap_or(stem))
        && expected != file.digest
    {
        return Err(ArchiveError::Digest { name: image.config.clone(), expected, found: file.digest });
    }
    let layers = image.layers.iter().map(|name| staged.file(name)).collect::<Result<Vec<_>, _>>()?;
    build(&image.config, None, file.digest, config_bytes, &layers)
}

fn oci_images(staged: &Staged) -> Result<Vec<FoundImage>, ArchiveError> {
    let index: Index = parse("index.json", &staged.json("index.json")?)?;
    limit(index.manifests.len(), MAX_MANIFESTS, "manifests in index.json")?;
    // Manifests without a name beside others are one image for several platforms; with names they are several images.
    let chosen = fitting(&index.manifests)?;
    let mut images: Vec<FoundImage> = Vec::new();
    for descriptor in chosen {
        let manifest = follow_index(staged, descriptor.clone())?;
        let mut image = oci_image(staged, &manifest)?;
        for name in names_of(&descriptor)? {
            add_name(&mut image.names, name)?;
        }
        match images.iter_mut().find(|known| known.id == image.id) {
            Some(known) => {
                merge_names(&mut known.names, &image.names);
            }
            None => images.push(image),
        }
        limit(images.len(), MAX_IMAGES, "images in index.json")?;
    }
    Ok(images)
}

/// The names that an index's annotations give. `ref.name` is a bare tag by the specification, but skopeo and podman put
/// whole names there; `latest` and what looks like a version are tags, and a tag alone names nothing.
fn names_of(descriptor: &Descriptor) -> Result<Vec<Reference>, ArchiveError> {
    let empty = BTreeMap::new();
    let annotations = descriptor.annotations.as_ref().unwrap_or(&empty);
    if let Some(name) = annotations.get(FULL_NAME) {
        return Ok(vec![parse_name(name)?]);
    }
    let Some(name) = annotations.get(REF_NAME) else { return Ok(Vec::new()) };
    let version = name.strip_prefix('v').unwrap_or(name).starts_with(|c: char| c.is_ascii_digit());
    if !name.contains([':', '/', '@']) && (name == "latest" || version) {
        return Ok(Vec::new());
    }
    // A tag may have forms that a name has not; it is then only a tag.
    if !name.contains([':', '/', '@']) && name.parse::<Reference>().is_err() {
        return Ok(Vec::new());
    }
    Ok(vec![parse_name(name)?])
}

/// The descriptors that this machine can use: those that say so, and those that say nothing.
pub(crate) fn fitting(descriptors: &[Descriptor]) -> Result<Vec<Descriptor>, ArchiveError> {
    let fits = |platform: &Platform| {
        platform.os.as_deref() == Some("linux") && platform.architecture.as_deref() == Some(ARCHITECTURE)
    };
    let chosen: Vec<Descriptor> =
        descriptors.iter().filter(|d| d.platform.as_ref().is_none_or(fits)).cloned().collect();
    if chosen.is_empty() {
        let found: Vec<String> =
            descriptors.iter().filter_map(|d| d.platform.as_ref()).take(16).map(ToString::to_string).collect();
        let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
        return Err(ArchiveError::Platform { wanted: format!("linux/{ARCHITECTURE}"), found });
    }
    Ok(chosen)
}

/// Goes down through nested indexes to the one manifest for this machine.
fn follow_index(staged: &Staged, mut descriptor: Descriptor) -> Result<Descriptor, ArchiveError> {
    for _ in 0..=MAX_INDEX_DEPTH {
        let media_type = descriptor.media_type.as_deref().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        match media_kind(media_type)? {
            MediaKind::Manifest => return Ok(descriptor),
            MediaKind::Config | MediaKind::Layer => return Err(ArchiveError::MediaType(media_type.to_owned())),
            MediaKind::Index => {}
        }
        let (name, _) = blob(staged, &descriptor)?;
        let index: Index = parse(&name, &staged.json(&name)?)?;
        same_type(index.media_type.as_deref(), media_type)?;
        limit(index.manifests.len(), MAX_MANIFESTS, "manifests in an index")?;
        // The first that fits wins, as in containerd; a variant is not told apart, all amd64 ones run here or say so.
        let mut usable = fitting(&index.manifests)?;
        descriptor = usable.swap_remove(0);
    }
    Err(ArchiveError::TooMany { what: "nested indexes", limit: MAX_INDEX_DEPTH })
}

/// A manifest that calls itself something else than its descriptor does means two things to two readers.
fn same_type(own: Option<&str>, described: &str) -> Result<(), ArchiveError> {
    match own {
        Some(own) if own != described => Err(ArchiveError::MediaType(own.chars().take(200).collect())),
        Some(_) | None => Ok(()),
    }
}

fn oci_image(staged: &Staged, descriptor: &Descriptor) -> Result<FoundImage, ArchiveError> {
    let (name, _) = blob(staged, descriptor)?;
    let manifest: Manifest = parse(&name, &staged.json(&name)?)?;
    if let Some(described) = &descriptor.media_type {
        same_type(manifest.media_type.as_deref(), described)?;
    }
    let expect = |descriptor: &Descriptor, kind| match &descriptor.media_type {
        Some(text) if media_kind(text)? != kind => Err(ArchiveError::MediaType(text.clone())),
        Some(_) => Ok(()),
        None => Err(ArchiveError::MediaType(String::new())),
    };
    expect(&manifest.config, MediaKind::Config)?;
    let (config_name, _) = blob(staged, &manifest.config)?;
    let config_bytes = staged.json(&config_name)?;
    limit(manifest.layers.len(), MAX_LAYERS, "layers")?;
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        expect(layer, MediaKind::Layer)?;
        layers.push(blob(staged, layer)?.1);
    }
    build(&config_name, Some(descriptor.digest), manifest.config.digest, config_bytes, &layers)
}

/// The staged blob of a descriptor, digest and size compared.
fn blob<'s>(staged: &'s Staged, descriptor: &Descriptor) -> Result<(String, &'s StagedFile), ArchiveError> {
    let name = format!("blobs/sha256/{}", descriptor.digest.hex());
    let file = staged.file(&name)?;
    if file.digest != descriptor.digest {
        return Err(ArchiveError::Digest { name, expected: descriptor.digest, found: file.digest });
    }
    if file.size != descriptor.size {
        return Err(ArchiveError::Size { name, expected: descriptor.size, found: file.size });
    }
    Ok((name, file))
}

fn build(
    config_name: &str,
    manifest_digest: Option<Digest>,
    id: Digest,
    config_bytes: Vec<u8>,
    layers: &[&StagedFile],
) -> Result<FoundImage, ArchiveError> {
    let config =
        ImageConfig::parse(&config_bytes).map_err(|why| ArchiveError::Json { name: config_name.to_owned(), why })?;
    limit(layers.len(), MAX_LAYERS, "layers")?;
    if config.diff_ids.len() != layers.len() {
        return Err(ArchiveError::LayerCount { manifest: layers.len(), config: config.diff_ids.len() });
    }
    let layers = layers
        .iter()
        .zip(&config.diff_ids)
        .map(|(file, diff_id)| FoundLayer { path: file.path.clone(), size: file.size, diff_id: *diff_id })
        .collect();
    Ok(FoundImage { names: Vec::new(), manifest_digest, id, config_bytes, config, layers })
}

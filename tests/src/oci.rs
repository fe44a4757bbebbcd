//! Writes container images as OCI archives: what `skopeo copy ... oci-archive:` writes, from files at hand and without a network.
//!
//! The bytes depend on the content only (no times, no order of a directory), so that an image made twice is the same image.
//! Damaged archives for tests are made by changing what this writes, not here.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Builds one layer: a tar of files, directories, links.
pub struct LayerBuilder {
    tar: tar::Builder<Vec<u8>>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self { tar: tar::Builder::new(Vec::new()) }
    }
}

impl LayerBuilder {
    /// Adds a directory; paths are relative to the root of the image.
    ///
    /// # Errors
    /// If the path cannot be stored.
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.append(tar::EntryType::Directory, path, mode, None, &[])
    }

    /// Adds a file.
    ///
    /// # Errors
    /// If the path cannot be stored.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.append(tar::EntryType::Regular, path, mode, None, content)
    }

    /// Adds a hard link to `target`, a file added before.
    ///
    /// # Errors
    /// If a path cannot be stored.
    pub fn hard_link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.append(tar::EntryType::Link, path, 0o755, Some(target), &[])
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// If a path cannot be stored.
    pub fn symbolic_link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.append(tar::EntryType::Symlink, path, 0o777, Some(target), &[])
    }

    fn append(
        &mut self,
        kind: tar::EntryType,
        path: &str,
        mode: u32,
        target: Option<&str>,
        content: &[u8],
    ) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        match target {
            Some(target) => self.tar.append_link(&mut header, path, target),
            None => self.tar.append_data(&mut header, path, content),
        }
    }

    /// The layer's uncompressed bytes.
    ///
    /// # Errors
    /// If they cannot be completed.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        self.tar.into_inner()
    }
}

/// What an image says about how it is run.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Command.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `user[:group]`.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
    /// Paths that are volumes.
    pub volumes: Vec<String>,
    /// Signal that stops it.
    pub stop_signal: String,
}

/// Blobs by hexadecimal digest: what becomes `blobs/sha256/`.
pub type Blobs = BTreeMap<String, Vec<u8>>;

/// An image before it is packed, so that tests can damage it.
#[derive(Debug, Clone)]
pub struct Archive {
    /// All blobs.
    pub blobs: Blobs,
    /// `index.json`.
    pub index: Value,
    /// Digest of the manifest.
    pub manifest: String,
    /// Digests of the compressed layers, lowest first.
    pub layers: Vec<String>,
}

impl Archive {
    /// Makes an image of uncompressed layers, lowest first; `name` is `repository:tag`.
    ///
    /// # Errors
    /// If a layer cannot be compressed.
    pub fn new(name: &str, layers: &[Vec<u8>], config: &ImageConfig) -> io::Result<Self> {
        let mut blobs = Blobs::new();
        let mut descriptors = Vec::new();
        let mut digests = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in layers {
            diff_ids.push(format!("sha256:{}", digest(layer)));
            // Fast: these are made in every test run and stay on this machine.
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(layer)?;
            let (stored, descriptor) =
                store(&mut blobs, "application/vnd.oci.image.layer.v1.tar+gzip", encoder.finish()?);
            digests.push(stored);
            descriptors.push(descriptor);
        }
        let volumes: BTreeMap<&str, Value> = config.volumes.iter().map(|path| (path.as_str(), json!({}))).collect();
        let image = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": config.entrypoint, "Cmd": config.command, "Env": config.env, "User": config.user,
                "WorkingDir": config.working_dir, "Volumes": volumes, "StopSignal": config.stop_signal,
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let (_, image) = store(&mut blobs, "application/vnd.oci.image.config.v1+json", image.to_string().into_bytes());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let text = json!({"schemaVersion": 2, "mediaType": media_type, "config": image, "layers": descriptors});
        let (manifest, mut descriptor) = store(&mut blobs, media_type, text.to_string().into_bytes());
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor],
        });
        Ok(Self { blobs, index, manifest, layers: digests })
    }

    /// Packs it.
    ///
    /// # Errors
    /// If `out` cannot be written.
    pub fn pack<W: Write>(&self, out: W) -> io::Result<W> {
        let mut tar = tar::Builder::new(out);
        let mut add = |path: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content)
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add("index.json", self.index.to_string().as_bytes())?;
        for (digest, content) in &self.blobs {
            add(&format!("blobs/sha256/{digest}"), content)?;
        }
        tar.into_inner()
    }
}

/// The content of one file of the lowest layer of an OCI archive with gzip layers; `path` is relative to the image's root.
///
/// # Errors
/// If the archive is not of that kind or has no such file.
pub fn file_of_archive(archive: impl Read, path: &str) -> io::Result<Vec<u8>> {
    let mut blobs = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        blobs.insert(name, content);
    }
    let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, format!("no {what} in the archive"));
    let json = |name: &str| -> io::Result<Value> {
        Ok(serde_json::from_slice(blobs.get(name).ok_or_else(|| missing(name))?)?)
    };
    let blob = |descriptor: &Value| {
        descriptor["digest"].as_str().map(|digest| format!("blobs/{}", digest.replace(':', "/"))).unwrap_or_default()
    };
    let manifest = json(&blob(&json("index.json")?["manifests"][0]))?;
    let layer = blob(&manifest["layers"][0]);
    let layer = GzDecoder::new(blobs.get(&layer).ok_or_else(|| missing(&layer))?.as_slice());
    for entry in tar::Archive::new(layer).entries()? {
        let mut entry = entry?;
        if entry.path()?.strip_prefix("./").unwrap_or(&entry.path()?) == Path::new(path) {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            return Ok(content);
        }
    }
    Err(missing(path))
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn store(blobs: &mut Blobs, media_type: &str, content: Vec<u8>) -> (String, Value) {
    let name = digest(&content);
    let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{name}"), "size": content.len()});
    blobs.insert(name.clone(), content);
    (name, descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Archive {
        let mut layer = LayerBuilder::default();
        layer.directory("bin", 0o755).unwrap();
        layer.file("bin/a", 0o755, b"a").unwrap();
        layer.hard_link("bin/b", "bin/a").unwrap();
        layer.symbolic_link("bin/c", "a").unwrap();
        let config =
            ImageConfig { command: vec!["/bin/a".into()], volumes: vec!["/data".into()], ..Default::default() };
        Archive::new("test:latest", &[layer.finish().unwrap()], &config).unwrap()
    }

    #[test]
    fn an_image_made_twice_is_the_same_bytes() {
        assert_eq!(archive().pack(Vec::new()).unwrap(), archive().pack(Vec::new()).unwrap());
    }

    #[test]
    fn a_file_is_found_again() {
        let packed = archive().pack(Vec::new()).unwrap();
        assert_eq!(file_of_archive(packed.as_slice(), "bin/a").unwrap(), b"a");
        assert!(file_of_archive(packed.as_slice(), "bin/x").is_err());
    }

    #[test]
    fn every_descriptor_names_a_blob_by_its_digest_and_size() {
        let archive = archive();
        let manifest: Value = serde_json::from_slice(&archive.blobs[&archive.manifest]).unwrap();
        let mut descriptors = vec![&archive.index["manifests"][0], &manifest["config"]];
        descriptors.extend(manifest["layers"].as_array().unwrap());
        assert_eq!(descriptors.len(), archive.blobs.len());
        for descriptor in descriptors {
            let name = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let blob = &archive.blobs[name];
            assert_eq!((digest(blob), Some(blob.len() as u64)), (name.to_owned(), descriptor["size"].as_u64()));
        }
    }
}

//! Makes container images: deterministic tar and OCI archives for the README's images, developer commands and tests.
//!
//! Nothing on a node calls this. Same input, same bytes: no clock, no host names, fixed orders.

pub mod rootfs;
pub mod tarball;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use serde_json::{Value, json};

use crate::archive::ARCHITECTURE;
use crate::compression::Compression;
use crate::digest::{Digest, HashingReader};
use crate::reference::Reference;
use crate::tar::{Entry, EntryKind, Timestamp};
use tarball::TarWriter;

/// zstd level with the usual trade of time for size; its window stays below 8 MiB.
const ZSTD_LEVEL: i32 = 3;

/// What the image says about how to run it.
#[derive(Debug, Clone, Default)]
pub struct PackConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// `user[:group]`.
    pub user: String,
    /// Empty for `/`.
    pub working_dir: String,
    /// Paths that want a volume.
    pub volumes: Vec<String>,
    /// Such as `SIGQUIT`.
    pub stop_signal: String,
    /// `port/protocol` each.
    pub exposed_ports: Vec<String>,
    /// Free text by key.
    pub labels: BTreeMap<String, String>,
    /// RFC 3339.
    pub created: String,
}

impl PackConfig {
    fn json(&self, diff_ids: &[Digest]) -> Value {
        let set = |keys: &[String]| keys.iter().map(|key| (key.clone(), json!({}))).collect::<BTreeMap<_, _>>();
        let mut config = json!({});
        let mut put = |key: &str, value: Value, empty: bool| {
            if !empty {
                config[key] = value;
            }
        };
        put("Entrypoint", json!(self.entrypoint), self.entrypoint.is_empty());
        put("Cmd", json!(self.cmd), self.cmd.is_empty());
        put("Env", json!(self.env), self.env.is_empty());
        put("User", json!(self.user), self.user.is_empty());
        put("WorkingDir", json!(self.working_dir), self.working_dir.is_empty());
        put("Volumes", json!(set(&self.volumes)), self.volumes.is_empty());
        put("StopSignal", json!(self.stop_signal), self.stop_signal.is_empty());
        put("ExposedPorts", json!(set(&self.exposed_ports)), self.exposed_ports.is_empty());
        put("Labels", json!(self.labels), self.labels.is_empty());
        let history: Vec<Value> = diff_ids.iter().map(|_| json!({ "created": self.created })).collect();
        json!({
            "architecture": ARCHITECTURE,
            "os": "linux",
            "created": self.created,
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        })
    }
}

/// Writes an OCI archive (image-spec 1.1 image layout in a tar) of `layers`, plain tar files, lowest first.
///
/// `scratch` gives empty files for the compressed layers. Returns the image's id.
///
/// # Errors
/// From reading and writing.
pub fn write_oci_archive(
    out: impl Write,
    layers: &mut [File],
    compression: Compression,
    config: &PackConfig,
    name: Option<&Reference>,
    scratch: &mut dyn FnMut() -> io::Result<File>,
) -> io::Result<Digest> {
    let mut blobs = Vec::new();
    let mut diff_ids = Vec::new();
    let mut layer_descriptors = Vec::new();
    for layer in layers {
        let (mut packed, digest, size, diff_id) = pack_layer(layer, compression, scratch()?)?;
        let media_type = match compression {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        packed.seek(SeekFrom::Start(0))?;
        blobs.push((digest, size, packed));
        diff_ids.push(diff_id);
        layer_descriptors.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
    }
    let config = serde_json::to_vec(&config.json(&diff_ids))?;
    let id = Digest::of(&config);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": config.len() },
        "layers": layer_descriptors,
    }))?;
    let mut descriptor = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(&manifest),
        "size": manifest.len(),
        "platform": { "os": "linux", "architecture": ARCHITECTURE },
    });
    if let Some(name) = name {
        descriptor["annotations"] = json!({
            "io.containerd.image.name": name.to_string(),
            "org.opencontainers.image.ref.name": name.tag().unwrap_or_default(),
        });
    }
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor],
    }))?;

    let mut tar = TarWriter::new(out);
    tar.append(&plain_file("oci-layout", OCI_LAYOUT.len() as u64), OCI_LAYOUT)?;
    tar.append(&plain_file("index.json", index.len() as u64), &index[..])?;
    for json in [manifest, config] {
        tar.append(&blob_entry(&Digest::of(&json), json.len() as u64), &json[..])?;
    }
    let mut written = Vec::new();
    for (digest, size, mut packed) in blobs {
        // The same layer twice is one blob.
        if !written.contains(&digest) {
            tar.append(&blob_entry(&digest, size), &mut packed)?;
            written.push(digest);
        }
    }
    tar.finish()?;
    Ok(id)
}

const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

fn blob_entry(digest: &Digest, size: u64) -> Entry {
    plain_file(&format!("blobs/sha256/{}", digest.hex()), size)
}

/// A regular file owned by root, from 1970.
fn plain_file(path: &str, size: u64) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        size,
        sparse: None,
        xattrs: Vec::new(),
    }
}

/// Compresses a layer into `scratch`; gives that with the digest and size of what is in it, and the plain digest.
fn pack_layer(layer: &mut File, compression: Compression, scratch: File) -> io::Result<(File, Digest, u64, Digest)> {
    layer.seek(SeekFrom::Start(0))?;
    let mut plain = HashingReader::new(layer);
    let mut packed = match compression {
        Compression::None => {
            let mut scratch = scratch;
            io::copy(&mut plain, &mut scratch)?;
            scratch
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(scratch, flate2::Compression::default());
            io::copy(&mut plain, &mut encoder)?;
            encoder.finish()?
        }
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(scratch, ZSTD_LEVEL)?;
            io::copy(&mut plain, &mut encoder)?;
            encoder.finish()?
        }
    };
    let (diff_id, _) = plain.finish();
    packed.seek(SeekFrom::Start(0))?;
    let mut hashing = HashingReader::new(packed);
    io::copy(&mut hashing.by_ref(), &mut io::sink())?;
    let (digest, size, packed) = hashing.finish_with_inner();
    Ok((packed, digest, size, diff_id))
}

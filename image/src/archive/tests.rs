//! Archives of every form, and hostile ones by name.

use super::*;
use crate::pack::tarball::TarWriter;
use crate::tar::Timestamp;
use serde_json::{Value, json};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) type Files = Vec<(String, Vec<u8>)>;

pub(crate) fn write_archive(files: &Files) -> Vec<u8> {
    let mut tar = TarWriter::new(Vec::new());
    for (name, data) in files {
        tar.append(&entry(name, EntryKind::File, data.len()), &data[..]).unwrap();
    }
    tar.finish().unwrap()
}

pub(crate) fn read_archive(bytes: &[u8]) -> Files {
    let mut reader = TarReader::new(bytes);
    let mut files = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut data = Vec::new();
        reader.read_to_end(&mut data).unwrap();
        files.push((String::from_utf8(entry.path).unwrap(), data));
    }
    files
}

/// Puts another configuration into an OCI archive, with manifest and index changed to match.
pub(crate) fn replace_config(files: &mut Files, config: &[u8]) {
    files.retain(|(_, data)| !data.starts_with(b"{\"architecture\""));
    let is_manifest = |data: &[u8]| serde_json::from_slice::<Value>(data).is_ok_and(|v| v.get("layers").is_some());
    let at = files.iter().position(|(_, data)| is_manifest(data)).unwrap();
    let mut manifest: Value = serde_json::from_slice(&files.remove(at).1).unwrap();
    manifest["config"]["digest"] = json!(Digest::of(config));
    manifest["config"]["size"] = json!(config.len());
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let index = files.iter_mut().find(|(name, _)| name == "index.json").unwrap();
    let mut value: Value = serde_json::from_slice(&index.1).unwrap();
    value["manifests"][0]["digest"] = json!(Digest::of(&manifest));
    value["manifests"][0]["size"] = json!(manifest.len());
    index.1 = serde_json::to_vec(&value).unwrap();
    files.push(blob(config));
    files.push(blob(&manifest));
}

fn blob(data: &[u8]) -> (String, Vec<u8>) {
    (format!("blobs/sha256/{}", Digest::of(data).hex()), data.to_vec())
}

fn entry(path: &str, kind: EntryKind, size: usize) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        size: size as u64,
        sparse: None,
        xattrs: Vec::new(),
    }
}

fn config(diff_ids: &[Digest], architecture: &str) -> Vec<u8> {
    serde_json::to_vec(&json!({ "architecture": architecture, "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids } }))
    .unwrap()
}

fn descriptor(kind: &str, data: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": Digest::of(data), "size": data.len() })
}

/// Blobs of one image, and the descriptor of its manifest.
fn image(architecture: &str, layer: &[u8]) -> (Files, Value) {
    let config = config(&[Digest::of(layer)], architecture);
    let manifest = serde_json::to_vec(&json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)] }))
    .unwrap();
    let mut described = descriptor(OCI_MANIFEST, &manifest);
    described["platform"] = json!({ "os": "linux", "architecture": architecture });
    (vec![blob(&config), blob(&manifest), blob(layer)], described)
}

fn with_index(mut files: Files, manifests: &[Value]) -> Files {
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": manifests })).unwrap();
    files.push(("index.json".to_owned(), index));
    files
}

fn found(bytes: &[u8]) -> Result<Vec<FoundImage>, ArchiveError> {
    let dir = tempfile::tempdir().unwrap();
    let limits = StageLimits { bytes: 64 << 20, free: 64 << 20 };
    resolve(&stage(bytes, dir.path(), limits, &mut |_| true)?)
}

fn refused(files: &Files) -> String {
    found(&write_archive(files)).unwrap_err().to_string()
}

fn names(image: &FoundImage) -> Vec<String> {
    image.names.iter().map(crate::reference::Reference::short).collect()
}

#[test]
fn the_platform_of_this_machine_is_chosen_through_nested_indexes() {
    let (other, other_descriptor) = image("s390x", b"other");
    let (ours, ours_descriptor) = image(ARCHITECTURE, b"ours");
    let mut attestation = ours_descriptor.clone();
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let inner = serde_json::to_vec(&json!({ "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [other_descriptor, attestation, ours_descriptor] }))
    .unwrap();
    let mut top = descriptor(OCI_INDEX, &inner);
    top["annotations"] = json!({ "org.opencontainers.image.ref.name": "quay.io/a/b:1" });
    // Another platform's blobs may be absent, as docker saves them.
    let files = with_index([ours, vec![blob(&inner)]].concat(), &[top]);
    let images = found(&write_archive(&files)).unwrap();
    assert_eq!(names(&images[0]), ["quay.io/a/b:1"]);
    assert_eq!(images[0].layers[0].diff_id, Digest::of(b"ours"));
    let message = refused(&with_index(other, &[other_descriptor_of("s390x", b"other")]));
    assert!(message.contains("linux/s390x"), "{message}");
}

fn other_descriptor_of(architecture: &str, layer: &[u8]) -> Value {
    image(architecture, layer).1
}

#[test]
fn names_come_from_annotations_but_a_bare_tag_is_none() {
    for (key, value, expected) in [
        ("io.containerd.image.name", "docker.io/library/nginx:1", vec!["nginx:1"]),
        ("org.opencontainers.image.ref.name", "nginx:alpine", vec!["nginx:alpine"]),
        ("org.opencontainers.image.ref.name", "nginx", vec!["nginx:latest"]),
        ("org.opencontainers.image.ref.name", "latest", vec![]),
        ("org.opencontainers.image.ref.name", "v1.2", vec![]),
        ("org.opencontainers.image.ref.name", "1.2-Beta", vec![]),
    ] {
        let (files, mut described) = image(ARCHITECTURE, b"l");
        described["annotations"] = json!({ key: value });
        let images = found(&write_archive(&with_index(files, &[described]))).unwrap();
        assert_eq!(names(&images[0]), expected, "{value}");
    }
}

#[test]
fn old_docker_archives_with_links_and_new_hybrid_ones_are_read() {
    let layer = b"tar";
    let config = config(&[Digest::of(layer), Digest::of(layer)], ARCHITECTURE);
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let manifest =
        json!([{ "Config": config_name, "RepoTags": ["app:1", "app:2"], "Layers": ["aa/layer.tar", "bb/layer.tar"] }]);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut tar = TarWriter::new(Vec::new());
    tar.append(&entry("aa/", EntryKind::Directory, 0), io::empty()).unwrap();
    tar.append(&entry("bb/layer.tar", EntryKind::Symlink(b"../aa/layer.tar".to_vec()), 0), io::empty()).unwrap();
    for (name, data) in [("aa/layer.tar", &layer[..]), (&config_name, &config), ("manifest.json", &manifest)] {
        tar.append(&entry(name, EntryKind::File, data.len()), data).unwrap();
    }
    let old = tar.finish().unwrap();
    let images = found(&old).unwrap();
    assert_eq!(names(&images[0]), ["app:1", "app:2"]);
    assert_eq!((images[0].layers.len(), images[0].manifest_digest), (2, None));

    let (files, described) = image(ARCHITECTURE, b"l");
    let mut files = with_index(files, &[described]);
    let manifest = json!([{ "Config": files[0].0, "RepoTags": ["hybrid:1"], "Layers": [files[2].0] }]);
    files.push(("manifest.json".to_owned(), serde_json::to_vec(&manifest).unwrap()));
    let images = found(&write_archive(&files)).unwrap();
    assert_eq!((names(&images[0]), images[0].manifest_digest.is_some()), (vec!["hybrid:1".to_owned()], true));
}

#[test]
fn a_missing_manifest_and_a_plain_tar_are_refused() {
    let (files, described) = image(ARCHITECTURE, b"l");
    assert!(refused(&files).contains("not an image archive"));
    let without_manifest = vec![files[0].clone(), files[2].clone()];
    assert!(refused(&with_index(without_manifest, std::slice::from_ref(&described))).contains("lacks"));
    let without_layer = vec![files[0].clone(), files[1].clone()];
    assert!(refused(&with_index(without_layer, &[described])).contains("lacks"));
    assert!(found(b"hello").is_err());
}

#[test]
fn wrong_digests_and_sizes_are_refused_by_name() {
    let (mut files, mut described) = image(ARCHITECTURE, b"l");
    files[2].1 = b"m".to_vec();
    let message = refused(&with_index(files, std::slice::from_ref(&described)));
    assert!(message.contains(&Digest::of(b"l").hex()) && message.contains("damaged"), "{message}");
    let (files, _) = image(ARCHITECTURE, b"l");
    described["size"] = json!(7);
    assert!(refused(&with_index(files, &[described])).contains("bytes, not 7"));
}

#[test]
fn unknown_media_types_and_types_that_disagree_are_refused_by_name() {
    let (files, mut described) = image(ARCHITECTURE, b"l");
    described["mediaType"] = json!("application/vnd.acme.thing");
    assert!(refused(&with_index(files.clone(), std::slice::from_ref(&described))).contains("vnd.acme.thing"));
    described["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
    assert!(refused(&with_index(files, &[described])).contains(OCI_MANIFEST));
}

#[test]
fn a_giant_manifest_is_refused_before_it_is_read() {
    let (mut files, _) = image(ARCHITECTURE, b"l");
    files.push(("index.json".to_owned(), vec![b' '; 5 << 20]));
    assert!(refused(&files).contains("index.json"));
}

#[test]
fn an_index_that_names_itself_ends() {
    // A digest cannot be its own; a chain deeper than allowed stands for it.
    let (mut files, mut described) = image(ARCHITECTURE, b"l");
    for _ in 0..6 {
        let index =
            serde_json::to_vec(&json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described] }))
                .unwrap();
        described = descriptor(OCI_INDEX, &index);
        files.push(blob(&index));
    }
    assert!(refused(&with_index(files, &[described])).contains("nested"));
}

#[test]
fn entries_that_no_image_archive_has_are_refused_by_name() {
    for (path, kind) in [
        ("../x", EntryKind::File),
        ("dev", EntryKind::CharDevice { major: 1, minor: 3 }),
        ("l", EntryKind::Symlink(b"../../etc/passwd".to_vec())),
    ] {
        let mut tar = TarWriter::new(Vec::new());
        tar.append(&entry(path, kind, 0), io::empty()).unwrap();
        assert!(found(&tar.finish().unwrap()).unwrap_err().to_string().contains(path), "{path}");
    }
    let loops = [("a", "b"), ("b", "a"), ("index.json", "a")];
    let mut tar = TarWriter::new(Vec::new());
    for (from, to) in loops {
        tar.append(&entry(from, EntryKind::Symlink(to.as_bytes().to_vec()), 0), io::empty()).unwrap();
    }
    assert!(matches!(found(&tar.finish().unwrap()), Err(ArchiveError::NotAnImage)));
}

#[test]
fn a_name_that_is_there_twice_with_other_content_is_refused() {
    let (files, described) = image(ARCHITECTURE, b"l");
    let mut files = with_index(files, &[described]);
    files.push(("index.json".to_owned(), b"{}".to_vec()));
    assert!(refused(&files).contains("twice"));
}

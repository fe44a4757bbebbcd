//! Image archives: what `docker save`, `podman save` or anybody else hands to an image load.

use sha2::{Digest as _, Sha256};

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "archive",
    about: "OCI and docker archives, their indexes, manifests and configurations: what is resolved has as many layers as its configuration says, \
            and every blob it names is one that was staged with that digest",
    sources: &[
        "image/src/archive",
        "image/src/config.rs",
        "image/src/digest.rs",
        "image/src/reference.rs",
        "image/src/tar",
    ],
    longest: 24 * 1024,
    run,
    seeds,
};

fn run(input: &[u8]) -> Verdict {
    let Some((form, input)) = super::pick(input, 3) else { return Verdict::Refused };
    let directory = super::directory();
    let archive = match form {
        0 => input.to_vec(),
        1 => match super::pieces(input, 4)[..] {
            [index, manifest, config, layer] => oci(index, manifest, config, layer),
            _ => return Verdict::Refused,
        },
        _ => match super::pieces(input, 3)[..] {
            [manifest, config, layer] => docker(manifest, config, layer),
            _ => return Verdict::Refused,
        },
    };
    Verdict::of(byre_image::fuzz::fuzz_archive(&archive, directory.path()))
}

/// Digests of what an input has are put in where it says so: a fuzzer finds none by itself.
fn filled(template: &[u8], name: &str, blob: &[u8]) -> Vec<u8> {
    let digest: String = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    let text = String::from_utf8_lossy(template);
    text.replace(&format!("${name}.digest"), &digest)
        .replace(&format!("${name}.size"), &blob.len().to_string())
        .into_bytes()
}

fn blob_path(blob: &[u8]) -> String {
    String::from_utf8_lossy(&filled(b"blobs/sha256/$b.digest", "b", blob)).into_owned()
}

fn packed(files: &[(String, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, *data).expect("it is written to memory");
    }
    builder.into_inner().expect("it is written to memory")
}

fn oci(index: &[u8], manifest: &[u8], config: &[u8], layer: &[u8]) -> Vec<u8> {
    let config = filled(config, "layer", layer);
    let manifest = filled(&filled(manifest, "config", &config), "layer", layer);
    let index = filled(index, "manifest", &manifest);
    packed(&[
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json".to_owned(), &index),
        (blob_path(&manifest), &manifest),
        (blob_path(&config), &config),
        (blob_path(layer), layer),
    ])
}

fn docker(manifest: &[u8], config: &[u8], layer: &[u8]) -> Vec<u8> {
    let config = filled(config, "layer", layer);
    let manifest = filled(&filled(manifest, "config", &config), "layer", layer);
    packed(&[
        ("manifest.json".to_owned(), &manifest),
        (String::from_utf8_lossy(&filled(b"$c.digest.json", "c", &config)).into_owned(), &config),
        ("layer/layer.tar".to_owned(), layer),
    ])
}

const INDEX: &[u8] = br#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest.digest","size":$manifest.size,"platform":{"os":"linux","architecture":"amd64"},"annotations":{"org.opencontainers.image.ref.name":"web:1"}}]}"#;
const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config.digest","size":$config.size},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:$layer.digest","size":$layer.size}]}"#;
const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:$layer.digest"]}}"#;
const DOCKER: &[u8] = br#"[{"Config":"$config.digest.json","RepoTags":["web:1"],"Layers":["layer/layer.tar"]}]"#;

fn seeds() -> Vec<Vec<u8>> {
    let layer = b"not looked into here";
    vec![
        super::seed(0, oci(INDEX, MANIFEST, CONFIG, layer)),
        super::seed(1, super::joined(&[INDEX, MANIFEST, CONFIG, layer])),
        super::seed(2, super::joined(&[DOCKER, CONFIG, layer])),
    ]
}

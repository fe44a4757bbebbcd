//! What a registry, its token server and an operator's files say.

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "registry",
    about: "manifests and indexes, WWW-Authenticate, token answers, Location, docker's config.json, error bodies, public keys, signed payloads: what is accepted is bounded, fits \
            where it is sent, reads back the same, and shows no secret",
    sources: &[
        "image/registry/src/challenge.rs",
        "image/registry/src/client.rs",
        "image/registry/src/credentials.rs",
        "image/registry/src/token.rs",
        "image/registry/src/url.rs",
        "image/src/archive/manifest.rs",
        "image/src/pull/document.rs",
        "image/src/signature.rs",
    ],
    longest: 8192,
    run,
    seeds,
};

fn run(input: &[u8]) -> Verdict {
    let Some((decoder, input)) = super::pick(input, 8) else { return Verdict::Refused };
    Verdict::of(match decoder {
        0 => byre_image::fuzz::fuzz_manifest(input),
        1 => byre_registry::fuzz::fuzz_challenge(input),
        2 => byre_registry::fuzz::fuzz_token(input),
        3 => byre_registry::fuzz::fuzz_location(input),
        4 => byre_registry::fuzz::fuzz_docker_config(input),
        5 => byre_registry::fuzz::fuzz_words(input),
        6 => byre_image::fuzz::fuzz_key(input),
        _ => byre_image::fuzz::fuzz_payload(input),
    })
}

fn seeds() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "5".repeat(64));
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":7}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":9}}]}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":3,"platform":{{"os":"linux","architecture":"amd64"}}}},{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":3,"platform":{{"os":"linux","architecture":"arm64"}}}}]}}"#
    );
    let key = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEABwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n-----END PUBLIC KEY-----\n";
    let payload = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"r.example/app"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
    );
    vec![
        super::seed(6, key),
        super::seed(7, payload),
        super::seed(0, manifest),
        super::seed(0, index),
        super::seed(1, r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull""#),
        super::seed(1, r#"Negotiate, Basic realm="x\"y", Bearer realm=https://t.example"#),
        super::seed(2, r#"{"token":"abc.def","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}"#),
        super::seed(3, "//storage.example:8443/blob?signature=x%2Fy"),
        super::seed(3, "../elsewhere"),
        super::seed(
            4,
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6c2VzYW1l"},"x.example":{"identitytoken":"t"}}}"#,
        ),
        super::seed(5, r#"{"errors":[{"code":"DENIED","message":"requested access is denied","detail":[]}]}"#),
    ]
}

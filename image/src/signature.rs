//! cosign's key signatures ("simple signing"): a small JSON document that names an image's digest, and a signature over its bytes.
//!
//! Checked without a network: the key stands in the node's configuration, the document and its signature came with the image. Keys are
//! ECDSA P-256 (cosign's own), Ed25519, or RSA of 2048 bits and more, all with SHA-256 (Ed25519 as it is).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Media type of a payload in cosign's manifest.
pub const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation with the signature.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Longest payload; cosign's has some 300 bytes and the annotations of who signed.
pub const MAX_PAYLOAD_LEN: usize = 8 << 10;
/// Longest signature, decoded: RSA of 8192 bits.
const MAX_SIGNATURE_LEN: usize = 1024;
/// Most signatures that are kept of one image.
pub const MAX_SIGNATURES: usize = 8;
/// Longest key as PEM.
const MAX_KEY_LEN: usize = 4 << 10;

/// `SubjectPublicKeyInfo` up to the key itself: P-256 with an uncompressed point (RFC 5480), and Ed25519 (RFC 8410).
const P256_HEAD: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const ED25519_HEAD: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The algorithm of an RSA key (RFC 3279).
const RSA_ALGORITHM: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// A public key.
#[derive(Clone)]
pub struct PublicKey {
    algorithm: &'static dyn VerificationAlgorithm,
    key: Vec<u8>,
    id: Digest,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// Not PEM.
    #[error("it is not a public key in PEM, which begins with -----BEGIN PUBLIC KEY-----")]
    Pem,
    /// Another algorithm.
    #[error("it is neither ECDSA P-256 nor Ed25519 nor RSA")]
    Algorithm,
}

/// A signature with what it signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The document, byte for byte.
    pub payload: String,
    /// Base64, as the annotation has it.
    pub signature: String,
}

/// Why a signature does not count.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignatureError {
    /// It cannot be read.
    #[error("its signature is malformed")]
    Malformed,
    /// It is of another key, or the document was changed.
    #[error("none is of a key that the rule has")]
    Key,
    /// It is for another image.
    #[error("what is signed is {0}")]
    Image(String),
    /// It is for another repository.
    #[error("what is signed is for the repository {0:?}; a copy needs `signed_as`")]
    Repository(String),
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl PublicKey {
    /// Reads a public key in PEM (`SubjectPublicKeyInfo`).
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(pem: &str) -> Result<Self, KeyError> {
        if pem.len() > MAX_KEY_LEN {
            return Err(KeyError::Pem);
        }
        let body = pem.trim().strip_prefix("-----BEGIN PUBLIC KEY-----").ok_or(KeyError::Pem)?;
        let body = body.strip_suffix("-----END PUBLIC KEY-----").ok_or(KeyError::Pem)?;
        let text: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let der = STANDARD.decode(text).map_err(|_| KeyError::Pem)?;
        let id = Digest::of(&der);
        let key = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| Self { algorithm, key: key.to_vec(), id };
        if let Some(point) = der.strip_prefix(P256_HEAD).filter(|point| point.len() == 65) {
            return Ok(key(&ECDSA_P256_SHA256_ASN1, point));
        }
        if let Some(bytes) = der.strip_prefix(ED25519_HEAD).filter(|bytes| bytes.len() == 32) {
            return Ok(key(&ED25519, bytes));
        }
        let rsa = rsa_key(&der).ok_or(KeyError::Algorithm)?;
        Ok(key(&RSA_PKCS1_2048_8192_SHA256, rsa))
    }

    /// What to call it: the digest of its encoding.
    #[must_use]
    pub fn name(&self) -> String {
        format!("the key {}", self.id)
    }
}

/// The `RSAPublicKey` inside a `SubjectPublicKeyInfo`. ring reads it, and refuses what is none.
fn rsa_key(der: &[u8]) -> Option<&[u8]> {
    let (0x30, outer, []) = element(der)? else { return None };
    let (0x03, bits, []) = element(outer.strip_prefix(RSA_ALGORITHM)?)? else { return None };
    bits.strip_prefix(&[0])
}

/// The first DER element: tag, content, what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(*rest.first()?) << 8 | usize::from(*rest.get(1)?), rest.get(2..)?),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

impl Signature {
    /// Whether `key` signed one of `digests` for `repository`.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(&self, key: &PublicKey, digests: &[Digest], repository: &str) -> Result<(), SignatureError> {
        let signature = STANDARD.decode(self.signature.trim()).map_err(|_| SignatureError::Malformed)?;
        if signature.len() > MAX_SIGNATURE_LEN || self.payload.len() > MAX_PAYLOAD_LEN {
            return Err(SignatureError::Malformed);
        }
        // The signature first: what nobody signed is not looked into.
        UnparsedPublicKey::new(key.algorithm, &key.key)
            .verify(self.payload.as_bytes(), &signature)
            .map_err(|_| SignatureError::Key)?;
        let Payload { critical } = serde_json::from_str(&self.payload).map_err(|_| SignatureError::Malformed)?;
        if critical.kind != "cosign container image signature" {
            return Err(SignatureError::Image(format!("no image but {:?}", shown(&critical.kind))));
        }
        if !digests.contains(&critical.image.digest) {
            return Err(SignatureError::Image(critical.image.digest.to_string()));
        }
        let named: Result<crate::reference::Reference, _> = critical.identity.reference.parse();
        match named {
            Ok(named) if format!("{}/{}", named.domain(), named.path()) == repository => Ok(()),
            Ok(_) | Err(_) => Err(SignatureError::Repository(shown(&critical.identity.reference))),
        }
    }
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// See [`crate::fuzz::fuzz_payload`].
pub(crate) fn fuzz_payload(data: &[u8]) -> bool {
    serde_json::from_slice::<Payload>(data).is_ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    /// A key and what it signed, as `cosign sign --key` does it.
    pub(crate) struct Signer(EcdsaKeyPair);

    impl Signer {
        pub(crate) fn new() -> Self {
            let random = SystemRandom::new();
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
            Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap())
        }

        pub(crate) fn pem(&self) -> String {
            let der = [P256_HEAD, self.0.public_key().as_ref()].concat();
            format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
        }

        pub(crate) fn sign(&self, payload: String) -> Signature {
            let signature = self.0.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
            Signature { payload, signature: STANDARD.encode(signature) }
        }
    }

    pub(crate) fn payload(repository: &str, digest: &Digest) -> String {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{repository}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
        )
    }

    #[test]
    fn only_the_right_key_image_and_repository_count() {
        let (signer, other) = (Signer::new(), Signer::new());
        let digest = Digest::of(b"manifest");
        let signature = signer.sign(payload("r.example/team/app", &digest));
        let (key, wrong) = (PublicKey::parse(&signer.pem()).unwrap(), PublicKey::parse(&other.pem()).unwrap());
        assert_eq!(signature.verify(&key, &[digest], "r.example/team/app"), Ok(()));
        assert_eq!(signature.verify(&wrong, &[digest], "r.example/team/app"), Err(SignatureError::Key));
        let elsewhere = signature.verify(&key, &[digest], "r.example/team/other");
        assert!(matches!(elsewhere, Err(SignatureError::Repository(_))));
        let another = signature.verify(&key, &[Digest::of(b"other")], "r.example/team/app");
        assert!(matches!(another, Err(SignatureError::Image(_))));
        let changed = Signature { payload: signature.payload.replace("null", "true"), ..signature.clone() };
        assert_eq!(changed.verify(&key, &[digest], "r.example/team/app"), Err(SignatureError::Key));
        let no_image = signer.sign(payload("r.example/team/app", &digest).replace("image signature", "attestation"));
        assert!(matches!(no_image.verify(&key, &[digest], "r.example/team/app"), Err(SignatureError::Image(_))));
    }

    #[test]
    fn keys_of_other_kinds_and_broken_ones_are_refused() {
        for text in
            ["", "key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "-----BEGIN PRIVATE KEY-----"]
        {
            assert!(PublicKey::parse(text).is_err(), "{text}");
        }
        let ed25519 = [ED25519_HEAD, &[7; 32]].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", STANDARD.encode(ed25519));
        assert!(PublicKey::parse(&pem).is_ok());
    }
}

//! The proofs of joining: how a node that has only a join token and a certificate authority gets its certificate, and how both ends know
//! that the other one has the token. The token itself never crosses the connection.
//!
//! Happy path: the client connects with its own certificate and takes any server certificate; the node answers with its signing request
//! and [`node_proof`] over the key that serves this very connection, so somebody in between, who must serve with another key, cannot pass
//! it on; the client signs and sends the certificate with [`certificate_proof`]; the node checks it and serves with it from then on.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Shortest join token in bytes, as the configuration has it: 64 bits as hexadecimal digits. A shorter one could be guessed from one recorded proof.
pub const TOKEN_BYTES_MIN: usize = 16;

const NODE: &[u8] = b"byre-join-node";
const CERTIFICATE: &[u8] = b"byre-join-certificate";

fn mac(token: &str, label: &[u8], content: &[u8]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(token.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(label);
    mac.update(content);
    mac
}

/// The node's proof that it has the token, over the SubjectPublicKeyInfo (DER) of the key it serves with.
#[must_use]
pub fn node_proof(token: &str, public_key_info_der: &[u8]) -> Vec<u8> {
    mac(token, NODE, public_key_info_der).finalize().into_bytes().to_vec()
}

/// Whether `proof` is [`node_proof`]; takes the same time for every wrong one.
#[must_use]
pub fn node_proof_holds(token: &str, public_key_info_der: &[u8], proof: &[u8]) -> bool {
    mac(token, NODE, public_key_info_der).verify_slice(proof).is_ok()
}

/// The client's proof that it has the token, over the certificate (DER) that it has signed.
#[must_use]
pub fn certificate_proof(token: &str, leaf_der: &[u8]) -> Vec<u8> {
    mac(token, CERTIFICATE, leaf_der).finalize().into_bytes().to_vec()
}

/// Whether `proof` is [`certificate_proof`]; takes the same time for every wrong one.
#[must_use]
pub fn certificate_proof_holds(token: &str, leaf_der: &[u8], proof: &[u8]) -> bool {
    mac(token, CERTIFICATE, leaf_der).verify_slice(proof).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_token_its_content_and_its_purpose_only() {
        let proof = node_proof("token", b"key");
        assert!(node_proof_holds("token", b"key", &proof));
        assert!(!node_proof_holds("other", b"key", &proof));
        assert!(!node_proof_holds("token", b"another", &proof));
        assert!(!node_proof_holds("token", b"key", &proof[1..]));
        assert!(!certificate_proof_holds("token", b"key", &proof));
        assert!(certificate_proof_holds("token", b"leaf", &certificate_proof("token", b"leaf")));
    }
}

//! Certificates of a small installation: the authority, its clients, and its nodes. For `byrectl` and the developer commands; a site with its own
//! authority needs only certificates of the same form (see [`crate::role`]).
//!
//! What a certificate says is decided here, by whoever has the authority's key. A node's signing request contributes its public key and
//! nothing else, so a node cannot ask for another one's name or for a role.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};

use crate::role::{NODE_ORGANIZATION, Role};

/// Life of an authority and of what it signs. Nodes outlive a shorter one unattended, and an expired node certificate locks everybody out.
const LIFE: Duration = Duration::days(3650);
/// How much earlier than now a certificate is valid: clocks of freshly booted machines are behind by up to this.
const SKEW: Duration = Duration::days(2);

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The authority's certificate or key is not in the right form.
    #[error("the authority's certificate or key is malformed: {0}; make a new authority or name its PEM files")]
    Authority(rcgen::Error),
    /// A signing request is malformed or not signed by its own key.
    #[error("the node's signing request is malformed: {0}")]
    Request(rcgen::Error),
    /// A signing request is for another key than the one that serves the connection.
    #[error(
        "the node asks for a certificate for another key than the one it serves with; refuse it and look who answers there"
    )]
    AnotherKey,
    /// A name cannot stand in a certificate.
    #[error("name {0:?} cannot stand in a certificate: use a host name or an address")]
    Name(String),
    /// Making a key or a signature failed.
    #[error("certificate for {0:?} cannot be made: {1}")]
    Sign(String, rcgen::Error),
}

/// A client's certificate and key.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Certificate chain, PEM.
    pub certificate_pem: String,
    /// Private key, PEM (PKCS #8). Secret.
    pub key_pem: String,
}

impl std::fmt::Debug for ClientIdentity {
    /// Leaves out the key.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ClientIdentity").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// A certificate authority with its key.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new one; `name` is its common name.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn generate(name: &str) -> Result<Self, PkiError> {
        let failed = |error| PkiError::Sign(name.to_owned(), error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut parameters = parameters(name, None);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = parameters.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { certificate_pem, issuer: Issuer::new(parameters, key) })
    }

    /// Reads one back.
    ///
    /// # Errors
    /// If either text is malformed.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(PkiError::Authority)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(PkiError::Authority)?;
        Ok(Self { certificate_pem: certificate_pem.to_owned(), issuer })
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its key, PEM. Secret: whoever has it is an administrator of every node.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes a client's key and certificate; `name` stands in the nodes' records of changes.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn client(&self, name: &str, role: Role) -> Result<ClientIdentity, PkiError> {
        let failed = |error| PkiError::Sign(name.to_owned(), error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut parameters = parameters(name, Some(role.organization()));
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(ClientIdentity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Signs a node's request; `names` are the host names and addresses that it will be reached by, the first one its common name.
    /// `public_key_info` is the key that serves the connection which the request came from. Returns the certificate (DER).
    ///
    /// # Errors
    /// If the request is malformed or for another key, or a name is not valid.
    pub fn sign_node(&self, request_der: &[u8], public_key_info: &[u8], names: &[String]) -> Result<Vec<u8>, PkiError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request_der))
            .map_err(PkiError::Request)?;
        if request.public_key.subject_public_key_info() != public_key_info {
            return Err(PkiError::AnotherKey);
        }
        let name = names.first().map_or("node", String::as_str);
        let mut parameters = parameters(name, Some(NODE_ORGANIZATION));
        parameters.subject_alt_names =
            CertificateParams::new(names).map_err(|_| PkiError::Name(names.join(", ")))?.subject_alt_names;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|error| PkiError::Sign(name.to_owned(), error))?;
        Ok(certificate.der().to_vec())
    }
}

fn parameters(name: &str, organization: Option<&str>) -> CertificateParams {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    if let Some(organization) = organization {
        subject.push(DnType::OrganizationName, organization);
    }
    let now = OffsetDateTime::now_utc();
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = subject;
    parameters.not_before = now - SKEW;
    parameters.not_after = now + LIFE;
    parameters
}

/// The first certificate of a PEM text, as DER.
#[must_use]
pub fn first_certificate(pem: &str) -> Option<Vec<u8>> {
    rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).ok().map(|certificate| certificate.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::{public_key_info, subject};

    #[test]
    fn an_authority_read_back_signs_clients_with_their_role() {
        let made = Authority::generate("test").unwrap();
        let authority = Authority::from_pem(made.certificate_pem(), &made.key_pem()).unwrap();
        for role in Role::ALL {
            let client = authority.client("erika", role).unwrap();
            let who = subject(&first_certificate(&client.certificate_pem).unwrap()).unwrap();
            assert_eq!((who.name.as_str(), who.role), ("erika", Some(role)));
        }
    }

    #[test]
    fn a_node_gets_a_certificate_for_its_own_key_and_no_role() {
        let authority = Authority::generate("test").unwrap();
        let key = KeyPair::generate().unwrap();
        let mut wanted = parameters("liar", Some(Role::Admin.organization()));
        wanted.subject_alt_names = CertificateParams::new(vec!["other.example".to_owned()]).unwrap().subject_alt_names;
        let request = wanted.serialize_request(&key).unwrap();
        let info = key.subject_public_key_info();
        let names = ["node-1".to_owned(), "127.0.0.1".to_owned()];
        let leaf = authority.sign_node(request.der(), &info, &names).unwrap();
        let who = subject(&leaf).unwrap();
        assert_eq!((who.name.as_str(), who.role), ("node-1", None));
        assert_eq!(public_key_info(&leaf).unwrap(), info);
        assert!(!leaf.windows(13).any(|window| window == b"other.example"));
        let another = KeyPair::generate().unwrap().subject_public_key_info();
        assert!(matches!(authority.sign_node(request.der(), &another, &names), Err(PkiError::AnotherKey)));
    }
}

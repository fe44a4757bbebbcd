//! The node's own key and certificate, and the TLS configuration that each new connection is served with.
//!
//! The key is made here and never leaves the state directory. Until a certificate of the authority is installed, a self-signed one stands in,
//! so that a client that knows the join token can install one. Whatever is read from disk is checked again: a certificate that does not
//! fit the key, or is not of the configured authority, counts as none.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use byre_api::role::public_key_info;
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData};
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// Certificates in an installed chain: a leaf and a few intermediates.
const CHAIN: usize = 8;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the state directory.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The key cannot be made or read.
    #[error("the node's key {0}: {1}; remove the file and join the node again")]
    Key(PathBuf, rcgen::Error),
    /// A certificate or request cannot be made.
    #[error("the node's certificate request cannot be made: {0}")]
    Request(rcgen::Error),
    /// The configured authority.
    #[error("the configured authority (ca_pem) cannot be used: {0}; write PEM certificates there")]
    Authority(String),
    /// rustls refuses the set.
    #[error("TLS cannot be set up: {0}")]
    Config(#[from] rustls::Error),
    /// A chain that does not belong to this node.
    #[error("the certificate is refused: {0}")]
    Chain(String),
}

/// What a new connection is served with.
#[derive(Clone)]
pub(crate) struct Serving {
    /// The configuration.
    pub config: Arc<ServerConfig>,
    /// Whether its certificate is one of the authority.
    pub joined: bool,
}

/// The node's key, its certificate, and the authority it trusts.
pub(crate) struct NodeTls {
    directory: PathBuf,
    key: KeyPair,
    name: String,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    serving: Mutex<Serving>,
}

impl NodeTls {
    /// Loads or makes the key in `directory`, and takes the installed certificate if it is good.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(crate) fn open(directory: &Path, authority_pem: &str, name: &str) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = load_or_make_key(directory)?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority_pem.as_bytes()) {
            let certificate = certificate.map_err(|error| TlsError::Authority(error.to_string()))?;
            roots.add(certificate).map_err(|error| TlsError::Authority(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(TlsError::Authority("it has no certificate".into()));
        }
        let roots = Arc::new(roots);
        let self_signed = self_signed(&key, name)?;
        let config = server_config(&provider, &roots, vec![self_signed], &key)?;
        let serving = Mutex::new(Serving { config, joined: false });
        let node = Self { directory: directory.to_owned(), key, name: name.to_owned(), roots, provider, serving };
        if let Some(chain) = node.installed()? {
            match node.check(&chain) {
                Ok(()) => node.serve(chain)?,
                Err(error) => {
                    crate::say::say(&format!("{}: {error}; join the node again", node.chain_path().display()))
                }
            }
        }
        Ok(node)
    }

    /// What the next connection is served with.
    #[must_use]
    pub(crate) fn serving(&self) -> Serving {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// SubjectPublicKeyInfo (DER) of the node's key.
    #[must_use]
    pub(crate) fn public_key_info(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// A certificate signing request (DER).
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn signing_request(&self) -> Result<Vec<u8>, TlsError> {
        let request = parameters(&self.name)?.serialize_request(&self.key).map_err(TlsError::Request)?;
        Ok(request.der().to_vec())
    }

    /// Checks a chain, leaf first, brings it to disk, and serves with it from the next connection on.
    ///
    /// # Errors
    /// [`TlsError::Chain`] if it is not for this node's key or not of its authority; then nothing has changed.
    pub(crate) fn install(&self, chain: Vec<CertificateDer<'static>>) -> Result<(), TlsError> {
        self.check(&chain)?;
        let mut bytes = Vec::new();
        for certificate in &chain {
            let length = u32::try_from(certificate.len()).map_err(|_| TlsError::Chain("it is too long".into()))?;
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(certificate);
        }
        write_atomically(&self.directory, &self.chain_path(), &bytes)?;
        self.serve(chain)
    }

    fn serve(&self, chain: Vec<CertificateDer<'static>>) -> Result<(), TlsError> {
        let config = server_config(&self.provider, &self.roots, chain, &self.key)?;
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Serving { config, joined: true };
        Ok(())
    }

    fn check(&self, chain: &[CertificateDer<'static>]) -> Result<(), TlsError> {
        let refuse = |text: String| TlsError::Chain(text);
        let (leaf, above) = chain.split_first().ok_or_else(|| refuse("the chain is empty".into()))?;
        if chain.len() > CHAIN {
            return Err(refuse(format!("the chain has more than {CHAIN} certificates")));
        }
        let key = public_key_info(leaf).map_err(|error| refuse(error.to_string()))?;
        if key != self.public_key_info() {
            return Err(refuse("it is for another key than this node's: ask for a new signing request".into()));
        }
        let name = first_name(leaf).ok_or_else(|| refuse("it names no host: sign it with the node's names".into()))?;
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::clone(&self.roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|error| TlsError::Authority(error.to_string()))?;
        let verified = verifier.verify_server_cert(leaf, above, &name, &[], UnixTime::now());
        verified
            .map(drop)
            .map_err(|error| refuse(format!("{error}; sign it with the authority that the node is configured with")))
    }

    fn chain_path(&self) -> PathBuf {
        self.directory.join("chain.bin")
    }

    fn installed(&self) -> Result<Option<Vec<CertificateDer<'static>>>, TlsError> {
        let path = self.chain_path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TlsError::File(path, error)),
        };
        let mut rest = bytes.as_slice();
        let mut chain = Vec::new();
        // A torn file cannot be: it is renamed into place. A damaged one gives a chain that does not verify.
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let Some((certificate, behind)) = behind.split_at_checked(length) else { break };
            chain.push(CertificateDer::from(certificate.to_vec()));
            rest = behind;
        }
        Ok(Some(chain))
    }
}

/// One of the names in a certificate; which one does not matter, as only its authority and purpose are to be verified.
fn first_name(certificate: &[u8]) -> Option<ServerName<'static>> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => ServerName::try_from((*name).to_owned()).ok(),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(ServerName::from(std::net::IpAddr::from([*a, *b, *c, *d]))),
            bytes => <[u8; 16]>::try_from(bytes).ok().map(|bytes| ServerName::from(std::net::IpAddr::from(bytes))),
        },
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::URI(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    })
}

fn parameters(name: &str) -> Result<CertificateParams, TlsError> {
    let mut parameters = CertificateParams::new(vec![name.to_owned()]).map_err(TlsError::Request)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    Ok(parameters)
}

fn self_signed(key: &KeyPair, name: &str) -> Result<CertificateDer<'static>, TlsError> {
    // Nobody verifies it, so its life does not matter: the proof of the join token stands for it.
    let certificate = parameters(name)?.self_signed(key).map_err(TlsError::Request)?;
    Ok(certificate.der().clone())
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
) -> Result<Arc<ServerConfig>, TlsError> {
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(|error| TlsError::Authority(error.to_string()))?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| TlsError::Chain(error.to_owned()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Resumption would skip the client's certificate being looked at anew, and saves nothing that is felt here.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn load_or_make_key(directory: &Path) -> Result<KeyPair, TlsError> {
    let path = directory.join("node-key.pem");
    match std::fs::read_to_string(&path) {
        Ok(text) => KeyPair::from_pem(&text).map_err(|error| TlsError::Key(path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = KeyPair::generate().map_err(|error| TlsError::Key(path.clone(), error))?;
            write_atomically(directory, &path, key.serialize_pem().as_bytes())?;
            Ok(key)
        }
        Err(error) => Err(TlsError::File(path, error)),
    }
}

/// Write beside, flush, rename, flush the directory: after a power cut there is the old content or the new one.
fn write_atomically(directory: &Path, path: &Path, content: &[u8]) -> Result<(), TlsError> {
    let staging = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staging)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&staging, path)?;
        std::fs::File::open(directory)?.sync_all()
    };
    write().map_err(|error| TlsError::File(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use byre_api::pki::Authority;

    fn signed(authority: &Authority, node: &NodeTls) -> Vec<CertificateDer<'static>> {
        let request = node.signing_request().unwrap();
        let leaf = authority.sign_node(&request, &node.public_key_info(), &["node-1".to_owned()]).unwrap();
        vec![CertificateDer::from(leaf)]
    }

    #[test]
    fn an_installed_certificate_is_there_after_a_restart_and_only_with_its_authority() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::generate("one").unwrap();
        let node = NodeTls::open(directory.path(), authority.certificate_pem(), "node-1").unwrap();
        assert!(!node.serving().joined);
        node.install(signed(&authority, &node)).unwrap();
        assert!(node.serving().joined);
        let again = NodeTls::open(directory.path(), authority.certificate_pem(), "node-1").unwrap();
        assert!(again.serving().joined);
        assert_eq!(again.public_key_info(), node.public_key_info());
        let other = Authority::generate("two").unwrap();
        assert!(!NodeTls::open(directory.path(), other.certificate_pem(), "node-1").unwrap().serving().joined);
    }

    #[test]
    fn a_certificate_of_another_authority_key_or_purpose_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::generate("one").unwrap();
        let node = NodeTls::open(directory.path(), authority.certificate_pem(), "node-1").unwrap();
        let stranger = Authority::generate("two").unwrap();
        assert!(matches!(node.install(signed(&stranger, &node)), Err(TlsError::Chain(_))));
        let elsewhere = tempfile::tempdir().unwrap();
        let other = NodeTls::open(elsewhere.path(), authority.certificate_pem(), "node-2").unwrap();
        assert!(matches!(node.install(signed(&authority, &other)), Err(TlsError::Chain(_))));
        assert!(matches!(node.install(Vec::new()), Err(TlsError::Chain(_))));
        assert!(!node.serving().joined);
    }

    #[test]
    fn the_key_is_readable_by_its_owner_only() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::generate("one").unwrap();
        NodeTls::open(directory.path(), authority.certificate_pem(), "node-1").unwrap();
        let metadata = std::fs::metadata(directory.path().join("node-key.pem")).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }
}

//! How a client reaches a node: by its unix socket, or over TCP with TLS 1.3 and certificates on both sides; and how it joins one.
//!
//! A connection is never unverified, with one exception: [`adopt`] takes any server certificate, and then requires the proof of
//! [`crate::join`] over exactly that connection's key before it believes a word.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

use crate::join;
use crate::pki::{Authority, ClientIdentity, PkiError};
use crate::proto::identity_client::IdentityClient;
use crate::proto::node_client::NodeClient;
use crate::proto::{GetSigningRequestRequest, InstallCertificateRequest, VersionRequest};
use crate::role::public_key_info;

/// The port of the node's API.
pub const PORT: u16 = 7443;
/// Where the API's unix socket lies on a node.
pub const SOCKET: &str = "/run/byre/api.sock";

/// Longest wait for a connection with its TLS handshake: a node under software emulation takes a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream that is at rest is asked after this time whether the node is still there, so that `logs -f` does not hang on a dead one.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// And has this long to answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Where a node's API is, and how to show who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket of this machine; the node takes the peer's user id.
    Unix(PathBuf),
    /// TCP with certificates on both sides.
    Tcp(TcpEndpoint),
}

/// A node that is reached over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpEndpoint {
    /// `host:port`; an IPv6 address stands in brackets.
    pub address: String,
    /// Name that the node's certificate must carry, if it is not the address's host (a forwarded port).
    pub server_name: Option<String>,
    /// Certificate of the authority that signs nodes, PEM.
    pub authority_pem: String,
    /// Our certificate and key.
    pub identity: ClientIdentity,
}

impl TcpEndpoint {
    /// The host part of the address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    fn verified_name(&self) -> &str {
        self.server_name.as_deref().unwrap_or_else(|| self.host())
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "{}", path.display()),
            Self::Tcp(tcp) => formatter.write_str(&tcp.address),
        }
    }
}

/// Why a node could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection.
    #[error("node {0} cannot be reached: {1}; check its address and that it runs")]
    Unreachable(String, std::io::Error),
    /// Nobody answered in time.
    #[error("node {0} does not answer within {limit} seconds; check its address and that it runs", limit = CONNECT_TIMEOUT.as_secs())]
    Timeout(String),
    /// Certificates do not fit.
    #[error("node {0}: {1}; check that it has joined this authority, and the authority and server name of the context")]
    Tls(String, std::io::Error),
    /// A certificate, key or name that we were given is malformed.
    #[error("{0} cannot be used: {1}; check the context's files")]
    Credentials(&'static str, String),
    /// Something answered, but not the API.
    #[error("node {0} does not speak the API: {1}")]
    Protocol(String, tonic::transport::Error),
}

/// Why a node was not joined.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Not signed.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A call failed.
    #[error("node {node}: {step}: {}", status.message())]
    Call {
        /// Its address.
        node: String,
        /// What was asked.
        step: &'static str,
        /// Its answer.
        status: Box<tonic::Status>,
    },
    /// No proof of the token.
    #[error("node {0} does not know the join token: it may be another machine; check the token in its configuration")]
    Proof(String),
    /// The token is too short to be safe.
    #[error(
        "the join token has {0} characters, {least} are needed: take 32 random hexadecimal digits",
        least = join::TOKEN_BYTES_MIN
    )]
    ShortToken(usize),
}

/// Connects. The connection is made at once, so that what is wrong is said here, and made anew when it breaks.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(endpoint: &Endpoint) -> Result<Channel, ConnectError> {
    match endpoint {
        Endpoint::Unix(path) => {
            let (path, name) = (path.clone(), endpoint.to_string());
            let reach = move || {
                let (path, name) = (path.clone(), name.clone());
                async move {
                    let connected = UnixStream::connect(path).await;
                    connected.map_err(|error| ConnectError::Unreachable(name, error))
                }
            };
            dial(endpoint.to_string(), reach).await
        }
        Endpoint::Tcp(tcp) => connect_tls(tcp, Arc::new(verifying_config(tcp)?)).await,
    }
}

async fn connect_tls(tcp: &TcpEndpoint, config: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
    let server_name = ServerName::try_from(tcp.verified_name().to_owned())
        .map_err(|_| ConnectError::Credentials("server name", format!("{:?} is no host name", tcp.verified_name())))?;
    let (address, connector) = (tcp.address.clone(), TlsConnector::from(config));
    let reach = move || {
        let (address, connector, server_name) = (address.clone(), connector.clone(), server_name.clone());
        async move {
            let stream = TcpStream::connect(&address)
                .await
                .map_err(|error| ConnectError::Unreachable(address.clone(), error))?;
            // Terminals send single bytes; waiting to fill a packet would be felt.
            stream.set_nodelay(true).map_err(|error| ConnectError::Unreachable(address.clone(), error))?;
            let tls = connector.connect(server_name, stream).await;
            tls.map_err(|error| ConnectError::Tls(address, error))
        }
    };
    dial(tcp.address.clone(), reach).await
}

async fn dial<R, F, S>(name: String, reach: R) -> Result<Channel, ConnectError>
where
    R: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, ConnectError>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let slow = name.clone();
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let (reached, slow) = (reach(), slow.clone());
        async move {
            let reached = tokio::time::timeout(CONNECT_TIMEOUT, reached).await;
            reached.unwrap_or(Err(ConnectError::Timeout(slow))).map(TokioIo::new)
        }
    });
    // The address is the connector's business; the URI only fills the :authority header.
    tonic::transport::Endpoint::from_static("http://byre.node")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| explain(name, error))
}

/// The connector's own error, if that is what lies below tonic's.
fn explain(name: String, error: tonic::transport::Error) -> ConnectError {
    let mut below: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = below {
        // Errors are borrowed from the chain and io::Error cannot be cloned, so kind and text are kept.
        let same = |error: &std::io::Error| std::io::Error::new(error.kind(), error.to_string());
        match cause.downcast_ref::<ConnectError>() {
            Some(ConnectError::Unreachable(name, error)) => {
                return ConnectError::Unreachable(name.clone(), same(error));
            }
            Some(ConnectError::Timeout(name)) => return ConnectError::Timeout(name.clone()),
            Some(ConnectError::Tls(name, error)) => return ConnectError::Tls(name.clone(), same(error)),
            Some(ConnectError::Credentials(what, text)) => return ConnectError::Credentials(what, text.clone()),
            Some(ConnectError::Protocol(..)) | None => below = cause.source(),
        }
    }
    ConnectError::Protocol(name, error)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn credentials(
    identity: &ClientIdentity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), ConnectError> {
    let bad = |what| move |error: rustls_pki_types::pem::Error| ConnectError::Credentials(what, error.to_string());
    let chain = CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(bad("client certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(bad("client key"))?;
    Ok((chain, key))
}

/// A configuration of ours: ring, TLS 1.3 only (both ends are this crate's), and gRPC's protocol name.
fn config(verifier: Arc<dyn ServerCertVerifier>, identity: &ClientIdentity) -> Result<ClientConfig, ConnectError> {
    let (chain, key) = credentials(identity)?;
    let bad = |error: rustls::Error| ConnectError::Credentials("client certificate and key", error.to_string());
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(bad)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn verifying_config(tcp: &TcpEndpoint) -> Result<ClientConfig, ConnectError> {
    let bad = |text: String| ConnectError::Credentials("authority", text);
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(tcp.authority_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| bad(error.to_string()))?;
    config(verifier, &tcp.identity)
}

/// Takes whatever certificate the first connection shows and keeps its key; from then on takes that key only. The handshake's signature is
/// verified, so the peer has the key. Only [`adopt`] uses this, and believes nothing before the proof over the kept key.
#[derive(Debug)]
struct FirstKey {
    key: Mutex<Option<Vec<u8>>>,
    provider: Arc<CryptoProvider>,
}

impl FirstKey {
    fn key(&self) -> Option<Vec<u8>> {
        self.key.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for FirstKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let key = public_key_info(end_entity).map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut kept = self.key.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match kept.as_ref() {
            Some(first) if *first != key => Err(rustls::Error::General("the node's key changed while joining".into())),
            Some(_) => Ok(ServerCertVerified::assertion()),
            None => {
                *kept = Some(key);
                Ok(ServerCertVerified::assertion())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Joins a node: gets its signing request, checks that it knows the token, signs, installs the certificate, and connects again with full
/// verification. `names` are further host names and addresses that the node will be reached by; the endpoint's own are always among them.
/// The endpoint's identity must be an administrator's. A node that has joined before may be joined again. Returns the certificate (DER).
///
/// # Errors
/// See [`AdoptError`]; until the proof holds nothing but our own certificate was shown to the node.
pub async fn adopt(
    endpoint: &TcpEndpoint,
    authority: &Authority,
    join_token: &str,
    names: &[String],
) -> Result<Vec<u8>, AdoptError> {
    if join_token.len() < join::TOKEN_BYTES_MIN {
        return Err(AdoptError::ShortToken(join_token.len()));
    }
    let call = |step| {
        let node = endpoint.address.clone();
        move |status: tonic::Status| AdoptError::Call { node, step, status: Box::new(status) }
    };
    let first_key = Arc::new(FirstKey { key: Mutex::new(None), provider: provider() });
    let unverified = config(Arc::<FirstKey>::clone(&first_key), &endpoint.identity)?;
    let channel = connect_tls(endpoint, Arc::new(unverified)).await?;
    let mut identity = IdentityClient::new(channel);
    let request = identity
        .get_signing_request(GetSigningRequestRequest {})
        .await
        .map_err(call("get its signing request"))?
        .into_inner();
    let key = first_key.key().unwrap_or_default();
    if !join::node_proof_holds(join_token, &key, &request.proof) {
        return Err(AdoptError::Proof(endpoint.address.clone()));
    }

    let mut all_names = vec![endpoint.verified_name().to_owned()];
    all_names.extend(std::iter::once(endpoint.host().to_owned()).chain(names.iter().cloned()));
    let mut seen = std::collections::BTreeSet::new();
    all_names.retain(|name| seen.insert(name.clone()));
    let leaf = authority.sign_node(&request.csr_der, &key, &all_names)?;
    let install = InstallCertificateRequest {
        proof: join::certificate_proof(join_token, &leaf).into(),
        chain_der: vec![leaf.clone().into()],
    };
    identity.install_certificate(install).await.map_err(call("install its certificate"))?;
    drop(identity);

    let channel = connect(&Endpoint::Tcp(endpoint.clone())).await?;
    NodeClient::new(channel).version(VersionRequest {}).await.map_err(call("connect with its new certificate"))?;
    Ok(leaf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> TcpEndpoint {
        let authority = Authority::generate("test").unwrap();
        TcpEndpoint {
            address: address.to_owned(),
            server_name: None,
            authority_pem: authority.certificate_pem().to_owned(),
            identity: authority.client("test", crate::role::Role::Admin).unwrap(),
        }
    }

    #[test]
    fn the_host_of_an_address_is_what_the_certificate_must_carry() {
        assert_eq!(endpoint("node-1:7443").host(), "node-1");
        assert_eq!(endpoint("[::1]:7443").host(), "::1");
        assert_eq!(endpoint("127.0.0.1:7443").host(), "127.0.0.1");
    }

    #[tokio::test]
    async fn an_address_where_nobody_listens_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = connect(&Endpoint::Tcp(endpoint(&address))).await.unwrap_err();
        assert!(matches!(error, ConnectError::Unreachable(..)), "{error}");
        assert!(error.to_string().contains(&address));
        let error = connect(&Endpoint::Unix("/nonexistent/api.sock".into())).await.unwrap_err();
        assert!(matches!(error, ConnectError::Unreachable(..)), "{error}");
    }
}

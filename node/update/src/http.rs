//! A small HTTP/1.1 client: one GET on one connection, from a byte on, with a limit on every wait.
//!
//! What comes back is trusted by nobody; its readers check every byte. So this only has to end: each step has a time limit, redirects have a
//! number, and a body that stalls is an error. A connection serves one request: an update needs about ten of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HOST, LOCATION, RANGE, USER_AGENT};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

/// An object store answers with one redirect; more than a few are a loop.
const REDIRECTS: usize = 4;
/// Bytes of the longest URL that is asked for.
const URL_BYTES: usize = 2048;
/// What a proxy or server may learn of who asks.
const AGENT: &str = "byre-update";

/// How long each step may take.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// Finding the address, connecting, and TLS.
    pub connect: Duration,
    /// The head of the answer.
    pub answer: Duration,
    /// Between two pieces of a body.
    pub stall: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(20), answer: seconds(30), stall: seconds(30) }
    }
}

/// Why something was not fetched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HttpError {
    /// Not a URL that is spoken here.
    #[error("{0} is no URL of http or https")]
    Url(String),
    /// No address, no connection, no TLS.
    #[error("{host} cannot be reached: {cause}")]
    Connect {
        /// Host and port.
        host: String,
        /// Why.
        cause: String,
    },
    /// The connection broke.
    #[error("{url} broke off: {cause}")]
    Broken {
        /// What was fetched.
        url: String,
        /// Why.
        cause: String,
    },
    /// Nothing came for too long.
    #[error("{url} sent nothing for {seconds} seconds")]
    Stalled {
        /// What was fetched.
        url: String,
        /// The limit.
        seconds: u64,
    },
    /// It is not there.
    #[error("{0} is not there (404)")]
    NotFound(String),
    /// Another answer than what was asked for.
    #[error("{url} was answered with {status}")]
    Status {
        /// What was fetched.
        url: String,
        /// The answer.
        status: u16,
    },
    /// Redirected too often, or to what is not followed.
    #[error("{0} is redirected too often, or from https to http")]
    Redirect(String),
    /// A range that was not asked for.
    #[error("{url} answered with bytes from {found} instead of {wanted}")]
    Range {
        /// What was fetched.
        url: String,
        /// Asked for.
        wanted: u64,
        /// Answered.
        found: String,
    },
    /// More bytes than it may have.
    #[error("{url} has more than {limit} bytes")]
    TooLong {
        /// What was fetched.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// Certificates of authorities cannot be used.
    #[error("the certificates of authorities cannot be used: {0}")]
    Authorities(String),
}

impl HttpError {
    /// Whether trying again may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Broken { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            Self::Url(_)
            | Self::NotFound(_)
            | Self::Redirect(_)
            | Self::Range { .. }
            | Self::TooLong { .. }
            | Self::Authorities(_) => false,
        }
    }
}

/// The client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    tls: Arc<ClientConfig>,
    waits: Waits,
}

impl Client {
    /// A client that believes these authorities (PEM).
    ///
    /// # Errors
    /// [`HttpError::Authorities`].
    pub fn new(authorities: &Path, waits: Waits) -> Result<Self, HttpError> {
        let failed =
            |error: &dyn std::fmt::Display| HttpError::Authorities(format!("{}: {error}", authorities.display()));
        let mut roots = rustls::RootCertStore::empty();
        match CertificateDer::pem_file_iter(authorities) {
            Ok(certificates) => {
                let usable = certificates.filter_map(Result::ok);
                roots.add_parsable_certificates(usable);
            }
            // Without any, https fails with its own message; plain http is protected by signatures alone in any case.
            Err(rustls_pki_types::pem::Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&error)),
        }
        // Said here and never found out: another crate may bring a second provider.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(config), waits })
    }

    /// Begins to fetch `url` from byte `from` on. A server that does not know ranges sends all of it: see [`Body::start`].
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn get(&self, url: &Url, from: u64) -> Result<Body, HttpError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS {
            let response = self.ask(&url, from).await?;
            let status = response.status();
            if status.is_redirection() {
                url = redirected(&url, response.headers())?;
                continue;
            }
            return self.body(url, from, response);
        }
        Err(HttpError::Redirect(url.to_string()))
    }

    /// A whole small file.
    ///
    /// # Errors
    /// [`HttpError`], also when it has more than `limit` bytes.
    pub async fn get_all(&self, url: &Url, limit: u64) -> Result<Vec<u8>, HttpError> {
        let mut body = self.get(url, 0).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                return Err(HttpError::TooLong { url: url.to_string(), limit });
            }
        }
        Ok(bytes)
    }

    async fn ask(&self, url: &Url, from: u64) -> Result<Response<Incoming>, HttpError> {
        let refused = || HttpError::Url(url.as_str().chars().take(URL_BYTES).collect());
        let host = url.host_str().ok_or_else(refused)?.to_owned();
        let port = url.port_or_known_default().ok_or_else(refused)?;
        if url.as_str().len() > URL_BYTES {
            return Err(refused());
        }
        let place = format!("{host}:{port}");
        let connect = |cause: String| HttpError::Connect { host: place.clone(), cause };
        let late = |_| connect("no answer in time".to_owned());
        let tcp = tokio::time::timeout(self.waits.connect, dial(host.trim_matches(['[', ']']), port)).await;
        let tcp = tcp.map_err(late)?.map_err(|error| connect(error.to_string()))?;
        // Small requests, large answers: nothing is gained by waiting for more.
        let _ = tcp.set_nodelay(true);
        match url.scheme() {
            "http" => self.send(tcp, url, &host, from).await,
            "https" => {
                let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|_| refused())?;
                let tls = TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp);
                let tls = tokio::time::timeout(self.waits.connect, tls).await;
                let tls = tls.map_err(late)?.map_err(|error| connect(error.to_string()))?;
                self.send(tls, url, &host, from).await
            }
            _ => Err(refused()),
        }
    }

    async fn send(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        url: &Url,
        host: &str,
        from: u64,
    ) -> Result<Response<Incoming>, HttpError> {
        let broken =
            |error: &dyn std::fmt::Display| HttpError::Broken { url: url.to_string(), cause: error.to_string() };
        let stalled = || HttpError::Stalled { url: url.to_string(), seconds: self.waits.answer.as_secs() };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        // Ends with the answer's body, or when that is dropped.
        tokio::spawn(connection);
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let mut request = Request::get(path).header(HOST, host).header(USER_AGENT, AGENT);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| broken(&error))?;
        let answer = tokio::time::timeout(self.waits.answer, sender.send_request(request)).await;
        answer.map_err(|_| stalled())?.map_err(|error| broken(&error))
    }

    fn body(&self, url: Url, from: u64, response: Response<Incoming>) -> Result<Body, HttpError> {
        let headers = response.headers();
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let (start, total) = match response.status() {
            StatusCode::OK => (0, length),
            StatusCode::PARTIAL_CONTENT => {
                let text = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
                match content_range(text) {
                    Some((start, total)) if start == from => (start, total),
                    Some(_) | None => {
                        let found = text.chars().take(100).collect();
                        return Err(HttpError::Range { url: url.to_string(), wanted: from, found });
                    }
                }
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => return Err(HttpError::NotFound(url.to_string())),
            other => return Err(HttpError::Status { url: url.to_string(), status: other.as_u16() }),
        };
        Ok(Body { url: url.to_string(), incoming: response.into_body(), stall: self.waits.stall, start, total })
    }
}

async fn dial(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn redirected(from: &Url, headers: &HeaderMap) -> Result<Url, HttpError> {
    let refused = || HttpError::Redirect(from.to_string());
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(refused)?;
    let to = from.join(location).map_err(|_| refused())?;
    if from.scheme() == "https" && to.scheme() != "https" {
        return Err(refused());
    }
    Ok(to)
}

/// First byte and whole length of `bytes 5-9/10`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()))
}

/// An answer's body.
#[derive(Debug)]
pub struct Body {
    url: String,
    incoming: Incoming,
    stall: Duration,
    start: u64,
    total: Option<u64>,
}

impl Body {
    /// The place in the file of the first byte that comes: what was asked for, or 0 from a server that does not know ranges.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes of the whole file, if the server says so.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// [`HttpError::Broken`] or [`HttpError::Stalled`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(self.stall, self.incoming.frame()).await;
            let stalled = |_| HttpError::Stalled { url: self.url.clone(), seconds: self.stall.as_secs() };
            match frame.map_err(stalled)? {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => {
                    return Err(HttpError::Broken { url: self.url.clone(), cause: error.to_string() });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_redirects_never_leave_tls() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(content_range("items 5-9/10"), None);
        let to = |from: &str, location: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            redirected(&from.parse().unwrap(), &headers).map(|url| url.to_string()).ok()
        };
        assert_eq!(to("https://a/b/c", "d"), Some("https://a/b/d".to_owned()));
        assert_eq!(to("http://a/b", "https://e/f"), Some("https://e/f".to_owned()));
        assert_eq!(to("https://a/b", "http://a/b"), None);
    }
}

//! Connections: addresses, proxies, TLS, and one HTTP/1.1 request on each at a time.
//!
//! A connection is kept after a body that was read to its end, a few of them and for a short time; one that breaks before an answer began
//! is replaced once, because the other side may have closed it while it lay idle.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::error::RegistryError;
use crate::settings::{Limits, Settings};
use crate::tls::Authorities;
use crate::url::{Origin, Scheme, Url};

/// Bytes read at once; also the bound of an answer's head.
const READ_BYTES: usize = 128 << 10;
/// Header lines of an answer.
const MAX_HEADERS: usize = 100;
/// Addresses of one host that are tried.
const MAX_ADDRESSES: usize = 6;
/// Connections that lie idle for one origin; a pull uses two.
const MAX_IDLE: usize = 2;
/// How long a connection lies idle: registries close after a minute or more.
const IDLE: Duration = Duration::from_secs(20);
/// The head of a proxy's answer to CONNECT.
const MAX_CONNECT_HEAD: usize = 8 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Sender = SendRequest<Full<Bytes>>;

/// An answer whose body is still to be read.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    sender: Sender,
    origin: Origin,
}

/// All connections of a client.
pub(crate) struct Transport {
    pub(crate) settings: Settings,
    pub(crate) limits: Limits,
    authorities: Authorities,
    idle: Mutex<HashMap<Origin, Vec<(Instant, Sender)>>>,
}

impl Transport {
    pub(crate) fn new(settings: Settings, limits: Limits) -> Self {
        Self { settings, limits, authorities: Authorities::new(), idle: Mutex::default() }
    }

    /// Sends a request and waits for the head of the answer. `request` has the path for its address, and no Host.
    pub(crate) async fn send(&self, url: &Url, request: &Request<Full<Bytes>>) -> Result<Answer, RegistryError> {
        if let Some(sender) = self.take_idle(&url.origin) {
            // Broken while it lay idle: the fresh one decides.
            if let Ok(answer) = self.send_on(sender, url, request).await {
                return Ok(answer);
            }
        }
        let sender = self.connect(&url.origin).await?;
        self.send_on(sender, url, request).await
    }

    async fn send_on(
        &self,
        mut sender: Sender,
        url: &Url,
        request: &Request<Full<Bytes>>,
    ) -> Result<Answer, RegistryError> {
        let host = url.origin.authority();
        let mut copy = Request::new(request.body().clone());
        *copy.method_mut() = request.method().clone();
        *copy.headers_mut() = request.headers().clone();
        let malformed = |why: String| RegistryError::Malformed { host: host.clone(), why };
        let target = match self.plain_proxy(&url.origin) {
            Some(_) => url.to_string(),
            None => url.target.clone(),
        };
        *copy.uri_mut() = target.parse::<Uri>().map_err(|e| malformed(e.to_string()))?;
        let value = HeaderValue::from_str(&host).map_err(|e| malformed(e.to_string()))?;
        copy.headers_mut().insert(HOST, value);
        if let Some(value) = self.plain_proxy(&url.origin).and_then(|proxy| proxy.credential.as_ref()?.basic()) {
            let value = HeaderValue::from_str(&value).map_err(|_| malformed("proxy credentials".to_owned()))?;
            copy.headers_mut().insert(PROXY_AUTHORIZATION, value);
        }
        let slow = |_| RegistryError::Slow { host: host.clone(), what: "no answer to a request came in time".into() };
        let response = timeout(self.limits.head, sender.send_request(copy)).await.map_err(slow)?.map_err(|error| {
            if error.is_parse() {
                malformed(error.to_string())
            } else {
                RegistryError::Connect { host: host.clone(), why: error.to_string() }
            }
        })?;
        Ok(Answer { response, sender, origin: url.origin.clone() })
    }

    /// The proxy that requests to `origin` are sent to whole, as they have no TLS that it could pass through.
    fn plain_proxy(&self, origin: &Origin) -> Option<&crate::settings::Proxy> {
        let proxy = self.settings.proxy.as_ref()?;
        (origin.scheme == Scheme::Http && !self.settings.is_direct(origin.name())).then_some(proxy)
    }

    fn take_idle(&self, origin: &Origin) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.get_mut(origin)?;
        senders.retain(|(since, sender)| since.elapsed() < IDLE && sender.is_ready());
        Some(senders.pop()?.1)
    }

    /// Keeps the connection of an answer whose body was read to its end.
    async fn keep(&self, origin: Origin, mut sender: Sender) {
        // It is ready once hyper has seen the body's end, which it has if the body has.
        if !matches!(timeout(Duration::from_millis(100), sender.ready()).await, Ok(Ok(()))) {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, senders| {
            senders.retain(|(since, _)| since.elapsed() < IDLE);
            !senders.is_empty()
        });
        let senders = idle.entry(origin).or_default();
        if senders.len() < MAX_IDLE {
            senders.push((Instant::now(), sender));
        }
    }

    async fn connect(&self, origin: &Origin) -> Result<Sender, RegistryError> {
        let host = origin.authority();
        let proxy = self.settings.proxy.as_ref().filter(|_| !self.settings.is_direct(origin.name()));
        let stream = match proxy {
            None => self.tcp(origin).await?,
            Some(proxy) => {
                let at = Url::parse(&proxy.address)?.origin;
                let stream = self.tcp(&at).await?;
                if origin.scheme == Scheme::Https { self.tunnel(stream, &at, proxy, origin).await? } else { stream }
            }
        };
        match origin.scheme {
            Scheme::Http => self.handshake(stream, &host).await,
            Scheme::Https => {
                let config = self.authorities.of(&self.settings, &host)?;
                let bad = |why: String| RegistryError::Tls { host: host.clone(), why };
                let name =
                    rustls_pki_types::ServerName::try_from(origin.name().to_owned()).map_err(|e| bad(e.to_string()))?;
                let slow = |_| RegistryError::Slow { host: host.clone(), what: "its TLS did not begin in time".into() };
                let connecting = TlsConnector::from(config).connect(name, stream);
                let stream =
                    timeout(self.limits.connect, connecting).await.map_err(slow)?.map_err(|error| {
                        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                            Some(error) => bad(error.to_string()),
                            None => RegistryError::Connect { host: host.clone(), why: error.to_string() },
                        }
                    })?;
                self.handshake(stream, &host).await
            }
        }
    }

    async fn handshake(&self, stream: impl Stream + 'static, host: &str) -> Result<Sender, RegistryError> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(READ_BYTES).max_headers(MAX_HEADERS);
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| RegistryError::Connect { host: host.to_owned(), why: error.to_string() })?;
        // It ends with its sender; what went wrong is seen by who reads.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    async fn tcp(&self, origin: &Origin) -> Result<TcpStream, RegistryError> {
        let host = origin.authority();
        let resolving = tokio::net::lookup_host((origin.name(), origin.port));
        let slow = || RegistryError::Slow { host: host.clone(), what: "its address did not come in time".into() };
        let addresses: Vec<SocketAddr> = timeout(self.limits.head, resolving)
            .await
            .map_err(|_| slow())?
            .map_err(|error| RegistryError::Resolve { host: host.clone(), why: error.to_string() })?
            .take(MAX_ADDRESSES)
            .collect();
        let mut why = "it has no address".to_owned();
        for address in addresses {
            match timeout(self.limits.connect, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Requests are one packet each; waiting for a second one only delays them.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => why = format!("{address}: {error}"),
                Err(_) => why = format!("{address}: no answer in time"),
            }
        }
        Err(RegistryError::Connect { host, why })
    }

    /// Asks the proxy for a connection (RFC 9110, section 9.3.6).
    async fn tunnel(
        &self,
        mut stream: TcpStream,
        at: &Origin,
        proxy: &crate::settings::Proxy,
        to: &Origin,
    ) -> Result<TcpStream, RegistryError> {
        let failed = |why: String| RegistryError::Proxy { proxy: at.authority(), host: to.authority(), why };
        let target = format!("{}:{}", to.host, to.port);
        let credential = proxy.credential.as_ref().and_then(crate::Credential::basic);
        let credential = credential.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
        let asked = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{credential}\r\n");
        let asking = async {
            stream.write_all(asked.as_bytes()).await?;
            let mut head = Vec::new();
            // Byte by byte: what follows the head belongs to the registry.
            while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_CONNECT_HEAD {
                head.push(stream.read_u8().await?);
            }
            Ok::<_, std::io::Error>(head)
        };
        let head = timeout(self.limits.head, asking).await.map_err(|_| failed("it did not answer in time".into()))?;
        let head = head.map_err(|error| failed(error.to_string()))?;
        let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
        let accepted = line.split(' ').nth(1).is_some_and(|status| status.len() == 3 && status.starts_with('2'));
        if accepted {
            Ok(stream)
        } else {
            Err(failed(format!("it answered {:?}", line.chars().take(100).collect::<String>())))
        }
    }
}

impl Answer {
    /// Who gave it.
    pub(crate) fn host(&self) -> String {
        self.origin.authority()
    }

    /// Reads the whole body, of at most `limit` bytes.
    pub(crate) async fn whole(
        mut self,
        transport: &Transport,
        what: &'static str,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let host = self.origin.authority();
        let too_large = || RegistryError::TooLarge { host: host.clone(), what, limit };
        let stated = stated_length(&self.response);
        if stated.is_some_and(|stated| stated > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let mut pace = Pace::new(transport.limits);
        while let Some(piece) = self.piece(&mut pace, what).await? {
            if bytes.len() as u64 + piece.len() as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
        }
        if let Some(expected) = stated.filter(|stated| *stated != bytes.len() as u64) {
            return Err(RegistryError::Truncated { host, what: what.to_owned(), got: bytes.len() as u64, expected });
        }
        transport.keep(self.origin, self.sender).await;
        Ok(bytes)
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn piece(&mut self, pace: &mut Pace, what: &str) -> Result<Option<Bytes>, RegistryError> {
        let host = self.origin.authority();
        loop {
            let slow = |what| RegistryError::Slow { host: host.clone(), what };
            let Ok(frame) = timeout(pace.left(), self.response.body_mut().frame()).await else {
                return Err(slow(format!("{what} stopped coming")));
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    let why = format!("{what}: {error}");
                    return Err(if error.is_parse() || error.is_body_write_aborted() {
                        RegistryError::Malformed { host, why }
                    } else {
                        RegistryError::Connect { host, why }
                    });
                }
                // Trailers say nothing that is used.
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data()
                        && !bytes.is_empty()
                    {
                        if !pace.took(bytes.len() as u64) {
                            return Err(slow(format!("{what} drips")));
                        }
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// Keeps the connection, after the end of the body.
    pub(crate) async fn finished(self, transport: &Transport) {
        transport.keep(self.origin, self.sender).await;
    }
}

/// What `Content-Length` says.
pub(crate) fn stated_length<T>(response: &Response<T>) -> Option<u64> {
    response.headers().get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Holds a body to its least rate.
pub(crate) struct Pace {
    limits: Limits,
    since: Instant,
    bytes: u64,
}

impl Pace {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, since: Instant::now(), bytes: 0 }
    }

    /// What is left of the present window.
    fn left(&self) -> Duration {
        self.limits.window.saturating_sub(self.since.elapsed()).max(Duration::from_millis(1))
    }

    /// Counts bytes; false if the window is over and had too few. The time of a receiver that is slow itself does not count.
    fn took(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        if self.bytes >= self.limits.least_bytes {
            self.restart();
            return true;
        }
        self.since.elapsed() < self.limits.window
    }

    /// Begins a new window, after a wait that is not the sender's.
    pub(crate) fn restart(&mut self) {
        self.since = Instant::now();
        self.bytes = 0;
    }
}

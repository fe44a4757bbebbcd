//! A registry for tests, with images in memory, which misbehaves in the ways that it is told to.
//!
//! A thread for each connection, blocking, HTTP/1.1 written out by hand: what it sends wrongly must be what the test asked for and nothing
//! that a library would mend. It binds a port of the loopback that the kernel picks.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each place of the registry has its own few mischiefs, and does its work with all others"
)]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use byre_image::digest::Digest;

/// What the registry does with requests for blobs (or manifests, where it says so).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Good,
    /// One byte of each blob is another one.
    WrongBlob,
    /// Manifests are others than their digest says.
    WrongManifest,
    /// The connection ends after so many bytes of a body, this many times.
    CutAfter {
        /// Bytes.
        bytes: usize,
        /// How often.
        times: usize,
    },
    /// As `CutAfter` once, and the rest comes from another blob.
    ChangedMidway(usize),
    /// A body without a length that does not end.
    EndlessBlob,
    /// A manifest without a length that does not end.
    EndlessManifest,
    /// A manifest whose length is said to be huge.
    GiantManifest,
    /// A length that is not the blob's.
    WrongLength,
    /// A header that does not end.
    EndlessHead,
    /// An answer that is not HTTP.
    NotHttp,
    /// Redirects to itself without end.
    RedirectLoop,
    /// Redirects blobs to this address.
    RedirectTo(String),
    /// Ranges are answered from the beginning, with 200.
    RangeIgnored,
    /// Ranges are answered with another range.
    RangeWrong,
    /// A byte now and then.
    Drip,
    /// No answer at all.
    Silent,
    /// This status, this many times, with this Retry-After.
    Status {
        /// The status.
        status: u16,
        /// How often.
        times: usize,
        /// The header, if any.
        retry_after: Option<String>,
    },
    /// This challenge with every 401.
    Challenge(String),
}

/// How the registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// By anyone.
    Open,
    /// With this user name and password.
    Basic(String, String),
    /// With a token, which is given for this user name and password, or to anyone if there are none.
    Token(Option<(String, String)>),
}

struct State {
    behaviour: Behaviour,
    auth: Auth,
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    blobs: BTreeMap<String, Vec<u8>>,
    seen: Vec<String>,
    authorizations: Vec<(String, String)>,
    scheme: &'static str,
}

/// A running registry; it ends with this value.
pub struct TestRegistry {
    state: Arc<Mutex<State>>,
    misbehaved: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    port: u16,
    ca_pem: Option<String>,
}

impl TestRegistry {
    /// Begins to serve on a port of 127.0.0.1; with TLS if `tls`.
    ///
    /// # Panics
    /// If there is no port or no certificate to be had.
    #[must_use]
    pub fn start(tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let (tls_config, ca_pem) = if tls { certificate() } else { (None, None) };
        let state = State {
            behaviour: Behaviour::Good,
            auth: Auth::Open,
            manifests: BTreeMap::new(),
            blobs: BTreeMap::new(),
            seen: Vec::new(),
            authorizations: Vec::new(),
            scheme: if tls { "https" } else { "http" },
        };
        let (state, misbehaved) = (Arc::new(Mutex::new(state)), Arc::new(AtomicUsize::new(0)));
        let ended = Arc::new(AtomicBool::new(false));
        let this = Self { state: Arc::clone(&state), misbehaved: Arc::clone(&misbehaved), ended, port, ca_pem };
        let ended = Arc::clone(&this.ended);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let serving = Serving { state: Arc::clone(&state), misbehaved: Arc::clone(&misbehaved) };
                let tls_config = tls_config.clone();
                std::thread::spawn(move || {
                    // A client that goes away is no fault of the registry.
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                    let _ = match tls_config {
                        None => serving.connection(stream),
                        Some(config) => rustls::ServerConnection::new(config)
                            .map_err(io::Error::other)
                            .and_then(|tls| serving.connection(rustls::StreamOwned::new(tls, stream))),
                    };
                });
            }
        });
        this
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What image names begin with.
    #[must_use]
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority of its certificate, with TLS.
    #[must_use]
    pub fn ca_pem(&self) -> Option<String> {
        self.ca_pem.clone()
    }

    /// From now on it does this.
    pub fn behave(&self, behaviour: Behaviour) {
        self.misbehaved.store(0, Ordering::Release);
        self.locked().behaviour = behaviour;
    }

    /// From now on it wants this.
    pub fn want(&self, auth: Auth) {
        self.locked().auth = auth;
    }

    /// Adds a blob.
    pub fn add_blob(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.locked().blobs.insert(digest.to_string(), bytes);
        digest
    }

    /// Adds a manifest under its digest and under `tag`.
    pub fn add_manifest(&self, tag: &str, media_type: &str, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        let mut state = self.locked();
        state.manifests.insert(digest.to_string(), (media_type.to_owned(), bytes.clone()));
        state.manifests.insert(tag.to_owned(), (media_type.to_owned(), bytes));
        digest
    }

    /// Adds the one image of an OCI archive under `tag`; gives the digest of its manifest.
    ///
    /// # Panics
    /// If it is no such archive.
    pub fn add_archive(&self, tag: &str, archive: &[u8]) -> Digest {
        let mut tar = byre_image::tar::TarReader::new(archive);
        let mut files = BTreeMap::new();
        while let Some(entry) = tar.next_entry().expect("a good archive") {
            let mut bytes = Vec::new();
            tar.read_to_end(&mut bytes).expect("a good archive");
            files.insert(String::from_utf8_lossy(&entry.path).into_owned(), bytes);
        }
        let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).expect("an index");
        let text = |name: &str| index["manifests"][0][name].as_str().unwrap_or_default().to_owned();
        let (digest, media_type) = (text("digest"), text("mediaType"));
        for (name, bytes) in files {
            match name.strip_prefix("blobs/sha256/") {
                Some(hex) if digest.ends_with(hex) => {
                    self.add_manifest(tag, &media_type, bytes);
                }
                Some(_) => {
                    self.add_blob(bytes);
                }
                None => {}
            }
        }
        digest.parse().expect("a digest")
    }

    /// The requests that came: method and target.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.locked().seen.clone()
    }

    /// The `Authorization` headers that came, with their targets.
    #[must_use]
    pub fn authorizations(&self) -> Vec<(String, String)> {
        self.locked().authorizations.clone()
    }

    /// Forgets what came.
    pub fn forget(&self) {
        let mut state = self.locked();
        state.seen.clear();
        state.authorizations.clear();
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the listener; if it is gone already, all the better.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// The names of its certificate: of this machine for itself, and for a guest of QEMU's user network.
const NAMES: [&str; 2] = ["localhost", "10.0.2.2"];

type TlsConfig = (Option<Arc<rustls::ServerConfig>>, Option<String>);

fn certificate() -> TlsConfig {
    let made = rcgen::generate_simple_self_signed(NAMES.map(str::to_owned)).expect("a certificate");
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a server's configuration");
    (Some(Arc::new(config)), Some(made.cert.pem()))
}

struct Serving {
    state: Arc<Mutex<State>>,
    misbehaved: Arc<AtomicUsize>,
}

struct Asked {
    target: String,
    host: String,
    range: Option<usize>,
    authorization: Option<String>,
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Asked>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut authorization, mut length, mut host) = (None, None, 0, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.trim().split_once(": ").unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "host" => host = value.to_owned(),
            "range" => range = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok(),
            "authorization" => authorization = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    io::copy(&mut reader.take(length), &mut io::sink())?;
    Ok(Some(Asked { target, host, range, authorization }))
}

fn answer(to: &mut impl Write, status: &str, headers: &[(&str, String)], body: &[u8]) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    to.write_all(head.as_bytes())?;
    to.write_all(b"\r\n")?;
    to.write_all(body)?;
    to.flush()
}

impl Serving {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self, stream: impl Read + Write) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        while let Some(asked) = read_head(&mut reader)? {
            let behaviour = {
                let mut state = self.locked();
                state.seen.push(asked.target.clone());
                if let Some(value) = &asked.authorization {
                    state.authorizations.push((asked.target.clone(), value.clone()));
                }
                state.behaviour.clone()
            };
            if !self.request(&asked, &behaviour, reader.get_mut())? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether it is this request's turn to misbehave.
    fn turn(&self, times: usize) -> bool {
        self.misbehaved.fetch_add(1, Ordering::AcqRel) < times
    }

    /// Answers; false if the connection is to end.
    fn request(&self, asked: &Asked, behaviour: &Behaviour, to: &mut impl Write) -> io::Result<bool> {
        if asked.target.starts_with("/token") {
            return self.token(asked, to).map(|()| true);
        }
        match behaviour {
            Behaviour::NotHttp => {
                to.write_all(b"SSH-2.0-OpenSSH_9.2\r\n")?;
                return Ok(false);
            }
            Behaviour::EndlessHead => {
                to.write_all(b"HTTP/1.1 200 OK\r\n")?;
                while to.write_all(b"X-More: and more of the same, and more of the same\r\n").is_ok() {}
                return Ok(false);
            }
            Behaviour::Silent => {
                std::thread::sleep(Duration::from_secs(5));
                return Ok(false);
            }
            Behaviour::Status { status, times, retry_after } if self.turn(*times) => {
                let headers: Vec<_> = retry_after.iter().map(|value| ("Retry-After", value.clone())).collect();
                let body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
                answer(to, &format!("{status} Status"), &headers, body)?;
                return Ok(true);
            }
            _ => {}
        }
        if let Some(challenge) = self.challenge(asked, behaviour) {
            answer(to, "401 Unauthorized", &[("WWW-Authenticate", challenge)], b"{}")?;
            return Ok(true);
        }
        let path = asked.target.split('?').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        if path.contains("/manifests/") {
            self.manifest(last, behaviour, to)
        } else if path.contains("/blobs/") {
            self.blob(last, asked, behaviour, to)
        } else {
            answer(to, "404 Not Found", &[], b"{}").map(|()| true)
        }
    }

    fn challenge(&self, asked: &Asked, behaviour: &Behaviour) -> Option<String> {
        let state = self.locked();
        let given = asked.authorization.as_deref().unwrap_or_default();
        if let Behaviour::Challenge(text) = behaviour {
            return Some(text.clone());
        }
        match &state.auth {
            Auth::Open => None,
            Auth::Basic(user, word) => {
                let right = format!("Basic {}", STANDARD.encode(format!("{user}:{word}")));
                (given != right).then(|| "Basic realm=\"test\"".to_owned())
            }
            Auth::Token(_) => {
                let realm = format!("{}://{}/token", state.scheme, asked.host);
                (given != "Bearer good-token").then(|| format!("Bearer realm=\"{realm}\",service=\"test\""))
            }
        }
    }

    fn token(&self, asked: &Asked, to: &mut impl Write) -> io::Result<()> {
        let auth = self.locked().auth.clone();
        let right = match &auth {
            Auth::Token(Some((user, word))) => Some(format!("Basic {}", STANDARD.encode(format!("{user}:{word}")))),
            Auth::Token(None) | Auth::Open | Auth::Basic(..) => None,
        };
        if right.is_some() && asked.authorization != right {
            return answer(to, "401 Unauthorized", &[], br#"{"details":"incorrect username or password"}"#);
        }
        answer(to, "200 OK", &[], br#"{"token":"good-token","expires_in":300}"#)
    }

    fn manifest(&self, which: &str, behaviour: &Behaviour, to: &mut impl Write) -> io::Result<bool> {
        let Some((media_type, mut bytes)) = self.locked().manifests.get(which).cloned() else {
            let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            return answer(to, "404 Not Found", &[], body).map(|()| true);
        };
        let digest = Digest::of(&bytes);
        let headers = [("Content-Type", media_type), ("Docker-Content-Digest", digest.to_string())];
        match behaviour {
            Behaviour::EndlessManifest => {
                to.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
                while to.write_all(&[b' '; 64 << 10]).is_ok() {}
                return Ok(false);
            }
            Behaviour::GiantManifest => {
                to.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")?;
                return Ok(false);
            }
            Behaviour::WrongManifest => bytes.push(b' '),
            _ => {}
        }
        answer(to, "200 OK", &headers, &bytes).map(|()| true)
    }

    fn blob(&self, which: &str, asked: &Asked, behaviour: &Behaviour, to: &mut impl Write) -> io::Result<bool> {
        let Some(mut bytes) = self.locked().blobs.get(which).cloned() else {
            return answer(to, "404 Not Found", &[], b"{}").map(|()| true);
        };
        let total = bytes.len();
        let mut status = "200 OK".to_owned();
        let mut headers = Vec::new();
        match behaviour {
            Behaviour::WrongBlob => bytes[total / 2] ^= 1,
            Behaviour::RedirectLoop => {
                let location = format!("{}?again=x", asked.target.split('?').next().unwrap_or_default());
                return answer(to, "307 Temporary Redirect", &[("Location", location)], b"").map(|()| true);
            }
            Behaviour::RedirectTo(base) => {
                let location = format!("{base}/v2/elsewhere/blobs/{which}");
                return answer(to, "307 Temporary Redirect", &[("Location", location)], b"").map(|()| true);
            }
            Behaviour::EndlessBlob => {
                to.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
                to.write_all(&bytes)?;
                while to.write_all(&[0; 64 << 10]).is_ok() {}
                return Ok(false);
            }
            Behaviour::WrongLength => bytes.push(0),
            Behaviour::ChangedMidway(_) if asked.range.is_some() => bytes.iter_mut().for_each(|byte| *byte ^= 0x55),
            _ => {}
        }
        if let Some(start) = asked.range.filter(|start| *start < total)
            && *behaviour != Behaviour::RangeIgnored
        {
            let named = if *behaviour == Behaviour::RangeWrong { start + 1 } else { start };
            status = "206 Partial Content".to_owned();
            headers.push(("Content-Range", format!("bytes {named}-{}/{total}", total - 1)));
            bytes.drain(..start);
        }
        // Small ones come whole: there would be nothing to resume.
        let large = total > 64 << 10;
        let cut = match behaviour {
            _ if !large => None,
            Behaviour::CutAfter { bytes, times } if self.turn(*times) => Some(*bytes),
            // So that there is something to resume.
            Behaviour::ChangedMidway(at) | Behaviour::CutAfter { bytes: at, .. }
                if asked.range.is_none() && self.turn(1) =>
            {
                Some(*at)
            }
            Behaviour::RangeIgnored | Behaviour::RangeWrong if self.turn(1) => Some(total / 2),
            _ => None,
        };
        if let Some(cut) = cut.filter(|cut| *cut < bytes.len()) {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", bytes.len());
            to.write_all(head.as_bytes())?;
            for (name, value) in &headers {
                to.write_all(format!("{name}: {value}\r\n").as_bytes())?;
            }
            to.write_all(b"\r\n")?;
            to.write_all(&bytes[..cut])?;
            to.flush()?;
            return Ok(false);
        }
        if *behaviour == Behaviour::Drip {
            to.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", bytes.len()).as_bytes())?;
            for byte in bytes.chunks(1) {
                to.write_all(byte)?;
                to.flush()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            return Ok(false);
        }
        answer(to, &status, &headers, &bytes).map(|()| true)
    }
}

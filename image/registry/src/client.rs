//! What a registry is asked: manifests and blobs, from its mirrors first, with authentication, redirects, tries and resumption.
//!
//! ```text
//! blob: for each endpoint: request from where we are -> pieces to the receiver -> broken? wait, again from where we are now
//! ```
//! Bytes are passed on as they come and never hashed here: their receiver does that, and asks once more without the mirrors
//! if they were not what their digest says.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use byre_image::digest::Digest;
use byre_image::reference::Reference;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
};
use http::header::{RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::challenge::{self, Challenge};
use crate::credentials::Credential;
use crate::error::{RegistryError, said};
use crate::settings::{Limits, Settings};
use crate::token;
use crate::transport::{Answer, Pace, Transport, stated_length};
use crate::url::{Origin, Scheme, Url};

/// What we call ourselves.
pub(crate) const AGENT: &str = concat!("byre/", env!("CARGO_PKG_VERSION"));
/// The manifests that are understood.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Bytes of an error's body that are read for its words.
const MAX_WORDS_LEN: u64 = 16 << 10;
/// Authorizations that are remembered.
const MAX_REMEMBERED: usize = 64;
/// A token is not used any more so long before it ends.
const BEFORE_END: Duration = Duration::from_secs(10);
/// How long it is remembered that an origin wants a password.
const BASIC_LIFE: Duration = Duration::from_secs(300);
/// Times that one blob is resumed, whatever progress it makes: a line that breaks more often is no line.
const MAX_RESUMPTIONS: u32 = 100;

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    domain: String,
    path: String,
}

impl From<&Reference> for Repository {
    fn from(reference: &Reference) -> Self {
        Self { domain: reference.domain().to_owned(), path: reference.path().to_owned() }
    }
}

impl std::fmt::Display for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)
    }
}

/// A manifest as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its media type; empty if the registry names none.
    pub media_type: String,
    /// The digest that the registry states, as text; not compared with anything.
    pub stated_digest: Option<String>,
}

/// A blob that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Blob<'a> {
    /// Where.
    pub repository: &'a Repository,
    /// Which.
    pub digest: &'a Digest,
    /// Its length, from the manifest.
    pub size: u64,
    /// What the receiver has already.
    pub offset: u64,
    /// Only from the registry itself: a mirror has given something else.
    pub origin_only: bool,
}

/// One place that is asked.
struct Endpoint {
    /// Origin and prefix, without a `/` at the end.
    base: Url,
    credential: Option<Credential>,
    mirror: bool,
}

/// Why one request failed, and how long the other side wants to be left alone.
struct Failed {
    error: RegistryError,
    wait: Option<Duration>,
}

impl From<RegistryError> for Failed {
    fn from(error: RegistryError) -> Self {
        Self { error, wait: None }
    }
}

/// An authorization that worked.
struct Remembered {
    origin: Origin,
    path: String,
    who: Option<Digest>,
    value: HeaderValue,
    until: Instant,
}

/// A client; cheap to share behind an `Arc`.
pub struct Client {
    transport: Transport,
    remembered: Mutex<Vec<Remembered>>,
}

impl Client {
    /// A client with these settings, which have been checked.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self::with_limits(settings, Limits::default())
    }

    /// As [`Client::new`], with other limits.
    #[must_use]
    pub fn with_limits(settings: Settings, limits: Limits) -> Self {
        Self { transport: Transport::new(settings, limits), remembered: Mutex::default() }
    }

    /// Fetches a manifest or index; `which` is a tag or a digest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn manifest(
        &self,
        repository: &Repository,
        which: &str,
        credential: Option<&Credential>,
        origin_only: bool,
    ) -> Result<Body, RegistryError> {
        let limits = self.transport.limits;
        let mut last =
            RegistryError::NotFound { host: repository.domain.clone(), what: format!("{repository}:{which}") };
        for endpoint in self.endpoints(repository, credential, origin_only)? {
            let mut tried = 0;
            loop {
                tried += 1;
                let failed = match self.try_manifest(&endpoint, repository, which).await {
                    Ok(body) => return Ok(body),
                    Err(failed) => failed,
                };
                let tries = if endpoint.mirror { 1 } else { limits.tries };
                match next_wait(&limits, &failed, tried, tries) {
                    Ok(wait) => tokio::time::sleep(wait).await,
                    Err(error) => {
                        last = error;
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    async fn try_manifest(&self, endpoint: &Endpoint, repository: &Repository, which: &str) -> Result<Body, Failed> {
        let what = format!("{repository}:{which}");
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(MANIFESTS));
        let answer = self.get(endpoint, repository, &format!("manifests/{which}"), headers, &what).await?;
        let text = |name: &str| {
            answer.response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let media_type = text(CONTENT_TYPE.as_str()).split(';').next().unwrap_or_default().trim().to_owned();
        let stated_digest = Some(text("docker-content-digest")).filter(|digest| !digest.is_empty());
        let bytes = answer.whole(&self.transport, "the manifest", self.transport.limits.manifest_bytes).await?;
        Ok(Body { bytes, media_type, stated_digest })
    }

    /// Fetches a blob from `blob.offset` on into `sink`, exactly to its stated end.
    ///
    /// # Errors
    /// [`RegistryError`]; what was sent until then is good to resume from.
    pub async fn blob(
        &self,
        blob: Blob<'_>,
        credential: Option<&Credential>,
        sink: &mpsc::Sender<Bytes>,
    ) -> Result<(), RegistryError> {
        let limits = self.transport.limits;
        let mut at = blob.offset.min(blob.size);
        let mut last = RegistryError::NotFound { host: blob.repository.domain.clone(), what: blob.digest.to_string() };
        let mut resumed = 0;
        for endpoint in self.endpoints(blob.repository, credential, blob.origin_only)? {
            let mut tried = 0;
            loop {
                tried += 1;
                let before = at;
                let failed = match self.try_blob(&endpoint, &blob, &mut at, sink).await {
                    Ok(()) => return Ok(()),
                    Err(failed) if failed.error == RegistryError::Cancelled => return Err(failed.error),
                    Err(failed) => failed,
                };
                if at - before >= limits.least_bytes {
                    tried = 1;
                }
                resumed += 1;
                let tries = match () {
                    () if resumed > MAX_RESUMPTIONS => 0,
                    () if endpoint.mirror && at == before => 1,
                    () => limits.tries,
                };
                match next_wait(&limits, &failed, tried, tries) {
                    Ok(wait) => tokio::time::sleep(wait).await,
                    Err(error) => {
                        last = error;
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    async fn try_blob(
        &self,
        endpoint: &Endpoint,
        blob: &Blob<'_>,
        at: &mut u64,
        sink: &mpsc::Sender<Bytes>,
    ) -> Result<(), Failed> {
        let what = format!("blob {}", blob.digest);
        let mut headers = HeaderMap::new();
        if *at > 0 {
            let range = HeaderValue::from_str(&format!("bytes={at}-"));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let path = format!("blobs/{}", blob.digest);
        let mut answer = self.get(endpoint, blob.repository, &path, headers, &what).await?;
        let host = endpoint.base.origin.authority();
        // Where a range is ignored, the beginning comes once more.
        let mut skip = begins_at(&answer, *at, blob.size, &host)?;
        let coming = blob.size - *at + skip;
        if let Some(found) = stated_length(&answer.response).filter(|stated| *stated != coming) {
            return Err(RegistryError::Size { host, what, expected: coming, found }.into());
        }
        let mut pace = Pace::new(self.transport.limits);
        while let Some(mut piece) = answer.piece(&mut pace, &what).await? {
            if skip > 0 {
                let skipped = skip.min(piece.len() as u64);
                skip -= skipped;
                piece = piece.slice(usize::try_from(skipped).unwrap_or(usize::MAX)..);
            }
            if piece.len() as u64 > blob.size - *at {
                return Err(RegistryError::TooLarge { host, what: "a blob", limit: blob.size }.into());
            }
            if piece.is_empty() {
                continue;
            }
            *at += piece.len() as u64;
            if sink.capacity() == 0 {
                // The receiver is the slower one, and its time is not the sender's.
                sink.send(piece).await.map_err(|_| RegistryError::Cancelled)?;
                pace.restart();
            } else {
                sink.send(piece).await.map_err(|_| RegistryError::Cancelled)?;
            }
        }
        if *at < blob.size {
            return Err(RegistryError::Truncated { host, what, got: *at, expected: blob.size }.into());
        }
        answer.finished(&self.transport).await;
        Ok(())
    }

    /// The mirrors of a registry and then the registry. A credential that was given for the registry is not for its mirrors.
    fn endpoints(
        &self,
        repository: &Repository,
        credential: Option<&Credential>,
        origin_only: bool,
    ) -> Result<Vec<Endpoint>, RegistryError> {
        let settings = &self.transport.settings;
        let host = settings.hosts.get(&repository.domain);
        let mut endpoints = Vec::new();
        for mirror in host.iter().filter(|_| !origin_only).flat_map(|host| &host.mirrors) {
            let mut base = Url::parse(mirror)?;
            base.target = base.target.trim_end_matches('/').to_owned();
            let credential = settings.hosts.get(&base.origin.authority()).and_then(|host| host.credential.clone());
            endpoints.push(Endpoint { base, credential, mirror: true });
        }
        let scheme = if host.is_some_and(|host| host.plain_http) { "http" } else { "https" };
        let address = if repository.domain == "docker.io" { "registry-1.docker.io" } else { &repository.domain };
        let mut base = Url::parse(&format!("{scheme}://{address}"))?;
        base.target.clear();
        let credential = credential.or_else(|| host?.credential.as_ref()).cloned();
        endpoints.push(Endpoint { base, credential, mirror: false });
        Ok(endpoints)
    }

    /// One request below `/v2/<repository>/`, authenticated and redirected as needed; an answer is a success.
    async fn get(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        path: &str,
        headers: HeaderMap,
        what: &str,
    ) -> Result<Answer, Failed> {
        // A mirror serves several registries under one address (containerd's convention).
        let of = if endpoint.mirror { format!("?ns={}", repository.domain) } else { String::new() };
        let target = format!("{}/v2/{}/{path}{of}", endpoint.base.target, repository.path);
        let first = Url { origin: endpoint.base.origin.clone(), target };
        let mut url = first.clone();
        let mut redirects = 0;
        let mut asked = false;
        loop {
            let at_home = url.origin == first.origin;
            let mut request = Request::new(Full::default());
            *request.headers_mut() = headers.clone();
            request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
            request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if at_home && let Some(value) = self.recall(endpoint, repository) {
                request.headers_mut().insert(AUTHORIZATION, value);
            }
            let answer = self.transport.send(&url, &request).await?;
            let status = answer.response.status();
            if status.is_success() {
                return Ok(answer);
            }
            if status == StatusCode::UNAUTHORIZED && at_home && !asked {
                asked = true;
                self.authenticate(endpoint, repository, &answer).await?;
                url = first.clone();
                continue;
            }
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                redirects += 1;
                if redirects > self.transport.limits.redirects {
                    let (host, limit) = (first.origin.authority(), self.transport.limits.redirects);
                    return Err(RegistryError::Redirects { host, limit }.into());
                }
                url = redirected(&url, &answer)?;
                continue;
            }
            return Err(self.refused(answer, at_home, repository, what).await);
        }
    }

    /// Turns an answer that is no success into its error.
    async fn refused(&self, answer: Answer, at_home: bool, repository: &Repository, what: &str) -> Failed {
        let status = answer.response.status();
        let wait = retry_after(answer.response.headers());
        let host = answer.host();
        // What stands on a page that someone was sent to is nobody's business.
        let said = match answer.whole(&self.transport, "an error", MAX_WORDS_LEN).await {
            Ok(bytes) if at_home => words_of(&bytes),
            Ok(_) | Err(_) => String::new(),
        };
        let error = match status.as_u16() {
            401 | 403 => RegistryError::Denied { host, repository: repository.to_string(), said },
            404 => RegistryError::NotFound { host, what: what.to_owned() },
            416 => RegistryError::Range { host, found: "none: it has less than was fetched already".to_owned() },
            status @ (408 | 429 | 500 | 502 | 503 | 504) => RegistryError::Busy { host, status, tries: 1, said },
            status => RegistryError::Status { host, status, said },
        };
        Failed { error, wait }
    }

    /// Does what the 401 asks for, and remembers the result.
    async fn authenticate(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        answer: &Answer,
    ) -> Result<(), RegistryError> {
        let origin = &endpoint.base.origin;
        self.forget(endpoint, repository);
        let bad = |why: &str| RegistryError::Challenge { host: origin.authority(), why: why.to_owned() };
        let mut challenges = Vec::new();
        let mut why = "it names none";
        for header in answer.response.headers().get_all(WWW_AUTHENTICATE).iter().take(4) {
            match header.to_str().map_err(|_| "the header is not text").and_then(challenge::parse) {
                Ok(found) => challenges.extend(found),
                Err(reason) => why = reason,
            }
        }
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let credential = endpoint.credential.as_ref();
        let (value, life) = match bearer.or(challenges.first()) {
            Some(Challenge::Bearer { realm, service, scope }) => {
                let own = format!("repository:{}:pull", repository.path);
                let scope = scope.as_deref().unwrap_or(&own);
                let asked = token::Asked { registry: origin, realm, service, scope, credential };
                let (token, life) = token::fetch(&self.transport, &asked).await?;
                (format!("Bearer {token}"), life)
            }
            Some(Challenge::Basic) => {
                let value = credential.and_then(Credential::basic).ok_or_else(|| RegistryError::Denied {
                    host: origin.authority(),
                    repository: repository.to_string(),
                    said: String::new(),
                })?;
                (value, BASIC_LIFE)
            }
            None => return Err(bad(why)),
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| bad("what it wants fits no header"))?;
        value.set_sensitive(true);
        self.remember(endpoint, repository, value, life);
        Ok(())
    }

    fn recall(&self, endpoint: &Endpoint, repository: &Repository) -> Option<HeaderValue> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.retain(|one| one.until > Instant::now());
        let who = endpoint.who();
        let fits = |one: &&Remembered| one.is_of(endpoint, repository, who.as_ref());
        remembered.iter().find(fits).map(|one| one.value.clone())
    }

    fn forget(&self, endpoint: &Endpoint, repository: &Repository) {
        let who = endpoint.who();
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.retain(|one| !one.is_of(endpoint, repository, who.as_ref()));
    }

    fn remember(&self, endpoint: &Endpoint, repository: &Repository, value: HeaderValue, life: Duration) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.remove(0);
        }
        let until = Instant::now() + life.saturating_sub(BEFORE_END).max(life / 2);
        let (origin, path) = (endpoint.base.origin.clone(), repository.path.clone());
        remembered.push(Remembered { origin, path, who: endpoint.who(), value, until });
    }
}

impl Endpoint {
    /// What tells one credential from another without keeping it.
    fn who(&self) -> Option<Digest> {
        let text = match self.credential.as_ref()? {
            Credential::Password { username, password } => format!("{username}:{password}"),
            Credential::Identity { token } => token.clone(),
        };
        Some(Digest::of(text.as_bytes()))
    }
}

impl Remembered {
    fn is_of(&self, endpoint: &Endpoint, repository: &Repository, who: Option<&Digest>) -> bool {
        self.origin == endpoint.base.origin && self.path == repository.path && self.who.as_ref() == who
    }
}

/// How long to wait before the next try, or the error to give up with.
fn next_wait(limits: &Limits, failed: &Failed, tried: u32, tries: u32) -> Result<Duration, RegistryError> {
    if !failed.error.is_passing() || tried >= tries {
        let mut error = failed.error.clone();
        if let RegistryError::Busy { tries, .. } = &mut error {
            *tries = tried;
        }
        return Err(error);
    }
    if let Some(wait) = failed.wait.filter(|wait| *wait > limits.longest_wait) {
        if let RegistryError::Busy { host, .. } = &failed.error {
            return Err(RegistryError::Wait { host: host.clone(), wait });
        }
        return Err(failed.error.clone());
    }
    let own = limits.first_wait.saturating_mul(1 << tried.saturating_sub(1).min(16));
    Ok(failed.wait.unwrap_or(own).min(limits.longest_wait))
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822).ok()?;
    Duration::try_from(at - time::OffsetDateTime::now_utc()).ok()
}

/// Where an answer sends us. TLS is not left.
fn redirected(from: &Url, answer: &Answer) -> Result<Url, RegistryError> {
    let location = answer.response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let shown: String = location.split('?').next().unwrap_or_default().chars().take(200).collect();
    let refuse = |why| RegistryError::Redirect { host: from.origin.authority(), to: shown.clone(), why };
    let to = from.join(location).map_err(|_| refuse("it is no address"))?;
    if from.origin.scheme == Scheme::Https && to.origin.scheme == Scheme::Http {
        return Err(refuse("it has no TLS"));
    }
    Ok(to)
}

/// How many bytes of the answer come before `at`.
fn begins_at(answer: &Answer, at: u64, size: u64, host: &str) -> Result<u64, RegistryError> {
    if answer.response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(at);
    }
    let header = answer.response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wrong = || RegistryError::Range { host: host.to_owned(), found: header.chars().take(100).collect() };
    let (range, total) = header.strip_prefix("bytes ").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
    let (start, end) = range.split_once('-').ok_or_else(wrong)?;
    let (start, end): (u64, u64) = (start.parse().map_err(|_| wrong())?, end.parse().map_err(|_| wrong())?);
    let fits = start == at && end.checked_add(1) == Some(size) && (total == "*" || total.parse() == Ok(size));
    if fits { Ok(0) } else { Err(wrong()) }
}

/// A registry's own words in an error's body (distribution specification, "Error Codes"), with a colon before them.
pub(crate) fn words_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<One>,
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct One {
        code: Option<String>,
        message: Option<String>,
    }
    let Ok(errors) = serde_json::from_slice::<Errors>(body) else { return String::new() };
    let first =
        errors.errors.into_iter().next().and_then(|one| one.message.filter(|text| !text.is_empty()).or(one.code));
    said(&first.or(errors.details).unwrap_or_default())
}

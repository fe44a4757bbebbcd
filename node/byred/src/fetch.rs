//! `byred pull` as the image store sees it: a source of manifests and blobs behind a unix socket.
//!
//! What comes over it is not trusted: lengths are bounded here, content is compared with its digest by the store.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use byre_image::archive::MAX_JSON_LEN;
use byre_image::pull::{Fetched, Source, SourceError, SourceFault, Stop, Wanted};
use byre_image::reference::Reference;
use byre_protocol::peer::{FETCH_PIECE_BYTES, FetchAnswer, FetchCall, ImageRefusal, RegistryCredential};
use byre_sandbox::stream;

/// How often a waiting read looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(250);
/// The service itself gives up long before this; if it says nothing at all for so long, it is not working.
const SILENCE: Duration = Duration::from_secs(600);

/// The service, with what its registry is shown.
pub(crate) struct PullService {
    path: PathBuf,
    credential: Option<RegistryCredential>,
    ca_pem: Option<String>,
}

impl PullService {
    pub(crate) fn new(path: PathBuf, credential: Option<RegistryCredential>, ca_pem: Option<String>) -> Self {
        Self { path, credential, ca_pem }
    }

    fn call(&self, call: &FetchCall, stop: &Stop) -> Result<Patient, SourceError> {
        let mut stream = UnixStream::connect(&self.path).map_err(unavailable)?;
        stream.set_read_timeout(Some(TICK)).map_err(unavailable)?;
        stream::write(&mut stream, call).map_err(unavailable)?;
        Ok(Patient { stream, stop: stop.clone() })
    }
}

/// The name of a reference's repository.
fn repository(name: &Reference) -> String {
    format!("{}/{}", name.domain(), name.path())
}

fn unavailable(error: impl std::fmt::Display) -> SourceError {
    let text = format!("the service that talks to registries cannot be reached: {error}; try again in a second");
    SourceError { fault: SourceFault::Unavailable, text }
}

fn unexpected() -> SourceError {
    unavailable("it gave an answer of another kind than asked for")
}

fn refused(code: ImageRefusal, text: String) -> SourceError {
    let fault = match code {
        ImageRefusal::NotFound => SourceFault::NotFound,
        ImageRefusal::Denied => SourceFault::Denied,
        ImageRefusal::Unavailable => SourceFault::Unavailable,
        ImageRefusal::Invalid | ImageRefusal::InUse | ImageRefusal::NoSpace | ImageRefusal::Internal => {
            SourceFault::Invalid
        }
    };
    SourceError { fault, text }
}

/// Waits for bytes as long as they are wanted.
struct Patient {
    stream: UnixStream,
    stop: Stop,
}

impl Read for Patient {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let began = Instant::now();
        loop {
            match self.stream.read(buf) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.stop.is_set() {
                        let cancelled = SourceError { fault: SourceFault::Cancelled, text: "cancelled".to_owned() };
                        return Err(io::Error::other(cancelled));
                    }
                    if began.elapsed() > SILENCE {
                        return Err(error);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Patient {
    fn answer(&mut self) -> Result<FetchAnswer, SourceError> {
        let answer = stream::read(self).map_err(unavailable)?;
        answer.ok_or_else(|| unavailable("it ended without an answer"))
    }
}

impl Source for PullService {
    fn manifest(&self, name: &Reference, which: &str, origin_only: bool, stop: &Stop) -> Result<Fetched, SourceError> {
        let call = FetchCall::Manifest {
            repository: repository(name),
            which: which.to_owned(),
            origin_only,
            credential: self.credential.clone(),
            ca_pem: self.ca_pem.clone(),
        };
        let mut service = self.call(&call, stop)?;
        match service.answer()? {
            FetchAnswer::Manifest { bytes, media_type, stated_digest } => {
                if u64::from(bytes) > MAX_JSON_LEN {
                    return Err(unexpected());
                }
                let mut body = vec![0; usize::try_from(bytes).unwrap_or(0)];
                service.read_exact(&mut body).map_err(unavailable)?;
                Ok(Fetched { bytes: body, media_type, stated_digest })
            }
            FetchAnswer::Refused { code, text } => Err(refused(code, text)),
            FetchAnswer::Blob | FetchAnswer::Done => Err(unexpected()),
        }
    }

    fn blob(&self, name: &Reference, wanted: Wanted, stop: &Stop) -> Result<Box<dyn Read + Send>, SourceError> {
        let Wanted { digest, size, offset, origin_only } = wanted;
        let call = FetchCall::Blob {
            repository: repository(name),
            digest: byre_plan::Digest(*digest.bytes()),
            size,
            offset,
            origin_only,
            credential: self.credential.clone(),
            ca_pem: self.ca_pem.clone(),
        };
        let mut service = self.call(&call, stop)?;
        match service.answer()? {
            FetchAnswer::Blob => Ok(Box::new(Pieces { service, left: 0, ended: None })),
            FetchAnswer::Refused { code, text } => Err(refused(code, text)),
            FetchAnswer::Manifest { .. } | FetchAnswer::Done => Err(unexpected()),
        }
    }
}

/// The pieces of a blob.
struct Pieces {
    service: Patient,
    /// Bytes of the present piece.
    left: usize,
    /// The end, once it came: every later read says it again.
    ended: Option<Result<(), SourceError>>,
}

impl Pieces {
    /// Reads the length of the next piece; 0 is the end, and what follows says whether it is a good one.
    fn next(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        self.service.read_exact(&mut length)?;
        self.left = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if self.left > FETCH_PIECE_BYTES {
            return Err(io::Error::other(unexpected()));
        }
        if self.left == 0 {
            self.ended = Some(match self.service.answer() {
                Ok(FetchAnswer::Done) => Ok(()),
                Ok(FetchAnswer::Refused { code, text }) => Err(refused(code, text)),
                Ok(FetchAnswer::Blob | FetchAnswer::Manifest { .. }) => Err(unexpected()),
                Err(error) => Err(error),
            });
        }
        Ok(())
    }
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.left == 0
            && self.ended.is_none()
            && let Err(error) = self.next()
        {
            let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<SourceError>()).cloned();
            self.ended = Some(Err(reason.unwrap_or_else(|| unavailable(&error))));
        }
        match &self.ended {
            Some(Ok(())) => Ok(0),
            Some(Err(error)) => Err(io::Error::other(error.clone())),
            None => {
                let most = self.left.min(buf.len());
                let n = self.service.read(&mut buf[..most])?;
                if n == 0 {
                    let error = unavailable("it ended in the middle of a blob");
                    self.ended = Some(Err(error.clone()));
                    return Err(io::Error::other(error));
                }
                self.left -= n;
                Ok(n)
            }
        }
    }
}

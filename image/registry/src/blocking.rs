//! The client as a `Source` for threads that wait: for tools and tests that pull without the node's services.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use byre_image::pull::{Fetched, Source, SourceError, SourceFault, Stop, Wanted};
use byre_image::reference::Reference;
use hyper::body::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::client::{Blob, Client, Repository};
use crate::credentials::Credential;
use crate::error::RegistryError;

/// Pieces of a body between the network and its reader.
pub const PIECES: usize = 16;
/// How often a waiting reader looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(250);

/// A registry for code that waits. It has a thread of its own for the network, which ends with it.
pub struct Fetcher {
    handle: Handle,
    /// Dropped: the thread ends.
    _end: oneshot::Sender<()>,
    client: Arc<Client>,
    credential: Option<Credential>,
}

impl Fetcher {
    /// A source that shows `credential` to the registry it is used with.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn new(client: Client, credential: Option<Credential>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new().name("network".to_owned()).spawn(move || {
            // Ends with an error when the sender is gone, which is what is waited for.
            drop(runtime.block_on(ended));
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _end: end, client: Arc::new(client), credential })
    }
}

impl From<RegistryError> for SourceError {
    fn from(error: RegistryError) -> Self {
        Self { fault: fault(&error), text: error.to_string() }
    }
}

/// The class of an error.
#[must_use]
pub fn fault(error: &RegistryError) -> SourceFault {
    match error {
        RegistryError::NotFound { .. } => SourceFault::NotFound,
        RegistryError::Denied { .. } | RegistryError::Token { .. } => SourceFault::Denied,
        RegistryError::Resolve { .. }
        | RegistryError::Connect { .. }
        | RegistryError::Proxy { .. }
        | RegistryError::Slow { .. }
        | RegistryError::Busy { .. }
        | RegistryError::Wait { .. }
        | RegistryError::Truncated { .. } => SourceFault::Unavailable,
        RegistryError::Url(_)
        | RegistryError::Tls { .. }
        | RegistryError::Authorities { .. }
        | RegistryError::Malformed { .. }
        | RegistryError::Status { .. }
        | RegistryError::TooLarge { .. }
        | RegistryError::Size { .. }
        | RegistryError::Range { .. }
        | RegistryError::Redirects { .. }
        | RegistryError::Redirect { .. }
        | RegistryError::Challenge { .. } => SourceFault::Invalid,
        RegistryError::Cancelled => SourceFault::Cancelled,
    }
}

fn cancelled() -> SourceError {
    RegistryError::Cancelled.into()
}

impl Source for Fetcher {
    fn manifest(
        &self,
        repository: &Reference,
        which: &str,
        origin_only: bool,
        stop: &Stop,
    ) -> Result<Fetched, SourceError> {
        let (client, credential) = (Arc::clone(&self.client), self.credential.clone());
        let (repository, which) = (Repository::from(repository), which.to_owned());
        let (sender, mut receiver) = oneshot::channel();
        let task = self.handle.spawn(async move {
            // Nobody is there to take it if the pull was stopped.
            let _ = sender.send(client.manifest(&repository, &which, credential.as_ref(), origin_only).await);
        });
        loop {
            match receiver.try_recv() {
                Ok(result) => {
                    let body = result?;
                    let crate::client::Body { bytes, media_type, stated_digest } = body;
                    return Ok(Fetched { bytes, media_type, stated_digest });
                }
                Err(oneshot::error::TryRecvError::Closed) => return Err(cancelled()),
                Err(oneshot::error::TryRecvError::Empty) if stop.is_set() => {
                    task.abort();
                    return Err(cancelled());
                }
                Err(oneshot::error::TryRecvError::Empty) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn blob(&self, repository: &Reference, wanted: Wanted, stop: &Stop) -> Result<Box<dyn Read + Send>, SourceError> {
        let handle = self.handle.clone();
        let (client, credential) = (Arc::clone(&self.client), self.credential.clone());
        let repository = Repository::from(repository);
        let (sender, pieces) = mpsc::channel(PIECES);
        let task = handle.spawn(async move {
            let Wanted { digest, size, offset, origin_only } = wanted;
            let blob = Blob { repository: &repository, digest: &digest, size, offset, origin_only };
            client.blob(blob, credential.as_ref(), &sender).await
        });
        let stop = stop.clone();
        Ok(Box::new(Pieces { handle, pieces, task: Some(task), piece: Bytes::new(), failed: None, stop }))
    }
}

/// The body of a blob, as it comes.
struct Pieces {
    handle: Handle,
    pieces: mpsc::Receiver<Bytes>,
    task: Option<JoinHandle<Result<(), RegistryError>>>,
    piece: Bytes,
    /// The end, once it came: every later read says it again.
    failed: Option<SourceError>,
    stop: Stop,
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Pieces {
    /// The next piece; `None` at the end.
    fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            if self.stop.is_set() {
                return Err(cancelled());
            }
            let (handle, pieces) = (&self.handle, &mut self.pieces);
            // The first look costs no timer.
            if let Ok(piece) = pieces.try_recv() {
                return Ok(Some(piece));
            }
            match handle.block_on(async { tokio::time::timeout(TICK, pieces.recv()).await }) {
                Err(_) => {}
                Ok(Some(piece)) => return Ok(Some(piece)),
                Ok(None) => {
                    let Some(task) = self.task.take() else { return Ok(None) };
                    return match handle.block_on(task) {
                        Ok(Ok(())) => Ok(None),
                        Ok(Err(error)) => Err(error.into()),
                        Err(_) => Err(cancelled()),
                    };
                }
            }
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = &self.failed {
            return Err(io::Error::other(error.clone()));
        }
        while self.piece.is_empty() {
            match self.next() {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => return Ok(0),
                Err(error) => {
                    self.failed = Some(error.clone());
                    return Err(io::Error::other(error));
                }
            }
        }
        let n = buf.len().min(self.piece.len());
        buf[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

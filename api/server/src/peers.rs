//! Connections to the node's other services: images, logs, figures. One connection is one call; frames are a 32-bit little-endian length and
//! then a message of the protocol.

use std::path::{Path, PathBuf};

use byre_protocol::frame::{self, FrameError, MESSAGE_BYTES};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tonic::Status;

/// Bytes read at once: one log chunk with its head.
const READ_BYTES: usize = 40 * 1024;

/// Why a service did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It cannot be reached.
    #[error("the service at {0} cannot be reached: {1}; it is being restarted, try again in a second")]
    Unreachable(PathBuf, std::io::Error),
    /// It closed the connection in the middle.
    #[error("the service at {0} ended in the middle of an answer: {1}; look at its log and try again")]
    Broken(PathBuf, std::io::Error),
    /// It sent something else than an answer.
    #[error("the service at {0} sent a malformed answer: {1}; the node must run one release")]
    Malformed(PathBuf, FrameError),
}

impl From<PeerError> for Status {
    fn from(error: PeerError) -> Self {
        match &error {
            PeerError::Unreachable(..) | PeerError::Broken(..) => Self::unavailable(error.to_string()),
            PeerError::Malformed(..) => Self::internal(error.to_string()),
        }
    }
}

/// A connection to a service.
pub(crate) struct Peer {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    frame: Vec<u8>,
}

impl Peer {
    /// Connects and sends the call.
    ///
    /// # Errors
    /// If the service is not there.
    pub(crate) async fn call<T: Serialize + Sync>(path: &Path, call: &T) -> Result<Self, PeerError> {
        let stream = UnixStream::connect(path).await.map_err(|error| PeerError::Unreachable(path.into(), error))?;
        let mut peer =
            Self { path: path.into(), stream: BufReader::with_capacity(READ_BYTES, stream), frame: Vec::new() };
        let bytes = frame::encode(call).map_err(|error| PeerError::Malformed(path.into(), error))?;
        let mut message = Vec::with_capacity(bytes.len() + 4);
        message.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        message.extend_from_slice(&bytes);
        peer.write(&message).await?;
        Ok(peer)
    }

    /// Sends raw bytes behind the call.
    ///
    /// # Errors
    /// If the service is gone.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), PeerError> {
        let written = self.stream.get_mut().write_all(bytes).await;
        written.map_err(|error| PeerError::Broken(self.path.clone(), error))
    }

    /// Splits off the writing half, for a call whose answers come while bytes are still being sent.
    #[must_use]
    pub(crate) fn split(self) -> (Reader, Writer) {
        let Self { path, stream, frame } = self;
        // Nothing was read yet: the buffer is empty, so no byte is lost by taking the stream out of it.
        let (read, write) = stream.into_inner().into_split();
        let reader = Reader { path: path.clone(), stream: BufReader::with_capacity(READ_BYTES, read), frame };
        (reader, Writer { path, stream: write })
    }

    /// The next answer, or `None` at a clean end.
    ///
    /// # Errors
    /// If the connection breaks or the answer is malformed.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, PeerError> {
        next(&self.path, &mut self.stream, &mut self.frame).await
    }

    /// The one answer of a call that has one.
    ///
    /// # Errors
    /// As for [`Self::next`], and if there is none.
    pub(crate) async fn answer<T: DeserializeOwned>(&mut self) -> Result<T, PeerError> {
        match self.next().await? {
            Some(answer) => Ok(answer),
            None => Err(PeerError::Broken(self.path.clone(), std::io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// The reading half.
pub(crate) struct Reader {
    path: PathBuf,
    stream: BufReader<tokio::net::unix::OwnedReadHalf>,
    frame: Vec<u8>,
}

impl Reader {
    /// See [`Peer::next`].
    ///
    /// # Errors
    /// See [`Peer::next`].
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, PeerError> {
        next(&self.path, &mut self.stream, &mut self.frame).await
    }
}

/// The writing half. When it is dropped, the service sees the end of the bytes.
pub(crate) struct Writer {
    path: PathBuf,
    stream: tokio::net::unix::OwnedWriteHalf,
}

impl Writer {
    /// See [`Peer::write`].
    ///
    /// # Errors
    /// See [`Peer::write`].
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), PeerError> {
        let written = self.stream.write_all(bytes).await;
        written.map_err(|error| PeerError::Broken(self.path.clone(), error))
    }
}

async fn next<T, R>(path: &Path, stream: &mut R, buffer: &mut Vec<u8>) -> Result<Option<T>, PeerError>
where
    T: DeserializeOwned,
    R: AsyncReadExt + Unpin,
{
    let broken = |error| PeerError::Broken(path.into(), error);
    let mut head = [0; 4];
    if stream.read(&mut head[..1]).await.map_err(broken)? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await.map_err(broken)?;
    let length = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES {
        return Err(PeerError::Malformed(path.into(), FrameError::TooLong(length)));
    }
    buffer.clear();
    buffer.resize(length, 0);
    stream.read_exact(buffer).await.map_err(broken)?;
    frame::decode(buffer).map(Some).map_err(|error| PeerError::Malformed(path.into(), error))
}

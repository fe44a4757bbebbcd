//! Accepting connections. Each becomes a byte stream with a known [`Peer`]; handshakes run beside each other, are bounded in time and number,
//! and cannot hold up those who are already connected.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use byre_api::role::{Role, subject};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::gate::{Origin, Peer};
use crate::say::say;
use crate::tls::NodeTls;

/// TCP connections at a time, handshakes included: a TLS connection holds about 50 KiB, and clients are tools and a scheduler, not the public.
const TCP_CONNECTIONS: usize = 128;
/// Connections over the unix socket at a time.
const UNIX_CONNECTIONS: usize = 128;
/// A handshake takes a few milliseconds; under software emulation a second.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

enum Bytes {
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// An accepted connection.
pub(crate) struct Connection {
    bytes: Bytes,
    peer: Peer,
    /// Makes room for another one when this ends.
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Where accepted connections go.
pub(crate) type Accepted = mpsc::Sender<std::io::Result<Connection>>;

/// Serves a listening unix socket for ever.
///
/// # Errors
/// If the descriptor is not one.
pub(crate) async fn unix(listener: OwnedFd, accepted: Accepted) -> std::io::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(UNIX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
        let (stream, peer) = match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(credentials) => (stream, unix_peer(credentials.uid())),
                Err(_) => continue,
            },
            Err(error) => {
                say(&format!("unix socket: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = Connection { bytes: Bytes::Unix(stream), peer, _permit: permit };
        if accepted.send(Ok(connection)).await.is_err() {
            return Ok(());
        }
    }
}

/// Root is the machine's administrator; whoever else may open the socket looks only.
fn unix_peer(uid: u32) -> Peer {
    let role = if uid == 0 { Role::Admin } else { Role::Reader };
    Peer { origin: Origin::Unix { uid }, role: Some(role), joined: true }
}

/// Serves a listening TCP socket with TLS for ever.
///
/// # Errors
/// If the descriptor is not one.
pub(crate) async fn tcp(listener: OwnedFd, tls: Arc<NodeTls>, accepted: Accepted) -> std::io::Result<()> {
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(TCP_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
        match listener.accept().await {
            Ok((stream, address)) => {
                let (tls, accepted) = (Arc::clone(&tls), accepted.clone());
                tokio::spawn(async move {
                    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, &tls, permit)).await {
                        // The server has ended if nobody takes it.
                        Ok(Ok(connection)) => drop(accepted.send(Ok(connection)).await),
                        Ok(Err(error)) => say(&format!("connection from {address} refused: {error}")),
                        Err(_) => say(&format!("connection from {address} refused: no handshake in time")),
                    }
                });
            }
            Err(error) => {
                say(&format!("TCP socket: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handshake(stream: TcpStream, tls: &NodeTls, permit: OwnedSemaphorePermit) -> std::io::Result<Connection> {
    stream.set_nodelay(true)?;
    let serving = tls.serving();
    let stream = TlsAcceptor::from(serving.config).accept(stream).await?;
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    let leaf = leaf.ok_or_else(|| std::io::Error::other("the client showed no certificate"))?;
    let who = subject(leaf).map_err(std::io::Error::other)?;
    let origin = Origin::Certificate { name: who.name, serial: who.serial };
    let peer = Peer { origin, role: who.role, joined: serving.joined };
    Ok(Connection { bytes: Bytes::Tls(Box::new(stream)), peer, _permit: permit })
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut self.bytes {
            Bytes::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Bytes::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match &mut self.bytes {
            Bytes::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Bytes::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.bytes {
            Bytes::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Bytes::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.bytes {
            Bytes::Unix(stream) => stream.is_write_vectored(),
            Bytes::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.bytes {
            Bytes::Unix(stream) => Pin::new(stream).poll_flush(context),
            Bytes::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.bytes {
            Bytes::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Bytes::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

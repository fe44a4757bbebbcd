//! Accepting connections. Each becomes a byte stream with a known [`Peer`]; handshakes run beside each other, are bounded in time and number,
//! and cannot hold up those who are already connected.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use byre_api::role::{Role, subject};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::convert;
use crate::gate::{Origin, Peer};
use crate::say::say;
use crate::tls::NodeTls;

/// TCP connections at a time, handshakes included: a TLS connection holds about 50 KiB, and clients are tools and a scheduler, not the public.
const TCP_CONNECTIONS: usize = 128;
/// Connections over the unix socket at a time.
const UNIX_CONNECTIONS: usize = 128;
/// A handshake takes a few milliseconds; under software emulation a second.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

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

/// A listening socket of either kind.
trait Listener: AsFd {
    /// An accepted connection.
    type Accepted;

    /// Waits for the next one.
    async fn next(&self) -> std::io::Result<Self::Accepted>;
}

impl Listener for UnixListener {
    type Accepted = UnixStream;

    async fn next(&self) -> std::io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Accepted = (TcpStream, SocketAddr);

    async fn next(&self) -> std::io::Result<(TcpStream, SocketAddr)> {
        self.accept().await
    }
}

/// What a failed accept means.
enum Failed {
    /// That connection broke before it was taken.
    One,
    /// No descriptor is left, while the connection stays in the queue.
    NoDescriptor,
    /// The socket is of no use any more.
    Listener,
}

fn failed(error: &std::io::Error) -> Failed {
    match Errno::from_io_error(error) {
        Some(
            Errno::INTR
            | Errno::PERM
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
            | Errno::CONNABORTED
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH,
        ) => Failed::One,
        Some(Errno::MFILE | Errno::NFILE) => Failed::NoDescriptor,
        Some(_) | None => Failed::Listener,
    }
}

/// Takes connections from a listener. Holds one descriptor back: when no other is left, it makes room to take a connection and close it,
/// so that a client is told at once and nothing has to be tried again after a while.
struct Door<L> {
    listener: L,
    spare: Option<OwnedFd>,
}

impl<L: Listener> Door<L> {
    fn new(listener: L) -> std::io::Result<Self> {
        let spare = Some(listener.as_fd().try_clone_to_owned()?);
        Ok(Self { listener, spare })
    }

    /// The next connection.
    ///
    /// # Errors
    /// If the listener fails. The service then ends, and PID 1 starts it anew in its own time.
    async fn next(&mut self) -> std::io::Result<L::Accepted> {
        loop {
            let error = match self.listener.next().await {
                Ok(accepted) => return Ok(accepted),
                Err(error) => error,
            };
            match (failed(&error), self.spare.take()) {
                (Failed::One, spare) => self.spare = spare,
                (Failed::NoDescriptor, Some(spare)) => {
                    say(&format!("a connection is turned away: {error}"));
                    drop(spare);
                    drop(self.listener.next().await);
                    self.spare = self.listener.as_fd().try_clone_to_owned().ok();
                }
                (Failed::NoDescriptor, None) | (Failed::Listener, _) => return Err(error),
            }
        }
    }
}

/// Serves a listening unix socket for ever.
///
/// # Errors
/// If the descriptor is not one, or fails.
pub(crate) async fn unix(listener: OwnedFd, accepted: Accepted) -> std::io::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let mut door = Door::new(UnixListener::from_std(listener)?)?;
    let room = Arc::new(Semaphore::new(UNIX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
        let stream = door.next().await?;
        let Ok(credentials) = stream.peer_cred() else { continue };
        let peer = unix_peer(credentials.uid());
        let connection = Connection { bytes: Bytes::Unix(stream), peer, _permit: permit };
        if accepted.send(Ok(connection)).await.is_err() {
            return Ok(());
        }
    }
}

/// Root is the machine's administrator; whoever else may open the socket looks only.
fn unix_peer(uid: u32) -> Peer {
    let role = if uid == 0 { Role::Admin } else { Role::Reader };
    Peer { origin: Origin::Unix { uid }, role: Some(role), joined: true, connected_boot_ms: convert::now().boot_ms }
}

/// Serves a listening TCP socket with TLS for ever.
///
/// # Errors
/// If the descriptor is not one, or fails.
pub(crate) async fn tcp(listener: OwnedFd, tls: Arc<NodeTls>, accepted: Accepted) -> std::io::Result<()> {
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let mut door = Door::new(TcpListener::from_std(listener)?)?;
    let room = Arc::new(Semaphore::new(TCP_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
        let (stream, address) = door.next().await?;
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
    let connected_boot_ms = convert::now().boot_ms;
    let peer = Peer { origin, role: who.role, joined: serving.joined, connected_boot_ms };
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::fd::BorrowedFd;

    use super::*;

    /// A listener over a pipe's end, whose answers are given. It notes how many duplicates of that end there are at each.
    struct Scripted {
        end: OwnedFd,
        script: RefCell<Vec<std::io::Result<u32>>>,
    }

    impl AsFd for Scripted {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.end.as_fd()
        }
    }

    impl Listener for Scripted {
        type Accepted = u32;

        async fn next(&self) -> std::io::Result<u32> {
            self.script.borrow_mut().remove(0)
        }
    }

    fn door(script: Vec<std::io::Result<u32>>) -> Door<Scripted> {
        let (end, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        Door::new(Scripted { end, script: RefCell::new(script) }).unwrap()
    }

    fn error(errno: Errno) -> std::io::Result<u32> {
        Err(errno.into())
    }

    #[tokio::test]
    async fn without_a_descriptor_one_connection_is_turned_away_and_the_next_is_served() {
        let mut door = door(vec![error(Errno::MFILE), Ok(1), Ok(2)]);
        assert_eq!(door.next().await.unwrap(), 2);
        assert!(door.spare.is_some());
    }

    #[tokio::test]
    async fn a_broken_connection_is_passed_over_and_a_broken_listener_is_an_end() {
        let mut door = door(vec![error(Errno::CONNABORTED), Ok(1), error(Errno::BADF)]);
        assert_eq!(door.next().await.unwrap(), 1);
        assert!(door.next().await.is_err());
    }
}

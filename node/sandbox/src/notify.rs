//! sd_notify(3): a service tells PID 1 that it is ready.
//!
//! The socket is opened before the service seals itself, so that its seccomp profile needs no call that makes sockets.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::StartError;

/// Why PID 1 could not be told.
#[derive(Debug, thiserror::Error)]
#[error("NOTIFY_SOCKET {path}: {source}")]
pub struct NotifyError {
    /// The variable's value.
    path: String,
    /// Why.
    source: std::io::Error,
}

/// The way to PID 1. Without `NOTIFY_SOCKET` it says nothing, as sd_notify(3) demands.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, String)>,
}

impl Notifier {
    /// Opens what `NOTIFY_SOCKET` names: a path, or an abstract name behind `@`.
    ///
    /// # Errors
    /// If it cannot be connected.
    pub fn from_environment() -> Result<Self, StartError> {
        let Ok(path) = std::env::var("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let open = || {
            let socket = UnixDatagram::unbound()?;
            match path.strip_prefix('@') {
                Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
                None => socket.connect(&path)?,
            }
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Self { socket: Some((socket, path)) }),
            Err(source) => Err(NotifyError { path, source }.into()),
        }
    }

    /// Says `READY=1`.
    ///
    /// # Errors
    /// If the datagram cannot be sent.
    pub fn ready(&self) -> Result<(), StartError> {
        let Some((socket, path)) = &self.socket else { return Ok(()) };
        rustix::io::write(socket, b"READY=1\n")
            .map_err(|errno| NotifyError { path: path.clone(), source: errno.into() })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_one_datagram() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(&path).unwrap();
        Notifier { socket: Some((sender, "notify".to_owned())) }.ready().unwrap();
        let mut bytes = [0; 32];
        let length = receiver.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1\n");
    }
}

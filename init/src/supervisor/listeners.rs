//! What PID 1 opens for services: listening sockets, which it keeps open over their restarts so that no connection is refused, and
//! readers of the kernel log.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;

use byre_plan::{Name, WorkloadId};
use byre_protocol::definition::{Definition, Grant};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::index::{Listed, Role, Use};

/// Connections that wait while a service restarts: more clients than that do not come within a restart's time.
const BACKLOG: i32 = 128;

/// Listening sockets by service and name.
#[derive(Default)]
pub(crate) struct Listeners {
    pub(crate) open: BTreeMap<(Name, String), Listed>,
}

/// A grant that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {errno}")]
pub(crate) struct GrantError {
    pub(crate) what: String,
    pub(crate) errno: Errno,
}

impl Listeners {
    /// A duplicate of the listening socket of this grant, made at first use.
    pub(crate) fn duplicate(
        &mut self,
        id: WorkloadId,
        service: &Definition,
        number: u64,
        grant: &Grant,
    ) -> Result<Option<(String, OwnedFd)>, GrantError> {
        let (name, make): (&String, &dyn Fn() -> Result<OwnedFd, GrantError>) = match grant {
            Grant::ListenUnix { name, path, mode, uid, gid } => (name, &|| listen_unix(path, *mode, *uid, *gid)),
            Grant::ListenTcp { name, port } => (name, &|| listen_tcp(*port)),
            Grant::Control(_) | Grant::KernelLog | Grant::Directory { .. } | Grant::SlotPartitions => return Ok(None),
        };
        let key = (service.name.clone(), name.clone());
        if !self.open.contains_key(&key) {
            let is = Use { number, ..Use::of(Role::Listener, id) };
            self.open.insert(key.clone(), Listed::new(make()?, is));
        }
        let duplicate = self.open.get(&key).map(Listed::duplicate);
        match duplicate {
            Some(Ok(fd)) => Ok(Some((name.clone(), fd))),
            Some(Err(_)) | None => Err(GrantError { what: format!("listener {name}"), errno: Errno::MFILE }),
        }
    }
}

impl Listeners {
    /// Takes one over after a crash, by its service's definition and the number of its grant there.
    pub(crate) fn take(&mut self, service: &Definition, number: u64, fd: Listed) {
        let grant = usize::try_from(number).ok().and_then(|number| service.grants.get(number));
        match grant {
            Some(Grant::ListenUnix { name, .. } | Grant::ListenTcp { name, .. }) => {
                self.open.insert((service.name.clone(), name.clone()), fd);
            }
            Some(Grant::Control(_) | Grant::KernelLog | Grant::Directory { .. } | Grant::SlotPartitions) | None => {}
        }
    }
}

fn listen_unix(path: &str, mode: u16, uid: u32, gid: u32) -> Result<OwnedFd, GrantError> {
    let listen = || -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::chmod(path, Mode::from_raw_mode(u32::from(mode)))?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    listen().map_err(|errno| GrantError { what: format!("listening on {path}"), errno })
}

fn listen_tcp(port: u16) -> Result<OwnedFd, GrantError> {
    let listen = || -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None)?;
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
        rustix::net::bind(&socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0))?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    listen().map_err(|errno| GrantError { what: format!("listening on port {port}"), errno })
}

/// A new reader of the kernel log that begins at its oldest record.
pub(crate) fn open_kernel_log() -> Option<OwnedFd> {
    rustix::fs::open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// A datagram socket for sd_notify(3) that only this uid can write to.
pub(crate) fn notify_socket(path: &str, uid: u32) -> Result<OwnedFd, GrantError> {
    let bind = || -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::fs::chown(path, Some(Uid::from_raw(uid)), None)?;
        rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
        Ok(socket)
    };
    bind().map_err(|errno| GrantError { what: format!("notification socket {path}"), errno })
}

//! NOTIFY_SOCKET: a service manager that started this program waits for word of the container's program.
//!
//! The container gets a socket of its own, at the same path and below the name `notify`, never the manager's: what its program says there other than
//! that it is ready goes nowhere. `start` waits for that word, passes it on, and says which process is the main one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use byre_plan::{LaunchRequest, Mount, MountOptions, MountSource};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

use crate::error::{Error, cannot};
use crate::state::Place;

/// Longest message of a service; systemd takes no more.
const MESSAGE_BYTES: usize = 4096;
/// Directory of the socket in the container's own directory, and its name.
const DIRECTORY: &str = "notify";
const NAME: &str = "notify";

/// The manager's socket, if there is one in the file system.
fn manager() -> Option<String> {
    std::env::var("NOTIFY_SOCKET").ok().filter(|path| path.starts_with('/') && path.len() > 1)
}

/// Gives the container a place to say that it is ready. `None` if nobody waits for it.
pub(crate) fn prepare(place: &Place, request: &LaunchRequest) -> Result<Option<LaunchRequest>, Error> {
    let Some(path) = manager() else { return Ok(None) };
    let directory = place.path().join(DIRECTORY);
    let what = || format!("make {}", directory.display());
    std::fs::create_dir(&directory).map_err(cannot(what()))?;
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).map_err(cannot(what()))?;
    let directory = std::fs::canonicalize(&directory).map_err(cannot(what()))?;
    let mut request = request.clone();
    request.process.env.retain(|entry| !entry.starts_with("NOTIFY_SOCKET="));
    request.process.env.push(format!("NOTIFY_SOCKET={path}/{NAME}"));
    request.mounts.push(Mount {
        target: path,
        source: MountSource::Bind { path: directory.to_string_lossy().into_owned(), recursive: false },
        options: MountOptions { no_suid: true, no_dev: true, no_exec: true, ..MountOptions::default() },
    });
    Ok(Some(request))
}

/// Takes what the container says from now on. `None` if nobody waits for it.
pub(crate) fn listen(place: &Place) -> Result<Option<OwnedFd>, Error> {
    let directory = place.path().join(DIRECTORY);
    if manager().is_none() || !directory.exists() {
        return Ok(None);
    }
    let what = "make the container's NOTIFY_SOCKET";
    let path: PathBuf = directory.join(NAME);
    let opened = std::fs::File::open(&directory).map_err(cannot(what))?;
    let short = format!("/proc/self/fd/{}/{NAME}", std::os::fd::AsRawFd::as_raw_fd(&opened));
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(cannot(what))?;
    bind(&socket, &SocketAddrUnix::new(short).map_err(cannot(what))?).map_err(cannot(what))?;
    // Whoever the program runs as may say that it is ready.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).map_err(cannot(what))?;
    Ok(Some(socket))
}

/// Waits until the container says that it is ready, or ends, and passes it on.
pub(crate) fn pass_on(socket: &OwnedFd, process: BorrowedFd<'_>, pid: u32) -> Result<(), Error> {
    let what = "wait for the container to be ready";
    loop {
        let mut polled =
            [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN), PollFd::from_borrowed_fd(process, PollFlags::IN)];
        match poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => continue,
            done => done.map_err(cannot(what))?,
        };
        // What it said before its end counts.
        if polled[0].revents().is_empty() {
            return Ok(());
        }
        let mut message = [0_u8; MESSAGE_BYTES];
        let (count, _) = recv(socket, &mut message, RecvFlags::empty()).map_err(cannot(what))?;
        if message[..count].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return tell(pid);
        }
    }
}

fn tell(pid: u32) -> Result<(), Error> {
    let Some(path) = manager() else { return Ok(()) };
    let what = || format!("tell {path} that the container is ready");
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(cannot(what()))?;
    let address = SocketAddrUnix::new(&*path).map_err(cannot(what()))?;
    for message in ["READY=1".to_owned(), format!("MAINPID={pid}")] {
        sendto(&socket, message.as_bytes(), SendFlags::NOSIGNAL, &address).map_err(cannot(what()))?;
    }
    Ok(())
}

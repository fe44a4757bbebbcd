//! Pods: namespaces that no process holds, because they are bound to paths.
//!
//! ```text
//!   PID 1 -> maker: clones the first process of the namespaces -> writes its id maps -> binds them -> lets it go on
//!                   first process: loopback, host name, sysctls -> ends; maker: says so -> ends
//! ```
//!
//! Both processes are short-lived and lie in the launch cgroup. Nothing of a failed start stays bound.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::LaunchRequest;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstatfs, mkdir, openat2, rmdir, unlink};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::child::{FAILED, begin, fail};
use crate::descriptors::Descriptors;
use crate::ids::Ids;
use crate::mounts::{attach, clone_tree};
use crate::report::{CHILD_DIED, Failure, Message, Step, blocking_pair, send};
use crate::stages::become_root;
use crate::sys::{self, Cloned};
use crate::{Context, handover, namespace_flags, procfs, settings};

/// What may be bound of a pod.
const KINDS: [&str; 4] = ["net", "ipc", "uts", "user"];
/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The launch child of a pod.
pub(crate) fn make(
    request: &LaunchRequest,
    context: &Context<'_>,
    descriptors: &Descriptors<'_>,
    report: BorrowedFd<'_>,
) -> ! {
    let (report, []) = begin(descriptors, report, [], context.companion);
    let Some(directory) = context.namespaces else {
        fail(report.as_fd(), &Failure::new("bind namespaces", "no place is known for them", Errno::INVAL))
    };
    let made = bind_all(request, context, directory, &report);
    let said = made.and_then(|()| send(report.as_fd(), &Message::Made, None).step("report", "pod"));
    match said {
        Ok(()) => sys::exit(0),
        Err(failure) => {
            let _ = release_namespaces(directory);
            fail(report.as_fd(), &failure)
        }
    }
}

fn bind_all(request: &LaunchRequest, context: &Context<'_>, directory: &str, report: &OwnedFd) -> Result<(), Failure> {
    release_namespaces(directory).step("remove old namespaces", directory)?;
    mkdir(directory, Mode::RWXU).step("make directory", directory)?;
    let ids = Ids::of(&request.namespaces.user, context.id_base).step("find id range", "")?;
    let (ours, theirs) = blocking_pair().step("make handover socket", "")?;
    let users = if ids.is_host() { 0 } else { u64::from(libc::CLONE_NEWUSER.unsigned_abs()) };
    let flags = users | namespace_flags(request);
    match sys::clone3(flags, None).step("clone", "")? {
        Cloned::Child => {
            drop(ours);
            set_up(request, &ids, &theirs, report)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            let bound = bind_of(pid, &ids, flags, directory);
            // Without the word to go on it ends by itself.
            if bound.is_ok() {
                handover::go(ours.as_fd());
            }
            drop(ours);
            let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).step("wait", "set-up")?;
            match (status.and_then(|status| status.exit_status()), bound) {
                (Some(0), bound) => bound,
                // What is told of a process that is gone is only that it is not found; what failed it has reported itself, before this.
                (None, Ok(()) | Err(_)) | (Some(_), Ok(())) => Err(died()),
                (Some(_), Err(failure)) => Err(failure),
            }
        }
    }
}

fn died() -> Failure {
    Failure::new(CHILD_DIED, "before the namespaces were set up", Errno::CHILD)
}

/// Gives the first process its ids, and binds what namespaces it is in.
fn bind_of(pid: u32, ids: &Ids, flags: u64, directory: &str) -> Result<(), Failure> {
    let proc = procfs::of_host()?;
    if !ids.is_host() {
        let (uids, gids) = ids.lines();
        procfs::write(proc.as_fd(), &format!("{pid}/uid_map"), &uids).step("write id map", "uid_map")?;
        procfs::write(proc.as_fd(), &format!("{pid}/gid_map"), &gids).step("write id map", "gid_map")?;
    }
    for kind in KINDS.into_iter().filter(|kind| is_new(flags, kind)) {
        let namespace = procfs::namespace(proc.as_fd(), pid, kind).step("open namespace", kind)?;
        bind(namespace.as_fd(), &format!("{directory}/{kind}")).step("bind namespace", kind)?;
    }
    Ok(())
}

fn is_new(flags: u64, kind: &str) -> bool {
    let flag = match kind {
        "net" => libc::CLONE_NEWNET,
        "ipc" => libc::CLONE_NEWIPC,
        "uts" => libc::CLONE_NEWUTS,
        _ => libc::CLONE_NEWUSER,
    };
    flags & u64::from(flag.unsigned_abs()) != 0
}

/// The first and only process of the namespaces: makes them what the pod asks for, and ends.
fn set_up(request: &LaunchRequest, ids: &Ids, handover: &OwnedFd, report: &OwnedFd) -> ! {
    fault_point!();
    let run = || {
        if handover::take(handover.as_fd())?.is_none() {
            sys::exit(FAILED);
        }
        if !ids.is_host() {
            become_root()?;
        }
        settings::apply_by(request, procfs::of_host)
    };
    match run() {
        Ok(()) => sys::exit(0),
        Err(failure) => fail(report.as_fd(), &failure),
    }
}

fn bind(namespace: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    attach(&clone_tree(namespace, "", false)?, place.as_fd())
}

/// Unbinds a pod's namespaces and removes their directory. What uses them keeps them until it ends. Nothing there is not an error.
///
/// # Errors
/// The first that could not be unbound.
pub fn release_namespaces(directory: &str) -> Result<(), Errno> {
    for kind in KINDS {
        let path = format!("{directory}/{kind}");
        match unmount(&*path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Not mounted, or not there.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        match unlink(&*path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    match rmdir(directory) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Opens the network namespace that is bound in a pod's directory.
///
/// # Errors
/// Those of opening it; EXDEV if what lies there is no namespace.
pub fn open_network(directory: &str) -> Result<OwnedFd, Errno> {
    open_namespace(&format!("{directory}/net"))
}

/// Whether a pod's namespaces are still bound in its directory.
#[must_use]
pub fn are_bound(directory: &str) -> bool {
    KINDS.iter().any(|kind| open_namespace(&format!("{directory}/{kind}")).is_ok())
}

fn open_namespace(path: &str) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(CWD, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let kind = u64::try_from(fstatfs(&file)?.f_type).unwrap_or(0);
    if kind == NSFS_MAGIC { Ok(file) } else { Err(Errno::XDEV) }
}

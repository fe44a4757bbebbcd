//! Inside the workload's mount namespace: every mount of the plan, in order, then masked and read-only paths.

use std::os::fd::{AsFd, BorrowedFd};

use byre_plan::{LaunchRequest, MountSource, Propagation};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::{HostSide, apply_options, attach, clone_tree, own_namespace, scratch};
use crate::inside::{self, Kind};
use crate::report::{Failure, Step};
use crate::sys::{MountAttributes, mount_setattr};

/// Ends propagation to the host. Towards the workload it stays, so that what the host unmounts is not pinned by a copy here.
pub(crate) fn isolate() -> Result<(), Failure> {
    let slave = MountAttributes { propagation: libc::MS_SLAVE, ..MountAttributes::default() };
    mount_setattr(CWD, c"/", true, &slave).step("isolate mounts", "/")
}

/// Attaches every mount of the plan below `root`, then hides and protects paths.
pub(crate) fn place_all(root: BorrowedFd<'_>, request: &LaunchRequest, host: &HostSide) -> Result<(), Failure> {
    let step = "mount";
    for (index, mount) in request.mounts.iter().enumerate() {
        let made = match host.mount(index) {
            Some(made) => made,
            None => &own_namespace::make(mount)?,
        };
        let kind = inside::kind(made.as_fd()).step(step, &mount.target)?;
        let place = inside::open_or_make(root, &mount.target, kind).step("make mount point", &mount.target)?;
        attach(made, place.as_fd()).step(step, &mount.target)?;
        match mount.options.propagation {
            Propagation::Private => {}
            // The place it was attached to may have peers of its own; what was asked for is what it gets.
            Propagation::Slave | Propagation::Shared => {
                apply_options(made.as_fd(), mount.options, true).step(step, &mount.target)?;
            }
        }
        if let MountSource::Devpts = mount.source {
            own_namespace::link_ptmx(root, &mount.target)?;
        }
    }
    for (path, node) in host.device_nodes() {
        let place = inside::open_or_make(root, path, Kind::File).step("make mount point", path)?;
        attach(node, place.as_fd()).step(step, path)?;
    }
    protect(root, &request.read_only_paths)?;
    mask(root, &request.masked_paths)
}

/// Makes paths read-only, with what is mounted below them. A missing path needs no protection.
fn protect(root: BorrowedFd<'_>, paths: &[String]) -> Result<(), Failure> {
    let step = "make path read-only";
    for path in paths {
        let Some(place) = existing(root, path, step)? else { continue };
        let copy = clone_tree(place.as_fd(), "", true).step(step, path)?;
        let read_only =
            MountAttributes { set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), ..MountAttributes::default() };
        mount_setattr(copy.as_fd(), c"", true, &read_only).step(step, path)?;
        attach(&copy, place.as_fd()).step(step, path)?;
    }
    Ok(())
}

/// Hides paths behind an empty directory or file, one tmpfs for all of them.
fn mask(root: BorrowedFd<'_>, paths: &[String]) -> Result<(), Failure> {
    let step = "mask path";
    let mut empty = None;
    for path in paths {
        let Some(place) = existing(root, path, step)? else { continue };
        let empty = match &mut empty {
            Some(empty) => empty,
            None => empty.insert(empty_things()?),
        };
        let name = match inside::kind(place.as_fd()).step(step, path)? {
            Kind::Directory => "directory",
            Kind::File => "file",
        };
        let cover = clone_tree(empty.as_fd(), name, false).step(step, path)?;
        attach(&cover, place.as_fd()).step(step, path)?;
    }
    Ok(())
}

fn empty_things() -> Result<std::os::fd::OwnedFd, Failure> {
    let step = "make empty file and directory";
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let empty = scratch(attributes)?;
    mkdirat(&empty, "directory", Mode::from_raw_mode(0o555)).step(step, "directory")?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    drop(openat(&empty, "file", flags, Mode::from_raw_mode(0o444)).step(step, "file")?);
    let read_only =
        MountAttributes { set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), ..MountAttributes::default() };
    mount_setattr(empty.as_fd(), c"", false, &read_only).step(step, "")?;
    Ok(empty)
}

fn existing(root: BorrowedFd<'_>, path: &str, step: &'static str) -> Result<Option<std::os::fd::OwnedFd>, Failure> {
    match inside::open(root, path) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Failure::new(step, path, errno)),
    }
}

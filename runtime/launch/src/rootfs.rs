//! A container's root: its image's layers as file-backed erofs mounts, under an overlay with a writable layer of its own.
//!
//! The layers are seen through the workload's id map (id 0 on disk is its root); the writable layer is not, so its files lie on disk with the
//! workload's host ids, which PID 1 keeps for the workload's life. The overlay is made by the host's root: its whiteouts and marks are
//! trusted xattrs that the workload can neither set nor see.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use byre_plan::Digest;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fchown, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use rustix::process::{Gid, Uid};

use crate::Context;
use crate::ids::Ids;
use crate::layers;
use crate::mounts::{attach, clone_tree, detached};
use crate::report::{Failure, Step};
use crate::sys::{MountAttributes, mount_setattr};

/// Room for the mount points that a read-only root may lack: directories and empty files.
const READ_ONLY_UPPER: [(&str, &str); 2] = [("mode", "755"), ("size", "4m")];

/// Assembles the root and returns it as a detached mount. Attaches the layers in this process's mount namespace, which must be its own.
pub(crate) fn assemble(
    layers: &[Digest],
    read_only: bool,
    context: &Context<'_>,
    ids: &Ids,
) -> Result<OwnedFd, Failure> {
    let step = "open container's directory";
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let containers = openat(CWD, context.containers, flags, Mode::empty()).step(step, context.containers)?;
    // Opened before the mounts below cover the directory.
    let own = if read_only { None } else { Some(own_directory(containers.as_fd(), context)?) };
    let lowers =
        layers.iter().map(|digest| layer(digest, context, ids, containers.as_fd())).collect::<Result<Vec<_>, _>>()?;
    let above = match own {
        Some(own) => own,
        None => {
            let memory = detached("tmpfs", &READ_ONLY_UPPER, MountAttrFlags::empty())?;
            attach(&memory, containers.as_fd()).step("attach writable layer", "")?;
            memory
        }
    };
    let (upper, work) = writable(above.as_fd(), ids)?;
    overlay(&lowers, upper.as_fd(), work.as_fd(), ids)
}

/// A directory that somebody else keeps, with what is mounted below it, as a detached mount.
pub(crate) fn directory(path: &str) -> Result<OwnedFd, Failure> {
    let step = "open root directory";
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let place = openat2(CWD, path, flags, Mode::empty(), resolve).step(step, path)?;
    let root = clone_tree(place.as_fd(), "", true).step(step, path)?;
    // It hands nothing on to where it was copied from.
    let propagation = MountAttributes { propagation: libc::MS_SLAVE, ..MountAttributes::default() };
    mount_setattr(root.as_fd(), c"", true, &propagation).step(step, path)?;
    Ok(root)
}

/// `<containers>/<id>`, made if this is the first start.
pub(crate) fn own_directory(containers: BorrowedFd<'_>, context: &Context<'_>) -> Result<OwnedFd, Failure> {
    let id = context.id.to_string();
    make_directory(containers, &id, 0o700)
}

/// A directory that is made if it is missing.
pub(crate) fn make_directory(parent: BorrowedFd<'_>, name: &str, mode: u32) -> Result<OwnedFd, Failure> {
    let step = "make container's directory";
    match mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(Failure::new(step, name, errno)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty()).step(step, name)
}

/// The overlay's upper and work directory. The upper one is the container's `/`, so it belongs to the container's root.
fn writable(parent: BorrowedFd<'_>, ids: &Ids) -> Result<(OwnedFd, OwnedFd), Failure> {
    let upper = make_directory(parent, "upper", 0o755)?;
    let work = make_directory(parent, "work", 0o700)?;
    let (uid, gid) = ids.root();
    fchown(&upper, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).step("make container's directory", "upper")?;
    Ok((upper, work))
}

/// Mounts one layer with the workload's ids. Attached, because overlayfs takes detached mounts as layers only from Linux 6.15 on; where does
/// not matter, since they are used by descriptor and go away with this namespace.
fn layer(digest: &Digest, context: &Context<'_>, ids: &Ids, place: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let mount = layers::detached(digest, context)?;
    let name = digest.to_string();
    ids.apply_to(mount.as_fd()).step("map ids of image layer", &name)?;
    attach(&mount, place).step("attach image layer", &name)?;
    Ok(mount)
}

fn overlay(lowers: &[OwnedFd], upper: BorrowedFd<'_>, work: BorrowedFd<'_>, ids: &Ids) -> Result<OwnedFd, Failure> {
    let step = "make overlay";
    let path = |descriptor: BorrowedFd<'_>| format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let open = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).step(step, "overlay")?;
    // The first one given is the topmost.
    for lower in lowers.iter().rev() {
        fsconfig_set_string(&open, "lowerdir+", path(lower.as_fd())).step(step, "lowerdir")?;
    }
    let settings = [
        ("upperdir", path(upper)),
        ("workdir", path(work)),
        // Features that make a container's own directory mean different things to different kernels.
        ("index", "off".to_owned()),
        ("redirect_dir", "off".to_owned()),
        ("metacopy", "off".to_owned()),
    ];
    for (key, value) in &settings {
        fsconfig_set_string(&open, *key, &**value).step(step, key)?;
    }
    fsconfig_create(&open).step(step, "create")?;
    // With ids of its own a workload makes no device nodes, and an image's are not its to use.
    let attributes = if ids.is_host() { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NODEV };
    fsmount(&open, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step(step, "mount")
}

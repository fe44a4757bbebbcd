//! Mounts: made detached, then moved to their place inside the root.
//!
//! What needs the host's view or its capabilities (binds, volumes, generated files, device nodes) is made on the *host side*; what belongs to
//! the workload's namespaces (proc, sysfs, devpts ..) is made *inside* them. Without a user namespace one process does both.

mod host_side;
mod mapped;
mod nodes;
mod own_namespace;
mod place;

pub(crate) use host_side::{Covers, HostSide, prepare};
pub(crate) use place::{enter_root, isolate, place_all};

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{MountOptions, Propagation};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use crate::report::{Failure, Step};
use crate::sys::{MountAttributes, mount_setattr};

/// A mounted file system that is attached nowhere, with these options and attributes. What its source is, if they do not say, is its kind, as mount(8)
/// has it: mountinfo shows it, and there is a difference to some who read it.
pub(crate) fn detached(kind: &str, settings: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).step("open file system", kind)?;
    let named = settings.iter().any(|(key, _)| *key == "source");
    for (key, value) in settings.iter().chain((!named).then_some(&("source", kind))) {
        fsconfig_set_string(&context, *key, *value).step("configure file system", &format!("{kind} {key}={value}"))?;
    }
    fsconfig_create(&context).step("make file system", kind)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step("mount file system", kind)
}

/// The attributes of a mount's options.
pub(crate) fn attributes(options: MountOptions) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, options.read_only);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, options.no_suid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, options.no_dev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, options.no_exec);
    flags | MountAttrFlags::from_bits_retain(options.further | options.below)
}

/// Bits to clear before a mount's access times can be set: MOUNT_ATTR__ATIME of linux/mount.h.
fn cleared(set: u64) -> u64 {
    if set & ACCESS_TIMES == 0 { 0 } else { ACCESS_TIMES }
}

const ACCESS_TIMES: u64 = 0x70;

/// The kernel's word for it.
fn flag(propagation: Propagation) -> u64 {
    match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    }
}

/// Sets a mount's options on an existing (cloned) mount: attributes are added to those it has, propagation is replaced.
pub(crate) fn apply_options(mount: BorrowedFd<'_>, options: MountOptions, tree: bool) -> Result<(), Errno> {
    let propagation = flag(options.propagation);
    mount_setattr(mount, c"", tree, &MountAttributes { propagation, ..MountAttributes::default() })?;
    let set = u64::from(attributes(options).bits());
    if set == 0 {
        return Ok(());
    }
    let change = |set| MountAttributes { set, clear: cleared(set), ..MountAttributes::default() };
    mount_setattr(mount, c"", tree && options.recursive, &change(set))?;
    if tree && options.below != 0 {
        mount_setattr(mount, c"", true, &change(u64::from(options.below)))?;
    }
    Ok(())
}

/// A tmpfs of the launch child's own, for small things that are bound one by one. Linux clones from detached mounts only from 6.15 on, so
/// it is attached: on top of this process's own `/`, where no path leads through it.
#[derive(Debug)]
pub(crate) struct Scratch(OwnedFd);

impl Scratch {
    /// Makes and attaches it, in a mount namespace that must be this process's own.
    pub(crate) fn new(attributes: MountAttrFlags) -> Result<Self, Failure> {
        let step = "make scratch file system";
        let mount = detached("tmpfs", &[("mode", "755"), ("size", "4m")], attributes)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, "/", flags, Mode::empty()).step(step, "/")?;
        attach(&mount, root.as_fd()).step(step, "attach")?;
        Ok(Self(mount))
    }

    /// Takes it off again. What was cloned from it stays.
    pub(crate) fn close(self) -> Result<(), Failure> {
        let step = "close scratch file system";
        rustix::process::fchdir(&self.0).step(step, "enter")?;
        rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).step(step, "detach")?;
        rustix::process::chdir("/").step(step, "/")
    }
}

impl AsFd for Scratch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A new detached mount of what `path` below `directory` is.
pub(crate) fn clone_tree(directory: BorrowedFd<'_>, path: &str, recursive: bool) -> Result<OwnedFd, Errno> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(directory, path, flags)
}

/// Moves a detached mount onto the place that a descriptor refers to.
pub(crate) fn attach(mount: &OwnedFd, place: BorrowedFd<'_>) -> Result<(), Errno> {
    use rustix::mount::{MoveMountFlags, move_mount};
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount.as_fd(), "", place, "", flags)
}

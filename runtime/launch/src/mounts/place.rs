//! Inside the workload's mount namespace: every mount of the plan, in order, then masked and read-only paths.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{LaunchRequest, MountSource, Propagation, UserNamespace};
use rustix::fs::{CWD, Mode, OFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::{HostSide, apply_options, attach, clone_tree, flag, nodes, own_namespace};
use crate::companion::{Companion, Moment};
use crate::inside::{self, Kind};
use crate::report::{Failure, Step};
use crate::sys::{MountAttributes, mount_setattr};
use crate::{child, volumes};

/// Ends propagation to the host. Towards the workload it stays, so that what the host unmounts is not pinned by a copy here.
pub(crate) fn isolate() -> Result<(), Failure> {
    let slave = MountAttributes { propagation: libc::MS_SLAVE, ..MountAttributes::default() };
    mount_setattr(CWD, c"/", true, &slave).step("isolate mounts", "/")
}

/// Attaches every mount of the plan below `root`, then hides and protects paths.
pub(crate) fn place_all(root: BorrowedFd<'_>, request: &LaunchRequest, host: &HostSide) -> Result<(), Failure> {
    let step = "mount";
    let label = request.kernel.mount_label.as_deref();
    let ids_are_host = matches!(request.namespaces.user, UserNamespace::Host);
    let mut closed_later = Vec::new();
    for (index, mount) in (0..).zip(&request.mounts) {
        let (made, is_new_volume) = match host.mount(index) {
            Some(made) => made,
            None if is_written_first(mount) => {
                let options = byre_plan::MountOptions { read_only: false, ..mount.options };
                let open = byre_plan::Mount { options, ..mount.clone() };
                let made = own_namespace::make(&open, label)?;
                closed_later.push((made.try_clone().step(step, &mount.target)?, mount.target.clone()));
                (&made.try_clone().step(step, &mount.target)?, copies_up(&mount.source))
            }
            None => (&own_namespace::make(mount, label)?, copies_up(&mount.source)),
        };
        let kind = inside::kind(made.as_fd()).step(step, &mount.target)?;
        if is_pseudo(&mount.source) {
            inside::plain(root, &mount.target).step(ORDINARY, &mount.target)?;
        }
        let place = inside::open_or_make(root, &mount.target, kind).step("make mount point", &mount.target)?;
        if is_new_volume {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let image = openat2(root, &*mount.target, flags, Mode::empty(), inside::INSIDE)
                .step("fill volume", &mount.target)?;
            volumes::fill(image.as_fd(), made.as_fd()).step("fill volume", &mount.target)?;
        }
        attach(made, place.as_fd()).step(step, &mount.target)?;
        match mount.options.propagation {
            Propagation::Private => {}
            // The place it was attached to may have peers of its own; what was asked for is what it gets.
            Propagation::Slave | Propagation::Shared | Propagation::Unbindable => {
                apply_options(made.as_fd(), mount.options, true).step(step, &mount.target)?;
            }
        }
        if let MountSource::Devpts = mount.source {
            own_namespace::link_ptmx(root, &mount.target)?;
        }
    }
    for node in &request.nodes {
        if ids_are_host || nodes::device(&node.kind).is_none() {
            nodes::make(root, node)?;
        }
    }
    for (path, node) in host.device_nodes() {
        let place = inside::open_or_make(root, path, Kind::File).step("make mount point", path)?;
        attach(node, place.as_fd()).step(step, path)?;
    }
    for (made, target) in closed_later {
        let read_only =
            MountAttributes { set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), ..MountAttributes::default() };
        mount_setattr(made.as_fd(), c"", false, &read_only).step("make mount read-only", &target)?;
    }
    protect(root, &request.read_only_paths)?;
    mask(root, &request.masked_paths, host)
}

/// A tmpfs that others are mounted in: it can be read-only only when their mount points have been made.
fn is_written_first(mount: &byre_plan::Mount) -> bool {
    mount.options.read_only
        && match &mount.source {
            MountSource::Tmpfs { .. } => true,
            MountSource::FileSystem { kind, .. } => kind == "tmpfs",
            MountSource::Proc
            | MountSource::Sysfs
            | MountSource::Cgroup
            | MountSource::Mqueue
            | MountSource::Devpts
            | MountSource::Devices
            | MountSource::Bind { .. }
            | MountSource::Volume(_)
            | MountSource::OwnVolume(_)
            | MountSource::GeneratedFile(_) => false,
        }
}

/// What an image must not lead elsewhere: what is written and masked below /proc and /sys would be somebody else's files (CVE-2019-16884,
/// CVE-2019-19921).
fn is_pseudo(source: &MountSource) -> bool {
    match source {
        MountSource::Proc | MountSource::Sysfs => true,
        MountSource::FileSystem { kind, .. } => kind == "proc" || kind == "sysfs",
        MountSource::Cgroup
        | MountSource::Mqueue
        | MountSource::Devpts
        | MountSource::Devices
        | MountSource::Tmpfs { .. }
        | MountSource::Bind { .. }
        | MountSource::Volume(_)
        | MountSource::OwnVolume(_)
        | MountSource::GeneratedFile(_) => false,
    }
}

/// The step of a mount point that is none.
const ORDINARY: &str = "mount a file system that must be mounted on ordinary directory";
fn copies_up(source: &MountSource) -> bool {
    match source {
        MountSource::FileSystem { copy_up, .. } => *copy_up,
        MountSource::Proc
        | MountSource::Sysfs
        | MountSource::Cgroup
        | MountSource::Mqueue
        | MountSource::Devpts
        | MountSource::Devices
        | MountSource::Tmpfs { .. }
        | MountSource::Bind { .. }
        | MountSource::Volume(_)
        | MountSource::OwnVolume(_)
        | MountSource::GeneratedFile(_) => false,
    }
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

/// Hides paths behind one empty directory or file.
fn mask(root: BorrowedFd<'_>, paths: &[String], host: &HostSide) -> Result<(), Failure> {
    let step = "mask path";
    let Some(covers) = host.covers() else { return Ok(()) };
    let (mut file, mut directory) = (Cover::Detached(&covers.file), Cover::Detached(&covers.directory));
    for path in paths {
        let Some(place) = existing(root, path, step)? else { continue };
        let cover = match inside::kind(place.as_fd()).step(step, path)? {
            Kind::Directory => &mut directory,
            Kind::File => &mut file,
        };
        cover.attach(place.as_fd()).step(step, path)?;
    }
    Ok(())
}

/// Linux clones from detached mounts only from 6.15 on: the first place gets the mount itself, the others clones of it.
enum Cover<'a> {
    Detached(&'a OwnedFd),
    Attached(&'a OwnedFd),
}

impl Cover<'_> {
    fn attach(&mut self, place: BorrowedFd<'_>) -> Result<(), Errno> {
        match self {
            Self::Detached(mount) => {
                attach(mount, place)?;
                *self = Self::Attached(mount);
                Ok(())
            }
            Self::Attached(mount) => attach(&clone_tree(mount.as_fd(), "", false)?, place),
        }
    }
}

/// Makes the working directory while the root can still be written.
fn make_working_directory(root: BorrowedFd<'_>, path: &str) -> Result<(), Failure> {
    match inside::open(root, path) {
        Err(Errno::NOENT) => {
            inside::open_or_make(root, path, Kind::Directory).map(drop).step("make working directory", path)
        }
        // What else is wrong with it is said when it is entered.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn existing(root: BorrowedFd<'_>, path: &str, step: &'static str) -> Result<Option<OwnedFd>, Failure> {
    match inside::open(root, path) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Failure::new(step, path, errno)),
    }
}

/// Makes a container's assembled root this process's `/`, with everything mounted below it, and lets go of the host's.
pub(crate) fn enter_root(
    root: &OwnedFd,
    request: &LaunchRequest,
    host: &HostSide,
    read_only: bool,
    companion: Option<&dyn Companion>,
) -> Result<(), Failure> {
    let step = "enter root";
    let host_root =
        openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step(step, "/")?;
    attach(root, host_root.as_fd()).step(step, "attach")?;
    drop(host_root);
    place_all(root.as_fd(), request, host)?;
    if read_only {
        make_working_directory(root.as_fd(), &request.process.cwd)?;
        let set = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
        mount_setattr(root.as_fd(), c"", false, &MountAttributes { set, ..MountAttributes::default() })
            .step(step, "read-only")?;
    }
    if let Some(companion) = companion {
        child::ask(companion, Moment::BeforeRoot)?;
    }
    rustix::process::fchdir(root).step(step, "/")?;
    // Both roots in one place: the old one ends up on top of the new one, and is taken off it.
    rustix::process::pivot_root(".", ".").step(step, "pivot")?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).step(step, "let go of the host's root")?;
    if let Some(propagation) = request.kernel.root_propagation {
        let propagation = flag(propagation);
        mount_setattr(root.as_fd(), c"", true, &MountAttributes { propagation, ..MountAttributes::default() })
            .step(step, "propagation")?;
    }
    rustix::process::chdir("/").step(step, "/")
}

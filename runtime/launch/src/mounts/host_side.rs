//! Mounts that need the host's paths or capabilities in its user namespace, made detached before the workload's namespaces exist.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{LaunchRequest, Mount, MountSource, Namespace};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, chmodat, chownat, mkdirat, mknodat, openat, openat2, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use rustix::process::{Gid, Uid};

use super::{Scratch, apply_options, attributes, clone_tree, detached, mapped, nodes};
use crate::Context;
use crate::ids::Ids;
use crate::report::{Failure, Step};
use crate::rootfs;
use crate::sys::{MountAttributes, mount_setattr};

/// The default devices: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// The usual links of /dev.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// What was made on the host side: per mount of the plan its detached mount, if it is of this kind, and single device nodes.
#[derive(Debug, Default)]
pub(crate) struct HostSide {
    /// By index in the plan: the mount, and whether it is a volume that was made now and is to be filled from the image.
    mounts: BTreeMap<u32, (OwnedFd, bool)>,
    nodes: Vec<(String, OwnedFd)>,
    covers: Option<Covers>,
    /// What single files were bound from, attached over this process's `/`.
    scratch: Option<Scratch>,
}

/// Detached mounts of something empty, for masked paths.
#[derive(Debug)]
pub(crate) struct Covers {
    pub(crate) file: OwnedFd,
    pub(crate) directory: OwnedFd,
}

impl HostSide {
    /// The mount of the plan's mount number `index`, if it is made here, and whether it is a new volume.
    pub(crate) fn mount(&self, index: u32) -> Option<(&OwnedFd, bool)> {
        self.mounts.get(&index).map(|(mount, is_new)| (mount, *is_new))
    }

    /// Every mount made here, with its index, and whether it is a new volume.
    pub(crate) fn made(&self) -> impl Iterator<Item = (u32, &OwnedFd, bool)> {
        self.mounts.iter().map(|(index, (mount, is_new))| (*index, mount, *is_new))
    }

    /// Adds a mount that was made elsewhere.
    pub(crate) fn put(&mut self, index: u32, mount: OwnedFd, is_new_volume: bool) {
        self.mounts.insert(index, (mount, is_new_volume));
    }

    /// Adds a device node that was made elsewhere.
    pub(crate) fn put_node(&mut self, path: &str, node: OwnedFd) {
        self.nodes.push((path.to_owned(), node));
    }

    /// What masked paths are covered with; missing if none is asked for.
    pub(crate) fn covers(&self) -> Option<&Covers> {
        self.covers.as_ref()
    }

    /// Adds covers that were made elsewhere.
    pub(crate) fn put_covers(&mut self, covers: Covers) {
        self.covers = Some(covers);
    }

    /// Takes off this process's `/` what lies there for single files. Not needed by a process that ends with its mount namespace, and
    /// dear: the kernel waits until no processor looks at the mount any more.
    pub(crate) fn close_scratch(&mut self) -> Result<(), Failure> {
        self.scratch.take().map_or(Ok(()), Scratch::close)
    }

    /// Device nodes outside the default /dev, by the path they are bound to.
    pub(crate) fn device_nodes(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }
}

/// Makes every mount of the plan that is of the host side.
pub(crate) fn prepare(request: &LaunchRequest, context: &Context<'_>, ids: &Ids) -> Result<HostSide, Failure> {
    let mut host = HostSide::default();
    let mut maker = Maker { context, ids, request, files: None };
    for (index, mount) in (0..).zip(&request.mounts) {
        if let (Some(made), is_new) = maker.make(mount)? {
            mapped::apply(index, made.as_fd(), mount, request, ids)?;
            host.put(index, made, is_new);
        }
    }
    for rule in &request.devices {
        if let (Some(path), Some(major), Some(minor)) = (&rule.path, rule.major, rule.minor) {
            let kind = if rule.block { FileType::BlockDevice } else { FileType::CharacterDevice };
            let node = maker.bound_file("make device node", path, |directory, name| {
                mknodat(directory, name, kind, Mode::from_raw_mode(0o666), rustix::fs::makedev(major, minor))
            })?;
            host.nodes.push((path.clone(), node));
        }
    }
    for node in request.nodes.iter().filter(|_| !ids.is_host()) {
        if let Some((kind, number)) = nodes::device(&node.kind) {
            let mode = Mode::from_raw_mode(u32::from(node.mode));
            let made = maker.bound_file("make node", &node.path, |directory, name| {
                mknodat(directory, name, kind, mode, number)?;
                chmodat(directory, name, mode, AtFlags::empty())
            })?;
            let (uid, gid) = ids.outside(node.uid, node.gid).step("map owner of node", &node.path)?;
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            chownat(&made, "", owner.0, owner.1, AtFlags::EMPTY_PATH).step("make node", &node.path)?;
            host.nodes.push((node.path.clone(), made));
        }
    }
    if !request.masked_paths.is_empty() {
        host.covers = Some(maker.covers()?);
    }
    host.scratch = maker.files.map(|(files, _)| files);
    Ok(host)
}

struct Maker<'a> {
    context: &'a Context<'a>,
    ids: &'a Ids,
    request: &'a LaunchRequest,
    /// Holds generated files and single device nodes, which are bound from it.
    files: Option<(Scratch, u32)>,
}

impl Maker<'_> {
    /// The detached mount, if it is made here, and whether it is a volume that was made now.
    fn make(&mut self, mount: &Mount) -> Result<(Option<OwnedFd>, bool), Failure> {
        let made = match &mount.source {
            MountSource::Bind { path, recursive } => bind(path, *recursive, mount)?,
            MountSource::GeneratedFile(content) => self.generated(mount, content)?,
            MountSource::Devices => devices(mount, self.ids)?,
            MountSource::Volume(name) => {
                let volumes = directory(self.context.volumes)?;
                let (made, is_new) = volume(volumes.as_fd(), name.as_str(), mount, self.ids)?;
                return Ok((Some(made), is_new));
            }
            MountSource::OwnVolume(number) => {
                let own = rootfs::own_directory(directory(self.context.containers)?.as_fd(), self.context)?;
                let volumes = rootfs::make_directory(own.as_fd(), "volumes", 0o700)?;
                let (made, is_new) = volume(volumes.as_fd(), &number.to_string(), mount, self.ids)?;
                return Ok((Some(made), is_new));
            }
            MountSource::Sysfs => {
                // sysfs shows the network namespace it is mounted in, and only that one's owner may mount it.
                if self.ids.is_host() || matches!(self.request.namespaces.net, Namespace::New) {
                    return Ok((None, false));
                }
                detached("sysfs", &[], attributes(mount.options) | MountAttrFlags::MOUNT_ATTR_RDONLY)?
            }
            MountSource::Cgroup => {
                if self.ids.is_host() || matches!(self.request.namespaces.cgroup, Namespace::New) {
                    return Ok((None, false));
                }
                detached("cgroup2", &[], attributes(mount.options) | MountAttrFlags::MOUNT_ATTR_RDONLY)?
            }
            MountSource::Proc
            | MountSource::Mqueue
            | MountSource::Devpts
            | MountSource::Tmpfs { .. }
            | MountSource::FileSystem { .. } => return Ok((None, false)),
        };
        Ok((Some(made), false))
    }

    fn generated(&mut self, mount: &Mount, content: &str) -> Result<OwnedFd, Failure> {
        let file = self.bound_file("make generated file", &mount.target, |directory, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
            let mut rest = content.as_bytes();
            while !rest.is_empty() {
                let written = rustix::io::write(&file, rest)?;
                rest = rest.get(written..).unwrap_or_default();
            }
            Ok(())
        })?;
        let options = byre_plan::MountOptions { read_only: true, no_suid: true, no_dev: true, ..mount.options };
        apply_options(file.as_fd(), options, false).step("make generated file", &mount.target)?;
        Ok(file)
    }

    /// An empty file and an empty directory, for nobody to write.
    fn covers(&mut self) -> Result<Covers, Failure> {
        let step = "make empty file and directory";
        let file = self.bound_file(step, "file", |directory, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(directory, name, flags, Mode::from_raw_mode(0o444)).map(drop)
        })?;
        let directory =
            self.bound_file(step, "directory", |directory, name| mkdirat(directory, name, Mode::from_raw_mode(0o555)))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        for cover in [&file, &directory] {
            let set = u64::from(attributes.bits());
            mount_setattr(cover.as_fd(), c"", false, &MountAttributes { set, ..MountAttributes::default() })
                .step(step, "")?;
        }
        Ok(Covers { file, directory })
    }

    /// Makes a file in the scratch tmpfs with the workload's root as its owner, and returns a detached mount of it alone.
    fn bound_file(
        &mut self,
        step: &'static str,
        target: &str,
        make: impl FnOnce(BorrowedFd<'_>, &str) -> Result<(), Errno>,
    ) -> Result<OwnedFd, Failure> {
        let (files, count) = match &mut self.files {
            Some(files) => files,
            None => self.files.insert((Scratch::new(MountAttrFlags::empty())?, 0)),
        };
        *count = count.saturating_add(1);
        let name = count.to_string();
        make(files.as_fd(), &name).step(step, target)?;
        let (uid, gid) = self.ids.root();
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(files.as_fd(), &*name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).step(step, target)?;
        clone_tree(files.as_fd(), &name, false).step(step, target)
    }
}

fn bind(path: &str, recursive: bool, mount: &Mount) -> Result<OwnedFd, Failure> {
    let step = "bind host path";
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let source = openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).step(step, path)?;
    let made = clone_tree(source.as_fd(), "", recursive).step(step, path)?;
    apply_options(made.as_fd(), mount.options, recursive).step(step, path)?;
    Ok(made)
}

/// The default /dev. Made by the host's root, so that its nodes work in a user namespace, and owned by the workload's.
fn devices(mount: &Mount, ids: &Ids) -> Result<OwnedFd, Failure> {
    let step = "make /dev";
    let made = detached("tmpfs", &[("mode", "755"), ("size", "64k")], attributes(mount.options))?;
    let (uid, gid) = ids.root();
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(&made, "", uid, gid, AtFlags::EMPTY_PATH).step(step, "/dev")?;
    for (name, major, minor) in DEVICES {
        let device = rustix::fs::makedev(major, minor);
        mknodat(&made, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device).step(step, name)?;
        rustix::fs::chmodat(&made, name, Mode::from_raw_mode(0o666), AtFlags::empty()).step(step, name)?;
        chownat(&made, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(step, name)?;
    }
    for (name, to) in LINKS {
        symlinkat(to, &made, name).step(step, name)?;
        chownat(&made, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(step, name)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        mkdirat(&made, name, Mode::from_raw_mode(0o755)).step(step, name)?;
        chownat(&made, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(step, name)?;
    }
    Ok(made)
}

/// A named volume, made if it is missing, seen through the workload's id map so that its ids on disk begin at 0.
fn directory(path: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).step("open volume", path)
}

fn volume(volumes: BorrowedFd<'_>, name: &str, mount: &Mount, ids: &Ids) -> Result<(OwnedFd, bool), Failure> {
    let step = "open volume";
    let is_new = match mkdirat(volumes, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(Failure::new("make volume", name, errno)),
    };
    let made = clone_tree(volumes, name, false).step(step, name)?;
    ids.apply_to(made.as_fd()).step("map ids of volume", name)?;
    apply_options(made.as_fd(), mount.options, false).step(step, name)?;
    Ok((made, is_new))
}

//! Layers of images, each mounted once in the host's view: containers of one image share its pages, so the second start finds the program
//! in memory, and a hundred containers hold it once. Each container sees a clone with its own id map.
//!
//! A layer is checked and mounted by the first start that needs it, in stage 1 before that has a mount namespace of its own, and stays mounted until
//! its file is gone from the store: a mount pins the file's blocks, so whoever removes files calls [`release_layers`] after that.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use byre_plan::Digest;
use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, flock, mkdirat, openat,
    openat2, statx, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, unmount,
};

use crate::Context;
use crate::mounts::{attach, clone_tree};
use crate::report::{Failure, Step};
use crate::sys;

const STEP: &str = "mount image layer";

/// A SHA-256 digest in hexadecimal digits, and one more byte to see that nothing follows.
const RECORD_BYTES: usize = 65;

/// Mounts what of these layers nobody has mounted yet, in the mount namespace that this process is in.
pub(crate) fn share(layers: &[Digest], context: &Context<'_>) -> Result<(), Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, context.shared_layers, flags, Mode::empty()).step(STEP, context.shared_layers)?;
    layers.iter().try_for_each(|digest| share_one(directory.as_fd(), digest, context))
}

fn share_one(directory: BorrowedFd<'_>, digest: &Digest, context: &Context<'_>) -> Result<(), Failure> {
    let name = digest.to_string();
    let open = || -> Result<(OwnedFd, bool), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(directory, &*name, flags, Mode::empty())?;
        let mounted = is_mounted(place.as_fd())?;
        Ok((place, mounted))
    };
    match mkdirat(directory, &*name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(Failure::new(STEP, name, errno)),
    }
    let (place, mounted) = open().step(STEP, &name)?;
    if mounted {
        return Ok(());
    }
    // Another stage 1 may be at it: it holds the lock for one mount, and lets go when it ends, however it ends.
    flock(&place, FlockOperation::LockExclusive).step(STEP, &name)?;
    let (_, mounted) = open().step(STEP, &name)?;
    if mounted {
        return Ok(());
    }
    let mount = from_file(digest, context)?;
    attach(&mount, place.as_fd()).step(STEP, &name)
}

/// A layer as a detached mount: a clone of the shared one, or one of its own where a start in one stage is the layer's first.
pub(crate) fn detached(digest: &Digest, context: &Context<'_>) -> Result<OwnedFd, Failure> {
    let path = format!("{}/{digest}", context.shared_layers);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let shared = match openat2(CWD, &*path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Ok(place) if is_mounted(place.as_fd()).step(STEP, &path)? => Some(place),
        Ok(_) | Err(Errno::NOENT) => None,
        Err(errno) => return Err(Failure::new(STEP, path, errno)),
    };
    match shared {
        Some(place) => clone_tree(place.as_fd(), "", false).step(STEP, &path),
        None => from_file(digest, context),
    }
}

/// Mounts a layer from its file, attached nowhere.
fn from_file(digest: &Digest, context: &Context<'_>) -> Result<OwnedFd, Failure> {
    let file = file_of(context.store_layers, &digest.to_string());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = openat(CWD, &*file, flags, Mode::empty()).step(STEP, &file)?;
    check_digest(source.as_fd(), digest, context.store_layers)?;
    let open = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).step(STEP, "erofs")?;
    // The file that was checked, whatever has its name by now.
    let checked = format!("/proc/self/fd/{}", source.as_raw_fd());
    fsconfig_set_string(&open, "source", &*checked).step(STEP, &file)?;
    fsconfig_set_flag(&open, "ro").step(STEP, &file)?;
    fsconfig_create(&open).step(STEP, &file)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&open, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step(STEP, &file)
}

/// Compares the digest that fs-verity holds a layer's reads to with the one that was recorded when the layer was made. A layer without a
/// record was made where the file system has no fs-verity.
fn check_digest(layer: BorrowedFd<'_>, digest: &Digest, store_layers: &str) -> Result<(), Failure> {
    let step = "check image layer";
    let file = format!("{store_layers}/{digest}.verity");
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let record = match openat(CWD, &*file, flags, Mode::empty()) {
        Ok(record) => record,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(Failure::new(step, &*file, errno)),
    };
    let mut recorded = [0_u8; RECORD_BYTES];
    let length = rustix::io::read(&record, &mut recorded).step(step, &file)?;
    let measured = sys::measure_verity(layer).step(step, &format!("{store_layers}/{digest}.erofs"))?;
    if recorded.get(..length) == Some(Digest(measured).to_string().as_bytes()) {
        Ok(())
    } else {
        Err(Failure::new(step, format!("{store_layers}/{digest}.erofs is not what was loaded"), Errno::BADMSG))
    }
}

fn file_of(store: &str, name: &str) -> String {
    format!("{store}/{name}.erofs")
}

/// Whether a directory is where a file system begins.
fn is_mounted(place: BorrowedFd<'_>) -> Result<bool, Errno> {
    let status = statx(place, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Unmounts every shared layer whose file is not in the store any more, so that its blocks are given back; without a store all of them.
/// Containers that still run from one keep it by their own mount. May wait on the disk: not for PID 1's own process.
///
/// # Errors
/// The kernel's; what could be released is.
pub fn release_layers(shared: &str, store: Option<&str>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, shared, flags, Mode::empty())?;
    let mut result = Ok(());
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let is_gone =
            |store| rustix::fs::access(&*file_of(store, name), rustix::fs::Access::EXISTS) == Err(Errno::NOENT);
        if store.is_none_or(is_gone) {
            result = result.and(release(directory.as_fd(), shared, name));
        }
    }
    result
}

fn release(directory: BorrowedFd<'_>, shared: &str, name: &str) -> Result<(), Errno> {
    match unmount(format!("{shared}/{name}"), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Never mounted: the start that made the place failed.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    unlinkat(directory, name, AtFlags::REMOVEDIR)
}

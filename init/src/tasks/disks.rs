//! The state and the data partition: checked, grown at first boot, mounted; and unmounted at the end.
//!
//! Both are on the disk that was booted and on no other. What is damaged is made ready by [`super::repair`] or not mounted.

use std::path::Path;

use byre_protocol::definition::{Grant, ServicesFile};
use byre_protocol::frame;
use rustix::fs::{Gid, Mode, Uid};
use rustix::mount::{MountFlags, UnmountFlags};

use super::boot_disk::BootFacts;
use super::repair::{self, Damaged, Made};
use super::{TaskError, containers, gpt_growth, on};
use crate::sys;

/// `byred log`: the blocks that ext4 keeps back are for it, so that a container which fills the disk can still be heard saying so.
/// Overlayfs writes as the host's root, which must therefore not be the one who has them.
const LOG_UID: u32 = 901;
/// How the state partition was found, for the node's facts: [`WHOLE`], or what was done to it.
const STATE_FOUND: &str = "/run/byre/state-found";
const WHOLE: &str = "whole";
/// Where e2fsck's words about the last repair are kept.
const STATE_REPORT: &str = "/state/repair.txt";

/// Small and precious: every write there is one that somebody waits for.
pub(crate) fn mount_state() -> Result<(), TaskError> {
    let facts = BootFacts::read()?;
    let device = known(&facts.state_partition, "the state partition")?;
    let made = repair::make_ready(&Damaged {
        device: Path::new(device),
        second_superblock: Some(byre_slots::STATE_BLOCKS_PER_GROUP),
        template: Some(Path::new(byre_slots::STATE_TEMPLATE)),
    })?;
    say(&made, "the state partition");
    mount(device, "/state", "")?;
    leave(&made)?;
    // A node whose configuration cannot be put back goes on with the one that is there.
    if let Err(error) = super::trial::restore_configuration() {
        crate::console::say(&format!("the configuration of before the trial is not put back: {error}"));
    }
    make_directories("/state/")
}

/// Says what was done to a damaged file system, on the console and in the job's log.
fn say(made: &Made, what: &str) {
    if let (Some(text), Some(report)) = (made.text(), made.report()) {
        crate::console::say(&format!("{what}: {text}"));
        eprintln!("{what}: {text}\n{report}");
    }
}

/// Leaves how the state partition was found for the node's facts, and for who looks later.
fn leave(made: &Made) -> Result<(), TaskError> {
    let text = made.text().unwrap_or_else(|| WHOLE.to_owned());
    std::fs::write(STATE_FOUND, format!("{text}\n")).map_err(on("write", STATE_FOUND))?;
    match made.report() {
        Some(report) => std::fs::write(STATE_REPORT, report).map_err(on("write", STATE_REPORT)),
        None => Ok(()),
    }
}

/// Whether this boot found the state partition whole. If not, what it does not know of may be what was lost.
pub(super) fn state_was_whole() -> bool {
    std::fs::read_to_string(STATE_FOUND).is_ok_and(|text| text.trim() == WHOLE)
}

/// Large: images, containers, volumes, logs.
pub(crate) fn mount_data() -> Result<(), TaskError> {
    let facts = BootFacts::read()?;
    let device = known(&facts.data_partition, "the data partition")?;
    gpt_growth::grow_last_partition(known(&facts.disk, "the disk")?, device)?;
    let made = repair::make_ready(&Damaged { device: Path::new(device), second_superblock: None, template: None })?;
    say(&made, "the data partition");
    mount(device, "/data", &format!("prjquota,resuid={LOG_UID}"))?;
    sys::grow_mounted_ext4(Path::new("/data"), gpt_growth::size_of(device)?)?;
    for path in ["/data/containers", "/data/volumes"] {
        make_directory(path, 0o711, 0, 0)?;
    }
    make_directories("/data/")?;
    containers::note_found()
}

fn known<'a>(path: &'a str, what: &'static str) -> Result<&'a str, TaskError> {
    if path.starts_with("/dev/") { Ok(path) } else { Err(TaskError::NoBootFacts { what }) }
}

fn mount(device: &str, target: &str, data: &str) -> Result<(), TaskError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let options = if data.is_empty() { "errors=remount-ro".to_owned() } else { format!("errors=remount-ro,{data}") };
    let options = std::ffi::CString::new(options).map_err(|_| TaskError::Invalid("mount options".to_owned()))?;
    rustix::mount::mount(device, target, "ext4", flags, Some(options.as_c_str())).map_err(|errno| TaskError::Mount {
        device: device.to_owned(),
        target: target.to_owned(),
        errno,
    })
}

/// Makes the directories that service definitions ask for below a mount point.
fn make_directories(prefix: &str) -> Result<(), TaskError> {
    let bytes = std::fs::read(ServicesFile::PATH).map_err(on("read", ServicesFile::PATH))?;
    let file: ServicesFile =
        frame::decode_file(&bytes).map_err(|error| TaskError::Invalid(format!("{}: {error}", ServicesFile::PATH)))?;
    for grant in file.services.iter().flat_map(|definition| &definition.grants) {
        if let Grant::Directory { path, mode, uid, gid } = grant
            && path.starts_with(prefix)
        {
            make_directory(path, u32::from(*mode), *uid, *gid)?;
        }
    }
    Ok(())
}

fn make_directory(path: &str, mode: u32, uid: u32, gid: u32) -> Result<(), TaskError> {
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::mkdir(path, mode) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(on("make directory", path)(errno.into())),
    }
    rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|errno| on("own", path)(errno.into()))?;
    rustix::fs::chmod(path, mode).map_err(|errno| on("chmod", path)(errno.into()))
}

/// Writes everything out and takes the mounts away.
pub(crate) fn unmount_all() -> Result<(), TaskError> {
    rustix::fs::sync();
    let mut failed = Vec::new();
    // Mounted layers are files of the data partition.
    if let Err(errno) = byre_launch::release_layers(crate::supervisor::SHARED_LAYERS, None) {
        failed.push(format!("{}: {errno}", crate::supervisor::SHARED_LAYERS));
    }
    for target in ["/run/byre/nocloud", "/data", "/state"] {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(errno) => {
                // Busy: something sleeps in the kernel. Read-only is as good for the disk.
                let read_only = rustix::mount::mount_remount(target, MountFlags::RDONLY, c"");
                if read_only.is_err() {
                    failed.push(format!("{target}: {errno}"));
                }
            }
        }
    }
    rustix::fs::sync();
    if failed.is_empty() { Ok(()) } else { Err(TaskError::Invalid(failed.join("; "))) }
}

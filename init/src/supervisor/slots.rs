//! The partitions of the two slots, for the one service that writes releases: the running slot's for reading, the other's for writing.
//!
//! The updater never opens a device by name, so it can write no partition but these three, and which three is decided here, by the slot that
//! the early stage booted. Opening a partition's node reads nothing from the disk, so PID 1 does not wait for it.

use std::os::fd::OwnedFd;

use byre_slots::Slot;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::listeners::GrantError;

/// All six, named `active-root`, `inactive-root` and so on; none on a machine that was booted without slots.
pub(super) fn partitions() -> Result<Vec<(String, OwnedFd)>, GrantError> {
    let (Ok(disk), Ok(letter)) = (std::env::var("BYRE_DISK"), std::env::var("BYRE_SLOT")) else {
        return Ok(Vec::new());
    };
    let Some(active) = Slot::from_letter(&letter) else { return Ok(Vec::new()) };
    let names = partition_names(&disk)?;
    let mut opened = Vec::new();
    for (slot, prefix, access) in [(active, "active", OFlags::RDONLY), (active.other(), "inactive", OFlags::RDWR)] {
        for (part, label) in [("root", slot.root_label()), ("verity", slot.verity_label()), ("uki", slot.uki_label())] {
            let refused = |errno| GrantError { what: format!("partition {label} of {disk}"), errno };
            let (_, name) = names.iter().find(|(found, _)| found == label).ok_or_else(|| refused(Errno::NODEV))?;
            let path = format!("/dev/{name}");
            let fd = rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty()).map_err(refused)?;
            opened.push((format!("{prefix}-{part}"), fd));
        }
    }
    Ok(opened)
}

/// Labels and kernel names of the partitions of a disk such as `/dev/vda`.
fn partition_names(disk: &str) -> Result<Vec<(String, String)>, GrantError> {
    let name = disk.strip_prefix("/dev/").unwrap_or(disk);
    let directory = format!("/sys/class/block/{name}");
    let entries = std::fs::read_dir(&directory).map_err(|error| GrantError {
        what: directory.clone(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Ok(child) = entry.file_name().into_string() else { continue };
        let Ok(text) = std::fs::read_to_string(format!("{directory}/{child}/uevent")) else { continue };
        if let Some(label) = text.lines().find_map(|line| line.strip_prefix("PARTNAME=")) {
            found.push((label.to_owned(), child));
        }
    }
    Ok(found)
}

//! Finds out whether the last boot ended in a panic: the kernel then left a record in the firmware's variables (pstore).
//!
//! Records are moved to `/run/byre/crash`, where PID 1 finds them, and are removed from the firmware: its store is small, and
//! a record must count once.

use rustix::mount::{MountFlags, mount};
use std::ffi::CStr;
use std::io::Read;
use std::path::Path;

const PSTORE: &str = "/sys/fs/pstore";
/// For PID 1.
const KEPT: &str = "/run/byre/crash";
/// A record is 10 KiB of log in parts of 1 KiB; this is three crashes.
const MAX_FILES: usize = 64;
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// What the last boot left.
#[derive(Debug, Default)]
pub(super) struct Crash {
    /// Whether there is the record of a panic; an oops alone does not end a boot.
    pub(super) panicked: bool,
    /// The kernel's last words, if it is.
    pub(super) log: String,
}

/// Takes the records.
pub(super) fn collect() -> Crash {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Without pstore nothing is known, which is the same as no panic.
    if mount("pstore", PSTORE, "pstore", flags, None::<&CStr>).is_err() || std::fs::create_dir_all(KEPT).is_err() {
        return Crash::default();
    }
    let Ok(entries) = std::fs::read_dir(PSTORE) else {
        return Crash::default();
    };
    let mut parts = Vec::new();
    for entry in entries.flatten().take(MAX_FILES) {
        let mut record = Vec::new();
        let read = std::fs::File::open(entry.path())
            .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut record).map(drop));
        if read.is_err() {
            continue;
        }
        let _ = std::fs::write(Path::new(KEPT).join(entry.file_name()), &record);
        let _ = std::fs::remove_file(entry.path());
        parts.push(String::from_utf8_lossy(&record).into_owned());
    }
    // The kernel's header: `Panic#1 Part1`.
    let panicked = parts.iter().any(|part| part.starts_with("Panic#"));
    Crash { panicked, log: byre_boots::log::join_crash(parts) }
}

//! Making things last: a file is complete on disk before it has its name, and its name before anyone is told.
//!
//! A new file waits under a temporary name in the directory it will live in: a rename between directories would need one
//! more Landlock right, and the sweep at the next start finds it there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::sys;

/// Files being made begin with it; nothing finished does.
pub(super) const TEMPORARY_PREFIX: &str = ".new-";
/// Everything in the store is public content; nothing in it changes once it has its name.
const FINISHED_MODE: u32 = 0o444;

/// Makes an empty temporary file for `name` in `dir`.
pub(super) fn create(dir: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    let path = dir.join(format!("{TEMPORARY_PREFIX}{name}"));
    // Left by a load that failed; the store's lock says that nobody else is writing it.
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    Ok((path, file))
}

/// Gives the complete temporary file its name. It is not durable before [`sync_dir`].
fn publish(temporary: &Path, file: File, name: &Path) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(FINISHED_MODE))?;
    file.sync_all()?;
    fs::rename(temporary, name)
}

/// As [`publish`], under fs-verity where the file system has it. The digest that reads are held to is then in a file of its own beside it,
/// which has its name first: whoever mounts the layer compares.
pub(super) fn publish_layer(temporary: &Path, file: File, dir: &Path, layer: &str, digest: &str) -> io::Result<()> {
    file.sync_all()?;
    // fs-verity wants no writer left.
    drop(file);
    let file = File::open(temporary)?;
    if sys::enable_verity(&file)? {
        let measured: String = sys::measure_verity(&file)?.iter().map(|byte| format!("{byte:02x}")).collect();
        write_file(dir, digest, measured.as_bytes())?;
    }
    publish(temporary, file, &dir.join(layer))
}

/// Writes a small file whole, durable when this returns.
pub(super) fn write(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    write_file(dir, name, bytes)?;
    sync_dir(dir)
}

/// Writes a small file whole; its name is not durable before [`sync_dir`].
fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (temporary, mut file) = create(dir, name)?;
    let done = file.write_all(bytes).and_then(|()| publish(&temporary, file, &dir.join(name)));
    if done.is_err() {
        // The first error is the one to report; the sweep at the next start removes what this could not.
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// Makes renames and removals in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes a file; one that is not there is fine.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

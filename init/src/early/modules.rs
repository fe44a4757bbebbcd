//! Loads the modules of the initramfs in the order that the image build computed, and frees their memory.

use super::{EarlyError, sys};
use std::os::fd::AsFd;
use std::path::Path;

/// The build's list; more lines than this is not one of ours.
const ORDER: &str = "/modules/order";
const MAX_MODULES: usize = 128;

/// Loads every module; returns how many. A module without its hardware (a watchdog that is not there) is not an error.
pub(super) fn load_all() -> Result<usize, EarlyError> {
    let order = std::fs::read_to_string(ORDER).map_err(|source| EarlyError::File {
        action: "read",
        path: ORDER.into(),
        source,
    })?;
    let mut loaded: usize = 0;
    for name in order.lines().take(MAX_MODULES) {
        let path = format!("/modules/{name}.ko");
        if load(name, Path::new(&path))? {
            loaded = loaded.saturating_add(1);
        }
        // The initramfs is memory; a module that is loaded is not needed twice.
        let _ = std::fs::remove_file(&path);
    }
    let _ = std::fs::remove_file(ORDER);
    Ok(loaded)
}

/// Whether the module is in the kernel now.
fn load(name: &str, path: &Path) -> Result<bool, EarlyError> {
    let file = std::fs::File::open(path).map_err(|source| EarlyError::File {
        action: "open",
        path: path.to_owned(),
        source,
    })?;
    match sys::load_module(file.as_fd()) {
        Ok(()) => Ok(true),
        Err(errno) => match errno.raw_os_error() {
            Some(libc::EEXIST) => Ok(true),
            // What a driver says when its processor feature, device or firmware is missing.
            Some(libc::ENODEV | libc::EOPNOTSUPP | libc::ENXIO) => Ok(false),
            Some(_) | None => Err(EarlyError::Module { name: name.to_owned(), errno }),
        },
    }
}

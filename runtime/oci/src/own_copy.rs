//! The program runs from a sealed copy of itself in memory before it goes near a container: whoever gets at it through /proc/self/exe finds
//! a file that cannot be written (CVE-2019-5736).

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create, sendfile};
use rustix::io::Errno;

use crate::error::{Error, cannot};

/// Nothing of the copy can be changed, not even this.
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);
/// Bytes copied at once; the kernel takes no more than 2 GiB.
const CHUNK_BYTES: usize = 1 << 30;

/// Returns in a process that runs from a sealed copy, which may be a new one with the same arguments.
pub(crate) fn ensure() -> Result<(), Error> {
    let what = "run from a sealed copy of the program";
    let own = File::open("/proc/self/exe").map_err(cannot(what))?;
    if fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SEALS)) {
        return Ok(());
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match memfd_create("byre-oci", flags | MemfdFlags::EXEC) {
        // Linux before 6.3 does not know the flag and makes it executable anyway.
        Err(Errno::INVAL) => memfd_create("byre-oci", flags),
        made => made,
    }
    .map_err(cannot(what))?;
    while sendfile(&copy, &own, None, CHUNK_BYTES).map_err(cannot(what))? > 0 {}
    fcntl_add_seals(&copy, SEALS).map_err(cannot(what))?;
    let text = |text: std::ffi::OsString| CString::new(text.as_bytes()).unwrap_or_default();
    let arguments: Vec<CString> = std::env::args_os().map(text).collect();
    let environment: Vec<CString> = std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            text(name)
        })
        .collect();
    match nix::unistd::fexecve(copy.as_fd(), &arguments, &environment) {
        Ok(never) => match never {},
        Err(errno) => Err(cannot(what)(errno)),
    }
}

//! Installs the Debian packages that a command needs on this machine and that are missing, by name, and says which.

use anyhow::{Context, Result, ensure};
use std::process::Command;

/// A program and the package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needed {
    /// Looked for in `PATH`, or an absolute path of a file.
    pub(crate) program: &'static str,
    /// Debian's name for where it comes from.
    pub(crate) package: &'static str,
}

/// What building an image needs: programs that carry bytes in, none that write the image.
pub(crate) const FOR_IMAGE: &[Needed] = &[
    Needed { program: "curl", package: "curl" },
    Needed { program: "gpgv", package: "gpgv" },
    Needed { program: "xz", package: "xz-utils" },
    Needed { program: "dpkg-deb", package: "dpkg" },
    // Rust's linker driver, the C library's static archive, and the compiler that some crates call.
    Needed { program: "cc", package: "build-essential" },
];

/// Installs the packages of those programs that are not there.
///
/// # Errors
/// When apt-get cannot install them; the message has the command to run by hand.
pub(crate) fn ensure_installed(needed: &[Needed]) -> Result<()> {
    let mut missing: Vec<&str> = needed.iter().filter(|one| !present(one.program)).map(|one| one.package).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing Debian packages: {}", missing.join(" "));
    apt_get(&["update", "-qq"]).ok();
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(&missing);
    apt_get(&arguments).with_context(|| format!("install them by hand: sudo apt-get install {}", missing.join(" ")))
}

fn present(program: &str) -> bool {
    if program.starts_with('/') {
        return std::path::Path::new(program).exists();
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    // Administrators' directories are not in every user's PATH.
    std::env::split_paths(&paths)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|directory| directory.join(program).is_file())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let mut command = Command::new(if root { "apt-get" } else { "sudo" });
    if !root {
        command.arg("apt-get");
    }
    let status = command
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(std::process::Stdio::null())
        .status()
        .context("cannot run apt-get; this command needs Debian 12 or newer")?;
    ensure!(status.success(), "apt-get {} failed", arguments.join(" "));
    Ok(())
}

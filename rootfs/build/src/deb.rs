//! Unpacks Debian packages whose hash was checked. Takes files and symbolic links only, and only below the given directory.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// Unpacks the package `file` into `to`. Paths are kept, with `/bin`, `/sbin`, `/lib`, `/lib64` folded into `/usr`.
/// Owners and times are not: the image sets its own.
pub(crate) fn unpack(file: &Path, to: &Path, wanted: impl Fn(&Path) -> bool) -> Result<()> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(file)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb; install the package dpkg")?;
    let stream = child.stdout.take().context("no output from dpkg-deb")?;
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = usr_merged(&entry.path()?)?;
        if !wanted(&path) {
            continue;
        }
        let target = to.join(&path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let mode = entry.header().mode()?;
            let mut out = std::fs::File::create(&target)?;
            std::io::copy(&mut entry, &mut out)?;
            use std::os::unix::fs::PermissionsExt;
            out.set_permissions(std::fs::Permissions::from_mode(if mode & 0o111 == 0 { 0o644 } else { 0o755 }))?;
        } else if kind.is_symlink() {
            let link = entry.link_name()?.context("symbolic link without a target")?;
            std::fs::remove_file(&target).ok();
            std::os::unix::fs::symlink(link, &target)?;
        } else if kind.is_hard_link() {
            let link = usr_merged(&entry.link_name()?.context("hard link without a target")?)?;
            std::fs::copy(to.join(link), &target)?;
        } else if !kind.is_dir() {
            bail!("{}: {} is neither file, link nor directory", file.display(), path.display());
        }
    }
    ensure!(child.wait()?.success(), "dpkg-deb could not read {}", file.display());
    Ok(())
}

/// The path below the root, refusing `..`, with the merged-usr directories in their real place.
fn usr_merged(path: &Path) -> Result<PathBuf> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name.to_owned()),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => bail!("{} leaves the package", path.display()),
        }
    }
    let mut out = PathBuf::new();
    if parts.first().is_some_and(|first| ["bin", "sbin", "lib", "lib64"].iter().any(|name| first == name)) {
        out.push("usr");
    }
    out.extend(parts);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_and_under_usr() {
        assert_eq!(usr_merged(Path::new("./lib64/ld.so")).unwrap(), Path::new("usr/lib64/ld.so"));
        assert_eq!(usr_merged(Path::new("./usr/bin/x")).unwrap(), Path::new("usr/bin/x"));
        assert!(usr_merged(Path::new("./../x")).is_err());
    }
}

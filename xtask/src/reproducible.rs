//! Builds the OS image a second time, from the same sources elsewhere, and compares every byte.
//!
//! The second build has other paths, its own build folder, another number of jobs, and comes later; nothing but the sources and the locked
//! packages may have reached the first one.

use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::image;

/// What must be the same. The manifest has the digests of the rest.
const COMPARED: &[&str] =
    &["manifest.json", "sbom.spdx.json", "root.erofs", "root.verity", "initrd", "uki.efi", "disk.img"];
/// Another number of jobs than any default on the machines that run this: two processors and more.
const JOBS: u32 = 3;

/// Builds again and compares with `built`, the folder of the first build. The second one is kept if they differ.
pub(crate) fn check(args: &image::Args, built: &Path) -> Result<()> {
    let repository = image::repository()?;
    let folder = repository.join("target/reproducible");
    std::fs::remove_dir_all(&folder).ok();
    // Longer than the first path, and with another last name.
    let elsewhere = folder.join("the-same-sources/in-another-place");
    copy_sources(&repository, &elsewhere)?;
    std::fs::create_dir_all(elsewhere.join("target"))?;
    // Fetched packages are checked by their digests on every use; they need not be fetched twice.
    std::os::unix::fs::symlink(repository.join("target/packages"), elsewhere.join("target/packages"))?;
    let out = folder.join("image");
    // Keys are an input: without them the second build would make its own.
    let keys = args.keys.clone().unwrap_or_else(|| repository.join(crate::keys::DEVELOPMENT));
    let again =
        image::Args { jobs: Some(JOBS), target_dir: Some(folder.join("build")), keys: Some(keys), ..args.clone() };
    image::build(&again, &elsewhere, &out, &mut |line| eprintln!("again: {line}"))?;
    let mut different = Vec::new();
    for name in COMPARED {
        if let Some(at) = first_difference(&built.join(name), &out.join(name))? {
            different.push(format!("{name} from byte {at}"));
        }
    }
    if !different.is_empty() {
        bail!("two builds differ: {}; compare {} and {}", different.join(", "), built.display(), out.display());
    }
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// Copies what git knows and what it does not ignore: a build must not depend on anything else.
fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    let list = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(from)
        .output()
        .context("cannot run git")?;
    ensure!(list.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&list.stderr));
    for name in String::from_utf8(list.stdout)?.split('\0').filter(|name| !name.is_empty()) {
        let (source, target) = (from.join(name), to.join(name));
        if !source.is_file() {
            continue; // removed, but still in git's index
        }
        std::fs::create_dir_all(target.parent().context("a file without a folder")?)?;
        std::fs::copy(&source, &target).with_context(|| format!("cannot copy {name}"))?;
    }
    Ok(())
}

/// The first byte in which two files differ, or `None`.
fn first_difference(left: &Path, right: &Path) -> Result<Option<u64>> {
    let open = |path: &Path| std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let (mut left, mut right) = (open(left)?, open(right)?);
    let (mut one, mut two) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut position = 0u64;
    loop {
        let (first, second) = (fill(&mut left, &mut one)?, fill(&mut right, &mut two)?);
        let (first, second) = (&one[..first], &two[..second]);
        if first != second {
            let common = first.iter().zip(second).take_while(|(left, right)| left == right).count();
            return Ok(Some(position + common as u64));
        }
        if first.is_empty() {
            return Ok(None);
        }
        position += first.len() as u64;
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut std::fs::File, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let count = file.read(&mut buffer[filled..])?;
        if count == 0 {
            break;
        }
        filled += count;
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let long = vec![1u8; (1 << 20) + 10];
        let mut other = long.clone();
        other[(1 << 20) + 3] = 2;
        let (a, b, c) = (file("a", &long), file("b", &other), file("c", &long[..5]));
        assert_eq!(first_difference(&a, &a).unwrap(), None);
        assert_eq!(first_difference(&a, &b).unwrap(), Some((1 << 20) + 3));
        assert_eq!(first_difference(&a, &c).unwrap(), Some(5));
    }
}

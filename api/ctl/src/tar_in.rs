//! Packs a path of this machine as a tar stream for a node.
//!
//! Links are sent as links, never followed. Owners become root, as docker's `cp` does: our users mean nothing in a container. Devices,
//! pipes and sockets are left out and counted.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{Read as _, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Deeper trees than this are a mistake or a loop of mounts.
const DEPTH: usize = 256;

/// Why packing failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error("cannot read {0} ({1})")]
    Read(PathBuf, std::io::Error),
    #[error("{0} is deeper than {DEPTH} directories")]
    Deep(PathBuf),
    #[error("cannot send ({0})")]
    Send(std::io::Error),
}

/// Packs `path` under `name`; with an empty name, what is in the directory `path`. Returns how many entries were left out.
pub(crate) fn pack(path: &Path, name: &OsStr, to: impl Write) -> Result<u64, PackError> {
    let mut builder = Builder::new(to);
    let mut left_out = 0;
    // Depth first, with its own stack: the tree is not ours to trust with the call stack.
    let mut stack: Vec<(PathBuf, OsString, usize)> = vec![(path.into(), name.into(), 0)];
    while let Some((path, name, depth)) = stack.pop() {
        if depth > DEPTH {
            return Err(PackError::Deep(path));
        }
        let metadata = path.symlink_metadata().map_err(|error| PackError::Read(path.clone(), error))?;
        if metadata.is_dir() {
            if !name.is_empty() {
                let mut header = header(&metadata, EntryType::Directory, 0);
                builder.append_data(&mut header, Path::new(&name), std::io::empty()).map_err(PackError::Send)?;
            }
            let mut children = children(&path)?;
            children.sort_unstable_by(|left, right| right.cmp(left));
            stack.extend(
                children.into_iter().map(|child| (path.join(&child), Path::new(&name).join(child).into(), depth + 1)),
            );
        } else if !entry(&mut builder, &path, &name, &metadata)? {
            left_out += 1;
        }
    }
    builder.into_inner().and_then(|mut to| to.flush()).map_err(PackError::Send)?;
    Ok(left_out)
}

fn children(path: &Path) -> Result<Vec<OsString>, PackError> {
    let failed = |error| PackError::Read(path.into(), error);
    let entries = std::fs::read_dir(path).map_err(failed)?;
    entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(failed)).collect()
}

/// One file or link; false if it is neither.
fn entry(builder: &mut Builder<impl Write>, path: &Path, name: &OsStr, metadata: &Metadata) -> Result<bool, PackError> {
    let failed = |error| PackError::Read(path.into(), error);
    if metadata.is_symlink() {
        let target = std::fs::read_link(path).map_err(failed)?;
        let mut header = header(metadata, EntryType::Symlink, 0);
        builder.append_link(&mut header, Path::new(name), target).map_err(PackError::Send)?;
        return Ok(true);
    }
    if !metadata.is_file() {
        return Ok(false);
    }
    let file = File::open(path).map_err(failed)?;
    let size = metadata.len();
    let mut header = header(metadata, EntryType::Regular, size);
    // A file that shrinks or grows while it is read must not shift what follows: exactly the size that the header says is sent.
    let exactly = file.take(size).chain(std::io::repeat(0)).take(size);
    builder.append_data(&mut header, Path::new(name), exactly).map_err(PackError::Send)?;
    Ok(true)
}

fn header(metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.permissions().mode() & 0o7777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_the_same() {
        let from = tempfile::tempdir().unwrap();
        let tree = from.path().join("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(tree.join("sub/file"), "data").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
        std::fs::write(tree.join("x".repeat(200)), "long").unwrap();
        let mut packed = Vec::new();
        assert_eq!(pack(&tree, OsStr::new("copy"), &mut packed).unwrap(), 0);
        let to = tempfile::tempdir().unwrap();
        let at = File::open(to.path()).unwrap().into();
        crate::tar_out::unpack(&packed[..], &at, Some(OsStr::new("here"))).unwrap();
        assert_eq!(std::fs::read_to_string(to.path().join("here/sub/file")).unwrap(), "data");
        assert_eq!(std::fs::read_link(to.path().join("here/link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(std::fs::read_to_string(to.path().join("here").join("x".repeat(200))).unwrap(), "long");
    }

    #[test]
    fn sockets_are_left_out_and_links_not_followed() {
        let from = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
        std::os::unix::fs::symlink("..", from.path().join("up")).unwrap();
        let mut packed = Vec::new();
        assert_eq!(pack(from.path(), OsStr::new("d"), &mut packed).unwrap(), 1);
        let mut archive = tar::Archive::new(&packed[..]);
        assert_eq!(archive.entries().unwrap().count(), 2);
    }

    #[test]
    fn a_missing_path_is_named() {
        let error = pack(Path::new("/nonexistent"), OsStr::new("x"), std::io::sink()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"));
    }
}

//! `cp-in DIR` and `cp-out PATH`: a tar stream into a directory, and a path into a tar stream.
//!
//! They run inside a container, as its user and in its namespaces, so whatever a path means there, it cannot mean anything outside.
//! Even so a stream never writes outside DIR, devices are never made, and what is read or written is bounded in number and depth.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header};

/// Entries of one stream: more than the largest source trees have.
const ENTRIES: usize = 2_000_000;
/// Depth of directories; the kernel takes no path longer than 4096 bytes anyway.
const DEPTH: usize = 1024;
/// Bytes read or written at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// Called wrongly.
    #[error("exactly one path is needed")]
    Usage,
    /// A file failed.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The stream failed.
    #[error("tar stream: {0}")]
    Stream(io::Error),
    /// Too much.
    #[error("more than {ENTRIES} files or {DEPTH} nested directories: copy a part of it")]
    TooMuch,
    /// An entry that would be written elsewhere.
    #[error("{0} leads out of the directory: it is not written")]
    Outside(PathBuf),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CopyError + '_ {
    |source| CopyError::File { path: path.to_owned(), source }
}

/// Unpacks stdin into a directory that exists.
pub(crate) fn into(arguments: &[OsString]) -> Result<(), CopyError> {
    let [directory] = arguments else { return Err(CopyError::Usage) };
    unpack(BufReader::with_capacity(BUFFER_BYTES, io::stdin().lock()), Path::new(directory))
}

/// Packs a path to stdout, under its last component's name.
pub(crate) fn out_of(arguments: &[OsString]) -> Result<(), CopyError> {
    let [path] = arguments else { return Err(CopyError::Usage) };
    let mut stdout = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
    pack(Path::new(path), &mut stdout)?;
    stdout.flush().map_err(CopyError::Stream)
}

pub(crate) fn unpack(stream: impl Read, directory: &Path) -> Result<(), CopyError> {
    let directory = directory.canonicalize().map_err(at(directory))?;
    if !directory.is_dir() {
        return Err(at(&directory)(io::ErrorKind::NotADirectory.into()));
    }
    let mut archive = Archive::new(stream);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(false);
    archive.set_unpack_xattrs(false);
    for (number, entry) in archive.entries().map_err(CopyError::Stream)?.enumerate() {
        let mut entry = entry.map_err(CopyError::Stream)?;
        let path = entry.path().map_err(CopyError::Stream)?.into_owned();
        if number >= ENTRIES || path.components().count() > DEPTH {
            return Err(CopyError::TooMuch);
        }
        if matches!(entry.header().entry_type(), EntryType::Char | EntryType::Block | EntryType::Fifo) {
            eprintln!("{}: devices and pipes are left out", path.display());
            continue;
        }
        if !entry.unpack_in(&directory).map_err(at(&directory.join(&path)))? {
            return Err(CopyError::Outside(path));
        }
    }
    Ok(())
}

/// A directory that is being packed: its path, and the name that its entries have in the stream.
struct Open {
    entries: std::fs::ReadDir,
    path: PathBuf,
    name: PathBuf,
}

fn pack(path: &Path, to: &mut impl Write) -> Result<(), CopyError> {
    // `/`, `.` and `..` have no name of their own: their content goes under `.`.
    let name = path.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    // A path that is named is followed, what is found below it is not.
    let start = path.canonicalize().map_err(at(path))?;
    // Made only now: a builder that is dropped ends its stream as if it were whole.
    let mut builder = Builder::new(to);
    builder.follow_symlinks(false);
    let mut open = Vec::new();
    let mut count = 0_usize;
    add(&mut builder, start, name, &mut open)?;
    while let Some(directory) = open.last_mut() {
        let Some(entry) = directory.entries.next() else {
            open.pop();
            continue;
        };
        let file_name = entry.map_err(at(&directory.path))?.file_name();
        let (path, name) = (directory.path.join(&file_name), directory.name.join(&file_name));
        count += 1;
        if count > ENTRIES || open.len() > DEPTH {
            return Err(CopyError::TooMuch);
        }
        add(&mut builder, path, name, &mut open)?;
    }
    builder.finish().map_err(CopyError::Stream)
}

/// Adds one entry; a directory's content is left to the caller's loop.
fn add(builder: &mut Builder<impl Write>, path: PathBuf, name: PathBuf, open: &mut Vec<Open>) -> Result<(), CopyError> {
    let metadata = std::fs::symlink_metadata(&path).map_err(at(&path))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        builder.append_dir(&name, &path).map_err(at(&path))?;
        let entries = std::fs::read_dir(&path).map_err(at(&path))?;
        open.push(Open { entries, path, name });
    } else if kind.is_symlink() {
        let target = std::fs::read_link(&path).map_err(at(&path))?;
        let mut header = Header::new_gnu();
        header.set_metadata(&metadata);
        header.set_size(0);
        builder.append_link(&mut header, &name, &target).map_err(at(&path))?;
    } else if kind.is_file() {
        append_file(builder, &path, &name).map_err(at(&path))?;
    } else {
        eprintln!("{}: devices, pipes and sockets are left out", path.display());
    }
    Ok(())
}

/// A file that grows or shrinks meanwhile is packed with the length that it had: shorter ones are filled with zeros, as tar(1) does.
fn append_file(builder: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    let mut header = Header::new_gnu();
    header.set_metadata(&metadata);
    header.set_mode(metadata.mode());
    header.set_size(metadata.len());
    builder.append_data(&mut header, name, exactly(file, metadata.len()))
}

/// `length` bytes: the file's, then zeros.
fn exactly(file: File, length: u64) -> impl Read {
    file.chain(io::repeat(0)).take(length)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_the_same() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = from.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::write(tree.join("a/file"), vec![7; 100_000]).unwrap();
        std::fs::set_permissions(tree.join("a/file"), PermissionsExt::from_mode(0o751)).unwrap();
        symlink("/nowhere", tree.join("a/b/link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
        std::fs::write(tree.join("x".repeat(200)), b"long").unwrap();
        let mut stream = Vec::new();
        pack(&tree, &mut stream).unwrap();
        unpack(stream.as_slice(), to.path()).unwrap();
        let copy = to.path().join("tree");
        assert_eq!(std::fs::read(copy.join("a/file")).unwrap(), vec![7; 100_000]);
        assert_eq!(std::fs::metadata(copy.join("a/file")).unwrap().mode() & 0o7777, 0o751);
        assert_eq!(std::fs::read_link(copy.join("a/b/link")).unwrap(), Path::new("/nowhere"));
        assert_eq!(std::fs::read(copy.join("x".repeat(200))).unwrap(), b"long");
        assert!(!copy.join("socket").exists());
    }

    #[test]
    fn a_stream_does_not_write_outside_its_directory() {
        let (to, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), to.path().join("link")).unwrap();
        for name in ["../escaped", "link/escaped", "a/../../escaped"] {
            let mut header = Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o644);
            let field = &mut header.as_old_mut().name;
            field[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            let mut builder = Builder::new(Vec::new());
            builder.append(&header, &b"x"[..]).unwrap();
            let stream = builder.into_inner().unwrap();
            assert!(unpack(stream.as_slice(), to.path()).is_err(), "{name}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(!to.path().parent().unwrap().join("escaped").exists());
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(from.path().join("file"), vec![7; 10_000]).unwrap();
        let mut stream = Vec::new();
        pack(&from.path().join("file"), &mut stream).unwrap();
        assert!(unpack(&stream[..5_000], to.path()).is_err());
        assert!(unpack(&stream[..], &to.path().join("missing")).is_err());
    }
}

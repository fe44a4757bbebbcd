//! Root file systems for the images that the README makes: busybox from one static binary, others from a tar.

use std::io::{self, Read, Write};

use super::plain_file;
use super::tarball::TarWriter;
use crate::tar::{Entry, EntryKind, TarReader, Timestamp};

/// Directories of a busybox image with their modes; `mnt` and the rest are where people mount things.
const DIRECTORIES: [(&str, u32); 15] = [
    ("bin/", 0o755),
    ("dev/", 0o755),
    ("etc/", 0o755),
    ("home/", 0o755),
    ("mnt/", 0o755),
    ("proc/", 0o555),
    ("root/", 0o700),
    ("run/", 0o755),
    ("sys/", 0o555),
    ("tmp/", 0o1777),
    ("usr/", 0o755),
    ("usr/bin/", 0o755),
    ("var/", 0o755),
    ("var/log/", 0o755),
    ("var/tmp/", 0o1777),
];
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &[u8] = b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";

/// Writes a root file system around a static busybox, with a symbolic link for each of its `applets`.
///
/// # Errors
/// From writing; `InvalidInput` for an applet's name that is not one.
pub fn busybox(out: impl Write, busybox: &[u8], applets: &[String], mtime: i64) -> io::Result<()> {
    let mut tar = TarWriter::new(out);
    let mtime = Timestamp { seconds: mtime, nanoseconds: 0 };
    let entry = |path: &str, kind, mode| Entry { kind, mode, mtime, ..plain_file(path, 0) };
    for (path, mode) in DIRECTORIES {
        tar.append(&entry(path, EntryKind::Directory, mode), io::empty())?;
    }
    let program = Entry { size: busybox.len() as u64, ..entry("bin/busybox", EntryKind::File, 0o755) };
    tar.append(&program, busybox)?;
    let mut applets: Vec<&str> = applets.iter().map(String::as_str).filter(|applet| *applet != "busybox").collect();
    applets.sort_unstable();
    applets.dedup();
    for applet in applets {
        if applet.is_empty() || applet.contains('/') || applet.starts_with('.') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{applet:?} is not an applet")));
        }
        let link = EntryKind::Symlink(b"busybox".to_vec());
        tar.append(&entry(&format!("bin/{applet}"), link, 0o777), io::empty())?;
    }
    // Scripts begin with it.
    tar.append(&entry("usr/bin/env", EntryKind::Symlink(b"../../bin/busybox".to_vec()), 0o777), io::empty())?;
    for (path, content) in [("etc/group", GROUP), ("etc/passwd", PASSWD)] {
        let file = Entry { size: content.len() as u64, ..entry(path, EntryKind::File, 0o644) };
        tar.append(&file, content)?;
    }
    tar.finish()?;
    Ok(())
}

/// Copies a root file system's tar, leaving out what `keep` does not want, with no time later than `latest`.
///
/// Paths given to `keep` are as in the archive. Sparse files and times inside the file system stay as they are.
///
/// # Errors
/// From reading and writing.
pub fn filter(source: impl Read, out: impl Write, latest: i64, keep: &mut dyn FnMut(&Entry) -> bool) -> io::Result<()> {
    let mut reader = TarReader::new(source);
    let mut writer = TarWriter::new(out);
    while let Some(mut entry) = reader.next_entry().map_err(io::Error::other)? {
        if !keep(&entry) {
            continue;
        }
        if entry.mtime.seconds >= latest {
            entry.mtime = Timestamp { seconds: latest, nanoseconds: 0 };
        }
        writer.append(&entry, &mut reader)?;
    }
    writer.finish()?;
    Ok(())
}

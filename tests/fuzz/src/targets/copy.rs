//! `byrectl cp` from a node, and `byred cp-in` inside a container: tar streams that must write nowhere else.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::layer::append;
use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "copy",
    about: "tar streams unpacked by byrectl and inside a container: nothing beside the destination is made, changed or linked to, and no set-user-id bit \
            arrives here",
    sources: &["api/ctl/src/tar_out.rs", "node/byred/src/copy.rs"],
    longest: 16 * 1024,
    run,
    seeds,
};

fn run(input: &[u8]) -> Verdict {
    let Some((reader, stream)) = super::pick(input, 3) else { return Verdict::Refused };
    let root = super::directory();
    let destination = root.path().join("destination");
    std::fs::create_dir(&destination).expect("room for a directory");
    std::fs::write(root.path().join("neighbour"), "untouched").expect("room for a file");
    let at = OwnedFd::from(File::open(&destination).expect("it was made"));
    let accepted = match reader {
        0 => crate::tar_out::unpack(stream, &at, None).is_ok(),
        1 => crate::tar_out::unpack(stream, &at, Some(OsStr::new("here"))).is_ok(),
        _ => crate::copy::unpack(stream, &destination).is_ok(),
    };
    assert_eq!(std::fs::read_to_string(root.path().join("neighbour")).ok().as_deref(), Some("untouched"));
    assert_eq!(
        std::fs::read_dir(root.path()).expect("it was made").count(),
        2,
        "something was made beside the destination"
    );
    if reader < 2 {
        walk(&destination, 0);
    }
    if reader == 1 {
        let beside =
            std::fs::read_dir(&destination).expect("it was made").flatten().filter(|entry| entry.file_name() != "here");
        assert_eq!(beside.count(), 0, "something has another name than it was to have");
    }
    Verdict::of(accepted)
}

fn walk(directory: &Path, depth: usize) {
    use std::os::unix::fs::MetadataExt as _;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        let kind = metadata.file_type();
        assert!(kind.is_dir() || kind.is_file() || kind.is_symlink(), "{}", entry.path().display());
        assert!(
            kind.is_symlink() || metadata.mode() & 0o6000 == 0,
            "{} has mode {:o}",
            entry.path().display(),
            metadata.mode()
        );
        if kind.is_dir() && depth < 64 {
            walk(&entry.path(), depth + 1);
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, tar::EntryType::Directory, "top/", "", b"");
    append(&mut builder, tar::EntryType::Regular, "top/file", "", b"data");
    append(&mut builder, tar::EntryType::Symlink, "top/link", "../..", b"");
    append(&mut builder, tar::EntryType::Link, "top/hard", "top/file", b"");
    append(&mut builder, tar::EntryType::Regular, &format!("top/{}", "n".repeat(150)), "", b"long");
    let stream = builder.into_inner().expect("it is written to memory");
    vec![super::seed(0, &stream), super::seed(1, &stream), super::seed(2, &stream)]
}

//! Hostile archives. The destination has a neighbour that none of them may touch, and after each refusal the neighbour is compared.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("destination")).unwrap();
        std::fs::create_dir(root.path().join("neighbour")).unwrap();
        std::fs::write(root.path().join("neighbour/file"), "untouched").unwrap();
        Self { root }
    }

    fn path(&self, below: &str) -> std::path::PathBuf {
        self.root.path().join("destination").join(below)
    }

    fn unpack(&self, archive: &[u8], name: Option<&str>) -> Result<Unpacked, UnpackError> {
        let directory = OwnedFd::from(File::open(self.path("")).unwrap());
        let result = unpack(archive, &directory, name.map(OsStr::new));
        assert_eq!(std::fs::read_to_string(self.root.path().join("neighbour/file")).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(self.root.path().join("neighbour")).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(self.root.path()).unwrap().count(), 2);
        result
    }
}

/// An entry with exactly these bytes as its name, whatever they are: the builder would refuse the interesting ones.
fn raw(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) {
    let mut header = Header::new_gnu();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1_000_000);
    header.set_size(data.len() as u64);
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, link) in entries {
        let data: &[u8] = if *kind == EntryType::Regular { b"data" } else { b"" };
        raw(&mut builder, *kind, name, link, 0o755, data);
    }
    builder.into_inner().unwrap()
}

use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};

#[test]
fn a_tree_is_unpacked_under_our_name() {
    let place = Place::new();
    let tree = archive(&[
        (Directory, "etc/", ""),
        (Regular, "etc/a", ""),
        (Directory, "etc/sub", ""),
        (Regular, "etc/sub/b", ""),
        (Symlink, "etc/link", "/etc/passwd"),
        (Link, "etc/hard", "etc/a"),
    ]);
    let done = place.unpack(&tree, Some("copy")).unwrap();
    assert_eq!(done, Unpacked { entries: 6, left_out: 0 });
    assert_eq!(std::fs::read_to_string(place.path("copy/sub/b")).unwrap(), "data");
    assert_eq!(std::fs::read_link(place.path("copy/link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(place.path("copy/hard").metadata().unwrap().ino(), place.path("copy/a").metadata().unwrap().ino());
    assert_eq!(place.path("copy/sub").metadata().unwrap().mtime(), 1_000_000);
}

#[test]
fn a_single_file_takes_our_name_and_replaces_a_file() {
    let place = Place::new();
    std::fs::write(place.path("b"), "old").unwrap();
    place.unpack(&archive(&[(Regular, "a", "")]), Some("b")).unwrap();
    assert_eq!(std::fs::read_to_string(place.path("b")).unwrap(), "data");
}

#[test]
fn contents_go_into_the_directory_itself() {
    let place = Place::new();
    place.unpack(&archive(&[(Directory, "./", ""), (Regular, "./a", "")]), None).unwrap();
    assert!(place.path("a").is_file());
}

#[test]
fn paths_that_lead_out_are_refused() {
    for name in ["/etc/x", "../neighbour/file", "a/../../neighbour/file", "..", "a/..", "/", "a/./../.."] {
        let place = Place::new();
        for kind in [Regular, Directory, Symlink] {
            let first = archive(&[(kind, name, "x")]);
            assert!(matches!(place.unpack(&first, Some("a")), Err(UnpackError::Escape(_))), "{name}");
            let second = archive(&[(Directory, "a", ""), (kind, name, "x")]);
            assert!(place.unpack(&second, Some("a")).is_err(), "{name}");
        }
        let link = archive(&[(Directory, "a", ""), (Link, "a/hard", name)]);
        assert!(place.unpack(&link, Some("a")).is_err(), "hard link to {name}");
    }
}

#[test]
fn a_link_is_never_followed() {
    for target in ["../neighbour", "/", "..", "."] {
        let place = Place::new();
        let through = archive(&[(Directory, "a", ""), (Symlink, "a/l", target), (Regular, "a/l/file", "")]);
        assert!(
            matches!(place.unpack(&through, Some("a")), Err(UnpackError::Escape(_) | UnpackError::Write(..))),
            "{target}"
        );
        let made = archive(&[(Directory, "a", ""), (Symlink, "a/l", target), (Directory, "a/l/new", "")]);
        assert!(place.unpack(&made, Some("a")).is_err(), "{target}");
        let mode = archive(&[(Directory, "a", ""), (Symlink, "a/l", target), (Directory, "a/l", "")]);
        assert!(place.unpack(&mode, Some("a")).is_err(), "{target}");
    }
}

#[test]
fn a_link_at_the_top_or_there_before_is_not_followed_either() {
    let place = Place::new();
    let top = archive(&[(Symlink, "a", "../neighbour"), (Regular, "a/file", "")]);
    assert!(place.unpack(&top, Some("a")).is_err());
    let place = Place::new();
    std::os::unix::fs::symlink("../neighbour", place.path("a")).unwrap();
    assert!(place.unpack(&archive(&[(Directory, "a", ""), (Regular, "a/file", "")]), Some("a")).is_err());
    std::os::unix::fs::symlink("../neighbour/file", place.path("f")).unwrap();
    place.unpack(&archive(&[(Regular, "f", "")]), Some("f")).unwrap();
    assert!(!place.path("f").is_symlink(), "the link was replaced, its target left alone");
}

#[test]
fn a_file_behind_a_hard_link_is_not_written() {
    let place = Place::new();
    std::fs::hard_link(place.root.path().join("neighbour/file"), place.path("f")).unwrap();
    place.unpack(&archive(&[(Regular, "f", "")]), Some("f")).unwrap();
    assert_eq!(std::fs::read_to_string(place.path("f")).unwrap(), "data");
}

#[test]
fn devices_and_pipes_are_left_out_and_counted() {
    let place = Place::new();
    let devices = archive(&[
        (Directory, "a", ""),
        (Char, "a/null", ""),
        (Block, "a/disk", ""),
        (Fifo, "a/pipe", ""),
        (EntryType::GNUSparse, "a/sparse", ""),
    ]);
    // The parser may refuse the malformed sparse header; that is as good.
    if let Ok(done) = place.unpack(&devices, Some("a")) {
        assert_eq!(done, Unpacked { entries: 1, left_out: 4 });
    }
    assert_eq!(std::fs::read_dir(place.path("a")).unwrap().count(), 0);
}

#[test]
fn special_mode_bits_are_dropped() {
    let place = Place::new();
    let mut builder = Builder::new(Vec::new());
    raw(&mut builder, Regular, "f", "", 0o6755, b"");
    place.unpack(&builder.into_inner().unwrap(), Some("f")).unwrap();
    assert_eq!(place.path("f").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn a_read_only_directory_can_be_filled() {
    let place = Place::new();
    let mut builder = Builder::new(Vec::new());
    raw(&mut builder, Directory, "d", "", 0o555, b"");
    raw(&mut builder, Regular, "d/f", "", 0o644, b"x");
    place.unpack(&builder.into_inner().unwrap(), Some("d")).unwrap();
    assert_eq!(place.path("d").metadata().unwrap().permissions().mode() & 0o777, 0o555);
}

#[test]
fn what_was_not_asked_for_is_refused() {
    let place = Place::new();
    let foreign = archive(&[(Directory, "a", ""), (Regular, "b", "")]);
    assert!(matches!(place.unpack(&foreign, Some("a")), Err(UnpackError::Foreign(_))));
    assert!(matches!(place.unpack(&[], Some("a")), Err(UnpackError::Empty)));
    assert!(matches!(place.unpack(&[0; 1024], Some("a")), Err(UnpackError::Empty)));
}

#[test]
fn a_stream_that_breaks_off_is_an_error() {
    let place = Place::new();
    let whole = archive(&[(Regular, "f", "")]);
    for end in [1, 511, 512, 514] {
        assert!(place.unpack(&whole[..end], Some("f")).is_err(), "{end}");
    }
}

#[test]
fn an_endless_header_is_cut_off() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
    header.set_cksum();
    let endless = std::io::Read::chain(&header.as_bytes()[..], std::io::repeat(b'a'));
    let directory = tempfile::tempdir().unwrap();
    let at = OwnedFd::from(File::open(directory.path()).unwrap());
    assert!(matches!(unpack(endless, &at, None), Err(UnpackError::Stream(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_archive_of_any_entries_leaves_the_destination(
        entries in prop::collection::vec((0_usize..6, "(a|a/|[./abl]{1,12}|a/[./abl]{1,8})", "[./abln]{0,12}"), 1..12)
    ) {
        let kinds = [Regular, Directory, Symlink, Link, Char, Fifo];
        let entries: Vec<_> = entries.iter().map(|(kind, name, link)| (kinds[*kind], name.as_str(), link.as_str())).collect();
        let place = Place::new();
        let _ = place.unpack(&archive(&entries), Some("a"));
    }
}

//! Where a copy goes.

use super::*;

#[test]
fn sides() {
    let there = |workload: &str, path: &str| Side::There { workload: workload.into(), path: path.into() };
    assert_eq!(Side::parse("web:/etc"), there("web", "/etc"));
    assert_eq!(Side::parse("web:etc"), there("web", "/etc"));
    assert_eq!(Side::parse("-"), Side::Stream);
    for text in ["./a:b", "/a:b", "a", ":x", "../a:b", "dir/a:b"] {
        assert_eq!(Side::parse(text), Side::Here(text.into()));
    }
}

#[test]
fn out_goes_into_a_directory_or_to_a_name() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let at = |from: &str, to: &Path| place_here(from, to).unwrap();
    assert_eq!(at("/etc/hosts", root), (root.into(), Some("hosts".into())));
    assert_eq!(at("/etc/", root), (root.into(), Some("etc".into())));
    assert_eq!(at("/etc/.", root), (root.into(), None));
    assert_eq!(at("/", root), (root.into(), None));
    assert_eq!(at("/etc/hosts", &root.join("new")), (root.into(), Some("new".into())));
    assert_eq!(at("/etc/hosts", Path::new("new")), (".".into(), Some("new".into())));
    assert!(place_here("/etc/hosts", &root.join("none/")).is_err());
    assert!(place_here("/etc/..", root).is_err());
}

#[test]
fn in_goes_into_a_directory_or_to_a_name() {
    let at = |from: &str, to: &str, kind, directory, contents| {
        place_there(Path::new(from), to, kind, directory, contents).map(|(at, name)| (at, name.into_string().unwrap()))
    };
    let is = |directory: &str, name: &str| (directory.to_owned(), name.to_owned());
    assert_eq!(at("a", "/etc", Kind::Directory, false, false).unwrap(), is("/etc", "a"));
    assert_eq!(at("d/.", "/etc", Kind::Directory, true, true).unwrap(), is("/etc", ""));
    assert_eq!(at("a", "/etc/b", Kind::Nothing, false, false).unwrap(), is("/etc", "b"));
    assert_eq!(at("a", "/b", Kind::File, false, false).unwrap(), is("/", "b"));
    assert_eq!(at("d", "/new/", Kind::Nothing, true, false).unwrap(), is("/", "new"));
    assert!(at("a", "/new/", Kind::Nothing, false, false).is_err());
    assert!(at("d", "/b", Kind::File, true, false).is_err());
    assert!(at("a", "/..", Kind::Nothing, false, false).is_err());
}

#[test]
fn the_first_header_says_what_it_is() {
    let of = |kind| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("x").unwrap();
        header.set_size(0);
        header.set_cksum();
        first_kind(header.as_bytes())
    };
    assert_eq!(of(tar::EntryType::Directory), Kind::Directory);
    assert_eq!(of(tar::EntryType::Symlink), Kind::Link);
    assert_eq!(of(tar::EntryType::Regular), Kind::File);
    assert_eq!(first_kind(&[]), Kind::Nothing);
}

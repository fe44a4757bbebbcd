//! Hostile layers by name, overlay semantics, and the kernel and `fsck.erofs` as judges of what comes out.

use super::*;
use crate::pack::tarball::TarWriter;
use crate::tar::Timestamp;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

const LIMIT: u64 = 64 << 20;

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 },
        size: 0,
        sparse: None,
        xattrs: Vec::new(),
    }
}

fn file(path: &str, data: &[u8]) -> (Entry, Vec<u8>) {
    (Entry { size: data.len() as u64, ..entry(path, EntryKind::File) }, data.to_vec())
}

fn node(path: &str, kind: EntryKind) -> (Entry, Vec<u8>) {
    (entry(path, kind), Vec::new())
}

fn symlink(path: &str, target: &str) -> (Entry, Vec<u8>) {
    node(path, EntryKind::Symlink(target.as_bytes().to_vec()))
}

fn link(path: &str, target: &str) -> (Entry, Vec<u8>) {
    node(path, EntryKind::HardLink(target.as_bytes().to_vec()))
}

fn tar_of(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (entry, data) in entries {
        writer.append(entry, &data[..]).unwrap();
    }
    writer.finish().unwrap()
}

fn convert_bytes(tar: &[u8], at: &Path) -> Result<Layer, LayerError> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(at).unwrap();
    convert(tar, file, Budget::of(LIMIT), &mut |_| true)
}

fn refused(entries: &[(Entry, Vec<u8>)]) -> String {
    let dir = tempfile::tempdir().unwrap();
    convert_bytes(&tar_of(entries), &dir.path().join("x")).unwrap_err().to_string()
}

/// Our own check, and `fsck.erofs` where it is installed.
fn fsck(at: &Path) {
    crate::check::check(&File::open(at).unwrap()).unwrap();
    match Command::new("fsck.erofs").arg(at).output() {
        Ok(done) => assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr)),
        Err(e) => eprintln!("not judged by fsck.erofs ({e}); install erofs-utils"),
    }
}

/// A mounted layer; unmounted when dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    /// `None`, with a printed reason, where the kernel or the user cannot mount.
    fn new(image: &Path, at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        match rustix::mount::mount(image, at, "erofs", rustix::mount::MountFlags::RDONLY, None) {
            Ok(()) => Some(Self(at.to_owned())),
            Err(e) => {
                eprintln!("not judged by the kernel: cannot mount erofs ({e}); needs root and Linux 6.12");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn traversal_is_refused_by_name() {
    let message = refused(&[file("ok", b""), file("a/../../evil", b"x")]);
    assert!(message.contains("a/../../evil"), "{message}");
}

#[test]
fn an_absolute_name_is_contained() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("x");
    convert_bytes(&tar_of(&[file("/etc/byre-test-absolute", b"x")]), &at).unwrap();
    assert!(!Path::new("/etc/byre-test-absolute").exists());
    if let Some(mounted) = Mounted::new(&at, &dir.path().join("m")) {
        assert_eq!(std::fs::read(mounted.0.join("etc/byre-test-absolute")).unwrap(), b"x");
    }
}

#[test]
fn a_symlinked_parent_is_refused() {
    let message = refused(&[symlink("a", "/etc"), file("a/passwd", b"x")]);
    assert!(message.contains("a/passwd") && message.contains("not a directory"), "{message}");
}

#[test]
fn hard_links_outside_missing_or_to_directories_are_refused() {
    assert!(refused(&[link("a", "../../etc/shadow")]).contains("'..'"));
    assert!(refused(&[link("a", "/etc/shadow")]).contains("etc/shadow"));
    assert!(refused(&[node("d", EntryKind::Directory), link("a", "d")]).contains("directory"));
    assert!(refused(&[symlink("s", "/etc"), link("a", "s/shadow")]).contains("s/shadow"));
}

#[test]
fn whiteouts_of_dot_dot_and_of_nothing_are_refused() {
    for name in [".wh...", ".wh..", ".wh.", "a/.wh..."] {
        assert!(refused(&[file(name, b"")]).contains("whiteout"), "{name}");
    }
}

#[test]
fn overlayfs_own_marks_from_an_image_are_refused() {
    for name in ["trusted.overlay.opaque", "user.overlay.redirect"] {
        let mut hostile = node("d", EntryKind::Directory);
        hostile.0.xattrs.push((name.as_bytes().to_vec(), b"y".to_vec()));
        assert!(refused(&[hostile]).contains(name));
    }
    assert!(refused(&[node("gone", EntryKind::CharDevice { major: 0, minor: 0 })]).contains("0:0"));
}

#[test]
fn a_sparse_bomb_is_refused() {
    let bomb = crate::tar::tests::raw(b"bomb", b'S', 0, |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        block[483..494].copy_from_slice(b"77777777777");
    });
    let dir = tempfile::tempdir().unwrap();
    let error = convert_bytes(&bomb, &dir.path().join("x")).unwrap_err().to_string();
    assert!(error.contains("bomb") && error.contains("larger"), "{error}");
}

#[test]
fn a_compression_bomb_stops_at_the_limit() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let limit = 4 << 20;
    let header = tar_of(&[file("zeros", &vec![0; limit as usize])]);
    std::io::Write::write_all(&mut gzip, &header).unwrap();
    let packed = gzip.finish().unwrap();
    let file = tempfile::tempfile().unwrap();
    let plain = crate::compression::decoder(&packed[..]).unwrap();
    let error = convert(plain, file, Budget::of(limit), &mut |_| true).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { .. } | LayerError::Entry { .. }), "{error}");
}

#[test]
fn a_cut_stream_and_a_cancelled_one_are_errors() {
    let tar = tar_of(&[file("cut", &[1; 5000])]);
    let error = convert(&tar[..2000], tempfile::tempfile().unwrap(), Budget::of(LIMIT), &mut |_| true).unwrap_err();
    assert!(error.to_string().contains("cut"), "{error}");
    assert!(convert(&tar[..], tempfile::tempfile().unwrap(), Budget::of(LIMIT), &mut |_| false).is_err());
}

/// Everything a layer can hold, twice as much as fits one block where that matters.
fn everything() -> Vec<(Entry, Vec<u8>)> {
    let mut all = vec![node("./", EntryKind::Directory), file("empty", b""), file("small", b"hello")];
    all[0].0.mode = 0o755;
    for size in [4031, 4032, 4033, 4095, 4096, 4097, 12_288, 300_000] {
        let data: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
        all.push(file(&format!("sizes/{size}"), &data));
    }
    for i in 0..700 {
        all.push(file(&format!("many/{}-{i}", "n".repeat(i % 200)), i.to_string().as_bytes()));
    }
    for name in ["!", "-", ".a", "...", "..a", "/"] {
        all.push(file(&format!("dots/{name}x"), name.as_bytes()));
    }
    let mut capable = file("bin/ping", b"elf");
    capable.0.mode = 0o4755;
    (capable.0.uid, capable.0.gid) = (70_000, 4_000_000_000);
    capable.0.xattrs.push((b"security.capability".to_vec(), b"\x01\0\0\x02\0\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()));
    capable.0.xattrs.push((b"user.note".to_vec(), vec![b'v'; 3000]));
    capable.0.xattrs.push((b"security.selinux".to_vec(), b"dropped".to_vec()));
    all.push(capable);
    let mut heavy = file("heavy", b"with xattrs larger than a block");
    heavy.0.xattrs.push((b"user.big".to_vec(), vec![b'x'; 9000]));
    all.push(heavy);
    let mut dir = node("tagged", EntryKind::Directory);
    dir.0.xattrs.push((b"user.dir".to_vec(), b"1".to_vec()));
    dir.0.mode = 0o1777;
    all.push(dir);
    all.push(symlink("link", "../sizes/4096"));
    all.push(symlink("long-link", &"t".repeat(4090)));
    all.push(link("other-name", "sizes/4097"));
    all.push(link("tagged/third", "other-name"));
    all.push(node("null", EntryKind::CharDevice { major: 1, minor: 3 }));
    all.push(node("disk", EntryKind::BlockDevice { major: 259, minor: 70_000 }));
    all.push(node("pipe", EntryKind::Fifo));
    all.push(file(".wh.gone", b""));
    all.push(file("tagged/.wh.also-gone", b""));
    all.push(file("tagged/.wh..wh..opq", b""));
    all.push(file(".wh..wh.plnk", b""));
    let mut old = file("old", b"");
    old.0.mtime = Timestamp { seconds: -5, nanoseconds: 1 };
    all.push(old);
    all
}

#[test]
fn everything_a_layer_holds_is_there_when_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("x");
    let all = everything();
    let tar = tar_of(&all);
    let layer = convert_bytes(&tar, &at).unwrap();
    assert_eq!(layer.diff_id, Digest::of(&tar));
    assert_eq!(layer.dropped_xattrs, 1);
    fsck(&at);
    let Some(mounted) = Mounted::new(&at, &dir.path().join("m")) else { return };
    let root = &mounted.0;
    for (entry, data) in &all {
        let name = std::str::from_utf8(&entry.path).unwrap();
        if name.contains(".wh.") {
            continue;
        }
        let path = root.join(name.trim_start_matches('/'));
        let meta = std::fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        if !matches!(entry.kind, EntryKind::HardLink(_)) {
            assert_eq!((meta.uid(), meta.gid()), (entry.uid, entry.gid), "{name}");
            assert_eq!((meta.mtime(), meta.mtime_nsec() as u32), (entry.mtime.seconds, entry.mtime.nanoseconds));
        }
        match &entry.kind {
            EntryKind::File => {
                assert_eq!(std::fs::read(&path).unwrap(), *data, "{name}");
                assert_eq!(meta.mode() & 0o7777, entry.mode, "{name}");
            }
            EntryKind::Symlink(target) => {
                assert_eq!(std::fs::read_link(&path).unwrap().as_os_str().as_encoded_bytes(), &target[..]);
            }
            EntryKind::Directory => assert_eq!(meta.mode() & 0o7777, entry.mode, "{name}"),
            EntryKind::HardLink(_) => assert_eq!(meta.nlink(), 3, "{name}"),
            EntryKind::CharDevice { major, minor } => {
                assert!(meta.file_type().is_char_device());
                assert_eq!(meta.rdev(), rustix::fs::makedev(*major, *minor));
            }
            EntryKind::BlockDevice { major, minor } => {
                assert!(meta.file_type().is_block_device());
                assert_eq!(meta.rdev(), rustix::fs::makedev(*major, *minor));
            }
            EntryKind::Fifo => assert!(meta.file_type().is_fifo()),
        }
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| key != b"security.selinux") {
            let mut read = vec![0; 65536];
            let n = rustix::fs::lgetxattr(&path, &key[..], &mut read[..]).unwrap();
            assert_eq!(read[..n], value[..], "{name}");
        }
    }
    for gone in ["gone", "tagged/also-gone"] {
        let meta = std::fs::symlink_metadata(root.join(gone)).unwrap();
        assert!(meta.file_type().is_char_device() && meta.rdev() == 0);
    }
    let mut value = [0; 8];
    assert_eq!(rustix::fs::lgetxattr(root.join("tagged"), "trusted.overlay.opaque", &mut value[..]), Ok(1));
    assert_eq!(std::fs::read_dir(root.join("many")).unwrap().count(), 700);
    assert_eq!(std::fs::symlink_metadata(root).unwrap().nlink() as usize, 2 + 5);
}

#[test]
fn the_same_stream_gives_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let tar = tar_of(&everything());
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    convert_bytes(&tar, &a).unwrap();
    convert_bytes(&tar, &b).unwrap();
    assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap());
}

#[test]
fn later_entries_replace_earlier_ones_and_whiteouts_hide_only_what_is_below() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("x");
    let entries = [
        file("dir/inside", b"1"),
        file("dir", b"now a file"),
        file("again", b"first"),
        file("again", b"second"),
        file(".wh.again", b""),
        file(".wh.fresh", b""),
        file("fresh/child", b"new"),
        file("kept/child", b"new"),
        file(".wh.kept", b""),
    ];
    convert_bytes(&tar_of(&entries), &at).unwrap();
    fsck(&at);
    let Some(mounted) = Mounted::new(&at, &dir.path().join("m")) else { return };
    assert_eq!(std::fs::read(mounted.0.join("dir")).unwrap(), b"now a file");
    assert_eq!(std::fs::read(mounted.0.join("again")).unwrap(), b"second");
    let mut value = [0; 8];
    for replaced in ["fresh", "kept"] {
        assert_eq!(std::fs::read(mounted.0.join(replaced).join("child")).unwrap(), b"new");
        assert_eq!(rustix::fs::lgetxattr(mounted.0.join(replaced), "trusted.overlay.opaque", &mut value[..]), Ok(1));
    }
}

#[test]
fn a_full_disk_is_counted_to_the_end() {
    let tar = tar_of(&[file("a", &[1; 100_000]), file("b", &[2; 100_000])]);
    let file = tempfile::tempfile().unwrap();
    let kept = file.try_clone().unwrap();
    let error = convert(&tar[..], file, Budget { limit: LIMIT, space: 50_000 }, &mut |_| true).unwrap_err();
    assert!(error.space_needed().unwrap() > 200_000);
    assert_eq!(kept.metadata().unwrap().len(), 0);
}

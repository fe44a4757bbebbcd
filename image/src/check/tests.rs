//! What the writer writes is accepted; every single changed byte of metadata is accepted or refused, never followed.

use super::*;
use crate::erofs::{Budget, Meta, TreePath, Writer, Xattrs};
use proptest::prelude::*;

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

fn sample() -> File {
    let mut writer = Writer::new(tempfile::tempfile().unwrap(), Budget::of(1 << 24));
    let meta = Meta { mode: 0o644, ..Meta::default() };
    let mut xattrs = Xattrs::default();
    xattrs.set(b"user.a", b"b").unwrap();
    for (name, size) in [("a/b/file", 5000), ("a/small", 10), ("z", 0)] {
        writer.begin_file(&path(name), meta, xattrs.clone(), size).unwrap();
        writer.end_file().unwrap();
    }
    for i in 0..300 {
        writer.symlink(&path(&format!("many/{i}")), meta, Xattrs::default(), b"t").unwrap();
    }
    writer.whiteout(&path("a/gone")).unwrap();
    writer.opaque(&path("a/b")).unwrap();
    writer.finish([7; 16]).unwrap().file
}

fn bytes(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn check_bytes(bytes: &[u8]) -> Result<Checked, CheckError> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    check(&file)
}

/// Makes the superblock's checksum right again.
fn reseal(bytes: &mut [u8]) {
    bytes[1028..1032].fill(0);
    let sum = crc32c(&bytes[1024..4096]);
    bytes[1028..1032].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn what_the_writer_writes_is_accepted_and_counted() {
    assert_eq!(check(&sample()).unwrap(), Checked { entries: 307, directories: 4 });
}

#[test]
fn a_directory_cycle_is_refused() {
    let mut raw = bytes(&sample());
    // The root's entries follow its inode: `.`, `..`, `a`, ... ; the third one then leads back to the root.
    let third = 4096 + INODE_LEN + 2 * DIRENT_LEN;
    raw[third..third + 8].copy_from_slice(&u64::from(ROOT_SLOT).to_le_bytes());
    let error = check_bytes(&raw).unwrap_err().to_string();
    assert!(error.contains("reached twice"), "{error}");
}

#[test]
fn lengths_features_and_checksums_that_do_not_fit_are_refused() {
    let good = bytes(&sample());
    assert!(check_bytes(&good[..good.len() - 4096]).is_err());
    assert!(check_bytes(&good[..5000]).is_err());
    assert!(check_bytes(&[]).is_err());
    for at in [1024 + 8, 1024 + 12, 1024 + 14, 1024 + 36, 1024 + 40, 1024 + 80, 1024 + 86] {
        let mut raw = good.clone();
        raw[at] ^= 0x11;
        assert!(check_bytes(&raw).is_err(), "checksum at {at}");
        reseal(&mut raw);
        assert!(check_bytes(&raw).is_err(), "value at {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_damage_ends_the_check_in_bounded_time(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let mut raw = bytes(&sample());
        for (at, to) in changes {
            let at = 4096 + at.index(raw.len() - 4096);
            raw[at] = to;
        }
        let _ = check_bytes(&raw);
    }
}

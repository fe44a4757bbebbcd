//! The reader against our own writer, against the `tar` crate's, and against archives made to deceive.

use super::*;
use crate::pack::tarball::{TarWriter, record};
use proptest::prelude::*;

fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        all.push((entry, data));
    }
    Ok(all)
}

/// A raw ustar header with a right checksum.
pub(crate) fn raw(name: &[u8], kind: u8, size: u64, change: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block.to_vec()
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    data
}

fn pax(body: &[u8]) -> Vec<u8> {
    [raw(b"pax", b'x', body.len() as u64, |_| {}), padded(body)].concat()
}

fn refused(bytes: &[u8]) -> String {
    read_all(bytes).unwrap_err().to_string()
}

#[test]
fn duplicate_pax_sizes_are_refused() {
    let archive = [pax(b"9 size=1\n9 size=2\n"), raw(b"victim", b'0', 2, |_| {}), padded(b"ab")].concat();
    assert!(refused(&archive).contains("given twice"));
}

#[test]
fn a_pax_size_that_contradicts_the_header_is_refused_by_name() {
    let archive = [pax(b"9 size=1\n"), raw(b"victim", b'0', 512, |_| {}), padded(&[1; 512])].concat();
    let message = refused(&archive);
    assert!(message.contains("victim") && message.contains("contradict"), "{message}");
}

#[test]
fn names_with_nul_are_refused_and_invalid_utf8_is_kept_as_bytes() {
    assert!(refused(&[pax(b"12 path=a\0b\n"), raw(b"x", b'0', 0, |_| {})].concat()).contains("NUL"));
    let entries = read_all(&raw(b"\xff\xfe", b'0', 0, |_| {})).unwrap();
    assert_eq!(entries[0].0.path, b"\xff\xfe");
}

#[test]
fn a_truncated_stream_names_the_entry_it_is_cut_in() {
    let archive =
        [raw(b"whole", b'0', 3, |_| {}), padded(b"abc"), raw(b"cut", b'0', 9000, |_| {}), padded(b"x")].concat();
    let mut reader = TarReader::new(&archive[..]);
    reader.next_entry().unwrap();
    reader.next_entry().unwrap();
    assert!(reader.next_entry().unwrap_err().to_string().contains("cut"));
    assert!(read_all(&archive[..700]).is_ok());
    assert!(refused(&archive[..1200]).contains("whole"));
}

#[test]
fn oversized_extension_headers_are_refused_before_they_are_read() {
    assert!(refused(&raw(b"x", b'x', 1 << 32, |_| {})).contains("larger"));
    assert!(refused(&raw(b"x", b'L', 1 << 20, |_| {})).contains("larger"));
}

#[test]
fn gnu_long_names_and_links_are_read() {
    let long = [b"d/".repeat(80), b"name".to_vec()].concat();
    let archive = [
        raw(b"././@LongLink", b'L', long.len() as u64 + 1, |_| {}),
        padded(&[&long[..], b"\0"].concat()),
        raw(b"././@LongLink", b'K', 4, |_| {}),
        padded(b"tgt\0"),
        raw(b"short", b'2', 0, |_| {}),
    ]
    .concat();
    let entries = read_all(&archive).unwrap();
    assert_eq!(entries[0].0.path, long);
    assert_eq!(entries[0].0.kind, EntryKind::Symlink(b"tgt".to_vec()));
}

#[test]
fn sparse_maps_in_all_forms_give_the_same_file() {
    let parts = vec![Segment { offset: 0, length: 3 }, Segment { offset: 1000, length: 2 }];
    let old = raw(b"s", b'S', 5, |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        for (at, (offset, length)) in [(0u64, 3u64), (1000, 2)].into_iter().enumerate() {
            block[386 + at * 24..][..11].copy_from_slice(format!("{offset:011o}").as_bytes());
            block[398 + at * 24..][..11].copy_from_slice(format!("{length:011o}").as_bytes());
        }
        block[483..494].copy_from_slice(format!("{:011o}", 2000).as_bytes());
    });
    let keys = |records: &[(&str, &str)]| {
        let mut body = Vec::new();
        for (key, value) in records {
            record(&mut body, format!("GNU.sparse.{key}").as_bytes(), value.as_bytes());
        }
        pax(&body)
    };
    let v01 = keys(&[("size", "2000"), ("map", "0,3,1000,2")]);
    let v00 = keys(&[
        ("size", "2000"),
        ("numblocks", "2"),
        ("offset", "0"),
        ("numbytes", "3"),
        ("offset", "1000"),
        ("numbytes", "2"),
    ]);
    let v10 = keys(&[("major", "1"), ("minor", "0"), ("realsize", "2000"), ("name", "s")]);
    let map = padded(b"2\n0\n3\n1000\n2\n");
    let archives = [
        [old, padded(b"abcde")].concat(),
        [v01, raw(b"s", b'0', 5, |_| {}), padded(b"abcde")].concat(),
        [v00, raw(b"s", b'0', 5, |_| {}), padded(b"abcde")].concat(),
        [v10, raw(b"GNUSparse/s", b'0', 517, |_| {}), map, padded(b"abcde")].concat(),
    ];
    for archive in archives {
        let entries = read_all(&archive).unwrap();
        assert_eq!(entries.len(), 1);
        let (entry, data) = &entries[0];
        assert_eq!((&entry.path[..], entry.size, entry.sparse.as_ref()), (&b"s"[..], 2000, Some(&parts)));
        assert_eq!(data, b"abcde");
    }
}

#[test]
fn what_the_tar_crate_writes_is_read() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o4755);
    header.set_uid(1 << 30);
    header.set_gid(7);
    header.set_mtime(1 << 40);
    let long = "x/".repeat(120) + "f";
    builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    let entries = read_all(&builder.into_inner().unwrap()).unwrap();
    let (entry, data) = &entries[0];
    assert_eq!(entry.path, long.as_bytes());
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime.seconds), (0o4755, 1 << 30, 7, 1 << 40));
    assert_eq!(data, b"abc");
}

fn any_entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let name = || prop::collection::vec(1u8..=255, 1..300);
    let kind = prop_oneof![
        Just(EntryKind::File),
        name().prop_map(EntryKind::HardLink),
        name().prop_map(EntryKind::Symlink),
        (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        Just(EntryKind::Directory),
        Just(EntryKind::Fifo),
    ];
    let xattrs = prop::collection::btree_map("user\\.[a-z]{1,8}", prop::collection::vec(any::<u8>(), 0..40), 0..3);
    let time = (-1_000_000_000_000i64..1_000_000_000_000, 0u32..1_000_000_000);
    let data = prop::collection::vec(any::<u8>(), 0..1500);
    (name(), kind, 0u32..0o10000, any::<u32>(), any::<u32>(), time, xattrs, data).prop_map(
        |(mut path, kind, mode, uid, gid, (seconds, nanoseconds), xattrs, mut data)| {
            // A name in slashes turns a file into a directory, as in every reader.
            path.push(b'e');
            if kind != EntryKind::File {
                data.clear();
            }
            let xattrs = xattrs.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect();
            let mtime = Timestamp { seconds, nanoseconds };
            let size = data.len() as u64;
            (Entry { path, kind, mode, uid, gid, mtime, size, sparse: None, xattrs }, data)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_we_write_reads_back_the_same(entries in prop::collection::vec(any_entry(), 0..6)) {
        let mut writer = TarWriter::new(Vec::new());
        for (entry, data) in &entries {
            writer.append(entry, &data[..]).unwrap();
        }
        prop_assert_eq!(read_all(&writer.finish().unwrap()).unwrap(), entries);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = read_all(&bytes);
    }

    #[test]
    fn any_damage_is_read_or_refused(entry in any_entry(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut writer = TarWriter::new(Vec::new());
        writer.append(&entry.0, &entry.1[..]).unwrap();
        let mut bytes = writer.finish().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = read_all(&bytes);
    }
}

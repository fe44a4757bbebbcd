//! The store with real images, through cuts, full disks and everything people do to names.

use super::*;
use crate::compression::Compression;
use crate::pack::tarball::TarWriter;
use crate::pack::{PackConfig, rootfs, write_oci_archive};
use crate::tar::{Entry, EntryKind, Timestamp};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

fn limits() -> Limits {
    Limits { archive_bytes: 1 << 30, layer_bytes: 1 << 30, reserve_bytes: 0 }
}

fn open(root: &Path) -> (Store, Recovery) {
    Store::open(root, limits()).unwrap()
}

fn layer(files: &[(&str, &[u8])]) -> File {
    let mut tar = TarWriter::new(tempfile::tempfile().unwrap());
    for (path, data) in files {
        let entry = Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            size: data.len() as u64,
            sparse: None,
            xattrs: Vec::new(),
        };
        tar.append(&entry, *data).unwrap();
    }
    tar.finish().unwrap()
}

fn archive(layers: &mut [File], compression: Compression, name: Option<&str>, cmd: &str) -> Vec<u8> {
    let config = PackConfig {
        cmd: vec![cmd.to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        user: "app:app".to_owned(),
        volumes: vec!["/data".to_owned()],
        exposed_ports: vec!["80/tcp".to_owned()],
        stop_signal: "SIGQUIT".to_owned(),
        created: "2024-01-01T00:00:00Z".to_owned(),
        ..PackConfig::default()
    };
    let mut out = Vec::new();
    let name = name.map(|name| name.parse().unwrap());
    write_oci_archive(&mut out, layers, compression, &config, name.as_ref(), &mut tempfile::tempfile).unwrap();
    out
}

fn sample(name: Option<&str>, cmd: &str) -> Vec<u8> {
    archive(&mut [layer(&[("base", b"1")]), layer(&[(cmd, b"2")])], Compression::Gzip, name, cmd)
}

fn load(store: &mut Store, bytes: &[u8], name: Option<&str>) -> Result<Image, StoreError> {
    let name = name.map(|name| name.parse::<Reference>().unwrap());
    store.load(bytes, name.as_ref(), &mut |_| true).map(|mut all| all.remove(0).image)
}

/// Every file of the store with its content, for comparing states.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for dir in ["layers", "configs", "records", "staging"] {
        for entry in fs::read_dir(root.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            let content = if path.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            all.insert(path, content);
        }
    }
    all
}

#[test]
fn a_loaded_image_resolves_by_name_and_id_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let (mut store, _) = open(dir.path());
        let bytes = archive(&mut [layer(&[("a", b"1")]), layer(&[("b", b"2")])], compression, Some("web"), "sh");
        let image = load(&mut store, &bytes, None).unwrap();
        drop(store);
        let (store, recovery) = open(dir.path());
        assert_eq!(recovery, Recovery::default());
        for text in ["web", "web:latest", "docker.io/library/web", &image.id.to_string(), &image.id.hex()[..6]] {
            let resolved = store.resolve(text).unwrap();
            assert_eq!(resolved.image, image);
            assert_eq!(resolved.config.cmd, ["sh"]);
            assert_eq!(resolved.config.user, "app:app");
            assert_eq!(resolved.config.stop_signal, "SIGQUIT");
            assert_eq!(resolved.layer_paths.len(), 2);
            for (path, info) in resolved.layer_paths.iter().zip(&image.layers) {
                assert_eq!(*path, dir.path().join("layers").join(format!("{}.erofs", info.diff_id.hex())));
                let meta = fs::metadata(path).unwrap();
                assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (info.bytes, 0o444));
            }
        }
        // Compression does not change what is stored.
        assert_eq!(store.usage().unwrap().layers, 2);
        assert!(matches!(store.find("other"), Err(StoreError::NotFound(_))));
        assert!(fs::read_dir(dir.path().join("staging")).unwrap().next().is_none());
    }
}

#[test]
fn layers_are_shared_and_go_with_their_last_image() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let one = load(&mut store, &sample(Some("one"), "1"), None).unwrap();
    let loaded = store.load(&sample(Some("two"), "2")[..], None, &mut |_| true).unwrap();
    assert_eq!(loaded[0].new_layers, 1);
    assert_eq!(store.usage().unwrap().layers, 3);
    let in_use = BTreeSet::from([one.id]);
    assert!(matches!(store.remove("one", &in_use, false), Err(StoreError::InUse(_))));
    let removed = store.remove("one", &BTreeSet::new(), false).unwrap();
    assert_eq!((removed.deleted, removed.freed_bytes), (Some(one.id), one.layers[1].bytes));
    assert!(store.resolve("two").is_ok());
    store.remove("two", &BTreeSet::new(), false).unwrap();
    assert!(snapshot(dir.path()).is_empty());
}

#[test]
fn a_name_leads_to_the_image_that_took_it_last() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let old = load(&mut store, &sample(Some("app"), "1"), None).unwrap();
    let new = load(&mut store, &sample(Some("app"), "2"), None).unwrap();
    assert_eq!(store.find("app").unwrap().id, new.id);
    assert!(store.find(&old.id.hex()).unwrap().names.is_empty());
    let again = load(&mut store, &sample(Some("app"), "2"), Some("other:1")).unwrap();
    assert_eq!(again.names.len(), 2);
    assert!(matches!(store.remove(&new.id.hex(), &BTreeSet::new(), false), Err(StoreError::SeveralNames { .. })));
    assert_eq!(store.remove("app", &BTreeSet::new(), false).unwrap().deleted, None);
    let pruned = store.prune(&BTreeSet::new(), PruneScope::Nameless).unwrap();
    assert_eq!(pruned.deleted, [old.id]);
    assert!(store.prune(&BTreeSet::from([new.id]), PruneScope::Unused).unwrap().deleted.is_empty());
    assert_eq!(store.prune(&BTreeSet::new(), PruneScope::Unused).unwrap().deleted, [new.id]);
    assert!(snapshot(dir.path()).is_empty());
}

#[test]
fn an_image_without_a_name_is_kept_by_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let image = load(&mut store, &sample(None, "1"), None).unwrap();
    assert!(image.names.is_empty());
    assert!(store.resolve(&image.id.hex()).is_ok());
    let pinned = format!("a@{}", image.id);
    assert!(matches!(load(&mut store, &sample(None, "1"), Some(&pinned)), Err(StoreError::PinnedName(_))));
}

#[test]
fn one_process_has_the_store_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    assert!(matches!(Store::open(dir.path(), limits()), Err(StoreError::Locked(_))));
    drop(store);
    open(dir.path());
}

#[test]
fn a_failed_load_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    load(&mut store, &sample(Some("kept"), "1"), None).unwrap();
    let before = snapshot(dir.path());
    let good = sample(Some("new"), "2");
    for cut in (0..good.len()).step_by(512) {
        // Only the closing empty blocks may be missing.
        if good[cut..].iter().any(|b| *b != 0) {
            assert!(load(&mut store, &good[..cut], None).is_err(), "cut at {cut} of {}", good.len());
        }
        if snapshot(dir.path()) != before {
            assert!(good[cut..].iter().all(|b| *b == 0));
            store.remove("new", &BTreeSet::new(), false).unwrap();
            assert_eq!(snapshot(dir.path()), before, "cut at {cut}");
        }
    }
    let error = store.load(&good[..], None, &mut |progress| !matches!(progress, Progress::Kept { .. })).unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn a_full_disk_says_how_much_is_needed_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let before = snapshot(dir.path());
    // The archive compresses well: its layer does not fit, it does.
    let zeros = vec![0; 8 << 20];
    let big = archive(&mut [layer(&[("z", &zeros)])], Compression::Gzip, Some("big"), "x");
    for spare in [1 << 10, 4 << 20] {
        // Others write to this disk as well.
        store.limits.reserve_bytes = 0;
        store.limits.reserve_bytes = store.free_bytes().unwrap() - spare;
        match load(&mut store, &big, None) {
            Err(StoreError::NoSpace { needed, free }) => assert!(needed > free, "{needed} {free}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(snapshot(dir.path()), before);
    }
}

#[test]
fn opening_sweeps_what_a_cut_left_and_reports_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let image = load(&mut store, &sample(Some("app"), "1"), None).unwrap();
    let before = snapshot(dir.path());
    drop(store);
    fs::write(dir.path().join("layers/.new-aa"), b"half").unwrap();
    fs::write(dir.path().join(format!("layers/{}.erofs", "a".repeat(64))), b"no record").unwrap();
    fs::write(dir.path().join(format!("configs/{}.json", "b".repeat(64))), b"no record").unwrap();
    fs::write(dir.path().join("records/.new-x"), b"{").unwrap();
    fs::create_dir(dir.path().join("staging/load")).unwrap();
    fs::write(dir.path().join("staging/load/blob-1"), b"x").unwrap();
    let (store, recovery) = open(dir.path());
    assert_eq!(recovery.swept, 5);
    assert_eq!(snapshot(dir.path()), before);
    fs::remove_file(store.layer_path(&image.layers[0].diff_id)).unwrap();
    drop(store);
    let (mut store, recovery) = open(dir.path());
    assert_eq!(recovery.incomplete, [image.id]);
    assert!(matches!(store.resolve("app"), Err(StoreError::Damaged { .. })));
    // Loading again repairs it.
    load(&mut store, &sample(Some("app"), "1"), None).unwrap();
    assert!(store.resolve("app").is_ok());
    drop(store);
    let record = dir.path().join("records").join(format!("{}.json", image.id.hex()));
    fs::remove_file(&record).unwrap();
    fs::write(&record, b"garbage").unwrap();
    let (store, recovery) = open(dir.path());
    assert_eq!(recovery.unreadable.len(), 1);
    assert!(store.layer_path(&image.layers[0].diff_id).exists());
}

#[test]
fn two_images_with_one_name_after_a_cut_are_settled_for_the_later() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let old = load(&mut store, &sample(Some("app"), "1"), None).unwrap();
    let record = dir.path().join("records").join(format!("{}.json", old.id.hex()));
    let before = fs::read(&record).unwrap();
    let new = load(&mut store, &sample(Some("app"), "2"), None).unwrap();
    drop(store);
    // As if the power went after the new record and before the old one lost its name.
    fs::remove_file(&record).unwrap();
    fs::write(&record, before).unwrap();
    let (store, _) = open(dir.path());
    assert_eq!(store.find("app").unwrap().id, new.id);
}

#[test]
fn a_wrong_diff_id_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let (a, b) = (layer(&[("a", b"1")]), layer(&[("b", b"2")]));
    let swap = |bytes: &[u8]| {
        // Uncompressed, so that a layer's digest is its diff_id: the manifest keeps one order, the configuration another.
        let mut all = crate::archive::tests::read_archive(bytes);
        let config = all.iter_mut().find(|(_, data)| data.starts_with(b"{\"architecture\"")).unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(&config.1).unwrap();
        json["rootfs"]["diff_ids"].as_array_mut().unwrap().reverse();
        crate::archive::tests::replace_config(&mut all, &serde_json::to_vec(&json).unwrap());
        crate::archive::tests::write_archive(&all)
    };
    let bytes = swap(&archive(&mut [a, b], Compression::None, Some("x"), "x"));
    let error = load(&mut store, &bytes, None).unwrap_err();
    assert!(matches!(error, StoreError::DiffId { .. }), "{error}");
    assert!(snapshot(dir.path()).is_empty());
}

/// A real static busybox, made into an image, loaded, mounted and run where that is possible.
#[test]
fn a_busybox_image_is_stored_and_its_layer_runs() {
    let Ok(program) = fs::read("/bin/busybox") else {
        eprintln!("skipped: no /bin/busybox; install busybox-static");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let tar = tempfile::tempfile().unwrap();
    let applets = ["sh", "ls", "cat"].map(str::to_owned);
    rootfs::busybox(&tar, &program, &applets, 1_700_000_000).unwrap();
    let bytes = archive(&mut [tar], Compression::Zstd, Some("busybox"), "sh");
    load(&mut store, &bytes, None).unwrap();
    let path = store.resolve("busybox").unwrap().layer_paths.remove(0);
    let target = dir.path().join("mnt");
    fs::create_dir(&target).unwrap();
    if let Err(e) = rustix::mount::mount(&path, &target, "erofs", rustix::mount::MountFlags::RDONLY, None) {
        eprintln!("not mounted ({e}); needs root and Linux 6.12");
        return;
    }
    let listed = Command::new(target.join("bin/ls")).arg(target.join("bin")).output();
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(listed.unwrap().stdout, b"busybox\ncat\nls\nsh\n");
}

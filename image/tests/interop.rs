//! Archives and layers that other tools write, against what our store makes of them.
//!
//! Needs tar, skopeo and, to compare trees, root with a kernel that mounts erofs files; what is missing is said.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use byre_image::compression::Compression;
use byre_image::erofs::Budget;
use byre_image::pack::{PackConfig, rootfs, write_oci_archive};
use byre_image::store::{Limits, Store};

const LIMIT: u64 = 1 << 30;

fn store(root: &Path) -> Store {
    Store::open(root, Limits { archive_bytes: LIMIT, layer_bytes: LIMIT, reserve_bytes: 0 }).unwrap().0
}

/// True if the command ran and succeeded; says why if it could not be started.
fn runs(command: &mut Command) -> bool {
    match command.output() {
        Ok(done) => {
            let errors = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{command:?}: {errors}");
            true
        }
        Err(e) => {
            eprintln!("skipped: {:?} cannot be run ({e})", command.get_program());
            false
        }
    }
}

/// An OCI archive with two layers, the second one over the first.
fn our_archive(at: &Path) -> Vec<byre_image::digest::Digest> {
    let base = tempfile::tempfile().unwrap();
    rootfs::busybox(&base, b"not a program", &["sh".to_owned()], 1_700_000_000).unwrap();
    let over = tempfile::tempfile().unwrap();
    rootfs::busybox(&over, b"another", &["ls".to_owned()], 1_700_000_001).unwrap();
    let config = PackConfig { cmd: vec!["sh".into()], created: "2024-01-01T00:00:00Z".into(), ..PackConfig::default() };
    let name = "example.org/team/app:1".parse().unwrap();
    let out = File::create(at).unwrap();
    let mut layers = [base, over];
    write_oci_archive(out, &mut layers, Compression::Gzip, &config, Some(&name), &mut tempfile::tempfile).unwrap();
    layers
        .iter()
        .map(|layer| {
            let mut bytes = vec![0; layer.metadata().unwrap().len() as usize];
            layer.read_exact_at(&mut bytes, 0).unwrap();
            byre_image::digest::Digest::of(&bytes)
        })
        .collect()
}

#[test]
fn what_skopeo_and_podman_write_loads_with_the_same_layers() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours.tar");
    let diff_ids = our_archive(&ours);
    let from = format!("oci-archive:{}", ours.display());
    let path = |name: &str| dir.path().join(name);
    let to = |kind: &str, name: &str, tag: &str| format!("{kind}:{}{tag}", path(name).display());
    let skopeo = |arguments: &[&str]| runs(Command::new("skopeo").args(["copy", "--quiet"]).args(arguments));
    if !skopeo(&[&from, &to("oci-archive", "oci.tar", ":quay.io/team/oci:2")]) {
        return;
    }
    skopeo(&[&from, &to("docker-archive", "docker.tar", ":team/docker:3")]);
    skopeo(&["--dest-compress-format", "zstd", &from, &to("oci", "zstd", ":latest")]);
    skopeo(&["--format", "v2s2", &from, &to("oci-archive", "v2s2.tar", "")]);
    runs(Command::new("tar").arg("-C").arg(path("zstd")).arg("-cf").arg(path("zstd.tar")).arg("."));

    let mut store = store(&path("store"));
    for (archive, name, expected) in [
        ("ours.tar", None, "example.org/team/app:1"),
        ("oci.tar", None, "quay.io/team/oci:2"),
        ("docker.tar", None, "team/docker:3"),
        ("zstd.tar", Some("given:4"), "given:4"),
        ("v2s2.tar", Some("given:5"), "given:5"),
    ] {
        let name = name.map(|name: &str| name.parse().unwrap());
        let loaded = store.load(File::open(path(archive)).unwrap(), name.as_ref(), &mut |_| true);
        let loaded = loaded.unwrap_or_else(|e| panic!("{archive}: {e}"));
        let found: Vec<_> = loaded[0].image.layers.iter().map(|layer| layer.diff_id).collect();
        assert_eq!(found, diff_ids, "{archive}");
        assert_eq!(store.resolve(expected).unwrap().config.cmd, ["sh"], "{archive}");
    }
    assert_eq!(store.usage().unwrap().layers, 2);
}

/// What a file looks like to a container: type and mode, owner, size or device, links, time, and content or target.
type Seen = (u32, u32, u32, u64, u64, u64, i64, i64, Vec<u8>);

fn walk(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else if meta.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        // A directory's size and link count are the file system's own business.
        let (size, links) = if meta.is_dir() { (0, 0) } else { (meta.size(), meta.nlink()) };
        let name = path.strip_prefix(root).unwrap().to_owned();
        let times = (meta.mtime(), meta.mtime_nsec());
        seen.insert(name, (meta.mode(), meta.uid(), meta.gid(), size, links, meta.rdev(), times.0, times.1, content));
    }
    seen
}

#[test]
fn a_tree_packed_by_gnu_tar_is_the_same_tree_when_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    // A real tree with everything people have, and what it may lack.
    runs(
        Command::new("cp")
            .args(["-a", "/usr/share/doc/tar", "/usr/share/zoneinfo/Europe", "/etc/alternatives"])
            .arg(&tree),
    );
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(b"middle", 1_000_000).unwrap();
    sparse.set_len(3_000_001).unwrap();
    fs::hard_link(tree.join("sparse"), tree.join("linked")).unwrap();
    let deep = tree.join("a-long-name-of-a-directory/".repeat(8));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("x".repeat(200)), b"long").unwrap();
    runs(Command::new("mkfifo").arg(tree.join("pipe")));

    let expected = walk(&tree);
    // GNU's old format has whole seconds only.
    for (format, nanoseconds) in [("posix", true), ("gnu", false), ("oldgnu", false)] {
        let tar = dir.path().join(format!("{format}.tar"));
        let mut command = Command::new("tar");
        command.arg("-C").arg(&tree).args(["--sparse", "--format", format, "-cf"]).arg(&tar).arg(".");
        if !runs(&mut command) {
            return;
        }
        let at = dir.path().join(format!("{format}.erofs"));
        let file = File::options().read(true).write(true).create_new(true).open(&at).unwrap();
        byre_image::layer::convert(File::open(&tar).unwrap(), file, Budget::of(LIMIT), &mut |_| true).unwrap();
        byre_image::check::check(&File::open(&at).unwrap()).unwrap();
        let target = dir.path().join(format!("{format}.mnt"));
        fs::create_dir(&target).unwrap();
        if let Err(e) = rustix::mount::mount(&at, &target, "erofs", rustix::mount::MountFlags::RDONLY, None) {
            eprintln!("trees not compared: cannot mount erofs ({e}); needs root and Linux 6.12");
            return;
        }
        let found = walk(&target);
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
        let names = |seen: &BTreeMap<PathBuf, Seen>| seen.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&expected), names(&found));
        for (name, mut wanted) in expected.clone() {
            wanted.7 = if nanoseconds { wanted.7 } else { 0 };
            assert!(wanted == found[&name], "{format}: {} differs", name.display());
        }
    }
}

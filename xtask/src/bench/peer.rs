//! The peer: a Debian system with systemd, networkd and containerd, on the same kernel and in the same machine as a node.
//!
//! Made of the newest packages of any suite by mmdebstrap, which checks their signatures; what a container host can do without is switched
//! off, since the comparison is with a good peer. Kept below `target/bench/peer` as long as what it is made of stays the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use byre_rootfs_build::{Cpio, Lock, Use};

use super::bundle;
use super::starts::Helpers;
use crate::packages::{self, Needed};

/// What making it needs.
const NEEDED: &[Needed] = &[
    Needed { program: "mmdebstrap", package: "mmdebstrap" },
    Needed { program: "dpkg-deb", package: "dpkg" },
    Needed { program: "mke2fs", package: "e2fsprogs" },
    Needed { program: "xz", package: "xz-utils" },
    Needed { program: "/usr/share/keyrings/debian-archive-keyring.gpg", package: "debian-archive-keyring" },
];
/// The suite with the newest versions.
const SUITE: &str = "sid";
/// No recommended package, and nothing that is not used.
const PACKAGES: &str = "systemd,systemd-sysv,udev,containerd,runc,crun,kmod,passwd";

const CUSTOMIZE: &str = include_str!("peer/customize.sh");
const INITRAMFS: &str = include_str!("peer/initramfs.sh");
/// Files of the peer: where, and what.
const FILES: [(&str, &str); 10] = [
    ("etc/containerd/config.toml", include_str!("peer/containerd.toml")),
    ("etc/systemd/network/20-all.network", include_str!("peer/20-all.network")),
    ("etc/systemd/system/bench-prepare.service", include_str!("peer/bench-prepare.service")),
    ("etc/systemd/system/bench-api.service", include_str!("peer/bench-api.service")),
    ("etc/systemd/system/bench-container.service", include_str!("peer/bench-container.service")),
    ("etc/systemd/system/bench-idle.service", include_str!("peer/bench-idle.service")),
    ("etc/systemd/system/bench-start.service", include_str!("peer/bench-start.service")),
    ("opt/bench/prepare.sh", include_str!("peer/prepare.sh")),
    ("opt/bench/idle.sh", include_str!("peer/idle.sh")),
    ("opt/bench/start.sh", include_str!("peer/start.sh")),
];

/// What the peer is made of beside packages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ingredients<'a> {
    /// The repository.
    pub(super) repository: &'a Path,
    /// Archive of the image `busybox`.
    pub(super) busybox: &'a Path,
    /// The programs that measure inside a guest.
    pub(super) helpers: &'a Helpers,
}

/// A peer that was made.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    folder: PathBuf,
    versions: String,
}

impl Peer {
    /// Its disk, never written.
    pub(super) fn disk(&self) -> PathBuf {
        self.folder.join("peer.ext4")
    }

    /// Its initramfs.
    pub(super) fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// Its machine once its image is loaded; goes when the peer is made anew.
    pub(super) fn prepared(&self) -> PathBuf {
        self.folder.join("prepared")
    }

    /// `name version` of one of its packages, without Debian's revision.
    pub(super) fn version(&self, package: &str) -> String {
        let found = self.versions.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix(' '));
        let version = found.unwrap_or("of unknown version");
        format!("{package} {}", version.split(['+', '-']).next().unwrap_or(version))
    }

    /// Makes it, unless it is there.
    ///
    /// # Errors
    /// If packages cannot be installed or fetched.
    pub(super) fn make(from: Ingredients<'_>) -> Result<Self> {
        packages::ensure_installed(NEEDED)?;
        let folder = from.repository.join("target/bench/peer");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let kernel = kernel_package(from.repository)?;
        let inputs = inputs(from, &kernel)?;
        let known = folder.join("inputs");
        if fs::read(&known).ok().as_deref() != Some(&inputs) || !folder.join("peer.ext4").exists() {
            println!("making the peer, Debian {SUITE} with systemd and containerd: some minutes");
            fs::remove_file(&known).ok();
            fs::remove_dir_all(folder.join("prepared")).ok();
            bootstrap(from, &kernel, &folder)?;
            fs::write(folder.join("initrd"), initramfs(from, &folder)?)?;
            fs::write(&known, inputs)?;
        }
        let versions = fs::read_to_string(folder.join("versions")).context("the peer's versions are not known")?;
        Ok(Self { folder, versions })
    }
}

/// The package that the node's kernel was taken from, as the image build keeps it.
fn kernel_package(repository: &Path) -> Result<PathBuf> {
    let lock = Lock::read(&repository.join("rootfs/build/packages.lock"))?;
    let kernel =
        lock.packages.iter().find(|package| package.purpose == Use::Kernel).context("the lock has no kernel")?;
    let path = repository.join("target/packages").join(format!("{}.deb", kernel.sha256));
    ensure!(path.exists(), "{} is not there: the image was built from another kernel package", path.display());
    Ok(path)
}

/// Everything that the result depends on, apart from what the mirror has today.
fn inputs(from: Ingredients<'_>, kernel: &Path) -> Result<Vec<u8>> {
    let mut all = format!("{SUITE} {PACKAGES} {}\n{CUSTOMIZE}\n{INITRAMFS}\n", kernel.display()).into_bytes();
    for (path, content) in FILES {
        all.extend(format!("{path}\n{content}\n").into_bytes());
    }
    all.extend(bundle::config(&["/byre-stamp"])?.to_string().into_bytes());
    for file in [&from.helpers.client, &from.helpers.stamp, from.busybox] {
        all.extend(fs::read(file)?);
    }
    Ok(all)
}

fn bootstrap(from: Ingredients<'_>, kernel: &Path, folder: &Path) -> Result<()> {
    let staging = tempfile::tempdir()?;
    let files = staging.path().join("files");
    let put = |path: &str, content: &[u8]| -> Result<()> {
        let path = files.join(path);
        fs::create_dir_all(path.parent().context("a file at the root")?)?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    for (path, content) in FILES {
        put(path, content.as_bytes())?;
    }
    put("usr/local/bin/byre-bench", &fs::read(&from.helpers.client)?)?;
    put("opt/bench/busybox.tar", &fs::read(from.busybox)?)?;
    put("opt/bench/bundle/config.json", bundle::config(&["/byre-stamp"])?.to_string().as_bytes())?;
    put("opt/bench/bundle/rootfs/byre-stamp", &fs::read(&from.helpers.stamp)?)?;
    for name in bundle::GENERATED {
        put(&format!("opt/bench/bundle/{name}"), b"")?;
    }
    for directory in bundle::DIRECTORIES {
        fs::create_dir_all(files.join("opt/bench/bundle/rootfs").join(directory))?;
    }
    let script = staging.path().join("customize.sh");
    fs::write(&script, CUSTOMIZE)?;
    let hook =
        format!("sh '{}' \"$1\" '{}' '{}' '{}'", script.display(), files.display(), kernel.display(), folder.display());
    let log = fs::File::create(folder.join("mmdebstrap.log"))?;
    let status = Command::new("mmdebstrap")
        .args(["--variant=minbase", "--format=null", &format!("--include={PACKAGES}")])
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Check-Valid-Until \"false\""])
        .arg(format!("--customize-hook={hook}"))
        .args([SUITE, "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .status()
        .context("cannot run mmdebstrap")?;
    ensure!(status.success(), "mmdebstrap failed: see {}", folder.join("mmdebstrap.log").display());
    Ok(())
}

fn initramfs(from: Ingredients<'_>, folder: &Path) -> Result<Vec<u8>> {
    let busybox = byre_tests::oci::file_of_archive(fs::File::open(from.busybox)?, "bin/busybox")?;
    let module = fs::read(folder.join("virtio_blk.ko")).context("the kernel package has no virtio_blk")?;
    let mut cpio = Cpio::default();
    for directory in ["dev", "root", "bin"] {
        cpio.directory(directory);
    }
    cpio.character_device("dev/console", 5, 1);
    cpio.file("init", 0o755, INITRAMFS.as_bytes());
    cpio.file("bin/busybox", 0o755, &busybox);
    cpio.file("virtio_blk.ko", 0o644, &module);
    Ok(cpio.finish())
}

//! The suites in a virtual machine: the same Debian root, the node's kernel, and every controller in cgroup v2.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use byre_rootfs_build::{Cpio, Lock, Use};
use byre_tests::vm::{Boot, Vm, VmConfig};

use super::Run;
use super::root::DebianRoot;
use crate::packages;
use crate::test::FOR_MACHINES;

const INITRAMFS: &str = include_str!("initramfs.sh");
/// All suites with all runtimes under emulation.
const LIMIT: Duration = Duration::from_secs(6 * 3600);
/// What a guest of the suites has: their programs build nothing there, but containers with limits of memory need some.
const MEMORY_MIB: u32 = 2048;
/// Of the root, what only building needs.
const LEFT_OUT: [&str; 8] = [
    "usr/share/gocode",
    "usr/lib/go-*",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/lib/apt/lists",
    "conformance/go",
    "conformance/source",
];

/// Boots the guest, lets it run the suites, and returns what it printed.
pub(super) fn run(repository: &Path, root: &DebianRoot, run: &Run<'_>) -> Result<String> {
    packages::ensure_installed(FOR_MACHINES)?;
    let folder = repository.join("target/conformance/guest");
    fs::create_dir_all(&folder)?;
    let kernel = kernel_package(repository)?;
    let files = unpack(&kernel, &folder)?;
    let disk = disk(root, &files, &folder)?;
    let runs: Vec<String> = run
        .suites
        .iter()
        .flat_map(|suite| {
            run.runtimes.iter().map(move |runtime| format!("{suite}:{runtime}:{}", run.only.unwrap_or("")))
        })
        .collect();
    let initrd = folder.join("initrd");
    fs::write(&initrd, initramfs(root, &files)?)?;
    let machine = tempfile::tempdir_in(&folder)?;
    let mut config = VmConfig::new(machine.path(), &disk);
    config.memory_mib = MEMORY_MIB;
    config.boot = Boot::Kernel {
        kernel: files.kernel.clone(),
        initrd,
        cmdline: format!(
            "console=ttyS0,115200 loglevel=3 panic=5 apparmor=1 security=apparmor conformance.run={}",
            runs.join(",")
        ),
    };
    let vm = Vm::start(config)?;
    vm.serial.wait_for("@ all done", LIMIT)?;
    Ok(vm.serial.text())
}

/// What of the kernel package a guest needs.
struct KernelFiles {
    kernel: PathBuf,
    modules: PathBuf,
    version: String,
}

/// The package that the node's kernel is taken from, as the image build keeps it.
fn kernel_package(repository: &Path) -> Result<PathBuf> {
    let lock = Lock::read(&repository.join("rootfs/build/packages.lock"))?;
    let kernel =
        lock.packages.iter().find(|package| package.purpose == Use::Kernel).context("the lock has no kernel")?;
    let path = repository.join("target/packages").join(format!("{}.deb", kernel.sha256));
    ensure!(path.exists(), "{} is not there: `cargo xtask image` fetches it", path.display());
    Ok(path)
}

fn unpack(package: &Path, folder: &Path) -> Result<KernelFiles> {
    let to = folder.join("kernel");
    if !to.exists() {
        let part = folder.join("kernel.part");
        fs::remove_dir_all(&part).ok();
        let status =
            Command::new("dpkg-deb").arg("-x").arg(package).arg(&part).status().context("cannot run dpkg-deb")?;
        ensure!(status.success(), "dpkg-deb failed");
        fs::rename(&part, &to)?;
    }
    let modules =
        ["usr/lib/modules", "lib/modules"].map(|place| to.join(place)).into_iter().find(|place| place.exists());
    let modules = modules.context("the kernel package has no modules")?;
    let entry = fs::read_dir(&modules)?.next().context("the kernel package has no modules")??;
    let version = entry.file_name().into_string().ok().context("a strange kernel version")?;
    Ok(KernelFiles { kernel: to.join("boot").join(format!("vmlinuz-{version}")), modules, version })
}

/// A disk with the root and the kernel's modules.
fn disk(root: &DebianRoot, files: &KernelFiles, folder: &Path) -> Result<PathBuf> {
    let disk = folder.join("disk.ext4");
    let part = folder.join("disk.part");
    let view = folder.join("view");
    let script = format!(
        "set -eu; rm -rf \"$3\" \"$4\"; mkdir \"$3\"; tar -C \"$1\" {} -cf - . | tar -C \"$3\" -xf -; mkdir -p \"$3/proc\" \"$3/sys\" \"$3/dev\" \
         \"$3/run\" \"$3/tmp\"; cp -a \"$2/.\" \"$3/usr/lib/modules/\" 2>/dev/null || {{ mkdir -p \"$3/usr/lib/modules\"; cp -a \"$2/.\" \"$3/usr/lib/modules/\"; }}; \
         chroot \"$3\" depmod {}; mke2fs -q -F -t ext4 -d \"$3\" \"$4\" 4g; rm -rf \"$3\"",
        LEFT_OUT.map(|path| format!("--exclude='./{path}'")).join(" "),
        files.version
    );
    let status = Command::new("sh")
        .args(["-c", &script, "sh"])
        .args([root.path(), &files.modules, &view, &part])
        .status()
        .context("cannot run sh")?;
    ensure!(status.success(), "the guest's disk cannot be made");
    fs::rename(&part, &disk)?;
    Ok(disk)
}

fn initramfs(root: &DebianRoot, files: &KernelFiles) -> Result<Vec<u8>> {
    let busybox = fs::read(root.path().join("bin/busybox")).context("the root has no busybox")?;
    let mut cpio = Cpio::default();
    for directory in ["dev", "root", "bin"] {
        cpio.directory(directory);
    }
    cpio.character_device("dev/console", 5, 1);
    cpio.file("init", 0o755, INITRAMFS.as_bytes());
    cpio.file("bin/busybox", 0o755, &busybox);
    let module = files.modules.join(&files.version).join("kernel/drivers/block/virtio_blk.ko.xz");
    let unpacked = Command::new("xz").arg("-dc").arg(&module).output().context("cannot run xz")?;
    ensure!(unpacked.status.success(), "{} cannot be unpacked", module.display());
    cpio.file("virtio_blk.ko", 0o644, &unpacked.stdout);
    Ok(cpio.finish())
}

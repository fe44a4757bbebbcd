//! Stages the tree of the OS root and makes its erofs image. Only what this file and `rootfs/files/root` list is in it.

use crate::image::{Binaries, Release};
use crate::modules::{Module, alias_file, dep_file};
use crate::services::Source;
use crate::tools::{Tools, run};
use anyhow::{Context, Result, ensure};
use byre_protocol::definition::ServicesFile;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Service accounts: name and id. A number is never reused for another service: files on the state partition carry it.
const SERVICE_ACCOUNTS: [(&str, u32); 13] = [
    ("byre-api", 900),
    ("byre-log", 901),
    ("byre-state", 902),
    ("byre-config", 903),
    ("byre-net", 904),
    ("byre-image", 905),
    ("byre-stats", 906),
    ("byre-probe", 907),
    ("byre-time", 908),
    ("byre-podnet", 910),
    ("byre-dns", 911),
    ("byre-pull", 920),
    ("byre-update", 922),
];

/// Empty directories that PID 1 mounts on.
const MOUNT_POINTS: [&str; 7] = ["proc", "sys", "dev", "run", "state", "data", "tmp"];

/// Links: where, and what they say.
const LINKS: [(&str, &str); 7] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("usr/sbin/init", "../bin/init"),
    ("usr/bin/modprobe", "init"),
    ("etc/resolv.conf", "/run/byre/net/resolv.conf"),
    ("etc/mtab", "/proc/self/mounts"),
];

/// What the root is made from.
pub(crate) struct Root<'a> {
    pub(crate) binaries: &'a Binaries,
    /// Unpacked root packages.
    pub(crate) packages: &'a Path,
    pub(crate) modules: &'a [Module],
    pub(crate) kernel_version: &'a str,
    pub(crate) services: &'a [Source],
    /// The compiled definitions and policy; empty if there is no service.
    pub(crate) compiled: &'a [u8],
    /// The state partition's empty file system, to be put there if the one that is there cannot be mended.
    pub(crate) state_template: &'a [u8],
    /// `rootfs/files/root`: files taken as they are.
    pub(crate) overlay: &'a Path,
    pub(crate) release: &'a Release,
    pub(crate) epoch: i64,
}

impl Root<'_> {
    /// Writes the tree below the empty directory `to`.
    pub(crate) fn stage(&self, to: &Path) -> Result<()> {
        for directory in MOUNT_POINTS {
            std::fs::create_dir_all(to.join(directory))?;
        }
        std::fs::create_dir_all(to.join("etc"))?;
        std::fs::create_dir_all(to.join("usr/sbin"))?;
        copy_tree(self.overlay, to)?;
        self.programs(to)?;
        for (link, target) in LINKS {
            symlink(target, to.join(link)).with_context(|| format!("cannot create /{link}"))?;
        }
        put(to, "etc/passwd", &passwd())?;
        put(to, "etc/group", &group())?;
        put(to, "usr/lib/os-release", &os_release(&self.release.version, self.epoch))?;
        symlink("../usr/lib/os-release", to.join("etc/os-release"))?;
        put(to, "etc/ssl/certs/ca-certificates.crt", &certificates(self.packages)?)?;
        for source in self.services {
            put(to, &format!("usr/lib/byre/services/{}.toml", source.name), &source.text)?;
        }
        put(to, byre_slots::STATE_TEMPLATE.trim_start_matches('/'), self.state_template)?;
        self.stage_release(to)?;
        if !self.compiled.is_empty() {
            put(to, ServicesFile::PATH.trim_start_matches('/'), self.compiled)?;
        }
        self.stage_modules(to)
    }

    /// What the next update is compared with, and whom it must be signed by.
    fn stage_release(&self, to: &Path) -> Result<()> {
        let Release { version, install, minimum_install, release_keys, tuf_root } = self.release;
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let keys = read(release_keys)?;
        byre_release::ReleaseKeys::parse(&keys).with_context(|| format!("{} is refused", release_keys.display()))?;
        let facts = byre_release::Facts {
            version: version.parse()?,
            install: *install,
            minimum_install: *minimum_install,
            build_time: u64::try_from(self.epoch)?,
        };
        put(to, byre_release::RELEASE_KEYS.trim_start_matches('/'), &keys)?;
        put(to, byre_release::RELEASE_FILE.trim_start_matches('/'), &facts.encode())?;
        put(to, byre_release::TUF_ROOT.trim_start_matches('/'), &read(tuf_root)?)
    }

    fn programs(&self, to: &Path) -> Result<()> {
        executable(&self.binaries.init, to, "usr/bin/init")?;
        if let Some(byred) = &self.binaries.byred {
            executable(byred, to, "usr/bin/byred")?;
        }
        if let Some(oci) = &self.binaries.byre_oci {
            executable(oci, to, "usr/bin/byre-oci")?;
        }
        executable(&self.packages.join("usr/sbin/e2fsck.static"), to, "usr/sbin/e2fsck")
    }

    fn stage_modules(&self, to: &Path) -> Result<()> {
        let base = format!("usr/lib/modules/{}", self.kernel_version);
        for module in self.modules {
            put(to, &format!("{base}/{}", module.path), &module.content)?;
        }
        put(to, &format!("{base}/modules.dep"), &dep_file(self.modules))?;
        put(to, &format!("{base}/modules.alias"), &alias_file(self.modules))
    }

    /// The image of the staged tree: fixed times, ids, order and UUID, so equal trees make equal bytes.
    /// Compression level 15 would be 5 % smaller and take six times as long.
    pub(crate) fn image(&self, tools: &Tools, tree: &Path, to: &Path) -> Result<u64> {
        std::fs::remove_file(to).ok();
        run(tools
            .command("bin/mkfs.erofs")
            .args(["--quiet", "-b4096", "-zzstd,level=9", "-C65536", "-Efragments,dedupe,ztailpacking", "-x-1"])
            .args(["--all-root", "--ignore-mtime", "--workers=1"])
            .arg(format!("-T{}", self.epoch))
            .arg(format!("-U{}", crate::disk::derived_guid("erofs root")))
            .arg(to)
            .arg(tree))?;
        let bytes = std::fs::metadata(to)?.len();
        ensure!(bytes > 0 && bytes.is_multiple_of(4096), "mkfs.erofs made an image of {bytes} bytes, not whole blocks");
        Ok(bytes / 4096)
    }
}

fn passwd() -> String {
    let mut out = "root:x:0:0:root:/:/nonexistent\n".to_owned();
    for (name, id) in SERVICE_ACCOUNTS {
        out.push_str(&format!("{name}:x:{id}:{id}::/nonexistent:/nonexistent\n"));
    }
    out.push_str("nobody:x:65534:65534:nobody:/nonexistent:/nonexistent\n");
    out
}

fn group() -> String {
    let mut out = "root:x:0:\n".to_owned();
    for (name, id) in SERVICE_ACCOUNTS {
        out.push_str(&format!("{name}:x:{id}:\n"));
    }
    out.push_str("nogroup:x:65534:\n");
    out
}

/// os-release(5), also the `.osrel` section of the kernel image.
pub(crate) fn os_release(version: &str, epoch: i64) -> String {
    format!(
        "NAME=Byre\nID=byre\nPRETTY_NAME=\"Byre {version}\"\nVERSION_ID={version}\nIMAGE_ID=byre\nIMAGE_VERSION={version}\n\
         BYRE_BUILD_EPOCH={epoch}\n"
    )
}

/// All certificates of the ca-certificates package in one file, by name.
fn certificates(packages: &Path) -> Result<String> {
    let directory = packages.join("usr/share/ca-certificates/mozilla");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    ensure!(files.len() > 50, "ca-certificates has only {} certificates; its layout changed", files.len());
    let mut out = String::new();
    for file in files {
        out.push_str(std::fs::read_to_string(&file)?.trim_end());
        out.push('\n');
    }
    Ok(out)
}

fn put(root: &Path, path: &str, content: &(impl AsRef<[u8]> + ?Sized)) -> Result<()> {
    let target = root.join(path);
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&target, content).with_context(|| format!("cannot write {}", target.display()))?;
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o644))?;
    Ok(())
}

fn executable(from: &Path, root: &Path, path: &str) -> Result<()> {
    let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    put(root, path, &content)?;
    std::fs::set_permissions(root.join(path), std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Copies regular files, with modes 0644 or 0755 only.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            std::fs::create_dir_all(&target)?;
            copy_tree(&source, &target)?;
        } else {
            std::fs::write(&target, std::fs::read(&source)?)?;
            let executable = source.metadata()?.permissions().mode() & 0o111 != 0;
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
        }
    }
    Ok(())
}

/// Every directory gets mode 0755, whatever the umask of the builder is.
pub(crate) fn normal_modes(tree: &Path) -> Result<()> {
    std::fs::set_permissions(tree, std::fs::Permissions::from_mode(0o755))?;
    for entry in std::fs::read_dir(tree)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            normal_modes(&entry.path())?;
        }
    }
    Ok(())
}

/// Sets a file's modification time, which FAT keeps.
pub(crate) fn set_time(path: &Path, epoch: i64) -> Result<()> {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(epoch)?);
    std::fs::File::options().append(true).open(path)?.set_modified(time)?;
    Ok(())
}

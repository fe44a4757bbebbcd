//! The build, from inputs to artefacts: fetch, unpack, root, tree, kernel image, file systems, disk, manifest.
//!
//! Artefacts in the output directory: `disk.img`, `kernel`, `initrd`, `cmdline`, `uki.efi`, `root.erofs`, `root.verity`,
//! `sbom.spdx.json`, `manifest.json`. A stamp of all inputs makes a second build of the same ones do nothing.

use crate::archive::{Archive, Mirrors, file_sha256};
use crate::boot::{self, Boot};
use crate::cpio::Cpio;
use crate::ext4::{self, Ext4};
use crate::lock::{Fetched, Lock, Use};
use crate::manifest::Manifest;
use crate::modules::{Module, Stage, Tree, parse_list};
use crate::root::Root;
use crate::tools::Tools;
use crate::{Progress, deb, disk, root, sbom, services, uki};
use anyhow::{Context, Result};
use byre_slots::attempts;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Our own programs, built for the image.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// PID 1 and the initramfs's `/init`.
    pub init: PathBuf,
    /// The services.
    pub byred: Option<PathBuf>,
    /// The runc-compatible command line.
    pub byre_oci: Option<PathBuf>,
}

/// Which release an image is, and whom it believes about the next one.
#[derive(Debug, Clone)]
pub struct Release {
    /// Byre's version.
    pub version: String,
    /// Rises with every release.
    pub install: u64,
    /// The lowest install number that may be installed once this release is in use.
    pub minimum_install: u64,
    /// Public release keys, in the form of `byre-release`.
    pub release_keys: PathBuf,
    /// TUF root metadata, with which the first contact with a repository begins.
    pub tuf_root: PathBuf,
}

/// What to build.
#[derive(Debug, Clone)]
pub struct ImageSpec {
    /// The repository's top directory.
    pub repository: PathBuf,
    /// Where fetched packages and the build root are kept between builds.
    pub cache: PathBuf,
    /// Where the artefacts go.
    pub out: PathBuf,
    /// Our programs.
    pub binaries: Binaries,
    /// Which release this is.
    pub release: Release,
    /// Size of `disk.img`, a whole number of MiB.
    pub disk_bytes: u64,
}

/// Kernel arguments of every boot, before the root hash. Serial console; panic and come back; no writes to a mounted disk
/// past its file system; our own lines (notice) on the console but not the kernel's chatter (info).
const CMDLINE: &str = "console=ttyS0,115200 loglevel=6 printk.devkmsg=on panic=5 oops=panic bdev_allow_write_mounted=0";

/// SHA-256 in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Builds the image, or finds it built from the same inputs.
///
/// # Errors
/// Whatever keeps it from being whole; the output directory then has no manifest.
pub fn build(spec: &ImageSpec, progress: Progress<'_>) -> Result<Manifest> {
    let stamp = stamp(spec)?;
    let stamp_file = spec.out.join("inputs.sha256");
    if std::fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp)
        && let Ok(manifest) = Manifest::read(&spec.out)
    {
        progress("image: unchanged");
        return Ok(manifest);
    }
    std::fs::create_dir_all(&spec.out).with_context(|| format!("cannot create {}", spec.out.display()))?;
    std::fs::remove_file(&stamp_file).ok();
    std::fs::remove_file(spec.out.join("manifest.json")).ok();
    let manifest = Build::prepare(spec, progress)?.run(progress)?;
    std::fs::write(spec.out.join("manifest.json"), serde_json::to_string_pretty(&manifest)? + "\n")?;
    std::fs::write(&stamp_file, stamp)?;
    Ok(manifest)
}

/// A digest of everything that can change the artefacts, this program included.
fn stamp(spec: &ImageSpec) -> Result<String> {
    let Release { version, install, minimum_install, release_keys, tuf_root } = &spec.release;
    let mut lines = vec![format!("{version} {install} {minimum_install} {}", spec.disk_bytes)];
    let mut files = vec![
        std::env::current_exe()?,
        spec.repository.join("rootfs/build/packages.lock"),
        spec.repository.join("Cargo.lock"),
        spec.binaries.init.clone(),
        release_keys.clone(),
        tuf_root.clone(),
    ];
    files.extend(spec.binaries.byred.clone());
    files.extend(spec.binaries.byre_oci.clone());
    files_below(&spec.repository.join("rootfs/files"), &mut files)?;
    for file in files {
        lines.push(format!("{} {}", file_sha256(&file)?, file.display()));
    }
    Ok(digest(lines.join("\n").as_bytes()))
}

fn files_below(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Inputs that are fetched, checked and unpacked.
struct Build<'a> {
    spec: &'a ImageSpec,
    packages: Vec<Fetched>,
    tools: Tools,
    epoch: i64,
    /// Scratch directory inside the output directory, removed at the end.
    work: PathBuf,
    unpacked: PathBuf,
    kernel_version: String,
}

impl<'a> Build<'a> {
    fn prepare(spec: &'a ImageSpec, progress: Progress<'_>) -> Result<Self> {
        let inputs = spec.repository.join("rootfs/build");
        let lock = Lock::read(&inputs.join("packages.lock"))?;
        let keyring = inputs.join("archive-keyring.gpg");
        let archive = Archive::new(Mirrors::of_this_machine(), keyring, spec.cache.clone())?;
        progress("image: packages");
        let packages = lock.fetch(&archive, progress)?;
        let tools = Tools::unpack(&packages, &spec.cache, lock.epoch)?;
        let work = spec.out.join("work");
        if work.exists() {
            std::fs::remove_dir_all(&work)?;
        }
        let unpacked = work.join("packages");
        for fetched in packages.iter().filter(|fetched| fetched.package.purpose != Use::Tool) {
            deb::unpack(&fetched.file, &unpacked, |path| !path.starts_with("usr/share/doc"))?;
        }
        let kernel_version = only_entry(&unpacked.join("usr/lib/modules"))?;
        Ok(Self { spec, packages, tools, epoch: lock.epoch, work, unpacked, kernel_version })
    }

    fn run(self, progress: Progress<'_>) -> Result<Manifest> {
        let out = &self.spec.out;
        let wanted = parse_list(&std::fs::read_to_string(self.spec.repository.join("rootfs/files/modules.list"))?)?;
        let tree = Tree::open(&self.tools, &self.unpacked.join("usr/lib/modules").join(&self.kernel_version))?;
        progress("image: root");
        let table = disk::layout(self.spec.disk_bytes)?;
        let verity = self.build_root(&tree.closure(&wanted, Stage::Root)?, &table)?;
        progress("image: kernel");
        let cmdline = format!("{CMDLINE} byre.root={} byre.blocks={}", verity.root_hash, verity.data_blocks);
        self.build_uki(&tree.closure(&wanted, Stage::Early)?, &cmdline)?;
        progress("image: disk");
        self.build_disk(&table)?;
        let root_hash = verity.root_hash.to_string();
        let cargo_lock = self.spec.repository.join("Cargo.lock");
        let document = sbom::document(&self.packages, &cargo_lock, &self.spec.release.version, &root_hash, self.epoch)?;
        std::fs::write(out.join("sbom.spdx.json"), document)?;
        std::fs::remove_dir_all(&self.work)?;
        let bytes = |name: &str| std::fs::metadata(out.join(name)).map(|metadata| metadata.len());
        let mut sha256 = std::collections::BTreeMap::new();
        for name in ["kernel", "initrd", "uki.efi", "root.erofs", "root.verity", "sbom.spdx.json"] {
            sha256.insert(name.to_owned(), file_sha256(&out.join(name))?);
        }
        Ok(Manifest {
            version: self.spec.release.version.clone(),
            install: self.spec.release.install,
            minimum_install: self.spec.release.minimum_install,
            kernel_version: self.kernel_version,
            epoch: self.epoch,
            root_hash,
            data_blocks: verity.data_blocks,
            cmdline,
            root_bytes: bytes("root.erofs")?,
            verity_bytes: bytes("root.verity")?,
            uki_bytes: bytes("uki.efi")?,
            kernel_bytes: bytes("kernel")?,
            initrd_bytes: bytes("initrd")?,
            sha256,
            partitions: disk::records(&table),
        })
    }

    /// Makes `root.erofs` and `root.verity`.
    fn build_root(&self, modules: &[Module], table: &byre_slots::gpt::Table) -> Result<byre_verity::Tree> {
        let state = self.work.join("empty-state");
        self.build_state(table, &state)?;
        let mut state = std::io::BufReader::with_capacity(1 << 16, std::fs::File::open(&state)?);
        let state_template = byre_slots::template::encode(&mut state)?;
        let files = self.spec.repository.join("rootfs/files");
        let sources = services::read(&files.join("services"))?;
        let compiled = if sources.is_empty() {
            Vec::new()
        } else {
            let policy = files.join("policy.toml");
            let policy = std::fs::read_to_string(&policy).with_context(|| format!("no {}", policy.display()))?;
            services::compile(&sources, &policy)?
        };
        let overlay = files.join("root");
        let staged = Root {
            binaries: &self.spec.binaries,
            packages: &self.unpacked,
            modules,
            kernel_version: &self.kernel_version,
            services: &sources,
            compiled: &compiled,
            state_template: &state_template,
            overlay: &overlay,
            release: &self.spec.release,
            epoch: self.epoch,
        };
        let tree = self.work.join("root");
        staged.stage(&tree)?;
        root::normal_modes(&tree)?;
        let image = self.spec.out.join("root.erofs");
        let blocks = staged.image(&self.tools, &tree, &image)?;
        let mut reader = std::io::BufReader::with_capacity(1 << 16, std::fs::File::open(&image)?);
        let verity = byre_verity::build(&mut reader, blocks)?;
        std::fs::write(self.spec.out.join("root.verity"), &verity.bytes)?;
        Ok(verity)
    }

    /// Makes `kernel`, `initrd`, `cmdline` and `uki.efi`.
    fn build_uki(&self, modules: &[Module], cmdline: &str) -> Result<()> {
        let out = &self.spec.out;
        let kernel = std::fs::read(self.unpacked.join(format!("boot/vmlinuz-{}", self.kernel_version)))?;
        let initrd = initramfs(&std::fs::read(&self.spec.binaries.init)?, modules)?;
        let stub = std::fs::read(self.unpacked.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub"))?;
        let release = root::os_release(&self.spec.release.version, self.epoch);
        let section = |name, content| uki::Section { name, content };
        // The kernel last: it may use the room behind it while it starts.
        let image = uki::build(
            &stub,
            &[
                section(".osrel", release.as_bytes()),
                section(".cmdline", cmdline.as_bytes()),
                section(".uname", self.kernel_version.as_bytes()),
                section(".initrd", &initrd),
                section(".linux", &kernel),
            ],
        )?;
        std::fs::write(out.join("kernel"), &kernel)?;
        std::fs::write(out.join("initrd"), &initrd)?;
        std::fs::write(out.join("cmdline"), cmdline)?;
        std::fs::write(out.join("uki.efi"), &image)?;
        Ok(())
    }

    /// Makes the state partition's file system. Two groups, so that there is a copy of the superblock from which it can be mended.
    fn build_state(&self, table: &byre_slots::gpt::Table, to: &Path) -> Result<()> {
        let partition_bytes = table.by_label(byre_slots::STATE_LABEL)?.size_bytes();
        let fs = Ext4 {
            label: byre_slots::STATE_LABEL,
            bytes: attempts::offset_in_state(partition_bytes).context("state partition too small")?,
            journal_mib: 4,
            blocks_per_group: Some(byre_slots::STATE_BLOCKS_PER_GROUP),
            extra_features: "",
            extra_options: "",
        };
        ext4::build(&self.tools, to, &fs)
    }

    /// Makes `disk.img`, both slots filled.
    fn build_disk(&self, table: &byre_slots::gpt::Table) -> Result<()> {
        let out = &self.spec.out;
        let uki = out.join("uki.efi");
        let (boot_image, state, data) = (self.work.join("boot.fat"), self.work.join("state"), self.work.join("data"));
        let loader = self.unpacked.join("usr/lib/systemd/boot/efi/systemd-bootx64.efi");
        let boot_bytes = table.by_label(byre_slots::BOOT_LABEL)?.size_bytes();
        let contents = Boot { loader: &loader, uki: &uki, bytes: boot_bytes };
        boot::build(&self.tools, &boot_image, &self.work.join("boot"), &contents)?;
        self.build_state(table, &state)?;
        let data_fs = Ext4 {
            label: byre_slots::DATA_LABEL,
            bytes: table.by_label(byre_slots::DATA_LABEL)?.size_bytes(),
            journal_mib: 16,
            blocks_per_group: None,
            extra_features: "project,quota,verity",
            extra_options: "quotatype=prjquota",
        };
        ext4::build(&self.tools, &data, &data_fs)?;
        let (root_image, verity) = (out.join("root.erofs"), out.join("root.verity"));
        let parts: [(&str, &Path); 9] = [
            ("boot", &boot_image),
            ("root-a", &root_image),
            ("verity-a", &verity),
            ("root-b", &root_image),
            ("verity-b", &verity),
            ("uki-a", &uki),
            ("uki-b", &uki),
            ("state", &state),
            ("data", &data),
        ];
        disk::assemble(&out.join("disk.img"), table, &parts)
    }
}

/// The initramfs: our init, the early modules in load order, nothing else.
fn initramfs(init: &[u8], modules: &[Module]) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for directory in ["dev", "proc", "sys", "run", "modules", "root", "boot"] {
        cpio.directory(directory);
    }
    cpio.character_device("dev/console", 5, 1);
    cpio.file("init", 0o755, init);
    let order: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
    cpio.file("modules/order", 0o644, order.as_bytes());
    for module in modules {
        cpio.file(&format!("modules/{}.ko", module.name), 0o644, &module.content);
    }
    Ok(zstd::bulk::compress(&cpio.finish(), 19)?)
}

/// The name of the only entry of `directory`.
fn only_entry(directory: &Path) -> Result<String> {
    let mut names = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>, _>>()?;
    let name = names.pop().with_context(|| format!("{} is empty", directory.display()))?;
    anyhow::ensure!(names.is_empty(), "{} has more than one entry", directory.display());
    Ok(name)
}

//! What is done to the disk of a machine that is switched off: making it one plain file, damaging parts of it, putting a slot on trial.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use byre_loader::fat::Fat;
use byre_loader::{Span, commit, entries};
use byre_rootfs_build::Manifest;
use byre_slots::{Slot, uki};

use crate::node::{Lab, Off};

/// A switched-off machine's disk as one file.
#[derive(Debug)]
pub struct PlainDisk {
    /// The file.
    pub path: PathBuf,
    /// What the image is.
    pub manifest: Manifest,
    file: File,
}

impl PlainDisk {
    /// Makes a machine's disk one: a copy of the image if it was never on.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn of(lab: &Lab, machine: &mut Off) -> Result<Self> {
        let overlay = machine.config.overlay();
        let path = (0..100).map(|number| machine.config.directory.join(format!("plain-{number}.img")));
        let path = path.into_iter().find(|path| !path.exists()).context("too many disks")?;
        let made = if overlay.exists() {
            Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&overlay).arg(&path).status()
        } else {
            Command::new("cp").arg("--sparse=always").arg(&machine.config.disk).arg(&path).status()
        };
        ensure!(made.context("cannot copy a disk; install qemu-utils")?.success(), "the disk cannot be copied");
        std::fs::remove_file(&overlay).ok();
        machine.config.disk.clone_from(&path);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        Ok(Self { path, manifest: Manifest::read(&lab.image)?, file })
    }

    fn offset(&self, label: &str) -> Result<u64> {
        Ok(self.manifest.partition(label)?.offset_bytes)
    }

    /// The boot partition.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn boot(&self) -> Result<Fat<Span>> {
        let partition = self.manifest.partition("boot")?;
        Ok(Fat::open(Span::new(self.file.try_clone()?, partition.offset_bytes, partition.size_bytes))?)
    }

    /// Names of the loader's entries.
    ///
    /// # Errors
    /// If the boot partition is damaged.
    pub fn entries(&self) -> Result<Vec<String>> {
        Ok(entries::read(&self.boot()?)?.into_iter().map(|entry| entry.file).collect())
    }

    /// Puts `slot` on trial with this kernel image, as `arm` would. Gives the version of its entry.
    ///
    /// # Errors
    /// If the other slot is not blessed, or there is no room.
    pub fn arm(&self, slot: Slot, image: &[u8]) -> Result<u64> {
        let mut fat = self.boot()?;
        let mut rest = image;
        let mut fill = |part: &mut [u8]| std::io::Read::read_exact(&mut rest, part);
        commit::place_image(&mut fat, slot, image.len() as u64, &mut fill)?;
        let mut raw = image.to_vec();
        raw.resize(raw.len().next_multiple_of(4096), 0);
        self.file.write_all_at(&raw, self.offset(slot.uki_label())?)?;
        let install = commit::commit(&mut fat, slot)?;
        self.file.sync_all()?;
        Ok(install)
    }

    /// Changes bytes of a partition.
    ///
    /// # Errors
    /// Of the file.
    pub fn write(&self, label: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.offset(label)? + offset)?;
        Ok(())
    }

    /// Changes bytes of the whole disk; negative offsets count from its end.
    ///
    /// # Errors
    /// Of the file.
    pub fn write_raw(&self, offset: i64, bytes: &[u8]) -> Result<()> {
        let length = self.file.metadata()?.len();
        let at = if offset < 0 { length - offset.unsigned_abs() } else { offset.unsigned_abs() };
        self.file.write_all_at(bytes, at)?;
        Ok(())
    }

    /// Flips one bit in each block of a slot's root from the middle to its end.
    ///
    /// # Errors
    /// Of the file.
    pub fn flip_in_root(&self, slot: Slot) -> Result<()> {
        let partition = self.offset(slot.root_label())?;
        let mut byte = [0_u8];
        for block in self.manifest.data_blocks / 2..self.manifest.data_blocks {
            let at = partition + block * 4096 + 17;
            self.file.read_exact_at(&mut byte, at)?;
            self.file.write_all_at(&[byte[0] ^ 0x10], at)?;
        }
        Ok(())
    }

    /// Puts a file on the state partition, which is ext4, with debugfs.
    ///
    /// # Errors
    /// If debugfs is not installed or refuses.
    pub fn put_on_state(&self, directory: &str, name: &str, content: &[u8]) -> Result<()> {
        let source = self.path.with_extension("put");
        std::fs::write(&source, content)?;
        let state = format!("{}?offset={}", self.path.display(), self.offset("state")?);
        let script = format!("mkdir {directory}\ncd {directory}\nrm {name}\nwrite {} {name}\n", source.display());
        let mut child = Command::new("debugfs")
            .args(["-w", "-f", "-", &state])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .context("cannot run debugfs; install e2fsprogs")?;
        child.stdin.take().context("no input")?.write_all(script.as_bytes())?;
        ensure!(child.wait()?.success(), "debugfs cannot write {directory}/{name}");
        Ok(())
    }
}

/// The kernel image of the image under test.
///
/// # Errors
/// If it was not built.
pub fn kernel_image(lab: &Lab) -> Result<Vec<u8>> {
    let path = lab.image.join("uki.efi");
    std::fs::read(&path).with_context(|| format!("no {}", path.display()))
}

/// A kernel image with one bit of a section flipped, in its middle.
///
/// # Errors
/// If it has no such section.
pub fn flipped(image: &[u8], section: &str) -> Result<Vec<u8>> {
    let found = uki::find(image.get(..uki::HEADER_BYTES).context("a short image")?, section);
    let found = found.with_context(|| format!("the kernel image has no section {section}"))?;
    let mut image = image.to_vec();
    *image.get_mut(usize::try_from(found.offset + found.size / 2)?).context("a short image")? ^= 0x04;
    Ok(image)
}

/// A kernel image whose command line says something else in place of `from`; both are equally long.
///
/// # Errors
/// If the command line has no such text.
pub fn with_command_line(image: &[u8], from: &str, to: &str) -> Result<Vec<u8>> {
    ensure!(from.len() == to.len(), "{from} and {to} differ in length");
    let found = uki::find(image.get(..uki::HEADER_BYTES).context("a short image")?, ".cmdline");
    let found = found.context("the kernel image has no command line")?;
    let start = usize::try_from(found.offset)?;
    let line = image.get(start..start + usize::try_from(found.size)?).context("a short image")?;
    let at = line.windows(from.len()).position(|window| window == from.as_bytes());
    let at = at.with_context(|| format!("no {from} in {}", String::from_utf8_lossy(line)))?;
    let mut image = image.to_vec();
    image.get_mut(start + at..start + at + to.len()).context("a short image")?.copy_from_slice(to.as_bytes());
    Ok(image)
}

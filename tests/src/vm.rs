//! The harness's lowest layer: one virtual machine that boots the shipped image as a real machine would.
//!
//! UEFI firmware, virtio disk and network, hardware watchdog, serial console; driven through QEMU's machine protocol. It
//! knows nothing of Byre's API. The base image is never written: each machine has an overlay of its own.

use crate::kvm;
use crate::qmp::Qmp;
use crate::serial::Serial;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Places where distributions put the firmware: code and the template of its variables.
const FIRMWARE: [(&str, &str); 2] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];

/// How the machine gets its kernel.
#[derive(Debug, Clone)]
pub enum Boot {
    /// Firmware, boot loader, kernel image of a slot: what ships.
    Uefi,
    /// QEMU loads kernel and initramfs itself: four seconds faster under emulation, no loader variables.
    Kernel {
        /// `kernel` of the image directory.
        kernel: PathBuf,
        /// `initrd` of the image directory.
        initrd: PathBuf,
        /// Text of `cmdline` of the image directory, and what the test appends.
        cmdline: String,
    },
}

/// A forwarded port.
#[derive(Debug, Clone, Copy)]
pub struct Forward {
    /// On this machine's loopback address.
    pub host: u16,
    /// In the guest.
    pub guest: u16,
}

/// A machine to start.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Files of this machine: overlay, firmware variables, console log. Kept between starts, so a second start with the
    /// same directory is the same machine switched on again.
    pub directory: PathBuf,
    /// The image; not written.
    pub disk: PathBuf,
    /// Size that the machine sees in bytes; at least the image's. `None`: the image's.
    pub disk_bytes: Option<u64>,
    /// How it boots.
    pub boot: Boot,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// TCP ports.
    pub forwards: Vec<Forward>,
    /// SMBIOS type 11 strings: how a cloud hands over configuration.
    pub smbios: Vec<String>,
    /// Firmware configuration files: name, file.
    pub fw_cfg: Vec<(String, PathBuf)>,
    /// More QEMU arguments.
    pub extra: Vec<OsString>,
    /// Where every write and flush of the disk is recorded, by QEMU's `blklogwrites`. `disk` is then a raw file that is written itself.
    pub write_log: Option<PathBuf>,
}

impl VmConfig {
    /// A small machine that boots `disk` through UEFI, with its files in `directory`.
    pub fn new(directory: &Path, disk: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            disk: disk.to_owned(),
            disk_bytes: None,
            boot: Boot::Uefi,
            memory_mib: 1024,
            cpus: 2,
            forwards: Vec::new(),
            smbios: Vec::new(),
            fw_cfg: Vec::new(),
            extra: Vec::new(),
            write_log: None,
        }
    }

    /// The overlay that holds this machine's writes.
    pub fn overlay(&self) -> PathBuf {
        self.directory.join("disk.qcow2")
    }

    /// Where the console is logged; grows over starts.
    pub fn serial_log(&self) -> PathBuf {
        self.directory.join("serial.log")
    }

    /// Makes the overlay and the firmware's variables, unless they are there.
    ///
    /// # Errors
    /// When there is no image, or qemu-img or the firmware is not installed.
    pub fn prepare(&self) -> Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let overlay = self.overlay();
        if !overlay.exists() && self.write_log.is_none() {
            let base = self.disk.canonicalize().with_context(|| format!("no disk image {}", self.disk.display()))?;
            let mut create = Command::new("qemu-img");
            create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(&overlay);
            if let Some(bytes) = self.disk_bytes {
                create.arg(bytes.to_string());
            }
            ensure!(create.status().context("cannot run qemu-img; install qemu-utils")?.success(), "qemu-img failed");
        }
        let variables = self.directory.join("firmware.fd");
        if matches!(self.boot, Boot::Uefi) && !variables.exists() {
            std::fs::copy(firmware()?.1, &variables)?;
        }
        Ok(())
    }

    /// QEMU's whole command line. `console` is where the console goes (`-serial`), `qmp` the socket of the machine
    /// protocol (`-chardev socket`).
    ///
    /// # Errors
    /// When the firmware is not installed.
    pub fn command(&self, console: &str, qmp: &str) -> Result<Command> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,smm=off,vmport=off"]);
        if kvm::works() {
            command.args(["-accel", "kvm", "-cpu", "host"]);
        } else {
            // Without 5-level paging, which costs a tenth under emulation and tells nothing.
            command.args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]);
        }
        command
            .args(["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()])
            .args(["-serial", console, "-chardev", &format!("socket,id=qmp,{qmp}"), "-mon", "chardev=qmp,mode=control"])
            .args(["-device", "i6300esb", "-action", "watchdog=reset", "-device", "virtio-rng-pci"])
            .args(["-device", "virtio-blk-pci,drive=disk,serial=byre-disk"]);
        match &self.write_log {
            None => {
                let overlay = self.overlay();
                command
                    .arg("-drive")
                    .arg(format!("if=none,id=disk,format=qcow2,discard=unmap,file={}", overlay.display()));
            }
            Some(log) => {
                command
                    .arg("-blockdev")
                    .arg(format!("driver=raw,node-name=plain,file.driver=file,file.filename={}", self.disk.display()))
                    .arg("-blockdev")
                    .arg(format!("driver=file,node-name=log,filename={}", log.display()))
                    .arg("-blockdev")
                    .arg("driver=blklogwrites,node-name=disk,file=plain,log=log,log-sector-size=512");
            }
        }
        let forwards: String =
            self.forwards.iter().map(|one| format!(",hostfwd=tcp:127.0.0.1:{}-:{}", one.host, one.guest)).collect();
        command.args(["-netdev", &format!("user,id=net{forwards}"), "-device", "virtio-net-pci,netdev=net,romfile="]);
        for text in &self.smbios {
            // A comma separates QEMU's options; doubled it is text.
            command.args(["-smbios", &format!("type=11,value={}", text.replace(',', ",,"))]);
        }
        for (name, file) in &self.fw_cfg {
            command.arg("-fw_cfg").arg(format!("name={name},file={}", file.display()));
        }
        match &self.boot {
            Boot::Uefi => {
                let variables = self.directory.join("firmware.fd");
                command
                    .arg("-drive")
                    .arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={}", firmware()?.0))
                    .arg("-drive")
                    .arg(format!("if=pflash,format=raw,unit=1,file={}", variables.display()));
            }
            Boot::Kernel { kernel, initrd, cmdline } => {
                command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd).args(["-append", cmdline]);
            }
        }
        command.args(&self.extra);
        Ok(command)
    }
}

/// The installed UEFI firmware.
pub(crate) fn firmware() -> Result<(&'static str, &'static str)> {
    FIRMWARE
        .into_iter()
        .find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists())
        .context("no UEFI firmware; install the package ovmf")
}

/// A running machine. Dropping it cuts its power.
pub struct Vm {
    config: VmConfig,
    child: Child,
    /// Commands to QEMU.
    pub qmp: Qmp,
    /// The console.
    pub serial: Serial,
}

impl Vm {
    /// Switches the machine on.
    ///
    /// # Errors
    /// When QEMU or the firmware is not installed, or QEMU does not take its arguments.
    pub fn start(config: VmConfig) -> Result<Self> {
        config.prepare()?;
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        let mut command = config.command("stdio", &format!("fd={}", theirs.as_raw_fd()))?;
        let number = theirs.as_raw_fd();
        // SAFETY: between fork and exec only fcntl runs, which is async-signal-safe; `theirs` lives until after spawn.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(number, libc::F_SETFD, 0) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                // Nobody's machine outlives its test.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let errors = std::fs::File::create(config.directory.join("qemu.log"))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("cannot run qemu-system-x86_64; install qemu-system-x86")?;
        drop(theirs);
        let console = child.stdout.take().context("no console")?;
        let serial = Serial::start(console, &config.serial_log())?;
        let qmp = Qmp::new(ours).with_context(|| {
            let text = std::fs::read_to_string(config.directory.join("qemu.log")).unwrap_or_default();
            format!("QEMU did not start: {}", text.trim())
        })?;
        Ok(Self { config, child, qmp, serial })
    }

    /// What it was started with.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Process id of QEMU, for reading its counters.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn press_power(&mut self) -> Result<()> {
        self.qmp.execute("system_powerdown", &json!({})).map(drop)
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn reset(&mut self) -> Result<()> {
        self.qmp.execute("system_reset", &json!({})).map(drop)
    }

    /// Presses Ctrl-Alt-Del.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn ctrl_alt_delete(&mut self) -> Result<()> {
        let key = |name: &str| json!({ "type": "qcode", "data": name });
        self.qmp.execute("send-key", &json!({ "keys": [key("ctrl"), key("alt"), key("delete")] })).map(drop)
    }

    /// Waits until the guest switched the machine off itself; returns the configuration to start it again.
    ///
    /// # Errors
    /// When it does not within `timeout`; it is then killed.
    pub fn wait_for_power_off(mut self, timeout: Duration) -> Result<VmConfig> {
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::PidfdFlags::empty(),
        )?;
        let time =
            rustix::event::Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
        let mut wanted = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut wanted, Some(&time))? == 0 {
            bail!("the guest did not switch off in {timeout:?}; console: {}", self.config.serial_log().display());
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "QEMU ended with {status}; see {}", self.config.directory.join("qemu.log").display());
        Ok(self.config.clone())
    }

    /// Cuts the power: nothing in the guest or in QEMU gets to finish. What QEMU acknowledged as flushed is in the overlay.
    ///
    /// # Errors
    /// When the process cannot be killed.
    pub fn power_cut(mut self) -> Result<VmConfig> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.config.clone())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Already gone is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies a switched-off machine: disk and firmware variables. The copy is a machine of its own.
///
/// # Errors
/// When files cannot be copied.
pub fn snapshot(config: &VmConfig, directory: &Path) -> Result<VmConfig> {
    std::fs::create_dir_all(directory)?;
    let copy = VmConfig { directory: directory.to_owned(), ..config.clone() };
    std::fs::copy(config.overlay(), copy.overlay())?;
    let variables = config.directory.join("firmware.fd");
    if variables.exists() {
        std::fs::copy(variables, directory.join("firmware.fd"))?;
    }
    Ok(copy)
}

//! Mounts, and the change from the initramfs to the verified root.

use super::attempts::Recorder;
use super::devices::Disk;
use super::slot::Chosen;
use super::watchdog::Watchdog;
use super::{EarlyError, Never};
use rustix::mount::{MountFlags, mount, mount_move};
use std::ffi::CStr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// PID 1 in the root.
pub(super) const INIT: &str = "/usr/bin/init";

/// Where the root is mounted before it becomes `/`.
const NEW_ROOT: &str = "/root";

/// Moved along, in this order.
const MOVED: [(&str, &str); 4] =
    [("/proc", "/root/proc"), ("/sys", "/root/sys"), ("/dev", "/root/dev"), ("/run", "/root/run")];

const STRICT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts what every later step reads. efivarfs may be missing (direct kernel boot, BIOS): nothing here needs it.
pub(super) fn mount_kernel_filesystems() -> Result<(), EarlyError> {
    let dev = MountFlags::NOSUID.union(MountFlags::NOEXEC);
    filesystem("proc", "/proc", STRICT, None)?;
    filesystem("sysfs", "/sys", STRICT, None)?;
    filesystem("devtmpfs", "/dev", dev, Some(c"mode=0755"))?;
    filesystem("tmpfs", "/run", STRICT, Some(c"mode=0755"))
}

/// Mounts the EFI variables; `false` on a machine that has none.
pub(super) fn mount_efi_variables() -> bool {
    filesystem("efivarfs", "/sys/firmware/efi/efivars", STRICT, None).is_ok()
}

fn filesystem(kind: &str, at: &'static str, flags: MountFlags, data: Option<&CStr>) -> Result<(), EarlyError> {
    mount(kind, at, kind, flags, data).map_err(|errno| EarlyError::Mount { what: kind.to_owned(), at, errno })
}

/// Mounts the verified device.
pub(super) fn mount_root(device: &str) -> Result<(), EarlyError> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    mount(device, NEW_ROOT, "erofs", flags, None::<&CStr>).map_err(|errno| EarlyError::Mount {
        what: device.to_owned(),
        at: NEW_ROOT,
        errno,
    })
}

/// Makes the root `/`. The initramfs stays below, empty but for this program.
pub(super) fn into_root() -> Result<(), EarlyError> {
    for (from, to) in MOVED {
        mount_move(from, to).map_err(|errno| EarlyError::Mount { what: from.to_owned(), at: to, errno })?;
    }
    let _ = std::fs::remove_file("/init");
    let step = |action, result: Result<(), rustix::io::Errno>| {
        result.map_err(|errno| EarlyError::File { action, path: NEW_ROOT.into(), source: errno.into() })
    };
    step("enter", rustix::process::chdir(NEW_ROOT))?;
    step("move", mount_move(".", "/"))?;
    step("chroot to", rustix::process::chroot("."))?;
    step("enter", rustix::process::chdir("/"))
}

/// Becomes PID 1 of the root. The environment says what the early stage knows and PID 1 must not find out again:
/// `BYRE_SLOT`, `BYRE_DISK`, `BYRE_BOOT_PARTITION`, `BYRE_STATE_PARTITION`, `BYRE_DATA_PARTITION`, `BYRE_WATCHDOG_FD`,
/// `BYRE_BOOT_NUMBER`, `BYRE_TRIAL`.
pub(super) fn execute(disk: &Disk, slot: &Chosen, watchdog: &Watchdog, record: &Recorder) -> Result<Never, EarlyError> {
    let mut command = Command::new(INIT);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/usr/sbin")
        .env("BYRE_SLOT", slot.slot.letter())
        .env("BYRE_DISK", format!("/dev/{}", disk.name))
        .env("BYRE_BOOT_PARTITION", disk.path(byre_slots::BOOT_LABEL)?)
        .env("BYRE_STATE_PARTITION", disk.path(byre_slots::STATE_LABEL)?)
        .env("BYRE_DATA_PARTITION", disk.path(byre_slots::DATA_LABEL)?)
        .env("BYRE_BOOT_NUMBER", record.number().to_string())
        .env("BYRE_TRIAL", if record.on_trial { "1" } else { "0" });
    match watchdog {
        Watchdog::Armed { device, timeout_s: _, fired: _ } => {
            command.env("BYRE_WATCHDOG_FD", device.as_raw_fd().to_string());
        }
        Watchdog::Absent => {}
    }
    Err(EarlyError::Execute { path: INIT, errno: command.exec() })
}

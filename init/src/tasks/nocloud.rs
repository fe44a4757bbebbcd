//! A configuration disk: a file system labelled `cidata`, as cloud-init's NoCloud source has it, mounted read-only for `byred config`.
//!
//! The disk is another one than the booted disk, and what is on it is not trusted: it is mounted without devices, programs or set-user-id.

use rustix::mount::MountFlags;

use super::TaskError;
use super::boot_disk::BootFacts;

/// Where `byred config` looks.
const TARGET: &str = "/run/byre/nocloud";
/// Devices looked at.
const DEVICES: usize = 256;

/// Mounts the first configuration disk that is found; none is not an error.
pub(crate) fn mount() -> Result<(), TaskError> {
    let booted = BootFacts::read()?.disk;
    let Ok(entries) = std::fs::read_dir("/sys/class/block") else { return Ok(()) };
    let mut names: Vec<String> =
        entries.flatten().take(DEVICES).filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    for name in names {
        let device = format!("/dev/{name}");
        if device.starts_with(&booted) || name.starts_with("dm-") || name.starts_with("loop") {
            continue;
        }
        if let Some(kind) = labelled_cidata(&device) {
            return mount_device(&device, kind);
        }
    }
    Ok(())
}

fn mount_device(device: &str, kind: &str) -> Result<(), TaskError> {
    let failed = |errno| TaskError::Mount { device: device.to_owned(), target: TARGET.to_owned(), errno };
    match rustix::fs::mkdir(TARGET, rustix::fs::Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(device, TARGET, kind, flags, None::<&std::ffi::CStr>).map_err(failed)?;
    println!("configuration disk {device} ({kind})");
    Ok(())
}

/// The file system on a device, if its label is `cidata`: the volume identifier of ISO 9660 (ECMA-119, 8.4.8), or the label in a FAT
/// boot sector.
fn labelled_cidata(device: &str) -> Option<&'static str> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(device).ok()?;
    let mut boot_sector = [0_u8; 512];
    file.read_exact_at(&mut boot_sector, 0).ok()?;
    let is_label = |field: Option<&[u8]>| field.is_some_and(|label| label.trim_ascii().eq_ignore_ascii_case(b"cidata"));
    if is_label(boot_sector.get(43..54)) || is_label(boot_sector.get(71..82)) {
        return Some("vfat");
    }
    let mut descriptor = [0_u8; 2048];
    file.read_exact_at(&mut descriptor, 16 * 2048).ok()?;
    let is_iso = descriptor.get(1..6) == Some(b"CD001".as_slice());
    (is_iso && is_label(descriptor.get(40..72))).then_some("iso9660")
}

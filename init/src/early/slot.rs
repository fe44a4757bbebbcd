//! Picks the slot: the one whose verity tree hashes to the signed root hash.
//!
//! If both do (a fresh image has the same release twice), the entry that the loader took decides, so that a damaged slot A
//! does not drag slot B down with it. What the loader says never makes a slot eligible that the hash does not.

use super::EarlyError;
use super::cmdline::CommandLine;
use super::devices::Disk;
use byre_slots::gpt::ReadAt;
use byre_slots::{Guid, Slot, efivar, entry::EntryName};
use byre_verity::{BLOCK_BYTES, DeviceMapper, TreeCheck, Verity, check_tree_top};

/// What the boot loader left in EFI variables; empty with a direct kernel boot.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Loader {
    /// `LoaderDevicePartUUID`.
    pub(super) boot_partition: Option<Guid>,
    /// The slot whose kernel image runs: `StubImageIdentifier`, else `LoaderEntrySelected`.
    pub(super) slot: Option<Slot>,
}

impl Loader {
    /// Reads the variables; efivarfs must be mounted.
    pub(super) fn read() -> Self {
        let boot_partition = variable("LoaderDevicePartUUID").and_then(|text| Guid::parse(&text));
        // The stub's own path is what runs; the loader's selection may be one that it then could not load.
        let slot = variable("StubImageIdentifier")
            .and_then(|text| slot_of_image(&text))
            .or_else(|| variable("LoaderEntrySelected").and_then(|text| EntryName::slot_of_selected(&text)));
        Self { boot_partition, slot }
    }
}

fn variable(name: &str) -> Option<String> {
    let path = format!("/sys/firmware/efi/efivars/{name}-{}", efivar::LOADER_VENDOR);
    efivar::text(&std::fs::read(path).ok()?)
}

/// The slot of a kernel image's path, as `\byre\a.efi`.
fn slot_of_image(path: &str) -> Option<Slot> {
    let name = path.rsplit(['\\', '/']).next()?.to_ascii_lowercase();
    Slot::from_letter(name.strip_suffix(".efi")?)
}

/// A slot whose tree matches.
pub(super) struct Chosen {
    pub(super) slot: Slot,
    data: byre_verity::DeviceNumber,
    hashes: byre_verity::DeviceNumber,
    others: usize,
}

/// Picks the slot.
pub(super) fn choose(disk: &Disk, cmdline: &CommandLine, loader: &Loader) -> Result<Chosen, EarlyError> {
    let matching = matching_slots(disk, cmdline);
    let Some(slot) = prefer(&matching, loader.slot) else {
        let detail: Vec<String> =
            Slot::ALL.iter().map(|slot| format!("slot {}: {}", slot.letter(), check(disk, *slot, cmdline).1)).collect();
        let hash = cmdline.root_hash.to_string();
        return Err(EarlyError::NoSlot { disk: disk.name.clone(), hash, detail: detail.join(", ") });
    };
    Ok(Chosen {
        slot,
        data: disk.device_number(slot.root_label())?,
        hashes: disk.device_number(slot.verity_label())?,
        others: matching.len().saturating_sub(1),
    })
}

/// The loader's slot if it matches, else the first that does.
fn prefer(matching: &[Slot], booted: Option<Slot>) -> Option<Slot> {
    booted.filter(|slot| matching.contains(slot)).or_else(|| matching.first().copied())
}

/// The slots of `disk` whose tree is of the root hash.
pub(super) fn matching_slots(disk: &Disk, cmdline: &CommandLine) -> Vec<Slot> {
    Slot::ALL.into_iter().filter(|slot| check(disk, *slot, cmdline).0).collect()
}

/// Whether the slot matches, and what it holds in words.
fn check(disk: &Disk, slot: Slot, cmdline: &CommandLine) -> (bool, String) {
    let mut blocks = [0u8; BLOCK_BYTES * 2];
    let read = disk.path(slot.verity_label()).map_err(|error| error.to_string()).and_then(|path| {
        std::fs::File::open(&path)
            .and_then(|device| ReadAt::read_exact_at(&device, &mut blocks, 0))
            .map_err(|error| format!("{path}: {error}"))
    });
    match read.map(|()| check_tree_top(&blocks, cmdline.root_hash)) {
        Ok(TreeCheck::Matches) => (true, "matches".to_owned()),
        Ok(TreeCheck::OtherRoot) => (false, "another root".to_owned()),
        Ok(TreeCheck::NotATree) => (false, "no hash tree".to_owned()),
        Err(error) => (false, error),
    }
}

impl Chosen {
    /// For the console.
    pub(super) fn describe(&self) -> String {
        let also = if self.others > 0 { " (the other slot holds the same root)" } else { "" };
        format!("{}{also}", self.slot.letter())
    }

    /// Opens the slot's root; returns its device path.
    pub(super) fn open_verity(&self, cmdline: &CommandLine) -> Result<String, EarlyError> {
        let verity = Verity {
            data: self.data,
            hashes: self.hashes,
            data_blocks: cmdline.data_blocks,
            root_hash: cmdline.root_hash,
        };
        let minor = DeviceMapper::open()?.open_verity("root", &verity)?;
        Ok(format!("/dev/dm-{minor}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_image_names_its_slot() {
        assert_eq!(slot_of_image("\\byre\\b.efi"), Some(Slot::B));
        assert_eq!(slot_of_image("\\BYRE\\A.EFI"), Some(Slot::A));
        assert_eq!(slot_of_image("\\EFI\\BOOT\\BOOTX64.EFI"), None);
    }

    #[test]
    fn the_loader_decides_only_among_slots_that_match() {
        let both = [Slot::A, Slot::B];
        assert_eq!(prefer(&both, Some(Slot::B)), Some(Slot::B));
        assert_eq!(prefer(&both, None), Some(Slot::A));
        assert_eq!(prefer(&[Slot::A], Some(Slot::B)), Some(Slot::A));
        assert_eq!(prefer(&[], Some(Slot::B)), None);
    }
}

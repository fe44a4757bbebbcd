//! EFI variables as efivarfs has them: four attribute bytes, then the value. The loader's are UTF-16 text, the firmware's
//! boot options a binary record (UEFI Specification 2.10, 3.1.3). Bounded, never trusted: what they say only picks among
//! things that the signed root hash already allows.

use crate::gpt::Partition;

/// Longest value read in bytes; a partition UUID takes 78, an entry name fewer.
pub const MAX_VALUE_BYTES: usize = 1024;

/// The vendor GUID of systemd-boot's variables, as it stands in efivarfs file names.
pub const LOADER_VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// The text of a variable read from efivarfs, up to its terminating zero; `None` when it is no such text.
pub fn text(raw: &[u8]) -> Option<String> {
    if raw.len() > MAX_VALUE_BYTES {
        return None;
    }
    let value = raw.get(4..)?;
    let units: Vec<u16> = value
        .chunks_exact(2)
        .filter_map(|pair| pair.first_chunk::<2>().map(|unit| u16::from_le_bytes(*unit)))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16(&units).ok()
}

/// The vendor GUID of the firmware's own variables, as it stands in efivarfs file names.
pub const GLOBAL_VENDOR: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Most boot options beside ours that are kept in order; firmware has about ten.
const MAX_OPTIONS: usize = 256;

/// Kept over power cycles, readable by loader and system.
const ATTRIBUTES: u32 = 7;

/// The variable of an active boot option: the file `path` (with backslashes) on `partition`, attributes included.
pub fn boot_option(description: &str, partition: &Partition, path: &str) -> Vec<u8> {
    let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect() };
    let mut device = vec![4, 1, 42, 0];
    device.extend_from_slice(&partition.number.to_le_bytes());
    device.extend_from_slice(&partition.first.to_le_bytes());
    device.extend_from_slice(&partition.last.saturating_sub(partition.first).saturating_add(1).to_le_bytes());
    device.extend_from_slice(&partition.id.0);
    // A GPT partition, known by its GUID.
    device.extend_from_slice(&[2, 2]);
    let name = utf16(path);
    device.extend_from_slice(&[4, 4]);
    device.extend_from_slice(&length(name.len().saturating_add(4)));
    device.extend_from_slice(&name);
    device.extend_from_slice(&[0x7f, 0xff, 4, 0]);
    let mut out = ATTRIBUTES.to_le_bytes().to_vec();
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&length(device.len()));
    out.extend_from_slice(&utf16(description));
    out.extend_from_slice(&device);
    out
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_le_bytes()
}

/// `BootOrder` with `options` right behind the option `current` (else at the front), attributes included; `None` when they
/// stand there already. Behind the current one, so that they are tried before a firmware shell or the network.
pub fn boot_order_with(raw: &[u8], current: Option<u16>, options: &[u16]) -> Option<Vec<u8>> {
    let values = raw.get(4..).unwrap_or_default();
    let order: Vec<u16> = values
        .chunks_exact(2)
        .filter_map(|pair| pair.first_chunk::<2>().map(|unit| u16::from_le_bytes(*unit)))
        .take(MAX_OPTIONS.saturating_add(options.len()))
        .collect();
    let others = order.iter().copied().filter(|option| !options.contains(option));
    let mut wanted: Vec<u16> = others.take(MAX_OPTIONS).collect();
    let place = current.and_then(|current| wanted.iter().position(|option| *option == current));
    let at = place.map_or(0, |place| place.saturating_add(1));
    let tail = wanted.split_off(at.min(wanted.len()));
    wanted.extend_from_slice(options);
    wanted.extend(tail);
    if wanted == order {
        return None;
    }
    let mut out = ATTRIBUTES.to_le_bytes().to_vec();
    out.extend(wanted.into_iter().flat_map(u16::to_le_bytes));
    Some(out)
}

/// The value of `BootCurrent`.
pub fn number(raw: &[u8]) -> Option<u16> {
    raw.get(4..)?.first_chunk::<2>().map(|unit| u16::from_le_bytes(*unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_terminator_are_not_part_of_the_text() {
        let mut raw = vec![6, 0, 0, 0];
        raw.extend("a.conf\0".encode_utf16().flat_map(u16::to_le_bytes));
        assert_eq!(text(&raw).as_deref(), Some("a.conf"));
        assert_eq!(text(&[1, 2]), None);
        assert_eq!(text(&[0, 0, 0, 0, 0, 0xd8]), None);
    }
    fn order(options: &[u16]) -> Vec<u8> {
        [7u16, 0].iter().chain(options).flat_map(|option| option.to_le_bytes()).collect()
    }

    #[test]
    fn our_options_follow_the_current_one_and_are_written_once() {
        let wanted = order(&[1, 0xba, 0xbb, 2]);
        assert_eq!(boot_order_with(&order(&[1, 2]), Some(1), &[0xba, 0xbb]), Some(wanted.clone()));
        assert_eq!(boot_order_with(&order(&[0xbb, 1, 2]), Some(1), &[0xba, 0xbb]), Some(wanted.clone()));
        assert_eq!(boot_order_with(&wanted, Some(1), &[0xba, 0xbb]), None);
        assert_eq!(boot_order_with(&[], None, &[5]), Some(order(&[5])));
    }

    #[test]
    fn a_very_long_order_is_written_once_too() {
        let many: Vec<u16> = (1000..1400).collect();
        let written = boot_order_with(&order(&many), None, &[0xba, 0xbb]).unwrap();
        assert_eq!(boot_order_with(&written, None, &[0xba, 0xbb]), None);
        let written = boot_order_with(&order(&many), Some(1399), &[0xba, 0xbb]).unwrap();
        assert_eq!(boot_order_with(&written, Some(1399), &[0xba, 0xbb]), None);
    }

    #[test]
    fn a_boot_option_has_its_partition_and_file() {
        let partition = Partition {
            number: 1,
            kind: crate::Guid([0; 16]),
            id: crate::Guid([9; 16]),
            first: 2048,
            last: 4095,
            attributes: 0,
            label: String::new(),
        };
        let raw = boot_option("B", &partition, "\\a.efi");
        // Attributes, active, 42 + 4 + 7 * 2 + 4 bytes of path, description, then the disk node.
        assert_eq!(&raw[..14], &[7, 0, 0, 0, 1, 0, 0, 0, 64, 0, b'B', 0, 0, 0]);
        assert_eq!(&raw[14..22], &[4, 1, 42, 0, 1, 0, 0, 0]);
        assert_eq!(raw.len(), 14 + 64);
    }
}

//! Finds a section in a unified kernel image, so that the early stage can learn which root another slot's image wants.
//!
//! What it finds is not trusted: it only says against which hash that slot is checked before it is put first.

/// How much of the image has all section headers: the boot stub's fit in 4 KiB.
pub const HEADER_BYTES: usize = 8192;

/// Longest command line that is read, the kernel's own limit.
pub const MAX_CMDLINE_BYTES: u64 = 2048;

/// Most sections that are looked through; ours have about 15.
const MAX_SECTIONS: u16 = 64;

/// Where a section's content lies in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section {
    /// First byte.
    pub offset: u64,
    /// Bytes, without padding.
    pub size: u64,
}

/// The section `name` (with its dot), from the first [`HEADER_BYTES`] of an image; `None` when it is not there.
pub fn find(header: &[u8], name: &str) -> Option<Section> {
    let pe = usize::try_from(u32_at(header, 0x3c)?).ok()?;
    if header.get(pe..)?.first_chunk::<4>()? != b"PE\0\0" {
        return None;
    }
    let count = u16_at(header, pe.checked_add(6)?)?.min(MAX_SECTIONS);
    let optional = usize::from(u16_at(header, pe.checked_add(20)?)?);
    let table = pe.checked_add(24)?.checked_add(optional)?;
    header.get(table..)?.chunks_exact(40).take(usize::from(count)).find_map(|entry| {
        let label = entry.get(..8)?.split(|byte| *byte == 0).next()?;
        (label == name.as_bytes())
            .then(|| Some(Section { offset: u32_at(entry, 20)?.into(), size: u32_at(entry, 8)?.into() }))?
    })
}

/// Bytes of the whole image, from its first [`HEADER_BYTES`]: to the end of the section that ends last; `None` when it is no image.
pub fn length(header: &[u8]) -> Option<u64> {
    let pe = usize::try_from(u32_at(header, 0x3c)?).ok()?;
    if header.get(pe..)?.first_chunk::<4>()? != b"PE\0\0" {
        return None;
    }
    let count = u16_at(header, pe.checked_add(6)?)?.min(MAX_SECTIONS);
    let optional = usize::from(u16_at(header, pe.checked_add(20)?)?);
    let table = pe.checked_add(24)?.checked_add(optional)?;
    let sections = header.get(table..)?.chunks_exact(40).take(usize::from(count));
    let ends =
        sections.filter_map(|entry| Some(u64::from(u32_at(entry, 20)?).saturating_add(u32_at(entry, 16)?.into())));
    ends.max().filter(|end| *end > 0)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk::<2>().map(|raw| u16::from_le_bytes(*raw))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk::<4>().map(|raw| u32::from_le_bytes(*raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0u8; 512];
        image[0x3c] = 64;
        image[64..68].copy_from_slice(b"PE\0\0");
        image[70] = 1;
        image[84] = 16;
        image[104..112].copy_from_slice(b".cmdline");
        image[112] = 5;
        image[124..128].copy_from_slice(&1024u32.to_le_bytes());
        image
    }

    #[test]
    fn a_section_is_found_by_its_whole_name() {
        assert_eq!(find(&image(), ".cmdline"), Some(Section { offset: 1024, size: 5 }));
        assert_eq!(find(&image(), ".cmd"), None);
        assert_eq!(find(&[0; 8192], ".cmdline"), None);
    }

    #[test]
    fn an_image_ends_with_its_last_section() {
        let mut whole = image();
        whole[120..124].copy_from_slice(&512u32.to_le_bytes());
        assert_eq!(length(&whole), Some(1536));
        assert_eq!(length(&[0; 8192]), None);
    }

    proptest! {
        #[test]
        fn any_header_is_searched_without_a_panic(hits in proptest::collection::vec((0usize..512, any::<u8>()), 0..30)) {
            let mut image = image();
            for (place, byte) in hits {
                image[place] = byte;
            }
            let _ = find(&image, ".cmdline");
            let _ = length(&image);
        }
    }
}

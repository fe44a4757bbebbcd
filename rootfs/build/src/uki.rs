//! Makes a unified kernel image: systemd's boot stub with sections appended (UAPI group, "Unified Kernel Image").
//!
//! A PE writer of its own, because it is a page of code and saves binutils in the build root. It only appends: nothing of
//! the stub's own bytes changes but the header fields that count sections and sizes.

use anyhow::{Context, Result, ensure};

/// One section to append.
pub(crate) struct Section<'a> {
    /// At most 8 bytes, with the leading dot.
    pub(crate) name: &'a str,
    pub(crate) content: &'a [u8],
}

const SECTION_HEADER_BYTES: usize = 40;
/// CNT_INITIALIZED_DATA | MEM_READ: the stub reads these, nothing runs in them.
const CHARACTERISTICS: u32 = 0x4000_0040;

/// `stub` with `sections` appended in order.
pub(crate) fn build(stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>> {
    let layout = Layout::parse(stub)?;
    let headers_end = layout.section_table + (layout.section_count + sections.len()) * SECTION_HEADER_BYTES;
    ensure!(headers_end <= layout.headers_size, "the boot stub has no room for {} more sections", sections.len());
    let mut image = stub.to_vec();
    let mut address = layout.next_address;
    for (index, section) in sections.iter().enumerate() {
        ensure!(section.name.len() <= 8, "section name {} is too long", section.name);
        let length = image.len().next_multiple_of(layout.file_alignment);
        image.resize(length, 0);
        let at = layout.section_table + (layout.section_count + index) * SECTION_HEADER_BYTES;
        let raw_size = section.content.len().next_multiple_of(layout.file_alignment);
        let mut header = section.name.as_bytes().to_vec();
        header.resize(8, 0);
        for field in [section.content.len(), address, raw_size, image.len(), 0, 0, 0] {
            header.extend_from_slice(&u32::try_from(field)?.to_le_bytes());
        }
        header.extend_from_slice(&CHARACTERISTICS.to_le_bytes());
        image[at..at + SECTION_HEADER_BYTES].copy_from_slice(&header);
        image.extend_from_slice(section.content);
        let length = image.len().next_multiple_of(layout.file_alignment);
        image.resize(length, 0);
        address += section.content.len().next_multiple_of(layout.section_alignment);
    }
    let count = u16::try_from(layout.section_count + sections.len())?;
    put(&mut image, layout.pe + 6, &count.to_le_bytes());
    put(&mut image, layout.optional + 56, &u32::try_from(address)?.to_le_bytes());
    // The checksum is optional for images that are not drivers of Windows; a stale one would be wrong, zero is not.
    put(&mut image, layout.optional + 64, &[0; 4]);
    Ok(image)
}

/// The parts of the PE header that matter here.
struct Layout {
    pe: usize,
    optional: usize,
    section_table: usize,
    section_count: usize,
    section_alignment: usize,
    file_alignment: usize,
    headers_size: usize,
    next_address: usize,
}

impl Layout {
    fn parse(stub: &[u8]) -> Result<Self> {
        let pe = word(stub, 0x3c, 4)?;
        ensure!(stub.get(pe..pe + 4) == Some(b"PE\0\0"), "the boot stub is not a PE image");
        let section_count = word(stub, pe + 6, 2)?;
        let optional = pe + 24;
        ensure!(word(stub, optional, 2)? == 0x20b, "the boot stub is not a 64-bit PE image");
        let section_table = optional + word(stub, pe + 20, 2)?;
        let section_alignment = word(stub, optional + 32, 4)?;
        let file_alignment = word(stub, optional + 36, 4)?;
        ensure!(
            section_alignment.is_power_of_two() && file_alignment.is_power_of_two(),
            "bad alignment in the boot stub"
        );
        let mut next_address = 0;
        for index in 0..section_count {
            let header = section_table + index * SECTION_HEADER_BYTES;
            let end = word(stub, header + 12, 4)? + word(stub, header + 8, 4)?;
            next_address = next_address.max(end.next_multiple_of(section_alignment));
        }
        let headers_size = word(stub, optional + 60, 4)?;
        Ok(Self {
            pe,
            optional,
            section_table,
            section_count,
            section_alignment,
            file_alignment,
            headers_size,
            next_address,
        })
    }
}

fn word(bytes: &[u8], offset: usize, size: usize) -> Result<usize> {
    let field = bytes.get(offset..offset + size).context("the boot stub is cut short")?;
    Ok(field.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    bytes[offset..offset + field.len()].copy_from_slice(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest header that the parser takes: one section, 4 KiB and 512-byte alignment.
    fn stub() -> Vec<u8> {
        let mut stub = vec![0u8; 1024];
        put(&mut stub, 0x3c, &64u32.to_le_bytes());
        put(&mut stub, 64, b"PE\0\0");
        put(&mut stub, 70, &1u16.to_le_bytes());
        put(&mut stub, 84, &240u16.to_le_bytes());
        put(&mut stub, 88, &0x20bu16.to_le_bytes());
        put(&mut stub, 120, &4096u32.to_le_bytes());
        put(&mut stub, 124, &512u32.to_le_bytes());
        put(&mut stub, 148, &512u32.to_le_bytes());
        put(&mut stub, 336, &5000u32.to_le_bytes());
        put(&mut stub, 340, &4096u32.to_le_bytes());
        stub
    }

    #[test]
    fn sections_are_appended_aligned_and_counted() {
        let image = build(&stub(), &[Section { name: ".cmdline", content: b"quiet" }]).unwrap();
        assert_eq!(word(&image, 70, 2).unwrap(), 2);
        let header = 328 + SECTION_HEADER_BYTES;
        assert_eq!(&image[header..header + 8], b".cmdline");
        assert_eq!(word(&image, header + 12, 4).unwrap(), 12288);
        assert_eq!(word(&image, header + 20, 4).unwrap(), 1024);
        assert_eq!(&image[1024..1029], b"quiet");
        assert_eq!(image.len(), 1536);
        assert_eq!(word(&image, 144, 4).unwrap(), 16384);
    }

    #[test]
    fn a_stub_without_room_or_sense_is_refused() {
        let section = || Section { name: ".x", content: b"" };
        let many: Vec<Section<'_>> = (0..10).map(|_| section()).collect();
        assert!(build(&stub(), &many).is_err());
        assert!(build(&[0; 100], &[section()]).is_err());
    }
}

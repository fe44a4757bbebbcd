//! Values of the loader's EFI variables as efivarfs gives them: four attribute bytes, then UTF-16. Bounded, never trusted:
//! what they say only picks among things that the signed root hash already allows.

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
}

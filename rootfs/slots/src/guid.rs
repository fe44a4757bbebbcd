//! GUIDs as partition tables and EFI variables hold them: the first three fields little-endian. No meaning is read into them.

use std::fmt;

/// Sixteen bytes in on-disk order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Guid(pub [u8; 16]);

/// Byte order in which the text form lists the on-disk bytes.
const TEXT_ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// Reads `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` in either case; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 36 {
            return None;
        }
        let mut digits = Vec::with_capacity(32);
        for (place, byte) in bytes.iter().enumerate() {
            if matches!(place, 8 | 13 | 18 | 23) {
                if *byte != b'-' {
                    return None;
                }
            } else {
                digits.push(u8::try_from(char::from(*byte).to_digit(16)?).ok()?);
            }
        }
        let mut out = [0u8; 16];
        for (pair, place) in digits.chunks_exact(2).zip(TEXT_ORDER) {
            let [high, low] = pair else { return None };
            *out.get_mut(place)? = (high << 4) | low;
        }
        Some(Self(out))
    }

    /// Whether no partition is meant.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, place) in TEXT_ORDER.into_iter().enumerate() {
            if matches!(count, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0.get(place).copied().unwrap_or_default())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_disk_order_differ_in_the_first_three_fields_only() {
        let guid = Guid::parse("c12a7328-F81F-11d2-ba4b-00a0c93ec93b").unwrap();
        assert_eq!(&guid.0[..8], &[0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
        assert_eq!(guid.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    }

    #[test]
    fn anything_else_is_refused() {
        for wrong in ["", "c12a7328", "c12a7328-f81f-11d2-ba4b-00a0c93ec93", "g12a7328-f81f-11d2-ba4b-00a0c93ec93b"] {
            assert_eq!(Guid::parse(wrong), None);
        }
        assert_eq!(Guid::parse("c12a7328+f81f-11d2-ba4b-00a0c93ec93b"), None);
    }
}

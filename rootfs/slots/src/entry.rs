//! Names of loader entries: `<slot>[+<left>[-<done>]].conf`, the Boot Loader Specification's boot counting.
//!
//! A name is all of the state that the loader keeps, so this is the only place that reads or makes one. Names stay within
//! 13 characters: one long-name record, so that a rename touches one directory sector.

use crate::Slot;

/// How often a counted entry may still be tried; details.md 24 says 2.
pub const TRIES: u8 = 2;

/// A parsed entry file name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryName {
    /// Whose entry it is.
    pub slot: Slot,
    /// Whether it is still on trial.
    pub trial: Trial,
}

/// What the counter in a name says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trial {
    /// No counter: blessed, sorts before counted entries that ran out.
    Blessed,
    /// On trial. With 0 left the loader sorts it last.
    Counted {
        /// Tries left.
        left: u8,
        /// Tries used.
        done: u8,
    },
}

impl EntryName {
    /// Reads a file name, in either case (FAT keeps case, firmware need not); `None` for a name that is not one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        if name.len() > 13 {
            return None;
        }
        let name = name.to_ascii_lowercase();
        let stem = name.strip_suffix(".conf")?;
        let (letter, counter) = match stem.split_once('+') {
            None => (stem, None),
            Some((letter, counter)) => (letter, Some(counter)),
        };
        let slot = Slot::from_letter(letter)?;
        let trial = match counter {
            None => Trial::Blessed,
            Some(counter) => {
                let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
                Trial::Counted { left: count(left)?, done: count(done)? }
            }
        };
        Some(Self { slot, trial })
    }

    /// The slot that the loader's `LoaderEntrySelected` names. The loader strips or keeps the counter, and may append
    /// `.conf` or not, by version; all of these are read.
    pub fn slot_of_selected(id: &str) -> Option<Slot> {
        Self::parse(id).or_else(|| Self::parse(&format!("{id}.conf"))).map(|entry| entry.slot)
    }
}

/// One or two digits: a counter that the loader could have written.
fn count(digits: &str) -> Option<u8> {
    if digits.is_empty() || digits.len() > 2 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

impl std::fmt::Display for EntryName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.slot.letter())?;
        match self.trial {
            Trial::Blessed => {}
            Trial::Counted { left, done: 0 } => write!(f, "+{left}")?,
            Trial::Counted { left, done } => write!(f, "+{left}-{done}")?,
        }
        f.write_str(".conf")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_loaders_own_names_are_read() {
        let read = |name| EntryName::parse(name).map(|entry| (entry.slot, entry.trial));
        assert_eq!(read("a.conf"), Some((Slot::A, Trial::Blessed)));
        assert_eq!(read("b+2.conf"), Some((Slot::B, Trial::Counted { left: 2, done: 0 })));
        assert_eq!(read("B+1-1.CONF"), Some((Slot::B, Trial::Counted { left: 1, done: 1 })));
        assert_eq!(EntryName::slot_of_selected("a+2-1"), Some(Slot::A));
        assert_eq!(EntryName::slot_of_selected("b.conf"), Some(Slot::B));
        for wrong in ["c.conf", "a.efi", "a+.conf", "a+x.conf", "a+1-.conf", "a+-1.conf", "a+100.conf", ""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_parsed_or_refused_without_a_panic(name in ".{0,40}") {
            let _ = EntryName::parse(&name);
        }

        #[test]
        fn what_is_written_is_read_back(left in 0u8..100, done in 0u8..100, b in any::<bool>(), counted in any::<bool>()) {
            let slot = if b { Slot::B } else { Slot::A };
            let trial = if counted { Trial::Counted { left, done } } else { Trial::Blessed };
            let entry = EntryName { slot, trial };
            let text = entry.to_string();
            prop_assert!(text.len() <= 13);
            prop_assert_eq!(EntryName::parse(&text), Some(entry));
        }
    }
}

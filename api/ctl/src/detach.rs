//! The keys that leave an attached container running, found in what is typed.
//!
//! Bytes that might be the beginning of the keys are held back until the next byte decides; nothing is ever lost or reordered.
//!
//! ```text
//! matched = 0 --key[matched]--> matched + 1 --last key--> detached
//!      ^------- any other byte: the held bytes go on -------'
//! ```

/// More keys than this nobody types; it bounds what is held back.
const KEYS_MAX: usize = 8;

/// A sequence of keys; empty for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// `ctrl-p,ctrl-q`, `ctrl-]`, `q`; empty for none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        const HELP: &str = "keys are like ctrl-p,ctrl-q: ctrl-a to ctrl-z, ctrl-@ [ ] \\ ^ _, or one character";
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let key = |part: &str| match part.strip_prefix("ctrl-").map_or(part.as_bytes(), str::as_bytes) {
            [byte @ (b'a'..=b'z' | b'@' | b'[' | b']' | b'\\' | b'^' | b'_')] if part.len() > 1 => Ok(byte & 0x1f),
            [byte @ 0x20..=0x7e] if part.len() == 1 => Ok(*byte),
            _ => Err(HELP.to_owned()),
        };
        let keys = text.split(',').map(key).collect::<Result<Vec<u8>, _>>()?;
        if keys.len() > KEYS_MAX { Err(format!("at most {KEYS_MAX} keys")) } else { Ok(Self(keys)) }
    }

    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }
}

/// What became of some typed bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// To be passed on; may be empty.
    Pass(Vec<u8>),
    /// These before the keys, then detach.
    Detach(Vec<u8>),
}

/// Finds the keys over the boundaries of reads.
#[derive(Debug)]
pub(crate) struct Detector {
    keys: Vec<u8>,
    matched: usize,
}

impl Detector {
    pub(crate) fn new(keys: DetachKeys) -> Self {
        Self { keys: keys.0, matched: 0 }
    }

    /// Takes what was typed.
    pub(crate) fn feed(&mut self, typed: &[u8]) -> Typed {
        if self.keys.is_empty() {
            return Typed::Pass(typed.to_vec());
        }
        let mut pass = Vec::with_capacity(typed.len() + self.matched);
        for &byte in typed {
            self.matched += 1;
            let held = self.matched;
            // What is held is the first `held - 1` keys and this byte. Its longest end that begins the keys is still held; the rest goes on.
            let seen = |index: usize| if index + 1 == held { byte } else { self.keys[index] };
            let fits = |length: usize| (0..length).all(|at| self.keys[at] == seen(held - length + at));
            let keep = (0..=held.min(self.keys.len())).rev().find(|length| fits(*length)).unwrap_or(0);
            pass.extend((0..held - keep).map(seen));
            self.matched = keep;
            if self.matched == self.keys.len() {
                self.matched = 0;
                return Typed::Detach(pass);
            }
        }
        Typed::Pass(pass)
    }

    /// What is still held back when the input ends.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let held = self.keys[..self.matched].to_vec();
        self.matched = 0;
        held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn detector() -> Detector {
        Detector::new(DetachKeys::parse("ctrl-p,ctrl-q").unwrap())
    }

    #[test]
    fn keys_are_read_like_dockers() {
        assert_eq!(DetachKeys::parse("ctrl-p,ctrl-q"), Ok(DetachKeys(vec![0x10, 0x11])));
        assert_eq!(DetachKeys::parse("ctrl-],x"), Ok(DetachKeys(vec![0x1d, b'x'])));
        assert_eq!(DetachKeys::parse(""), Ok(DetachKeys::none()));
        for text in ["ctrl-", "ctrl-P", "ctrl-1", "xx", "a,,b", "é", "a,b,c,d,e,f,g,h,i"] {
            assert!(DetachKeys::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_keys_detach_also_over_two_reads() {
        assert_eq!(detector().feed(b"ab\x10\x11cd"), Typed::Detach(b"ab".to_vec()));
        let mut detector = detector();
        assert_eq!(detector.feed(b"ab\x10"), Typed::Pass(b"ab".to_vec()));
        assert_eq!(detector.feed(b"\x11"), Typed::Detach(Vec::new()));
    }

    #[test]
    fn a_beginning_that_does_not_go_on_is_passed() {
        let mut detector = detector();
        assert_eq!(detector.feed(b"\x10"), Typed::Pass(Vec::new()));
        assert_eq!(detector.feed(b"x\x10"), Typed::Pass(b"\x10x".to_vec()));
        assert_eq!(detector.feed(b"\x10"), Typed::Pass(b"\x10".to_vec()));
        assert_eq!(detector.rest(), b"\x10");
        assert_eq!(detector.rest(), b"");
    }

    #[test]
    fn a_repeated_beginning_inside_the_keys_is_found() {
        let mut detector = Detector::new(DetachKeys(b"aab".to_vec()));
        assert_eq!(detector.feed(b"aaab"), Typed::Detach(b"a".to_vec()));
    }

    proptest! {
        #[test]
        fn without_the_keys_every_byte_arrives_in_order(reads in prop::collection::vec(prop::collection::vec(0x0f_u8..0x12, 0..6), 0..8)) {
            let typed = reads.concat();
            let mut detector = detector();
            let mut arrived = Vec::new();
            let end = typed.windows(2).position(|pair| pair == [0x10, 0x11]);
            for read in reads {
                match detector.feed(&read) {
                    Typed::Pass(bytes) => arrived.extend(bytes),
                    Typed::Detach(bytes) => {
                        arrived.extend(bytes);
                        prop_assert_eq!(Some(arrived.len()), end);
                        prop_assert_eq!(&arrived[..], &typed[..arrived.len()]);
                        return Ok(());
                    }
                }
            }
            arrived.extend(detector.rest());
            prop_assert_eq!(end, None);
            prop_assert_eq!(arrived, typed);
        }
    }
}

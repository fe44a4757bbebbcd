//! The flight recorder's ring: one place for each of the last boots, in raw bytes at the end of the state partition, where it can be
//! written before anything is mounted and survives what happens to the file system.
//!
//! ```text
//! ring:   31 places of 16 KiB; boot number N has place N % 31
//! place:  two halves of 8 KiB, written in turn: a torn write costs what was new in it and never the record
//! half:   "byrering" | format: u16 | length: u16 | crc32 of all that follows: u32 | turn: u64 | record (postcard) | zeros
//! ```
//! A later release may add fields at the end of a record; this one then reads the fields that it knows.

use serde::{Deserialize, Serialize};

/// Places.
pub const BOOTS: u64 = 31;
/// Bytes of a place.
pub const PLACE_BYTES: usize = 2 * HALF_BYTES;
/// Bytes of half a place.
pub const HALF_BYTES: usize = 8192;
/// Bytes of the ring.
pub const RING_BYTES: u64 = BOOTS * 16_384;
/// Most bytes of a cause.
pub const CAUSE_BYTES: usize = 600;
/// Most bytes of a version.
pub const VERSION_BYTES: usize = 64;
/// Most bytes of the kernel log's end: what is left of half a place.
pub const TAIL_BYTES: usize = HALF_BYTES - HEADER_BYTES - CAUSE_BYTES - VERSION_BYTES - 128;
const HEADER_BYTES: usize = 24;
const MAGIC: &[u8; 8] = b"byrering";
const FORMAT: u16 = 1;

/// How a boot ended, as far as the next one could tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It runs, or nothing was heard of its end.
    Open,
    /// It was shut down in order.
    InOrder,
    /// The kernel panicked.
    Panic,
    /// The watchdog reset the machine.
    Watchdog,
    /// The early stage gave up.
    Early,
    /// It did not do its job on trial and went back to the other slot.
    Failed,
    /// The power went, or something reset the machine that leaves no trace.
    CutOff,
}

impl End {
    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Open => "runs",
            Self::InOrder => "shut down in order",
            Self::Panic => "ended in a panic",
            Self::Watchdog => "was ended by the watchdog",
            Self::Early => "failed in the early stage",
            Self::Failed => "failed its trial",
            Self::CutOff => "was cut off",
        }
    }
}

/// One boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Counts from 1 since the image was written.
    pub number: u64,
    /// `a` or `b`.
    pub slot: char,
    /// The release that ran; empty if it never got as far as to say so.
    pub version: String,
    /// When it began, in seconds since 1970; 0 while unknown.
    pub begun_wall_s: u64,
    /// How long it was heard of, in seconds since power on.
    pub heard_s: u32,
    /// Whether it was a trial of an update.
    pub trial: bool,
    /// How it ended.
    pub end: End,
    /// What failed and why, in one line; empty if nothing did.
    pub cause: String,
    /// The end of its kernel log.
    pub tail: Vec<u8>,
}

impl Boot {
    /// A boot that begins.
    #[must_use]
    pub fn begun(number: u64, slot: char) -> Self {
        Self {
            number,
            slot,
            version: String::new(),
            begun_wall_s: 0,
            heard_s: 0,
            trial: false,
            end: End::Open,
            cause: String::new(),
            tail: Vec::new(),
        }
    }

    /// Within the bounds of a place: texts cut at a character, the log's beginning left out.
    fn bounded(&self) -> Self {
        let cut = |text: &str, most: usize| {
            let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.get(..end).unwrap_or_default().to_owned()
        };
        let from = self.tail.len().saturating_sub(TAIL_BYTES);
        Self {
            version: cut(&self.version, VERSION_BYTES),
            cause: cut(&self.cause, CAUSE_BYTES),
            tail: self.tail.get(from..).unwrap_or_default().to_vec(),
            ..self.clone()
        }
    }
}

/// Where in the ring a boot's place begins.
#[must_use]
pub fn place(number: u64) -> u64 {
    (number % BOOTS).saturating_mul(16_384)
}

/// Where in its place the half of a turn begins.
#[must_use]
pub fn half(turn: u64) -> u64 {
    if turn.is_multiple_of(2) { 0 } else { 8192 }
}

/// The bytes of half a place.
#[must_use]
pub fn encode(boot: &Boot, turn: u64) -> Vec<u8> {
    let record = postcard::to_allocvec(&boot.bounded()).unwrap_or_default();
    let mut covered = turn.to_le_bytes().to_vec();
    covered.extend_from_slice(&record);
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&u16::try_from(covered.len()).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&covered).to_le_bytes());
    bytes.extend_from_slice(&covered);
    bytes.resize(HALF_BYTES, 0);
    bytes
}

/// What half a place holds, and its turn; `None` if it is not whole.
#[must_use]
pub fn decode_half(bytes: &[u8]) -> Option<(Boot, u64)> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (format, rest) = rest.split_first_chunk::<2>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let covered = rest.get(..usize::from(u16::from_le_bytes(*length)))?;
    // A later format only adds fields; one that does more has another magic.
    if magic != MAGIC || u16::from_le_bytes(*format) < FORMAT || crc32fast::hash(covered) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (turn, record) = covered.split_first_chunk::<8>()?;
    let (boot, _) = postcard::take_from_bytes::<Boot>(record).ok()?;
    Some((boot.bounded(), u64::from_le_bytes(*turn)))
}

/// What a place holds: the newest half that is whole, with the turn of the next write.
#[must_use]
pub fn decode(place: &[u8]) -> Option<(Boot, u64)> {
    let (first, second) = place.split_at_checked(HALF_BYTES)?;
    let newest = match (decode_half(first), decode_half(second)) {
        (Some(first), Some(second)) => Some(if second.1 > first.1 { second } else { first }),
        (first, second) => first.or(second),
    };
    newest.map(|(boot, turn)| (boot, turn.saturating_add(1)))
}

/// All boots of a ring, the newest first. What does not lie at its place is left out.
#[must_use]
pub fn decode_all(ring: &[u8]) -> Vec<Boot> {
    let mut boots: Vec<Boot> = (0_u64..)
        .zip(ring.chunks_exact(PLACE_BYTES))
        .filter_map(|(index, bytes)| decode(bytes).map(|(boot, _)| boot).filter(|boot| boot.number % BOOTS == index))
        .collect();
    boots.sort_by_key(|boot| std::cmp::Reverse(boot.number));
    boots
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn boot(number: u64) -> Boot {
        Boot {
            version: "1.2".to_owned(),
            cause: "workload web: not ready".to_owned(),
            tail: b"kernel: words\n".repeat(3),
            end: End::Panic,
            ..Boot::begun(number, 'b')
        }
    }

    /// A place after writes of these turns, the last of them torn at `cut`.
    fn written(turns: &[(u64, Boot)], torn: Option<(u64, Boot, usize)>) -> Vec<u8> {
        let mut place = vec![0_u8; PLACE_BYTES];
        for (turn, boot) in turns {
            let at = half(*turn) as usize;
            place[at..at + HALF_BYTES].copy_from_slice(&encode(boot, *turn));
        }
        if let Some((turn, boot, cut)) = torn {
            let at = half(turn) as usize;
            place[at..at + cut].copy_from_slice(&encode(&boot, turn)[..cut]);
        }
        place
    }

    #[test]
    fn a_torn_write_costs_only_what_was_new_in_it() {
        let (first, second, third) = (boot(7), Boot { heard_s: 60, ..boot(7) }, Boot { heard_s: 90, ..boot(7) });
        for cut in (0..=HALF_BYTES).step_by(512) {
            let place = written(&[(0, first.clone()), (1, second.clone())], Some((2, third.clone(), cut)));
            let (found, next) = decode(&place).unwrap();
            // The end of a record is mostly zeros: once all that is not zero is there, so is the record.
            assert!(found == second || found == third, "cut at {cut}: {found:?}");
            assert!(next >= 2);
        }
    }

    #[test]
    fn a_record_takes_no_more_than_its_half() {
        let long =
            Boot { version: "é".repeat(100), cause: "ü".repeat(1000), tail: vec![b'x'; 100_000], ..boot(u64::MAX) };
        let bytes = encode(&long, u64::MAX);
        assert_eq!(bytes.len(), HALF_BYTES);
        let (found, _) = decode_half(&bytes).unwrap();
        assert_eq!(found.tail.len(), TAIL_BYTES);
        assert!(found.cause.len() <= CAUSE_BYTES && found.version.len() <= VERSION_BYTES);
    }

    #[test]
    fn the_newest_comes_first_and_old_ones_are_overwritten() {
        let mut ring = vec![0_u8; RING_BYTES as usize];
        for number in 1..=40 {
            let at = place(number) as usize;
            let held = decode(&ring[at..at + PLACE_BYTES]).map_or(0, |(_, next)| next);
            let half = at + half(held) as usize;
            ring[half..half + HALF_BYTES].copy_from_slice(&encode(&boot(number), held));
        }
        let numbers: Vec<u64> = decode_all(&ring).iter().map(|boot| boot.number).collect();
        assert_eq!(numbers, (10..=40).rev().collect::<Vec<u64>>());
    }

    #[test]
    fn what_a_later_release_adds_is_read_over() {
        let mut record = postcard::to_allocvec(&boot(3)).unwrap();
        record.extend_from_slice(b"a new field");
        let mut covered = 9_u64.to_le_bytes().to_vec();
        covered.extend(record);
        let mut bytes = MAGIC.to_vec();
        bytes.extend(2_u16.to_le_bytes());
        bytes.extend((covered.len() as u16).to_le_bytes());
        bytes.extend(crc32fast::hash(&covered).to_le_bytes());
        bytes.extend(covered);
        bytes.resize(PLACE_BYTES, 0);
        assert_eq!(decode(&bytes), Some((boot(3), 10)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..300) {
            let mut place = encode(&boot(1), 4);
            place.resize(PLACE_BYTES, 0);
            for (at, byte) in bytes.into_iter().enumerate() {
                place[(cut + at) % PLACE_BYTES] ^= byte;
            }
            let _ = decode(&place);
            let _ = decode_all(&place);
        }
    }
}

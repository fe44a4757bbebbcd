//! The boot-attempt record: one sector in which the early stage says what it is about to try, and in which a healthy
//! system says that it worked.
//!
//! The sector lies in the last 512 KiB of the state partition, which its file system was made too small to cover. It is
//! not in the unused bytes before the ext4 superblock: those share the superblock's 4 KiB block, which ext4 writes back
//! whole from memory. One 512-byte sector is written at once or not at all; the checksum catches everything else, and a
//! sector that fails it counts as no attempts (a fresh disk, or a damaged one: neither may keep a node from booting).

use crate::Slot;

/// Bytes at the end of the state partition that its file system leaves free.
pub const RESERVED_BYTES: u64 = 512 * 1024;

/// Where in those bytes the flight recorder's ring begins: behind the record, on a block of its own.
pub const RING_OFFSET: u64 = 16 * 1024;

/// Bytes of the record: one sector.
pub const SECTOR_BYTES: usize = 512;

/// Bad ends in a row after which the early stage puts the other slot first (details.md 21).
pub const LIMIT: u32 = 3;

const MAGIC: &[u8; 8] = b"byreboot";
const VERSION: u32 = 1;

/// What the sector holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempts {
    /// The slot that was tried last.
    pub slot: Slot,
    /// Boots of it in a row that ended badly.
    pub bad_ends: u32,
    /// How the last boot stands.
    pub phase: Phase,
    /// Boots of this disk since the image was written; wraps.
    pub boots: u64,
}

/// How the last recorded boot went, as far as it could say so itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It started and nothing more was heard: power loss, panic, or watchdog. The next boot finds out which.
    Started,
    /// The early stage gave up.
    EarlyError,
    /// It did its job, or was shut down in order.
    Healthy,
}

impl Phase {
    fn code(self) -> u32 {
        match self {
            Self::Started => 1,
            Self::EarlyError => 2,
            Self::Healthy => 3,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        [Self::Started, Self::EarlyError, Self::Healthy].into_iter().find(|phase| phase.code() == code)
    }
}

/// What the firmware and the kernel say about how the last boot ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// Nothing: a power cut, or a machine that keeps no record.
    None,
    /// A crash record in pstore.
    Panic,
    /// The watchdog's own reset flag.
    Watchdog,
}

impl Attempts {
    /// The record of a boot of `slot` that starts now, after what `last` and `evidence` say of the one before.
    pub fn begin(last: Option<Self>, evidence: Evidence, slot: Slot) -> Self {
        let Some(last) = last else {
            return Self { slot, bad_ends: 0, phase: Phase::Started, boots: 1 };
        };
        let ended_badly = match (last.phase, evidence) {
            (Phase::Started, Evidence::Panic | Evidence::Watchdog) | (Phase::EarlyError, _) => true,
            // Healthy for a while and then a panic is a late fault: it counts as well, or rot would loop for ever.
            (Phase::Healthy, Evidence::Panic | Evidence::Watchdog) => true,
            (Phase::Started | Phase::Healthy, Evidence::None) => false,
        };
        let before = if last.slot == slot { last.bad_ends } else { 0 };
        let bad_ends = match (last.slot == slot, ended_badly, last.phase) {
            (true, true, Phase::Started | Phase::EarlyError | Phase::Healthy) => before.saturating_add(1),
            (true, false, Phase::Healthy) => 0,
            (true, false, Phase::Started | Phase::EarlyError) => before,
            (false, _, Phase::Started | Phase::EarlyError | Phase::Healthy) => 0,
        };
        Self { slot, bad_ends, phase: Phase::Started, boots: last.boots.wrapping_add(1) }
    }

    /// The sector's bytes.
    pub fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut body = Vec::with_capacity(SECTOR_BYTES);
        body.extend_from_slice(MAGIC);
        body.extend_from_slice(&VERSION.to_le_bytes());
        let slot: u32 = match self.slot {
            Slot::A => 0,
            Slot::B => 1,
        };
        for word in [slot, self.bad_ends, self.phase.code()] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        body.extend_from_slice(&self.boots.to_le_bytes());
        let sum = crc32fast::hash(&body);
        body.extend_from_slice(&sum.to_le_bytes());
        body.resize(SECTOR_BYTES, 0);
        body.try_into().unwrap_or([0; SECTOR_BYTES])
    }

    /// Reads a sector; `None` when it is not a whole, known record.
    pub fn decode(sector: &[u8]) -> Option<Self> {
        let (body, rest) = sector.split_at_checked(32)?;
        let sum = u32::from_le_bytes(*rest.first_chunk::<4>()?);
        if !body.starts_with(MAGIC) || crc32fast::hash(body) != sum || word(body, 8)? != VERSION {
            return None;
        }
        let slot = match word(body, 12)? {
            0 => Slot::A,
            1 => Slot::B,
            _ => return None,
        };
        let boots = u64::from_le_bytes(*body.get(24..)?.first_chunk::<8>()?);
        Some(Self { slot, bad_ends: word(body, 16)?, phase: Phase::from_code(word(body, 20)?)?, boots })
    }
}

/// The little-endian word at `offset`.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk::<4>()?))
}

/// Byte offset of the sector in a state partition of `partition_bytes`; `None` if that is too small to have one.
pub fn offset_in_state(partition_bytes: u64) -> Option<u64> {
    partition_bytes.checked_sub(RESERVED_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STARTED: Attempts = Attempts { slot: Slot::A, bad_ends: 0, phase: Phase::Started, boots: 1 };

    #[test]
    fn plain_power_loss_is_never_counted() {
        let mut record = STARTED;
        for _ in 0..10 {
            record = Attempts::begin(Some(record), Evidence::None, Slot::A);
        }
        assert_eq!(record.bad_ends, 0);
        assert_eq!(record.boots, 11);
    }

    #[test]
    fn panics_watchdog_and_early_errors_count_and_health_resets() {
        let mut record = Attempts::begin(Some(STARTED), Evidence::Panic, Slot::A);
        record = Attempts::begin(Some(record), Evidence::Watchdog, Slot::A);
        record = Attempts::begin(Some(Attempts { phase: Phase::EarlyError, ..record }), Evidence::None, Slot::A);
        assert_eq!(record.bad_ends, LIMIT);
        record = Attempts::begin(Some(Attempts { phase: Phase::Healthy, ..record }), Evidence::None, Slot::A);
        assert_eq!(record.bad_ends, 0);
    }

    #[test]
    fn the_other_slot_starts_with_a_clean_record() {
        let bad = Attempts { bad_ends: 2, ..STARTED };
        assert_eq!(Attempts::begin(Some(bad), Evidence::Panic, Slot::B).bad_ends, 0);
    }

    proptest! {
        #[test]
        fn any_sector_is_decoded_or_refused_without_a_panic(sector in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Attempts::decode(&sector);
        }

        #[test]
        fn one_flipped_bit_is_noticed(place in 0usize..36, bit in 0u8..8, bad_ends in any::<u32>(), boots in any::<u64>()) {
            let record = Attempts { bad_ends, boots, ..STARTED };
            let mut sector = record.encode();
            prop_assert_eq!(Attempts::decode(&sector), Some(record));
            sector[place] ^= 1 << bit;
            prop_assert_eq!(Attempts::decode(&sector), None);
        }
    }
}

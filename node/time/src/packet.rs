//! NTP packets of a client, version 4 (RFC 5905 sections 7.3 and 8, with the checks of RFC 4330 section 5).
//!
//! A request says nothing of this machine: its transmit time is a random number, which the answer has to repeat. What an answer claims is believed
//! as far as it is consistent; a server that lies consistently is outvoted by others, not found here.

/// Bytes of a packet without extensions.
pub const PACKET_BYTES: usize = 48;
/// Seconds from 1900, where NTP begins, to 1970.
const UNIX_EPOCH_S: u64 = 2_208_988_800;
/// Version 4, mode client.
const REQUEST: u8 = 0x23;
/// Mode of an answer.
const SERVER: u8 = 4;
/// The leap indicator of a server that does not know the time itself.
const UNSYNCHRONISED: u8 = 3;
/// Strata above are of servers without a source.
const MAX_STRATUM: u8 = 15;
/// A server that is farther from its own source than this tells no time (RFC 5905, MAXDIST).
const MAX_DISTANCE_NS: u64 = 1_500_000_000;

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The server's clock less this machine's, in nanoseconds.
    pub offset_ns: i64,
    /// Time on the way, both ways, in nanoseconds.
    pub delay_ns: u64,
    /// How wrong the offset may be at most, in nanoseconds: half of the way to the source, and what the servers on it allow for.
    pub distance_ns: u64,
    /// Servers between it and a clock.
    pub stratum: u8,
}

/// Why an answer says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Not of this length or kind.
    #[error("not an answer of an NTP server")]
    Malformed,
    /// To another question, or made up.
    #[error("an answer to a question that was not asked")]
    NotAsked,
    /// The server wants fewer questions.
    #[error("the server wants to be asked less often")]
    Rate,
    /// The server wants no questions.
    #[error("the server refuses to answer")]
    Denied,
    /// The server has no time.
    #[error("the server does not know the time itself")]
    Unsynchronised,
    /// The times contradict each other, or are too uncertain.
    #[error("the server's times contradict each other or are too uncertain")]
    Inconsistent,
}

/// A question. `cookie` is random and comes back in the answer.
#[must_use]
pub fn request(cookie: u64) -> [u8; PACKET_BYTES] {
    let mut packet = [0; PACKET_BYTES];
    packet[0] = REQUEST;
    packet[40..].copy_from_slice(&cookie.to_be_bytes());
    packet
}

fn word<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Nanoseconds of the short format: 16 bits of seconds, 16 of their fraction.
fn short_ns(bytes: [u8; 4]) -> u64 {
    (u64::from(u32::from_be_bytes(bytes)) * 1_000_000_000) >> 16
}

/// Nanoseconds since 1970 of a timestamp; what would lie before 1970 is of the era that begins in 2036.
fn stamp_ns(bytes: [u8; 8]) -> Option<i64> {
    let raw = u64::from_be_bytes(bytes);
    let (seconds, fraction) = (raw >> 32, raw & 0xffff_ffff);
    let seconds = if seconds >= UNIX_EPOCH_S { seconds } else { seconds + (1 << 32) } - UNIX_EPOCH_S;
    i64::try_from(seconds * 1_000_000_000 + ((fraction * 1_000_000_000) >> 32)).ok()
}

/// Reads an answer to the question with `cookie`, which left at `sent_ns` and came back at `received_ns`, both since 1970 by this machine's clock.
///
/// # Errors
/// [`PacketError`] saying why it says nothing.
pub fn answer(packet: &[u8], cookie: u64, sent_ns: i64, received_ns: i64) -> Result<Sample, PacketError> {
    let first = *packet.first().ok_or(PacketError::Malformed)?;
    let part = |at| word::<4>(packet, at).ok_or(PacketError::Malformed);
    let stamp = |at| word::<8>(packet, at).ok_or(PacketError::Malformed);
    let (stratum, transmitted) = (*packet.get(1).ok_or(PacketError::Malformed)?, stamp(40)?);
    if first & 7 != SERVER || !(3..=4).contains(&(first >> 3 & 7)) {
        return Err(PacketError::Malformed);
    }
    // Before anything else is believed, a refusal among it.
    if u64::from_be_bytes(stamp(24)?) != cookie {
        return Err(PacketError::NotAsked);
    }
    if stratum == 0 {
        return Err(match &part(12)? {
            b"RATE" => PacketError::Rate,
            b"DENY" | b"RSTR" => PacketError::Denied,
            _ => PacketError::Unsynchronised,
        });
    }
    if first >> 6 == UNSYNCHRONISED || stratum > MAX_STRATUM || transmitted == [0; 8] {
        return Err(PacketError::Unsynchronised);
    }
    let inconsistent = || PacketError::Inconsistent;
    let arrived = stamp_ns(stamp(32)?).ok_or_else(inconsistent)?;
    let left = stamp_ns(transmitted).ok_or_else(inconsistent)?;
    let away = received_ns.checked_sub(sent_ns).filter(|away| *away >= 0).ok_or_else(inconsistent)?;
    let held = left.checked_sub(arrived).filter(|held| *held >= 0 && *held <= away).ok_or_else(inconsistent)?;
    let there = arrived.checked_sub(sent_ns).ok_or_else(inconsistent)?;
    let back = left.checked_sub(received_ns).ok_or_else(inconsistent)?;
    let delay_ns = (away - held).unsigned_abs();
    let root_ns = short_ns(part(4)?) / 2 + short_ns(part(8)?);
    if root_ns > MAX_DISTANCE_NS {
        return Err(PacketError::Inconsistent);
    }
    let offset_ns = i64::try_from(i128::midpoint(i128::from(there), i128::from(back))).map_err(|_| inconsistent())?;
    Ok(Sample { offset_ns, delay_ns, distance_ns: delay_ns / 2 + root_ns, stratum })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: u64 = 0x1122_3344_5566_7788;
    /// 2026-11-26 12:00:00 UTC.
    const NOW_S: u64 = 1_795_694_400;

    fn stamp(seconds: u64, nanoseconds: u64) -> [u8; 8] {
        let fraction = (nanoseconds << 32) / 1_000_000_000;
        (((seconds + UNIX_EPOCH_S) & 0xffff_ffff) << 32 | fraction).to_be_bytes()
    }

    fn packet(arrived: [u8; 8], left: [u8; 8]) -> Vec<u8> {
        let mut packet = vec![0x24, 2, 6, 0xe9, 0, 0, 0x10, 0, 0, 0, 0x08, 0, 10, 0, 0, 1];
        packet.extend([0; 8]);
        packet.extend(COOKIE.to_be_bytes());
        packet.extend(arrived);
        packet.extend(left);
        packet
    }

    fn ns(seconds: u64, nanoseconds: i64) -> i64 {
        i64::try_from(seconds).unwrap() * 1_000_000_000 + nanoseconds
    }

    #[test]
    fn offset_and_delay_are_those_of_the_specification() {
        // The server is 10 s ahead; 20 ms there, 5 ms held, 30 ms back.
        let answered = packet(stamp(NOW_S + 10, 20_000_000), stamp(NOW_S + 10, 25_000_000));
        let sample = answer(&answered, COOKIE, ns(NOW_S, 0), ns(NOW_S, 55_000_000)).unwrap();
        let near = |value: i64, wanted: i64| (value - wanted).abs() < 10;
        assert!(near(sample.offset_ns, 9_995_000_000), "{sample:?}");
        assert!(near(sample.delay_ns.try_into().unwrap(), 50_000_000), "{sample:?}");
        // 25 ms of the way, 31.25 ms of half the root's delay, 31.25 ms of its dispersion.
        assert!(near(sample.distance_ns.try_into().unwrap(), 25_000_000 + 62_500_000), "{sample:?}");
        assert_eq!(sample.stratum, 2);
    }

    #[test]
    fn the_era_after_2036_is_read() {
        // 2040-01-01.
        let at = 2_208_988_800;
        let sample = answer(&packet(stamp(at, 0), stamp(at, 0)), COOKIE, ns(at, 0), ns(at, 1000)).unwrap();
        assert!(sample.offset_ns.abs() < 1000, "{sample:?}");
    }

    #[test]
    fn what_is_no_answer_to_the_question_says_nothing() {
        let good = packet(stamp(NOW_S, 0), stamp(NOW_S, 0));
        let judged = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut packet = good.clone();
            change(&mut packet);
            answer(&packet, COOKIE, ns(NOW_S, 0), ns(NOW_S, 1000)).unwrap_err()
        };
        assert_eq!(judged(&|packet| packet.truncate(47)), PacketError::Malformed);
        assert_eq!(judged(&|packet| packet.clear()), PacketError::Malformed);
        assert_eq!(judged(&|packet| packet[0] = 0x23), PacketError::Malformed);
        assert_eq!(judged(&|packet| packet[24] ^= 1), PacketError::NotAsked);
        assert_eq!(judged(&|packet| packet[0] |= 0xc0), PacketError::Unsynchronised);
        assert_eq!(judged(&|packet| packet[1] = 16), PacketError::Unsynchronised);
        assert_eq!(judged(&|packet| packet[40..].fill(0)), PacketError::Unsynchronised);
        assert_eq!(judged(&|packet| packet[8] = 9), PacketError::Inconsistent);
        // It left before it arrived, and was held longer than it was away.
        assert_eq!(judged(&|packet| packet[40..].copy_from_slice(&stamp(NOW_S - 1, 0))), PacketError::Inconsistent);
        assert_eq!(judged(&|packet| packet[40..].copy_from_slice(&stamp(NOW_S + 1, 0))), PacketError::Inconsistent);
        let kiss = |code: &'static [u8; 4]| {
            move |packet: &mut Vec<u8>| {
                packet[1] = 0;
                packet[12..16].copy_from_slice(code);
            }
        };
        assert_eq!(judged(&kiss(b"RATE")), PacketError::Rate);
        assert_eq!(judged(&kiss(b"DENY")), PacketError::Denied);
        assert_eq!(judged(&kiss(b"INIT")), PacketError::Unsynchronised);
    }

    #[test]
    fn a_request_tells_nothing_but_its_cookie() {
        let request = request(COOKIE);
        assert_eq!(request[0], 0x23);
        assert!(request[1..40].iter().all(|byte| *byte == 0));
        assert_eq!(request[40..], COOKIE.to_be_bytes());
    }
}

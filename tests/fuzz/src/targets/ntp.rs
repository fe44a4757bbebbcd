//! What anybody on the way may send to the NTP client.

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "ntp",
    about: "NTP answers: what is believed of one is consistent with when it was asked, within bounds, and changes no vote but its own",
    sources: &["node/time/src/packet.rs", "node/time/src/agreement.rs"],
    longest: 128,
    run,
    seeds,
};

fn run(input: &[u8]) -> Verdict {
    Verdict::of(byre_time::fuzz_answer(input))
}

/// An answer by RFC 5905 (figure 8) to the cookie before it: of a server whose clock stands at the question's own second.
fn answer(stratum: u8, reference: [u8; 4]) -> Vec<u8> {
    let cookie = [1, 2, 3, 4, 5, 6, 7, 8];
    let stamp = (1_795_694_400_u64 + 2_208_988_800).to_be_bytes();
    let seconds = stamp.get(4..).unwrap_or_default();
    let mut input = cookie.to_vec();
    input.extend([0x24, stratum, 6, 0xe9, 0, 0, 0x10, 0, 0, 0, 0x08, 0]);
    input.extend(reference);
    input.extend([0; 8]);
    input.extend(cookie);
    for half in [0x40, 0x60] {
        input.extend(seconds);
        input.extend([half, 0, 0, 0]);
    }
    input
}

fn seeds() -> Vec<Vec<u8>> {
    vec![answer(2, [10, 0, 0, 1]), answer(15, *b"GPS\0")]
}

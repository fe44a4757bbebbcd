//! What anybody on a link may send to the DHCP client.

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "dhcp",
    about: "DHCPv4 packets with and without their IP headers: what is believed of one is usable, lease times are in order, and the client goes on",
    sources: &["node/net/src/dhcp"],
    longest: 1536,
    run,
    seeds,
};

fn run(input: &[u8]) -> Verdict {
    Verdict::of(byre_net::fuzz_dhcp(input))
}

/// An answer of a server, by RFC 2131 (figure 1) and RFC 2132.
fn answer(kind: u8, options: &[&[u8]]) -> Vec<u8> {
    let mut packet = vec![2, 1, 6, 0, 0, 0, 0, 1, 0, 0, 0x80, 0];
    packet.extend_from_slice(&[0; 4]);
    packet.extend_from_slice(&[10, 0, 0, 7]);
    packet.extend_from_slice(&[0; 8]);
    packet.extend_from_slice(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    packet.resize(236, 0);
    packet.extend_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    packet.extend_from_slice(&[53, 1, kind, 54, 4, 10, 0, 0, 1]);
    for option in options {
        packet.extend_from_slice(option);
    }
    packet.push(255);
    packet
}

fn seeds() -> Vec<Vec<u8>> {
    let mask: &[u8] = &[1, 4, 255, 255, 255, 0];
    let time: &[u8] = &[51, 4, 0, 0, 14, 16, 58, 4, 0, 0, 7, 8, 59, 4, 0, 0, 12, 78];
    let names: &[u8] = b"\x0f\x0bexample.org\x77\x0d\x07example\x03net\x00\x06\x08\x0a\x00\x00\x01\x0a\x00\x00\x02";
    let routes: &[u8] = &[121, 14, 0, 10, 0, 0, 254, 24, 192, 168, 77, 0, 0, 0, 0, 26, 2, 5, 0xdc];
    vec![answer(2, &[mask, time, &[3, 4, 10, 0, 0, 1]]), answer(5, &[mask, time, names, routes]), answer(6, &[])]
}

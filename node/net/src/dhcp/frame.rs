//! IPv4 and UDP headers around DHCP messages, for a packet socket: before there is an address the kernel's UDP cannot be used.
//!
//! Everything that is parsed here came from anybody on the link.

use std::net::Ipv4Addr;

/// RFC 2131, section 4.1.
pub const SERVER_PORT: u16 = 67;
/// RFC 2131, section 4.1.
pub const CLIENT_PORT: u16 = 68;
/// The largest Ethernet payload; jumbo frames carry no DHCP that we would ask for.
pub const PACKET_BYTES: usize = 1500;

const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const PROTOCOL_UDP: u8 = 17;
/// Usual for hosts.
const TIME_TO_LIVE: u8 = 64;

/// Whether the kernel has the checksum of a received packet still to compute: a packet that a neighbour on the same machine sent over
/// a virtual link carries none (`TP_STATUS_CSUMNOTREADY`), and cannot have been damaged on a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// To be checked.
    Present,
    /// Not filled in by the sending side of this machine.
    NotReady,
}

/// Wraps a message of the client; `None` if it does not fit a packet.
pub fn wrap(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Option<Vec<u8>> {
    let total = payload.len().checked_add(IPV4_HEADER + UDP_HEADER).filter(|total| *total <= PACKET_BYTES)?;
    let total = u16::try_from(total).ok()?;
    let udp_length = total - IPV4_HEADER as u16;

    let mut packet = Vec::with_capacity(usize::from(total));
    packet.extend_from_slice(&[0x45, 0]);
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0x40, 0, TIME_TO_LIVE, PROTOCOL_UDP, 0, 0]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    let header_sum = fold(sum(&packet));
    packet[10..12].copy_from_slice(&header_sum.to_be_bytes());

    packet.extend_from_slice(&CLIENT_PORT.to_be_bytes());
    packet.extend_from_slice(&SERVER_PORT.to_be_bytes());
    packet.extend_from_slice(&udp_length.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    let udp_sum = match udp_checksum(source, destination, &packet[IPV4_HEADER..]) {
        // Zero means "none"; the other zero of one's complement says the same sum.
        0 => 0xffff,
        sum => sum,
    };
    packet[IPV4_HEADER + 6..IPV4_HEADER + 8].copy_from_slice(&udp_sum.to_be_bytes());
    Some(packet)
}

/// The payload of a UDP packet from a DHCP server to a client, if the packet is whole and its checksums hold.
pub fn unwrap(packet: &[u8], checksum: Checksum) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header_length = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_length < IPV4_HEADER {
        return None;
    }
    let header = packet.get(..header_length)?;
    let total = usize::from(be16(header, 2)?);
    let fragment = be16(header, 6)? & 0x3fff;
    if header[9] != PROTOCOL_UDP || fragment != 0 || fold(sum(header)) != 0 {
        return None;
    }
    // Short Ethernet frames are padded: the packet ends where its header says.
    let udp = packet.get(header_length..total)?;
    let udp_length = usize::from(be16(udp, 4)?);
    let udp = udp.get(..udp_length)?;
    if be16(udp, 0)? != SERVER_PORT || be16(udp, 2)? != CLIENT_PORT {
        return None;
    }
    let payload = udp.get(UDP_HEADER..)?;
    if checksum == Checksum::Present && be16(udp, 6)? != 0 {
        let source = Ipv4Addr::from_bits(be32(header, 12)?);
        let destination = Ipv4Addr::from_bits(be32(header, 16)?);
        if udp_checksum(source, destination, udp) != 0 {
            return None;
        }
    }
    Some(payload)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// RFC 768: over a pseudo header and the datagram. 0 if the datagram holds its right checksum.
fn udp_checksum(source: Ipv4Addr, destination: Ipv4Addr, udp: &[u8]) -> u16 {
    let length = u32::try_from(udp.len()).unwrap_or(u32::MAX);
    fold(sum(&source.octets()) + sum(&destination.octets()) + u32::from(PROTOCOL_UDP) + length + sum(udp))
}

/// At most 65535 bytes give at most 2^31: no overflow.
fn sum(bytes: &[u8]) -> u32 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u32::from(*byte) << 8);
    pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum::<u32>() + last
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A server's packet: the client's with the ports exchanged, which leaves every sum as it is.
    fn from_server(payload: &[u8]) -> Vec<u8> {
        let mut packet = wrap(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::BROADCAST, payload).expect("fits");
        packet[20..24].rotate_left(2);
        packet
    }

    proptest! {
        #[test]
        fn what_is_wrapped_is_unwrapped(payload in proptest::collection::vec(any::<u8>(), 0..1472), padding in 0usize..46) {
            let mut packet = from_server(&payload);
            packet.resize(packet.len() + padding, 0);
            prop_assert_eq!(unwrap(&packet, Checksum::Present), Some(payload.as_slice()));
        }

        #[test]
        fn one_flipped_bit_is_noticed(payload in proptest::collection::vec(any::<u8>(), 1..300), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut packet = from_server(&payload);
            let at = at.index(packet.len());
            packet[at] ^= 1 << bit;
            // Clearing the whole checksum field is the one change that says "no checksum"; a single bit cannot do it
            // unless the field had only that bit.
            prop_assume!(packet[26] != 0 || packet[27] != 0);
            prop_assert_eq!(unwrap(&packet, Checksum::Present), None);
        }

        #[test]
        fn any_packet_is_looked_at_without_a_panic(packet in proptest::collection::vec(any::<u8>(), 0..1600)) {
            let _ = unwrap(&packet, Checksum::Present);
            let _ = unwrap(&packet, Checksum::NotReady);
        }
    }

    #[test]
    fn a_message_that_fits_no_packet_is_not_wrapped() {
        assert!(wrap(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &[0; 1473]).is_none());
    }
}

//! Packets that no honest server sends.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode};
use dhcproto::{Encodable, Encoder};
use proptest::prelude::*;

use crate::dhcp::wire::{self, Ignored, LEASE_MAXIMUM_S, Lease, ReplyKind};
use crate::fuzz_dhcp;

const MAC: wire::MacAddress = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// An acknowledgement of a good server, with one thing changed.
fn ack(change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(1, zero, Ipv4Addr::new(10, 0, 0, 7), zero, zero, &MAC);
    message.set_opcode(Opcode::BootReply);
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(MessageType::Ack));
    options.insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 0, 1)));
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
    options.insert(DhcpOption::AddressLeaseTime(3600));
    options.insert(DhcpOption::Router(vec![Ipv4Addr::new(10, 0, 0, 1)]));
    change(&mut message);
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).expect("encodes");
    bytes
}

fn with(option: DhcpOption) -> Vec<u8> {
    ack(|message| {
        message.opts_mut().insert(option);
    })
}

fn lease(bytes: &[u8]) -> Result<Lease, Ignored> {
    match wire::parse(bytes, MAC)?.kind {
        ReplyKind::Ack(lease) => Ok(lease),
        other @ (ReplyKind::Offer(_) | ReplyKind::Nak(_)) => panic!("{other:?}"),
    }
}

#[test]
fn a_good_answer_is_believed() {
    let lease = lease(&ack(|_| {})).expect("good");
    assert_eq!((lease.address, lease.prefix), (Ipv4Addr::new(10, 0, 0, 7), 24));
    assert_eq!(lease.times.map(|times| (times.renew_s, times.rebind_s, times.end_s)), Some((1800, 3150, 3600)));
    assert_eq!(lease.routes.len(), 1);
}

#[test]
fn an_address_that_no_host_can_have_is_ignored() {
    for address in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.0.0", "10.0.0.255", "10.0.0.1"] {
        let bytes = ack(|message| {
            message.set_yiaddr(address.parse::<Ipv4Addr>().expect("an address"));
        });
        assert_eq!(lease(&bytes), Err(Ignored::BadAddress), "{address}");
    }
    for mask in ["0.0.0.0", "255.0.255.0", "0.0.0.255"] {
        let bytes = with(DhcpOption::SubnetMask(mask.parse().expect("a mask")));
        assert_eq!(lease(&bytes), Err(Ignored::BadAddress), "{mask}");
    }
}

#[test]
fn absurd_times_are_bounded() {
    let end =
        |seconds| lease(&with(DhcpOption::AddressLeaseTime(seconds))).map(|lease| lease.times.map(|times| times.end_s));
    assert_eq!(end(0), Err(Ignored::NoTime));
    assert_eq!(end(1), Ok(Some(60)));
    assert_eq!(end(u32::MAX - 1), Ok(Some(LEASE_MAXIMUM_S)));
    assert_eq!(end(u32::MAX), Ok(None));
    for (renew, rebind) in [(0, 0), (4000, 5000), (3000, 2000), (1, 3600)] {
        let bytes = ack(|message| {
            message.opts_mut().insert(DhcpOption::Renewal(renew));
            message.opts_mut().insert(DhcpOption::Rebinding(rebind));
        });
        let times = lease(&bytes).expect("good otherwise").times.expect("not for ever");
        assert_eq!((times.renew_s, times.rebind_s), (1800, 3150), "{renew} {rebind}");
    }
}

#[test]
fn routers_and_servers_that_cannot_be_are_left_out() {
    let odd =
        ["0.0.0.0", "127.0.0.1", "239.1.1.1", "10.0.0.7"].map(|text| text.parse::<Ipv4Addr>().expect("an address"));
    let outside = Ipv4Addr::new(192, 168, 9, 1);
    let mut routers = odd.to_vec();
    routers.push(outside);
    let found = lease(&with(DhcpOption::Router(routers))).expect("good otherwise");
    assert_eq!(
        found.routes.iter().map(|route| route.gateway).collect::<Vec<_>>(),
        [Some(outside)],
        "reached on the link"
    );
    let many = (0..60).map(|last| Ipv4Addr::new(10, 0, 1, last)).chain(odd).collect();
    let found = lease(&with(DhcpOption::DomainNameServer(many))).expect("good otherwise");
    assert_eq!(found.dns.len(), 8);
    for domain in ["a b", "x\nnameserver 6.6.6.6", "", "-a", "ok.example"] {
        let found = lease(&with(DhcpOption::DomainName(domain.into()))).expect("good otherwise");
        assert_eq!(found.search.len(), usize::from(domain == "ok.example"), "{domain}");
    }
    assert_eq!(lease(&with(DhcpOption::InterfaceMtu(68))).expect("good otherwise").mtu, None);
}

#[test]
fn classless_routes_win_over_routers() {
    let network = |text: &str| text.parse().expect("a network");
    let gateway = Ipv4Addr::new(10, 0, 0, 254);
    let found = lease(&with(DhcpOption::ClasslessStaticRoute(vec![
        (network("0.0.0.0/0"), gateway),
        (network("192.168.77.0/24"), Ipv4Addr::UNSPECIFIED),
        (network("224.0.0.0/4"), gateway),
        (network("0.0.0.0/0"), Ipv4Addr::UNSPECIFIED),
        (network("172.16.0.0/12"), Ipv4Addr::LOCALHOST),
    ])))
    .expect("good otherwise");
    assert_eq!(found.routes.len(), 2);
    assert_eq!(found.routes[0].gateway, Some(gateway));
    assert_eq!((found.routes[1].prefix, found.routes[1].gateway), (24, None));
}

#[test]
fn answers_to_others_are_ignored() {
    assert_eq!(wire::parse(&ack(|_| {}), [2, 0, 0, 0, 0, 9]), Err(Ignored::NotForUs));
    let request = ack(|message| {
        message.set_opcode(Opcode::BootRequest);
    });
    assert_eq!(lease(&request), Err(Ignored::NotForUs));
    let mut odd_length = ack(|_| {});
    odd_length[2] = 255;
    assert_eq!(wire::parse(&odd_length, MAC), Err(Ignored::NotForUs));
    let mut no_magic = ack(|_| {});
    no_magic[236] = 0;
    assert_eq!(wire::parse(&no_magic, MAC), Err(Ignored::Malformed));
}

#[test]
fn options_of_impossible_lengths_do_no_harm() {
    for code in 1..255u8 {
        for length in [0, 1, 3, 5, 255] {
            let mut bytes = ack(|_| {});
            // Before the good options, so that a shift would be noticed.
            let option: Vec<u8> =
                [code, length].into_iter().chain(std::iter::repeat_n(0, usize::from(length))).collect();
            bytes.splice(240..240, option);
            fuzz_dhcp(&bytes);
            if ![53, 121].contains(&code) {
                assert_eq!(lease(&bytes).map(|lease| lease.address), Ok(Ipv4Addr::new(10, 0, 0, 7)), "{code} {length}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..1600)) {
        fuzz_dhcp(&data);
    }

    #[test]
    fn any_options_behind_a_good_head_are_survived(options in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = ack(|_| {});
        bytes.pop();
        bytes.extend_from_slice(&options);
        fuzz_dhcp(&bytes);
    }

    #[test]
    fn a_damaged_answer_is_survived(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), cut in any::<prop::sample::Index>()) {
        let mut bytes = ack(|_| {});
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        fuzz_dhcp(&bytes);
    }
}

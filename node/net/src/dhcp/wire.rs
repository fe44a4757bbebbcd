//! DHCP messages: what the client sends, and what it believes of an answer.
//!
//! An answer can come from anybody on the link. [`parse`] takes only what one host can use: a unicast address in a real network, lease
//! times within bounds, lists cut to what anyone needs. What is wrong in a part that can be done without is left out; what is wrong in
//! the rest makes the answer as good as not sent.

use std::net::{IpAddr, Ipv4Addr};

use byre_config::{Domain, InterfaceAddress, ipv4_mask, is_unicast_ipv4};
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use serde::{Deserialize, Serialize};

use super::frame::PACKET_BYTES;

/// A shorter lease would keep a network busy with nothing but renewals.
pub const LEASE_MINIMUM_S: u32 = 60;
/// A longer one is as good as for ever, and keeps sums of times far from overflow.
pub const LEASE_MAXIMUM_S: u32 = 365 * 24 * 3600;
/// RFC 2131, section 3.3.
const LEASE_INFINITE: u32 = u32::MAX;
/// Renewing more often than this is never useful.
pub const RENEW_MINIMUM_S: u32 = 10;
/// As in the configuration: the resolver reads three.
const NAME_SERVERS: usize = 8;
/// As in the configuration.
const SEARCH_DOMAINS: usize = 6;
/// A network of many parts has some; a packet could hold about 280.
const ROUTES: usize = 32;
/// RFC 791's least packet that every host takes; below it a network is unusable, and an attack.
const MTU_MINIMUM: u16 = 576;
/// The fixed part with the magic cookie (RFC 2131, figure 1; RFC 2132, section 2).
const FIXED_BYTES: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// RFC 2132, section 3.1.
const OPTION_PAD: u8 = 0;
/// RFC 2132, section 3.2.
const OPTION_END: u8 = 255;
/// The length of a hardware address of Ethernet.
const MAC_BYTES: u8 = 6;

/// A hardware address of Ethernet.
pub type MacAddress = [u8; 6];

/// A route of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Network.
    pub destination: Ipv4Addr,
    /// Bits of the network.
    pub prefix: u8,
    /// Router; none means that the network is on the link itself.
    pub gateway: Option<Ipv4Addr>,
}

/// What a server offers or grants, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The link's address.
    pub address: Ipv4Addr,
    /// Bits of its network.
    pub prefix: u8,
    /// Who grants it.
    pub server: Ipv4Addr,
    /// Routes, the default one among them.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Domains in which names are searched.
    pub search: Vec<String>,
    /// Largest packet.
    pub mtu: Option<u16>,
    /// How long; `None` is for ever.
    pub times: Option<Times>,
}

/// Times of a lease in seconds from the request that it answers: renew < rebind < end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// T1: ask the server that granted it.
    pub renew_s: u32,
    /// T2: ask any server.
    pub rebind_s: u32,
    /// The address may not be used any more.
    pub end_s: u32,
}

/// A checked answer of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Which exchange it belongs to.
    pub transaction: u32,
    /// What it says.
    pub kind: ReplyKind,
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyKind {
    /// DHCPOFFER.
    Offer(Lease),
    /// DHCPACK.
    Ack(Lease),
    /// DHCPNAK, from this server.
    Nak(Ipv4Addr),
}

/// Why an answer is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// Not a DHCP message at all.
    #[error("not a DHCP message")]
    Malformed,
    /// For another host, or not an answer.
    #[error("not an answer to this link")]
    NotForUs,
    /// It does not say which server it is from.
    #[error("names no server")]
    NoServer,
    /// Address and mask are not those of one host in a network.
    #[error("offers an address that no host can have")]
    BadAddress,
    /// It grants something for no time.
    #[error("has no lease time")]
    NoTime,
}

/// A message of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Exchange.
    pub transaction: u32,
    /// Since the exchange began, in seconds.
    pub seconds: u16,
    /// What is asked.
    pub kind: RequestKind,
}

/// What the client asks (RFC 2131, table 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// DHCPDISCOVER.
    Discover,
    /// DHCPREQUEST for an offer.
    Select {
        /// Whose offer.
        server: Ipv4Addr,
        /// Of which address.
        address: Ipv4Addr,
    },
    /// DHCPREQUEST whether an address held before is still right on this network.
    Reboot {
        /// Which.
        address: Ipv4Addr,
    },
    /// DHCPREQUEST to go on using an address.
    Extend {
        /// Which.
        address: Ipv4Addr,
    },
}

/// Encodes a message.
pub fn encode(request: &Request, mac: MacAddress, hostname: Option<&str>) -> Option<Vec<u8>> {
    let unspecified = Ipv4Addr::UNSPECIFIED;
    let mut message =
        Message::new_with_id(request.transaction, unspecified, unspecified, unspecified, unspecified, &mac);
    message.set_secs(request.seconds);
    let options = message.opts_mut();
    let (kind, own) = match request.kind {
        RequestKind::Discover => (MessageType::Discover, unspecified),
        RequestKind::Select { server, address } => {
            options.insert(DhcpOption::ServerIdentifier(server));
            options.insert(DhcpOption::RequestedIpAddress(address));
            (MessageType::Request, unspecified)
        }
        RequestKind::Reboot { address } => {
            options.insert(DhcpOption::RequestedIpAddress(address));
            (MessageType::Request, unspecified)
        }
        RequestKind::Extend { address } => (MessageType::Request, address),
    };
    options.insert(DhcpOption::MessageType(kind));
    let [a, b, c, d, e, f] = mac;
    // Hardware type 1 is Ethernet (RFC 2132, section 9.14).
    options.insert(DhcpOption::ClientIdentifier(vec![1, a, b, c, d, e, f]));
    options.insert(DhcpOption::MaxMessageSize(PACKET_BYTES as u16 - 28));
    if let Some(name) = hostname {
        options.insert(DhcpOption::Hostname(name.to_owned()));
    }
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::ClasslessStaticRoute,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::DomainName,
        OptionCode::DomainSearch,
        OptionCode::InterfaceMtu,
        OptionCode::AddressLeaseTime,
        OptionCode::Renewal,
        OptionCode::Rebinding,
    ]));
    message.set_ciaddr(own);
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).ok()?;
    // Some servers drop what is shorter than a BOOTP message (RFC 951: 300 bytes).
    bytes.resize(bytes.len().max(300), 0);
    Some(bytes)
}

/// Reads and checks an answer.
pub fn parse(payload: &[u8], mac: MacAddress) -> Result<Reply, Ignored> {
    if payload.len() > PACKET_BYTES || payload.get(FIXED_BYTES - 4..FIXED_BYTES) != Some(MAGIC.as_slice()) {
        return Err(Ignored::Malformed);
    }
    // The library takes the length of the hardware address on trust when it is asked for the address.
    if payload.get(2) != Some(&MAC_BYTES) {
        return Err(Ignored::NotForUs);
    }
    let message = Message::decode(&mut Decoder::new(&sifted(payload))).map_err(|_| Ignored::Malformed)?;
    if message.opcode() != Opcode::BootReply || message.chaddr() != mac {
        return Err(Ignored::NotForUs);
    }
    let options = message.opts();
    let server = match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) if is_unicast_ipv4(*server) => *server,
        _ => return Err(Ignored::NoServer),
    };
    let kind = match options.msg_type() {
        Some(MessageType::Offer) => ReplyKind::Offer(lease(&message, server)?),
        Some(MessageType::Ack) => ReplyKind::Ack(lease(&message, server)?),
        Some(MessageType::Nak) => ReplyKind::Nak(server),
        _ => return Err(Ignored::NotForUs),
    };
    Ok(Reply { transaction: message.xid(), kind })
}

/// The message with nothing but the options that are used here, each of a length that it can have.
///
/// The library asserts the lengths of some options and trusts those of others; a packet must neither end this process nor shift what
/// is read after a bad option.
fn sifted(payload: &[u8]) -> Vec<u8> {
    let (fixed, mut rest) = payload.split_at_checked(FIXED_BYTES).unwrap_or((payload, &[]));
    let mut kept = fixed.to_vec();
    while let [code, after @ ..] = rest {
        match *code {
            OPTION_PAD => {
                rest = after;
                continue;
            }
            OPTION_END => break,
            _ => {}
        }
        let Some((length, after)) = after.split_first() else { break };
        let Some((value, after)) = after.split_at_checked(usize::from(*length)) else { break };
        let whole = match *code {
            // Mask, lease time, server, T1, T2.
            1 | 51 | 54 | 58 | 59 => value.len() == 4,
            // Routers, name servers.
            3 | 6 => !value.is_empty() && value.len() % 4 == 0,
            // MTU.
            26 => value.len() == 2,
            // Message type.
            53 => value.len() == 1,
            // Domain, search list, classless routes.
            15 | 119 | 121 => !value.is_empty(),
            _ => false,
        };
        if whole {
            kept.extend_from_slice(&[*code, *length]);
            kept.extend_from_slice(value);
        }
        rest = after;
    }
    kept.push(OPTION_END);
    kept
}

fn lease(message: &Message, server: Ipv4Addr) -> Result<Lease, Ignored> {
    let address = message.yiaddr();
    let options = message.opts();
    let prefix = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => prefix_of(*mask).ok_or(Ignored::BadAddress)?,
        _ => natural_prefix(address),
    };
    // The same check as for an address that an operator writes.
    let own: InterfaceAddress = format!("{address}/{prefix}").parse().map_err(|_| Ignored::BadAddress)?;
    if own.address == IpAddr::V4(server) {
        return Err(Ignored::BadAddress);
    }
    let dns = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => unicast(servers, NAME_SERVERS),
        _ => Vec::new(),
    };
    let mtu = match options.get(OptionCode::InterfaceMtu) {
        Some(DhcpOption::InterfaceMtu(mtu)) if *mtu >= MTU_MINIMUM => Some(*mtu),
        _ => None,
    };
    Ok(Lease {
        address,
        prefix,
        server,
        routes: routes(message, address),
        dns,
        search: search(message),
        mtu,
        times: times(message)?,
    })
}

fn times(message: &Message) -> Result<Option<Times>, Ignored> {
    let options = message.opts();
    let seconds = match options.get(OptionCode::AddressLeaseTime) {
        Some(DhcpOption::AddressLeaseTime(0)) | None => return Err(Ignored::NoTime),
        Some(DhcpOption::AddressLeaseTime(LEASE_INFINITE)) => return Ok(None),
        Some(DhcpOption::AddressLeaseTime(seconds)) => *seconds,
        Some(_) => return Err(Ignored::NoTime),
    };
    let end_s = seconds.clamp(LEASE_MINIMUM_S, LEASE_MAXIMUM_S);
    let renew =
        if let Some(DhcpOption::Renewal(seconds)) = options.get(OptionCode::Renewal) { Some(*seconds) } else { None };
    let rebind = if let Some(DhcpOption::Rebinding(seconds)) = options.get(OptionCode::Rebinding) {
        Some(*seconds)
    } else {
        None
    };
    // RFC 2131, section 4.4.5: half and seven eighths, unless the server says something that makes sense.
    let (half, seven_eighths) = (end_s / 2, end_s / 8 * 7);
    let (renew_s, rebind_s) = match (renew.map(|seconds| seconds.max(RENEW_MINIMUM_S)), rebind) {
        (Some(renew), Some(rebind)) if renew < rebind && rebind < end_s => (renew, rebind),
        (Some(renew), None) if renew < seven_eighths => (renew, seven_eighths),
        (Some(_) | None, Some(_) | None) => (half, seven_eighths),
    };
    Ok(Some(Times { renew_s, rebind_s, end_s }))
}

/// RFC 3442: where there are classless routes, the router option does not count.
fn routes(message: &Message, own: Ipv4Addr) -> Vec<Route> {
    if let Some(DhcpOption::ClasslessStaticRoute(routes)) = message.opts().get(OptionCode::ClasslessStaticRoute) {
        let usable = routes.iter().filter_map(|(network, gateway)| {
            let prefix = network.prefix_len();
            let destination = Ipv4Addr::from_bits(network.addr().to_bits() & ipv4_mask(prefix));
            let gateway = match gateway.is_unspecified() {
                true => None,
                false => Some(*gateway).filter(|gateway| is_unicast_ipv4(*gateway) && *gateway != own).map(Some)?,
            };
            // A default route needs a router; any other destination must be one that hosts can have.
            let destination_ok = if prefix == 0 { gateway.is_some() } else { is_unicast_ipv4(destination) };
            destination_ok.then_some(Route { destination, prefix, gateway })
        });
        return usable.take(ROUTES).collect();
    }
    let Some(DhcpOption::Router(routers)) = message.opts().get(OptionCode::Router) else { return Vec::new() };
    let router = unicast(routers, routers.len()).into_iter().find(|router| *router != own);
    router
        .into_iter()
        .map(|router| Route { destination: Ipv4Addr::UNSPECIFIED, prefix: 0, gateway: Some(router) })
        .collect()
}

fn search(message: &Message) -> Vec<String> {
    let mut names = Vec::new();
    if let Some(DhcpOption::DomainSearch(domains)) = message.opts().get(OptionCode::DomainSearch) {
        names.extend(domains.iter().map(ToString::to_string));
    } else if let Some(DhcpOption::DomainName(domain)) = message.opts().get(OptionCode::DomainName) {
        names.push(domain.clone());
    }
    // Each goes into a line of resolv.conf, so each must be a domain and nothing more.
    let checked = names.iter().filter_map(|name| Domain::try_from(name.trim_end_matches(['.', '\0']).to_owned()).ok());
    let mut kept: Vec<String> = Vec::new();
    for name in checked.map(String::from) {
        if kept.len() < SEARCH_DOMAINS && !kept.contains(&name) {
            kept.push(name);
        }
    }
    kept
}

fn unicast(addresses: &[Ipv4Addr], limit: usize) -> Vec<Ipv4Addr> {
    let mut kept = Vec::new();
    for address in addresses {
        if kept.len() < limit && is_unicast_ipv4(*address) && !kept.contains(address) {
            kept.push(*address);
        }
    }
    kept
}

/// The length of a mask's prefix, if its ones come first and there is at least one.
fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let ones = mask.to_bits().leading_ones();
    let prefix = u8::try_from(ones).ok()?;
    (prefix > 0 && ipv4_mask(prefix) == mask.to_bits()).then_some(prefix)
}

/// RFC 791: what a network's size was before masks; servers that name no mask mean it.
fn natural_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        192..=255 => 24,
    }
}

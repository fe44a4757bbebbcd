//! The packet filter's rules of this node's networks, by nfnetlink: what is wanted is made into rules, and replaces in one transaction what was there.
//!
//! The table `byre` is this service's own; nobody else's is read, changed or flushed. While the service
//! lives it owns them, so that others cannot flush them by mistake; the kernel keeps them when it ends, and it takes them over when it is back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use byre_protocol::pod::Transport;
use rustix::io::Errno;

use crate::netlink::{APPEND, Attributes, CREATE, Socket, message};

const NETLINK_NETFILTER: u32 = 12;
/// NFNL_SUBSYS_NFTABLES, and the messages of linux/netfilter/nf_tables.h.
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NFPROTO_INET: IPv4 and IPv6 in one table.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// NFT_TABLE_F_OWNER, _PERSIST.
const OWNED: u32 = 2 | 4;
/// Registers of 16 bytes.
const ONE: u32 = 1;
const TWO: u32 = 2;

/// A network as the rules need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Net {
    pub(crate) bridge: String,
    pub(crate) subnet4: (Ipv4Addr, u8),
    pub(crate) subnet6: (Ipv6Addr, u8),
    /// Nothing leads out of it.
    pub(crate) internal: bool,
}

/// A published port as the rules need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) transport: Transport,
    pub(crate) host_address: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) to: IpAddr,
    pub(crate) pod_port: u16,
}

/// A rule: its expressions, in order.
#[derive(Default)]
struct Rule(Attributes);

fn data(value: &[u8]) -> Attributes {
    Attributes::default().put(1, value)
}

fn name16(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

impl Rule {
    fn expression(self, name: &str, content: &Attributes) -> Self {
        let element = Attributes::default().text(1, name).nest(2, content);
        Self(self.0.nest(1, &element))
    }

    fn compare(self, is: bool, value: &[u8]) -> Self {
        let operation = u32::from(!is);
        self.expression("cmp", &Attributes::default().big(1, ONE).big(2, operation).nest(3, &data(value)))
    }

    fn meta(self, key: u32) -> Self {
        self.expression("meta", &Attributes::default().big(1, ONE).big(2, key))
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        let content = Attributes::default().big(1, ONE).big(2, base).big(3, offset).big(4, length);
        self.expression("payload", &content)
    }

    /// The packet is of this address family.
    fn family(self, family: u8) -> Self {
        self.meta(15).compare(true, &[family])
    }

    /// The packet is of this protocol, and goes to this port.
    fn toward_port(self, transport: Transport, port: u16) -> Self {
        let protocol = match transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
            Transport::Sctp => 132,
        };
        self.meta(16).compare(true, &[protocol]).payload(2, 2, 2).compare(true, &port.to_be_bytes())
    }

    /// The address at this place (`source` or not) begins with these bits, or does not.
    fn address(self, is_source: bool, network: (IpAddr, u8), is: bool) -> Self {
        let (address, prefix) = network;
        let (bytes, family, first) = match address {
            IpAddr::V4(address) => (address.octets().to_vec(), IPV4, 12),
            IpAddr::V6(address) => (address.octets().to_vec(), IPV6, 8),
        };
        let length = u32::try_from(bytes.len()).unwrap_or(0);
        let offset = if is_source { first } else { first + length };
        let mask: Vec<u8> = (0..bytes.len())
            .map(|index| {
                let bits = usize::from(prefix).saturating_sub(index * 8).min(8);
                u8::try_from(0xff00_u32 >> bits & 0xff).unwrap_or(0xff)
            })
            .collect();
        let zero = vec![0; bytes.len()];
        let masked: Vec<u8> = bytes.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
        let bitwise =
            Attributes::default().big(1, ONE).big(2, ONE).big(3, length).nest(4, &data(&mask)).nest(5, &data(&zero));
        self.family(family).payload(1, offset, length).expression("bitwise", &bitwise).compare(is, &masked)
    }

    /// The packet comes in (or goes out) by this link, or does not.
    fn link(self, is_input: bool, name: &str, is: bool) -> Self {
        self.meta(if is_input { 6 } else { 7 }).compare(is, &name16(name))
    }

    /// The packet goes to an address of this node.
    fn for_this_node(self) -> Self {
        const LOCAL: u32 = 2;
        // Result: the kind of the destination's address.
        let fib = Attributes::default().big(1, ONE).big(2, 3).big(3, 2);
        self.expression("fib", &fib).compare(true, &LOCAL.to_ne_bytes())
    }

    /// One of these bits of the connection's status is set.
    fn connection(self, key: u32, bits: u32) -> Self {
        let zero = 0_u32.to_ne_bytes();
        let bitwise = Attributes::default()
            .big(1, ONE)
            .big(2, ONE)
            .big(3, 4)
            .nest(4, &data(&bits.to_ne_bytes()))
            .nest(5, &data(&zero));
        let connection = Attributes::default().big(1, ONE).big(2, key);
        self.expression("ct", &connection).expression("bitwise", &bitwise).compare(false, &zero)
    }

    fn immediate(self, register: u32, value: &[u8]) -> Self {
        self.expression("immediate", &Attributes::default().big(1, register).nest(2, &data(value)))
    }

    fn destination(self, to: IpAddr, port: u16) -> Self {
        let (bytes, family) = match to {
            IpAddr::V4(address) => (address.octets().to_vec(), IPV4),
            IpAddr::V6(address) => (address.octets().to_vec(), IPV6),
        };
        // Type 1 is the destination; address and port come from the registers.
        let nat = Attributes::default().big(1, 1).big(2, u32::from(family)).big(3, ONE).big(5, TWO);
        self.immediate(ONE, &bytes).immediate(TWO, &port.to_be_bytes()).expression("nat", &nat)
    }

    fn masquerade(self) -> Self {
        self.expression("masq", &Attributes::default())
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        let verdict = Attributes::default().put(1, &code.to_be_bytes());
        let verdict = chain.map_or(verdict.clone(), |chain| verdict.text(2, chain));
        let content = Attributes::default().big(1, 0).nest(2, &Attributes::default().nest(2, &verdict));
        self.expression("immediate", &content)
    }

    fn jump(self, chain: &str) -> Self {
        self.verdict(-3, Some(chain))
    }

    fn drop(self) -> Self {
        self.verdict(0, None)
    }
}

/// Messages of one transaction.
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    table: &'static str,
}

/// A base chain's place. Nothing that is passed on is dropped, but for what would leave a network that nothing leaves.
struct Hook {
    kind: &'static str,
    hook: u32,
    priority: i32,
}

impl Batch {
    fn push(&mut self, kind: u16, flags: u16, content: &Attributes) {
        self.sequence = self.sequence.wrapping_add(1);
        let kind = SUBSYSTEM << 8 | kind;
        self.bytes.extend(message(kind, flags, self.sequence, content));
    }

    fn chain(&mut self, name: &str, hook: Option<&Hook>) {
        let content = header(INET).text(1, self.table).text(3, name);
        let content = match hook {
            None => content,
            Some(hook) => {
                let place = Attributes::default().big(1, hook.hook).put(2, &hook.priority.to_be_bytes());
                content.nest(4, &place).big(5, 1).text(7, hook.kind)
            }
        };
        self.push(NEW_CHAIN, CREATE, &content);
    }

    fn rule(&mut self, chain: &str, rule: &Rule) {
        let content = header(INET).text(1, self.table).text(2, chain).nest(4, &rule.0);
        self.push(NEW_RULE, CREATE | APPEND, &content);
    }
}

/// `struct nfgenmsg`.
fn header(family: u8) -> Attributes {
    Attributes::with(&[family, 0, 0, 0])
}

/// nfnetlink of one network namespace.
#[derive(Debug)]
pub(crate) struct Rules {
    socket: Socket,
    /// What a table is marked with: owner and persistent, as far as this kernel knows that.
    flags: u32,
}

impl Rules {
    pub(crate) fn open() -> Result<Self, Errno> {
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER)?, flags: OWNED })
    }

    /// Replaces the rules of networks and published ports.
    pub(crate) fn networks(&mut self, networks: &[Net], ports: &[Port]) -> Result<(), Errno> {
        self.replace("byre", |batch| of_networks(batch, networks, ports))
    }

    fn replace(&mut self, table: &'static str, fill: impl Fn(&mut Batch)) -> Result<(), Errno> {
        match self.try_replace(table, &fill) {
            // A kernel before 6.9 does not keep an owned table; then it is kept without an owner.
            Err(Errno::INVAL | Errno::OPNOTSUPP) if self.flags != 0 => {
                self.flags = 0;
                self.try_replace(table, &fill)
            }
            done => done,
        }
    }

    fn try_replace(&mut self, table: &'static str, fill: &impl Fn(&mut Batch)) -> Result<(), Errno> {
        let mut batch = Batch { bytes: Vec::new(), sequence: self.socket.next(), table };
        let begin = Attributes::with(&[0, 0, 0, 10]);
        batch.bytes.extend(message(BATCH_BEGIN, 0, batch.sequence, &begin));
        let named = || header(INET).text(1, table).big(2, self.flags);
        // Made first, so that there is one to be deleted: the transaction is the same whether there was one or not.
        batch.push(NEW_TABLE, CREATE, &named());
        batch.push(DELETE_TABLE, 0, &header(INET).text(1, table));
        batch.push(NEW_TABLE, CREATE, &named());
        fill(&mut batch);
        let last = batch.sequence.wrapping_add(1);
        batch.bytes.extend(message(BATCH_END, crate::netlink::ACK, last, &begin));
        for _ in batch.sequence..=last {
            self.socket.next();
        }
        self.socket.transact(&batch.bytes, last)
    }
}

const PREROUTING: Hook = Hook { kind: "nat", hook: 0, priority: -100 };
const OUTPUT: Hook = Hook { kind: "nat", hook: 3, priority: -100 };
const POSTROUTING: Hook = Hook { kind: "nat", hook: 4, priority: 100 };
const FORWARD: Hook = Hook { kind: "filter", hook: 2, priority: 0 };

fn of_networks(batch: &mut Batch, networks: &[Net], ports: &[Port]) {
    /// NFT_CT_STATUS, IPS_DST_NAT.
    const STATUS: u32 = 2;
    const DESTINATION_CHANGED: u32 = 1 << 5;
    batch.chain("ports", None);
    for port in ports {
        let rule = match port.host_address {
            Some(address) => {
                let whole = if address.is_ipv4() { 32 } else { 128 };
                Rule::default().address(false, (address, whole), true)
            }
            None => Rule::default().family(if port.to.is_ipv4() { IPV4 } else { IPV6 }),
        };
        batch.rule("ports", &rule.toward_port(port.transport, port.host_port).destination(port.to, port.pod_port));
    }
    for (chain, hook) in [("prerouting", PREROUTING), ("output", OUTPUT)] {
        batch.chain(chain, Some(&hook));
        batch.rule(chain, &Rule::default().for_this_node().jump("ports"));
    }
    batch.chain("postrouting", Some(&POSTROUTING));
    let loopback = (IpAddr::V4(Ipv4Addr::LOCALHOST), 8);
    for net in networks {
        let subnets = [(IpAddr::V4(net.subnet4.0), net.subnet4.1), (IpAddr::V6(net.subnet6.0), net.subnet6.1)];
        for subnet in subnets {
            // To a published port of its own bridge: the answer has to come back the same way.
            let hairpin = Rule::default().link(false, &net.bridge, true).connection(STATUS, DESTINATION_CHANGED);
            batch.rule("postrouting", &hairpin.address(true, subnet, true).masquerade());
            if !net.internal {
                let out = Rule::default().address(true, subnet, true).link(false, &net.bridge, false);
                batch.rule("postrouting", &out.masquerade());
            }
        }
        // From this node by its loopback address, which nobody else could answer.
        let own = Rule::default().link(false, &net.bridge, true).address(true, loopback, true);
        batch.rule("postrouting", &own.masquerade());
    }
    batch.chain("forward", Some(&FORWARD));
    for net in networks.iter().filter(|net| net.internal) {
        let out = Rule::default().link(true, &net.bridge, true).link(false, &net.bridge, false);
        batch.rule("forward", &out.drop());
        let into = Rule::default().link(true, &net.bridge, false).link(false, &net.bridge, true);
        batch.rule("forward", &into.drop());
    }
}

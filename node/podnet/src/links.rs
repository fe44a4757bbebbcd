//! The kernel's links, addresses and routes of pods, by rtnetlink: bridges, veth pairs into a pod's namespace, and what limits them.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;

use crate::netlink::{APPEND, Attributes, CREATE, EXCLUSIVE, REPLACE, Socket, attributes};

const NETLINK_ROUTE: u32 = 0;
/// RTM_* of linux/rtnetlink.h.
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_QUEUE: u16 = 36;
const NEW_CLASS: u16 = 40;
/// IFLA_*.
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const NAMESPACE_DESCRIPTOR: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const IFF_UP: u32 = 1;
/// IFA_*, IFA_F_NODAD: nobody else can have an address that this service gives.
const LOCAL: u16 = 2;
const FLAGS: u16 = 8;
const NO_DAD: u32 = 2;
/// RTA_*.
const OUTPUT: u16 = 4;
const GATEWAY: u16 = 5;

/// A link as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mtu: u32,
}

/// A veth pair that is to be made.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    /// The node's end, and the bridge it is a port of.
    pub(crate) host: &'a str,
    pub(crate) bridge: u32,
    /// The pod's end, and its network namespace.
    pub(crate) inside: &'a str,
    pub(crate) namespace: &'a OwnedFd,
    pub(crate) mtu: u32,
}

/// rtnetlink of one network namespace.
#[derive(Debug)]
pub(crate) struct Links(Socket);

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or(0)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `struct ifinfomsg`.
fn info(index: u32, flags: u32, change: u32) -> Attributes {
    let mut fixed = vec![0; 4];
    for number in [index, flags, change] {
        fixed.extend_from_slice(&number.to_ne_bytes());
    }
    Attributes::with(&fixed)
}

impl Links {
    /// Of the namespace that this thread is in.
    pub(crate) fn open() -> Result<Self, Errno> {
        Socket::open(NETLINK_ROUTE).map(Self)
    }

    /// A link by its name; `None` if there is none.
    pub(crate) fn find(&mut self, name: &str) -> Result<Option<Link>, Errno> {
        let answer = match self.0.ask(GET_LINK, 0, &info(0, 0, 0).text(NAME, name)) {
            Ok(answer) => answer,
            Err(Errno::NODEV) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let index = answer.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let mtu = attributes(answer.get(16..).unwrap_or_default()).find(|(kind, _)| *kind == MTU);
        let mtu = mtu.and_then(|(_, value)| value.try_into().ok()).map_or(0, u32::from_ne_bytes);
        Ok(Some(Link { index, mtu }))
    }

    /// The MTU of the link by which packets leave this node; `None` while there is none.
    pub(crate) fn uplink_mtu(&mut self) -> Option<u32> {
        const GET_ROUTE: u16 = 26;
        const DESTINATION: u16 = 1;
        // An address that is nobody's (RFC 5737): only the default route leads there.
        let nobody = IpAddr::from([192, 0, 2, 1]);
        let mut fixed = vec![family(nobody), 32];
        fixed.extend_from_slice(&[0; 10]);
        let answer = self.0.ask(GET_ROUTE, 0, &Attributes::with(&fixed).put(DESTINATION, &octets(nobody))).ok()?;
        let output = attributes(answer.get(12..)?).find(|(kind, _)| *kind == OUTPUT)?.1;
        let index = u32::from_ne_bytes(output.try_into().ok()?);
        let answer = self.0.ask(GET_LINK, 0, &info(index, 0, 0)).ok()?;
        let mtu = attributes(answer.get(16..)?).find(|(kind, _)| *kind == MTU)?.1;
        Some(u32::from_ne_bytes(mtu.try_into().ok()?)).filter(|mtu| *mtu >= 1280)
    }

    /// Makes a bridge, if it is not there, and brings it up; returns its index.
    pub(crate) fn bridge(&mut self, name: &str, mtu: u32) -> Result<u32, Errno> {
        let kind = Attributes::default().text(INFO_KIND, "bridge");
        let content = info(0, IFF_UP, IFF_UP).text(NAME, name).nest(LINK_INFO, &kind);
        match self.0.ask(NEW_LINK, CREATE | EXCLUSIVE, &content) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let index = self.find(name)?.ok_or(Errno::NODEV)?.index;
        self.0.ask(NEW_LINK, 0, &info(index, IFF_UP, IFF_UP).number(MTU, mtu))?;
        Ok(index)
    }

    /// Makes a veth pair across two namespaces.
    pub(crate) fn pair(&mut self, pair: &Pair<'_>) -> Result<(), Errno> {
        let descriptor = pair.namespace.as_fd().as_raw_fd().unsigned_abs();
        let peer = info(0, 0, 0).text(NAME, pair.inside).number(MTU, pair.mtu).number(NAMESPACE_DESCRIPTOR, descriptor);
        let data = Attributes::default().nest(VETH_PEER, &peer);
        let kind = Attributes::default().text(INFO_KIND, "veth").nest(INFO_DATA, &data);
        let content = info(0, IFF_UP, IFF_UP)
            .text(NAME, pair.host)
            .number(MTU, pair.mtu)
            .number(MASTER, pair.bridge)
            .nest(LINK_INFO, &kind);
        self.0.ask(NEW_LINK, CREATE | EXCLUSIVE, &content).map(drop)
    }

    /// Lets a bridge send out by a port what came in by it: a pod that reaches itself by a published port. Needed where the packet filter sees
    /// bridged packets (br_netfilter), because they do not leave the bridge then.
    pub(crate) fn reflect(&mut self, index: u32) -> Result<(), Errno> {
        const SET_LINK: u16 = 19;
        const PORT_INFO: u16 = 12;
        const PORT_MODE: u16 = 4;
        let mut fixed = vec![u8::try_from(libc::AF_BRIDGE).unwrap_or(0), 0, 0, 0];
        for number in [index, 0, 0] {
            fixed.extend_from_slice(&number.to_ne_bytes());
        }
        let port = Attributes::default().put(PORT_MODE, &[1]);
        self.0.ask(SET_LINK, 0, &Attributes::with(&fixed).nest(PORT_INFO, &port)).map(drop)
    }

    /// Takes a link away; one that is not there is not an error.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), Errno> {
        match self.0.ask(DELETE_LINK, 0, &info(0, 0, 0).text(NAME, name)) {
            Ok(_) | Err(Errno::NODEV) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Brings a link up.
    pub(crate) fn up(&mut self, index: u32) -> Result<(), Errno> {
        self.0.ask(NEW_LINK, 0, &info(index, IFF_UP, IFF_UP)).map(drop)
    }

    /// Gives a link an address.
    pub(crate) fn address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<(), Errno> {
        let mut fixed = vec![family(address), prefix, 0, 0];
        fixed.extend_from_slice(&index.to_ne_bytes());
        let octets = octets(address);
        let content = Attributes::with(&fixed).put(LOCAL, &octets).put(ADDRESS, &octets).number(FLAGS, NO_DAD);
        self.0.ask(NEW_ADDRESS, CREATE | REPLACE, &content).map(drop)
    }

    /// Sends everything that has no other way to this router.
    pub(crate) fn default_route(&mut self, index: u32, gateway: IpAddr) -> Result<(), Errno> {
        /// RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST.
        const FIXED: [u8; 7] = [0, 0, 0, 254, 4, 0, 1];
        let mut fixed = vec![family(gateway)];
        fixed.extend_from_slice(&FIXED);
        fixed.extend_from_slice(&0_u32.to_ne_bytes());
        let content = Attributes::with(&fixed).put(GATEWAY, &octets(gateway)).number(OUTPUT, index);
        self.0.ask(NEW_ROUTE, CREATE | REPLACE, &content).map(drop)
    }

    /// Lets so many bits per second leave by a link, by a token bucket (sch_htb) whose one class takes everything.
    pub(crate) fn limit(&mut self, index: u32, bits_per_second: u64) -> Result<(), Errno> {
        const ROOT: u32 = 0xffff_ffff;
        const QUEUE: u32 = 0x0001_0000;
        const CLASS: u32 = 0x0001_0001;
        const TCA_KIND: u16 = 1;
        const TCA_OPTIONS: u16 = 2;
        const HTB_PARAMETERS: u16 = 1;
        const HTB_INIT: u16 = 2;
        const HTB_RATE64: u16 = 6;
        const HTB_CEIL64: u16 = 7;
        let head = |handle: u32, parent: u32| {
            let mut fixed = vec![0; 4];
            for number in [index, handle, parent, 0] {
                fixed.extend_from_slice(&number.to_ne_bytes());
            }
            Attributes::with(&fixed)
        };
        let numbers = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>();
        // struct tc_htb_glob: version, rate2quantum, defcls, debug, direct_pkts.
        let options = Attributes::default().put(HTB_INIT, &numbers(&[3, 10, 1, 0, 0]));
        let content = head(QUEUE, ROOT).text(TCA_KIND, "htb").nest(TCA_OPTIONS, &options);
        self.0.ask(NEW_QUEUE, CREATE | REPLACE, &content)?;
        let bytes_per_second = bits_per_second / 8;
        let low = u32::try_from(bytes_per_second).unwrap_or(u32::MAX);
        // 50 ms of it, and at least a few large packets at once; in ticks of 64 ns, as the kernel counts bursts.
        let burst_bytes = (bytes_per_second / 20).max(64 * 1024);
        let ticks = burst_bytes.saturating_mul(1_000_000_000 / 64) / bytes_per_second.max(1);
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        // struct tc_ratespec: cell_log, linklayer (Ethernet), overhead, cell_align, mpu, rate.
        let mut rate = vec![0, 1, 0, 0, 0, 0, 0, 0];
        rate.extend_from_slice(&low.to_ne_bytes());
        // struct tc_htb_opt: rate, ceil, buffer, cbuffer, quantum, level, prio.
        let parameters = [rate.clone(), rate, numbers(&[ticks, ticks, 64 * 1024, 0, 0])].concat();
        let options = Attributes::default()
            .put(HTB_PARAMETERS, &parameters)
            .put(HTB_RATE64, &bytes_per_second.to_ne_bytes())
            .put(HTB_CEIL64, &bytes_per_second.to_ne_bytes());
        let content = head(CLASS, QUEUE).text(TCA_KIND, "htb").nest(TCA_OPTIONS, &options);
        self.0.ask(NEW_CLASS, CREATE | APPEND, &content).map(drop)
    }
}

//! The networks of this node: which there are, their addresses, and who has which. Pure but for one file, which is written whole.
//!
//! Who has which address is not on disk: PID 1 tells it again for every pod that is up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use byre_plan::{Name, WorkloadId};
use serde::{Deserialize, Serialize};

/// The node's own network.
pub(crate) const OWN: &str = "byre";
/// Networks of a node: each is a bridge.
pub(crate) const NETWORKS: usize = 64;
/// Addresses of the node's own network: 10.88.0.0/16, as others' default is, has room for every workload that a node may have.
const OWN_SUBNET: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 88, 0, 0), 16);
/// Where free networks of 256 addresses are taken from: 10.89.N.0/24.
const FREE: [u8; 2] = [10, 89];
/// Link MTU that IPv6 needs, and the largest that Ethernet has.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65_535;
/// Bytes of the file.
const FILE_BYTES: u64 = 256 * 1024;

/// A network as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    pub(crate) name: Name,
    /// Chosen once: of its bridge and its IPv6 network.
    pub(crate) number: u16,
    pub(crate) subnet4: (Ipv4Addr, u8),
    pub(crate) subnet6: (Ipv6Addr, u8),
    #[serde(default)]
    pub(crate) internal: bool,
    /// 0: as its uplink.
    #[serde(default)]
    pub(crate) mtu: u32,
}

/// What is asked for of a new network.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) subnet4: Option<(Ipv4Addr, u8)>,
    pub(crate) subnet6: Option<(Ipv6Addr, u8)>,
    pub(crate) internal: bool,
    pub(crate) mtu: u32,
}

/// What is on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// The random part of the node's unique local IPv6 networks (RFC 4193).
    global_id: [u8; 5],
    networks: Vec<Network>,
}

/// Why something about networks was not done. Its text is the only one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no network is named {0}; use byre, the node's own")]
    Unknown(Name),
    #[error("network {0} exists already; choose another name, or remove it first")]
    Exists(Name),
    #[error("the node has {NETWORKS} networks, its most; remove some")]
    TooMany,
    #[error(
        "subnet {0} is none: give a network of /8 to /29 (IPv4), or /48 to /112 (IPv6), without bits behind its prefix"
    )]
    Subnet(String),
    #[error("subnet {subnet} overlaps that of network {other}; choose another")]
    Overlaps { subnet: String, other: Name },
    #[error("no network of 256 addresses is free below 10.89.0.0/16; give a subnet")]
    NoSubnet,
    #[error("an MTU of {0} is not 1280 to 65535")]
    Mtu(u32),
    #[error("network {0} has no free address; remove something from it, or make a larger one")]
    Full(Name),
    #[error("address {address} is not free in network {network}; leave it out, or choose another")]
    Taken { address: IpAddr, network: Name },
    #[error("address {address} does not belong to network {network}; choose one of it")]
    Foreign { address: IpAddr, network: Name },
}

impl Network {
    /// Its interface on the node.
    pub(crate) fn bridge(&self) -> String {
        format!("byre{}", self.number)
    }

    /// The addresses of this offset in it.
    pub(crate) fn at(&self, offset: u32) -> (Ipv4Addr, Ipv6Addr) {
        let four = u32::from(self.subnet4.0).wrapping_add(offset);
        let six = u128::from(self.subnet6.0).wrapping_add(u128::from(offset));
        (Ipv4Addr::from(four), Ipv6Addr::from(six))
    }

    /// The node's own addresses in it.
    pub(crate) fn gateway(&self) -> (Ipv4Addr, Ipv6Addr) {
        self.at(1)
    }

    /// How many addresses it has for pods: neither the network's, nor the node's, nor the broadcast one.
    fn offsets(&self) -> std::ops::RangeInclusive<u32> {
        let size = 1_u32.checked_shl(32_u32.saturating_sub(u32::from(self.subnet4.1))).unwrap_or(u32::MAX);
        2..=size.saturating_sub(2)
    }

    /// Which offset an address has; `None` if it does not belong to it.
    pub(crate) fn offset_of(&self, address: IpAddr) -> Option<u32> {
        let offset = match address {
            IpAddr::V4(address) => u32::from(address).checked_sub(u32::from(self.subnet4.0))?,
            IpAddr::V6(address) => u32::try_from(u128::from(address).checked_sub(u128::from(self.subnet6.0))?).ok()?,
        };
        self.offsets().contains(&offset).then_some(offset)
    }
}

fn overlaps4(one: (Ipv4Addr, u8), other: (Ipv4Addr, u8)) -> bool {
    let shift = 32_u32.saturating_sub(u32::from(one.1.min(other.1)));
    u32::from(one.0).checked_shr(shift).unwrap_or(0) == u32::from(other.0).checked_shr(shift).unwrap_or(0)
}

fn overlaps6(one: (Ipv6Addr, u8), other: (Ipv6Addr, u8)) -> bool {
    let shift = 128_u32.saturating_sub(u32::from(one.1.min(other.1)));
    u128::from(one.0).checked_shr(shift).unwrap_or(0) == u128::from(other.0).checked_shr(shift).unwrap_or(0)
}

fn check4((address, prefix): (Ipv4Addr, u8)) -> Result<(), Refusal> {
    let behind = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let is_usable = !(address.is_loopback() || address.is_multicast() || address.is_unspecified());
    if (8..=29).contains(&prefix) && u32::from(address) & behind == 0 && is_usable {
        Ok(())
    } else {
        Err(Refusal::Subnet(format!("{address}/{prefix}")))
    }
}

fn check6((address, prefix): (Ipv6Addr, u8)) -> Result<(), Refusal> {
    let behind = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let is_usable = !(address.is_loopback() || address.is_multicast() || address.is_unspecified());
    // 32 bits of offset have to fit behind it, more or less: a /112 has as many addresses as a /16 of IPv4.
    if (48..=112).contains(&prefix) && u128::from(address) & behind == 0 && is_usable {
        Ok(())
    } else {
        Err(Refusal::Subnet(format!("{address}/{prefix}")))
    }
}

/// Everything that is known of networks.
#[derive(Debug)]
pub(crate) struct Networks {
    path: String,
    stored: Stored,
    /// By network: which offset whom belongs to.
    leases: BTreeMap<Name, BTreeMap<u32, WorkloadId>>,
    /// By network: where the search for a free one goes on, so that an address is not given again at once.
    next: BTreeMap<Name, u32>,
}

impl Networks {
    /// Reads the file; a node without one has its own network alone.
    pub(crate) fn load(path: &str, random: [u8; 5]) -> std::io::Result<Self> {
        let stored = match std::fs::metadata(path).map(|metadata| metadata.len()) {
            Ok(length) if length > FILE_BYTES => return Err(std::io::ErrorKind::FileTooLarge.into()),
            Ok(_) => serde_json::from_slice(&std::fs::read(path)?).map_err(std::io::Error::other)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Stored { global_id: random, networks: Vec::new() }
            }
            Err(error) => return Err(error),
        };
        let mut this = Self { path: path.to_owned(), stored, leases: BTreeMap::new(), next: BTreeMap::new() };
        if this.stored.networks.is_empty() {
            let name = Name::try_from(OWN).map_err(std::io::Error::other)?;
            let asked = Asked { subnet4: Some(OWN_SUBNET), ..Asked::default() };
            this.create(name, &asked).map_err(std::io::Error::other)?;
            this.store()?;
        }
        Ok(this)
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn store(&self) -> std::io::Result<()> {
        use std::io::Write as _;
        let new = format!("{}.new", self.path);
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(&self.stored).map_err(std::io::Error::other)?)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        let directory = std::path::Path::new(&self.path).parent().unwrap_or(std::path::Path::new("/"));
        std::fs::File::open(directory)?.sync_all()
    }

    pub(crate) fn all(&self) -> &[Network] {
        &self.stored.networks
    }

    pub(crate) fn find(&self, name: &Name) -> Result<&Network, Refusal> {
        self.all().iter().find(|network| network.name == *name).ok_or_else(|| Refusal::Unknown(name.clone()))
    }

    /// Makes a network; the caller stores it.
    pub(crate) fn create(&mut self, name: Name, asked: &Asked) -> Result<&Network, Refusal> {
        if self.find(&name).is_ok() {
            return Err(Refusal::Exists(name));
        }
        if self.all().len() >= NETWORKS {
            return Err(Refusal::TooMany);
        }
        if asked.mtu != 0 && !MTU.contains(&asked.mtu) {
            return Err(Refusal::Mtu(asked.mtu));
        }
        let used: BTreeSet<u16> = self.all().iter().map(|network| network.number).collect();
        let number = (0..u16::MAX).find(|number| !used.contains(number)).ok_or(Refusal::TooMany)?;
        let subnet4 = match asked.subnet4 {
            Some(subnet) => subnet,
            None => self.free_subnet()?,
        };
        let subnet6 = asked.subnet6.unwrap_or_else(|| self.unique_local(number));
        check4(subnet4)?;
        check6(subnet6)?;
        for other in self.all() {
            if overlaps4(subnet4, other.subnet4) {
                let subnet = format!("{}/{}", subnet4.0, subnet4.1);
                return Err(Refusal::Overlaps { subnet, other: other.name.clone() });
            }
            if overlaps6(subnet6, other.subnet6) {
                let subnet = format!("{}/{}", subnet6.0, subnet6.1);
                return Err(Refusal::Overlaps { subnet, other: other.name.clone() });
            }
        }
        let network =
            Network { name: name.clone(), number, subnet4, subnet6, internal: asked.internal, mtu: asked.mtu };
        self.stored.networks.push(network);
        self.find(&name)
    }

    fn free_subnet(&self) -> Result<(Ipv4Addr, u8), Refusal> {
        let [first, second] = FREE;
        (0..=u8::MAX)
            .map(|third| (Ipv4Addr::new(first, second, third, 0), 24))
            .find(|subnet| !self.all().iter().any(|other| overlaps4(*subnet, other.subnet4)))
            .ok_or(Refusal::NoSubnet)
    }

    fn unique_local(&self, number: u16) -> (Ipv6Addr, u8) {
        let [a, b, c, d, e] = self.stored.global_id;
        let [high, low] = number.to_be_bytes();
        let octets = [0xfd, a, b, c, d, e, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
        (Ipv6Addr::from(octets), 64)
    }

    /// Gives a pod an address in a network: the one that it has, the one that it wants, or the next free one.
    pub(crate) fn lease(
        &mut self,
        id: WorkloadId,
        name: &Name,
        wanted: Option<IpAddr>,
    ) -> Result<(Network, u32), Refusal> {
        let network = self.find(name)?.clone();
        let leases = self.leases.entry(name.clone()).or_default();
        if let Some((offset, _)) = leases.iter().find(|(_, owner)| **owner == id) {
            return Ok((network, *offset));
        }
        let offset = match wanted {
            Some(address) => {
                let foreign = || Refusal::Foreign { address, network: name.clone() };
                let offset = network.offset_of(address).ok_or_else(foreign)?;
                if leases.contains_key(&offset) {
                    return Err(Refusal::Taken { address, network: name.clone() });
                }
                offset
            }
            None => {
                let from = self.next.get(name).copied().unwrap_or(2);
                let (first, last) = (*network.offsets().start(), *network.offsets().end());
                let free = (from..=last).chain(first..from).find(|offset| !leases.contains_key(offset));
                free.ok_or_else(|| Refusal::Full(name.clone()))?
            }
        };
        leases.insert(offset, id);
        let next = if offset >= *network.offsets().end() { 2 } else { offset + 1 };
        self.next.insert(name.clone(), next);
        Ok((network, offset))
    }

    /// Takes back everything that a pod has.
    pub(crate) fn release(&mut self, id: WorkloadId) {
        for leases in self.leases.values_mut() {
            leases.retain(|_, owner| *owner != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::try_from(text).unwrap()
    }

    fn networks() -> (tempfile::TempDir, Networks) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("networks.json");
        let networks = Networks::load(path.to_str().unwrap(), [1, 2, 3, 4, 5]).unwrap();
        (place, networks)
    }

    #[test]
    fn the_nodes_own_network_is_there_and_stays_what_it_was() {
        let (place, networks) = networks();
        let own = networks.find(&name(OWN)).unwrap().clone();
        assert_eq!((own.bridge().as_str(), own.gateway().0), ("byre0", Ipv4Addr::new(10, 88, 0, 1)));
        assert_eq!(own.subnet6.0.to_string(), "fd01:203:405::");
        let path = place.path().join("networks.json");
        let again = Networks::load(path.to_str().unwrap(), [9; 5]).unwrap();
        assert_eq!(*again.find(&name(OWN)).unwrap(), own, "another random number is of no use");
    }

    #[test]
    fn an_address_is_given_once_and_not_again_at_once() {
        let (_place, mut networks) = networks();
        networks
            .create(name("small"), &Asked { subnet4: Some((Ipv4Addr::new(10, 9, 0, 0), 29)), ..Asked::default() })
            .unwrap();
        let mut given = BTreeSet::new();
        for id in 0..5 {
            assert!(given.insert(networks.lease(WorkloadId(id), &name("small"), None).unwrap().1));
        }
        assert_eq!(given, (2..=6).collect());
        assert_eq!(networks.lease(WorkloadId(9), &name("small"), None), Err(Refusal::Full(name("small"))));
        networks.release(WorkloadId(0));
        networks.release(WorkloadId(4));
        assert_eq!(
            networks.lease(WorkloadId(9), &name("small"), None).unwrap().1,
            2,
            "the one that was free for longest"
        );
        assert_eq!(networks.lease(WorkloadId(9), &name("small"), None).unwrap().1, 2, "who has one keeps it");
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_if_it_is_free_and_of_the_network() {
        let (_place, mut networks) = networks();
        let wanted = "10.88.0.77".parse().unwrap();
        assert_eq!(networks.lease(WorkloadId(1), &name(OWN), Some(wanted)).unwrap().1, 77);
        let refused = networks.lease(WorkloadId(2), &name(OWN), Some(wanted));
        assert!(matches!(refused, Err(Refusal::Taken { .. })), "{refused:?}");
        for foreign in ["10.89.0.1", "10.88.0.1", "10.88.0.0", "10.88.255.255", "fd00::1"] {
            let refused = networks.lease(WorkloadId(2), &name(OWN), Some(foreign.parse().unwrap()));
            assert!(matches!(refused, Err(Refusal::Foreign { .. })), "{foreign}: {refused:?}");
        }
    }

    #[test]
    fn what_is_no_subnet_or_somebody_elses_is_refused() {
        let (_place, mut networks) = networks();
        let asked = |subnet: (Ipv4Addr, u8)| Asked { subnet4: Some(subnet), ..Asked::default() };
        for bad in [(Ipv4Addr::new(10, 1, 0, 1), 24), (Ipv4Addr::new(10, 1, 0, 0), 30), (Ipv4Addr::LOCALHOST, 8)] {
            assert!(matches!(networks.create(name("x"), &asked(bad)), Err(Refusal::Subnet(_))), "{bad:?}");
        }
        let inside = networks.create(name("x"), &asked((Ipv4Addr::new(10, 88, 4, 0), 24)));
        assert!(matches!(inside, Err(Refusal::Overlaps { .. })), "{inside:?}");
        let free = networks.create(name("x"), &Asked::default()).unwrap().clone();
        assert_eq!((free.subnet4.0, free.bridge()), (Ipv4Addr::new(10, 89, 0, 0), "byre1".to_owned()));
    }
}

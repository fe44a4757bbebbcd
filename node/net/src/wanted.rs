//! What the configuration wants of which link: pure, so that it can be tested without a link.

use std::io;
use std::path::Path;

use byre_config::{Link as LinkConfiguration, Network};

use crate::dhcp::wire::MacAddress;
use crate::netlink::Link;
use crate::state::read_bounded;

/// The longest uevent file of sysfs is one page.
const UEVENT_BYTES: u64 = 4096;
/// As the configuration's own limit, with room for JSON.
const NETWORK_BYTES: u64 = 256 * 1024;

/// Reads `net.json`; the default (DHCPv4 on hardware Ethernet) if there is none.
pub(crate) fn read(path: &Path) -> io::Result<Network> {
    match read_bounded(path, NETWORK_BYTES) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Network::default()),
        Err(error) => Err(error),
    }
}

/// What is wanted of a link; `None` leaves it alone.
pub(crate) fn of_link<'a>(network: &'a Network, link: &Link, driver: Option<&str>) -> Option<Wanted<'a>> {
    if link.loopback {
        return None;
    }
    match &network.links {
        None => link.hardware_ethernet.then_some(Wanted::Default),
        Some(entries) => entries.iter().find(|entry| matches(entry, link, driver)).map(Wanted::Entry),
    }
}

/// Why a link is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// By the default for all hardware.
    Default,
    /// By this entry.
    Entry(&'a LinkConfiguration),
}

impl Wanted<'_> {
    /// The entry, or what one with nothing but DHCPv4 would say.
    pub(crate) fn into_settings(self) -> Settings {
        match self {
            Wanted::Default => Settings { dhcp4: true, ..Settings::default() },
            Wanted::Entry(entry) => Settings {
                dhcp4: entry.dhcp4,
                addresses: entry.addresses.clone(),
                gateways: entry.gateway.map(Into::into).into_iter().chain(entry.gateway6.map(Into::into)).collect(),
                dns: entry.dns.clone(),
                search: entry.search.iter().map(|domain| domain.as_str().to_owned()).collect(),
                mtu: entry.mtu,
            },
        }
    }
}

/// What is done with one link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) dhcp4: bool,
    pub(crate) addresses: Vec<byre_config::InterfaceAddress>,
    pub(crate) gateways: Vec<std::net::IpAddr>,
    pub(crate) dns: Vec<std::net::IpAddr>,
    pub(crate) search: Vec<String>,
    pub(crate) mtu: Option<u32>,
}

/// Whether anything is to get an address at all; if not, there is nothing to wait for.
pub(crate) fn anything(network: &Network) -> bool {
    match &network.links {
        None => true,
        Some(entries) => entries.iter().any(|entry| entry.dhcp4 || !entry.addresses.is_empty()),
    }
}

fn matches(entry: &LinkConfiguration, link: &Link, driver: Option<&str>) -> bool {
    let name = entry.name.as_ref().is_none_or(|name| name.as_str() == link.name);
    let mac = entry.mac.as_ref().is_none_or(|mac| link.mac == Some(mac.bytes()));
    let driver = entry.driver.as_ref().is_none_or(|wanted| driver == Some(wanted.as_str()));
    name && mac && driver
}

/// The kernel driver of a link, as sysfs names it.
pub(crate) fn driver(sys: &Path, name: &str) -> Option<String> {
    let path = sys.join("class/net").join(name).join("device/uevent");
    let text = String::from_utf8(read_bounded(&path, UEVENT_BYTES).ok()?).ok()?;
    text.lines().find_map(|line| line.strip_prefix("DRIVER=")).map(str::to_owned)
}

/// A hardware address as people write it.
pub(crate) fn mac_text(mac: Option<MacAddress>) -> String {
    mac.unwrap_or_default().map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, hardware: bool) -> Link {
        Link {
            index: 2,
            name: name.into(),
            mac: Some([0x52, 0x54, 0, 0, 0, 1]),
            mtu: 1500,
            up: true,
            carrier: true,
            loopback: name == "lo",
            hardware_ethernet: hardware,
        }
    }

    fn network(toml: &str) -> Network {
        byre_config::parse(format!("version = 1\n{toml}").as_bytes(), "test").expect("valid").network
    }

    #[test]
    fn by_default_hardware_gets_dhcp_and_nothing_else_is_touched() {
        let network = network("");
        assert_eq!(of_link(&network, &link("eth0", true), None), Some(Wanted::Default));
        assert_eq!(of_link(&network, &link("veth0", false), None), None);
        assert_eq!(of_link(&network, &link("lo", false), None), None);
        assert!(anything(&network));
    }

    #[test]
    fn all_that_an_entry_names_must_match_and_the_first_that_does_counts() {
        let network = network(
            "[[network.links]]\nname = \"eth0\"\ndriver = \"e1000\"\n[[network.links]]\nmac = \"52:54:00:00:00:01\"\nmtu = 1400\n",
        );
        let settings = |driver| of_link(&network, &link("eth0", true), driver).expect("an entry").into_settings();
        assert_eq!(settings(Some("e1000")).mtu, None);
        assert_eq!(settings(Some("virtio_net")).mtu, Some(1400));
    }

    #[test]
    fn an_empty_list_touches_nothing_and_waits_for_nothing() {
        let network = network("[network]\nlinks = []\n");
        assert_eq!(of_link(&network, &link("eth0", true), None), None);
        assert!(!anything(&network));
    }
}

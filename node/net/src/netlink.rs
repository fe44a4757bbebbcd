//! The kernel's links, addresses and routes, by rtnetlink: what is there, and the few changes this service makes.
//!
//! Every change can be made twice: an address or a route that is there already is replaced by itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use byre_config::InterfaceAddress;
use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, CacheInfo};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec, RouteMessageBuilder};

use crate::dhcp::wire::{MacAddress, Route};

/// Routes of link N have metric 1024 + N: two default routes never fight for one place, and the first link is preferred.
const ROUTE_METRIC: u32 = 1024;
/// Links whose index is larger share a metric; machines have fewer.
const ROUTE_METRIC_SPAN: u32 = 1_000_000;
/// Who made a route, as ip(8) shows it: `dhcp`.
const PROTOCOL_DHCP: u8 = 16;
/// Addresses without an end (RFC 4861's infinity, which the kernel uses for both families).
const FOREVER: u32 = u32::MAX;

/// What the kernel says of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<MacAddress>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) carrier: bool,
    pub(crate) loopback: bool,
    /// An Ethernet link that is hardware or looks like it to this machine: neither made by software nor part of another link.
    pub(crate) hardware_ethernet: bool,
}

impl Link {
    pub(crate) fn from_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut this = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            loopback: flags.contains(LinkFlags::Loopback),
            hardware_ethernet: message.header.link_layer_type == LinkLayerType::Ether
                && !flags.contains(LinkFlags::Port),
        };
        for attribute in &message.attributes {
            #[expect(
                clippy::wildcard_enum_match_arm,
                reason = "the kernel adds attributes; the rest does not matter here"
            )]
            match attribute {
                LinkAttribute::IfName(name) => this.name.clone_from(name),
                LinkAttribute::Address(bytes) => this.mac = MacAddress::try_from(bytes.as_slice()).ok(),
                LinkAttribute::Mtu(mtu) => this.mtu = *mtu,
                // Only links that software makes have a kind.
                LinkAttribute::LinkInfo(_) => this.hardware_ethernet = false,
                _ => {}
            }
        }
        this
    }
}

/// A change that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub(crate) struct Refused {
    what: String,
    source: rtnetlink::Error,
}

fn refused(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Refused {
    let what = what.into();
    move |source| Refused { what, source }
}

/// Changes to the kernel's network.
#[derive(Clone)]
pub(crate) struct Kernel {
    handle: Handle,
}

impl Kernel {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// All links.
    pub(crate) async fn links(&self) -> Result<Vec<Link>, Refused> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(refused("list the links"))?;
        Ok(messages.iter().map(Link::from_message).collect())
    }

    pub(crate) async fn set_up(&self, index: u32) -> Result<(), Refused> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await.map_err(refused("bring the link up"))
    }

    pub(crate) async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Refused> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle.link().set(message).execute().await.map_err(refused(format!("set the MTU to {mtu}")))
    }

    /// Gives a link an address, for so many seconds if it is leased: the kernel takes it away then even if this service does not live.
    pub(crate) async fn add_address(
        &self,
        index: u32,
        address: InterfaceAddress,
        seconds: Option<u32>,
    ) -> Result<(), Refused> {
        let mut request = self.handle.address().add(index, address.address, address.prefix).replace();
        let valid = seconds.unwrap_or(FOREVER);
        let mut lifetime = CacheInfo::default();
        lifetime.ifa_valid = valid;
        lifetime.ifa_preferred = valid;
        request.message_mut().attributes.push(AddressAttribute::CacheInfo(lifetime));
        request.execute().await.map_err(refused(format!("add the address {address}")))
    }

    /// Takes an address away; its routes go with it.
    pub(crate) async fn remove_address(&self, index: u32, address: InterfaceAddress) -> Result<(), Refused> {
        let message = match address.address {
            IpAddr::V4(own) => {
                AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(own, address.prefix).build()
            }
            IpAddr::V6(own) => {
                AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(own, address.prefix).build()
            }
        };
        self.handle.address().del(message).execute().await.map_err(refused(format!("remove the address {address}")))
    }

    /// Adds a route of a lease, from the lease's address.
    pub(crate) async fn add_route(&self, index: u32, own: InterfaceAddress, route: &Route) -> Result<(), Refused> {
        let what = format!("add the route {}/{}", route.destination, route.prefix);
        let message = leased_route(index, own, route);
        self.handle.route().add(message).replace().execute().await.map_err(refused(what))
    }

    /// Takes a route of a lease away.
    pub(crate) async fn remove_route(&self, index: u32, own: InterfaceAddress, route: &Route) -> Result<(), Refused> {
        let what = format!("remove the route {}/{}", route.destination, route.prefix);
        self.handle.route().del(leased_route(index, own, route)).execute().await.map_err(refused(what))
    }

    /// Adds a fixed default route. A router outside the link's networks is reached directly.
    pub(crate) async fn add_gateway(&self, index: u32, gateway: IpAddr, on_link: bool) -> Result<(), Refused> {
        let message = match gateway {
            IpAddr::V4(gateway) => {
                let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                    .output_interface(index)
                    .gateway(gateway)
                    .priority(metric(index));
                if on_link { builder.onlink().build() } else { builder.build() }
            }
            IpAddr::V6(gateway) => {
                let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                    .output_interface(index)
                    .gateway(gateway)
                    .priority(metric(index));
                if on_link { builder.onlink().build() } else { builder.build() }
            }
        };
        let what = format!("add the default route by {gateway}");
        self.handle.route().add(message).replace().execute().await.map_err(refused(what))
    }
}

fn metric(index: u32) -> u32 {
    ROUTE_METRIC + index.min(ROUTE_METRIC_SPAN)
}

fn leased_route(index: u32, own: InterfaceAddress, route: &Route) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(index)
        .priority(metric(index))
        .protocol(RouteProtocol::from(PROTOCOL_DHCP));
    if route.prefix > 0 {
        builder = builder.destination_prefix(route.destination, route.prefix);
    }
    if let IpAddr::V4(own) = own.address {
        builder = builder.pref_source(own);
    }
    match route.gateway {
        Some(gateway) if own.contains(IpAddr::V4(gateway)) => builder.gateway(gateway).build(),
        // The kernel refuses a router that no connected network holds, unless told that it is on the link.
        Some(gateway) => builder.gateway(gateway).onlink().build(),
        None => builder.scope(netlink_packet_route::route::RouteScope::Link).build(),
    }
}

//! What the command line says of a container's network: networks, published ports, names and resolvers.

use std::net::IpAddr;

use byre_api::proto::{ContainerSpec, NetworkAttachment, NetworkMode, PublishedPort, Resolver, Transport};
use clap::Args;

use crate::error::Failure;
use crate::parse;

/// Ports that one range may have: as many as a container may publish.
const RANGE: u16 = 256;

#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// none (only a loopback device), host (the node's), or a network of the node; more than one network may be given. byre with -p
    #[arg(long, visible_alias = "network", value_name = "NETWORK")]
    pub(crate) net: Vec<String>,
    /// Publish a port of the container on the node: `[ADDRESS:][PORT:]PORT[/tcp|udp|sctp]`, also ranges (8000-8003:80-83)
    #[arg(long, short, value_name = "PORT:PORT", value_parser = ports)]
    pub(crate) publish: Vec<Ports>,
    /// The address that it wants in its first network
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip: Option<IpAddr>,
    /// A further name for others in its networks
    #[arg(long, value_name = "NAME")]
    pub(crate) network_alias: Vec<String>,
    /// A server that it asks for names, instead of the node's
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns: Vec<IpAddr>,
    /// A domain in which it searches for names
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search: Vec<String>,
    /// An option of its resolver (ndots:2)
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub(crate) dns_option: Vec<String>,
    /// A line of its /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub(crate) add_host: Vec<String>,
    /// Bits per second towards it (10M)
    #[arg(long, value_name = "BITS", value_parser = parse::size)]
    pub(crate) bandwidth_in: Option<u64>,
    /// Bits per second from it (10M)
    #[arg(long, value_name = "BITS", value_parser = parse::size)]
    pub(crate) bandwidth_out: Option<u64>,
    /// The pod whose namespaces it is in
    #[arg(long, value_name = "POD", conflicts_with_all = ["net", "publish"])]
    pub(crate) pod: Option<String>,
}

/// One `--publish`: one port, or a range of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ports(Vec<PublishedPort>);

fn ports(text: &str) -> Result<Ports, String> {
    let wrong = || format!("{text:?} is not of the form [ADDRESS:][PORT:]PORT[/tcp|udp|sctp]");
    let (rest, transport) = match text.rsplit_once('/') {
        None => (text, Transport::Tcp),
        Some((rest, "tcp")) => (rest, Transport::Tcp),
        Some((rest, "udp")) => (rest, Transport::Udp),
        Some((rest, "sctp")) => (rest, Transport::Sctp),
        Some(_) => return Err(wrong()),
    };
    let (before, inside) = rest.rsplit_once(':').map_or((None, rest), |(before, inside)| (Some(before), inside));
    let (address, outside) = match before {
        None => ("", inside),
        Some(before) => before.rsplit_once(':').unwrap_or(("", before)),
    };
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if !address.is_empty() && address.parse::<IpAddr>().is_err() {
        return Err(wrong());
    }
    let (first_inside, count) = range(inside).ok_or_else(wrong)?;
    let (first_outside, outside_count) = range(outside).ok_or_else(wrong)?;
    if count != outside_count || count > RANGE {
        return Err(format!("{text:?}: both ranges have the same length, at most {RANGE}"));
    }
    let port = |number: u16| PublishedPort {
        transport: transport.into(),
        host_address: address.to_owned(),
        host_port: u32::from(first_outside) + u32::from(number),
        container_port: u32::from(first_inside) + u32::from(number),
    };
    Ok(Ports((0..count).map(port).collect()))
}

/// The first port, and how many.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    if first == 0 { None } else { Some((first, last.checked_sub(first)?.checked_add(1)?)) }
}

impl NetworkArgs {
    /// Puts all of it into a specification.
    pub(crate) fn apply(&self, spec: &mut ContainerSpec) -> Result<(), Failure> {
        let special = self.net.iter().find(|name| matches!(name.as_str(), "none" | "host"));
        if let (Some(special), true) = (special, self.net.len() > 1) {
            return Err(Failure::usage(format!("--network {special} is not one of several"), "leave the others out"));
        }
        let mode = match (special.map(String::as_str), &self.pod) {
            (_, Some(_)) => NetworkMode::Unspecified,
            (Some("host"), None) => NetworkMode::Host,
            (Some(_), None) => NetworkMode::None,
            (None, None) if self.net.is_empty() && self.publish.is_empty() => NetworkMode::None,
            (None, None) => NetworkMode::Bridge,
        };
        if mode == NetworkMode::Bridge {
            let named = if self.net.is_empty() { vec![String::new()] } else { self.net.clone() };
            spec.networks = named
                .into_iter()
                .enumerate()
                .map(|(number, network)| NetworkAttachment {
                    network,
                    aliases: self.network_alias.clone(),
                    address: self.ip.filter(|_| number == 0).map(|ip| ip.to_string()).unwrap_or_default(),
                })
                .collect();
        } else if self.ip.is_some() || !self.network_alias.is_empty() || !self.publish.is_empty() {
            return Err(Failure::usage(
                "--ip, --network-alias and --publish need a network",
                "name one with --network",
            ));
        }
        spec.network = mode.into();
        spec.ports = self.publish.iter().flat_map(|ports| ports.0.iter().cloned()).collect();
        if !(self.dns.is_empty() && self.dns_search.is_empty() && self.dns_option.is_empty()) {
            spec.resolver = Some(Resolver {
                servers: self.dns.iter().map(IpAddr::to_string).collect(),
                search: self.dns_search.clone(),
                options: self.dns_option.clone(),
            });
        }
        spec.extra_hosts.clone_from(&self.add_host);
        spec.ingress_bits_per_second = self.bandwidth_in.unwrap_or(0);
        spec.egress_bits_per_second = self.bandwidth_out.unwrap_or(0);
        spec.pod = self.pod.clone().unwrap_or_default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(text: &str) -> Vec<(String, u32, u32, Transport)> {
        let ports = ports(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        ports.0.iter().map(|p| (p.host_address.clone(), p.host_port, p.container_port, p.transport())).collect()
    }

    #[test]
    fn a_published_port_is_written_as_in_docker() {
        assert_eq!(published("8080:80"), [(String::new(), 8080, 80, Transport::Tcp)]);
        assert_eq!(published("53/udp"), [(String::new(), 53, 53, Transport::Udp)]);
        assert_eq!(published("127.0.0.1:8080:80"), [("127.0.0.1".to_owned(), 8080, 80, Transport::Tcp)]);
        assert_eq!(published("[::1]:8080:80"), [("::1".to_owned(), 8080, 80, Transport::Tcp)]);
        assert_eq!(published("8000-8001:80-81").len(), 2);
        for bad in
            ["", "0", "80:", ":80", "x:80", "8080:80/icmp", "8000-8002:80-81", "1-60000", "300.1.1.1:1:1", "70000"]
        {
            assert!(ports(bad).is_err(), "{bad:?} was taken");
        }
    }
}

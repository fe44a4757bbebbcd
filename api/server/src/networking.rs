//! What a specification says of the network: networks, published ports, names and resolvers; and a pod's addresses in words. Pure.

use std::net::IpAddr;

use byre_api::proto::{self, ContainerSpec};
use byre_plan::Name;
use byre_protocol::pod::{NetworkAttachment, PodAddress, PodNetwork, PublishedPort, Transport};
use tonic::Status;

use crate::spec;

/// The node's own network.
pub(crate) const DEFAULT_NETWORK: &str = "byre";
/// Servers, searched domains, options and further hosts that one container may name: resolvers read three servers and six domains.
const ENTRIES: usize = 32;

fn invalid(text: String) -> Status {
    Status::invalid_argument(text)
}

fn name(text: &str, what: &str) -> Result<Name, Status> {
    Name::try_from(text).map_err(|error| invalid(format!("{what}: {error}")))
}

/// The pod that the container is to be in.
///
/// # Errors
/// `INVALID_ARGUMENT` if its name is none, or if something is asked for that the pod has instead.
pub(crate) fn pod(spec: &ContainerSpec) -> Result<Option<Name>, Status> {
    if spec.pod.is_empty() {
        return Ok(None);
    }
    let pod = name(&spec.pod, "pod")?;
    if spec.network != i32::from(proto::NetworkMode::Unspecified) || !spec.hostname.is_empty() {
        return Err(invalid(format!(
            "a container in pod {pod} has the pod's network and host name: leave its own out"
        )));
    }
    Ok(Some(pod))
}

/// What the container asks of the network, if it asks for one.
///
/// # Errors
/// `INVALID_ARGUMENT` that names the field and the remedy.
pub(crate) fn network(spec: &ContainerSpec, container: &Name) -> Result<Option<PodNetwork>, Status> {
    if spec::network(spec)? != proto::NetworkMode::Bridge {
        let asks = !spec.networks.is_empty() || !spec.ports.is_empty();
        let limits = spec.ingress_bits_per_second != 0 || spec.egress_bits_per_second != 0;
        if asks || limits {
            return Err(invalid("networks, published ports and bandwidth are for network bridge: ask for that".into()));
        }
        return Ok(None);
    }
    let mut networks = Vec::new();
    for asked in &spec.networks {
        let network = if asked.network.is_empty() { DEFAULT_NETWORK } else { &asked.network };
        let aliases = asked.aliases.iter().map(|alias| name(alias, "alias")).collect::<Result<_, _>>()?;
        let address = if asked.address.is_empty() { None } else { Some(address_of(&asked.address, "address")?) };
        networks.push(NetworkAttachment { network: name(network, "network")?, aliases, address });
    }
    if networks.is_empty() {
        let network = name(DEFAULT_NETWORK, "network")?;
        networks.push(NetworkAttachment { network, aliases: Vec::new(), address: None });
    }
    Ok(Some(PodNetwork {
        networks,
        ports: spec.ports.iter().map(port).collect::<Result<_, _>>()?,
        ingress_bits_per_second: spec.ingress_bits_per_second,
        egress_bits_per_second: spec.egress_bits_per_second,
        host_name: Some(container.clone()),
    }))
}

fn address_of(text: &str, what: &str) -> Result<IpAddr, Status> {
    text.parse().map_err(|_| invalid(format!("{what} {text:?} is no IP address: write it as 10.88.0.7 or fd00::7")))
}

fn port(asked: &proto::PublishedPort) -> Result<PublishedPort, Status> {
    let number = |number: u32| {
        u16::try_from(number).map_err(|_| invalid(format!("port {number} does not exist: use 1 to 65535")))
    };
    let transport = match proto::Transport::try_from(asked.transport) {
        Ok(proto::Transport::Unspecified | proto::Transport::Tcp) => Transport::Tcp,
        Ok(proto::Transport::Udp) => Transport::Udp,
        Ok(proto::Transport::Sctp) => Transport::Sctp,
        Err(_) => return Err(invalid(format!("transport {} is not known: use tcp, udp or sctp", asked.transport))),
    };
    let pod_port = number(asked.container_port)?;
    let host_port = if asked.host_port == 0 { pod_port } else { number(asked.host_port)? };
    let any = asked.host_address.is_empty();
    let host_address = if any { None } else { Some(address_of(&asked.host_address, "host_address")?) };
    Ok(PublishedPort { transport, host_address, host_port, pod_port })
}

/// The container's resolv.conf: what it asks for, else what its network has.
///
/// # Errors
/// `INVALID_ARGUMENT` if an entry is malformed.
pub(crate) fn resolv_conf(spec: &ContainerSpec, networks: &str) -> Result<String, Status> {
    let networks = match (spec::network(spec)?, spec.pod.is_empty()) {
        (proto::NetworkMode::Host | proto::NetworkMode::Bridge, _) | (_, false) => networks,
        // Who has no network asks nobody.
        (proto::NetworkMode::Unspecified | proto::NetworkMode::None, true) => "",
    };
    let Some(resolver) = &spec.resolver else { return Ok(networks.to_owned()) };
    let lists = [&resolver.servers, &resolver.search, &resolver.options];
    if lists.iter().any(|list| list.len() > ENTRIES) {
        return Err(invalid(format!("resolver: at most {ENTRIES} servers, domains and options each")));
    }
    let is_word = |word: &String| {
        (1..=255).contains(&word.len())
            && word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b';')
    };
    if let Some(bad) = resolver.search.iter().chain(&resolver.options).find(|word| !is_word(word)) {
        return Err(invalid(format!("resolver: {bad:?} is no domain and no option: use one word")));
    }
    let servers = resolver.servers.iter().map(|server| address_of(server, "resolver: server"));
    let servers = servers.collect::<Result<Vec<IpAddr>, _>>()?;
    // What is not asked for stays as the network has it.
    let kept = |keyword: &str| -> Vec<String> {
        let lines = networks.lines().filter(|line| line.split_whitespace().next() == Some(keyword));
        lines.map(str::to_owned).collect()
    };
    let mut lines = if servers.is_empty() { kept("nameserver") } else { Vec::new() };
    lines.extend(servers.iter().map(|server| format!("nameserver {server}")));
    if resolver.search.is_empty() {
        lines.extend(kept("search"));
    } else {
        lines.push(format!("search {}", resolver.search.join(" ")));
    }
    if !resolver.options.is_empty() {
        lines.push(format!("options {}", resolver.options.join(" ")));
    }
    let text = lines.iter().map(|line| format!("{line}\n")).collect();
    Ok(text)
}

/// Further lines of the container's /etc/hosts.
///
/// # Errors
/// `INVALID_ARGUMENT` if an entry is not of the form `name:address`.
pub(crate) fn extra_hosts(spec: &ContainerSpec) -> Result<String, Status> {
    if spec.extra_hosts.len() > ENTRIES {
        return Err(invalid(format!("extra_hosts: at most {ENTRIES}")));
    }
    let mut lines = Vec::new();
    for entry in &spec.extra_hosts {
        let parts = entry.split_once(':').and_then(|(name, address)| Some((name, address.parse::<IpAddr>().ok()?)));
        let is_name = |name: &str| {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            (1..=253).contains(&name.len()) && name.bytes().all(good)
        };
        let Some((name, address)) = parts.filter(|(name, _)| is_name(name)) else {
            return Err(invalid(format!("extra_hosts: {entry:?} is not of the form name:address")));
        };
        lines.push(format!("{address}\t{name}\n"));
    }
    Ok(lines.concat())
}

/// An address in the API's words.
#[must_use]
pub(crate) fn address(address: &PodAddress) -> proto::ContainerAddress {
    proto::ContainerAddress {
        network: address.network.to_string(),
        interface: address.interface.clone(),
        address: address.address.to_string(),
        prefix: address.prefix.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridged() -> ContainerSpec {
        ContainerSpec { network: proto::NetworkMode::Bridge.into(), ..ContainerSpec::default() }
    }

    #[test]
    fn a_bridge_without_a_name_is_the_nodes_own() {
        let port = proto::PublishedPort { container_port: 80, ..proto::PublishedPort::default() };
        let spec = ContainerSpec { ports: vec![port], ..bridged() };
        let made = network(&spec, &Name::try_from("web").unwrap()).unwrap().unwrap();
        assert_eq!(made.networks[0].network.as_str(), DEFAULT_NETWORK);
        assert_eq!((made.ports[0].host_port, made.ports[0].pod_port), (80, 80));
    }

    #[test]
    fn what_needs_a_bridge_is_refused_without_one() {
        let port = proto::PublishedPort { container_port: 80, ..proto::PublishedPort::default() };
        let spec = ContainerSpec { ports: vec![port], ..ContainerSpec::default() };
        let refused = network(&spec, &Name::try_from("web").unwrap()).unwrap_err();
        assert!(refused.message().contains("network bridge"), "{refused}");
    }

    #[test]
    fn a_resolver_replaces_what_it_names_and_nothing_else() {
        let resolver = proto::Resolver { search: vec!["example.org".into()], ..proto::Resolver::default() };
        let spec = ContainerSpec { resolver: Some(resolver), ..bridged() };
        let text = resolv_conf(&spec, "nameserver 10.88.0.1\nsearch here\n").unwrap();
        assert_eq!(text, "nameserver 10.88.0.1\nsearch example.org\n");
        let resolver = proto::Resolver { servers: vec!["1.1.1.1\nx".into()], ..proto::Resolver::default() };
        assert!(resolv_conf(&ContainerSpec { resolver: Some(resolver), ..bridged() }, "").is_err());
    }

    #[test]
    fn a_further_host_is_a_line_and_cannot_be_two() {
        let spec = |entry: &str| ContainerSpec { extra_hosts: vec![entry.into()], ..bridged() };
        assert_eq!(extra_hosts(&spec("db:fd00::7")).unwrap(), "fd00::7\tdb\n");
        assert!(extra_hosts(&spec("db")).is_err());
        assert!(extra_hosts(&spec("d\nb:10.0.0.1")).is_err());
    }
}

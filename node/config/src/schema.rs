//! The machine configuration, version 1: what a document may say, and how it is read.
//!
//! A document is outside input. [`parse`] is the only way to a [`Configuration`]; it refuses unknown fields, bounds everything, and
//! names file, line and remedy. Its messages never repeat a value that may be a secret.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::images::Images;
use crate::registries::Registries;
use crate::time::Time;
use crate::update::Update;
use crate::value::{CaPem, Domain, Driver, Hostname, InterfaceAddress, JoinToken, LinkName, Mac, is_unicast};

/// The version that this system reads and writes.
pub const VERSION: u32 = 1;
/// An OEM string of SMBIOS and the largest sensible document both fit.
pub const DOCUMENT_BYTES: usize = 64 * 1024;
/// Links that a document may describe: more network cards than any machine we know has.
const LINKS: usize = 32;
/// Addresses of one link.
const ADDRESSES: usize = 16;
/// glibc's resolver reads three servers; a document may list some more per link, the first three in all are used.
const NAME_SERVERS: usize = 8;
/// glibc's old limit; enough for a node.
const SEARCH_DOMAINS: usize = 6;
/// IPv4 needs 68 (RFC 791); below 576 hardly anything works, and nobody means it.
const MTU_MINIMUM: u32 = 576;
/// The largest IPv4 packet without its link header; drivers refuse what they cannot do.
const MTU_MAXIMUM: u32 = 65_521;

/// The machine configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// Version of this format; 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// Who the node is.
    #[serde(default)]
    pub identity: Identity,
    /// Who may use the node's API.
    #[serde(default)]
    pub api: Api,
    /// How the node is connected.
    #[serde(default)]
    pub network: Network,
    /// How images are brought from registries.
    #[serde(default)]
    pub registries: Registries,
    /// Where releases of the OS come from, and when they are installed.
    #[serde(default)]
    pub update: Update,
    /// Which images may be pulled, loaded and run.
    #[serde(default)]
    pub images: Images,
    /// Whom the node asks what time it is.
    #[serde(default)]
    pub time: Time,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            version: VERSION,
            identity: Identity::default(),
            api: Api::default(),
            network: Network::default(),
            registries: Registries::default(),
            update: Update::default(),
            images: Images::default(),
            time: Time::default(),
        }
    }
}

/// Who the node is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// The host name. Without one it is `byre-` and the first digits of the machine identity.
    pub hostname: Option<Hostname>,
}

/// Who may use the node's API from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Certificates of the authorities that sign clients and this node, as PEM. `ca` is another name for it.
    #[serde(alias = "ca")]
    pub ca_pem: Option<CaPem>,
    /// The secret by which the node and the one who signs its certificate know each other. Needs `ca_pem`.
    pub join_token: Option<JoinToken>,
}

/// How the node is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// What is done with which link; the first entry that matches a link counts. Without this list, DHCPv4 runs on every hardware
    /// Ethernet link; with an empty one, nothing is done.
    #[serde(deserialize_with = "links", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub links: Option<Vec<Link>>,
}

/// One kind of link and what is done with it. At least one of `name`, `mac` and `driver` says which; all that are given must match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "UncheckedLink", deny_unknown_fields)]
#[schemars(!try_from)]
pub struct Link {
    /// The link's name, such as `eth0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<LinkName>,
    /// The link's hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The link's kernel driver, such as `virtio_net`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// Take address, routes and name servers from DHCPv4. Default: true unless `addresses` are given. Not together with `gateway`.
    #[schemars(with = "Option<bool>", default)]
    pub dhcp4: bool,
    /// Fixed addresses.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub addresses: Vec<InterfaceAddress>,
    /// IPv4 router. One outside the networks of `addresses` is reached directly over the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<std::net::Ipv4Addr>,
    /// IPv6 router, where router advertisements do not name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<std::net::Ipv6Addr>,
    /// Name servers; those of DHCP come after them.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub dns: Vec<IpAddr>,
    /// Domains in which names are searched.
    #[serde(default)]
    #[schemars(length(max = 6))]
    pub search: Vec<Domain>,
    /// Largest packet in bytes, 576 to 65521 (1280 or more where IPv6 is used); default: what the link has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65521))]
    pub mtu: Option<u32>,
}

/// A [`Link`] as written, before the fields have been compared with each other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedLink {
    name: Option<LinkName>,
    mac: Option<Mac>,
    driver: Option<Driver>,
    dhcp4: Option<bool>,
    #[serde(default)]
    addresses: Vec<InterfaceAddress>,
    gateway: Option<std::net::Ipv4Addr>,
    gateway6: Option<std::net::Ipv6Addr>,
    #[serde(default)]
    dns: Vec<IpAddr>,
    #[serde(default)]
    search: Vec<Domain>,
    mtu: Option<u32>,
}

impl TryFrom<UncheckedLink> for Link {
    type Error = String;

    fn try_from(raw: UncheckedLink) -> Result<Self, String> {
        if raw.name.is_none() && raw.mac.is_none() && raw.driver.is_none() {
            return Err("this link says of no link that it is the one: add `name`, `mac` or `driver`".into());
        }
        check_count(raw.addresses.len(), ADDRESSES, "addresses")?;
        check_count(raw.dns.len(), NAME_SERVERS, "dns")?;
        check_count(raw.search.len(), SEARCH_DOMAINS, "search")?;
        let dhcp4 = raw.dhcp4.unwrap_or(raw.addresses.is_empty());
        if dhcp4 && raw.gateway.is_some() {
            return Err(
                "`gateway` cannot be given together with DHCPv4, which names the router: remove `gateway`, or write \
                        `dhcp4 = false` and `addresses`"
                    .into(),
            );
        }
        check_gateways(&raw)?;
        if let Some(server) = raw.dns.iter().find(|server| !is_unicast(**server) && !server.is_loopback()) {
            return Err(format!("the name server `{server}` in `dns` is not the address of one host"));
        }
        check_mtu(&raw)?;
        Ok(Self {
            name: raw.name,
            mac: raw.mac,
            driver: raw.driver,
            dhcp4,
            addresses: raw.addresses,
            gateway: raw.gateway,
            gateway6: raw.gateway6,
            dns: raw.dns,
            search: raw.search,
            mtu: raw.mtu,
        })
    }
}

fn check_gateways(raw: &UncheckedLink) -> Result<(), String> {
    let v4 = raw.gateway.map(IpAddr::V4);
    let v6 = raw.gateway6.map(IpAddr::V6);
    for (field, gateway) in [("gateway", v4), ("gateway6", v6)] {
        let Some(gateway) = gateway else { continue };
        if !is_unicast(gateway) {
            return Err(format!("`{field} = \"{gateway}\"` is not the address of one host"));
        }
        if raw.addresses.iter().any(|own| own.address == gateway) {
            return Err(format!("`{field} = \"{gateway}\"` is the link's own address: give the router's"));
        }
        let link_local = matches!(gateway, IpAddr::V6(address) if address.is_unicast_link_local());
        if !link_local && !raw.addresses.iter().any(|own| own.address.is_ipv4() == gateway.is_ipv4()) {
            return Err(format!("`{field}` needs an address of the same family in `addresses`"));
        }
    }
    Ok(())
}

fn check_mtu(raw: &UncheckedLink) -> Result<(), String> {
    let Some(mtu) = raw.mtu else { return Ok(()) };
    if !(MTU_MINIMUM..=MTU_MAXIMUM).contains(&mtu) {
        return Err(format!("`mtu = {mtu}` is out of range: {MTU_MINIMUM} to {MTU_MAXIMUM}"));
    }
    let uses_ipv6 = raw.gateway6.is_some() || raw.addresses.iter().any(|own| own.address.is_ipv6());
    if uses_ipv6 && mtu < 1280 {
        return Err(format!(
            "`mtu = {mtu}` is too small for the IPv6 addresses of this link: 1280 is the least (RFC 8200)"
        ));
    }
    Ok(())
}

fn check_count(count: usize, limit: usize, field: &str) -> Result<(), String> {
    if count > limit { Err(format!("`{field}` has {count} entries, at most {limit} are taken")) } else { Ok(()) }
}

/// The list of links, bounded.
fn links<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Link>>, D::Error> {
    let links = Vec::<Link>::deserialize(deserializer)?;
    check_count(links.len(), LINKS, "links").map_err(serde::de::Error::custom)?;
    Ok(Some(links))
}

/// Why a document was refused. The text names place and remedy, and no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Larger than any configuration.
    #[error(
        "{origin}: the configuration has more than {DOCUMENT_BYTES} bytes: it holds TOML only, no archives or scripts"
    )]
    TooLarge {
        /// Where it came from.
        origin: String,
    },
    /// Not UTF-8.
    #[error("{origin}: the configuration is not text in UTF-8: save it as plain TOML")]
    NotText {
        /// Where it came from.
        origin: String,
    },
    /// Another format.
    #[error(
        "{origin}: this is a cloud-init document; Byre reads TOML that begins with `version = 1` (docs/configuration.md)"
    )]
    CloudInit {
        /// Where it came from.
        origin: String,
    },
    /// Of the future, or not a version at all.
    #[error(
        "{origin}: the configuration is of version {found}, this system reads version {VERSION}: update the system first, or write it for version {VERSION}"
    )]
    Version {
        /// Where it came from.
        origin: String,
        /// What it says.
        found: i64,
    },
    /// Anything else, at a place.
    #[error("{origin}, line {line}: {message}")]
    At {
        /// Where it came from.
        origin: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong and what to do.
        message: String,
    },
}

/// Only the version, so that a document of the future is named as such before its new fields are refused.
#[derive(Deserialize)]
struct Header {
    version: Option<i64>,
}

/// Reads a document. `origin` names it in messages, such as `/run/byre/nocloud/user-data`.
pub fn parse(document: &[u8], origin: &str) -> Result<Configuration, Refused> {
    let origin = origin.to_owned();
    if document.len() > DOCUMENT_BYTES {
        return Err(Refused::TooLarge { origin });
    }
    let Ok(text) = std::str::from_utf8(document) else { return Err(Refused::NotText { origin }) };
    if text.starts_with("#cloud-config") || text.starts_with("#!") {
        return Err(Refused::CloudInit { origin });
    }
    let header: Header = toml::from_str(text).map_err(|error| refusal(text, &origin, &error))?;
    match header.version {
        None => {
            let message = format!("`version` is missing: begin the configuration with `version = {VERSION}`");
            return Err(Refused::At { origin, line: 1, message });
        }
        Some(found) if found != i64::from(VERSION) => return Err(Refused::Version { origin, found }),
        Some(_) => {}
    }
    let configuration: Configuration = toml::from_str(text).map_err(|error| refusal(text, &origin, &error))?;
    if configuration.api.join_token.is_some() && configuration.api.ca_pem.is_none() {
        let line = text.lines().position(|line| line.contains("join_token")).map_or(1, |index| index + 1);
        let message =
            "`join_token` needs `ca_pem`, the authority that the node's certificate is checked against".into();
        return Err(Refused::At { origin, line, message });
    }
    Ok(configuration)
}

fn refusal(text: &str, origin: &str, error: &toml::de::Error) -> Refused {
    let offset = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1;
    Refused::At { origin: origin.to_owned(), line, message: without_value(error.message()) }
}

/// Serde's messages repeat an unexpected value, which may be a token in the wrong place; the kind of value is enough.
fn without_value(message: &str) -> String {
    for start in ["invalid type: ", "invalid value: "] {
        let Some(rest) = message.strip_prefix(start) else { continue };
        let Some(at) = rest.rfind(", expected ") else { return format!("{}something unexpected", start) };
        let (found, expected) = rest.split_at(at);
        // A value follows its kind in backticks or quotes; kinds without a value (map, sequence) have neither.
        let kind = found.split(['`', '"']).next().unwrap_or_default().trim_end();
        return format!("{start}{kind}{expected}");
    }
    message.to_owned()
}

/// The JSON Schema of the configuration, as docs/configuration.schema.json holds it.
pub fn json_schema() -> String {
    let mut text = serde_json::to_string_pretty(&schemars::schema_for!(Configuration)).unwrap_or_default();
    text.push('\n');
    text
}

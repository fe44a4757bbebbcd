//! The single values of a configuration: each is a type that only a valid value can have.
//!
//! The checks run while the document is read, so that a refusal carries the line of the value. No message repeats a value that may
//! be a secret (certificates, tokens); names and addresses are repeated, because that helps.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Linux's HOST_NAME_MAX: sethostname(2) takes no more.
const HOSTNAME_BYTES: usize = 64;
/// RFC 1035, section 2.3.4.
const LABEL_BYTES: usize = 63;
/// RFC 1035, section 2.3.4, without the length bytes of the wire form.
const DOMAIN_BYTES: usize = 253;
/// IFNAMSIZ without its terminating zero.
const LINK_NAME_BYTES: usize = 15;
/// A driver is a module name; the kernel's MODULE_NAME_LEN is 56.
const DRIVER_BYTES: usize = 55;
/// Room for a root and some intermediates; the whole document is bounded to four times this.
const CA_BYTES: usize = 16 * 1024;
/// Certificates in one `ca_pem`: an old and a new root while one replaces the other, with room.
const CA_CERTIFICATES: usize = 8;
/// 128 bits as hexadecimal digits are 32 characters; 16 is the least that a person could be asked to type and nobody can guess online.
const TOKEN_MINIMUM: usize = 16;
/// Longer tokens add nothing to an HMAC-SHA-256 key.
const TOKEN_MAXIMUM: usize = 256;

/// A string type whose only way in is a check, with a schema that says the same as far as JSON Schema can.
macro_rules! checked_string {
    ($(#[$meta:meta])* $name:ident, $check:path, $schema:tt) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The value as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                $check(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

/// The same `Debug` as the text; not for secrets.
macro_rules! shown {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}

checked_string!(
    /// The node's name (RFC 1123, section 2.1): letters, digits, hyphens, and dots between labels; at most 64 bytes.
    Hostname, check_hostname,
    {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$"}
);
checked_string!(
    /// A domain in which names are searched.
    Domain, check_domain,
    {"type": "string", "minLength": 1, "maxLength": 253}
);
checked_string!(
    /// The name of a network link, such as `eth0`.
    LinkName, check_link_name,
    {"type": "string", "minLength": 1, "maxLength": 15, "pattern": "^[^/:\\s]+$"}
);
checked_string!(
    /// The kernel driver of a network link, such as `virtio_net`.
    Driver, check_driver,
    {"type": "string", "minLength": 1, "maxLength": 55, "pattern": "^[A-Za-z0-9_-]+$"}
);
checked_string!(
    /// A hardware address, as six hexadecimal pairs with colons.
    Mac, check_mac,
    {"type": "string", "pattern": "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$"}
);
checked_string!(
    /// One or more certificates of certificate authorities, as PEM.
    CaPem, check_ca,
    {"type": "string", "maxLength": 16384, "pattern": "-----BEGIN CERTIFICATE-----"}
);
checked_string!(
    /// A shared secret: 16 to 256 printable ASCII characters without spaces.
    JoinToken, check_token,
    {"type": "string", "minLength": 16, "maxLength": 256, "pattern": "^[!-~]+$"}
);
shown!(Hostname, Domain, LinkName, Driver, Mac);

impl fmt::Debug for CaPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaPem({} bytes)", self.0.len())
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(secret)")
    }
}

impl Mac {
    /// The six bytes.
    pub fn bytes(&self) -> [u8; 6] {
        let mut bytes = [0; 6];
        for (byte, pair) in bytes.iter_mut().zip(self.0.split(':')) {
            // The only constructor has checked every pair.
            *byte = u8::from_str_radix(pair, 16).unwrap_or_default();
        }
        bytes
    }
}

fn check_labels(text: &str, limit: usize, what: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > limit {
        return Err(format!("{what} must have 1 to {limit} characters"));
    }
    for label in text.split('.') {
        let letters = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let whole = !label.is_empty() && label.len() <= LABEL_BYTES;
        if !letters || !whole || label.starts_with('-') || label.ends_with('-') {
            return Err(format!(
                "{what} `{}` has a label that is not 1 to {LABEL_BYTES} letters, digits and inner hyphens: write it like `node-1.example.org`",
                shortened(text)
            ));
        }
    }
    Ok(())
}

fn check_hostname(text: &str) -> Result<(), String> {
    check_labels(text, HOSTNAME_BYTES, "a host name")?;
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(format!("a host name such as `{text}` reads like an address: put a letter into it"));
    }
    Ok(())
}

fn check_domain(text: &str) -> Result<(), String> {
    check_labels(text, DOMAIN_BYTES, "a domain")
}

fn check_link_name(text: &str) -> Result<(), String> {
    let bytes_ok = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if text.is_empty() || text.len() > LINK_NAME_BYTES || text == "." || text == ".." || !bytes_ok {
        return Err(format!(
            "a link name has 1 to {LINK_NAME_BYTES} printable characters without `/` and `:`: write it as `ip link` would show it, such as `eth0`"
        ));
    }
    Ok(())
}

fn check_driver(text: &str) -> Result<(), String> {
    let bytes_ok = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if text.is_empty() || text.len() > DRIVER_BYTES || !bytes_ok {
        return Err("a driver is the name of a kernel module, such as `virtio_net`".into());
    }
    Ok(())
}

fn check_mac(text: &str) -> Result<(), String> {
    let pairs: Vec<&str> = text.split(':').collect();
    let good = pairs.len() == 6 && pairs.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
    if !good {
        return Err(format!(
            "`{}` is not a hardware address: write six hexadecimal pairs, such as `52:54:00:12:34:56`",
            shortened(text)
        ));
    }
    Ok(())
}

fn check_ca(text: &str) -> Result<(), String> {
    if text.len() > CA_BYTES {
        return Err(format!(
            "ca_pem has more than {CA_BYTES} bytes: give only the certificate authorities of this node's clients"
        ));
    }
    let mut count = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()) {
        let block = block.map_err(|_| "ca_pem is not well-formed PEM: paste the certificate file unchanged")?;
        if block.label != "CERTIFICATE" {
            return Err(
                "ca_pem holds a PEM block that is not a CERTIFICATE: give only certificates, never a private key"
                    .into(),
            );
        }
        let certificate =
            block.parse_x509().map_err(|_| format!("certificate {} of ca_pem cannot be read", count + 1))?;
        if !certificate.is_ca() {
            return Err(format!(
                "certificate {} of ca_pem is not one of a certificate authority (basicConstraints CA)",
                count + 1
            ));
        }
        count += 1;
        if count > CA_CERTIFICATES {
            return Err(format!("ca_pem holds more than {CA_CERTIFICATES} certificates"));
        }
    }
    if count == 0 {
        return Err(
            "ca_pem holds no certificate: paste the PEM text that begins with -----BEGIN CERTIFICATE-----".into()
        );
    }
    Ok(())
}

fn check_token(text: &str) -> Result<(), String> {
    let bytes_ok = text.bytes().all(|byte| byte.is_ascii_graphic());
    if !(TOKEN_MINIMUM..=TOKEN_MAXIMUM).contains(&text.len()) || !bytes_ok {
        return Err(format!(
            "join_token must have {TOKEN_MINIMUM} to {TOKEN_MAXIMUM} printable characters without spaces: make one with `openssl rand -hex 32`"
        ));
    }
    Ok(())
}

/// What a message shows of a value that is too long to be right.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// An address with the length of its network's prefix, such as `192.168.1.10/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceAddress {
    /// The address; a unicast one.
    pub address: IpAddr,
    /// Bits of the network.
    pub prefix: u8,
}

impl FromStr for InterfaceAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{}` is not an address with a prefix length: write it like `192.168.1.10/24`", shortened(text));
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix == 0 || prefix > longest {
            return Err(wrong());
        }
        let this = Self { address, prefix };
        if !is_unicast(address) || this.is_network_or_broadcast() {
            return Err(format!("`{text}` is not the address of one host: give the link a unicast address"));
        }
        Ok(this)
    }
}

impl InterfaceAddress {
    /// Whether another address lies in the same network.
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = ipv4_mask(self.prefix);
                a.to_bits() & mask == b.to_bits() & mask
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                a.to_bits() & mask == b.to_bits() & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// RFC 3021 and a single host have neither; every other IPv4 network has both.
    fn is_network_or_broadcast(&self) -> bool {
        let IpAddr::V4(address) = self.address else { return false };
        let host = !ipv4_mask(self.prefix);
        self.prefix < 31 && (address.to_bits() & host == 0 || address.to_bits() & host == host)
    }
}

/// The network mask of a prefix length; all ones above 32.
pub fn ipv4_mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32u32.saturating_sub(u32::from(prefix))).unwrap_or(0)
}

/// Whether an address can be that of one host that is not this one by definition.
pub fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_unicast_ipv4(address),
        IpAddr::V6(address) => !address.is_multicast() && !address.is_unspecified() && !address.is_loopback(),
    }
}

/// [`is_unicast`] for IPv4: not 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/4 or 240.0.0.0/4 (RFC 1122, section 3.2.1.3).
pub fn is_unicast_ipv4(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for InterfaceAddress {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<InterfaceAddress> for String {
    fn from(value: InterfaceAddress) -> String {
        value.to_string()
    }
}

impl JsonSchema for InterfaceAddress {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "InterfaceAddress".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "description": "An address with its prefix length, such as 192.168.1.10/24.", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$"})
    }
}

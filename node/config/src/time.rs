//! The table `time` of the configuration: whom the node asks what time it is.

use std::net::{IpAddr, SocketAddr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Servers: four find one liar, and more than eight are a burden to others.
const SERVERS: usize = 8;
/// Bytes of a DNS name (RFC 1035 section 2.3.4) as text.
const NAME_BYTES: usize = 253;
/// Bytes of one part of it.
const LABEL_BYTES: usize = 63;

/// The time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Time {
    /// NTP servers, of which more than half must agree; three or more, so that one may be wrong. Without any the clock is the hardware's, and the
    /// time does not count as known.
    #[serde(deserialize_with = "servers")]
    #[schemars(length(max = 8))]
    pub servers: Vec<TimeServer>,
}

fn servers<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<TimeServer>, D::Error> {
    let servers = Vec::<TimeServer>::deserialize(deserializer)?;
    if servers.len() > SERVERS {
        let text = format!("`servers` has {} entries, at most {SERVERS} are taken", servers.len());
        return Err(serde::de::Error::custom(text));
    }
    for (index, server) in servers.iter().enumerate() {
        if servers.iter().take(index).any(|other| other == server) {
            // It would have two votes.
            return Err(serde::de::Error::custom(format!("the time server `{}` is given twice", server.0)));
        }
    }
    Ok(servers)
}

/// A server: a name, an address, or an address with a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeServer(String);

impl TimeServer {
    /// The value as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TimeServer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_label = |label: &str| {
            (1..=LABEL_BYTES).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_name = text.len() <= NAME_BYTES && text.trim_end_matches('.').split('.').all(is_label);
        let is_address = text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok();
        if is_name || is_address {
            return Ok(Self(text));
        }
        let shown: String = text.chars().take(80).collect();
        Err(format!("the time server {shown:?} is neither a name nor an address: write for example `ntp.example.org`"))
    }
}

impl From<TimeServer> for String {
    fn from(server: TimeServer) -> Self {
        server.0
    }
}

impl JsonSchema for TimeServer {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TimeServer".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A name, an IP address, or an IP address with a port.",
            "type": "string",
            "minLength": 1,
            "maxLength": NAME_BYTES,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &str) -> Result<Time, String> {
        toml::from_str(&format!("servers = {list}")).map_err(|error| error.to_string())
    }

    #[test]
    fn names_and_addresses_are_taken() {
        let time =
            read(r#"["ntp.example.org", "10.0.0.1", "2001:db8::1", "10.0.2.2:1123", "[2001:db8::1]:123"]"#).unwrap();
        assert_eq!(time.servers.len(), 5);
        assert_eq!(time.servers[3].as_str(), "10.0.2.2:1123");
    }

    #[test]
    fn what_is_neither_is_refused_by_name_and_nobody_votes_twice() {
        for (list, said) in [
            (r#"["a b"]"#, "a b"),
            (r#"["http://ntp.example.org"]"#, "http:"),
            (r#"[""]"#, "neither"),
            (r#"["a", "a"]"#, "twice"),
            (r#"["a","b","c","d","e","f","g","h","i"]"#, "at most 8"),
        ] {
            let error = read(list).unwrap_err();
            assert!(error.contains(said), "{list}: {error}");
        }
    }
}

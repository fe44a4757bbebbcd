//! The parts of the configuration, as files for the services that use them.
//!
//! Each file is replaced in one step. Only `api.json` holds a secret; it is readable by the API's group and nobody else.

use serde::{Deserialize, Serialize};

use crate::schema::Configuration;
use crate::source::{Instance, Paths};
use crate::store::{Durability, StoreError, replace, replace_as};

/// Digits of the machine identity in a host name made from it: enough to tell the nodes of one network apart.
const HOSTNAME_DIGITS: usize = 8;

/// `/run/byre/config/api.json`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiFile {
    /// Certificates of the authorities, or null when the API serves only the node itself.
    pub ca_pem: Option<String>,
    /// The shared secret, or null.
    pub join_token: Option<String>,
    /// The node's name.
    pub hostname: String,
}

/// The name of a node that was given none.
fn default_hostname(instance: &Instance) -> String {
    let identity = instance.machine_id.as_deref().or(instance.product_uuid.as_deref()).unwrap_or_default();
    let digits: String = identity.chars().filter(char::is_ascii_hexdigit).take(HOSTNAME_DIGITS).collect();
    if digits.is_empty() { "byre".into() } else { format!("byre-{digits}") }
}

/// Writes all files below `/run/byre/config`.
pub(crate) fn write(paths: &Paths, instance: &Instance, configuration: &Configuration) -> Result<(), StoreError> {
    let directory = paths.run.join("config");
    let hostname = match &configuration.identity.hostname {
        Some(name) => name.as_str().to_owned(),
        None => default_hostname(instance),
    };
    let api = ApiFile {
        ca_pem: configuration.api.ca_pem.as_ref().map(|pem| pem.as_str().to_owned()),
        join_token: configuration.api.join_token.as_ref().map(|token| token.as_str().to_owned()),
        hostname: hostname.clone(),
    };
    // Strings and lists of them always encode.
    let network = serde_json::to_vec(&configuration.network).unwrap_or_default();
    let api = serde_json::to_vec(&api).unwrap_or_default();
    let machine = serde_json::to_vec(instance).unwrap_or_default();
    replace(&directory, "machine.json", 0o644, &machine, Durability::Volatile)?;
    replace(&directory, "net.json", 0o644, &network, Durability::Volatile)?;
    replace_as(&directory, "api.json", 0o640, paths.api_group, &api, Durability::Volatile)?;
    // The host name last: who waits for it finds the others there.
    replace(&directory, "hostname", 0o644, format!("{hostname}\n").as_bytes(), Durability::Volatile)
}

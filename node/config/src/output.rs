//! The parts of the configuration, as files for the services that use them.
//!
//! Each file is replaced in one step. `api.json` and `registries.json` hold secrets; each is readable by its service's group and nobody
//! else. Which service reads which file stands here and nowhere else: what a change restarts follows from the bytes that differ.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::images;
use crate::schema::Configuration;
use crate::source::{Instance, Paths};
use crate::store::{Durability, StoreError, replace, replace_as, replace_for};

/// Digits of the machine identity in a host name made from it: enough to tell the nodes of one network apart.
const HOSTNAME_DIGITS: usize = 8;

/// Services that start anew before the others, in this order: what a name or a clock is, others ask.
const FIRST: [&str; 2] = ["hostname", "time"];
/// Who starts anew last: it carries the restarts out.
const LAST: &str = "api";

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

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Every service.
    Anyone,
    /// The API's group: it holds a secret.
    Api,
    /// The group of `byred pull`: it holds secrets.
    Pull,
}

/// One file below `/run/byre/config`.
pub(crate) struct Output {
    /// Its name.
    pub name: &'static str,
    /// Who may read it.
    pub reader: Reader,
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Services and jobs that read it once, when they start.
    pub readers: &'static [&'static str],
}

/// The name of a node that was given none.
fn default_hostname(instance: &Instance) -> String {
    let identity = instance.machine_id.as_deref().or(instance.product_uuid.as_deref()).unwrap_or_default();
    let digits: String = identity.chars().filter(char::is_ascii_hexdigit).take(HOSTNAME_DIGITS).collect();
    if digits.is_empty() { "byre".into() } else { format!("byre-{digits}") }
}

/// All files, the host name last: who waits for it finds the others there.
pub(crate) fn outputs(instance: &Instance, configuration: &Configuration) -> Vec<Output> {
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
    let json = |value: Result<Vec<u8>, serde_json::Error>| value.unwrap_or_default();
    let open = |name, bytes, readers| Output { name, reader: Reader::Anyone, bytes, readers };
    // A configuration that was accepted has settings that were checked.
    let registries = configuration.registries.settings().unwrap_or_default();
    let registries = json(serde_json::to_vec(&registries));
    let policy = json(serde_json::to_vec(&configuration.images.policy().unwrap_or_else(|_| images::reject_all())));
    vec![
        open("machine.json", json(serde_json::to_vec(instance)), &[]),
        open("net.json", json(serde_json::to_vec(&configuration.network)), &["net"]),
        open("time.json", json(serde_json::to_vec(&configuration.time)), &["time"]),
        open("update.json", json(serde_json::to_vec(&configuration.update)), &[]),
        Output { name: "api.json", reader: Reader::Api, bytes: json(serde_json::to_vec(&api)), readers: &["api"] },
        Output { name: "registries.json", reader: Reader::Pull, bytes: registries, readers: &["pull"] },
        open("image-policy.json", policy, &["image"]),
        open("hostname", format!("{hostname}\n").into_bytes(), &["hostname", "net"]),
    ]
}

/// Writes all files below `/run/byre/config`.
pub(crate) fn write(paths: &Paths, instance: &Instance, configuration: &Configuration) -> Result<(), StoreError> {
    let directory = paths.run.join("config");
    for Output { name, reader, bytes, readers: _ } in outputs(instance, configuration) {
        match reader {
            Reader::Anyone => replace(&directory, name, 0o644, &bytes, Durability::Volatile)?,
            Reader::Api => replace_as(&directory, name, 0o640, paths.api_group, &bytes, Durability::Volatile)?,
            Reader::Pull => replace_for(&directory, name, paths.pull_group, &bytes)?,
        }
    }
    Ok(())
}

/// Who has to start anew when the configuration becomes another one, in order.
pub(crate) fn restarts(instance: &Instance, before: &Configuration, after: &Configuration) -> Vec<&'static str> {
    let (before, after) = (outputs(instance, before), outputs(instance, after));
    let changed = before.iter().zip(&after).filter(|(before, after)| before.bytes != after.bytes);
    in_order(changed.flat_map(|(_, after)| after.readers.iter().copied()).collect())
}

/// The order in which services start anew.
pub(crate) fn in_order(services: BTreeSet<&'static str>) -> Vec<&'static str> {
    let first = FIRST.into_iter().filter(|name| services.contains(name));
    let others = services.iter().copied().filter(|name| !FIRST.contains(name) && *name != LAST);
    first.chain(others).chain(services.contains(LAST).then_some(LAST)).collect()
}

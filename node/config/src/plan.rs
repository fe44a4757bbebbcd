//! What becoming another configuration means: which fields differ and who starts anew. Pure.
//!
//! Secrets are compared and never shown.

use std::collections::BTreeMap;

use byre_protocol::settings::{CHANGES, FieldChange, Plan, VALUE_CHARACTERS};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::output;
use crate::schema::{self, Configuration};
use crate::source::Instance;

/// Fields whose values are never shown.
const SECRETS: [&str; 3] = ["api.join_token", "registries.proxy", "registries.docker_config_json"];
/// As are those of every registry.
const REGISTRY_SECRET: (&str, &str) = ("registries.hosts.", ".password");
/// What is shown instead.
const HIDDEN: &str = "(secret)";

/// Reads and compares; the way of every change.
pub(crate) fn plan(instance: &Instance, before: &Configuration, after: &Configuration) -> Plan {
    let restarts = output::restarts(instance, before, after).into_iter().map(str::to_owned).collect();
    Plan { changes: changes(before, after), restarts }
}

fn changes(before: &Configuration, after: &Configuration) -> Vec<FieldChange> {
    let (before, after) = (flat(before), flat(after));
    let paths = before.keys().chain(after.keys().filter(|path| !before.contains_key(*path)));
    let differing = paths.filter(|path| before.get(*path) != after.get(*path));
    let mut changes: Vec<FieldChange> = differing
        .take(CHANGES)
        .map(|path| FieldChange {
            path: path.clone(),
            before: before.get(path).map(|value| shown(path, value)),
            after: after.get(path).map(|value| shown(path, value)),
        })
        .collect();
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    changes
}

/// Each value by its path.
fn flat(configuration: &Configuration) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    // Strings, numbers and lists of them always encode.
    flatten(&serde_json::to_value(configuration).unwrap_or_default(), String::new(), &mut found);
    found
}

fn flatten(value: &Value, path: String, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(value, path, found);
            }
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            for (index, item) in items.iter().enumerate() {
                flatten(item, format!("{path}[{index}]"), found);
            }
        }
        // An empty list says as much as none, except where a field is optional: there null is none.
        Value::Array(_) | Value::Bool(_) | Value::Number(_) => drop(found.insert(path, value.to_string())),
        Value::String(text) => drop(found.insert(path, text.clone())),
    }
}

fn shown(path: &str, value: &str) -> String {
    let (start, end) = REGISTRY_SECRET;
    if SECRETS.contains(&path) || (path.starts_with(start) && path.ends_with(end)) {
        return HIDDEN.to_owned();
    }
    if value.contains('\n') {
        let digest = hex(&Sha256::digest(value.as_bytes()));
        return format!("{} bytes, SHA-256 {}", value.len(), digest.get(..16).unwrap_or_default());
    }
    if value.chars().count() <= VALUE_CHARACTERS {
        return value.to_owned();
    }
    value.chars().take(VALUE_CHARACTERS).chain(['…']).collect()
}

/// SHA-256 of what a configuration says, without its secrets: it is shown to everybody, and a weak secret could be guessed from it.
pub(crate) fn hash(configuration: &Configuration) -> String {
    let said = serde_json::to_vec(&without_secrets(configuration)).unwrap_or_default();
    hex(&Sha256::digest(&said))
}

/// The document that says the same without secrets.
pub(crate) fn document_without_secrets(configuration: &Configuration) -> String {
    let text = toml::to_string(&without_secrets(configuration)).unwrap_or_default();
    let mut notes = String::new();
    if configuration.api.join_token.is_some() {
        notes.push_str("# api.join_token is set; an administrator sees it\n");
    }
    if configuration.registries.has_secrets() {
        notes.push_str("# credentials of registries are set; an administrator sees them\n");
    }
    format!("{notes}{text}")
}

fn without_secrets(configuration: &Configuration) -> Configuration {
    let mut configuration = configuration.clone();
    let schema::Api { ca_pem: _, join_token } = &mut configuration.api;
    *join_token = None;
    configuration.registries = configuration.registries.without_secrets();
    configuration
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

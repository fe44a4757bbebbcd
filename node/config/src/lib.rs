//! `byred config`: reads the machine's configuration from outside once, keeps it, and hands each service its part.
//!
//! It has no network and parses what an operator, a hypervisor or a disk says; therefore it gives up its one capability and takes its
//! seccomp filter before it looks into a byte of that. It never prints a secret, never replaces a good stored configuration by a bad
//! new one, and never keeps the node from starting because a document is wrong: the node then runs with what it had, or the defaults.
//!
//! Order: the state partition, if it holds a configuration of this instance of the machine; else SMBIOS OEM strings, the fw_cfg
//! credential, the NoCloud disk (the first that is acceptable is stored); else what is stored for another instance; else the defaults.

pub mod fuzz;
mod output;
mod schema;
mod source;
mod store;
mod value;

pub use output::ApiFile;
pub use schema::{Api, Configuration, DOCUMENT_BYTES, Identity, Link, Network, Refused, VERSION, json_schema, parse};
pub use source::{Instance, Paths};
pub use store::StoreError;
pub use value::{
    CaPem, Domain, Driver, Hostname, InterfaceAddress, JoinToken, LinkName, Mac, ipv4_mask, is_unicast, is_unicast_ipv4,
};

use source::{Candidate, Gathered};
use store::Stored;

/// What is in force after the decision, and what was said on the way.
#[derive(Debug)]
struct Decision {
    configuration: Configuration,
    /// The document to store, with its origin, if a new one was accepted.
    accepted: Option<(String, Vec<u8>)>,
    /// Lines for the log, without secrets.
    lines: Vec<String>,
}

/// What `byred config` does, as a job: it is ready when this has returned `Ok` and the process ends with code 0.
///
/// # Errors
/// As [`run_with`].
pub fn run() -> Result<(), RunError> {
    run_with(&Paths::default(), || byre_sandbox::seal(&byre_sandbox::profiles::CONFIG))
}

/// Reads, decides, stores, writes.
///
/// `seal` takes the seccomp filter; it is called after the raw bytes have been copied and before any of them is looked into.
///
/// # Errors
/// When the outputs cannot be written. A configuration that is refused is not an error: it is logged, and the node goes on.
pub fn run_with<E: std::fmt::Display>(paths: &Paths, seal: impl FnOnce() -> Result<(), E>) -> Result<(), RunError> {
    let gathered = Gathered::read(paths);
    let instance = source::read_instance(paths);
    drop_capabilities()?;
    seal().map_err(|error| RunError::Seal(error.to_string()))?;

    let stored = store::load(&paths.state);
    let decision = decide(stored, &instance, &gathered);
    for line in gathered.unreadable.iter().map(|what| format!("source not readable: {what}")).chain(decision.lines) {
        println!("config: {line}");
    }
    if let Some((origin, document)) = &decision.accepted {
        match store::save(&paths.state, &instance, origin, document) {
            Ok(()) => println!("config: stored the configuration from {origin}"),
            // The node does what its configuration says today; the next boot reads the source again.
            Err(error) => println!("config: the configuration could not be stored: {error}"),
        }
    }
    output::write(paths, &instance, &decision.configuration)?;
    Ok(())
}

/// Why `byred config` failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Capabilities could not be given up.
    #[error("cannot give up capabilities: {0}")]
    Capabilities(std::io::Error),
    /// The sandbox could not be entered.
    #[error("cannot enter the sandbox: {0}")]
    Seal(String),
    /// An output could not be written.
    #[error(transparent)]
    Output(#[from] StoreError),
}

fn drop_capabilities() -> Result<(), RunError> {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|error| RunError::Capabilities(error.into()))
}

fn decide(stored: Result<Option<Stored>, StoreError>, instance: &Instance, gathered: &Gathered) -> Decision {
    let mut lines = Vec::new();
    let stored = stored.unwrap_or_else(|error| {
        lines.push(error.to_string());
        None
    });
    if let Some(stored) = stored.as_ref().filter(|stored| stored.instance == *instance) {
        lines.push(format!("using the stored configuration, first read from {}", stored.origin));
        return Decision { configuration: stored.configuration.clone(), accepted: None, lines };
    }
    if stored.is_some() {
        lines.push(
            "this is another instance of the machine than the stored configuration is for: reading the sources".into(),
        );
    }
    for Candidate { origin, document } in gathered.candidates() {
        let document = match document {
            Ok(document) => document,
            Err(reason) => {
                lines.push(format!("refused: {origin}: {reason}"));
                continue;
            }
        };
        match parse(&document, &origin) {
            Ok(configuration) => {
                lines.push(format!("accepted the configuration from {origin}"));
                return Decision { configuration, accepted: Some((origin, document)), lines };
            }
            Err(refused) => lines.push(format!("refused: {refused}")),
        }
    }
    match stored {
        Some(stored) => {
            lines.push(format!(
                "no source has an acceptable configuration: keeping the stored one, from {}",
                stored.origin
            ));
            Decision { configuration: stored.configuration, accepted: None, lines }
        }
        None => {
            lines.push(
                "no configuration found: using the defaults (DHCPv4 on all Ethernet links, no access from outside)"
                    .into(),
            );
            Decision { configuration: Configuration::default(), accepted: None, lines }
        }
    }
}

#[cfg(test)]
mod tests;

//! `byred config`: reads the machine's configuration from outside, keeps it, hands each service its part, and takes changes of it.
//!
//! It has no network and parses what an operator, a hypervisor or a disk says; therefore it gives up its one capability and takes its
//! seccomp filter before it looks into a byte of that. It never prints a secret, never replaces a good stored configuration by a bad
//! new one, and never keeps the node from starting because a document is wrong: the node then runs with what it had, or the defaults.
//!
//! Order at a start: the state partition, if it holds a configuration of this instance of the machine; else SMBIOS OEM strings, the fw_cfg
//! credential, the NoCloud disk (the first that is acceptable is stored); else what is stored for another instance; else the defaults.
//! After that `byred api` brings changes (`keeper`); it restarts the services they concern, this one restarts nothing.

pub mod fuzz;
mod images;
mod keeper;
mod output;
mod plan;
mod registries;
mod schema;
mod service;
mod source;
mod store;
mod time;
mod update;
mod value;

pub use images::{ImageDefault, ImageRequirement, ImageRule, Images};
pub use output::ApiFile;
pub use registries::{Registries, RegistryHost, Secret};
pub use schema::{Api, Configuration, DOCUMENT_BYTES, Identity, Link, Network, Refused, VERSION, json_schema, parse};
pub use source::{Instance, Paths};
pub use store::StoreError;
pub use time::{Time, TimeServer};
pub use update::{Automatic, Channel, RepositoryUrl, Update, Window};
pub use value::{
    CaPem, Domain, Driver, Hostname, InterfaceAddress, JoinToken, LinkName, Mac, ipv4_mask, is_unicast, is_unicast_ipv4,
};

use std::os::unix::net::UnixListener;

use byre_sandbox::{Descriptors, Notifier};

use keeper::Keeper;
use source::{Candidate, Gathered};
use store::{Header, Stored};

/// What is in force after the decision, and what was said on the way.
#[derive(Debug)]
struct Decision {
    /// What counts as confirmed.
    confirmed: Stored,
    /// Whether it is to be stored.
    new: bool,
    /// Lines for the log, without secrets.
    lines: Vec<String>,
}

/// The service, started by PID 1: it is ready when every service's part is handed out.
///
/// # Errors
/// As [`run_with`], and if it cannot serve.
pub fn run() -> Result<(), RunError> {
    let mut descriptors = Descriptors::from_environment()?;
    let listener = UnixListener::from(descriptors.take("unix")?);
    listener.set_nonblocking(true).map_err(service::ServeError::Accept)?;
    let notifier = Notifier::from_environment()?;
    let seal = || byre_sandbox::seal(&byre_sandbox::profiles::CONFIG);
    let mut keeper = start(&Paths::default(), seal)?;
    notifier.ready()?;
    Ok(service::serve(&mut keeper, &listener)?)
}

/// Reads, decides, stores, writes: what happens before the service is ready.
///
/// `seal` takes the seccomp filter; it is called after the raw bytes have been copied and before any of them is looked into.
///
/// # Errors
/// When the outputs cannot be written. A configuration that is refused is not an error: it is logged, and the node goes on.
pub fn run_with<E: std::fmt::Display>(paths: &Paths, seal: impl FnOnce() -> Result<(), E>) -> Result<(), RunError> {
    start(paths, seal).map(drop)
}

fn start<E: std::fmt::Display>(paths: &Paths, seal: impl FnOnce() -> Result<(), E>) -> Result<Keeper, RunError> {
    let gathered = Gathered::read(paths);
    let instance = source::read_instance(paths);
    drop_capabilities()?;
    seal().map_err(|error| RunError::Seal(error.to_string()))?;

    let mut lines = Vec::new();
    let stored = stored(paths, &mut lines);
    let decision = decide(stored, &instance, &gathered, &paths.state);
    let said = gathered.unreadable.iter().map(|what| format!("source not readable: {what}"));
    for line in said.chain(lines).chain(decision.lines) {
        println!("config: {line}");
    }
    if decision.new {
        let origin = &decision.confirmed.header.origin;
        match store::confirm(&paths.state, &decision.confirmed) {
            Ok(()) => println!("config: stored the configuration from {origin}"),
            // The node does what its configuration says today; the next boot reads the source again.
            Err(error) => println!("config: the configuration could not be stored: {error}"),
        }
    }
    Ok(Keeper::start(paths.clone(), instance, decision.confirmed)?)
}

/// The stored configuration, after one that is to be restored has taken its place.
fn stored(paths: &Paths, lines: &mut Vec<String>) -> Option<Stored> {
    let confirmed = store::load(&paths.state, lines);
    let mut restored = match store::load_named(&paths.state, store::RESTORE) {
        Ok(None) => return confirmed,
        Ok(Some(restored)) => restored,
        Err(error) => {
            lines.push(error.to_string());
            // It would be refused for ever.
            lines.extend(store::remove(&paths.state, store::RESTORE).err().map(|error| error.to_string()));
            return confirmed;
        }
    };
    let number = confirmed.as_ref().map_or(0, |stored| stored.header.generation);
    restored.header.origin = format!("generation {}, restored", restored.header.generation);
    restored.header.generation = keeper::next_generation(&paths.state, number);
    match store::confirm(&paths.state, &restored).and_then(|()| store::remove(&paths.state, store::RESTORE)) {
        Ok(()) => {
            lines.push(format!("{} as generation {}", restored.header.origin, restored.header.generation));
            Some(restored)
        }
        Err(error) => {
            lines.push(error.to_string());
            confirmed
        }
    }
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
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// It cannot serve.
    #[error(transparent)]
    Serve(#[from] service::ServeError),
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

fn decide(stored: Option<Stored>, instance: &Instance, gathered: &Gathered, state: &std::path::Path) -> Decision {
    let mut lines = Vec::new();
    if let Some(stored) = stored.as_ref().filter(|stored| stored.header.instance == *instance) {
        lines.push(format!("using the stored configuration, first read from {}", stored.header.origin));
        return Decision { confirmed: stored.clone(), new: false, lines };
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
                let number = stored.as_ref().map_or(0, |stored| stored.header.generation);
                let header = Header {
                    instance: instance.clone(),
                    origin,
                    generation: keeper::next_generation(state, number),
                    wall_ms: service::now().wall_ms,
                    undone: false,
                };
                return Decision { confirmed: Stored { header, configuration, document }, new: true, lines };
            }
            Err(refused) => lines.push(format!("refused: {refused}")),
        }
    }
    let confirmed = match stored {
        Some(stored) => {
            let origin = &stored.header.origin;
            lines.push(format!("no source has an acceptable configuration: keeping the stored one, from {origin}"));
            stored
        }
        None => {
            lines.push(
                "no configuration found: using the defaults (DHCPv4 on all Ethernet links, no access from outside)"
                    .into(),
            );
            let header = Header { instance: instance.clone(), origin: "the defaults".into(), ..Header::default() };
            let document = format!("version = {VERSION}\n").into_bytes();
            Stored { header, configuration: Configuration::default(), document }
        }
    };
    Decision { confirmed, new: false, lines }
}

#[cfg(test)]
mod tests;

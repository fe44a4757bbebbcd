//! `byred api`: takes the descriptors of the API's process, seals it, and joins the server to the facts of this machine.

use std::sync::Arc;

use byre_api_server::{FactsSource, NodeCondition, NodeFacts, NodeVersion, Options};
use byre_facts::Collector;
use byre_sandbox::{Descriptors, Notifier, profiles};

/// Why the service ended. PID 1 starts it anew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// Its start failed.
    #[error("SIGTERM cannot be waited for: {0}")]
    Termination(#[from] rustix::io::Errno),
    /// The server ended.
    #[error(transparent)]
    Server(#[from] byre_api_server::Error),
}

/// The service, started by PID 1.
pub(crate) fn run() -> Result<(), ApiError> {
    let mut descriptors = Descriptors::from_environment()?;
    let control = descriptors.take("control")?;
    let notifier = Notifier::from_environment()?;
    // What never changes is measured before the seal: some of it takes calls that the profile has not.
    let facts = Arc::new(Facts(Collector::default()));
    let ready = Box::new(move || {
        if let Err(error) = notifier.ready() {
            eprintln!("{error}");
        }
    });
    let mut options = Options::new(control, facts, ready);
    options.unix = descriptors.take_if_given("unix");
    options.tcp = descriptors.take_if_given("tcp");
    options.termination = Some(byre_sandbox::termination()?.into());
    byre_sandbox::seal(&profiles::API)?;
    Ok(byre_api_server::run(options)?)
}

/// The facts of this machine, in the API's words.
struct Facts(Collector);

impl FactsSource for Facts {
    fn facts(&self) -> NodeFacts {
        let facts = self.0.facts();
        let summary = byre_facts::summary(&facts);
        let condition = |condition: byre_facts::Condition| {
            let byre_facts::Condition { name, ok, detail } = condition;
            NodeCondition { name: name.to_owned(), ok, detail }
        };
        NodeFacts {
            facts_json: serde_json::to_string(&facts).unwrap_or_default(),
            hostname: facts.hostname,
            machine_id: facts.machine_id.unwrap_or_default(),
            memory_bytes: summary.memory_bytes,
            processors: summary.processors,
            memory_allocatable_bytes: summary.memory_allocatable_bytes,
            cpu_allocatable_millis: summary.cpu_allocatable_millis,
            booted_wall_ms: summary.booted_wall_ms,
            conditions: summary.conditions.into_iter().map(condition).collect(),
        }
    }

    fn version(&self) -> NodeVersion {
        let facts = self.0.facts();
        NodeVersion {
            os_version: facts.os.version.unwrap_or_default(),
            slot: facts.os.slot.unwrap_or_default(),
            kernel: facts.kernel.release,
            root_hash: facts.os.root_hash.unwrap_or_default(),
        }
    }
}

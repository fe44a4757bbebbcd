//! The form of PID 1's records: a change of it is a new version.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::wildcard_enum_match_arm, clippy::arithmetic_side_effects, unreachable_pub)]

mod node;

use byre_core::Core;
use byre_plan::WorkloadId;
use byre_protocol::control::{Request, Target};
use byre_protocol::definition::{Kind, RestartPolicy};
use byre_protocol::handoff::{VERSION, Writer};

use node::{API, NEW, Node, RUNNING, definition, name};

fn handed_over(core: &Core) -> Vec<u8> {
    let mut writer = Writer::new();
    core.hand_over(&mut writer).unwrap();
    writer.finish()
}

/// A state of this version, written when the version was new: what a PID 1 of the same version may be handed.
///
/// Whoever changes a record raises `byre_protocol::handoff::VERSION` and runs this test once with `BYRE_WRITE_STATE=1`.
#[test]
fn a_change_of_the_records_is_a_new_version() {
    let path = format!("{}/tests/handoff/state-{VERSION}.bin", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BYRE_WRITE_STATE").is_some() {
        std::fs::write(&path, handed_over(&one_of_each())).unwrap();
    }
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; see this test's comment"));
    let core = Core::decode(&bytes).unwrap_or_else(|error| panic!("{path}: {error}; see this test's comment"));
    assert_eq!(handed_over(&core), bytes, "the records have changed; see this test's comment");
}

/// A machine with something in every table.
fn one_of_each() -> Core {
    let (mut node, _) = Node::with(vec![(WorkloadId(1), definition("job", Kind::Job))]);
    node.runs_and_ends(WorkloadId(1), 0);
    let mut one = definition("one", Kind::Container);
    one.restart.policy = RestartPolicy::Always;
    let process = Box::new(one.launch.process.clone());
    node.ask(API, Request::Create { definition: Box::new(one), start: true });
    node.launched(NEW, 1, RUNNING);
    let target = Target::Name(name("one"));
    node.exec(&target, process);
    node.ask(API, Request::Subscribe);
    node.ask(API, Request::Stop { target, grace_ms: None });
    node.core
}

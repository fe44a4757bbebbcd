//! Single decisions, each as a property with a name. What holds over whole lives is tried by `init/simulation`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::wildcard_enum_match_arm, clippy::arithmetic_side_effects, unreachable_pub)]

mod node;

use byre_core::{Action, Event, LaunchOutcome};
use byre_plan::WorkloadId;
use byre_protocol::control::{Change, RefusedCode, Reply, Request, Target};
use byre_protocol::definition::{Definition, Kind};
use byre_protocol::status::StartFailure;

use node::{API, NEW, Node, STATE, answers, definition, launches, name, records};

#[test]
fn a_workload_waits_for_what_it_needs() {
    let web = Definition { needs: vec![name("net")], ..definition("web", Kind::Service) };
    let (mut node, actions) = Node::with(vec![(WorkloadId(1), web), (WorkloadId(2), definition("net", Kind::Job))]);
    assert_eq!(launches(&actions), [WorkloadId(2)]);
    assert_eq!(launches(&node.runs_and_ends(WorkloadId(2), 0)), [WorkloadId(1)]);
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let (mut node, _) = Node::with(Vec::new());
    let definition = Box::new(definition("one", Kind::Container));
    let asked = node.ask(API, Request::Create { definition, start: true });
    assert_eq!(launches(&asked), [NEW]);
    let failure = StartFailure { step: "execute".into(), subject: "/no".into(), errno: 2 };
    node.launched(NEW, 1, LaunchOutcome::Failed(failure));
    let emptied = node.tell(Event::Emptied { id: NEW, run: 1 });
    assert!(matches!(&answers(&emptied)[..], [Reply::Refused(refused)] if refused.code == RefusedCode::StartFailed));
    let (record, change) = records(&emptied).pop().unwrap();
    assert_eq!(change, Change::Remove(NEW));
    assert_eq!(node.ask(STATE, Request::Recorded { record }), [Action::RemoveFiles { id: NEW }]);
    node.tell(Event::FilesRemoved { id: NEW, removed: true });
    assert!(node.core.workload(NEW).is_none());
}

#[test]
fn a_removal_that_is_not_on_disk_has_not_happened() {
    let (mut node, _) = Node::with(Vec::new());
    let definition = Box::new(definition("one", Kind::Container));
    let created = records(&node.ask(API, Request::Create { definition, start: false }));
    node.ask(STATE, Request::Recorded { record: created[0].0 });
    let target = Target::Name(name("one"));
    let removed = records(&node.ask(API, Request::Remove { target: target.clone(), force: false }));
    let failed = node.ask(STATE, Request::RecordFailed { record: removed[0].0, text: "disk full".into() });
    assert!(matches!(&answers(&failed)[..], [Reply::Refused(refused)] if refused.code == RefusedCode::NotDurable));
    // It is there, and can be removed again.
    let again = records(&node.ask(API, Request::Remove { target, force: false }));
    assert_eq!(again[0].1, Change::Remove(NEW));
}

#[test]
fn what_is_being_removed_is_not_put_on_disk_again() {
    let (mut node, _) = Node::with(Vec::new());
    let definition = Box::new(definition("one", Kind::Container));
    node.ask(API, Request::Create { definition, start: false });
    let target = Target::Name(name("one"));
    node.ask(API, Request::Remove { target: target.clone(), force: false });
    let stopped = node.ask(API, Request::Stop { target, grace_ms: None });
    assert!(records(&stopped).is_empty());
    assert_eq!(answers(&stopped), [Reply::Done]);
}

#[test]
fn a_call_that_cannot_be_answered_in_time_is_told_what_it_waits_for() {
    let (mut node, _) = Node::with(vec![(WorkloadId(1), definition("slow", Kind::Job))]);
    let one = Definition { needs: vec![name("slow")], ..definition("one", Kind::Container) };
    let asked = node.ask(API, Request::Create { definition: Box::new(one), start: true });
    node.ask(STATE, Request::Recorded { record: records(&asked)[0].0 });
    assert!(answers(&node.at(119_000)).is_empty());
    let late = answers(&node.at(120_000));
    assert!(matches!(&late[..], [Reply::Refused(refused)] if refused.text.contains("waits for slow")), "{late:?}");
}

//! Single decisions, each as a property with a name. What holds over whole lives is tried by `init/simulation`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::wildcard_enum_match_arm, clippy::arithmetic_side_effects, unreachable_pub)]

mod node;

use byre_core::{Action, Event, ExitStatus, LaunchOutcome, Subject};
use byre_plan::WorkloadId;
use byre_protocol::control::{Change, RefusedCode, Reply, Request, Target};
use byre_protocol::definition::{Definition, Kind, Restart, RestartPolicy};
use byre_protocol::status::{Because, Cause, StartFailure};

use node::{API, NEW, Node, RUNNING, STATE, answers, definition, launches, name, records};

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
fn a_refused_creation_is_taken_away_behind_a_record_of_it_that_may_still_be_written() {
    let (mut node, _) = Node::with(Vec::new());
    let definition = Box::new(definition("one", Kind::Container));
    let first = records(&node.ask(API, Request::Create { definition, start: false }))[0].0;
    let target = Target::Name(name("one"));
    let second = records(&node.ask(API, Request::Reset { target }));
    assert_eq!(second.len(), 1, "{second:?}");
    let failed = node.ask(STATE, Request::RecordFailed { record: first, text: "disk full".into() });
    assert!(matches!(&answers(&failed)[..], [Reply::Refused(refused)] if refused.code == RefusedCode::NotDurable));
    let removed = records(&failed);
    assert_eq!(removed.last().map(|(_, change)| change), Some(&Change::Remove(NEW)), "{removed:?}");
    node.ask(STATE, Request::Recorded { record: second[0].0 });
    node.ask(STATE, Request::Recorded { record: removed[0].0 });
    node.tell(Event::FilesRemoved { id: NEW, removed: true });
    assert!(node.core.workload(NEW).is_none());
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

#[test]
fn why_goes_down_to_the_oldest_cause() {
    let job = definition("disk", Kind::Job);
    let state = Definition { needs: vec![name("disk")], ..definition("state", Kind::Service) };
    let (mut node, _) = Node::with(vec![(WorkloadId(1), job), (WorkloadId(2), state)]);
    node.runs_and_ends(WorkloadId(1), 3);
    let web = Definition { needs: vec![name("state")], ..definition("web", Kind::Container) };
    node.ask(API, Request::Create { definition: Box::new(web), start: true });
    let chain: Vec<(String, Because)> =
        node.core.why(NEW).into_iter().map(|link| (link.name.to_string(), link.because)).collect();
    let expected = [
        ("web", Because::Waiting { other: name("state") }),
        ("state", Because::Waiting { other: name("disk") }),
        ("disk", Because::Policy(RestartPolicy::Never)),
        ("disk", Because::Ended(Cause::Code(3))),
    ];
    assert_eq!(chain, expected.map(|(name, because)| (name.to_owned(), because)));
}

#[test]
fn what_would_wait_for_itself_is_refused_by_name() {
    let web = Definition { after: vec![name("db")], ..definition("web", Kind::Service) };
    let (mut node, _) = Node::with(vec![(WorkloadId(1), web)]);
    let db = Definition { needs: vec![name("web")], ..definition("db", Kind::Container) };
    let refused = answers(&node.ask(API, Request::Create { definition: Box::new(db), start: true }));
    assert!(
        matches!(&refused[..], [Reply::Refused(refused)] if refused.text.contains("db -> web -> db")),
        "{refused:?}"
    );
}

#[test]
fn what_is_bound_stops_with_what_it_is_bound_to_and_comes_back_with_it() {
    let net = definition("net", Kind::Service);
    let net = Definition { restart: Restart { policy: RestartPolicy::Always, ..Restart::default() }, ..net };
    let web = Definition { binds_to: vec![name("net")], ..definition("web", Kind::Service) };
    let (mut node, _) = Node::with(vec![(WorkloadId(1), net), (WorkloadId(2), web)]);
    assert_eq!(launches(&node.launched(WorkloadId(1), 1, RUNNING)), [WorkloadId(2)]);
    node.launched(WorkloadId(2), 1, RUNNING);
    let subject = Subject::Workload { id: WorkloadId(1), run: 1 };
    let gone = node.tell(Event::Exited { subject, status: ExitStatus::Code(1), oom_kills: 0 });
    assert!(gone.contains(&Action::Signal { id: WorkloadId(2), signal: 15 }), "{gone:?}");
    let subject = Subject::Workload { id: WorkloadId(2), run: 1 };
    node.tell(Event::Exited { subject, status: ExitStatus::Signal(15), oom_kills: 0 });
    node.tell(Event::Emptied { id: WorkloadId(2), run: 1 });
    assert!(matches!(node.core.why(WorkloadId(2))[0].because, Because::Waiting { .. }));
    node.tell(Event::Emptied { id: WorkloadId(1), run: 1 });
    node.at(1_000);
    assert_eq!(launches(&node.launched(WorkloadId(1), 2, RUNNING)), [WorkloadId(2)]);
}

#[test]
fn a_stop_climbs_from_the_hook_to_the_signal_to_the_kill() {
    let mut web = definition("web", Kind::Container);
    web.stop.hook = vec!["/bin/drain".to_owned()];
    let (mut node, _) = Node::with(Vec::new());
    node.ask(API, Request::Create { definition: Box::new(web), start: true });
    node.launched(NEW, 1, RUNNING);
    let stopped = node.ask(API, Request::Stop { target: Target::Name(name("web")), grace_ms: None });
    let Some(Action::LaunchExec { exec }) = stopped.iter().find(|one| matches!(one, Action::LaunchExec { .. })) else {
        panic!("{stopped:?}")
    };
    assert!(!stopped.iter().any(|action| matches!(action, Action::Signal { .. })));
    node.tell(Event::Launched { subject: Subject::Exec(*exec), outcome: RUNNING });
    let over = node.tell(Event::Exited { subject: Subject::Exec(*exec), status: ExitStatus::Code(1), oom_kills: 0 });
    assert!(over.contains(&Action::Signal { id: NEW, signal: 15 }));
    assert!(node.at(10_000).contains(&Action::KillAll { id: NEW, run: 1 }));
}

#[test]
fn a_run_over_its_limit_is_stopped_and_has_failed() {
    let job = Definition { run_limit_ms: 5_000, ..definition("job", Kind::Job) };
    let (mut node, _) = Node::with(vec![(WorkloadId(1), job)]);
    node.launched(WorkloadId(1), 1, RUNNING);
    assert!(node.at(5_000).contains(&Action::Signal { id: WorkloadId(1), signal: 15 }));
    let subject = Subject::Workload { id: WorkloadId(1), run: 1 };
    node.tell(Event::Exited { subject, status: ExitStatus::Code(0), oom_kills: 0 });
    node.tell(Event::Emptied { id: WorkloadId(1), run: 1 });
    let chain: Vec<Because> = node.core.why(WorkloadId(1)).into_iter().map(|link| link.because).collect();
    assert_eq!(chain[1..], [Because::Ended(Cause::RunLimit), Because::TimeLimit { ms: 5_000 }]);
}

#[test]
fn sessions_end_with_the_workload_that_they_run_in() {
    let (mut node, _) = Node::with(Vec::new());
    let one = definition("one", Kind::Container);
    let process = Box::new(one.launch.process.clone());
    let created = records(&node.ask(API, Request::Create { definition: Box::new(one), start: true }));
    node.launched(NEW, 1, RUNNING);
    let target = Target::Name(name("one"));
    node.exec(&target, process);
    node.ask(STATE, Request::Recorded { record: created[0].0 });
    node.ask(API, Request::Remove { target, force: true });
    let emptied = records(&node.tell(Event::Emptied { id: NEW, run: 1 }));
    node.ask(STATE, Request::Recorded { record: emptied.last().unwrap().0 });
    let gone = node.tell(Event::FilesRemoved { id: NEW, removed: true });
    assert!(gone.iter().any(|action| matches!(action, Action::ForgetExec { .. })), "{gone:?}");
    assert!(node.core.tables().iter().all(|table| !table.empty_at_rest || table.used == 0));
}

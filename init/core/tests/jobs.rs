//! Jobs, each decision as a property with a name. What holds over whole lives is tried by `init/simulation`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::wildcard_enum_match_arm, clippy::arithmetic_side_effects, unreachable_pub)]

mod node;

use byre_core::{Action, Event, ExitStatus, Subject};
use byre_plan::WorkloadId;
use byre_protocol::control::{Request, Target};
use byre_protocol::definition::{Definition, Kind, Restart, RestartPolicy};
use byre_protocol::status::{Because, Cause, State, Why};

use node::{API, NEW, Node, RUNNING, definition, launches, name};

const JOB: WorkloadId = WorkloadId(1);

fn job(retries: u32, deadline_ms: u32) -> Definition {
    let restart = Restart { policy: RestartPolicy::OnFailure(retries), ..Restart::default() };
    Definition { restart, deadline_ms, ..definition("job", Kind::Job) }
}

/// Its program runs, and ends with this code after so long.
fn tried(node: &mut Node, run: u64, code: u8, took_ms: u64) -> Vec<Action> {
    node.launched(JOB, run, RUNNING);
    node.now.boot_ms += took_ms;
    let subject = Subject::Workload { id: JOB, run };
    node.tell(Event::Exited { subject, status: ExitStatus::Code(code), oom_kills: 0 });
    node.tell(Event::Emptied { id: JOB, run })
}

fn chain(node: &Node) -> Vec<Because> {
    node.core.why(JOB).into_iter().map(|link| link.because).collect()
}

#[test]
fn a_job_has_so_many_tries_however_long_they_take() {
    let (mut node, _) = Node::with(vec![(JOB, job(2, 0))]);
    for run in 1..=2 {
        tried(&mut node, run, 3, 100_000);
        let next = node.now.boot_ms + 10_000;
        assert_eq!(launches(&node.at(next)), [JOB]);
    }
    tried(&mut node, 3, 3, 100_000);
    let expected =
        [Because::Policy(RestartPolicy::OnFailure(2)), Because::Tried { times: 3 }, Because::Ended(Cause::Code(3))];
    assert_eq!(chain(&node), expected);
}

#[test]
fn a_deadline_covers_all_tries_and_ends_the_one_under_way() {
    let (mut node, _) = Node::with(vec![(JOB, job(0, 10_000))]);
    tried(&mut node, 1, 1, 6_000);
    node.at(6_100);
    node.launched(JOB, 2, RUNNING);
    assert!(node.at(9_999).is_empty());
    assert!(node.at(10_000).contains(&Action::Signal { id: JOB, signal: 15 }));
    let subject = Subject::Workload { id: JOB, run: 2 };
    node.tell(Event::Exited { subject, status: ExitStatus::Signal(15), oom_kills: 0 });
    node.tell(Event::Emptied { id: JOB, run: 2 });
    let expected = [Because::Tried { times: 2 }, Because::Ended(Cause::Deadline), Because::TimeLimit { ms: 10_000 }];
    assert_eq!(chain(&node), expected);
    assert_eq!(node.core.next_deadline_boot_ms(), None);
}

#[test]
fn a_deadline_that_passes_between_tries_ends_the_job_and_names_the_last_end() {
    let mut slow = job(0, 10_000);
    slow.restart.initial_delay_ms = 30_000;
    let (mut node, _) = Node::with(vec![(JOB, slow)]);
    tried(&mut node, 1, 7, 1_000);
    assert!(launches(&node.at(10_000)).is_empty());
    let ended = State::Down { why: Why::Ended(Cause::Deadline) };
    assert_eq!(node.core.workload(JOB).unwrap().state(), ended);
    assert_eq!(chain(&node).pop(), Some(Because::Ended(Cause::Code(7))));
    assert!(launches(&node.at(60_000)).is_empty());
}

#[test]
fn a_clients_job_is_started_anew_with_all_its_tries() {
    let (mut node, _) = Node::with(Vec::new());
    let restart = Restart { policy: RestartPolicy::OnFailure(1), ..Restart::default() };
    let mut one = Definition { restart, deadline_ms: 10_000, ..definition("one", Kind::Container) };
    one.kind = Kind::Job;
    node.ask(API, Request::Create { definition: Box::new(one), start: true });
    node.launched(NEW, 1, RUNNING);
    let subject = Subject::Workload { id: NEW, run: 1 };
    node.now.boot_ms = 60_000;
    node.tell(Event::Exited { subject, status: ExitStatus::Code(1), oom_kills: 0 });
    node.tell(Event::Emptied { id: NEW, run: 1 });
    node.ask(API, Request::Start { target: Target::Name(name("one")) });
    assert_eq!(node.core.workload(NEW).unwrap().tries(), 1);
    node.launched(NEW, 2, RUNNING);
    assert_eq!(node.core.next_deadline_boot_ms(), Some(70_000));
}

#[test]
fn others_wait_for_its_good_end() {
    let web = Definition { needs: vec![name("job")], ..definition("web", Kind::Service) };
    let (mut node, _) = Node::with(vec![(JOB, job(1, 0)), (WorkloadId(2), web)]);
    assert!(launches(&tried(&mut node, 1, 1, 10)).is_empty());
    assert_eq!(launches(&node.at(1_000)), [JOB]);
    assert_eq!(launches(&tried(&mut node, 2, 0, 10)), [WorkloadId(2)]);
}

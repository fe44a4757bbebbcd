//! Jobs that begin by themselves, groups, and what is disabled: each decision as a property with a name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::wildcard_enum_match_arm, clippy::arithmetic_side_effects, unreachable_pub)]

mod node;

use byre_core::{Action, Event, ExitStatus, Subject, Wanted};
use byre_plan::WorkloadId;
use byre_protocol::control::{Change, RefusedCode, Reply, Request, Target};
use byre_protocol::definition::{Definition, Kind, Restart, RestartPolicy};
use byre_protocol::schedule::{Schedule, When};
use byre_protocol::status::{Because, Cause, Due, Moment, State, Why};

use node::{API, NEW, Node, RUNNING, STATE, answers, definition, launches, name, records};

const JOB: WorkloadId = WorkloadId(1);
const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Midnight of some day.
const MIDNIGHT: u64 = 20_000 * DAY_MS;

fn scheduled(when: When, catch_up: bool) -> Definition {
    Definition { schedule: Some(Schedule { when, catch_up }), ..definition("job", Kind::Job) }
}

fn calendar(text: &str) -> When {
    When::Calendar(text.parse().unwrap())
}

/// A node with this job that has booted at this time of the clock on the wall.
fn node(job: Definition, wall_ms: u64) -> (Node, Vec<Action>) {
    let now = Moment { boot_ms: 1_000, wall_ms };
    Node::with_at(vec![(JOB, job)], now)
}

/// So much later by both clocks.
fn later(node: &mut Node, ms: u64) -> Vec<Action> {
    node.now.wall_ms += ms;
    let at = node.now.boot_ms + ms;
    node.at(at)
}

/// Somebody sets the clock on the wall.
fn set(node: &mut Node, wall_ms: u64) -> Vec<Action> {
    node.now.wall_ms = wall_ms;
    node.tell(Event::Tick)
}

fn ends(node: &mut Node, run: u64, code: u8) -> Vec<Action> {
    node.launched(JOB, run, RUNNING);
    let subject = Subject::Workload { id: JOB, run };
    node.tell(Event::Exited { subject, status: ExitStatus::Code(code), oom_kills: 0 });
    node.tell(Event::Emptied { id: JOB, run })
}

fn due(node: &Node) -> Due {
    match node.core.workload(JOB).unwrap().state() {
        State::Down { why: Why::Scheduled(due) } => due,
        other => panic!("it does not wait for its time: {other:?}"),
    }
}

#[test]
fn an_interval_counts_from_begin_to_begin_and_makes_nothing_up() {
    let (mut node, actions) = node(scheduled(When::EveryMs(10_000), false), MIDNIGHT);
    assert!(launches(&actions).is_empty());
    assert_eq!(node.core.next_deadline_boot_ms(), Some(11_000));
    assert_eq!(node.core.next_change_boot_ms(), None, "a machine that only waits for a time is at rest");
    assert_eq!(launches(&later(&mut node, 10_000)), [JOB]);
    later(&mut node, 4_000);
    ends(&mut node, 1, 0);
    assert_eq!(due(&node), Due::Boot(21_000));
    assert_eq!(launches(&later(&mut node, 6_000)), [JOB]);
    later(&mut node, 25_000);
    ends(&mut node, 2, 0);
    assert_eq!(due(&node), Due::Boot(51_000), "the times that passed meanwhile are passed over");
}

#[test]
fn an_interval_takes_no_notice_of_the_clock_on_the_wall() {
    let (mut node, _) = node(scheduled(When::EveryMs(10_000), false), MIDNIGHT);
    assert!(launches(&set(&mut node, MIDNIGHT + 30 * DAY_MS)).is_empty());
    assert!(launches(&set(&mut node, 0)).is_empty());
    assert_eq!(launches(&later(&mut node, 10_000)), [JOB]);
}

#[test]
fn a_time_of_the_calendar_begins_it_once() {
    let (mut node, _) = node(scheduled(calendar("30 2 * * *"), false), MIDNIGHT);
    assert_eq!(due(&node), Due::Wall(MIDNIGHT + 2 * HOUR_MS + 30 * MINUTE_MS));
    assert!(launches(&later(&mut node, 2 * HOUR_MS)).is_empty());
    assert_eq!(launches(&later(&mut node, 30 * MINUTE_MS)), [JOB]);
    assert!(launches(&ends(&mut node, 1, 0)).is_empty());
    assert_eq!(due(&node), Due::Wall(MIDNIGHT + DAY_MS + 2 * HOUR_MS + 30 * MINUTE_MS));
}

#[test]
fn a_clock_that_is_set_forward_over_a_time_begins_it_if_it_is_not_long_ago() {
    let at = MIDNIGHT + 2 * HOUR_MS;
    let (mut one, _) = node(scheduled(calendar("0 2 * * *"), false), MIDNIGHT);
    assert_eq!(launches(&set(&mut one, at + HOUR_MS / 2)), [JOB]);
    let (mut late, _) = node(scheduled(calendar("0 2 * * *"), false), MIDNIGHT);
    assert!(launches(&set(&mut late, at + 5 * HOUR_MS)).is_empty());
    assert_eq!(due(&late), Due::Wall(at + DAY_MS));
    let (mut made_up, _) = node(scheduled(calendar("0 2 * * *"), true), MIDNIGHT);
    assert_eq!(launches(&set(&mut made_up, at + 3 * DAY_MS + 5 * HOUR_MS)), [JOB]);
    assert!(launches(&ends(&mut made_up, 1, 0)).is_empty(), "once, however many there were");
    assert_eq!(due(&made_up), Due::Wall(at + 4 * DAY_MS));
}

#[test]
fn a_clock_that_is_set_back_begins_nothing_again() {
    let at = MIDNIGHT + 2 * HOUR_MS;
    let (mut node, _) = node(scheduled(calendar("0 2 * * *"), false), MIDNIGHT);
    assert_eq!(launches(&later(&mut node, 2 * HOUR_MS)), [JOB]);
    ends(&mut node, 1, 0);
    assert!(launches(&set(&mut node, at - HOUR_MS)).is_empty());
    assert_eq!(due(&node), Due::Wall(at + DAY_MS));
    // What was begun by a clock that was wrong by days does not hold the right times up.
    set(&mut node, at - 10 * DAY_MS);
    assert_eq!(due(&node), Due::Wall(at - 9 * DAY_MS));
}

#[test]
fn a_time_that_passed_while_it_ran_is_made_up_for_if_it_says_so() {
    for (catch_up, begun) in [(true, vec![JOB]), (false, vec![])] {
        let (mut node, _) = node(scheduled(calendar("* * * * *"), catch_up), MIDNIGHT);
        later(&mut node, MINUTE_MS);
        later(&mut node, 5 * MINUTE_MS);
        assert_eq!(launches(&ends(&mut node, 1, 0)), begun);
    }
}

#[test]
fn each_time_has_all_its_tries_and_the_next_comes_whatever_becomes_of_it() {
    let restart = Restart { policy: RestartPolicy::OnFailure(1), ..Restart::default() };
    let job = Definition { restart, ..scheduled(calendar("0 * * * *"), false) };
    let (mut node, _) = node(job, MIDNIGHT);
    for time in 0..3 {
        let now = node.now.wall_ms;
        assert_eq!(launches(&later(&mut node, HOUR_MS - now % HOUR_MS)), [JOB]);
        ends(&mut node, 2 * time + 1, 1);
        assert_eq!(launches(&later(&mut node, 200)), [JOB]);
        ends(&mut node, 2 * time + 2, 1);
        assert!(matches!(due(&node), Due::Wall(_)));
        let chain: Vec<Because> = node.core.why(JOB).into_iter().map(|link| link.because).collect();
        assert!(matches!(chain[..], [Because::Scheduled(_), Because::Ended(Cause::Code(1))]), "{chain:?}");
    }
}

#[test]
fn a_machine_that_ends_begins_nothing() {
    let (mut node, _) = node(scheduled(When::EveryMs(5_000), false), MIDNIGHT);
    node.tell(Event::ShutdownAsked(byre_protocol::control::ShutdownAction::Reboot));
    assert!(launches(&later(&mut node, 60_000)).is_empty());
    assert_eq!(node.core.next_deadline_boot_ms(), None);
}

fn container(text: &str, group: Option<&str>) -> Definition {
    Definition { group: group.map(name), ..definition(text, Kind::Container) }
}

/// Makes a container under an identity of its own, started, and on disk.
fn make(node: &mut Node, id: u64, definition: Definition) -> Vec<Action> {
    let actions = node.ask_fresh(id, API, Request::Create { definition: Box::new(definition), start: true });
    for (record, _) in records(&actions) {
        node.ask(STATE, Request::Recorded { record });
    }
    node.launched(WorkloadId(id), 1, RUNNING);
    actions
}

fn by_name(text: &str) -> Target {
    Target::Name(name(text))
}

#[test]
fn a_group_stops_and_starts_as_one() {
    let (mut node, _) = Node::with(Vec::new());
    make(&mut node, 10, container("web", Some("shop")));
    make(&mut node, 11, container("db", Some("shop")));
    make(&mut node, 12, container("other", None));
    let stopped = node.ask(API, Request::Stop { target: by_name("shop"), grace_ms: None });
    let signalled: Vec<u64> = stopped
        .iter()
        .filter_map(|action| if let Action::Signal { id, .. } = action { Some(id.0) } else { None })
        .collect();
    assert_eq!(signalled, [10, 11]);
    assert!(answers(&stopped).is_empty(), "it is answered when all of it is down");
    let mut last = Vec::new();
    for id in [10, 11] {
        let subject = Subject::Workload { id: WorkloadId(id), run: 1 };
        last.extend(node.tell(Event::Exited { subject, status: ExitStatus::Code(0), oom_kills: 0 }));
        last.extend(node.tell(Event::Emptied { id: WorkloadId(id), run: 1 }));
    }
    for record in 0..20 {
        last.extend(node.ask(STATE, Request::Recorded { record }));
    }
    assert_eq!(answers(&last), [Reply::Done]);
    assert_eq!(launches(&node.ask(API, Request::Start { target: by_name("shop") })), [WorkloadId(10), WorkloadId(11)]);
}

#[test]
fn a_group_is_ready_when_all_of_it_is_and_its_name_is_nobody_elses() {
    let (mut node, _) = Node::with(Vec::new());
    make(&mut node, 10, container("db", Some("shop")));
    let mut cache = container("cache", Some("shop"));
    cache.readiness.when = byre_protocol::definition::ReadyWhen::Notify;
    make(&mut node, 11, cache);
    let web = Definition { needs: vec![name("shop")], ..container("web", None) };
    assert!(launches(&make(&mut node, 12, web)).is_empty());
    let chain = node.core.why(WorkloadId(12));
    assert_eq!(chain[0].because, Because::Waiting { other: name("cache") });
    assert_eq!(launches(&node.tell(Event::Notified { id: WorkloadId(11), run: 1 })), [WorkloadId(12)]);
    let refused = |node: &mut Node, definition| match answers(&make(node, 13, definition)).pop() {
        Some(Reply::Refused(refused)) => refused.code,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(refused(&mut node, container("shop", None)), RefusedCode::NameTaken);
    assert_eq!(refused(&mut node, container("new", Some("web"))), RefusedCode::Invalid);
    let ring = Definition { needs: vec![name("web")], ..container("ring", Some("shop")) };
    assert_eq!(refused(&mut node, ring), RefusedCode::Invalid, "shop would wait for web, which waits for shop");
}

#[test]
fn what_is_disabled_stays_down_until_it_is_enabled() {
    let (mut node, _) = Node::with(Vec::new());
    let restart = Restart { policy: RestartPolicy::Always, ..Restart::default() };
    make(&mut node, NEW.0, Definition { restart, ..container("web", None) });
    let actions = node.ask(API, Request::Disable { target: by_name("web") });
    let on_disk = records(&actions).into_iter().find_map(|(_, change)| match change {
        Change::Put(record) => Some(record),
        Change::Remove(_) => None,
    });
    let on_disk = on_disk.unwrap();
    assert_eq!(on_disk.wanted, byre_protocol::control::Wanted::Disabled);
    let subject = Subject::Workload { id: NEW, run: 1 };
    node.tell(Event::Exited { subject, status: ExitStatus::Code(1), oom_kills: 0 });
    assert!(launches(&node.tell(Event::Emptied { id: NEW, run: 1 })).is_empty());
    assert_eq!(node.core.workload(NEW).unwrap().state(), State::Down { why: Why::Disabled });
    assert!(launches(&node.at(3_600_000)).is_empty());
    let refusal = answers(&node.ask(API, Request::Start { target: by_name("web") })).pop();
    assert!(matches!(refusal, Some(Reply::Refused(refused)) if refused.text.contains("byrectl enable")));
    // A reboot changes nothing, though its policy is always.
    let mut rebooted = Node::booting();
    rebooted.ask(STATE, Request::Replay(on_disk));
    assert!(launches(&rebooted.ask(STATE, Request::ReplayEnd)).is_empty());
    rebooted.ask(API, Request::Enable { target: by_name("web") });
    assert_eq!(rebooted.core.workload(NEW).unwrap().wanted(), Wanted::Down);
    assert_eq!(launches(&rebooted.ask(API, Request::Start { target: by_name("web") })), [NEW]);
}

#[test]
fn a_reset_begins_the_next_try_at_once() {
    let (mut node, _) = Node::with(Vec::new());
    let restart = Restart { policy: RestartPolicy::Always, initial_delay_ms: 60_000, ..Restart::default() };
    make(&mut node, NEW.0, Definition { restart, ..container("web", None) });
    let subject = Subject::Workload { id: NEW, run: 1 };
    node.tell(Event::Exited { subject, status: ExitStatus::Code(1), oom_kills: 0 });
    node.tell(Event::Emptied { id: NEW, run: 1 });
    assert!(matches!(node.core.workload(NEW).unwrap().state(), State::Backoff { .. }));
    assert_eq!(launches(&node.ask(API, Request::Reset { target: by_name("web") })), [NEW]);
}

#[test]
fn what_clients_made_cannot_use_up_the_time_of_services_at_shutdown() {
    let (mut node, _) = Node::with(Vec::new());
    for (number, priority) in (10..).zip([0_u8, 1, 2, 3]) {
        let mut stubborn = container(&format!("stubborn-{priority}"), None);
        stubborn.shutdown_priority = priority;
        stubborn.stop.grace_ms = 600_000;
        make(&mut node, number, stubborn);
    }
    let begun = node.now.boot_ms;
    node.tell(Event::ShutdownAsked(byre_protocol::control::ShutdownAction::PowerOff));
    let mut finished_ms = None;
    for second in 1..=90 {
        let mut open = node.at(begun + second * 1000);
        while let Some(action) = open.pop() {
            match action {
                Action::KillAll { id, run } => {
                    let subject = Subject::Workload { id, run };
                    open.extend(node.tell(Event::Exited { subject, status: ExitStatus::Signal(9), oom_kills: 0 }));
                    open.extend(node.tell(Event::Emptied { id, run }));
                }
                Action::Finish(_) => finished_ms = finished_ms.or(Some(second * 1000)),
                _ => {}
            }
        }
    }
    assert!(finished_ms.is_some_and(|at| at <= 61_000), "{finished_ms:?}");
}

//! Probes, each decision as a property with a name. What holds over whole lives is tried by `init/simulation`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::wildcard_enum_match_arm, clippy::arithmetic_side_effects, unreachable_pub)]

mod node;

use byre_core::{Action, ChannelId, Event, ExecId, ExitStatus, Subject};
use byre_plan::WorkloadId;
use byre_protocol::control::{FromInit, Notice, Request};
use byre_protocol::definition::{Definition, Kind, ReadyWhen, Restart, RestartPolicy, Role};
use byre_protocol::probe::{Aim, Check, Probe};
use byre_protocol::status::{Because, Cause, State};

use node::{Node, RUNNING, definition, launches};

const WEB: WorkloadId = WorkloadId(1);
const PROBE: ChannelId = ChannelId(3);

fn tcp() -> Probe {
    Probe::of(Check::Tcp { port: 80 })
}

fn exec() -> Probe {
    Probe { interval_ms: 1_000, failures: 2, ..Probe::of(Check::Exec { args: vec!["/bin/ask".to_owned()] }) }
}

/// A service that runs, with a probe service beside it.
fn running(web: Definition) -> (Node, Vec<Action>) {
    let restart = Restart { policy: RestartPolicy::Always, ..Restart::default() };
    let (mut node, _) = Node::with(vec![(WEB, Definition { restart, ..web })]);
    node.tell(Event::ChannelOpened { channel: PROBE, role: Role::Probe });
    let actions = node.launched(WEB, 1, RUNNING);
    (node, actions)
}

fn asked(actions: &[Action]) -> Vec<Aim> {
    let sent = |action: &Action| match action {
        Action::Send { channel: PROBE, message, .. } => match &**message {
            FromInit::Notice(notice) => match &**notice {
                Notice::Probe { aim, .. } => Some(*aim),
                _ => None,
            },
            FromInit::Answer { .. } => None,
        },
        _ => None,
    };
    actions.iter().filter_map(sent).collect()
}

fn session(actions: &[Action]) -> Option<ExecId> {
    actions.iter().find_map(|action| if let Action::LaunchExec { exec } = action { Some(*exec) } else { None })
}

fn judged(node: &mut Node, aim: Aim, passed: bool) -> Vec<Action> {
    node.ask(PROBE, Request::Probed { id: WEB, number: 1, aim, passed })
}

fn answers(node: &mut Node, exec: ExecId, code: u8) -> Vec<Action> {
    let subject = Subject::Exec(exec);
    node.tell(Event::Launched { subject, outcome: RUNNING });
    node.tell(Event::Exited { subject, status: ExitStatus::Code(code), oom_kills: 0 })
}

fn is_ready(node: &Node) -> bool {
    matches!(node.core.workload(WEB).unwrap().state(), State::Up { ready: true, .. })
}

#[test]
fn a_startup_probe_holds_the_others_back() {
    let mut web = definition("web", Kind::Service);
    (web.startup, web.liveness) = (Some(tcp()), Some(tcp()));
    web.readiness.when = ReadyWhen::Probe(tcp());
    let (mut node, actions) = running(web);
    assert_eq!(asked(&actions), [Aim::Startup]);
    assert!(matches!(node.core.why(WEB)[0].because, Because::StartingUp { failed: 0, .. }));
    assert!(judged(&mut node, Aim::Readiness, true).is_empty());
    assert_eq!(asked(&judged(&mut node, Aim::Startup, true)), [Aim::Readiness, Aim::Liveness]);
    assert!(!is_ready(&node));
    judged(&mut node, Aim::Readiness, true);
    assert!(is_ready(&node));
}

#[test]
fn what_is_found_dead_is_stopped_and_started_again() {
    let mut web = definition("web", Kind::Service);
    web.liveness = Some(tcp());
    let (mut node, actions) = running(web);
    assert!(is_ready(&node) && asked(&actions) == [Aim::Liveness]);
    assert!(judged(&mut node, Aim::Liveness, false).contains(&Action::Signal { id: WEB, signal: 15 }));
    let subject = Subject::Workload { id: WEB, run: 1 };
    node.tell(Event::Exited { subject, status: ExitStatus::Code(0), oom_kills: 0 });
    node.tell(Event::Emptied { id: WEB, run: 1 });
    assert_eq!(node.core.why(WEB).last().unwrap().because, Because::Ended(Cause::Probe(Aim::Liveness)));
    assert_eq!(launches(&node.at(1_000)), [WEB]);
}

#[test]
fn commands_are_counted_as_the_probe_service_counts() {
    let mut web = definition("web", Kind::Service);
    web.readiness.when = ReadyWhen::Probe(exec());
    let (mut node, actions) = running(web);
    let mut exec = session(&actions).or_else(|| session(&node.at(1))).unwrap();
    for (at, code, ready) in [(2_000, 0, true), (4_000, 1, true), (6_000, 1, false), (8_000, 0, true)] {
        answers(&mut node, exec, code);
        assert_eq!(is_ready(&node), ready, "before {at}");
        exec = session(&node.at(at)).unwrap();
    }
}

#[test]
fn a_command_that_takes_too_long_has_failed() {
    let mut web = definition("web", Kind::Service);
    web.liveness = Some(Probe { failures: 1, ..exec() });
    let (mut node, actions) = running(web);
    let exec = session(&actions).or_else(|| session(&node.at(1))).unwrap();
    node.tell(Event::Launched { subject: Subject::Exec(exec), outcome: RUNNING });
    assert!(node.at(1_001).contains(&Action::SignalExec { exec, signal: 9 }));
    let subject = Subject::Exec(exec);
    let over = node.tell(Event::Exited { subject, status: ExitStatus::Signal(9), oom_kills: 0 });
    assert!(over.contains(&Action::Signal { id: WEB, signal: 15 }));
}

#[test]
fn a_watchdog_that_is_not_heard_of_is_dead() {
    let mut web = definition("web", Kind::Service);
    web.liveness = Some(Probe { interval_ms: 1_000, failures: 2, ..Probe::of(Check::Watchdog) });
    let (mut node, _) = running(web);
    assert!(node.at(1_000).is_empty());
    node.now.boot_ms = 1_500;
    node.tell(Event::HeardOf { id: WEB, run: 1 });
    assert!(node.at(2_400).is_empty());
    assert!(node.at(2_500).is_empty());
    assert!(node.at(3_500).contains(&Action::Signal { id: WEB, signal: 15 }));
}

#[test]
fn a_probe_service_that_starts_is_told_what_to_ask() {
    let mut web = definition("web", Kind::Service);
    web.liveness = Some(Probe { initial_delay_ms: 5_000, ..tcp() });
    let (mut node, _) = running(web);
    node.tell(Event::ChannelClosed(PROBE));
    node.now.boot_ms = 2_000;
    let offered = node.tell(Event::ChannelOpened { channel: PROBE, role: Role::Probe });
    assert_eq!(asked(&offered), [Aim::Liveness]);
    assert!(offered.iter().any(|action| format!("{action:?}").contains("initial_delay_ms: 3000")));
}

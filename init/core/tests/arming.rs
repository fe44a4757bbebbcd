//! Arming an update, each decision as a property with a name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::wildcard_enum_match_arm, clippy::arithmetic_side_effects, unreachable_pub)]

mod node;

use byre_core::{Action, ChannelId, Event, Next};
use byre_plan::WorkloadId;
use byre_protocol::control::{Allow, FromInit, RefusedCode, Reply, Request, ShutdownAction};
use byre_protocol::definition::{Kind, Role};

use node::{API, Node, RUNNING, definition};

const UPDATE: ChannelId = ChannelId(7);
const TRIAL: ChannelId = ChannelId(8);
const SERVICE: WorkloadId = WorkloadId(1);

fn node() -> Node {
    let (mut node, _) = Node::with(vec![(SERVICE, definition("log", Kind::Service))]);
    node.tell(Event::ChannelOpened { channel: UPDATE, role: Role::Update });
    node.tell(Event::ChannelOpened { channel: TRIAL, role: Role::Trial });
    node
}

fn arm() -> Request {
    Request::Arm { statement: vec![1; 512], allow: Allow { downgrade: false, retry: true } }
}

fn replies(actions: &[Action]) -> Vec<Reply> {
    let sent = |action: &Action| match action {
        Action::Send { message, .. } => match &**message {
            FromInit::Answer { reply, .. } => Some(reply.clone()),
            FromInit::Notice(_) => None,
        },
        _ => None,
    };
    actions.iter().filter_map(sent).collect()
}

fn code(actions: &[Action]) -> Option<RefusedCode> {
    replies(actions)
        .into_iter()
        .find_map(|reply| if let Reply::Refused(refused) = reply { Some(refused.code) } else { None })
}

#[test]
fn the_answer_comes_when_the_child_has_ended() {
    let mut node = node();
    let asked = node.ask(UPDATE, arm());
    assert!(replies(&asked).is_empty());
    let allow = Allow { downgrade: false, retry: true };
    let wanted = Action::Arm(Next::Release { statement: vec![1; 512], allow });
    assert!(asked.contains(&wanted), "{asked:?}");
    assert_eq!(replies(&node.tell(Event::Armed(None))), [Reply::Done]);
    // And a refusal is told as it is.
    node.ask(UPDATE, Request::Rollback);
    let refused = replies(&node.tell(Event::Armed(Some("slot b is empty".to_owned()))));
    assert!(
        matches!(refused.as_slice(), [Reply::Refused(refused)] if refused.text == "slot b is empty"),
        "{refused:?}"
    );
}

#[test]
fn one_at_a_time_and_for_the_updater_alone() {
    let mut node = node();
    node.ask(UPDATE, arm());
    assert_eq!(code(&node.ask(UPDATE, arm())), Some(RefusedCode::WrongState));
    for channel in [API, TRIAL] {
        assert_eq!(code(&node.ask(channel, arm())), Some(RefusedCode::NotAllowed));
        assert_eq!(code(&node.ask(channel, Request::Rollback)), Some(RefusedCode::NotAllowed));
        assert_eq!(code(&node.ask(channel, Request::Disarm)), Some(RefusedCode::NotAllowed));
    }
}

#[test]
fn the_judge_looks_and_reboots_and_does_nothing_else() {
    let mut node = node();
    assert!(matches!(replies(&node.ask(TRIAL, Request::List { after: None })).as_slice(), [Reply::Page { .. }]));
    assert_eq!(code(&node.ask(TRIAL, Request::Reexec)), Some(RefusedCode::NotAllowed));
    let off = Request::Shutdown { action: ShutdownAction::PowerOff };
    assert_eq!(code(&node.ask(TRIAL, off)), Some(RefusedCode::NotAllowed));
    let reboot = Request::Shutdown { action: ShutdownAction::Reboot };
    assert_eq!(replies(&node.ask(TRIAL, reboot)), [Reply::Done]);
}

#[test]
fn what_is_ready_and_counts_is_held() {
    let mut node = node();
    node.launched(SERVICE, 1, RUNNING);
    for (id, name, marked) in [(11, "web", true), (12, "batch", false)] {
        let mut made = definition(name, Kind::Container);
        if marked {
            made.labels.push(("critical".to_owned(), "true".to_owned()));
        }
        let request = Request::Create { definition: Box::new(made), start: true };
        let context = byre_core::CallContext { channel: API, descriptors: 0, fresh: id };
        let call = Box::new(byre_protocol::control::Call { sequence: id, request });
        node.tell(Event::Called { context, call });
        node.launched(WorkloadId(id), 1, RUNNING);
    }
    assert_eq!(node.core.held(("critical", "true")), (vec!["log".to_owned()], vec!["web".to_owned()]));
}

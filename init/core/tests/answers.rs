//! Whatever PID 1 answers fits a message: an answer that cannot be encoded is one that its caller waits for without end.

use byre_core::{Action, Boot, CallContext, ChannelId, Core, Event, LaunchOutcome, Subject};
use byre_plan::{Policy, WorkloadId};
use byre_protocol::control::{Call, FromInit, Notice, Reply, Request, Target};
use byre_protocol::definition::{DEFINITION_BYTES, Definition, LABEL_BYTES, LABELS, Role};
use byre_protocol::frame;
use byre_protocol::status::{Moment, StartFailure};

const API: ChannelId = ChannelId(1);
const STATE: ChannelId = ChannelId(2);

fn policy() -> Policy {
    serde_json::from_value(serde_json::json!({
        "host_network": true, "host_namespaces": false, "host_users": false, "capabilities": 0,
        "bind_sources": [], "no_seccomp": false, "helpers": []
    }))
    .unwrap()
}

fn booted() -> Core {
    let mut core = Core::new();
    core.step(Event::Boot(Box::new(Boot { policy: policy(), services: Vec::new() })), Moment::default());
    core.step(Event::ChannelOpened { channel: API, role: Role::Api }, Moment::default());
    core.step(Event::ChannelOpened { channel: STATE, role: Role::State }, Moment::default());
    call(&mut core, STATE, 0, Request::ReplayEnd);
    core
}

fn definition(name: &str, label_bytes: usize) -> Definition {
    let mut definition: Definition = serde_json::from_value(serde_json::json!({
        "name": name, "kind": "container",
        "launch": {
            "process": {"args": ["/bin/true"]},
            "root": {"layers": {"layers": [vec![7; 32]], "read_only": false}},
            "namespaces": {"user": "automatic"},
        },
    }))
    .unwrap();
    let mut left = label_bytes;
    while left > 0 {
        let value = left.min(LABEL_BYTES);
        definition.labels.push((definition.labels.len().to_string(), "x".repeat(value)));
        left -= value;
    }
    assert!(definition.labels.len() <= LABELS);
    definition
}

/// Steps, and encodes everything that is sent; gives the answers.
fn step(core: &mut Core, event: Event) -> (Vec<Action>, Vec<Reply>) {
    let actions = core.step(event, Moment { boot_ms: 1, wall_ms: 1 });
    let mut replies = Vec::new();
    for action in &actions {
        if let Action::Send { message, .. } = action {
            frame::encode(message.as_ref()).unwrap();
            if let FromInit::Answer { reply, .. } = message.as_ref() {
                replies.push(reply.clone());
            }
        }
    }
    (actions, replies)
}

fn call(core: &mut Core, channel: ChannelId, fresh: u64, request: Request) -> (Vec<Action>, Vec<Reply>) {
    let context = CallContext { channel, descriptors: 0, fresh };
    step(core, Event::Called { context, call: Box::new(Call { sequence: fresh, request }) })
}

fn create(core: &mut Core, number: u64, label_bytes: usize) -> Vec<Reply> {
    let definition = Box::new(definition(&format!("c{number}"), label_bytes));
    call(core, API, number, Request::Create { definition, start: false }).1
}

fn acknowledge_all(core: &mut Core, actions: &[Action]) {
    for action in actions {
        if let Action::Send { message, .. } = action
            && let FromInit::Notice(notice) = message.as_ref()
            && let Notice::Record { record, .. } = notice.as_ref()
        {
            call(core, STATE, 0, Request::Recorded { record: *record });
        }
    }
}

/// Started, and failed with the longest path that there is.
fn fails(core: &mut Core, number: u64) {
    let target = Target::Id(WorkloadId(number));
    let (actions, _) = call(core, API, number, Request::Start { target });
    acknowledge_all(core, &actions);
    let launched = actions
        .iter()
        .find_map(|action| if let Action::Launch { id, run } = action { Some((*id, *run)) } else { None });
    let (id, run) = launched.expect("it is launched");
    let failure = StartFailure { step: "mount".into(), subject: "/x".repeat(2048), errno: 2 };
    let subject = Subject::Workload { id, run };
    step(core, Event::Launched { subject, outcome: LaunchOutcome::Failed(failure) });
    step(core, Event::Emptied { id, run });
}

fn inspect(core: &mut Core, number: u64) -> Vec<Reply> {
    call(core, API, 1000, Request::Inspect { target: Target::Id(WorkloadId(number)) }).1
}

#[test]
fn the_largest_container_can_be_made_and_shown_whatever_becomes_of_it() {
    let mut core = booted();
    let most = DEFINITION_BYTES - frame::encode(&definition("c1", 0)).unwrap().len() - 512;
    assert!(create(&mut core, 1, most).is_empty(), "it waits for its record");
    for _ in 0..12 {
        fails(&mut core, 1);
        assert!(matches!(inspect(&mut core, 1).as_slice(), [Reply::Inspected(_)]));
    }
}

#[test]
fn a_container_that_could_not_be_shown_is_refused() {
    let mut core = booted();
    let replies = create(&mut core, 1, DEFINITION_BYTES + 1);
    assert!(matches!(replies.as_slice(), [Reply::Refused(refused)] if refused.text.contains("shorten")), "{replies:?}");
}

#[test]
fn a_page_of_containers_that_failed_on_long_paths_fits() {
    let mut core = booted();
    for number in 1..40 {
        create(&mut core, number, 0);
        fails(&mut core, number);
    }
    let (_, replies) = call(&mut core, API, 99, Request::List { after: None });
    let [Reply::Page { workloads, more: true }] = replies.as_slice() else { panic!("{} answers", replies.len()) };
    assert!(workloads.len() > 5);
}

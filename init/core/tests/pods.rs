//! Pods: when they are ready, what happens to what is in them, and how a container with a network becomes two workloads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::wildcard_enum_match_arm, clippy::arithmetic_side_effects, unreachable_pub)]

mod node;

use byre_core::{Action, ChannelId, Event, LaunchOutcome};
use byre_plan::{Namespace, Program, UserNamespace, WorkloadId};
use byre_protocol::control::{Change, FromInit, Notice, RefusedCode, Reply, Request, Target};
use byre_protocol::definition::{Definition, Kind, Role};
use byre_protocol::pod::{NetworkAttachment, PodAddress, PodNetwork};
use byre_protocol::status::{State, Why};

use node::{API, NEW, Node, RUNNING, STATE, answers, definition, launches, name, records};

const PODNET: ChannelId = ChannelId(3);
/// A container's own pod has the identity that its container's has not.
const OWN: WorkloadId = WorkloadId(!1000);

fn networked(text: &str) -> Definition {
    let attachment = NetworkAttachment { network: name("byre"), aliases: Vec::new(), address: None };
    let network = PodNetwork { networks: vec![attachment], ..PodNetwork::default() };
    let mut one = Definition { network: Some(network), ..definition(text, Kind::Container) };
    one.launch.hostname = Some("box".to_owned());
    one
}

fn address() -> PodAddress {
    let address = "10.88.0.2".parse().unwrap();
    PodAddress { network: name("byre"), interface: "eth0".to_owned(), address, prefix: 24 }
}

fn node() -> Node {
    let mut node = Node::with(Vec::new()).0;
    node.tell(Event::ChannelOpened { channel: PODNET, role: Role::Network });
    node
}

/// What the network service is told.
fn told(actions: &[Action]) -> Vec<Notice> {
    let sent = |action: &Action| match action {
        Action::Send { channel: PODNET, message, .. } => match &**message {
            FromInit::Notice(notice) => Some((**notice).clone()),
            FromInit::Answer { .. } => None,
        },
        _ => None,
    };
    actions.iter().filter_map(sent).collect()
}

fn state(node: &Node, id: WorkloadId) -> State {
    node.core.workload(id).unwrap().state()
}

/// A container with a network, created and started, up to where its pod's namespaces are there.
fn pod_is_made(node: &mut Node) -> Vec<Action> {
    let created = node.ask(API, Request::Create { definition: Box::new(networked("web")), start: true });
    for (record, _) in records(&created) {
        node.ask(STATE, Request::Recorded { record });
    }
    assert_eq!(launches(&created), [OWN], "the pod comes first");
    node.launched(OWN, 1, LaunchOutcome::Made)
}

#[test]
fn a_container_with_a_network_is_split_into_a_pod_and_itself() {
    let mut node = node();
    let created = node.ask(API, Request::Create { definition: Box::new(networked("web")), start: false });
    let ids: Vec<WorkloadId> = records(&created)
        .iter()
        .map(|(_, change)| match change {
            Change::Put(record) => record.id,
            Change::Remove(id) => *id,
        })
        .collect();
    assert_eq!(ids, [OWN, NEW], "no container is on disk before its pod");
    let pod = node.core.workload(OWN).unwrap();
    let web = node.core.workload(NEW).unwrap();
    assert_eq!((pod.definition().kind, pod.definition().launch.process.program), (Kind::Pod, Program::None));
    assert_eq!(pod.definition().launch.hostname.as_deref(), Some("box"));
    assert_eq!((web.definition().launch.hostname.as_deref(), web.definition().network.as_ref()), (None, None));
    assert_eq!(web.id_base(), pod.id_base(), "in a pod everybody has the pod's ids");
    let namespaces = &web.plan().request().namespaces;
    let directory = format!("/run/byre/ns/{}", pod.definition().name);
    assert_eq!(namespaces.net, Namespace::Join(format!("{directory}/net")));
    assert_eq!(namespaces.user, UserNamespace::Join(format!("{directory}/user")));
}

#[test]
fn a_pod_is_ready_when_the_network_service_has_attached_it_and_its_container_starts_then() {
    let mut node = node();
    let made = pod_is_made(&mut node);
    assert!(matches!(told(&made)[..], [Notice::Attach { id: OWN, run: 1, .. }]), "{made:?}");
    assert!(launches(&made).is_empty());
    assert!(matches!(state(&node, NEW), State::Down { why: Why::Waiting(_) }));
    let attached = node.ask(PODNET, Request::Attached { id: OWN, run: 1, addresses: vec![address()] });
    assert_eq!(launches(&attached), [NEW]);
    let running = node.launched(NEW, 1, RUNNING);
    assert!(matches!(answers(&running)[..], [Reply::Created { id: NEW }]), "{running:?}");
    let inspected = answers(&node.ask(API, Request::Inspect { target: Target::Name(name("web")) }));
    let [Reply::Inspected(detail)] = &inspected[..] else { panic!("{inspected:?}") };
    assert_eq!(detail.addresses, [address()], "a container shows its pod's addresses");
}

#[test]
fn a_network_service_that_restarts_is_told_of_every_pod_with_its_addresses() {
    let mut node = node();
    pod_is_made(&mut node);
    node.ask(PODNET, Request::Attached { id: OWN, run: 1, addresses: vec![address()] });
    node.launched(NEW, 1, RUNNING);
    node.tell(Event::ChannelClosed(PODNET));
    assert!(matches!(state(&node, NEW), State::Up { ready: true, .. }), "what runs does not notice");
    let opened = node.tell(Event::ChannelOpened { channel: PODNET, role: Role::Network });
    let [Notice::Attach { addresses, .. }, Notice::AttachEnd] = &told(&opened)[..] else { panic!("{opened:?}") };
    assert_eq!(*addresses, [address()]);
}

#[test]
fn a_pod_that_cannot_be_attached_fails_its_containers_start() {
    let mut node = node();
    pod_is_made(&mut node);
    let text = "no network is named byre".to_owned();
    let failed = node.ask(PODNET, Request::AttachFailed { id: OWN, run: 1, text });
    assert!(failed.contains(&Action::KillAll { id: OWN, run: 1 }), "{failed:?}");
    let emptied = node.tell(Event::Emptied { id: OWN, run: 1 });
    let answers = answers(&emptied);
    let [Reply::Refused(refused)] = &answers[..] else { panic!("{emptied:?}") };
    assert_eq!(refused.code, RefusedCode::StartFailed);
    assert!(refused.text.contains("no network is named byre"), "{}", refused.text);
    assert!(told(&emptied).contains(&Notice::Detach { id: OWN }));
}

#[test]
fn a_pod_stays_while_its_container_is_started_again_and_goes_with_it() {
    let mut node = node();
    pod_is_made(&mut node);
    node.ask(PODNET, Request::Attached { id: OWN, run: 1, addresses: vec![address()] });
    node.launched(NEW, 1, RUNNING);
    let target = Target::Name(name("web"));
    node.ask(API, Request::Restart { target: target.clone(), grace_ms: Some(0) });
    let again = node.tell(Event::Emptied { id: NEW, run: 1 });
    assert_eq!(launches(&again), [NEW], "in the same pod, with the same address");
    node.launched(NEW, 2, RUNNING);
    node.ask(API, Request::Stop { target: target.clone(), grace_ms: Some(0) });
    let stopped = node.tell(Event::Emptied { id: NEW, run: 2 });
    assert!(stopped.contains(&Action::KillAll { id: OWN, run: 1 }), "{stopped:?}");
    node.tell(Event::Emptied { id: OWN, run: 1 });
    let removed = node.ask(API, Request::Remove { target, force: false });
    for (record, _) in records(&removed) {
        node.ask(STATE, Request::Recorded { record });
    }
    let gone = node.tell(Event::FilesRemoved { id: NEW, removed: true });
    let last = records(&gone);
    assert!(matches!(last[..], [(_, Change::Remove(OWN))]), "{gone:?}");
}

#[test]
fn a_pod_that_is_stopped_waits_for_its_containers() {
    let mut node = node();
    let pod = Definition { remove_on_exit: false, ..networked("web").split_off_pod(name("pod")).unwrap() };
    let target = Target::Name(name("pod"));
    let pod_id = NEW;
    node.ask(API, Request::Create { definition: Box::new(pod), start: true });
    node.launched(pod_id, 1, LaunchOutcome::Made);
    node.ask(PODNET, Request::Attached { id: pod_id, run: 1, addresses: vec![address()] });
    let member = Definition { pod: Some(name("pod")), ..definition("member", Kind::Container) };
    let member_id = WorkloadId(2000);
    node.ask_as(API, Request::Create { definition: Box::new(member), start: true }, member_id.0);
    node.launched(member_id, 1, RUNNING);
    let stopping = node.ask(API, Request::Stop { target: target.clone(), grace_ms: None });
    assert!(stopping.contains(&Action::Signal { id: member_id, signal: 15 }), "{stopping:?}");
    assert!(!stopping.contains(&Action::KillAll { id: pod_id, run: 1 }), "{stopping:?}");
    let ended = node.tell(Event::Emptied { id: member_id, run: 1 });
    assert!(ended.contains(&Action::KillAll { id: pod_id, run: 1 }), "{ended:?}");
    let refused = answers(&node.ask(API, Request::Remove { target, force: true }));
    assert!(matches!(&refused[..], [Reply::Refused(refused)] if refused.text.contains("member")), "{refused:?}");
}

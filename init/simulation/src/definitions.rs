//! What the simulated node runs: its services as the image build would compile them, and containers as clients ask for them.

use byre_core::Boot;
use byre_plan::{LaunchRequest, Name, Namespace, Namespaces, Policy, UserNamespace, WorkloadId};
use byre_protocol::definition::{Definition, Grant, Kind, ReadyWhen, Restart, RestartPolicy, Role};
use byre_protocol::pod::{NetworkAttachment, PodNetwork, nothing_executed};
use byre_protocol::probe::{Check, Probe};
use byre_protocol::schedule::{Calendar, Schedule, When};

use crate::chance::Chance;

/// Names that clients give to containers: few, so that they meet.
pub(crate) const NAMES: [&str; 5] = ["one", "two", "three", "four", "five"];

/// Names of groups.
pub(crate) const GROUPS: [&str; 2] = ["red", "blue"];

/// A name that is known to be one.
pub(crate) fn name(text: &str) -> Name {
    Name::try_from(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A definition with nothing special about it. Made once and cloned: parsing is most of its cost.
fn plain(kind: Kind) -> Definition {
    let is_container = kind == Kind::Container;
    let root = if is_container {
        serde_json::json!({"layers": {"layers": [vec![7; 32]], "read_only": false}})
    } else {
        "host".into()
    };
    let launch: LaunchRequest = serde_json::from_value(serde_json::json!({
        "process": {"args": ["/bin/true"]},
        "root": root,
        "namespaces": {"user": if is_container { "automatic" } else { "host" }},
    }))
    .unwrap_or_else(|error| panic!("launch request: {error}"));
    let text = serde_json::json!({"name": "plain", "kind": "container", "launch": launch});
    let mut definition: Definition = serde_json::from_value(text).unwrap_or_else(|error| panic!("definition: {error}"));
    definition.kind = kind;
    definition
}

/// What a container may be asked.
fn probe(chance: &mut Chance) -> Probe {
    let check = match chance.below(4) {
        0 | 1 => Check::Exec { args: vec!["/bin/ready".to_owned()] },
        2 => Check::Tcp { port: 80 },
        _ => Check::Grpc { port: 80, service: String::new() },
    };
    let initial_delay_ms = if chance.one_in(2) { 300 } else { 0 };
    Probe { interval_ms: 500, failures: 2, initial_delay_ms, ..Probe::of(check) }
}

/// A pod that a client may ask for.
fn pod(text: &str, chance: &mut Chance) -> Definition {
    let mut launch = nothing_executed();
    launch.namespaces = Namespaces { user: UserNamespace::Automatic, ..launch.namespaces };
    for namespace in [&mut launch.namespaces.net, &mut launch.namespaces.ipc, &mut launch.namespaces.uts] {
        *namespace = Namespace::New;
    }
    let network = (!chance.one_in(4)).then(|| network(chance));
    Definition { network, ..Definition::pod(name(text), launch) }
}

fn network(chance: &mut Chance) -> PodNetwork {
    let attachment = NetworkAttachment { network: name("byre"), aliases: Vec::new(), address: None };
    PodNetwork { networks: if chance.one_in(6) { Vec::new() } else { vec![attachment] }, ..PodNetwork::default() }
}

/// Everything that histories are made of, parsed once.
#[derive(Debug, Clone)]
pub(crate) struct Definitions {
    container: Definition,
    services: Vec<(WorkloadId, Definition)>,
    policy: Policy,
    calendars: (Calendar, Calendar),
}

impl Definitions {
    pub(crate) fn new() -> Self {
        let policy = serde_json::from_value(serde_json::json!({
            "host_network": true, "host_namespaces": false, "host_users": false, "capabilities": 0,
            "bind_sources": [], "no_seccomp": false, "helpers": []
        }))
        .unwrap_or_else(|error| panic!("policy: {error}"));
        let service = |text: &str, role: Option<Role>, needs: &[&str]| {
            let mut definition = plain(Kind::Service);
            definition.name = name(text);
            definition.needs = needs.iter().map(|other| name(other)).collect();
            definition.grants = role.map(Grant::Control).into_iter().collect();
            definition.restart = Restart { policy: RestartPolicy::Always, ..Restart::default() };
            definition.readiness.when = ReadyWhen::Notify;
            definition.shutdown_priority = 100;
            definition
        };
        let mut disk = plain(Kind::Job);
        disk.name = name("disk");
        disk.restart = Restart { policy: RestartPolicy::OnFailure(0), ..Restart::default() };
        disk.shutdown_priority = 200;
        let mut clock = service("clock", Some(Role::Observer), &[]);
        clock.liveness = Some(Probe { interval_ms: 5_000, ..Probe::of(Check::Watchdog) });
        let services = [
            disk,
            service("state", Some(Role::State), &["disk"]),
            service("log", Some(Role::Log), &["disk"]),
            service("probe", Some(Role::Probe), &[]),
            service("api", Some(Role::Api), &["state", "log"]),
            clock,
            service("podnet", Some(Role::Network), &[]),
        ];
        let services = (1..).map(WorkloadId).zip(services).collect();
        let calendar = |text: &str| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let calendars = (calendar("* * * * *"), calendar("*/20 3,22 * * *"));
        Self { container: plain(Kind::Container), services, policy, calendars }
    }

    /// What the verified root brings.
    pub(crate) fn boot(&self) -> Boot {
        Boot { policy: self.policy.clone(), services: self.services.clone() }
    }

    /// A container that a client may ask for.
    pub(crate) fn container(&self, text: &str, chance: &mut Chance) -> Definition {
        if chance.one_in(6) {
            return pod(text, chance);
        }
        let mut definition = self.container.clone();
        definition.name = name(text);
        if chance.one_in(5) {
            definition.pod = Some(name(chance.pick(&NAMES).copied().unwrap_or("one")));
        } else if chance.one_in(3) {
            definition.network = Some(network(chance));
        }
        definition.restart.policy = match chance.below(4) {
            0 => RestartPolicy::Never,
            1 => RestartPolicy::OnFailure(2),
            2 => RestartPolicy::Always,
            _ => RestartPolicy::UnlessStopped,
        };
        definition.remove_on_exit = chance.one_in(4);
        definition.readiness.when = match chance.below(6) {
            0 => ReadyWhen::Notify,
            1..=2 => ReadyWhen::Probe(probe(chance)),
            _ => ReadyWhen::Started,
        };
        definition.startup = chance.one_in(6).then(|| probe(chance));
        definition.liveness = chance.one_in(4).then(|| probe(chance));
        if chance.one_in(5) {
            definition.needs.push(name(chance.pick(&["clock", "one", "two", "red"]).copied().unwrap_or("one")));
        }
        if chance.one_in(5) {
            definition.binds_to.push(name(chance.pick(&["clock", "one", "two", "blue"]).copied().unwrap_or("one")));
        }
        if chance.one_in(4) {
            definition.stop.hook = vec!["/bin/drain".to_owned()];
        }
        if matches!(definition.restart.policy, RestartPolicy::Never | RestartPolicy::OnFailure(_)) && chance.one_in(3) {
            definition.kind = Kind::Job;
            definition.deadline_ms = if chance.one_in(2) { 20_000 } else { 0 };
        }
        if definition.kind == Kind::Job && !definition.remove_on_exit && chance.one_in(3) {
            let when = match chance.below(3) {
                0 => When::EveryMs(1_000 * (1 + u64::try_from(chance.below(90)).unwrap_or(0))),
                1 => When::Calendar(self.calendars.0),
                _ => When::Calendar(self.calendars.1),
            };
            definition.schedule = Some(Schedule { when, catch_up: chance.one_in(2) });
        }
        if chance.one_in(4) {
            definition.group = Some(name(chance.pick(&GROUPS).copied().unwrap_or("red")));
        }
        // What is started again without end is limited without end, and never comes to rest.
        let ends = definition.kind == Kind::Job || definition.restart.policy == RestartPolicy::Never;
        if ends && chance.one_in(3) {
            definition.run_limit_ms = 30_000;
        }
        if chance.one_in(5) {
            definition.after.push(name(chance.pick(&["log", "two", "three", "red"]).copied().unwrap_or("two")));
        }
        definition
    }
}

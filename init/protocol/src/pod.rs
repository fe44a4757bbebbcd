//! Pods: what a definition asks of the network, what the network service gives, and where a pod's namespaces are bound.

use std::net::IpAddr;

use byre_plan::{LaunchRequest, Name, Namespace, Namespaces, Process, Program, Root, Seccomp, User, UserNamespace};
use serde::{Deserialize, Serialize};

use crate::definition::{Definition, Kind, LogPolicy, Readiness, ReadyWhen, Restart, RestartPolicy, Stop};

/// Each pod has a directory here, named as itself, with the namespaces `net`, `ipc`, `uts` and `user` as far as they are its own.
pub const NAMESPACES: &str = "/run/byre/ns";
/// Networks of one pod: each is an interface in it.
pub const NETWORKS: usize = 8;
/// Ports that one pod publishes: whole ranges are written out one by one.
pub const PORTS: usize = 256;
/// Further names of a pod in one network.
pub const ALIASES: usize = 16;
/// Addresses of one pod: two for each network, and room for what a plugin gives.
pub const ADDRESSES: usize = 32;
/// Bits per second below which nothing gets through, and above which no link is.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000;

/// What a pod asks of the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct PodNetwork {
    /// Its networks; the first is `eth0` and has the default route. None is a loopback and nothing else.
    pub networks: Vec<NetworkAttachment>,
    /// Ports of the node that lead to it.
    pub ports: Vec<PublishedPort>,
    /// Bits per second towards it; 0 is no limit.
    pub ingress_bits_per_second: u64,
    /// Bits per second from it; 0 is no limit.
    pub egress_bits_per_second: u64,
    /// Its name for others in its networks.
    pub host_name: Option<Name>,
}

/// A pod in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkAttachment {
    /// Which network.
    pub network: Name,
    /// Further names of the pod there.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// The address it wants, instead of a free one.
    #[serde(default)]
    pub address: Option<IpAddr>,
}

/// A port of the node that leads to a port of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// Of which protocol.
    pub transport: Transport,
    /// Only on this address of the node; `None` is every one.
    #[serde(default)]
    pub host_address: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub pod_port: u16,
}

/// A transport protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// An address that a pod was given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodAddress {
    /// In which network.
    pub network: Name,
    /// On which interface of the pod.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Bits of its network.
    pub prefix: u8,
}

impl PodNetwork {
    /// What is wrong with it, if something is.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        if self.networks.len() > NETWORKS {
            return Some(format!("at most {NETWORKS} networks"));
        }
        if self.ports.len() > PORTS {
            return Some(format!("at most {PORTS} published ports"));
        }
        let mut seen: Vec<&Name> = Vec::new();
        for attachment in &self.networks {
            if seen.contains(&&attachment.network) {
                return Some(format!("network {} is named twice", attachment.network));
            }
            if attachment.aliases.len() > ALIASES {
                return Some(format!("at most {ALIASES} aliases in network {}", attachment.network));
            }
            seen.push(&attachment.network);
        }
        if self.networks.is_empty() && !self.ports.is_empty() {
            return Some("a published port needs a network; name one".to_owned());
        }
        if let Some(port) = self.ports.iter().find(|port| port.host_port == 0 || port.pod_port == 0) {
            return Some(format!("port {}:{} is not 1 to 65535", port.host_port, port.pod_port));
        }
        let limits = [self.ingress_bits_per_second, self.egress_bits_per_second];
        let bad = limits.into_iter().find(|bits| *bits != 0 && !BANDWIDTH.contains(bits));
        bad.map(|bits| format!("bandwidth of {bits} bits per second is not 0 or 1000 to 10^12"))
    }
}

impl Definition {
    /// Its launch request as it is carried out: inside its pod, the pod's namespaces take the place of new ones.
    #[must_use]
    pub fn launch_in_pod(&self) -> LaunchRequest {
        let mut launch = self.launch.clone();
        let Some(pod) = &self.pod else { return launch };
        let namespaces = &mut launch.namespaces;
        for (kind, namespace) in
            [("net", &mut namespaces.net), ("ipc", &mut namespaces.ipc), ("uts", &mut namespaces.uts)]
        {
            if *namespace == Namespace::New {
                *namespace = Namespace::Join(format!("{NAMESPACES}/{pod}/{kind}"));
            }
        }
        if namespaces.user == UserNamespace::Automatic {
            namespaces.user = UserNamespace::Join(format!("{NAMESPACES}/{pod}/user"));
        }
        launch
    }

    /// What is wrong with it as a pod, or as what belongs to one, if something is.
    #[must_use]
    pub fn pod_refusal(&self) -> Option<String> {
        let executes = self.launch.process.program != Program::None;
        let says = |text: &str| Some(text.to_owned());
        match self.kind {
            Kind::Pod if executes => return says("a pod executes nothing: its program is none"),
            Kind::Pod if self.pod.is_some() => return says("a pod is in no other pod"),
            Kind::Pod
                if self.readiness.when != ReadyWhen::Started
                    || self.startup.is_some()
                    || self.liveness.is_some()
                    || !self.stop.hook.is_empty()
                    || self.open_stdin
                    || self.run_limit_ms > 0 =>
            {
                return says("a pod has no process: no probes, no stop hook, no input, no longest run");
            }
            Kind::Pod => {}
            Kind::Service | Kind::Job | Kind::Container if !executes => {
                return says("only a pod executes nothing; name a program");
            }
            Kind::Service if self.pod.is_some() || self.network.is_some() => return says("a service is in no pod"),
            Kind::Service | Kind::Job | Kind::Container => {}
        }
        if self.pod.is_some() {
            if self.network.is_some() {
                return says("its network is its pod's; leave its own out, or leave the pod out");
            }
            if self.launch.hostname.is_some() || !self.launch.sysctls.is_empty() {
                return says("its host name and sysctls are its pod's; leave its own out");
            }
        }
        let namespaces = &self.launch.namespaces;
        if self.network.is_some() && namespaces.net != Namespace::New {
            return says("a network needs a network namespace of its own");
        }
        if self.network.is_some() && !matches!(namespaces.user, UserNamespace::Host | UserNamespace::Automatic) {
            return says("with a network its user namespace is automatic or the host's");
        }
        self.network.as_ref().and_then(PodNetwork::refusal)
    }

    /// What keeps it from being in this pod, if something does.
    #[must_use]
    pub fn cannot_join(&self, pod: &Self) -> Option<String> {
        if pod.kind != Kind::Pod {
            return Some(format!("{} is no pod; name one", pod.name));
        }
        let (own, other) = (&self.launch.namespaces, &pod.launch.namespaces);
        let pairs = [("network", &own.net, &other.net), ("IPC", &own.ipc, &other.ipc), ("UTS", &own.uts, &other.uts)];
        if let Some((kind, ..)) = pairs.into_iter().find(|(_, own, other)| own != other) {
            return Some(format!("its {kind} namespace is not as that of pod {}; ask for the same", pod.name));
        }
        if own.user != other.user || !matches!(own.user, UserNamespace::Host | UserNamespace::Automatic) {
            return Some(format!("its user namespace is not as that of pod {}; ask for the same", pod.name));
        }
        None
    }

    /// Takes out of a container what a pod of its own has instead, and names that pod; `None` if it wants no network.
    #[must_use]
    pub fn split_off_pod(&mut self, pod: Name) -> Option<Self> {
        let network = self.network.take()?;
        let namespaces = &self.launch.namespaces;
        let launch = LaunchRequest {
            hostname: self.launch.hostname.take(),
            sysctls: std::mem::take(&mut self.launch.sysctls),
            namespaces: Namespaces {
                user: namespaces.user.clone(),
                net: namespaces.net.clone(),
                ipc: namespaces.ipc.clone(),
                uts: namespaces.uts.clone(),
                ..Namespaces::of_host()
            },
            ..nothing_executed()
        };
        self.pod = Some(pod.clone());
        Some(Self { remove_on_exit: true, network: Some(network), ..Self::pod(pod, launch) })
    }

    /// A pod of this name with nothing special about it: wanted until it is removed, in no network.
    #[must_use]
    pub fn pod(name: Name, launch: LaunchRequest) -> Self {
        Self {
            name,
            kind: Kind::Pod,
            launch,
            needs: Vec::new(),
            after: Vec::new(),
            restart: Restart { policy: RestartPolicy::UnlessStopped, ..Restart::default() },
            readiness: Readiness::default(),
            stop: Stop::default(),
            log: LogPolicy::default(),
            grants: Vec::new(),
            labels: Vec::new(),
            open_stdin: false,
            remove_on_exit: false,
            shutdown_priority: 0,
            binds_to: Vec::new(),
            deadline_ms: 0,
            run_limit_ms: 0,
            startup: None,
            liveness: None,
            schedule: None,
            group: None,
            pod: None,
            network: None,
        }
    }
}

/// A launch request that executes nothing, with everything the host's: a pod adds the namespaces that it has of its own.
#[must_use]
pub fn nothing_executed() -> LaunchRequest {
    LaunchRequest {
        root: Root::Host,
        seccomp: Seccomp::None,
        ..LaunchRequest::on_host(Process {
            program: Program::None,
            args: Vec::new(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: User::default(),
            terminal: None,
            capabilities: byre_plan::Capabilities::default(),
            rlimits: Vec::new(),
            no_new_privileges: true,
            oom_score_adj: None,
            scheduling: byre_plan::Scheduling::default(),
            labels: byre_plan::Labels::default(),
        })
    }
}

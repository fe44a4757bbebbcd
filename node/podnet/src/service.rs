//! The service's loop, and how a pod gets into its networks and out of them.
//!
//! ```text
//!   attach: addresses ─▶ bridge ─▶ veth pair, its far end in the pod ─▶ addresses and routes inside ─▶ rules ─▶ told to PID 1
//! ```
//!
//! A step that fails takes back what the ones before it did. Rules are made from all of the tables and replaced whole, so that they cannot differ
//! from what the tables say.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use byre_plan::{Name, WorkloadId};
use byre_protocol::control::{FromInit, Notice, REASON_BYTES, Request};
use byre_protocol::frame::FrameError;
use byre_protocol::pod::{PodAddress, PodNetwork};
use byre_sandbox::channel::ChannelError;
use byre_sandbox::{Channel, Descriptors, Notifier, profiles};
use rustix::event::{PollFd, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::links::{Links, Pair};
use crate::networks::{Network, Networks, Refusal};
use crate::nft::{Net, Port, Rules};

/// MTU where the way out is not known.
const ETHERNET_MTU: u32 = 1500;

/// Why the service ended. PID 1 starts it anew, and tells it of every pod again.
#[derive(Debug, thiserror::Error)]
pub enum PodnetError {
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// What it keeps on disk cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refused something that every network needs.
    #[error("{what}: {errno}")]
    Kernel {
        /// What.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
    /// It could not leave a pod's network namespace, and so must end.
    #[error("back to the own network namespace: {0}")]
    Return(Errno),
    /// PID 1 closed the channel or spoke another language.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

impl From<FrameError> for PodnetError {
    fn from(error: FrameError) -> Self {
        Self::Channel(error.into())
    }
}

fn kernel(what: &'static str) -> impl FnOnce(Errno) -> PodnetError {
    move |errno| PodnetError::Kernel { what, errno }
}

/// Why one pod is in no network. Told to PID 1, which fails its start.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error(transparent)]
    Network(#[from] Refusal),
    #[error("{step} {what}: {errno}")]
    Step { step: &'static str, what: String, errno: Errno },
    #[error("port {port} of the node is published by {other} already; choose another")]
    Published { port: u16, other: Name },
    #[error("its network namespace did not come along; PID 1 sends it again at its next start")]
    NoNamespace,
    #[error(transparent)]
    Ending(#[from] PodnetError),
}

fn at(step: &'static str, what: &str) -> impl FnOnce(Errno) -> AttachError {
    let what = what.to_owned();
    move |errno| AttachError::Step { step, what, errno }
}

/// Where things lie, which tests choose for themselves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The file of the networks.
    pub networks: PathBuf,
    /// `/proc/sys/net` of the node's network namespace.
    pub sysctls: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self { networks: PathBuf::from("/data/podnet/networks.json"), sysctls: PathBuf::from("/proc/sys/net") }
    }
}

/// What is asked for a pod.
#[derive(Debug)]
pub struct Asked {
    /// Its identity.
    pub id: WorkloadId,
    /// Its name.
    pub name: Name,
    /// What it asks for.
    pub network: PodNetwork,
    /// The addresses that it has already.
    pub addresses: Vec<PodAddress>,
    /// Its network namespace.
    pub namespace: Option<OwnedFd>,
}

/// A pod that is attached.
#[derive(Debug)]
struct Pod {
    name: Name,
    ports: Vec<Port>,
    /// The node's ends of its links.
    links: Vec<String>,
}

/// Everything that the service knows.
#[derive(Debug)]
pub struct Service {
    settings: Settings,
    home: OwnedFd,
    links: Links,
    rules: Rules,
    networks: Networks,
    pods: BTreeMap<WorkloadId, Pod>,
    /// PID 1 has not told of all pods yet: rules that it made before its restart stay as they are until then.
    adopting: bool,
}

/// The service, started by PID 1.
///
/// # Errors
/// If it cannot start or its channel fails.
pub fn run() -> Result<(), PodnetError> {
    let mut descriptors = Descriptors::from_environment()?;
    let control = descriptors.take("control")?;
    let notifier = Notifier::from_environment()?;
    byre_sandbox::seal(&profiles::PODNET)?;
    let mut service = Service::start(Settings::default())?;
    notifier.ready()?;
    let mut channel = Channel::new(control);
    loop {
        channel.flush()?;
        let mut wanted = [PollFd::new(&channel, channel.interest())];
        match poll(&mut wanted, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(kernel("poll")(errno)),
        }
        while let Some((message, descriptors)) = channel.receive()? {
            if let FromInit::Notice(notice) = message
                && let Some(answer) = service.take(*notice, descriptors)?
            {
                channel.send(answer, vec![])?;
            }
        }
    }
}

impl Service {
    /// Makes what every network needs, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the file of the networks cannot be read, or the kernel refuses.
    pub fn start(settings: Settings) -> Result<Self, PodnetError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let home =
            rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty()).map_err(kernel("own namespace"))?;
        let mut random = [0; 5];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(kernel("random number"))?;
        let path = settings.networks.to_string_lossy().into_owned();
        let failed = |source| PodnetError::File { path: settings.networks.clone(), source };
        let networks = Networks::load(&path, random).map_err(failed)?;
        forward(&settings.sysctls)?;
        let links = Links::open().map_err(kernel("rtnetlink"))?;
        let rules = Rules::open().map_err(kernel("nfnetlink"))?;
        Ok(Self { settings, home, links, rules, networks, pods: BTreeMap::new(), adopting: true })
    }

    /// Takes one notice; returns what PID 1 is told.
    fn take(&mut self, notice: Notice, descriptors: Vec<OwnedFd>) -> Result<Option<Request>, PodnetError> {
        match notice {
            Notice::Attach { id, run, name, network, addresses } => {
                let namespace = descriptors.into_iter().next();
                let asked = Asked { id, name, network: *network, addresses, namespace };
                Ok(Some(match self.attach(asked)? {
                    Ok(addresses) => Request::Attached { id, run, addresses },
                    Err(text) => Request::AttachFailed { id, run, text },
                }))
            }
            Notice::AttachEnd => self.attach_end().map(|()| None),
            Notice::Detach { id } => self.detach(id).map(|()| None),
            Notice::ShuttingDown
            | Notice::Event(_)
            | Notice::ExecEnded { .. }
            | Notice::LogStream { .. }
            | Notice::LogRemove { .. }
            | Notice::LogRunEnded { .. }
            | Notice::Record { .. }
            | Notice::Probe { .. }
            | Notice::ProbeEnd { .. } => Ok(None),
        }
    }

    /// Puts a pod into its networks; its addresses, or why not, for people.
    ///
    /// # Errors
    /// If the service cannot go on.
    pub fn attach(&mut self, asked: Asked) -> Result<Result<Vec<PodAddress>, String>, PodnetError> {
        let id = asked.id;
        match self.try_attach(asked) {
            Ok(addresses) => Ok(Ok(addresses)),
            Err(AttachError::Ending(error)) => Err(error),
            Err(error) => {
                self.take_apart(id);
                let mut text = error.to_string();
                text.truncate(text.floor_char_boundary(REASON_BYTES));
                Ok(Err(text))
            }
        }
    }

    /// PID 1 has told of every pod.
    ///
    /// # Errors
    /// If the rules cannot be replaced.
    pub fn attach_end(&mut self) -> Result<(), PodnetError> {
        self.adopting = false;
        self.replace_rules().map_err(kernel("packet filter"))
    }

    /// A pod is gone. Its links went with its namespace, or go now.
    ///
    /// # Errors
    /// If the rules cannot be replaced.
    pub fn detach(&mut self, id: WorkloadId) -> Result<(), PodnetError> {
        self.take_apart(id);
        self.replace_rules().map_err(kernel("packet filter"))
    }

    fn take_apart(&mut self, id: WorkloadId) {
        if let Some(pod) = self.pods.remove(&id) {
            for link in pod.links {
                if let Err(errno) = self.links.remove(&link) {
                    eprintln!("link {link} of {} stays until its namespace goes: {errno}", pod.name);
                }
            }
        }
        self.networks.release(id);
    }

    fn try_attach(&mut self, asked: Asked) -> Result<Vec<PodAddress>, AttachError> {
        let Asked { id, name, network, addresses: had, namespace } = asked;
        let namespace = namespace.ok_or(AttachError::NoNamespace)?;
        self.check_ports(id, &network)?;
        self.pods.insert(id, Pod { name, ports: Vec::new(), links: Vec::new() });
        let mut addresses = Vec::new();
        for (number, attachment) in network.networks.iter().enumerate() {
            let known = had.iter().find(|address| address.network == attachment.network);
            let wanted = known.map(|address| address.address).or(attachment.address);
            let (in_network, offset) = self.networks.lease(id, &attachment.network, wanted)?;
            let inside = format!("eth{number}");
            let own = self.connect(id, number, &in_network, offset, &namespace, known.is_some(), &network)?;
            let mut push = |address: IpAddr, prefix: u8| {
                let network = attachment.network.clone();
                addresses.push(PodAddress { network, interface: inside.clone(), address, prefix });
            };
            push(own.0, in_network.subnet4.1);
            push(own.1, in_network.subnet6.1);
        }
        let ports = ports(&network, &addresses);
        if let Some(pod) = self.pods.get_mut(&id) {
            pod.ports = ports;
        }
        if !self.adopting {
            self.replace_rules().map_err(at("write", "packet filter"))?;
        }
        Ok(addresses)
    }

    /// No other pod has these ports of the node.
    fn check_ports(&self, id: WorkloadId, network: &PodNetwork) -> Result<(), AttachError> {
        for wanted in &network.ports {
            let clashes = |port: &Port| {
                let same_address = port.host_address.is_none()
                    || wanted.host_address.is_none()
                    || port.host_address == wanted.host_address;
                port.transport == wanted.transport && port.host_port == wanted.host_port && same_address
            };
            let others = self.pods.iter().filter(|(other, _)| **other != id);
            if let Some((_, other)) = others.into_iter().find(|(_, pod)| pod.ports.iter().any(clashes)) {
                return Err(AttachError::Published { port: wanted.host_port, other: other.name.clone() });
            }
        }
        Ok(())
    }

    /// One link into a pod. One that is there already, from before this service's restart, is left as it is.
    #[expect(clippy::too_many_arguments, reason = "all of them say which link, and each is another kind of thing")]
    fn connect(
        &mut self,
        id: WorkloadId,
        number: usize,
        network: &Network,
        offset: u32,
        namespace: &OwnedFd,
        is_known: bool,
        asked: &PodNetwork,
    ) -> Result<(IpAddr, IpAddr), AttachError> {
        let (bridge, mtu) = self.bridge(network)?;
        let host = host_link(id, number);
        let (four, six) = network.at(offset);
        let own = (IpAddr::V4(four), IpAddr::V6(six));
        if let Some(pod) = self.pods.get_mut(&id) {
            pod.links.push(host.clone());
        }
        let is_there = self.links.find(&host).map_err(at("look for link", &host))?.is_some();
        if is_there && is_known {
            return Ok(own);
        }
        if is_there {
            self.links.remove(&host).map_err(at("remove link", &host))?;
        }
        let inside = format!("eth{number}");
        let pair = Pair { host: &host, bridge, inside: &inside, namespace, mtu };
        self.links.pair(&pair).map_err(at("make link", &host))?;
        let outside = self.links.find(&host).and_then(|link| link.ok_or(Errno::NODEV));
        let outside = outside.map_err(at("find link", &host))?.index;
        self.links.reflect(outside).map_err(at("set up bridge port", &host))?;
        let gateway = (number == 0 && !network.internal).then(|| network.gateway());
        let mut within = self.links_of(namespace)?;
        let link = within.find(&inside).and_then(|link| link.ok_or(Errno::NODEV)).map_err(at("find link", &inside))?;
        for (address, prefix) in [(own.0, network.subnet4.1), (own.1, network.subnet6.1)] {
            within.address(link.index, address, prefix).map_err(at("add address", &address.to_string()))?;
        }
        within.up(link.index).map_err(at("bring up link", &inside))?;
        if let Some((four, six)) = gateway {
            for gateway in [IpAddr::V4(four), IpAddr::V6(six)] {
                within.default_route(link.index, gateway).map_err(at("add default route", &gateway.to_string()))?;
            }
        }
        if asked.egress_bits_per_second > 0 {
            within.limit(link.index, asked.egress_bits_per_second).map_err(at("limit bandwidth of", &inside))?;
        }
        if asked.ingress_bits_per_second > 0 {
            self.links.limit(outside, asked.ingress_bits_per_second).map_err(at("limit bandwidth of", &host))?;
        }
        Ok(own)
    }

    /// rtnetlink of a pod's namespace.
    fn links_of(&self, namespace: &OwnedFd) -> Result<Links, AttachError> {
        let enter = |of: &OwnedFd| move_into_thread_name_spaces(of.as_fd(), ThreadNameSpaceType::NETWORK);
        enter(namespace).map_err(at("enter", "network namespace"))?;
        let links = Links::open();
        enter(&self.home).map_err(PodnetError::Return)?;
        links.map_err(at("open", "rtnetlink"))
    }

    /// A network's bridge with its addresses, made if it is not there; its index, and the MTU of its links.
    fn bridge(&mut self, network: &Network) -> Result<(u32, u32), AttachError> {
        let name = network.bridge();
        let mtu = match network.mtu {
            0 => self.links.uplink_mtu().unwrap_or(ETHERNET_MTU),
            mtu => mtu,
        };
        if let Some(link) = self.links.find(&name).map_err(at("look for bridge", &name))? {
            return Ok((link.index, link.mtu));
        }
        let index = self.links.bridge(&name, mtu).map_err(at("make bridge", &name))?;
        let (four, six) = network.gateway();
        for (address, prefix) in [(IpAddr::V4(four), network.subnet4.1), (IpAddr::V6(six), network.subnet6.1)] {
            self.links.address(index, address, prefix).map_err(at("add address to bridge", &name))?;
        }
        // Published ports are reached from the node itself by its loopback address, too.
        let setting = self.settings.sysctls.join(format!("ipv4/conf/{name}/route_localnet"));
        write(&setting, "1")?;
        Ok((index, mtu))
    }

    fn replace_rules(&mut self) -> Result<(), Errno> {
        let networks: Vec<Net> = self
            .networks
            .all()
            .iter()
            .map(|network| Net {
                bridge: network.bridge(),
                subnet4: network.subnet4,
                subnet6: network.subnet6,
                internal: network.internal,
            })
            .collect();
        let ports: Vec<Port> = self.pods.values().flat_map(|pod| pod.ports.iter().copied()).collect();
        self.rules.networks(&networks, &ports)
    }
}

/// What the node's end of a pod's link is called: 40 bits of its identity.
fn host_link(id: WorkloadId, number: usize) -> String {
    format!("bp{:010x}{number}", id.0 & 0xff_ffff_ffff)
}

/// Ports by the addresses that they lead to: those of the pod's first network.
fn ports(network: &PodNetwork, addresses: &[PodAddress]) -> Vec<Port> {
    let Some(first) = network.networks.first() else { return Vec::new() };
    let targets = || addresses.iter().filter(|address| address.network == first.network);
    let to = |port: &byre_protocol::pod::PublishedPort, target: IpAddr| Port {
        transport: port.transport,
        host_address: port.host_address,
        host_port: port.host_port,
        to: target,
        pod_port: port.pod_port,
    };
    let fits = |port: &byre_protocol::pod::PublishedPort, target: &IpAddr| {
        port.host_address.is_none_or(|host| host.is_ipv4() == target.is_ipv4())
    };
    network
        .ports
        .iter()
        .flat_map(|port| {
            targets().map(|target| target.address).filter(|target| fits(port, target)).map(|target| to(port, target))
        })
        .collect()
}

fn write(path: &Path, value: &str) -> Result<(), PodnetError> {
    use std::io::Write as _;
    let file = std::fs::File::options().write(true).open(path);
    file.and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| PodnetError::File { path: path.to_owned(), source })
}

/// Lets the node pass packets on. A node that does so would ignore router advertisements; its own links go on listening to them.
fn forward(sysctls: &Path) -> Result<(), PodnetError> {
    let links = sysctls.join("ipv6/conf");
    for entry in std::fs::read_dir(&links).into_iter().flatten().flatten() {
        let setting = entry.path().join("accept_ra");
        if std::fs::read_to_string(&setting).is_ok_and(|value| value.trim() == "1") {
            write(&setting, "2")?;
        }
    }
    write(&sysctls.join("ipv4/ip_forward"), "1")?;
    // A kernel without IPv6 has none to pass on.
    if links.exists() { write(&links.join("all/forwarding"), "1") } else { Ok(()) }
}

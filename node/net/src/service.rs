//! The loop of `byred net`: kernel messages, answers of DHCP servers and deadlines in; addresses, routes and two files out.
//!
//! It never waits for a network: each link goes its own way, and readiness is told when the first one has an address. It changes only
//! links that the configuration (or the default for hardware) names, and at its end it takes nothing away, so that a restart is not
//! noticed by anybody's connections.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use byre_config::{InterfaceAddress, Network};
use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::dhcp::frame;
use crate::dhcp::machine::{Action, Destination, Event, Held, Machine, Millis};
use crate::dhcp::wire::{self, MacAddress, Reply, Request};
use crate::netlink::{Kernel, Link, Refused};
use crate::socket::{BROADCAST, PacketSocket};
use crate::state::{Files, LinkState, NetState, WriteError, read_bounded};
use crate::wanted::{self, Settings, Wanted};

/// Answers that wait for the loop. One exchange has a handful; more is a flood, and what does not fit is asked for again.
const REPLIES: usize = 16;
/// Deadlines are looked at again at least this often in tokio's clock; a renewal in a year is not one sleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 3600);
/// Linux's HOST_NAME_MAX and a line end.
const HOSTNAME_BYTES: u64 = 65;
/// Steps that one deadline may cause: each state waits for something else, so a second one is rare and a fourth impossible.
const STEPS: usize = 4;

/// Where everything lies; other places for tests.
#[derive(Debug, Clone)]
pub struct Options {
    /// The table `network` of the configuration, as JSON.
    pub network: PathBuf,
    /// The host name that DHCP servers are told.
    pub hostname: PathBuf,
    /// Directory of `state.json` and `resolv.conf`.
    pub run: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            network: "/run/byre/config/net.json".into(),
            hostname: "/run/byre/config/hostname".into(),
            run: "/run/byre/net".into(),
            sys: "/sys".into(),
        }
    }
}

/// Why the service ended.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The runtime, or a socket to the kernel, could not be made.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    /// The kernel did not list its links.
    #[error("the kernel refused to {0}")]
    Kernel(String),
    /// Its messages ended.
    #[error("the kernel's messages ended: the netlink socket is closed")]
    Closed,
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The sandbox could not be entered, or PID 1 not be told.
    #[error(transparent)]
    Sandbox(#[from] byre_sandbox::StartError),
}

/// An answer on its way to the loop.
#[derive(Debug)]
struct Heard {
    index: u32,
    reply: Reply,
    neighbour: MacAddress,
}

/// A socket and the task that reads it.
#[derive(Debug)]
struct Ear {
    socket: Arc<PacketSocket>,
    task: JoinHandle<()>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A link that is looked after.
#[derive(Debug)]
struct Managed {
    link: Link,
    settings: Settings,
    machine: Option<Machine>,
    ear: Option<Ear>,
    applied: Option<Held>,
    fixed: bool,
}

struct Service<R> {
    network: Network,
    hostname: Option<String>,
    options: Options,
    kernel: Kernel,
    links: BTreeMap<u32, Managed>,
    previous: NetState,
    files: Files,
    heard: mpsc::Sender<Heard>,
    ready: Option<R>,
}

/// Serves until `stop` is done. `ready` is called once, when the node has a network or is to have none.
///
/// # Errors
/// When the kernel's netlink or the output directory cannot be used; the service is then started again.
pub async fn serve<R, S>(options: Options, ready: R, stop: S) -> Result<(), ServiceError>
where
    R: FnOnce() -> Result<(), ServiceError>,
    S: Future<Output = ()>,
{
    let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
    let connection = tokio::spawn(connection);
    let network = wanted::read(&options.network).unwrap_or_else(|error| {
        println!("net: {}: {error}; using DHCPv4 on all Ethernet links", options.network.display());
        Network::default()
    });
    let hostname = read_bounded(&options.hostname, HOSTNAME_BYTES)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty());
    let files = Files::new(&options.run);
    let (heard, replies) = mpsc::channel(REPLIES);
    let service = Service {
        network,
        hostname,
        previous: files.read(),
        files,
        kernel: Kernel::new(handle),
        links: BTreeMap::new(),
        heard,
        ready: Some(ready),
        options,
    };
    let result = tokio::select! {
        result = service.run(messages, replies) => result,
        () = stop => Ok(()),
    };
    connection.abort();
    result
}

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)>;

impl<R: FnOnce() -> Result<(), ServiceError>> Service<R> {
    async fn run(mut self, mut messages: Messages, mut replies: mpsc::Receiver<Heard>) -> Result<(), ServiceError> {
        self.look_at_all().await?;
        loop {
            self.publish()?;
            let deadline = self.links.values().filter_map(|managed| managed.machine.as_ref()?.deadline()).min();
            tokio::select! {
                message = messages.next() => match message {
                    Some((message, _)) => self.kernel_said(message).await?,
                    None => return Err(ServiceError::Closed),
                },
                Some(Heard { index, reply, neighbour }) = replies.recv() => {
                    self.step(index, Event::Reply(reply, neighbour)).await;
                }
                () = sleep_until(deadline.unwrap_or_default()), if deadline.is_some() => self.deadlines().await,
            }
        }
    }

    async fn kernel_said(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> Result<(), ServiceError> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the kernel's messages of other kinds do not concern links")]
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
                self.link_seen(Link::from_message(&message)).await;
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) => self.link_gone(message.header.index),
            // The kernel had to drop messages: what it said before is no longer the whole truth.
            NetlinkPayload::Overrun(_) => self.look_at_all().await?,
            _ => {}
        }
        Ok(())
    }

    async fn look_at_all(&mut self) -> Result<(), ServiceError> {
        let links = self.kernel.links().await.map_err(|error| ServiceError::Kernel(error.to_string()))?;
        let gone: Vec<u32> =
            self.links.keys().copied().filter(|index| !links.iter().any(|link| link.index == *index)).collect();
        for index in gone {
            self.link_gone(index);
        }
        for link in links {
            self.link_seen(link).await;
        }
        Ok(())
    }

    fn link_gone(&mut self, index: u32) {
        if let Some(managed) = self.links.remove(&index) {
            println!("net: {}: gone", managed.link.name);
        }
    }

    async fn link_seen(&mut self, link: Link) {
        let index = link.index;
        if link.loopback {
            if !link.up {
                self.report("lo", self.kernel.set_up(index).await);
            }
            return;
        }
        let before = self.links.get(&index).map(|managed| managed.link.clone());
        // A rename or a new hardware address can make it another link to the configuration.
        let same = before.as_ref().is_some_and(|before| before.name == link.name && before.mac == link.mac);
        if !same && !self.take_on(&link) {
            return;
        }
        let Some(managed) = self.links.get_mut(&index) else { return };
        managed.link = link.clone();
        let carried = same && before.as_ref().is_some_and(|before| before.carrier);
        if !link.up {
            managed.fixed = false;
            if let Some(mtu) = managed.settings.mtu {
                self.report(&link.name, self.kernel.set_mtu(index, mtu).await);
            }
            self.report(&link.name, self.kernel.set_up(index).await);
        } else if self.links.get(&index).is_some_and(|managed| !managed.fixed) {
            self.fix(index).await;
        }
        if link.carrier != carried {
            println!("net: {}: {}", link.name, if link.carrier { "link up" } else { "link down" });
            if link.carrier {
                self.listen(index);
                // The kernel forgets routes of a link that was taken down; giving them again changes nothing otherwise.
                self.reapply(index).await;
            }
            self.step(index, if link.carrier { Event::LinkUp } else { Event::LinkDown }).await;
            if let Some(managed) = self.links.get_mut(&index).filter(|managed| !managed.link.carrier) {
                managed.ear = None;
            }
        }
    }

    /// Begins to look after a link, if the configuration wants that.
    fn take_on(&mut self, link: &Link) -> bool {
        self.links.remove(&link.index);
        let driver = wanted::driver(&self.options.sys, &link.name);
        let Some(settings) = wanted::of_link(&self.network, link, driver.as_deref()).map(Wanted::into_settings) else {
            return false;
        };
        let mac = wanted::mac_text(link.mac);
        let held = self
            .previous
            .links
            .iter()
            .find(|old| old.index == link.index && old.name == link.name && old.mac == mac)
            .and_then(|old| old.dhcp4.clone())
            .filter(|_| settings.dhcp4);
        // Without a hardware address there is nobody for a server to answer.
        let machine = (settings.dhcp4 && link.mac.is_some()).then(|| Machine::new(seed(), held.clone()));
        let managed = Managed { link: link.clone(), settings, machine, ear: None, applied: held, fixed: false };
        self.links.insert(link.index, managed);
        true
    }

    /// Gives a link that is up its fixed addresses and routes.
    async fn fix(&mut self, index: u32) {
        let Some(managed) = self.links.get_mut(&index) else { return };
        managed.fixed = true;
        let Managed { settings, link, .. } = managed;
        let (name, settings, mtu) = (link.name.clone(), settings.clone(), link.mtu);
        if let Some(wanted) = settings.mtu.filter(|wanted| *wanted != mtu) {
            self.report(&name, self.kernel.set_mtu(index, wanted).await);
        }
        for address in &settings.addresses {
            let added = self.kernel.add_address(index, *address, None).await;
            if self.report(&name, added) {
                println!("net: {name}: address {address} (fixed)");
            }
        }
        for gateway in &settings.gateways {
            let on_link = !settings.addresses.iter().any(|own| own.contains(*gateway));
            let added = self.kernel.add_gateway(index, *gateway, on_link && !link_local(*gateway)).await;
            self.report(&name, added);
        }
    }

    fn listen(&mut self, index: u32) {
        let Some(managed) = self.links.get_mut(&index) else { return };
        let (Some(_), Some(mac)) = (&managed.machine, managed.link.mac) else { return };
        let opened = PacketSocket::open(index).and_then(|socket| {
            let socket = Arc::new(socket);
            Ok((PacketSocket::watch(socket.clone())?, socket))
        });
        match opened {
            Ok((fd, socket)) => {
                let task = tokio::spawn(hear(fd, index, mac, self.heard.clone()));
                managed.ear = Some(Ear { socket, task });
            }
            Err(error) => println!("net: {}: cannot open a packet socket for DHCP: {error}", managed.link.name),
        }
    }

    async fn deadlines(&mut self) {
        let now = now_ms();
        let due = |managed: &Managed| managed.machine.as_ref()?.deadline().filter(|deadline| *deadline <= now);
        let late: Vec<u32> =
            self.links.iter().filter(|(_, managed)| due(managed).is_some()).map(|(at, _)| *at).collect();
        for index in late {
            for _ in 0..STEPS {
                if self.links.get(&index).and_then(due).is_none() {
                    break;
                }
                self.step(index, Event::Timer).await;
            }
        }
    }

    async fn step(&mut self, index: u32, event: Event) {
        let Some(managed) = self.links.get_mut(&index) else { return };
        let Some(machine) = managed.machine.as_mut() else { return };
        for action in machine.step(event, now_ms()) {
            match action {
                Action::Send(request, to) => self.send(index, &request, to),
                Action::Apply(held) => self.apply(index, held).await,
                Action::Withdraw(lease) => self.withdraw(index, &lease).await,
            }
        }
    }

    fn send(&self, index: u32, request: &Request, to: Destination) {
        let Some(managed) = self.links.get(&index) else { return };
        let (Some(ear), Some(mac)) = (&managed.ear, managed.link.mac) else { return };
        let (source, destination, neighbour) = match to {
            Destination::Broadcast => (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, BROADCAST),
            Destination::BroadcastFrom(own) => (own, Ipv4Addr::BROADCAST, BROADCAST),
            Destination::Unicast { from, server, neighbour } => (from, server, neighbour),
        };
        let packet = wire::encode(request, mac, self.hostname.as_deref())
            .and_then(|message| frame::wrap(source, destination, &message));
        let Some(packet) = packet else { return };
        // A link that has just gone down refuses; its next message says so, and the exchange repeats itself anyway.
        if let Err(error) = ear.socket.send(&packet, neighbour) {
            println!("net: {}: DHCP message not sent: {error}", managed.link.name);
        }
    }

    async fn apply(&mut self, index: u32, held: Held) {
        let Some(managed) = self.links.get_mut(&index) else { return };
        let name = managed.link.name.clone();
        let before = managed.applied.replace(held.clone());
        let wanted_mtu = managed.settings.mtu.is_none().then_some(held.lease.mtu).flatten().map(u32::from);
        let mtu = wanted_mtu.filter(|mtu| *mtu != managed.link.mtu);
        let lease = &held.lease;
        if before.as_ref().is_none_or(|before| before.lease != *lease) {
            let time = lease.times.map_or_else(|| "for ever".into(), |times| format!("for {} s", times.end_s));
            println!("net: {name}: address {}/{} from {} {time}", lease.address, lease.prefix, lease.server);
        }
        if let Some(mtu) = mtu {
            self.report(&name, self.kernel.set_mtu(index, mtu).await);
        }
        self.reapply(index).await;
        let own = address_of(&held);
        for old in before.iter().filter(|before| address_of(before) == own).flat_map(|before| &before.lease.routes) {
            // A changed router of the same destination has been replaced already.
            let still =
                lease.routes.iter().any(|route| route.destination == old.destination && route.prefix == old.prefix);
            if let Some(own) = own.filter(|_| !still) {
                self.report(&name, self.kernel.remove_route(index, own, old).await);
            }
        }
    }

    /// Gives the kernel what the link's lease says, for as long as it still lasts.
    async fn reapply(&self, index: u32) {
        let Some(managed) = self.links.get(&index) else { return };
        let Some((held, own)) = managed.applied.as_ref().and_then(|held| Some((held, address_of(held)?))) else {
            return;
        };
        let left_ms = held.end_ms().map(|end| end.saturating_sub(now_ms()));
        if left_ms.is_some_and(|left| left < 1000) {
            return;
        }
        let seconds = left_ms.map(|left| u32::try_from(left / 1000).unwrap_or(u32::MAX));
        if !self.report(&managed.link.name, self.kernel.add_address(index, own, seconds).await) {
            return;
        }
        // Routes on the link come first: others may lead through them.
        let (near, far): (Vec<_>, Vec<_>) = held.lease.routes.iter().partition(|route| route.gateway.is_none());
        for route in near.into_iter().chain(far) {
            self.report(&managed.link.name, self.kernel.add_route(index, own, route).await);
        }
    }

    async fn withdraw(&mut self, index: u32, lease: &wire::Lease) {
        let Some(managed) = self.links.get_mut(&index) else { return };
        let name = managed.link.name.clone();
        let Some(held) = managed.applied.take() else { return };
        println!("net: {name}: address {}/{} given up", lease.address, lease.prefix);
        if let Some(own) = address_of(&held) {
            // The kernel takes an address away by itself when its time is over; then it is gone already, as wanted.
            let _ = self.kernel.remove_address(index, own).await;
        }
    }

    /// Prints a refusal; true if there was none.
    fn report(&self, link: &str, result: Result<(), Refused>) -> bool {
        if let Err(error) = &result {
            println!("net: {link}: cannot {error}");
        }
        result.is_ok()
    }

    fn publish(&mut self) -> Result<(), ServiceError> {
        let links: Vec<LinkState> = self.links.values().map(Managed::state).collect();
        let has_address = links.iter().any(|link| link.carrier && !link.addresses.is_empty());
        self.files.write(links)?;
        if (has_address || !wanted::anything(&self.network))
            && let Some(ready) = self.ready.take()
        {
            ready()?;
        }
        Ok(())
    }
}

impl Managed {
    fn state(&self) -> LinkState {
        let lease = self.applied.as_ref().map(|held| &held.lease);
        let fixed = self.settings.addresses.iter().filter(|_| self.fixed).map(ToString::to_string);
        let leased = lease.map(|lease| format!("{}/{}", lease.address, lease.prefix));
        let routers = lease.into_iter().flat_map(|lease| &lease.routes).filter(|route| route.prefix == 0);
        let mut search = self.settings.search.clone();
        search.extend(lease.into_iter().flat_map(|lease| lease.search.clone()));
        LinkState {
            name: self.link.name.clone(),
            index: self.link.index,
            mac: wanted::mac_text(self.link.mac),
            mtu: self.link.mtu,
            carrier: self.link.carrier,
            addresses: fixed.chain(leased).collect(),
            gateways: self
                .settings
                .gateways
                .iter()
                .copied()
                .chain(routers.filter_map(|route| route.gateway.map(IpAddr::V4)))
                .collect(),
            dns: self
                .settings
                .dns
                .iter()
                .copied()
                .chain(lease.into_iter().flat_map(|lease| lease.dns.iter().copied().map(IpAddr::V4)))
                .collect(),
            search,
            dhcp4: self.applied.clone(),
        }
    }
}

/// Reads one link's packets; what is not an answer to it goes no further than here.
async fn hear(fd: AsyncFd<Arc<PacketSocket>>, index: u32, mac: MacAddress, heard: mpsc::Sender<Heard>) {
    loop {
        let Ok(mut ready) = fd.readable().await else { return };
        let received = match ready.try_io(|fd| fd.get_ref().receive()) {
            Ok(Ok(received)) => received,
            // The link went down: said once, and the socket works again when it is back.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
            Ok(Err(_)) => return,
            Err(_would_block) => continue,
        };
        let Some(payload) = frame::unwrap(&received.packet, received.checksum) else { continue };
        let Ok(reply) = wire::parse(payload, mac) else { continue };
        // Full means a flood; the exchange repeats itself.
        let _ = heard.try_send(Heard { index, reply, neighbour: received.neighbour });
        // A flood must not keep the loop from its deadlines.
        tokio::task::yield_now().await;
    }
}

fn address_of(held: &Held) -> Option<InterfaceAddress> {
    format!("{}/{}", held.lease.address, held.lease.prefix).parse().ok()
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

async fn sleep_until(deadline: Millis) {
    let left = Duration::from_millis(deadline.saturating_sub(now_ms()));
    tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
}

pub(crate) fn now_ms() -> Millis {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is negative on this clock.
    Millis::try_from(now.tv_sec).unwrap_or(0) * 1000 + Millis::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness this early, the clock tells machines apart well enough for transaction numbers.
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(8) => u64::from_ne_bytes(bytes),
        Ok(_) | Err(_) => now_ms().wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

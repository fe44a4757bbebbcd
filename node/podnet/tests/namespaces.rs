//! `byred podnet` in network namespaces of this test's own: a node, what lies outside it, and pods.
//!
//! Needs root, ip(8) and nft(8) (Debian: iproute2, nftables); without them it prints what is missing. Traffic is this program's own.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use byre_plan::{Name, WorkloadId};
use byre_podnet::{Asked, Service, Settings};
use byre_protocol::pod::{NetworkAttachment, PodAddress, PodNetwork, PublishedPort, Transport};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

static COUNT: AtomicUsize = AtomicUsize::new(0);
const PATIENCE: Duration = Duration::from_secs(5);

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn missing() -> Option<&'static str> {
    let has = |program: &str, argument: &str| {
        Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    if !rustix::process::getuid().is_root() {
        Some("root (network namespaces)")
    } else if !has("ip", "-V") {
        Some("ip(8) from iproute2")
    } else if !has("nft", "--version") {
        Some("nft(8) from nftables")
    } else {
        None
    }
}

/// A node with an uplink to the outside, and the service in it.
struct Lab {
    names: Vec<String>,
    prefix: String,
    directory: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn lab() -> Option<Lab> {
    if let Some(missing) = missing() {
        eprintln!("skipped: needs {missing}");
        return None;
    }
    let prefix = format!("byre-pod-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut lab = Lab { names: Vec::new(), prefix, directory: tempfile::tempdir().expect("a directory") };
    let (node, outside) = (lab.add("node"), lab.add("outside"));
    run("ip", &["-n", &node, "link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", &outside]);
    run("ip", &["-n", &node, "addr", "add", "192.0.2.2/24", "dev", "up0"]);
    run("ip", &["-n", &outside, "addr", "add", "192.0.2.1/24", "dev", "out0"]);
    run("ip", &["-n", &node, "link", "set", "up0", "up"]);
    run("ip", &["-n", &outside, "link", "set", "out0", "up"]);
    run("ip", &["-n", &node, "route", "add", "default", "via", "192.0.2.1"]);
    Some(lab)
}

impl Lab {
    fn name(&self, side: &str) -> String {
        format!("{}-{side}", self.prefix)
    }

    fn add(&mut self, side: &str) -> String {
        let name = self.name(side);
        run("ip", &["netns", "add", &name]);
        run("ip", &["-n", &name, "link", "set", "lo", "up"]);
        self.names.push(name.clone());
        name
    }

    fn namespace(&self, side: &str) -> OwnedFd {
        std::fs::File::open(format!("/run/netns/{}", self.name(side))).expect("a namespace").into()
    }

    /// Runs this in that namespace, on a thread of its own.
    fn inside<T: Send + 'static>(&self, side: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = self.namespace(side);
        let thread = std::thread::spawn(move || {
            move_into_thread_name_spaces(namespace.as_fd(), ThreadNameSpaceType::NETWORK).expect("enter namespace");
            act()
        });
        thread.join().expect("the thread ends")
    }

    /// The service, in the node's namespace: this thread stays there.
    fn service(&self) -> Service {
        let namespace = self.namespace("node");
        move_into_thread_name_spaces(namespace.as_fd(), ThreadNameSpaceType::NETWORK).expect("enter namespace");
        let networks = self.directory.path().join("networks.json");
        let sysctls = std::path::PathBuf::from("/proc/thread-self/net/../../../sys/net");
        let sysctls = if sysctls.exists() { sysctls } else { "/proc/sys/net".into() };
        Service::start(Settings { networks, sysctls }).expect("the service starts")
    }

    fn pod(&mut self, service: &mut Service, name: &str, id: u64, ports: Vec<PublishedPort>) -> Vec<PodAddress> {
        self.add(name);
        service.attach(self.asked(name, id, ports)).expect("the service goes on").expect("it is attached")
    }

    fn asked(&self, name: &str, id: u64, ports: Vec<PublishedPort>) -> Asked {
        let network = Name::try_from("byre").expect("a name");
        let attachment = NetworkAttachment { network, aliases: Vec::new(), address: None };
        Asked {
            id: WorkloadId(id),
            name: Name::try_from(name).expect("a name"),
            network: PodNetwork { networks: vec![attachment], ports, ..PodNetwork::default() },
            addresses: Vec::new(),
            namespace: Some(self.namespace(name)),
        }
    }

    /// Answers one connection after another in that namespace with the address that it sees.
    fn serve(&self, side: &str, port: u16) {
        let namespace = self.namespace(side);
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            move_into_thread_name_spaces(namespace.as_fd(), ThreadNameSpaceType::NETWORK).expect("enter namespace");
            let listener = TcpListener::bind(("::", port)).expect("listen");
            ready.send(()).expect("somebody waits");
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(peer.ip().to_canonical().to_string().as_bytes());
            }
        });
        is_ready.recv().expect("it listens");
    }

    /// Which address a server at `to` sees of a connection from `side`; `None` if there is none.
    fn seen(&self, side: &str, to: SocketAddr) -> Option<IpAddr> {
        self.inside(side, move || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            text.parse().ok()
        })
    }
}

fn published(host_port: u16, pod_port: u16) -> PublishedPort {
    PublishedPort { transport: Transport::Tcp, host_address: None, host_port, pod_port }
}

fn to(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

#[test]
#[ignore = "needs root: network namespaces"]
fn pods_reach_each_other_the_outside_and_are_reached_by_published_ports() {
    let Some(mut lab) = lab() else { return };
    let mut service = lab.service();
    service.attach_end().expect("rules are written");
    let one = lab.pod(&mut service, "one", 1, vec![published(8080, 80)]);
    let two = lab.pod(&mut service, "two", 2, Vec::new());
    let (one4, one6, two4) = (one[0].address, one[1].address, two[0].address);
    assert_eq!((one4.to_string().as_str(), two4.to_string().as_str()), ("10.88.0.2", "10.88.0.3"));
    lab.serve("one", 80);
    lab.serve("outside", 90);
    let (node4, outside4) = ("192.0.2.2".parse().unwrap(), "192.0.2.1".parse().unwrap());
    assert_eq!(lab.seen("two", to(one4, 80)), Some(two4), "pod to pod");
    assert_eq!(lab.seen("two", to(one6, 80)), Some(two[1].address), "pod to pod by IPv6");
    assert_eq!(lab.seen("two", to(outside4, 90)), Some(node4), "the outside sees the node's address");
    assert_eq!(lab.seen("outside", to(node4, 8080)), Some(outside4), "a published port from outside");
    assert!(lab.seen("two", to(node4, 8080)).is_some(), "a published port from another pod");
    assert!(lab.seen("one", to(node4, 8080)).is_some(), "a published port from the pod itself");
    assert!(lab.seen("node", to(node4, 8080)).is_some(), "a published port from the node by its address");
    assert!(lab.seen("node", to("127.0.0.1".parse().unwrap(), 8080)).is_some(), "and by its loopback address");
    service.detach(WorkloadId(1)).expect("rules are written");
    assert_eq!(lab.seen("node", to(node4, 8080)), None, "nothing is published any more");
}

#[test]
#[ignore = "needs root: network namespaces"]
fn a_service_that_restarts_interrupts_nothing_and_gives_no_address_twice() {
    let Some(mut lab) = lab() else { return };
    let mut service = lab.service();
    service.attach_end().expect("rules are written");
    let one = lab.pod(&mut service, "one", 1, vec![published(8080, 80)]);
    lab.serve("one", 80);
    let node4: IpAddr = "192.0.2.2".parse().unwrap();
    drop(service);
    assert!(lab.seen("outside", to(node4, 8080)).is_some(), "while no service is there");
    let mut service = lab.service();
    assert!(lab.seen("outside", to(node4, 8080)).is_some(), "before it knows of anybody");
    let known = Asked { addresses: one.clone(), ..lab.asked("one", 1, vec![published(8080, 80)]) };
    let again = service.attach(known).expect("the service goes on").expect("it is attached");
    assert_eq!(again, one);
    service.attach_end().expect("rules are written");
    assert!(lab.seen("outside", to(node4, 8080)).is_some(), "after it was told");
    let two = lab.pod(&mut service, "two", 2, Vec::new());
    assert_ne!(two[0].address, one[0].address);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn what_cannot_be_attached_is_refused_by_name_and_leaves_nothing() {
    let Some(mut lab) = lab() else { return };
    let mut service = lab.service();
    service.attach_end().expect("rules are written");
    lab.pod(&mut service, "one", 1, vec![published(8080, 80)]);
    lab.add("two");
    let refused = service.attach(lab.asked("two", 2, vec![published(8080, 81)])).expect("the service goes on");
    assert!(refused.clone().is_err_and(|text| text.contains("8080") && text.contains("one")), "{refused:?}");
    let mut asked = lab.asked("two", 2, Vec::new());
    asked.network.networks[0].network = Name::try_from("elsewhere").unwrap();
    let refused = service.attach(asked).expect("the service goes on");
    assert!(refused.clone().is_err_and(|text| text.contains("elsewhere")), "{refused:?}");
    let links = run("ip", &["-n", &lab.name("two"), "-brief", "link"]);
    assert!(!links.contains("eth0"), "{links}");
}

#[test]
#[ignore = "needs root: network namespaces"]
fn others_tables_stay_and_bandwidth_is_limited_where_it_is_asked_for() {
    let Some(mut lab) = lab() else { return };
    let node = lab.name("node");
    run("ip", &["netns", "exec", &node, "nft", "add table inet others; add chain inet others mine"]);
    let mut service = lab.service();
    service.attach_end().expect("rules are written");
    lab.add("one");
    let mut asked = lab.asked("one", 1, vec![published(8080, 80)]);
    asked.network.ingress_bits_per_second = 8_000_000;
    asked.network.egress_bits_per_second = 4_000_000;
    service.attach(asked).expect("the service goes on").expect("it is attached");
    let rules = run("ip", &["netns", "exec", &node, "nft", "list ruleset"]);
    assert!(rules.contains("table inet others") && rules.contains("chain mine"), "{rules}");
    assert!(rules.contains("dnat ip to 10.88.0.2:80") && rules.contains("masquerade"), "{rules}");
    let inside = run("ip", &["netns", "exec", &lab.name("one"), "tc", "class", "show", "dev", "eth0"]);
    assert!(inside.contains("rate 4Mbit"), "{inside}");
}

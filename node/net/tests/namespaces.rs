//! `byred net` in network namespaces of this test's own, against dnsmasq: leases, renewals, servers that vanish, cables that are cut.
//!
//! Needs root, ip(8) and dnsmasq (Debian: dnsmasq-base); without them it prints what is missing.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use byre_net::{NetState, Options, ServiceError, serve};

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Two namespaces with a cable between them: `lan` has the server's end, `node` the service's.
struct Lab {
    lan: String,
    node: String,
    directory: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.lan, &self.node] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What is missing for these tests.
fn missing() -> Option<&'static str> {
    let has = |program: &str, argument: &str| {
        Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    if !rustix::process::getuid().is_root() {
        Some("root (network namespaces)")
    } else if !has("ip", "-V") {
        Some("ip(8) from iproute2")
    } else if !has("dnsmasq", "--version") {
        Some("dnsmasq from dnsmasq-base")
    } else {
        None
    }
}

/// A laboratory, unless something is missing: then the reason is printed.
fn lab() -> Option<Lab> {
    if let Some(missing) = missing() {
        eprintln!("skipped: needs {missing}");
        return None;
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = |side: &str| format!("byre-net-{}-{number}-{side}", std::process::id());
    let lab = Lab { lan: name("lan"), node: name("node"), directory: tempfile::tempdir().expect("a directory") };
    run("ip", &["netns", "add", &lab.lan]);
    run("ip", &["netns", "add", &lab.node]);
    run("ip", &["-n", &lab.lan, "link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", &lab.node]);
    run("ip", &["-n", &lab.lan, "addr", "add", "10.77.0.1/24", "dev", "lan0"]);
    run("ip", &["-n", &lab.lan, "link", "set", "lan0", "up"]);
    lab.write("net.json", r#"{"links":[{"name":"eth0","dhcp4":true}]}"#);
    lab.write("hostname", "test-node\n");
    std::fs::create_dir(lab.directory.path().join("run")).expect("a directory");
    Some(lab)
}

/// A program that ends with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The service in its namespace, as a process of its own with its seccomp filter; it ends with its handle.
struct Service {
    process: Running,
    told: PathBuf,
}

impl Service {
    fn is_ready_within(&mut self, limit: Duration) -> bool {
        let begun = Instant::now();
        while !self.told.exists() {
            let ended = self.process.0.try_wait().expect("the process can be asked");
            assert!(ended.is_none(), "the service ended: {ended:?}");
            if begun.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

/// Names the laboratory's directory to the process that is the service.
const LAB: &str = "BYRE_NET_TEST_LAB";

/// Not a test: what [`Lab::service`] runs in a process of its own.
#[test]
fn the_service_itself() {
    let Some(root) = std::env::var_os(LAB).map(PathBuf::from) else { return };
    let options = Options {
        network: root.join("net.json"),
        hostname: root.join("hostname"),
        run: root.join("run"),
        sys: PathBuf::from("/sys"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let told = root.join("ready");
    let tell = move || std::fs::write(told, b"").map_err(ServiceError::from);
    let result = runtime.block_on(async {
        byre_net::prepare();
        byre_sandbox::seal(&byre_sandbox::profiles::NET).expect("the filter is taken");
        serve(options, tell, std::future::pending()).await
    });
    panic!("the service ended: {result:?}");
}

impl Lab {
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).expect("a file");
    }

    fn server(&self, extra: &[&str]) -> Running {
        let leases = self.directory.path().join("leases");
        let child = Command::new("ip")
            .args(["netns", "exec", &self.lan, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
            .args(["--user=root", "--bind-interfaces", "--interface=lan0", "--dhcp-authoritative", "--pid-file="])
            .args(["--leasefile-ro", "--dhcp-option=option:dns-server,10.77.0.53", "--domain=lab.example"])
            .arg(format!("--dhcp-leasefile={}", leases.display()))
            .args(extra)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dnsmasq starts");
        Running(child)
    }

    fn service(&self) -> Service {
        let root = self.directory.path();
        let told = root.join("ready");
        let _ = std::fs::remove_file(&told);
        let child = Command::new("ip")
            .args(["netns", "exec", &self.node])
            .arg(std::env::current_exe().expect("this program"))
            .args(["--exact", "the_service_itself", "--nocapture"])
            .env(LAB, root)
            .stdout(Stdio::null())
            .spawn()
            .expect("the service starts");
        Service { process: Running(child), told }
    }

    fn state(&self) -> NetState {
        let bytes = std::fs::read(self.directory.path().join("run/state.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn leased(&self) -> Option<String> {
        let lease = self.state().links.first()?.dhcp4.clone()?.lease;
        Some(format!("{}/{}", lease.address, lease.prefix))
    }

    fn since_ms(&self) -> Option<u64> {
        Some(self.state().links.first()?.dhcp4.clone()?.since_ms)
    }

    fn kernel_addresses(&self) -> String {
        run("ip", &["-n", &self.node, "-4", "-o", "addr", "show", "dev", "eth0"])
    }

    fn routes(&self) -> String {
        run("ip", &["-n", &self.node, "route"])
    }

    fn cable(&self, state: &str) {
        run("ip", &["-n", &self.lan, "link", "set", "lan0", state]);
    }
}

fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < limit, "{what} did not happen within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const SOON: Duration = Duration::from_secs(20);
const LATER: Duration = Duration::from_secs(60);
const RANGE: &str = "--dhcp-range=10.77.0.10,10.77.0.10,255.255.255.0,2m";

#[test]
fn a_lease_gives_address_routes_and_name_servers() {
    let Some(lab) = lab() else { return };
    let _server = lab.server(&[RANGE, "--dhcp-option=option:mtu,1400", "--dhcp-option=option:router,192.168.44.1"]);
    let mut service = lab.service();
    assert!(service.is_ready_within(SOON), "the service is ready");
    assert_eq!(lab.leased().as_deref(), Some("10.77.0.10/24"));
    let addresses = lab.kernel_addresses();
    assert!(addresses.contains("10.77.0.10/24") && !addresses.contains("forever"), "{addresses}");
    let routes = lab.routes();
    assert!(routes.contains("default via 192.168.44.1 dev eth0 proto dhcp src 10.77.0.10"), "{routes}");
    assert!(routes.contains("onlink"), "a router outside the network is reached over the link: {routes}");
    let link = run("ip", &["-n", &lab.node, "link", "show", "eth0"]);
    assert!(link.contains("mtu 1400"), "{link}");
    let resolv = read(&lab.directory.path().join("run/resolv.conf"));
    assert!(resolv.contains("nameserver 10.77.0.53") && resolv.contains("search lab.example"), "{resolv}");
    assert!(run("ip", &["-n", &lab.node, "link", "show", "lo"]).contains("LOWER_UP"));
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_server_that_comes_late_is_found() {
    let Some(lab) = lab() else { return };
    let mut service = lab.service();
    assert!(!service.is_ready_within(Duration::from_secs(3)), "nothing to be ready with");
    let _server = lab.server(&[RANGE]);
    assert!(service.is_ready_within(SOON), "found by the next attempt");
}

#[test]
fn a_lease_is_renewed_and_a_lost_server_found_again() {
    let Some(lab) = lab() else { return };
    let times = ["--dhcp-option=option:T1,10", "--dhcp-option=option:T2,20"];
    let server = lab.server(&[RANGE, times[0], times[1]]);
    let mut service = lab.service();
    assert!(service.is_ready_within(SOON), "the service is ready");
    let first = lab.since_ms();
    wait_for("a renewal", LATER, || lab.since_ms() > first);
    let second = lab.since_ms();
    drop(server);
    // T1 passes unanswered; the server is back before T2.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(lab.leased().as_deref(), Some("10.77.0.10/24"), "a lost server takes no address away");
    let _server = lab.server(&[RANGE, times[0], times[1]]);
    wait_for("a rebinding", LATER, || lab.since_ms() > second);
    assert!(lab.kernel_addresses().contains("10.77.0.10/24"));
}

#[test]
fn a_cut_cable_keeps_the_address_and_another_network_changes_it() {
    let Some(lab) = lab() else { return };
    let server = lab.server(&[RANGE]);
    let mut service = lab.service();
    assert!(service.is_ready_within(SOON), "the service is ready");
    let first = lab.since_ms();
    lab.cable("down");
    wait_for("the loss of carrier", SOON, || lab.state().links.first().is_some_and(|link| !link.carrier));
    assert!(lab.kernel_addresses().contains("10.77.0.10/24"));
    lab.cable("up");
    wait_for("the question about the old address", SOON, || lab.since_ms() > first);
    assert_eq!(lab.leased().as_deref(), Some("10.77.0.10/24"));
    assert!(lab.routes().contains("default via 10.77.0.1"));

    lab.cable("down");
    wait_for("the loss of carrier", SOON, || lab.state().links.first().is_some_and(|link| !link.carrier));
    drop(server);
    run("ip", &["-n", &lab.lan, "addr", "flush", "dev", "lan0"]);
    run("ip", &["-n", &lab.lan, "addr", "add", "10.88.0.1/16", "dev", "lan0"]);
    lab.cable("up");
    let _server = lab.server(&["--dhcp-range=10.88.3.3,10.88.3.3,255.255.0.0,2m"]);
    wait_for("a lease of the other network", LATER, || lab.leased().as_deref() == Some("10.88.3.3/16"));
    let addresses = lab.kernel_addresses();
    assert!(!addresses.contains("10.77.0.10") && addresses.contains("10.88.3.3/16"), "{addresses}");
    assert!(!lab.routes().contains("10.77.0.1"), "{}", lab.routes());
}

#[test]
fn a_restart_keeps_the_lease() {
    let Some(lab) = lab() else { return };
    let _server = lab.server(&["--dhcp-range=10.77.0.10,10.77.0.90,255.255.255.0,2m"]);
    let mut service = lab.service();
    assert!(service.is_ready_within(SOON), "the service is ready");
    let (address, first) = (lab.leased(), lab.since_ms());
    drop(service);
    assert!(lab.kernel_addresses().contains("10.77.0."), "an end takes nothing away");
    let mut service = lab.service();
    assert!(service.is_ready_within(SOON), "ready at once");
    wait_for("the question about the old address", SOON, || lab.since_ms() > first);
    assert_eq!(lab.leased(), address);
}

#[test]
fn fixed_addresses_and_links_that_come_and_go() {
    let Some(lab) = lab() else { return };
    lab.write(
        "net.json",
        r#"{"links":[{"name":"late1","dhcp4":false,"addresses":["192.168.5.2/24","fd00:5::2/64"],"gateway":"192.168.5.1","dns":["192.168.5.1"],"mtu":1300}]}"#,
    );
    let mut service = lab.service();
    assert!(!service.is_ready_within(Duration::from_secs(1)));
    run("ip", &["-n", &lab.node, "link", "add", "late1", "type", "veth", "peer", "name", "late2"]);
    run("ip", &["-n", &lab.node, "link", "set", "late2", "up"]);
    assert!(service.is_ready_within(SOON), "ready when the link has come");
    wait_for("the default route", SOON, || lab.routes().contains("default via 192.168.5.1 dev late1"));
    let shown = run("ip", &["-n", &lab.node, "addr", "show", "dev", "late1"]);
    assert!(
        shown.contains("192.168.5.2/24") && shown.contains("fd00:5::2/64") && shown.contains("mtu 1300"),
        "{shown}"
    );
    assert!(
        !run("ip", &["-n", &lab.node, "link", "show", "eth0"]).contains(",UP"),
        "a link that no entry names is left alone"
    );
    run("ip", &["-n", &lab.node, "link", "del", "late1"]);
    wait_for("the link's end", SOON, || lab.state().links.is_empty());
    run("ip", &["-n", &lab.node, "link", "add", "late1", "type", "veth", "peer", "name", "late2"]);
    wait_for("the link's return", SOON, || lab.routes().contains("default via 192.168.5.1"));
}

#[test]
fn without_anything_to_do_it_is_ready_at_once() {
    let Some(lab) = lab() else { return };
    lab.write("net.json", r#"{"links":[]}"#);
    assert!(lab.service().is_ready_within(SOON), "ready at once");
}

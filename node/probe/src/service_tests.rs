//! Probes of this process's own network namespace, and of another one where the test may make it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use byre_protocol::control::Call;
use byre_protocol::frame::{self, MESSAGE_BYTES};
use byre_protocol::probe::Check;
use rustix::net::{RecvFlags, SendFlags, socketpair};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::*;

const ID: WorkloadId = WorkloadId(5);

struct World {
    init: OwnedFd,
}

impl World {
    fn new() -> Self {
        let (init, control) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        std::thread::spawn(move || {
            let home = own_namespace().unwrap();
            Service { channel: Channel::new(control), home, probes: BTreeMap::new() }.serve()
        });
        Self { init }
    }

    fn probe(&self, number: u64, check: Check) {
        self.ask(number, Question { interval_ms: 50, failures: 1, ..Question::of(check) });
    }

    fn ask(&self, number: u64, probe: Question) {
        let process = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let notice = Notice::Probe { id: ID, number, aim: Aim::Readiness, probe, pid: std::process::id() };
        let bytes = frame::encode(&FromInit::Notice(Box::new(notice))).unwrap();
        frame::send(self.init.as_fd(), &bytes, &[process.as_fd()], SendFlags::empty()).unwrap();
    }

    fn told(&self) -> (u64, bool) {
        let mut buffer = vec![0; MESSAGE_BYTES];
        let (length, _) = frame::receive(self.init.as_fd(), &mut buffer, RecvFlags::empty()).unwrap();
        let call: Call = frame::decode(&buffer[..length]).unwrap();
        if let Request::Probed { id, number, aim, passed } = call.request {
            assert_eq!((id, aim), (ID, Aim::Readiness));
            return (number, passed);
        }
        panic!("{call:?}");
    }
}

/// Joining any network namespace, even the own one, needs CAP_SYS_ADMIN.
fn may_join() -> bool {
    let home = own_namespace().unwrap();
    let may = std::thread::spawn(move || move_into_namespace(&home).is_ok()).join().unwrap();
    if !may {
        println!("skipped: joining a network namespace needs root");
    }
    may
}

#[test]
fn a_port_passes_once_something_listens_and_each_change_is_told_once() {
    if !may_join() {
        return;
    }
    // Bound and not listening: nobody else gets the port, and no listener is inherited by what another test starts meanwhile.
    let listener = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = SocketAddrV4::try_from(rustix::net::getsockname(&listener).unwrap()).unwrap().port();
    let world = World::new();
    world.probe(7, Check::Tcp { port });
    assert_eq!(world.told(), (7, false));
    rustix::net::listen(&listener, 16).unwrap();
    assert_eq!(world.told(), (7, true));
    drop(listener);
    assert_eq!(world.told(), (7, false));
}

#[test]
fn http_needs_a_good_status() {
    if !may_join() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        for answer in ["HTTP/1.1 503 Not yet\r\n\r\n", "", "HTTP/1.1 20", "HTTP/1.1 200 OK\r\n\r\n"] {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = client.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /healthz HTTP/1.1\r\nHost: localhost:"));
            client.write_all(answer.as_bytes()).unwrap();
        }
    });
    let world = World::new();
    world.probe(1, Check::Http { port, path: "/healthz".to_owned() });
    assert_eq!(world.told(), (1, false));
    assert_eq!(world.told(), (1, true));
    server.join().unwrap();
}

#[test]
fn a_verdict_waits_for_its_threshold() {
    if !may_join() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        for answer in ["500", "500", "200", "500", "500", "500"] {
            let (mut client, _) = listener.accept().unwrap();
            let _ = client.read(&mut [0; 1024]).unwrap();
            client.write_all(format!("HTTP/1.1 {answer} x\r\n\r\n").as_bytes()).unwrap();
        }
    });
    let world = World::new();
    let check = Check::Http { port, path: "/".to_owned() };
    world.ask(2, Question { interval_ms: 50, ..Question::of(check) });
    assert_eq!(world.told(), (2, true));
    assert_eq!(world.told(), (2, false));
    server.join().unwrap();
}

#[test]
fn grpc_needs_a_service_that_serves() {
    if !may_join() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        for status in [2, 1] {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = client.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"PRI * HTTP/2.0"));
            let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            client.write_all(&settings).unwrap();
            client.write_all(&[0, 0, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 8, status]).unwrap();
        }
    });
    let world = World::new();
    world.probe(4, Check::Grpc { port, service: "store".to_owned() });
    assert_eq!(world.told(), (4, false));
    assert_eq!(world.told(), (4, true));
    server.join().unwrap();
}

#[test]
fn what_cannot_be_asked_here_fails_at_once() {
    let world = World::new();
    world.probe(3, Check::Exec { args: vec!["true".to_owned()] });
    assert_eq!(world.told(), (3, false));
}

#[test]
fn a_workloads_own_loopback_is_asked_and_the_way_back_is_taken() {
    if !may_join() {
        return;
    }
    // The child has a network namespace whose loopback is down: nothing can answer there, while here something does.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Ok(mut child) = std::process::Command::new("unshare").args(["--net", "sleep", "60"]).spawn() else {
        println!("skipped: unshare(1) is missing");
        return;
    };
    std::thread::sleep(Duration::from_millis(200));
    let pid = rustix::process::Pid::from_child(&child);
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let home = own_namespace().unwrap();
    let mut probe = Probe {
        number: 1,
        process,
        target: Target { port, ask: Ask::Accept },
        question: Question::of(Check::Tcp { port }),
        judgement: Judgement::default(),
        phase: Phase::Waiting { until_boot_ms: 0 },
        untold: None,
    };
    let passed = |probe: &Probe| match begin(&home, probe).unwrap() {
        Begun::Attempt(mut attempt) => {
            std::thread::sleep(Duration::from_millis(20));
            attempt.advance() == Progress::Passed
        }
        Begun::NotNow | Begun::Never => false,
    };
    assert!(!passed(&probe));
    probe.process = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    assert!(passed(&probe));
    child.kill().unwrap();
    child.wait().unwrap();
}

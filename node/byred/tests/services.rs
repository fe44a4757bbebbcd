//! Each service as PID 1 starts it: a process of its own with named descriptors, which seals itself and then does its work. What its
//! seccomp profile lacks kills it here.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use byre_plan::{Name, WorkloadId};
use byre_protocol::control::{Call, Change, FromInit, Notice, Request, Stream};
use byre_protocol::definition::LogPolicy;
use byre_protocol::frame::{self, MESSAGE_BYTES};
use byre_protocol::peer::{
    CgroupStats, ImageAnswer, ImageCall, ImageRefusal, LogCall, LogChunk, RegistryCredential, StatsCall,
};
use byre_registry::testing::{Auth, TestRegistry};
use byre_registry::{Host, Settings};
use byre_sandbox::stream;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A running service. The fixed directories of the real one are a mount namespace's business; here they are made by `unshare`.
struct Service {
    child: Child,
    directory: TempDir,
    notified: UnixDatagram,
}

/// A mount namespace with empty directories over the fixed ones needs root; without it these tests say so and end.
fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root()
        && Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    if !may {
        println!("skipped: needs root and unshare(1) for a private /data and /state");
    }
    may
}

impl Service {
    /// Starts one with these descriptors from number 3 on.
    fn start(name: &str, descriptors: &[(&str, OwnedFd)]) -> Self {
        Self::start_with(name, descriptors, None)
    }

    /// As [`Service::start`], with `run` as its /run/byre.
    fn start_with(name: &str, descriptors: &[(&str, OwnedFd)], run: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let notified = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        notified.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The service's own directories: a tmpfs over the tests' directory, seen by it alone.
        let script = "mkdir -p /data /state && mount -t tmpfs none /data && mount -t tmpfs none /state \
            && mkdir -p /data/log /data/images /data/audit /data/podnet /state/workloads /state/api && mount -t tmpfs none /run \
            && mkdir -p /run/byre && if [ -n \"$RUN_BYRE\" ]; then mount --bind \"$RUN_BYRE\" /run/byre; fi \
            && exec \"$0\" \"$1\"";
        let names: Vec<&str> = descriptors.iter().map(|(name, _)| *name).collect();
        let numbers: Vec<i32> = descriptors.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let mut command = Command::new("unshare");
        command
            // What changes the network has one of its own.
            .args(if name == "podnet" { &["-m", "-n"][..] } else { &["-m"][..] })
            .args(["sh", "-c", script, env!("CARGO_BIN_EXE_byred"), name])
            .env("NOTIFY_SOCKET", directory.path().join("notify"))
            .env("RUN_BYRE", run.unwrap_or(Path::new("")))
            .env("LISTEN_FDS", descriptors.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        // SAFETY: between fork and exec only dup and dup2 are called, which are async-signal-safe; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                // First out of the way of the numbers that they are to have.
                for (place, number) in (0_i32..).zip(&numbers) {
                    if libc::dup2(*number, 100 + place) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                for place in 0..i32::try_from(numbers.len()).unwrap_or(0) {
                    if libc::dup2(100 + place, 3 + place) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        Self { child, directory, notified }
    }

    fn wait_ready(&self) {
        let mut bytes = [0; 64];
        let length = self.notified.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1\n");
    }

    /// It still runs: its filter has not killed it.
    fn assert_runs(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "{:?}", self.child.try_wait());
        assert!(self.directory.path().exists());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn control() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn listener(directory: &Path) -> (PathBuf, OwnedFd) {
    let path = directory.join("unix.sock");
    (path.clone(), UnixListener::bind(path).unwrap().into())
}

fn tell(init: &OwnedFd, notice: Notice, fds: &[&OwnedFd]) {
    let bytes = frame::encode(&FromInit::Notice(Box::new(notice))).unwrap();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    frame::send(init.as_fd(), &bytes, &fds, SendFlags::empty()).unwrap();
}

fn asked(init: &OwnedFd) -> Request {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let (length, _) = frame::receive(init.as_fd(), &mut buffer, RecvFlags::empty()).unwrap();
    frame::decode::<Call>(&buffer[..length]).unwrap().request
}

#[test]
fn the_log_service_works_sealed_and_ends_in_order_on_sigterm() {
    if !may_mount() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (init, theirs) = control();
    let (path, socket) = listener(scratch.path());
    let mut service = Service::start("log", &[("control", theirs), ("unix", socket)]);
    service.wait_ready();
    let id = WorkloadId(1);
    let (reading, writing) = rustix::pipe::pipe().unwrap();
    let policy = LogPolicy { segment_bytes: 1, segments: 2, ..LogPolicy::default() };
    let name = Name::try_from("w").unwrap();
    tell(&init, Notice::LogStream { id, name, stream: Stream::Stdout, policy }, &[&reading]);
    let line = [b'x'; 1000];
    for _ in 0..300 {
        rustix::io::write(&writing, &line).unwrap();
    }
    tell(&init, Notice::LogRunEnded { id }, &[]);
    std::thread::sleep(Duration::from_millis(200));
    let mut client = UnixStream::connect(&path).unwrap();
    stream::write(&mut client, &LogCall::Read { id, follow: true, since_wall_ms: None, tail_lines: Some(5) }).unwrap();
    let mut bytes = 0;
    loop {
        let chunk: LogChunk = stream::read(&mut client).unwrap().unwrap();
        if chunk.bytes.is_empty() {
            break;
        }
        bytes += chunk.bytes.len();
    }
    assert!(bytes > 60_000, "{bytes}");
    tell(&init, Notice::LogRemove { id }, &[]);
    std::thread::sleep(Duration::from_millis(100));
    service.assert_runs();
    kill_process(Pid::from_child(&service.child), Signal::TERM).unwrap();
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_state_service_works_sealed() {
    if !may_mount() {
        return;
    }
    let (init, theirs) = control();
    let mut service = Service::start("state", &[("control", theirs)]);
    assert_eq!(asked(&init), Request::ReplayEnd);
    service.wait_ready();
    for record in 0..10 {
        let change = Box::new(Change::Remove(WorkloadId(record)));
        tell(&init, Notice::Record { record, change }, &[]);
        assert_eq!(asked(&init), Request::Recorded { record });
    }
    service.assert_runs();
}

#[test]
fn the_stats_service_works_sealed() {
    if !may_mount() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (path, socket) = listener(scratch.path());
    let mut service = Service::start("stats", &[("unix", socket)]);
    service.wait_ready();
    for _ in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        stream::write(&mut client, &StatsCall { cgroups: vec!["gone".to_owned()] }).unwrap();
        let answer: Vec<CgroupStats> = stream::read(&mut client).unwrap().unwrap();
        assert_eq!(answer.len(), 1);
    }
    service.assert_runs();
}

#[test]
fn the_probe_service_works_sealed() {
    if !may_mount() {
        return;
    }
    use byre_protocol::probe::{Aim, Check, Probe};
    let (init, theirs) = control();
    let mut service = Service::start("probe", &[("control", theirs)]);
    service.wait_ready();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let pid = rustix::process::getpid();
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let probe = Probe { interval_ms: 50, ..Probe::of(Check::Tcp { port }) };
    let aim = Aim::Readiness;
    let id = WorkloadId(3);
    tell(&init, Notice::Probe { id, number: 1, aim, probe, pid: std::process::id() }, &[&process]);
    assert_eq!(asked(&init), Request::Probed { id, number: 1, aim, passed: true });
    tell(&init, Notice::ProbeEnd { id }, &[]);
    std::thread::sleep(Duration::from_millis(100));
    service.assert_runs();
}

#[test]
fn the_pod_network_service_works_sealed() {
    if !may_mount() {
        return;
    }
    use byre_protocol::pod::{NetworkAttachment, PodNetwork, PublishedPort, Transport};
    let (init, theirs) = control();
    let mut service = Service::start("podnet", &[("control", theirs)]);
    service.wait_ready();
    // A namespace that somebody holds, as PID 1 hands over one that is bound to a path.
    let mut holder = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    while std::fs::read_link(&path).is_ok_and(|namespace| namespace == own) {
        std::thread::yield_now();
    }
    let namespace: OwnedFd = std::fs::File::open(&path).unwrap().into();
    let name = |text: &str| Name::try_from(text).unwrap();
    let port = PublishedPort { transport: Transport::Tcp, host_address: None, host_port: 8080, pod_port: 80 };
    let network = PodNetwork {
        networks: vec![NetworkAttachment { network: name("byre"), aliases: Vec::new(), address: None }],
        ports: vec![port],
        ingress_bits_per_second: 1_000_000,
        egress_bits_per_second: 1_000_000,
        host_name: None,
    };
    let id = WorkloadId(7);
    tell(&init, Notice::AttachEnd, &[]);
    let network = Box::new(network);
    tell(&init, Notice::Attach { id, run: 1, name: name("web"), network, addresses: Vec::new() }, &[&namespace]);
    let answer = asked(&init);
    let Request::Attached { id: of, run: 1, addresses } = &answer else { panic!("{answer:?}") };
    assert_eq!((*of, addresses.len(), addresses[0].address.to_string().as_str()), (id, 2, "10.88.0.2"));
    tell(&init, Notice::Detach { id }, &[]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    service.assert_runs();
}

#[test]
fn the_image_service_works_sealed() {
    if !may_mount() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (path, socket) = listener(scratch.path());
    let mut service = Service::start("image", &[("unix", socket)]);
    service.wait_ready();
    let call = |call: ImageCall, archive: &[u8]| {
        let mut client = UnixStream::connect(&path).unwrap();
        stream::write(&mut client, &call).unwrap();
        std::io::Write::write_all(&mut client, archive).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut last = None;
        while let Some(answer) = stream::read::<ImageAnswer>(&mut client).unwrap() {
            last = Some(answer);
        }
        last.unwrap()
    };
    let loaded = call(ImageCall::Load { name: None }, &archive());
    let ImageAnswer::Image(image) = loaded else { panic!("{loaded:?}") };
    assert_eq!(image.layers.len(), 1);
    let listed = call(ImageCall::List, b"");
    assert!(matches!(&listed, ImageAnswer::Images(images) if images.len() == 1), "{listed:?}");
    let resolved = call(ImageCall::Resolve { reference: image.id.clone() }, b"");
    assert!(matches!(&resolved, ImageAnswer::Image(found) if found.config_json.contains("rootfs")), "{resolved:?}");
    let removed = call(ImageCall::Prune { in_use: vec![], all: true }, b"");
    assert!(matches!(&removed, ImageAnswer::Removed { what, .. } if what.len() == 1), "{removed:?}");
    service.assert_runs();
}

#[test]
fn the_api_serves_sealed() {
    if !may_mount() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (init, theirs) = control();
    let (path, socket) = listener(scratch.path());
    let mut service = Service::start("api", &[("control", theirs), ("unix", socket)]);
    let mut buffer = vec![0; MESSAGE_BYTES];
    let (length, _) = frame::receive(init.as_fd(), &mut buffer, RecvFlags::empty()).unwrap();
    let Call { sequence, request } = frame::decode(&buffer[..length]).unwrap();
    assert_eq!(request, Request::Subscribe);
    let answer = FromInit::Answer { sequence, reply: byre_protocol::control::Reply::Done };
    frame::send(init.as_fd(), &frame::encode(&answer).unwrap(), &[], SendFlags::empty()).unwrap();
    service.wait_ready();
    // HTTP/2's preface and an empty SETTINGS frame (RFC 9113 section 3.4); the server begins with its own SETTINGS, type 4.
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    std::io::Write::write_all(&mut client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut head = [0; 9];
    std::io::Read::read_exact(&mut client, &mut head).unwrap();
    assert_eq!(head[3], 4);
    service.assert_runs();
}

/// What `docker save` writes, in small: one layer with one file.
fn archive() -> Vec<u8> {
    let file = |builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    };
    let mut layer = tar::Builder::new(Vec::new());
    file(&mut layer, "hello", b"hello\n");
    let layer = layer.into_inner().unwrap();
    let diff_id = byre_image::digest::Digest::of(&layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/hello"]}},"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    let manifest = r#"[{"Config":"config.json","RepoTags":["hello:1"],"Layers":["layer.tar"]}]"#;
    let mut archive = tar::Builder::new(Vec::new());
    file(&mut archive, "config.json", config.as_bytes());
    file(&mut archive, "layer.tar", &layer);
    file(&mut archive, "manifest.json", manifest.as_bytes());
    archive.into_inner().unwrap()
}

#[test]
fn an_image_is_pulled_by_two_sealed_services() {
    if !may_mount() {
        return;
    }
    let registry = TestRegistry::start(true);
    registry.want(Auth::Token(Some(("me".into(), "sesame".into()))));
    registry.add_archive("1", &small_archive());
    let run = tempfile::tempdir().unwrap();
    std::fs::create_dir(run.path().join("config")).unwrap();
    let host = Host { ca_pem: registry.ca_pem(), ..Host::default() };
    let settings = Settings { hosts: [(registry.host(), host)].into(), ..Settings::default() };
    std::fs::write(run.path().join("config/registries.json"), serde_json::to_vec(&settings).unwrap()).unwrap();
    let listen = |name: &str| {
        let path = run.path().join(name);
        (path.clone(), OwnedFd::from(UnixListener::bind(path).unwrap()))
    };
    let (_, pull_socket) = listen("pull.sock");
    let (path, image_socket) = listen("image.sock");
    let mut pull = Service::start_with("pull", &[("unix", pull_socket)], Some(run.path()));
    let mut image = Service::start_with("image", &[("unix", image_socket)], Some(run.path()));
    pull.wait_ready();
    image.wait_ready();
    let ask = |reference: String, password: &str| {
        let credential = RegistryCredential { username: "me".into(), password: password.into() };
        let mut client = UnixStream::connect(&path).unwrap();
        stream::write(&mut client, &ImageCall::Pull { reference, credential: Some(credential), ca_pem: None }).unwrap();
        let mut last = None;
        while let Ok(Some(answer)) = stream::read::<ImageAnswer>(&mut client) {
            last = Some(answer);
        }
        last.unwrap()
    };
    let name = format!("{}/app:1", registry.host());
    let ImageAnswer::Pulled { image: record, reference, new_layers: 1 } = ask(name.clone(), "sesame") else { panic!() };
    assert!(reference.starts_with(&format!("{name}@sha256:")) && record.origins == [reference]);
    for (name, password, expected) in [
        (name.clone(), "wrong", ImageRefusal::Denied),
        (format!("{}/app:none", registry.host()), "sesame", ImageRefusal::NotFound),
        ("registry.invalid/app:1".to_owned(), "sesame", ImageRefusal::Unavailable),
        ("127.0.0.1:1/app:1".to_owned(), "sesame", ImageRefusal::Unavailable),
    ] {
        let ImageAnswer::Refused { code, text } = ask(name.clone(), password) else { panic!("{name}") };
        assert_eq!(code, expected, "{name}: {text}");
        assert!(!text.contains("sesame") && !text.contains("wrong"), "{text}");
    }
    pull.assert_runs();
    image.assert_runs();
}

/// An image of one empty layer.
fn small_archive() -> Vec<u8> {
    use byre_image::pack::{PackConfig, tarball::TarWriter, write_oci_archive};
    let layer = TarWriter::new(tempfile::tempfile().unwrap()).finish().unwrap();
    let mut out = Vec::new();
    let compression = byre_image::compression::Compression::Gzip;
    let config = PackConfig::default();
    write_oci_archive(&mut out, &mut [layer], compression, &config, None, &mut tempfile::tempfile).unwrap();
    out
}

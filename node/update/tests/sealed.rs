//! `byred update` as PID 1 starts it: a process of its own, sealed, with a slot that it did not open. What its seccomp profile lacks kills it
//! here: looking up a name, fetching, writing, reading back past the cache, asking PID 1.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use byre_protocol::control::{Allow, Call, FromInit, Reply, Request};
use byre_protocol::frame::{self, MESSAGE_BYTES};
use byre_protocol::update::{UpdateAnswer, UpdateCall, UpdateState};
use byre_release::{Facts, Statement};
use byre_repository::{Artefact, KeyFolder, Lifetimes, NewRelease, Repository, Role};
use byre_sandbox::stream;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use sha2::{Digest as _, Sha256};

const BLOCKS: u64 = 300;
/// Set in the process that is the service.
const CHILD: &str = "BYRE_TEST_IS_SERVICE";

/// Not a test but the service's process, which the test below starts.
#[test]
fn the_service() {
    if std::env::var_os(CHILD).is_some() {
        byre_update::run().unwrap();
    }
}

/// The machine around the service, below one directory.
struct Machine {
    folder: tempfile::TempDir,
    statement: Vec<u8>,
    root: Vec<u8>,
}

impl Machine {
    /// A repository with release 2, and what the root and /run of a node with release 1 hold.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for directory in ["repository", "usr", "run/config", "run/time"] {
            std::fs::create_dir_all(path(directory)).unwrap();
        }
        let keys = KeyFolder::open(&path("keys")).unwrap();
        Role::ALL.into_iter().for_each(|role| drop(keys.add(role).unwrap()));
        keys.write_release_keys().unwrap();
        let repository =
            Repository::open(&path("repository"), std::slice::from_ref(&keys), Lifetimes::default(), byre_tuf::now())
                .unwrap();
        let (_, root_metadata) = repository.write_root(&[]).unwrap();
        let root: Vec<u8> = (0..BLOCKS * 4096).map(|byte| (byte / 4096 * 7 + byte % 251) as u8).collect();
        let tree = byre_verity::build(&mut root.as_slice(), BLOCKS).unwrap();
        let uki = vec![7; 100_001];
        let statement = Statement {
            version: "2.0".parse().unwrap(),
            install: 2,
            minimum_install: 0,
            build_time: 1_795_000_000,
            root_blocks: BLOCKS,
            verity_bytes: tree.bytes.len() as u64,
            uki_bytes: uki.len() as u64,
            root_hash: tree.root_hash.0,
            uki_sha256: Sha256::digest(&uki).into(),
        };
        let signed_statement = statement.sign(&keys.load(Role::Release).unwrap()[0]).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            std::fs::write(path(name), bytes).unwrap();
            path(name)
        };
        let (tree, image, uki, sbom) =
            (file("tree", &tree.bytes), file("image", &root), file("uki", &uki), file("sbom", b"{}"));
        let files = [
            (Artefact::Verity, tree.as_path()),
            (Artefact::Root, image.as_path()),
            (Artefact::Uki, uki.as_path()),
            (Artefact::Sbom, sbom.as_path()),
        ];
        repository.publish(&NewRelease { statement: &statement, signed_statement, files, channel: "stable" }).unwrap();
        let facts = Facts { version: "1.0".parse().unwrap(), install: 1, minimum_install: 0, build_time: 1 };
        file("usr/release", facts.encode().as_bytes());
        file("usr/release-keys", &std::fs::read(keys.release_keys_file()).unwrap());
        file("usr/tuf-root.json", &root_metadata);
        file("run/blessed", b"a\n");
        file("run/time/trusted", b"1795000000\n");
        Self { folder, statement: signed_statement.to_vec(), root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn partition(&self, name: &str) -> OwnedFd {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(self.path(name)).unwrap();
        file.set_len(4 << 20).unwrap();
        file.into()
    }
}

/// Serves the repository until the test ends.
fn serve(folder: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok);
            let asked = lines.next().unwrap_or_default();
            let path = asked.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
            for _ in lines.take_while(|line| !line.is_empty()) {}
            let answer = match std::fs::read(folder.join(path)) {
                Ok(bytes) => {
                    [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len()).into_bytes(), bytes].concat()
                }
                Err(_) => b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n".to_vec(),
            };
            // A client that goes away is its own business.
            let _ = client.write_all(&answer);
        }
    });
    port
}

/// The service with these descriptors from number 3 on, over directories of its own.
fn start(machine: &Machine, notify: &Path, descriptors: &[(&str, OwnedFd)]) -> Child {
    let script = "for at in /state /usr/lib/byre /run/byre; do mkdir -p $at && mount -t tmpfs none $at || exit 1; done \
        && mkdir /state/update && cp -r \"$MACHINE\"/usr/. /usr/lib/byre && cp -r \"$MACHINE\"/run/. /run/byre && exec \"$0\" --exact the_service --nocapture";
    let names: Vec<&str> = descriptors.iter().map(|(name, _)| *name).collect();
    let numbers: Vec<i32> = descriptors.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    let program = std::env::current_exe().unwrap().display().to_string();
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", script, &program])
        .env(CHILD, "1")
        .env("MACHINE", machine.folder.path())
        .env("NOTIFY_SOCKET", notify)
        .env("LISTEN_FDS", descriptors.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    // SAFETY: between fork and exec only dup2 is called, which is async-signal-safe; nothing is allocated.
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
    command.spawn().unwrap()
}

/// PID 1: takes the next request and grants it.
fn granted(init: &OwnedFd) -> Request {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let (length, _) = frame::receive(init.as_fd(), &mut buffer, RecvFlags::empty()).unwrap();
    let Call { sequence, request } = frame::decode(&buffer[..length]).unwrap();
    let answer = FromInit::Answer { sequence, reply: Reply::Done };
    frame::send(init.as_fd(), &frame::encode(&answer).unwrap(), &[], SendFlags::empty()).unwrap();
    request
}

#[test]
fn the_update_service_works_sealed() {
    let may = rustix::process::geteuid().is_root()
        && Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    if !may {
        println!("skipped: needs root and unshare(1) for a private /state and /run/byre");
        return;
    }
    let machine = Machine::new();
    let port = serve(machine.path("repository"));
    // By name: the C library's resolver has to work behind the filter.
    let settings = format!(r#"{{"repository": "http://localhost:{port}/", "channel": "stable"}}"#);
    std::fs::write(machine.path("run/config/update.json"), settings).unwrap();
    let notified = UnixDatagram::bind(machine.path("notify")).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (init, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let socket = machine.path("unix.sock");
    let descriptors = [
        ("control", theirs),
        ("unix", UnixListener::bind(&socket).unwrap().into()),
        ("inactive-root", machine.partition("slot-root")),
        ("inactive-verity", machine.partition("slot-verity")),
        ("inactive-uki", machine.partition("slot-uki")),
    ];
    let mut service = start(&machine, &machine.path("notify"), &descriptors);
    let mut bytes = [0; 64];
    let length = notified.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"READY=1\n");
    let mut client = UnixStream::connect(&socket).unwrap();
    stream::write(&mut client, &UpdateCall::Apply { allow: Allow::default(), reboot: true }).unwrap();
    assert!(matches!(granted(&init), Request::Arm { statement, .. } if statement == machine.statement));
    assert!(matches!(granted(&init), Request::Shutdown { .. }));
    let mut last = None;
    while let Some(answer) = stream::read::<UpdateAnswer>(&mut client).unwrap() {
        last = Some(answer);
    }
    assert!(matches!(&last, Some(UpdateAnswer::Done(said)) if said.contains("2.0")), "{last:?}");
    let mut written = vec![0; machine.root.len()];
    File::open(machine.path("slot-root")).unwrap().read_exact(&mut written).unwrap();
    assert!(written == machine.root);
    let mut client = UnixStream::connect(&socket).unwrap();
    stream::write(&mut client, &UpdateCall::Status).unwrap();
    let Some(UpdateAnswer::Status(status)) = stream::read(&mut client).unwrap() else { panic!("no status") };
    assert!(matches!(status.state, UpdateState::Armed { .. }), "{status:?}");
    assert!(service.try_wait().unwrap().is_none());
    service.kill().unwrap();
    service.wait().unwrap();
}

//! The control protocol, in both directions, and the messages between services: what PID 1 must survive from a service that was taken over.

use std::fmt::Debug;
use std::os::fd::{AsFd, OwnedFd};

use byre_plan::{Digest, Name, WorkloadId};
use byre_protocol::control::{Call, Change, Event, FromInit, Notice, Reply, Request, Stream, WorkloadRecord};
use byre_protocol::definition::{Definition, Kind, ServicesFile};
use byre_protocol::frame;
use byre_protocol::peer::{
    CgroupStats, FetchAnswer, FetchCall, ImageAnswer, ImageCall, ImageRecord, LogCall, LogChunk, StatsCall,
};
use byre_protocol::pod::{NetworkAttachment, PodAddress, PodNetwork, PublishedPort, Transport};
use byre_protocol::status::{Cause, Moment, Run, State};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "control",
    about: "control messages to and from PID 1, launch reports, compiled service definitions, messages between services: \
            what is decoded encodes to the same message, in no more bytes",
    sources: &[
        "init/protocol/src",
        "node/sandbox/src/stream.rs",
        "runtime/launch/src/report.rs",
        "runtime/plan/src/name.rs",
        "runtime/plan/src/request.rs",
    ],
    longest: 16 * 1024,
    run,
    seeds,
};

const DECODERS: u8 = 9;
/// Messages of one launch child that are tried: more than it may send.
const REPORTS: usize = 12;

fn run(input: &[u8]) -> Verdict {
    let Some((decoder, input)) = super::pick(input, DECODERS) else { return Verdict::Refused };
    match decoder {
        0 => message::<Call>(input),
        1 => message::<FromInit>(input),
        2 => services(input),
        3 => message::<Change>(input),
        4 => message::<LogCall>(input),
        5 => message::<LogChunk>(input),
        6 => match message::<ImageCall>(input) {
            Verdict::Accepted => Verdict::Accepted,
            Verdict::Refused => {
                message::<FetchAnswer>(input);
                message::<FetchCall>(input)
            }
        },
        7 => match message::<ImageAnswer>(input) {
            Verdict::Accepted => Verdict::Accepted,
            Verdict::Refused => {
                message::<StatsCall>(input);
                message::<CgroupStats>(input)
            }
        },
        _ => report(input),
    }
}

/// As a datagram, and as a frame of a stream that arrives byte by byte.
fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(input: &[u8]) -> Verdict {
    let decoded: Result<T, _> = frame::decode(input);
    let framed = [&u32::try_from(input.len()).expect("inputs are short").to_le_bytes(), input].concat();
    let taken = byre_sandbox::stream::take::<T>(&framed);
    let Ok(decoded) = decoded else {
        assert!(taken.is_err(), "a stream takes what a datagram does not");
        return Verdict::Refused;
    };
    let again = frame::encode(&decoded).expect("what fitted once fits again");
    assert!(again.len() <= input.len());
    assert_eq!(frame::decode::<T>(&again).as_ref().ok(), Some(&decoded));
    let (taken, length) = taken.expect("a stream takes what a datagram does").expect("it is whole");
    assert_eq!((taken, length), (decoded, framed.len()));
    assert!(matches!(byre_sandbox::stream::take::<T>(&framed[..framed.len() - 1]), Ok(None)));
    Verdict::Accepted
}

fn services(input: &[u8]) -> Verdict {
    let Ok(file) = frame::decode_file::<ServicesFile>(input) else { return Verdict::Refused };
    let again = frame::encode_file(&file).expect("what fitted once fits again");
    assert_eq!(frame::decode_file::<ServicesFile>(&again).as_ref().ok(), Some(&file));
    Verdict::Accepted
}

/// What a launch child could send, each piece as one packet, without the descriptors that only a real one has.
fn report(input: &[u8]) -> Verdict {
    let (ours, childs) = pair();
    for piece in super::pieces(input, REPORTS) {
        // A full socket is the child's trouble.
        let _ = rustix::net::send(&childs, piece, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
    assert!(
        matches!(byre_launch::read_report(ours.as_fd()), Ok(None)),
        "nothing is known before the child's end closes"
    );
    drop(childs);
    match byre_launch::read_report(ours.as_fd()) {
        Ok(Some(byre_launch::Report::Failed { step, subject, errno: _ })) => {
            assert!(step.len() + subject.len() <= input.len());
            Verdict::Accepted
        }
        // A pod is made without leaving a process behind.
        Ok(Some(byre_launch::Report::Made)) => Verdict::Accepted,
        Ok(Some(byre_launch::Report::Incomplete)) => Verdict::Refused,
        other @ (Ok(None | Some(byre_launch::Report::Running { .. })) | Err(_)) => {
            panic!("nothing runs without a descriptor: {other:?}")
        }
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair of sockets")
}

pub(super) fn definition() -> Definition {
    let what = byre_spec::ContainerDefaults { layers: vec![Digest([7; 32])], args: vec!["sh".into(), "-c".into()] };
    Definition {
        name: Name::try_from("web").expect("a name"),
        kind: Kind::Container,
        launch: byre_spec::default_container(what),
        needs: vec![Name::try_from("network").expect("a name")],
        after: Vec::new(),
        restart: byre_protocol::definition::Restart::default(),
        readiness: byre_protocol::definition::Readiness::default(),
        stop: byre_protocol::definition::Stop::default(),
        log: byre_protocol::definition::LogPolicy::default(),
        grants: Vec::new(),
        labels: vec![("byre.image".into(), "web:1".into())],
        open_stdin: false,
        remove_on_exit: true,
        shutdown_priority: 0,
        binds_to: Vec::new(),
        deadline_ms: 0,
        run_limit_ms: 0,
        startup: None,
        liveness: None,
        pod: None,
        network: Some(network()),
        schedule: None,
        group: None,
    }
}

fn network() -> PodNetwork {
    let attachment =
        NetworkAttachment { network: Name::try_from("byre").expect("a name"), aliases: Vec::new(), address: None };
    let port = PublishedPort { transport: Transport::Tcp, host_address: None, host_port: 8080, pod_port: 80 };
    PodNetwork { networks: vec![attachment], ports: vec![port], ..PodNetwork::default() }
}

fn address() -> PodAddress {
    let address = std::net::IpAddr::from([10, 88, 0, 2]);
    PodAddress { network: Name::try_from("byre").expect("a name"), interface: "eth0".into(), address, prefix: 24 }
}

pub(super) fn record(id: u64) -> WorkloadRecord {
    let at = Moment { boot_ms: 5, wall_ms: 1_700_000_000_000 };
    let last_run = Some(Run { started: at, ended: at, cause: Cause::Code(1) });
    let id_base = Some(0x1000_0000);
    WorkloadRecord {
        id: WorkloadId(id),
        definition: definition(),
        id_base,
        wanted: byre_protocol::control::Wanted::Up,
        created: at,
        last_run,
    }
}

fn encoded(message: &impl Serialize) -> Vec<u8> {
    frame::encode(message).expect("an example is short")
}

fn seeds() -> Vec<Vec<u8>> {
    let target = byre_protocol::control::Target::Id(WorkloadId(9));
    let at = Moment { boot_ms: 5, wall_ms: 1_700_000_000_000 };
    let name = Name::try_from("web").expect("a name");
    let create = Request::Create { definition: Box::new(definition()), start: true };
    let process = Box::new(definition().launch.process);
    let requests = [
        create,
        Request::Stop { target: target.clone(), grace_ms: Some(3) },
        Request::Exec { target, process },
        Request::Replay(Box::new(record(3))),
        Request::RecordFailed { record: 1, text: "the disk is full".into() },
        Request::Probed { id: WorkloadId(9), number: 4, aim: byre_protocol::probe::Aim::Readiness, passed: true },
        Request::Attached { id: WorkloadId(9), run: 1, addresses: vec![address()] },
        Request::AttachFailed { id: WorkloadId(9), run: 1, text: "no network is named byre".into() },
    ];
    let mut seeds: Vec<Vec<u8>> =
        requests.into_iter().map(|request| super::seed(0, encoded(&Call { sequence: 1, request }))).collect();
    let event = Event {
        number: 1,
        at,
        id: WorkloadId(9),
        name: name.clone(),
        what: byre_protocol::control::What::State(State::Up { since: at, ready: true, pid: 77 }),
    };
    let image = ImageRecord {
        id: "sha256:aa".into(),
        names: vec!["web:1".into()],
        manifest_digest: None,
        layers: vec![Digest([7; 32])],
        size_bytes: 9,
        created_wall_ms: 1,
        config_json: "{}".into(),
        origins: vec!["r.example/web:1".into()],
        accepted: true,
        verdict: "accepted".into(),
    };
    let policy = super::launch::strict();
    let file = ServicesFile { policy, services: vec![definition()] };
    let chunk = LogChunk { stream: Stream::Stdout, at, bytes: b"hello\n".to_vec(), lost: 0 };
    let call = LogCall::Read { id: WorkloadId(9), follow: true, since_wall_ms: Some(1), tail_lines: None };
    let change = Box::new(Change::Put(Box::new(record(4))));
    let attach = Notice::Attach {
        id: WorkloadId(9),
        run: 1,
        name: name.clone(),
        network: Box::new(network()),
        addresses: vec![address()],
    };
    seeds.extend([
        super::seed(1, encoded(&FromInit::Answer { sequence: 1, reply: Reply::Created { id: WorkloadId(9) } })),
        super::seed(1, encoded(&FromInit::Notice(Box::new(Notice::Event(event))))),
        super::seed(1, encoded(&FromInit::Notice(Box::new(Notice::Record { record: 1, change })))),
        super::seed(1, encoded(&FromInit::Notice(Box::new(attach)))),
        super::seed(2, frame::encode_file(&file).expect("an example is short")),
        super::seed(3, encoded(&Change::Put(Box::new(record(5))))),
        super::seed(4, encoded(&call)),
        super::seed(5, encoded(&chunk)),
        super::seed(6, encoded(&ImageCall::Prune { in_use: vec!["sha256:aa".into()], all: true })),
        super::seed(7, encoded(&ImageAnswer::Image(Box::new(image)))),
        super::seed(
            7,
            encoded(&CgroupStats { cgroup: "byre/web".into(), memory_bytes: 1 << 40, ..CgroupStats::default() }),
        ),
        // `Started`, then `Failed` with its step, its subject and an error number.
        super::seed(8, super::joined(&[&[0, 77], b"\x03\x05mount\x04/etc\x04"])),
    ]);
    seeds
}

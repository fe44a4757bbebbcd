//! The service with the test as PID 1, as the workloads, and as the clients.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use byre_protocol::definition::WhenLimited;
use byre_protocol::frame;
use byre_protocol::peer::{LogCall, LogChunk};
use byre_sandbox::stream;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketType, accept, bind, connect, listen, socket_with, socketpair,
};
use tempfile::TempDir;

use super::*;
use crate::reader::STREAMS;
use crate::store::{segment_path, segments};

const ID: WorkloadId = WorkloadId(0x17);
const POLICY: LogPolicy =
    LogPolicy { segment_bytes: 64 * 1024, segments: 64, rate_bytes_per_second: 0, when_limited: WhenLimited::Block };

/// A running service.
struct World {
    directory: TempDir,
    init: OwnedFd,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn unix_socket(kind: SocketType) -> OwnedFd {
    socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

fn listener_at(path: &Path, kind: SocketType) -> OwnedFd {
    let listener = unix_socket(kind);
    bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&listener, 64).unwrap();
    listener
}

impl World {
    fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap())
    }

    fn over(directory: TempDir) -> Self {
        let (init, control) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let socket = directory.path().join("log.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = listener_at(&socket, SocketType::STREAM);
        let root = directory.path().join("log");
        let thread = std::thread::spawn(move || serve(control, listener, &root).unwrap());
        Self { directory, init, thread: Some(thread) }
    }

    fn tell(&self, notice: Notice, fds: &[&OwnedFd]) {
        let bytes = frame::encode(&FromInit::Notice(Box::new(notice))).unwrap();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        frame::send(self.init.as_fd(), &bytes, &fds, SendFlags::empty()).unwrap();
    }

    /// A pipe whose reading end the service has; as PID 1 does, the test keeps both ends.
    fn stream(&self, stream: Stream, policy: LogPolicy) -> (OwnedFd, OwnedFd) {
        let (reading, writing) = rustix::pipe::pipe().unwrap();
        self.tell(self.notice(stream, policy), &[&reading]);
        (reading, writing)
    }

    fn notice(&self, stream: Stream, policy: LogPolicy) -> Notice {
        Notice::LogStream { id: ID, name: Name::try_from("w").unwrap(), stream, policy }
    }

    fn client(&self, call: &LogCall) -> UnixStream {
        let mut client = UnixStream::connect(self.directory.path().join("log.sock")).unwrap();
        stream::write(&mut client, call).unwrap();
        client
    }

    fn read(&self, follow: bool, since_wall_ms: Option<u64>, tail_lines: Option<u64>) -> UnixStream {
        self.client(&LogCall::Read { id: ID, follow, since_wall_ms, tail_lines })
    }

    /// Waits until the service has taken in everything up to a mark that it is made to write.
    fn settle(&self, reading: &OwnedFd) {
        for _ in 0..2000 {
            if rustix::io::ioctl_fionread(reading).unwrap() == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the service does not take in what is there");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let (unused, _) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        self.init = unused;
        let result = self.thread.take().unwrap().join();
        assert!(result.is_ok() || std::thread::panicking());
    }
}

/// Everything up to the empty piece: bytes per stream, pieces in order, and bytes lost.
fn answer(client: &mut impl Read) -> (BTreeMap<Stream, Vec<u8>>, Vec<LogChunk>, u64) {
    let (mut bytes, mut chunks, mut lost) = (BTreeMap::<Stream, Vec<u8>>::new(), Vec::new(), 0);
    loop {
        let chunk: LogChunk = stream::read(client).unwrap().unwrap();
        lost += chunk.lost;
        if chunk.bytes.is_empty() {
            return (bytes, chunks, lost);
        }
        bytes.entry(chunk.stream).or_default().extend_from_slice(&chunk.bytes);
        chunks.push(chunk);
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = rustix::io::write(fd, bytes).unwrap();
        bytes = &bytes[written..];
    }
}

fn numbered_lines(count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| format!("line {number}\n").into_bytes()).collect()
}

/// The files of a stream, one behind the other.
fn on_disk(directory: &Path, stream: Stream) -> Vec<u8> {
    let numbers = segments(directory, stream).unwrap();
    numbers.into_iter().flat_map(|number| std::fs::read(segment_path(directory, stream, number)).unwrap()).collect()
}

#[test]
fn every_byte_is_kept_across_rotation_and_read_back_in_order() {
    let world = World::new();
    let (out_reading, out) = world.stream(Stream::Stdout, POLICY);
    let (error_reading, error) = world.stream(Stream::Stderr, POLICY);
    let lines = numbered_lines(40_000);
    for piece in lines.chunks(7_001) {
        write_all(&out, piece);
        write_all(&error, &piece[..piece.len() / 2]);
    }
    world.settle(&out_reading);
    world.settle(&error_reading);
    let (bytes, chunks, lost) = answer(&mut world.read(false, None, None));
    assert_eq!(lost, 0);
    assert!(bytes[&Stream::Stdout] == lines);
    assert!(chunks.windows(2).all(|pair| pair[0].at.wall_ms <= pair[1].at.wall_ms));
    let directory = directory_of(&world.directory.path().join("log"), ID);
    assert!(on_disk(&directory, Stream::Stdout) == lines);
    assert!(segments(&directory, Stream::Stdout).unwrap().len() > 5);
}

#[test]
fn the_last_lines_and_those_since_a_time_are_found() {
    let world = World::new();
    let (reading, out) = world.stream(Stream::Stdout, POLICY);
    write_all(&out, &numbered_lines(10_000));
    world.settle(&reading);
    for lines in [1, 2, 100, 9_999, 10_000, 20_000] {
        let (bytes, ..) = answer(&mut world.read(false, None, Some(lines)));
        let all = numbered_lines(10_000);
        let text = String::from_utf8(bytes[&Stream::Stdout].clone()).unwrap();
        assert_eq!(text.lines().count() as u64, lines.min(10_000));
        assert!(all.ends_with(text.as_bytes()));
    }
    assert!(answer(&mut world.read(false, None, Some(0))).1.is_empty());
    std::thread::sleep(Duration::from_millis(5));
    let since = now().wall_ms;
    std::thread::sleep(Duration::from_millis(5));
    write_all(&out, b"late\nunfinished");
    world.settle(&reading);
    let (bytes, ..) = answer(&mut world.read(false, Some(since), None));
    assert_eq!(bytes[&Stream::Stdout], b"late\nunfinished");
    let (bytes, ..) = answer(&mut world.read(false, None, Some(1)));
    assert_eq!(bytes[&Stream::Stdout], b"unfinished");
    assert!(answer(&mut world.read(false, Some(since + 3_600_000), None)).1.is_empty());
}

#[test]
fn followers_end_with_the_run_and_attach_waits_for_the_next() {
    let world = World::new();
    let mut early = world.client(&LogCall::Attach { id: ID });
    std::thread::sleep(Duration::from_millis(20));
    let (_reading, out) = world.stream(Stream::Stdout, POLICY);
    write_all(&out, b"first\n");
    let mut follower = world.read(true, None, None);
    let first: LogChunk = stream::read(&mut follower).unwrap().unwrap();
    assert_eq!(first.bytes, b"first\n");
    let mut late = world.client(&LogCall::Attach { id: ID });
    std::thread::sleep(Duration::from_millis(20));
    write_all(&out, b"second\n");
    world.tell(Notice::LogRunEnded { id: ID }, &[]);
    assert_eq!(answer(&mut early).0[&Stream::Stdout], b"first\nsecond\n");
    assert_eq!(answer(&mut follower).0[&Stream::Stdout], b"second\n");
    assert_eq!(answer(&mut late).0[&Stream::Stdout], b"second\n");
    // After the end a follower gets what is stored, and its end.
    assert_eq!(answer(&mut world.read(true, None, None)).0[&Stream::Stdout], b"first\nsecond\n");
    // The next run, over the same pipe.
    let mut next = world.client(&LogCall::Attach { id: ID });
    std::thread::sleep(Duration::from_millis(20));
    world.tell(world.notice(Stream::Stdout, POLICY), &[&_reading]);
    write_all(&out, b"third\n");
    world.tell(Notice::LogRunEnded { id: ID }, &[]);
    assert_eq!(answer(&mut next).0[&Stream::Stdout], b"third\n");
}

#[test]
fn a_slow_reader_is_told_what_it_missed_and_holds_nobody_up() {
    let world = World::new();
    let (reading, out) = world.stream(Stream::Stdout, LogPolicy { segments: 2, ..POLICY });
    let mut slow = world.read(true, None, None);
    let lines = numbered_lines(400_000);
    write_all(&out, &lines);
    world.settle(&reading);
    world.tell(Notice::LogRunEnded { id: ID }, &[]);
    let (bytes, _, lost) = answer(&mut slow);
    let kept = bytes[&Stream::Stdout].len() as u64;
    assert!(lost > 0);
    assert_eq!(kept + lost, lines.len() as u64);
    assert!(lines.ends_with(&bytes[&Stream::Stdout][bytes[&Stream::Stdout].len() - 60_000..]));
}

#[test]
fn dropped_bytes_are_counted() {
    let world = World::new();
    let policy = LogPolicy { rate_bytes_per_second: 20_000, when_limited: WhenLimited::Drop, ..POLICY };
    let (reading, out) = world.stream(Stream::Stdout, policy);
    let lines = numbered_lines(50_000);
    write_all(&out, &lines);
    world.settle(&reading);
    world.tell(Notice::LogRunEnded { id: ID }, &[]);
    let (bytes, _, lost) = answer(&mut world.read(true, None, None));
    let kept = bytes[&Stream::Stdout].len() as u64;
    assert!(kept >= 20_000 && lost > 0, "{kept} {lost}");
    assert_eq!(kept + lost, lines.len() as u64);
}

#[test]
fn a_limited_writer_waits_and_loses_nothing() {
    let world = World::new();
    let policy = LogPolicy { rate_bytes_per_second: 200_000, ..POLICY };
    let (_reading, out) = world.stream(Stream::Stdout, policy);
    let lines = numbered_lines(25_000);
    let began = std::time::Instant::now();
    write_all(&out, &lines);
    world.tell(Notice::LogRunEnded { id: ID }, &[]);
    let (bytes, _, lost) = answer(&mut world.read(true, None, None));
    assert_eq!(lost, 0);
    assert!(bytes[&Stream::Stdout] == lines);
    // One second's worth passes at once; waiting is what is tested here, not speed.
    assert!(began.elapsed() > Duration::from_millis(200));
}

#[test]
fn a_terminal_is_taken_in_and_may_be_closed_and_opened_again() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let world = World::new();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
    let mut slave = open();
    world.tell(world.notice(Stream::Terminal, POLICY), &[&master]);
    let mut follower = world.client(&LogCall::Attach { id: ID });
    // Attach begins with what comes after it.
    std::thread::sleep(Duration::from_millis(50));
    slave.write_all(b"one\n").unwrap();
    let first: LogChunk = stream::read(&mut follower).unwrap().unwrap();
    assert_eq!((first.stream, first.bytes.as_slice()), (Stream::Terminal, b"one\r\n".as_slice()));
    drop(slave);
    std::thread::sleep(Duration::from_millis(50));
    open().write_all(b"two\n").unwrap();
    let second: LogChunk = stream::read(&mut follower).unwrap().unwrap();
    assert_eq!(second.bytes, b"two\r\n");
    world.tell(Notice::LogRunEnded { id: ID }, &[]);
    assert!(answer(&mut follower).1.is_empty());
}

#[test]
fn a_removed_workload_leaves_no_file_and_its_readers_end() {
    let world = World::new();
    let (reading, out) = world.stream(Stream::Stdout, POLICY);
    write_all(&out, b"gone soon\n");
    world.settle(&reading);
    let mut follower = world.read(true, None, None);
    let _: LogChunk = stream::read(&mut follower).unwrap().unwrap();
    world.tell(Notice::LogRemove { id: ID }, &[]);
    assert!(answer(&mut follower).1.is_empty());
    let directory = directory_of(&world.directory.path().join("log"), ID);
    for _ in 0..1000 {
        if !directory.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!directory.exists());
    assert!(answer(&mut world.read(true, None, None)).1.is_empty());
}

#[test]
fn strangers_and_idle_connections_do_no_harm() {
    let world = World::new();
    let (reading, out) = world.stream(Stream::Stdout, POLICY);
    for garbage in [&[0xff_u8; 300][..], &[3, 0, 0, 0, 9, 9, 9], &[]] {
        let mut client = UnixStream::connect(world.directory.path().join("log.sock")).unwrap();
        client.write_all(garbage).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    let idle: Vec<UnixStream> =
        (0..READERS + 10).map(|_| UnixStream::connect(world.directory.path().join("log.sock")).unwrap()).collect();
    write_all(&out, b"still here\n");
    world.settle(&reading);
    drop(idle);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(answer(&mut world.read(false, None, None)).0[&Stream::Stdout], b"still here\n");
}

#[test]
fn a_full_disk_loses_counted_bytes_and_stops_nobody() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to mount a small tmpfs");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let options = c"size=256k";
    let mounted = rustix::mount::mount("tmpfs", directory.path(), "tmpfs", rustix::mount::MountFlags::empty(), options);
    if let Err(errno) = mounted {
        println!("skipped: tmpfs cannot be mounted: {errno}");
        return;
    }
    let mount_point = directory.path().to_owned();
    let world = World::over(directory);
    let (reading, out) = world.stream(Stream::Stdout, POLICY);
    let lines = numbered_lines(100_000);
    write_all(&out, &lines);
    world.settle(&reading);
    world.tell(Notice::LogRunEnded { id: ID }, &[]);
    let (bytes, _, lost) = answer(&mut world.read(true, None, None));
    let kept = bytes[&Stream::Stdout].len();
    drop(world);
    rustix::mount::unmount(&mount_point, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(kept > 60_000 && kept < 256 * 1024, "{kept}");
    assert!(lost > 0 || lines.ends_with(&bytes[&Stream::Stdout]));
}

/// The service as a process of its own, which the test below kills.
#[test]
#[ignore = "run as a child by the test below"]
fn child() {
    // Nobody's child: nothing to do.
    let Some(directory) = std::env::var_os("LOG_TEST_DIRECTORY") else { return };
    let directory = PathBuf::from(directory);
    let control = unix_socket(SocketType::SEQPACKET);
    connect(&control, &SocketAddrUnix::new(directory.join("control.sock")).unwrap()).unwrap();
    let socket = directory.join("log.sock");
    let _ = std::fs::remove_file(&socket);
    serve(control, listener_at(&socket, SocketType::STREAM), &directory.join("log")).unwrap();
}

#[test]
fn a_kill_at_any_time_neither_loses_nor_doubles_a_byte() {
    let directory = tempfile::tempdir().unwrap();
    let listener = listener_at(&directory.path().join("control.sock"), SocketType::SEQPACKET);
    let pipes: Vec<_> = (0..2).map(|_| rustix::pipe::pipe().unwrap()).collect();
    let lines = numbered_lines(300_000);
    let writers: Vec<_> = pipes
        .iter()
        .map(|(_, writing)| {
            let writing = writing.try_clone().unwrap();
            let lines = lines.clone();
            std::thread::spawn(move || lines.chunks(997).for_each(|piece| write_all(&writing, piece)))
        })
        .collect();
    let mut kills = 0;
    let policy = LogPolicy { segments: 64, ..POLICY };
    loop {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["service::tests::child", "--exact", "--ignored"])
            .env("LOG_TEST_DIRECTORY", directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let init = accept(&listener).unwrap();
        for ((reading, _), stream) in pipes.iter().zip(STREAMS) {
            let name = Name::try_from("w").unwrap();
            let notice = FromInit::Notice(Box::new(Notice::LogStream { id: ID, name, stream, policy }));
            frame::send(init.as_fd(), &frame::encode(&notice).unwrap(), &[reading.as_fd()], SendFlags::empty())
                .unwrap();
        }
        let is_over = writers.iter().all(std::thread::JoinHandle::is_finished)
            && pipes.iter().all(|(reading, _)| rustix::io::ioctl_fionread(reading).unwrap() == 0);
        // A different instant each time: the phase of a copy in which the kill comes is what varies.
        std::thread::sleep(Duration::from_micros(1_000 + 137 * (kills % 23)));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        if is_over {
            break;
        }
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let workload = directory_of(&directory.path().join("log"), ID);
    for stream in [Stream::Stdout, Stream::Stderr] {
        let stored = on_disk(&workload, stream);
        assert!(stored == lines, "{stream:?} after {kills} kills: {} of {}", stored.len(), lines.len());
        for number in segments(&workload, stream).unwrap() {
            let path = crate::store::index_path(&workload, stream, number);
            assert!(crate::index::Index::open(&path, false).unwrap().is_some(), "{}", path.display());
        }
    }
    println!("{kills} kills");
}

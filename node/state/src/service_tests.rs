//! The service over a real channel, with the test as PID 1.

use std::os::fd::AsFd;

use byre_protocol::control::Call;
use byre_protocol::frame::{self, MESSAGE_BYTES};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};

use super::*;
use crate::journal::tests::workload;

/// Serves a directory in a thread; the returned end is PID 1's.
fn start(directory: &Path) -> (OwnedFd, std::thread::JoinHandle<()>) {
    let (init, control) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let directory = directory.to_owned();
    let thread = std::thread::spawn(move || {
        let error = serve(control, &directory, &Notifier::default()).unwrap_err();
        assert!(matches!(error, StateError::Channel(ChannelError::Frame(FrameError::Closed))), "{error}");
    });
    (init, thread)
}

fn receive(init: &OwnedFd) -> Request {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let (length, _) = frame::receive(init.as_fd(), &mut buffer, RecvFlags::empty()).unwrap();
    frame::decode::<Call>(&buffer[..length]).unwrap().request
}

fn record(init: &OwnedFd, record: u64, change: Change) {
    let notice = FromInit::Notice(Box::new(Notice::Record { record, change: Box::new(change) }));
    frame::send(init.as_fd(), &frame::encode(&notice).unwrap(), &[], SendFlags::empty()).unwrap();
}

#[test]
fn what_was_recorded_is_replayed_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (init, thread) = start(directory.path());
    assert_eq!(receive(&init), Request::ReplayEnd);
    for number in 0..100_u64 {
        let change = match number % 10 {
            9 => Change::Remove(WorkloadId(number - 1)),
            _ => Change::Put(Box::new(workload(number, number, 2000))),
        };
        record(&init, number, change);
        // Two thirds are answered only later, so that some share a batch.
        if number % 3 == 0 {
            for _ in 0..if number == 0 { 1 } else { 3 } {
                assert!(matches!(receive(&init), Request::Recorded { .. }));
            }
        }
    }
    drop(init);
    thread.join().unwrap();
    let (init, thread) = start(directory.path());
    let mut replayed = Vec::new();
    loop {
        let request = receive(&init);
        if let Request::Replay(record) = request {
            replayed.push(record.id.0);
        } else {
            assert_eq!(request, Request::ReplayEnd);
            break;
        }
    }
    let expected: Vec<u64> = (0..100).filter(|number| number % 10 < 8).collect();
    assert_eq!(replayed, expected);
    drop(init);
    thread.join().unwrap();
}

#[test]
fn a_reader_that_is_slow_at_boot_loses_no_replay() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(directory.path()).unwrap().journal;
    for id in 0..40 {
        journal.append(&[Change::Put(Box::new(workload(id, id, 30_000)))]).unwrap();
    }
    drop(journal);
    let (init, thread) = start(directory.path());
    // More than the socket holds: the rest waits in the file.
    std::thread::sleep(std::time::Duration::from_millis(50));
    record(&init, 7, Change::Remove(WorkloadId(39)));
    let mut replays = 0_usize;
    let mut recorded = 0_usize;
    loop {
        let request = receive(&init);
        if request == Request::ReplayEnd {
            break;
        }
        replays += usize::from(matches!(request, Request::Replay(_)));
        recorded += usize::from(request == Request::Recorded { record: 7 });
    }
    assert_eq!((replays, recorded), (39, 1));
    drop(init);
    thread.join().unwrap();
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    assert_eq!(shortened("short"), "short");
    assert_eq!(shortened(&"ä".repeat(REASON_BYTES)).len(), REASON_BYTES);
    assert_eq!(shortened(&format!("x{}", "ä".repeat(REASON_BYTES))).len(), REASON_BYTES - 1);
}

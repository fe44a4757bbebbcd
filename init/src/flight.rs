//! The flight recorder's place on disk: reading and writing records of [`byre_boots::ring`], by the early stage through the state
//! partition and by tasks through the disk that it lies on (the kernel refuses writers of a mounted partition).
//!
//! A recorder that cannot record never stops anything: its errors are for the console.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use byre_boots::log::{append, line_of_record};
use byre_boots::ring::{self, Boot};
use byre_slots::attempts::RING_OFFSET;

/// The kernel's log, record by record.
const KMSG: &str = "/dev/kmsg";
/// Longest record of it.
const RECORD_BYTES: usize = 8192;
/// Records that are read at once: the log's buffer holds fewer.
const RECORDS: usize = 16_384;

/// The ring on an open device.
pub(crate) struct Flight {
    device: File,
    offset: u64,
}

impl Flight {
    /// The ring behind the attempt record, which lies at `attempts` of `device`.
    pub(crate) fn new(device: File, attempts: u64) -> Self {
        Self { device, offset: attempts.saturating_add(RING_OFFSET) }
    }

    fn place(&self, number: u64) -> u64 {
        self.offset.saturating_add(ring::place(number))
    }

    /// The record of a boot, with the turn of its next write; what the place holds of another boot only gives the turn.
    pub(crate) fn read(&self, number: u64) -> io::Result<(Option<Boot>, u64)> {
        let mut place = vec![0_u8; ring::PLACE_BYTES];
        self.device.read_exact_at(&mut place, self.place(number))?;
        Ok(match ring::decode(&place) {
            Some((boot, turn)) if boot.number == number => (Some(boot), turn),
            Some((_, turn)) => (None, turn),
            None => (None, 0),
        })
    }

    /// Every boot that is remembered, the newest first.
    pub(crate) fn read_all(&self) -> io::Result<Vec<Boot>> {
        let mut bytes = vec![0_u8; usize::try_from(ring::RING_BYTES).unwrap_or(0)];
        self.device.read_exact_at(&mut bytes, self.offset)?;
        Ok(ring::decode_all(&bytes))
    }

    /// Writes a record; on disk when this returns.
    pub(crate) fn write(&self, boot: &Boot, turn: u64) -> io::Result<()> {
        let at = self.place(boot.number).saturating_add(ring::half(turn));
        self.device.write_all_at(&ring::encode(boot, turn), at)?;
        self.device.sync_data()
    }
}

/// A reader of the kernel's log from its beginning, which never waits.
pub(crate) fn open_log() -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(KMSG)
}

/// Hands the lines that are there to `take`. Lines that were overwritten before they were read are left out.
pub(crate) fn read_log(log: &mut File, take: &mut dyn FnMut(&str)) {
    let mut record = vec![0_u8; RECORD_BYTES];
    for _ in 0..RECORDS {
        match log.read(&mut record) {
            Ok(0) => return,
            Ok(length) => {
                if let Some(line) = record.get(..length).and_then(line_of_record) {
                    take(&line);
                }
            }
            // EPIPE: the reader was overtaken, and stands at the oldest record that is left.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return,
        }
    }
}

/// The end of the kernel's log as it is now.
pub(crate) fn log_tail() -> Vec<u8> {
    let mut tail = Vec::new();
    if let Ok(mut log) = open_log() {
        read_log(&mut log, &mut |line| append(&mut tail, line.as_bytes(), ring::TAIL_BYTES));
    }
    tail
}

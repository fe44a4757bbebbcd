//! The writing side of one stream on disk: raw segment files `<stream>.<number>` and their indexes.
//!
//! Bytes go from the pipe to the file by splice(2): one call takes them out of the one and puts them into the other, so whatever
//! kills this process, each byte is in exactly one of the two. How long a segment file is, is how much it has; nothing else is believed.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use byre_protocol::control::Stream;
use byre_protocol::definition::LogPolicy;
use byre_protocol::status::Moment;
use rustix::pipe::SpliceFlags;

use crate::index::{Index, MARKS, Mark};

/// A segment is at least one pipe's content and small enough that throwing the oldest away gives back little.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = (64 * 1024)..=(64 * 1024 * 1024);
/// With one segment, rotation would leave nothing to read.
const SEGMENTS: std::ops::RangeInclusive<usize> = 2..=64;

/// The first part of a segment's name.
pub(crate) fn stream_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
        Stream::Terminal => "terminal",
    }
}

/// Where a segment lies.
pub(crate) fn segment_path(directory: &Path, stream: Stream, number: u64) -> PathBuf {
    directory.join(format!("{}.{number}", stream_name(stream)))
}

/// Where its index lies.
pub(crate) fn index_path(directory: &Path, stream: Stream, number: u64) -> PathBuf {
    directory.join(format!("{}.{number}.index", stream_name(stream)))
}

/// Numbers of a stream's segments, rising; empty if there is no directory.
pub(crate) fn segments(directory: &Path, stream: Stream) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(numbers),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_prefix(stream_name(stream))?.strip_prefix('.')?.parse().ok());
        numbers.extend(number.map(|number: u64| number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Where a stream is written.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    stream: Stream,
    segment_bytes: u64,
    kept: usize,
    numbers: VecDeque<u64>,
    file: File,
    length: u64,
    index: Index,
    marks: u64,
    last: Option<Mark>,
    /// Lost bytes that no mark speaks of yet.
    lost: u64,
}

impl Store {
    /// Opens a stream's newest segment, or makes the first.
    pub(crate) fn open(directory: &Path, stream: Stream, policy: LogPolicy) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let numbers: VecDeque<u64> = segments(directory, stream)?.into();
        let Some(number) = numbers.back().copied() else {
            let (file, index) = make(directory, stream, 0, 0)?;
            return Ok(Self::with(directory, stream, policy, [0].into(), file, index));
        };
        let file = OpenOptions::new().read(true).write(true).open(segment_path(directory, stream, number))?;
        let index_path = index_path(directory, stream, number);
        let index = match Index::open(&index_path, true)? {
            Some(index) => index,
            None => Index::create(&index_path, end_before(directory, stream, &numbers)?)?,
        };
        let mut store = Self::with(directory, stream, policy, numbers, file, index);
        let metadata = store.file.metadata()?;
        store.length = metadata.len();
        (store.last, store.marks) = store.index.recover(store.length)?;
        if store.last.is_none() && store.length > 0 {
            store.put_mark(Mark { wall_ms: modified_ms(&metadata), ..Mark::default() })?;
        }
        Ok(store)
    }

    fn with(
        directory: &Path,
        stream: Stream,
        policy: LogPolicy,
        numbers: VecDeque<u64>,
        file: File,
        index: Index,
    ) -> Self {
        let segment_bytes = u64::from(policy.segment_bytes).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end());
        let kept = usize::from(policy.segments).clamp(*SEGMENTS.start(), *SEGMENTS.end());
        let directory = directory.to_owned();
        Self { directory, stream, segment_bytes, kept, numbers, file, length: 0, index, marks: 0, last: None, lost: 0 }
    }

    /// The end of the stream: how many bytes were ever put into it.
    pub(crate) fn position(&self) -> u64 {
        self.index.base + self.length
    }

    /// Counts bytes that were thrown away.
    pub(crate) fn lose(&mut self, bytes: u64, now: Moment) {
        self.lost += bytes;
        // No room for the mark either: the count stays here, and goes into the next one that can be written.
        let _ = self.mark(now);
    }

    /// Moves up to `most` bytes from a pipe; 0 means that its last writer is gone.
    pub(crate) fn splice_from(&mut self, pipe: BorrowedFd<'_>, most: u64, now: Moment) -> io::Result<u64> {
        let room = self.prepare(now)?;
        let most = usize::try_from(most.min(room)).unwrap_or(usize::MAX);
        let mut offset = self.length;
        let moved = rustix::pipe::splice(pipe, None, &self.file, Some(&mut offset), most, SpliceFlags::NONBLOCK)?;
        self.length += moved as u64;
        Ok(moved as u64)
    }

    /// Writes bytes that were read; returns how many were taken.
    pub(crate) fn append(&mut self, bytes: &[u8], now: Moment) -> io::Result<usize> {
        let room = usize::try_from(self.prepare(now)?).unwrap_or(usize::MAX);
        let taken = self.file.write_at(bytes.get(..room.min(bytes.len())).unwrap_or(bytes), self.length)?;
        self.length += taken as u64;
        Ok(taken)
    }

    /// Gives back the oldest segment, if there is one beside the newest.
    pub(crate) fn give_back(&mut self) -> bool {
        if self.numbers.len() < 2 {
            return false;
        }
        self.drop_oldest();
        true
    }

    /// Rotates if the segment is full, and marks the time. Returns how many bytes the segment takes.
    fn prepare(&mut self, now: Moment) -> io::Result<u64> {
        if self.length >= self.segment_bytes || self.marks >= MARKS {
            self.rotate()?;
        }
        self.mark(now)?;
        Ok(self.segment_bytes.saturating_sub(self.length).max(1))
    }

    fn rotate(&mut self) -> io::Result<()> {
        let number = self.numbers.back().map_or(0, |last| last + 1);
        let (file, index) = make(&self.directory, self.stream, number, self.position())?;
        self.numbers.push_back(number);
        (self.file, self.index) = (file, index);
        (self.length, self.marks) = (0, 0);
        while self.numbers.len() > self.kept {
            self.drop_oldest();
        }
        Ok(())
    }

    fn drop_oldest(&mut self) {
        let Some(number) = self.numbers.pop_front() else { return };
        for path in
            [segment_path(&self.directory, self.stream, number), index_path(&self.directory, self.stream, number)]
        {
            // What cannot be removed is found again at the next start.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Marks what comes next with the time and with what was lost before it. A clock that was set back does not count.
    fn mark(&mut self, now: Moment) -> io::Result<()> {
        let earliest = self.last.map_or(0, |last| last.wall_ms);
        let wall_ms = now.wall_ms.max(earliest);
        if self.marks > 0 && wall_ms == earliest && self.lost == 0 {
            return Ok(());
        }
        self.put_mark(Mark { offset: self.length, wall_ms, boot_ms: now.boot_ms, lost: self.lost })?;
        self.lost = 0;
        Ok(())
    }

    /// Writes a mark, over the last one if no byte came since.
    fn put_mark(&mut self, mut mark: Mark) -> io::Result<()> {
        let again = self.last.filter(|last| self.marks > 0 && last.offset == mark.offset);
        let slot = if again.is_some() { self.marks - 1 } else { self.marks };
        mark.lost = mark.lost.saturating_add(again.map_or(0, |last| last.lost));
        self.index.put(slot, mark)?;
        self.marks = slot + 1;
        self.last = Some(mark);
        Ok(())
    }
}

/// Makes a segment and its index; the index first, because a segment is found by its own name.
fn make(directory: &Path, stream: Stream, number: u64, base: u64) -> io::Result<(File, Index)> {
    let index = Index::create(&index_path(directory, stream, number), base)?;
    let path = segment_path(directory, stream, number);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    Ok((file, index))
}

/// Where the segment before the newest ends in the stream, for a newest one whose index is gone.
fn end_before(directory: &Path, stream: Stream, numbers: &VecDeque<u64>) -> io::Result<u64> {
    let Some(before) = numbers.len().checked_sub(2).and_then(|place| numbers.get(place)) else { return Ok(0) };
    let length = std::fs::metadata(segment_path(directory, stream, *before))?.len();
    let base = Index::open(&index_path(directory, stream, *before), false)?.map_or(0, |index| index.base);
    Ok(base + length)
}

/// When a file was written last, in milliseconds since 1970.
pub(crate) fn modified_ms(metadata: &std::fs::Metadata) -> u64 {
    let seconds = u64::try_from(metadata.mtime()).unwrap_or(0);
    let milliseconds = u64::try_from(metadata.mtime_nsec() / 1_000_000).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(milliseconds)
}

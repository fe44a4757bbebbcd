//! The reading side of one stream on disk: a place in it, moving forward piece by piece, and the search for where to begin.
//!
//! A reader holds no bytes: a slow one finds what it has not read in the files, and is told how much was rotated away meanwhile.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use byre_protocol::control::Stream;
use byre_protocol::peer::LOG_CHUNK_BYTES;
use byre_protocol::status::Moment;

use crate::index::{Index, Mark};
use crate::store::{index_path, modified_ms, segment_path, segments};

/// How far back the last lines are looked for: beyond that a reader wants the file as a whole. Takes about 20 ms.
const TAIL_BYTES: u64 = 16 * 1024 * 1024;

/// An open segment.
#[derive(Debug)]
struct Segment {
    number: u64,
    base: u64,
    file: File,
    index: Option<Index>,
    /// For bytes without marks.
    modified_ms: u64,
}

impl Segment {
    fn open(directory: &Path, stream: Stream, number: u64, expected_base: u64) -> io::Result<Self> {
        let file = File::open(segment_path(directory, stream, number))?;
        let index = Index::open(&index_path(directory, stream, number), false)?;
        let base = index.as_ref().map_or(expected_base, |index| index.base);
        let modified_ms = modified_ms(&file.metadata()?);
        Ok(Self { number, base, file, index, modified_ms })
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The slot whose mark speaks of this byte; none does where an index begins late, as a rotten one may.
    fn slot(&self, offset: u64, hint: u64) -> io::Result<Option<u64>> {
        let Some(index) = &self.index else { return Ok(Some(0)) };
        let speaks = |mark: Mark| mark.offset <= offset;
        // Reading goes on, so it is nearly always the same slot or the next.
        for slot in [hint, hint + 1] {
            let is_this = index.mark(slot)?.is_some_and(speaks) && !index.mark(slot + 1)?.is_some_and(speaks);
            if is_this {
                return Ok(Some(slot));
            }
        }
        index.last_slot(speaks)
    }

    fn mark(&self, slot: u64) -> io::Result<Option<Mark>> {
        match &self.index {
            Some(index) => index.mark(slot),
            None if slot == 0 => Ok(Some(Mark { wall_ms: self.modified_ms, ..Mark::default() })),
            None => Ok(None),
        }
    }
}

/// What comes next in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// When it was taken in.
    pub(crate) at: Moment,
    /// Bytes lost before it.
    pub(crate) lost: u64,
    /// How many bytes it has.
    pub(crate) bytes: usize,
}

/// A place in a stream.
#[derive(Debug)]
pub(crate) struct Cursor {
    directory: PathBuf,
    stream: Stream,
    position: u64,
    segment: Option<Segment>,
    slot: u64,
    /// Rotated away before it was read, and not told yet.
    lost: u64,
}

impl Cursor {
    /// At a position of the stream.
    pub(crate) fn new(directory: &Path, stream: Stream, position: u64) -> Self {
        Self { directory: directory.to_owned(), stream, position, segment: None, slot: 0, lost: 0 }
    }

    /// At the first piece of this time or later, at or behind the present place.
    pub(crate) fn skip_before(&mut self, wall_ms: u64) -> io::Result<()> {
        for number in segments(&self.directory, self.stream)? {
            let segment = Segment::open(&self.directory, self.stream, number, self.position)?;
            let earlier = match &segment.index {
                Some(index) => index.last_slot(|mark| mark.wall_ms < wall_ms)?,
                None if segment.modified_ms < wall_ms => Some(0),
                None => None,
            };
            let Some(earlier) = earlier else { return Ok(()) };
            let length = segment.length()?;
            let end = segment.mark(earlier + 1)?.map_or(length, |mark| mark.offset.min(length));
            self.position = self.position.max(segment.base + end);
        }
        Ok(())
    }

    /// Where it is.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next piece before `limit`, or `None` if there is none yet.
    pub(crate) fn peek(&mut self, limit: u64) -> io::Result<Option<Piece>> {
        loop {
            if self.position >= limit {
                return Ok(None);
            }
            let Some(segment) = &self.segment else {
                // Entering may move the position up to the limit.
                if self.enter(None)? {
                    continue;
                }
                return Ok(None);
            };
            let length = segment.length()?;
            let offset = self.position.saturating_sub(segment.base);
            if offset >= length {
                let number = segment.number;
                if self.enter(Some(number))? {
                    continue;
                }
                return Ok(None);
            }
            let slot = segment.slot(offset, self.slot)?;
            self.slot = slot.unwrap_or(0);
            let mark = slot.map_or(Ok(None), |slot| segment.mark(slot))?.unwrap_or_default();
            let next = segment.mark(slot.map_or(0, |slot| slot + 1))?.map_or(length, |next| next.offset.min(length));
            let end = next.min(limit - segment.base);
            let bytes = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(LOG_CHUNK_BYTES);
            let lost = self.lost.saturating_add(if mark.offset == offset { mark.lost } else { 0 });
            let at = Moment { boot_ms: mark.boot_ms, wall_ms: mark.wall_ms };
            return Ok(Some(Piece { at, lost, bytes }));
        }
    }

    /// Reads a piece that was seen, and moves behind it.
    pub(crate) fn take(&mut self, piece: Piece) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; piece.bytes];
        if let Some(segment) = &self.segment {
            segment.file.read_exact_at(&mut bytes, self.position.saturating_sub(segment.base))?;
        }
        self.position += piece.bytes as u64;
        self.lost = 0;
        Ok(bytes)
    }

    /// What was lost at this place with no byte behind it.
    pub(crate) fn lost_at_end(&self) -> io::Result<u64> {
        let at_end = match &self.segment {
            Some(segment) => {
                let offset = self.position.saturating_sub(segment.base);
                let slot = segment.slot(offset, self.slot)?;
                let mark = slot.map_or(Ok(None), |slot| segment.mark(slot))?;
                mark.filter(|mark| mark.offset == offset).map_or(0, |mark| mark.lost)
            }
            None => 0,
        };
        Ok(self.lost.saturating_add(at_end))
    }

    /// Opens the segment of the position, or the first one behind a given one. `false` if there is none.
    fn enter(&mut self, behind: Option<u64>) -> io::Result<bool> {
        let numbers = segments(&self.directory, self.stream)?;
        let last = numbers.last().copied();
        for number in numbers.into_iter().filter(|number| behind.is_none_or(|behind| *number > behind)) {
            let segment = Segment::open(&self.directory, self.stream, number, self.position)?;
            if segment.base + segment.length()? <= self.position && Some(number) != last {
                continue;
            }
            self.lost = self.lost.saturating_add(segment.base.saturating_sub(self.position));
            self.position = self.position.max(segment.base);
            self.segment = Some(segment);
            self.slot = 0;
            return Ok(true);
        }
        Ok(false)
    }
}

/// The oldest position that is kept of a stream, and its end.
pub(crate) fn bounds(directory: &Path, stream: Stream) -> io::Result<(u64, u64)> {
    let numbers = segments(directory, stream)?;
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return Ok((0, 0)) };
    let oldest = Segment::open(directory, stream, *first, 0)?.base;
    let newest = Segment::open(directory, stream, *last, oldest)?;
    Ok((oldest, newest.base + newest.length()?))
}

/// Going back through a stream to find where its last lines begin.
struct Backward {
    stream: Stream,
    end: u64,
    position: u64,
    numbers: Vec<u64>,
    segment: Option<Segment>,
}

impl Backward {
    /// The time of the byte before the position and where its piece begins, in the stream.
    fn piece(&mut self, directory: &Path) -> io::Result<Option<(u64, u64)>> {
        loop {
            if self.segment.is_none() {
                let Some(number) = self.numbers.pop() else { return Ok(None) };
                self.segment = Some(Segment::open(directory, self.stream, number, 0)?);
            }
            let Some(segment) = &self.segment else { return Ok(None) };
            if self.position <= segment.base {
                self.segment = None;
                continue;
            }
            // Between the end of a segment and the beginning of the next nothing lies, whatever their indexes say.
            let offset = (self.position - segment.base).min(segment.length()?);
            self.position = segment.base + offset;
            let Some(last) = offset.checked_sub(1) else { continue };
            let slot = segment.slot(last, 0)?;
            let mark = slot.map_or(Ok(None), |slot| segment.mark(slot))?.unwrap_or_default();
            let start = mark.offset.max(offset.saturating_sub(LOG_CHUNK_BYTES as u64));
            return Ok(Some((mark.wall_ms, segment.base + start)));
        }
    }

    /// Goes back over a piece, counting line beginnings; stops at the one that is wanted.
    fn scan(&mut self, start: u64, left: &mut u64) -> io::Result<bool> {
        let Some(segment) = &self.segment else { return Ok(false) };
        let mut bytes = vec![0; usize::try_from(self.position - start).unwrap_or(0)];
        segment.file.read_exact_at(&mut bytes, start - segment.base)?;
        while let Some(byte) = bytes.pop() {
            if byte == b'\n' && self.position != self.end {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    return Ok(true);
                }
            }
            self.position -= 1;
        }
        Ok(false)
    }
}

/// Where the last `lines` lines of all the streams together begin in each, given where each ends.
pub(crate) fn tail(directory: &Path, ends: &[(Stream, u64)], lines: u64) -> io::Result<Vec<(Stream, u64)>> {
    let mut streams = Vec::new();
    for (stream, end) in ends {
        let numbers = segments(directory, *stream)?;
        streams.push(Backward { stream: *stream, end: *end, position: *end, numbers, segment: None });
    }
    let (mut left, mut seen) = (lines, 0);
    while left > 0 && seen < TAIL_BYTES {
        let mut newest: Option<(usize, u64, u64)> = None;
        for (place, stream) in streams.iter_mut().enumerate() {
            if let Some((wall_ms, start)) = stream.piece(directory)?
                && newest.is_none_or(|(_, newest_ms, _)| wall_ms >= newest_ms)
            {
                newest = Some((place, wall_ms, start));
            }
        }
        let Some((place, _, start)) = newest else { break };
        let Some(stream) = streams.get_mut(place) else { break };
        seen += stream.position - start;
        if stream.scan(start, &mut left)? {
            break;
        }
        // The beginning of a stream is the beginning of a line as well.
        if stream.position == 0 {
            left = left.saturating_sub(1);
        }
    }
    Ok(streams.into_iter().map(|stream| (stream.stream, stream.position)).collect())
}

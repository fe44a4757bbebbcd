//! One client of the log socket, as a state machine over a non-blocking connection.
//!
//! ```text
//! Asking -> Sending <-> Parked (at the end, following) -> Finishing -> gone
//! ```
//! A reader holds one encoded piece at most; everything else stays in the files.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use byre_plan::WorkloadId;
use byre_protocol::control::Stream;
use byre_protocol::frame::FrameError;
use byre_protocol::peer::{LogCall, LogChunk};
use byre_protocol::status::Moment;
use byre_sandbox::stream;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::cursor::{Cursor, Piece, bounds, tail};

/// Bytes of a call: it has an identity and two numbers.
const CALL_BYTES: usize = 256;
/// Pieces sent to one reader before the others have their turn.
const TURN_PIECES: usize = 16;
/// All streams a workload can have.
pub(crate) const STREAMS: [Stream; 3] = [Stream::Stdout, Stream::Stderr, Stream::Terminal];

/// Why a reader is dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReaderError {
    /// It went away.
    #[error("it closed the connection")]
    Closed,
    /// It does not speak the protocol.
    #[error(transparent)]
    Call(#[from] FrameError),
    /// The socket failed.
    #[error(transparent)]
    Socket(Errno),
    /// The files failed.
    #[error("log file: {0}")]
    File(#[from] io::Error),
}

/// When a reader is at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Until {
    /// At these positions; a stream that is not named has none.
    At(BTreeMap<Stream, u64>),
    /// When the present run has ended.
    RunEnd,
    /// When the next run has begun and ended.
    NextRunEnd,
}

/// Whether a workload runs, as far as its output is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunState {
    /// It may write.
    Live,
    /// Its run has ended and its pipes are being drained.
    Ending,
    /// All it wrote is in the files.
    Ended,
}

/// What the service must do for a reader next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Tell it when its call comes.
    Reading,
    /// Tell it when it can send.
    Writing,
    /// Tell it when there is more output.
    Output,
    /// Nothing: it is served.
    Nothing,
}

/// What a reader is doing.
#[derive(Debug)]
enum State {
    Asking {
        gathered: Vec<u8>,
    },
    Serving {
        id: WorkloadId,
        cursors: BTreeMap<Stream, Cursor>,
        until: Until,
    },
    /// The last piece is being sent.
    Finishing,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: OwnedFd,
    state: State,
    /// What the socket has not taken yet.
    outgoing: Vec<u8>,
    sent: usize,
    /// When it connected.
    pub(crate) since_boot_ms: u64,
}

impl Reader {
    /// A new connection.
    pub(crate) fn new(socket: OwnedFd, now: Moment) -> Self {
        let state = State::Asking { gathered: Vec::new() };
        Self { socket, state, outgoing: Vec::new(), sent: 0, since_boot_ms: now.boot_ms }
    }

    /// Whose output it reads.
    pub(crate) fn workload(&self) -> Option<WorkloadId> {
        match &self.state {
            State::Serving { id, .. } => Some(*id),
            State::Asking { .. } | State::Finishing => None,
        }
    }

    /// Whether its call has not come yet.
    pub(crate) fn is_asking(&self) -> bool {
        matches!(self.state, State::Asking { .. })
    }

    /// Reads its call as far as it came.
    pub(crate) fn receive(&mut self) -> Result<Option<LogCall>, ReaderError> {
        let State::Asking { gathered } = &mut self.state else { return Ok(None) };
        let mut buffer = [0; CALL_BYTES];
        let received = match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(ReaderError::Closed),
            Ok((received, _)) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(ReaderError::Socket(errno)),
        };
        gathered.extend_from_slice(buffer.get(..received).unwrap_or_default());
        match stream::take(gathered)? {
            Some((call, _)) => Ok(Some(call)),
            None if gathered.len() >= CALL_BYTES => Err(FrameError::TooLong(gathered.len()).into()),
            None => Ok(None),
        }
    }

    /// Begins to serve a call.
    pub(crate) fn begin(&mut self, call: &LogCall, root: &Path, run: RunState) -> Result<(), ReaderError> {
        let until = |follow| match run {
            RunState::Live | RunState::Ending if follow => Ok(Until::RunEnd),
            RunState::Live | RunState::Ending | RunState::Ended => {
                ends(&directory_of(root, id_of(call))).map(Until::At)
            }
        };
        let (cursors, until) = match call {
            LogCall::Read { id, follow, since_wall_ms, tail_lines } => {
                let directory = directory_of(root, *id);
                (beginnings(&directory, *since_wall_ms, *tail_lines)?, until(*follow)?)
            }
            LogCall::Attach { id } => {
                let directory = directory_of(root, *id);
                let at_end = |(stream, end)| (stream, Cursor::new(&directory, stream, end));
                let cursors = ends(&directory)?.into_iter().map(at_end).collect();
                let until = match run {
                    RunState::Live | RunState::Ending => Until::RunEnd,
                    RunState::Ended => Until::NextRunEnd,
                };
                (cursors, until)
            }
        };
        self.state = State::Serving { id: id_of(call), cursors, until };
        Ok(())
    }

    /// A run of its workload begins.
    pub(crate) fn run_begins(&mut self) {
        if let State::Serving { until, .. } = &mut self.state
            && *until == Until::NextRunEnd
        {
            *until = Until::RunEnd;
        }
    }

    /// The run has ended, with its output up to these positions.
    pub(crate) fn run_ended(&mut self, positions: &BTreeMap<Stream, u64>) {
        if let State::Serving { until, .. } = &mut self.state
            && *until == Until::RunEnd
        {
            *until = Until::At(positions.clone());
        }
    }

    /// Sends what the socket takes.
    pub(crate) fn advance(&mut self, root: &Path) -> Result<Wants, ReaderError> {
        for _ in 0..TURN_PIECES {
            if !self.flush()? {
                return Ok(Wants::Writing);
            }
            match &mut self.state {
                State::Asking { .. } => return Ok(Wants::Reading),
                State::Finishing => return Ok(Wants::Nothing),
                State::Serving { id, cursors, until } => {
                    let chunk = match next_chunk(&directory_of(root, *id), cursors, until)? {
                        Next::Chunk(chunk) => chunk,
                        Next::Wait => return Ok(Wants::Output),
                        Next::Last(chunk) => {
                            self.state = State::Finishing;
                            chunk
                        }
                    };
                    self.outgoing = stream::framed(&chunk)?;
                    self.sent = 0;
                }
            }
        }
        Ok(Wants::Writing)
    }

    /// Sends what waits; `true` when nothing does any more.
    fn flush(&mut self) -> Result<bool, ReaderError> {
        while self.sent < self.outgoing.len() {
            let rest = self.outgoing.get(self.sent..).unwrap_or_default();
            match rustix::net::send(&self.socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ReaderError::Socket(errno)),
            }
        }
        self.outgoing = Vec::new();
        self.sent = 0;
        Ok(true)
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A workload's directory.
pub(crate) fn directory_of(root: &Path, id: WorkloadId) -> PathBuf {
    root.join(id.to_string())
}

pub(crate) fn id_of(call: &LogCall) -> WorkloadId {
    match call {
        LogCall::Read { id, .. } | LogCall::Attach { id } => *id,
    }
}

/// Where each stream of a workload ends now.
pub(crate) fn ends(directory: &Path) -> io::Result<BTreeMap<Stream, u64>> {
    STREAMS.into_iter().map(|stream| Ok((stream, bounds(directory, stream)?.1))).collect()
}

/// Where a reader of stored output begins.
pub(crate) fn beginnings(
    directory: &Path,
    since: Option<u64>,
    lines: Option<u64>,
) -> io::Result<BTreeMap<Stream, Cursor>> {
    let starts = match lines {
        Some(lines) => {
            let ends: Vec<(Stream, u64)> = ends(directory)?.into_iter().collect();
            tail(directory, &ends, lines)?
        }
        None => {
            let oldest = |stream| Ok((stream, bounds(directory, stream)?.0));
            STREAMS.into_iter().map(oldest).collect::<io::Result<Vec<_>>>()?
        }
    };
    let mut cursors = BTreeMap::new();
    for (stream, position) in starts {
        let mut cursor = Cursor::new(directory, stream, position);
        if let Some(since) = since {
            cursor.skip_before(since)?;
        }
        cursors.insert(stream, cursor);
    }
    Ok(cursors)
}

pub(crate) enum Next {
    Chunk(LogChunk),
    Wait,
    Last(LogChunk),
}

/// The oldest piece of all streams.
pub(crate) fn next_chunk(
    directory: &Path,
    cursors: &mut BTreeMap<Stream, Cursor>,
    until: &Until,
) -> Result<Next, ReaderError> {
    for stream in STREAMS {
        // A stream that appeared after the call is read from its beginning.
        cursors.entry(stream).or_insert_with(|| Cursor::new(directory, stream, 0));
    }
    let mut oldest: Option<(Stream, Piece)> = None;
    for (stream, cursor) in cursors.iter_mut() {
        let limit = match until {
            Until::At(ends) => ends.get(stream).copied().unwrap_or(0),
            Until::RunEnd | Until::NextRunEnd => u64::MAX,
        };
        let Some(piece) = cursor.peek(limit)? else { continue };
        if oldest.is_none_or(|(_, oldest)| piece.at.wall_ms < oldest.at.wall_ms) {
            oldest = Some((*stream, piece));
        }
    }
    let Some((stream, piece)) = oldest else {
        return match until {
            Until::At(_) => Ok(Next::Last(last_chunk(cursors)?)),
            Until::RunEnd | Until::NextRunEnd => Ok(Next::Wait),
        };
    };
    let Some(cursor) = cursors.get_mut(&stream) else { return Ok(Next::Wait) };
    let bytes = cursor.take(piece)?;
    Ok(Next::Chunk(LogChunk { stream, at: piece.at, bytes, lost: piece.lost }))
}

/// The empty piece that ends an answer; it tells what was lost behind the last byte.
fn last_chunk(cursors: &BTreeMap<Stream, Cursor>) -> Result<LogChunk, ReaderError> {
    let mut lost = 0;
    for cursor in cursors.values() {
        lost = cursor.lost_at_end()?.saturating_add(lost);
    }
    let stream = if cursors.get(&Stream::Terminal).is_some_and(|cursor| cursor.position() > 0) {
        Stream::Terminal
    } else {
        Stream::Stdout
    };
    Ok(LogChunk { stream, at: Moment::default(), bytes: Vec::new(), lost })
}

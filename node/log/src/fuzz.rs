//! Ways in for a fuzzer to the files of one workload, with what a disk gave back in their place. What must hold is said in `tests/fuzz`.
//!
//! Nothing on a node calls these.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use byre_protocol::control::Stream;
use byre_protocol::definition::LogPolicy;
use byre_protocol::peer::LogChunk;
use byre_protocol::status::Moment;

use crate::reader::{self, Next, ReaderError, Until};
use crate::store::Store;

/// Pieces of one answer: more than any file of a fuzzer has bytes.
const PIECES: usize = 1 << 20;

/// What a client is sent who asks for stored output: its pieces, without the empty one at the end.
///
/// # Errors
/// If the files cannot be read.
///
/// # Panics
/// If the answer does not come to an end, or would end early for the client.
pub fn read(directory: &Path, tail: Option<u64>, since_wall_ms: Option<u64>) -> io::Result<Vec<LogChunk>> {
    let file = |error| match error {
        ReaderError::File(error) => error,
        other @ (ReaderError::Closed | ReaderError::Call(_) | ReaderError::Socket(_)) => io::Error::other(other),
    };
    let mut cursors = reader::beginnings(directory, since_wall_ms, tail)?;
    let until = Until::At(reader::ends(directory)?);
    let mut chunks = Vec::new();
    for _ in 0..PIECES {
        match reader::next_chunk(directory, &mut cursors, &until).map_err(file)? {
            Next::Chunk(chunk) => {
                assert!(!chunk.bytes.is_empty(), "an empty piece is the last one for the client");
                chunks.push(chunk);
            }
            Next::Last(_) => return Ok(chunks),
            Next::Wait => panic!("there is an end, and nothing to wait for"),
        }
    }
    panic!("an answer without an end")
}

/// The service takes a stream up where it finds it, and bytes come.
///
/// # Errors
/// If the files cannot be written.
pub fn append(directory: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut store = Store::open(directory, Stream::Stdout, LogPolicy::default())?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let taken = store.append(rest, Moment { boot_ms: 7, wall_ms: 7 })?;
        rest = rest.get(taken..).unwrap_or_default();
    }
    Ok(())
}

/// Where each stream ends.
///
/// # Errors
/// If the files cannot be read.
pub fn ends(directory: &Path) -> io::Result<BTreeMap<Stream, u64>> {
    reader::ends(directory)
}

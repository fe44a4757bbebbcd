//! One blob on its way: what is here already, then what still comes; each byte hashed once, and kept for the next try if the blob is large.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::source::{Source, SourceError, Stop, Wanted};
use crate::digest::{Digest, HashingReader};
use crate::reference::Reference;

/// A blob smaller than this is fetched anew rather than resumed.
const KEPT_FROM: u64 = 4 << 20;

/// Reads a blob from its beginning; what the network brings is written to its partial file as well.
pub(super) struct BlobReader {
    inner: HashingReader<Joined>,
}

/// What is here, then what comes.
struct Joined {
    here: io::Take<Box<dyn Read + Send>>,
    network: Box<dyn Read + Send>,
    /// Bytes that are still to come.
    left: u64,
    kept: Option<File>,
}

/// Where a blob's bytes are kept while they come.
#[derive(Debug, Clone)]
pub(super) struct Partial {
    path: PathBuf,
    worth_it: bool,
}

impl Partial {
    pub(super) fn new(dir: PathBuf, blob: &Digest, diff_id: &Digest, size: u64) -> Self {
        Self { path: dir.join(format!("{}-{}", blob.hex(), &diff_id.hex()[..16])), worth_it: size >= KEPT_FROM }
    }

    /// Bytes that are here.
    pub(super) fn bytes(&self) -> u64 {
        if self.worth_it { fs::metadata(&self.path).map_or(0, |meta| meta.len()) } else { 0 }
    }

    /// Removes it; the sweep at a start does it if this cannot.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// The kept bytes for reading, and the file to go on writing.
    fn open(&self, resume: bool) -> io::Result<(File, File, u64)> {
        if !resume {
            self.remove();
        }
        let writing = File::options().append(true).create(true).open(&self.path)?;
        let reading = File::open(&self.path)?;
        let bytes = reading.metadata()?.len();
        Ok((reading, writing, bytes))
    }
}

impl BlobReader {
    /// Begins, with what is here if `resume`.
    pub(super) fn begin(
        source: &dyn Source,
        repository: &Reference,
        wanted: Wanted,
        (partial, resume): (&Partial, bool),
        stop: &Stop,
    ) -> Result<Self, SourceError> {
        let mut here: Box<dyn Read + Send> = Box::new(io::empty());
        let (mut kept, mut offset) = (None, 0);
        // Without a file to keep them in, the bytes are only not kept.
        if partial.worth_it
            && let Ok((reading, writing, bytes)) = partial.open(resume)
            && bytes <= wanted.size
        {
            (here, kept, offset) = (Box::new(reading), Some(writing), bytes);
        }
        let network: Box<dyn Read + Send> = if offset == wanted.size {
            Box::new(io::empty())
        } else {
            source.blob(repository, Wanted { offset, ..wanted }, stop)?
        };
        let joined = Joined { here: here.take(offset), network, left: wanted.size - offset, kept };
        Ok(Self { inner: HashingReader::new(joined) })
    }

    /// Bytes read so far.
    pub(super) fn count(&self) -> u64 {
        self.inner.count()
    }

    /// Reads what is left and gives the digest and length of all.
    pub(super) fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.inner.finish())
    }
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf)
    }
}

impl Read for Joined {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.here.read(buf)?;
        if n > 0 || buf.is_empty() || self.left == 0 {
            return Ok(n);
        }
        // A source that gives more than was asked for is not read further.
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let n = self.network.read(&mut buf[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        if let Some(file) = &mut self.kept
            && file.write_all(&buf[..n]).is_err()
        {
            // A full disk: the layer needs the room more.
            let _ = file.set_len(0);
            self.kept = None;
        }
        Ok(n)
    }
}

//! A streaming tar reader: ustar, PAX and GNU forms, bounded, from an unseekable and hostile stream.
//!
//! Own parser, for reasons that the `tar` crate cannot meet: it splits PAX records at newlines, which breaks binary
//! `security.capability` values; it does not know PAX sparse forms; it reads extension headers without a bound; and it
//! does not refuse headers that contradict each other. Where implementations differ we do as Go's `archive/tar` does,
//! because that is what wrote and checked nearly every image. It never touches a path: names are bytes, and their
//! meaning is the caller's business.

mod header;
mod pax;
mod sparse;

use std::io::{self, Read};

use header::{BLOCK_LEN, Header};
use pax::PaxRecords;
pub use sparse::Segment;

/// Most bytes of one PAX header: room for a 64 KiB extended attribute value, several names, a sparse map.
pub const MAX_PAX_LEN: u64 = 1 << 20;
/// Most bytes of a GNU long name or link target: PATH_MAX and its NUL, rounded up.
pub const MAX_GNU_NAME_LEN: u64 = 8 << 10;
/// Most bytes of a name that is quoted in an error.
const MAX_QUOTED_LEN: usize = 200;

/// What kind of file an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; its bytes follow.
    File,
    /// Another name of an earlier entry.
    HardLink(Vec<u8>),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// Seconds and nanoseconds since 1970, as in `struct timespec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Whole seconds; may be negative.
    pub seconds: i64,
    /// 0 to 999,999,999, counted forwards from `seconds`.
    pub nanoseconds: u32,
}

/// One file of an archive. Names are unchecked bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name as written.
    pub path: Vec<u8>,
    /// Kind, with what only that kind has.
    pub kind: EntryKind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last change.
    pub mtime: Timestamp,
    /// Size of the file in bytes, holes included; 0 for everything but a file.
    pub size: u64,
    /// For a sparse file the stored parts, in order; `None` when the whole file is stored.
    pub sparse: Option<Vec<Segment>>,
    /// Extended attributes: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why a tar stream was refused.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream failed.
    #[error("reading the archive: {0}")]
    Io(#[from] io::Error),
    /// The stream ends inside an entry.
    #[error("the archive is cut off in {entry:?}; copy or save it again")]
    Truncated {
        /// The entry that is incomplete.
        entry: String,
    },
    /// A header block that is not one.
    #[error("after {entry:?}: not a tar archive, or a damaged one (header checksum is wrong)")]
    Checksum {
        /// The entry before.
        entry: String,
    },
    /// A field that cannot be read or contradicts another.
    #[error("entry {entry:?}: {what}")]
    Field {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An entry type that no container image needs.
    #[error("entry {entry:?}: tar entry type {kind:?} is not supported")]
    Kind {
        /// The entry.
        entry: String,
        /// Its type flag.
        kind: char,
    },
}

/// `name` for a message: bounded, without control characters.
pub fn quote(name: &[u8]) -> String {
    let cut = &name[..name.len().min(MAX_QUOTED_LEN)];
    let mut text: String =
        String::from_utf8_lossy(cut).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if cut.len() < name.len() {
        text.push('…');
    }
    text
}

/// Reads entries one after the other; between two calls of [`TarReader::next_entry`] it is the `Read` of the current
/// entry's stored bytes.
pub struct TarReader<R> {
    inner: R,
    /// Stored bytes of the current entry not read yet.
    left: u64,
    /// Bytes after them up to the next block boundary.
    padding: u64,
    /// Name of the current entry, for errors.
    current: Vec<u8>,
    ended: bool,
}

/// What extension headers said about the entry that follows them.
#[derive(Default)]
struct Extensions {
    pax: Option<PaxRecords>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    /// Starts at the first header.
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, current: Vec::new(), ended: false }
    }

    /// Gives the stream back, to read what follows the archive.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, after skipping what was left of the one before; `None` at the end of the archive.
    ///
    /// # Errors
    /// [`TarError`], naming the entry.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.next_header()? else {
                if extensions.pax.is_some() || extensions.long_name.is_some() || extensions.long_link.is_some() {
                    return Err(self.truncated());
                }
                return Ok(None);
            };
            if self.read_extension(&header, &mut extensions)? {
                continue;
            }
            return self.build_entry(&header, extensions).map(Some);
        }
    }

    fn truncated(&self) -> TarError {
        TarError::Truncated { entry: quote(&self.current) }
    }

    fn field(&self, what: &'static str) -> TarError {
        TarError::Field { entry: quote(&self.current), what }
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let skip = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.inner).take(skip), &mut io::sink())?;
        // A missing padding after the last file's bytes is what some writers leave; Go accepts it too.
        if skipped < self.left {
            return Err(self.truncated());
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// Reads one block; `None` at a clean end of the stream.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK_LEN]>, TarError> {
        let mut block = [0; BLOCK_LEN];
        let mut have = 0;
        while have < BLOCK_LEN {
            match self.inner.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(self.truncated()),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Some(block))
    }

    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let Some(block) = self.read_block()? else {
            self.ended = true;
            return Ok(None);
        };
        if block.iter().all(|b| *b == 0) {
            self.ended = true;
            return match self.read_block()? {
                Some(second) if second.iter().any(|b| *b != 0) => Err(self.field("more follows an empty block")),
                Some(_) | None => Ok(None),
            };
        }
        let header = Header::new(block);
        if !header.checksum_ok() {
            return Err(TarError::Checksum { entry: quote(&self.current) });
        }
        self.current = header.name();
        Ok(Some(header))
    }

    /// Consumes `header` if it only describes the entry after it.
    fn read_extension(&mut self, header: &Header, extensions: &mut Extensions) -> Result<bool, TarError> {
        match header.kind() {
            b'x' | b'X' => {
                if extensions.pax.is_some() {
                    return Err(self.field("two PAX headers for one entry"));
                }
                let body = self.read_body(header, MAX_PAX_LEN)?;
                let records = PaxRecords::parse(&body).map_err(|what| self.field(what))?;
                extensions.pax = Some(records);
            }
            b'g' => {
                // Like Go, global headers do not change entries; one that would name or size them means different things
                // to different readers.
                let body = self.read_body(header, MAX_PAX_LEN)?;
                let records = PaxRecords::parse(&body).map_err(|what| self.field(what))?;
                if records.path.is_some() || records.size.is_some() || records.linkpath.is_some() {
                    return Err(self.field("a global PAX header that names or sizes every entry"));
                }
            }
            b'L' => {
                let name = self.read_gnu_name(header)?;
                if extensions.long_name.replace(name).is_some() {
                    return Err(self.field("two GNU long names for one entry"));
                }
            }
            b'K' => {
                let name = self.read_gnu_name(header)?;
                if extensions.long_link.replace(name).is_some() {
                    return Err(self.field("two GNU long links for one entry"));
                }
            }
            // A volume label.
            b'V' => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_body(&mut self, header: &Header, limit: u64) -> Result<Vec<u8>, TarError> {
        let size = header.size().ok_or_else(|| self.field("the size cannot be read"))?;
        if size > limit {
            return Err(self.field("an extension header is larger than any that is needed"));
        }
        self.set_data(size);
        let mut body = Vec::new();
        (&mut self.inner).take(size).read_to_end(&mut body)?;
        if (body.len() as u64) < size {
            return Err(self.truncated());
        }
        self.left = 0;
        Ok(body)
    }

    fn read_gnu_name(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let mut name = self.read_body(header, MAX_GNU_NAME_LEN)?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn set_data(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK_LEN as u64;
    }

    fn build_entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, TarError> {
        let mut pax = extensions.pax.unwrap_or_default();
        let (path, link) = self.names(header, &mut pax, extensions.long_name, extensions.long_link)?;
        self.current.clone_from(&path);
        let stored = self.stored_size(header, &pax)?;
        let kind = self.kind(header, &path, link)?;
        let has_data = kind == EntryKind::File;
        self.set_data(if has_data { stored } else { 0 });
        let (size, sparse) = if has_data { self.sparse_map(header, &mut pax, stored)? } else { (0, None) };
        let number = |value: Option<u64>, what| {
            value.and_then(|v| u32::try_from(v).ok()).ok_or(TarError::Field { entry: quote(&path), what })
        };
        let header_mtime = || header.mtime().map(|seconds| Timestamp { seconds, nanoseconds: 0 });
        Ok(Entry {
            kind,
            mode: header.mode().ok_or_else(|| self.field("the mode cannot be read"))? & 0o7777,
            uid: number(pax.uid.or_else(|| header.uid()), "the user id is not a 32-bit number")?,
            gid: number(pax.gid.or_else(|| header.gid()), "the group id is not a 32-bit number")?,
            mtime: pax.mtime.or_else(header_mtime).ok_or_else(|| self.field("the time cannot be read"))?,
            size,
            sparse,
            xattrs: pax.xattrs,
            path,
        })
    }

    /// Name and link target. A PAX name and a GNU one for the same entry have to agree.
    fn names(
        &self,
        header: &Header,
        pax: &mut PaxRecords,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<(Vec<u8>, Vec<u8>), TarError> {
        let both = |a: &Option<Vec<u8>>, b: &Option<Vec<u8>>| matches!((a, b), (Some(a), Some(b)) if a != b);
        if both(&pax.path, &long_name) || both(&pax.linkpath, &long_link) {
            return Err(self.field("the PAX and the GNU name contradict each other"));
        }
        let sparse_name = pax.sparse.name.take();
        let path =
            sparse_name.or(pax.path.take()).or(long_name).filter(|n| !n.is_empty()).unwrap_or_else(|| header.name());
        let link = pax.linkpath.take().or(long_link).unwrap_or_else(|| header.link_name());
        if path.contains(&0) || link.contains(&0) {
            return Err(self.field("a name with a NUL byte in it"));
        }
        Ok((path, link))
    }

    fn stored_size(&self, header: &Header, pax: &PaxRecords) -> Result<u64, TarError> {
        let plain = header.size().ok_or_else(|| self.field("the size cannot be read"))?;
        let Some(size) = pax.size else { return Ok(plain) };
        // Writers leave 0 in a field that is too small. Two different sizes that both fit are a way to make two readers
        // see two archives.
        if plain != 0 && plain != size && size <= header::MAX_OCTAL_SIZE {
            return Err(self.field("two sizes that contradict each other"));
        }
        if i64::try_from(size).is_err() {
            return Err(self.field("the size is larger than any file"));
        }
        Ok(size)
    }

    fn kind(&self, header: &Header, path: &[u8], link: Vec<u8>) -> Result<EntryKind, TarError> {
        let device = |this: &Self| {
            let numbers = header.device();
            numbers.ok_or_else(|| this.field("the device number cannot be read"))
        };
        Ok(match header.kind() {
            // Before POSIX a directory was a file whose name ends in a slash.
            0 | b'0' if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => {
                let (major, minor) = device(self)?;
                EntryKind::CharDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = device(self)?;
                EntryKind::BlockDevice { major, minor }
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(TarError::Kind { entry: quote(path), kind: char::from(other) }),
        })
    }

    /// Logical size and stored parts. Moves past a map that is stored in front of the data.
    fn sparse_map(
        &mut self,
        header: &Header,
        pax: &mut PaxRecords,
        stored: u64,
    ) -> Result<(u64, Option<Vec<Segment>>), TarError> {
        let (size, segments) = if header.kind() == b'S' {
            let (size, mut segments, mut more) =
                header.gnu_sparse().ok_or_else(|| self.field("the sparse map cannot be read"))?;
            while more {
                let block = self.read_block()?.ok_or_else(|| self.truncated())?;
                more = sparse::extend_gnu_map(&block, &mut segments).map_err(|what| self.field(what))?;
            }
            (size, segments)
        } else if pax.sparse.is_1_0() {
            let size = pax.sparse.real_size.ok_or_else(|| self.field("a sparse file without its size"))?;
            let current = self.current.clone();
            let mut take = (&mut self.inner).take(stored);
            let segments = sparse::read_1_0_map(&mut take).map_err(|e| match e {
                sparse::MapError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    TarError::Truncated { entry: quote(&current) }
                }
                sparse::MapError::Io(e) => TarError::Io(e),
                sparse::MapError::Map(what) => TarError::Field { entry: quote(&current), what },
            })?;
            self.left = take.limit();
            (size, segments)
        } else if let Some(segments) = pax.sparse.take_map() {
            let segments = segments.map_err(|what| self.field(what))?;
            (pax.sparse.real_size.ok_or_else(|| self.field("a sparse file without its size"))?, segments)
        } else {
            return Ok((stored, None));
        };
        sparse::check(&segments, size, self.left).map_err(|what| self.field(what))?;
        Ok((size, Some(segments)))
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
pub(crate) mod tests;

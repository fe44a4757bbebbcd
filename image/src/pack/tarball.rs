//! A tar writer whose output depends only on what it is given: no clock, no user names, no file system.
//!
//! ustar headers, with a PAX header in front where a field does not fit (POSIX.1-2001).

use std::io::{self, Read, Write};

use crate::tar::{Entry, EntryKind};

const BLOCK_LEN: usize = 512;
/// Bytes of the name and link fields.
const NAME_LEN: usize = 100;
/// Largest number in a 7-digit octal field.
const MAX_ID: u32 = 0o7_777_777;
/// Largest number in an 11-digit octal field.
const MAX_LONG: u64 = 0o77_777_777_777;

/// Writes entries to `out`.
pub struct TarWriter<W> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes one entry and, for a file, `entry.size` bytes of `data`. Sparse entries are not written.
    ///
    /// # Errors
    /// From writing; `UnexpectedEof` if `data` is too short, `InvalidInput` for a sparse entry.
    pub fn append(&mut self, entry: &Entry, data: impl Read) -> io::Result<()> {
        if entry.sparse.is_some() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "sparse entries are not written"));
        }
        let pax = pax_records(entry);
        if !pax.is_empty() {
            let mut header = [0; BLOCK_LEN];
            put(&mut header, 0, b"./PaxHeader");
            fill(&mut header, b'x', 0o644, (0, 0), pax.len() as u64, 0);
            self.block(header)?;
            self.out.write_all(&pax)?;
            self.pad(pax.len() as u64)?;
        }
        let mut header = [0; BLOCK_LEN];
        put(&mut header, 0, &entry.path[..entry.path.len().min(NAME_LEN)]);
        let (kind, link, device) = match &entry.kind {
            EntryKind::File => (b'0', &[][..], None),
            EntryKind::HardLink(target) => (b'1', &target[..], None),
            EntryKind::Symlink(target) => (b'2', &target[..], None),
            EntryKind::CharDevice { major, minor } => (b'3', &[][..], Some((*major, *minor))),
            EntryKind::BlockDevice { major, minor } => (b'4', &[][..], Some((*major, *minor))),
            EntryKind::Directory => (b'5', &[][..], None),
            EntryKind::Fifo => (b'6', &[][..], None),
        };
        put(&mut header, 157, &link[..link.len().min(NAME_LEN)]);
        if let Some((major, minor)) = device {
            put(&mut header, 329, format!("{major:07o}").as_bytes());
            put(&mut header, 337, format!("{minor:07o}").as_bytes());
        }
        let ids = (entry.uid.min(MAX_ID), entry.gid.min(MAX_ID));
        let seconds = u64::try_from(entry.mtime.seconds).unwrap_or(0).min(MAX_LONG);
        let size = if entry.kind == EntryKind::File { entry.size } else { 0 };
        fill(&mut header, kind, entry.mode, ids, if size > MAX_LONG { 0 } else { size }, seconds);
        self.block(header)?;
        if size > 0 && io::copy(&mut data.take(size), &mut self.out)? < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pad(size)
    }

    /// Ends the archive and gives the stream back.
    ///
    /// # Errors
    /// From writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK_LEN])?;
        Ok(self.out)
    }

    fn block(&mut self, mut header: [u8; BLOCK_LEN]) -> io::Result<()> {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        put(&mut header, 148, format!("{sum:06o}\0").as_bytes());
        self.out.write_all(&header)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let pad = (size.wrapping_neg() % BLOCK_LEN as u64) as usize;
        self.out.write_all(&[0; BLOCK_LEN][..pad])
    }
}

fn put(header: &mut [u8; BLOCK_LEN], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

fn fill(header: &mut [u8; BLOCK_LEN], kind: u8, mode: u32, ids: (u32, u32), size: u64, mtime: u64) {
    put(header, 100, format!("{:07o}", mode & 0o7777).as_bytes());
    put(header, 108, format!("{:07o}", ids.0).as_bytes());
    put(header, 116, format!("{:07o}", ids.1).as_bytes());
    put(header, 124, format!("{size:011o}").as_bytes());
    put(header, 136, format!("{mtime:011o}").as_bytes());
    header[156] = kind;
    put(header, 257, b"ustar\x0000");
}

/// Records for what the header cannot say.
fn pax_records(entry: &Entry) -> Vec<u8> {
    let mut pax = Vec::new();
    if entry.path.len() > NAME_LEN {
        record(&mut pax, b"path", &entry.path);
    }
    match &entry.kind {
        EntryKind::HardLink(target) | EntryKind::Symlink(target) if target.len() > NAME_LEN => {
            record(&mut pax, b"linkpath", target);
        }
        EntryKind::HardLink(_)
        | EntryKind::Symlink(_)
        | EntryKind::File
        | EntryKind::CharDevice { .. }
        | EntryKind::BlockDevice { .. }
        | EntryKind::Directory
        | EntryKind::Fifo => {}
    }
    for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
        if id > MAX_ID {
            record(&mut pax, key, id.to_string().as_bytes());
        }
    }
    if entry.kind == EntryKind::File && entry.size > MAX_LONG {
        record(&mut pax, b"size", entry.size.to_string().as_bytes());
    }
    let time = entry.mtime;
    if time.nanoseconds != 0 || u64::try_from(time.seconds).is_ok_and(|s| s > MAX_LONG) || time.seconds < 0 {
        let (sign, seconds, nanoseconds) = match (time.seconds < 0, time.nanoseconds) {
            (false, n) => ("", time.seconds.unsigned_abs(), n),
            (true, 0) => ("-", time.seconds.unsigned_abs(), 0),
            (true, n) => ("-", time.seconds.unsigned_abs() - 1, 1_000_000_000 - n),
        };
        record(&mut pax, b"mtime", format!("{sign}{seconds}.{nanoseconds:09}").as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(&mut pax, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    pax
}

/// One record; its length field counts itself.
pub(crate) fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(length.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

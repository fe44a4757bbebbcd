//! A layer's tar stream becomes an erofs file: the policy of what an image may put into a tree.
//!
//! Whiteouts are the image specification's (1.1, layer.md) on the way in and overlayfs's on the way out. Nothing here
//! resolves a path or follows a link; an entry that is not plain is refused with its name, and the caller drops the file.

use std::fs::File;
use std::io::Read;

use crate::digest::{Digest, HashingReader};
use crate::erofs::{Budget, Device, ErofsError, Meta, PathFault, TreePath, Writer, XattrFault, Xattrs};
use crate::tar::{Entry, EntryKind, Segment, TarError, TarReader, quote};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// AUFS's own bookkeeping, which docker skips too.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// Names overlayfs gives meaning to: from an image they could show or hide what its layers do not say.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// What an image may set.
const KEPT_XATTRS: [&[u8]; 4] =
    [b"user.", b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
/// Bytes moved at once.
const COPY_LEN: usize = 128 << 10;

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream is not a proper tar archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry's name is hostile.
    #[error("entry {entry:?}: {fault}")]
    Path {
        /// The entry.
        entry: String,
        /// What is wrong.
        fault: PathFault,
    },
    /// A whiteout of something that is not a name.
    #[error("entry {entry:?}: a whiteout has to name a file in its own directory")]
    Whiteout {
        /// The entry.
        entry: String,
    },
    /// An attribute that only overlayfs itself may set.
    #[error("entry {entry:?}: the attribute {xattr:?} belongs to overlayfs and may not come from an image")]
    OverlayXattr {
        /// The entry.
        entry: String,
        /// Its attribute.
        xattr: String,
    },
    /// Attributes that cannot be stored.
    #[error("entry {entry:?}: {fault}")]
    Xattr {
        /// The entry.
        entry: String,
        /// What is wrong.
        fault: XattrFault,
    },
    /// The entry cannot be written.
    #[error("entry {entry:?}: {source}")]
    Entry {
        /// The entry.
        entry: String,
        /// Why.
        source: ErofsError,
    },
    /// The file cannot be written, or is too large.
    #[error(transparent)]
    Output(ErofsError),
    /// The layer is longer than allowed.
    #[error("the layer is larger than {limit} bytes when unpacked")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
}

impl LayerError {
    /// Bytes that the layer needs, if the only fault is a full disk.
    pub fn space_needed(&self) -> Option<u64> {
        if let Self::Output(ErofsError::NoSpace { needed }) = self { Some(*needed) } else { None }
    }
}

/// A converted layer.
#[derive(Debug)]
pub struct Layer {
    /// The erofs file; not yet synced.
    pub file: File,
    /// Its length in bytes.
    pub bytes: u64,
    /// Digest of the plain tar stream.
    pub diff_id: Digest,
    /// Length of the plain tar stream in bytes.
    pub tar_bytes: u64,
    /// Attributes that were left out because an image has no say in them (SELinux labels, IMA and the like).
    pub dropped_xattrs: u64,
}

/// Converts the plain tar stream `source` into the empty file `target`.
///
/// The budget's limit bounds the bytes of the stream and of the file each; `progress` is told how many bytes of the stream are done and
/// stops the work by returning false.
///
/// # Errors
/// [`LayerError`]; the file's content is then useless.
pub fn convert(
    source: impl Read,
    target: File,
    budget: Budget,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Layer, LayerError> {
    let limit = budget.limit;
    let bounded = Bounded { inner: HashingReader::new(source), limit, progress };
    let mut tar = TarReader::new(bounded);
    let mut converter = Converter { writer: Writer::new(target, budget), buffer: vec![0; COPY_LEN], dropped_xattrs: 0 };
    let done = converter.entries(&mut tar);
    let mut rest = tar.into_inner();
    // What follows the archive's end is part of the diff_id.
    let done = done.and_then(|()| Ok(std::io::copy(&mut rest, &mut std::io::sink()).map_err(TarError::Io)?));
    if rest.inner.count() > limit {
        return Err(LayerError::TooLarge { limit });
    }
    done?;
    let (diff_id, tar_bytes) = rest.inner.finish();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&diff_id.bytes()[..16]);
    let summary = converter.writer.finish(uuid).map_err(LayerError::Output)?;
    let dropped_xattrs = converter.dropped_xattrs;
    Ok(Layer { file: summary.file, bytes: summary.bytes, diff_id, tar_bytes, dropped_xattrs })
}

/// Stops a stream that is too long or no longer wanted.
struct Bounded<'p, R> {
    inner: HashingReader<R>,
    limit: u64,
    progress: &'p mut dyn FnMut(u64) -> bool,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        if self.inner.count() > self.limit {
            return Err(std::io::Error::other("the layer is too large"));
        }
        if !(self.progress)(self.inner.count()) {
            return Err(std::io::Error::other("cancelled"));
        }
        Ok(n)
    }
}

struct Converter {
    writer: Writer,
    buffer: Vec<u8>,
    dropped_xattrs: u64,
}

impl Converter {
    fn entries(&mut self, tar: &mut TarReader<impl Read>) -> Result<(), LayerError> {
        while let Some(entry) = tar.next_entry()? {
            self.entry(entry, tar)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry, tar: &mut TarReader<impl Read>) -> Result<(), LayerError> {
        let name = quote(&entry.path);
        let path = TreePath::parse(&entry.path).map_err(|fault| LayerError::Path { entry: name.clone(), fault })?;
        let result = if let Some((_, last)) = path.split_last().filter(|(_, last)| last.starts_with(WHITEOUT_PREFIX)) {
            let last = last.to_vec();
            self.whiteout(path, &last, &name)?
        } else {
            let xattrs = self.xattrs(&entry, &name)?;
            let meta = Meta {
                // The reader masks to 0o7777.
                mode: entry.mode as u16,
                uid: entry.uid,
                gid: entry.gid,
                seconds: entry.mtime.seconds,
                nanoseconds: entry.mtime.nanoseconds,
            };
            match entry.kind {
                EntryKind::File => return self.file(&path, meta, xattrs, entry.size, entry.sparse, &name, tar),
                EntryKind::Directory => self.writer.directory(&path, meta, xattrs),
                EntryKind::Symlink(target) => self.writer.symlink(&path, meta, xattrs, &target),
                EntryKind::HardLink(target) => {
                    let target =
                        TreePath::parse(&target).map_err(|fault| LayerError::Path { entry: name.clone(), fault })?;
                    self.writer.hard_link(&path, &target)
                }
                EntryKind::CharDevice { major, minor } => {
                    self.writer.special(&path, meta, xattrs, Device::Char(major, minor))
                }
                EntryKind::BlockDevice { major, minor } => {
                    self.writer.special(&path, meta, xattrs, Device::Block(major, minor))
                }
                EntryKind::Fifo => self.writer.special(&path, meta, xattrs, Device::Fifo),
            }
        };
        result.map_err(|source| LayerError::Entry { entry: name, source })
    }

    fn whiteout(&mut self, path: TreePath, last: &[u8], name: &str) -> Result<Result<(), ErofsError>, LayerError> {
        if last == OPAQUE_NAME {
            return Ok(self.writer.opaque(&path.parent()));
        }
        if last.starts_with(AUFS_PREFIX) {
            return Ok(Ok(()));
        }
        match last.get(WHITEOUT_PREFIX.len()..) {
            None | Some(b"" | b"." | b"..") => Err(LayerError::Whiteout { entry: name.to_owned() }),
            Some(hidden) => {
                let hidden = hidden.to_vec();
                Ok(self.writer.whiteout(&path.with_last(&hidden)))
            }
        }
    }

    fn xattrs(&mut self, entry: &Entry, name: &str) -> Result<Xattrs, LayerError> {
        let mut xattrs = Xattrs::default();
        for (key, value) in &entry.xattrs {
            if OVERLAY_XATTRS.iter().any(|prefix| key.starts_with(prefix)) {
                return Err(LayerError::OverlayXattr { entry: name.to_owned(), xattr: quote(key) });
            }
            let kept = KEPT_XATTRS.iter().any(|kept| key == kept || (kept.ends_with(b".") && key.starts_with(kept)));
            if !kept {
                self.dropped_xattrs += 1;
                continue;
            }
            xattrs.set(key, value).map_err(|fault| LayerError::Xattr { entry: name.to_owned(), fault })?;
        }
        Ok(xattrs)
    }

    #[expect(clippy::too_many_arguments, reason = "one call from one place; a struct would only repeat Entry")]
    fn file(
        &mut self,
        path: &TreePath,
        meta: Meta,
        xattrs: Xattrs,
        size: u64,
        sparse: Option<Vec<Segment>>,
        name: &str,
        tar: &mut TarReader<impl Read>,
    ) -> Result<(), LayerError> {
        let at_entry = |source| LayerError::Entry { entry: name.to_owned(), source };
        self.writer.begin_file(path, meta, xattrs, size).map_err(at_entry)?;
        for part in sparse.unwrap_or_else(|| vec![Segment { offset: 0, length: size }]) {
            let (mut offset, end) = (part.offset, part.offset + part.length);
            while offset < end {
                let want = usize::try_from(end - offset).unwrap_or(COPY_LEN).min(COPY_LEN);
                let n = tar.read(&mut self.buffer[..want]).map_err(|e| {
                    if e.kind() == std::io::ErrorKind::UnexpectedEof {
                        TarError::Truncated { entry: name.to_owned() }
                    } else {
                        TarError::Io(e)
                    }
                })?;
                self.writer.write_data(offset, &self.buffer[..n]).map_err(at_entry)?;
                offset += n as u64;
            }
        }
        self.writer.end_file().map_err(at_entry)
    }
}

#[cfg(test)]
mod tests;

//! The copy of the accepted configuration that belongs to a trial: made when it is armed, whole and on disk before the commit.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Gid, Mode, Uid};

use super::trial_files::sync_directory;
use super::{TaskError, on};

/// Bytes of one file of it, and files of it: a document has 256 KiB at most, and a few generations are kept.
const FILE_OF_IT_BYTES: u64 = 1 << 20;
const FILES_OF_IT: usize = 128;
/// Directories below each other in it.
const DEPTH: usize = 3;

/// Copies directories and files with their owners and modes; all of it is on disk when this returns.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<(), TaskError> {
    let mut open = vec![(from.to_owned(), to.to_owned(), 0_usize)];
    let mut count = 0_usize;
    let mut made = Vec::new();
    while let Some((from, to, depth)) = open.pop() {
        let status = std::fs::symlink_metadata(&from).map_err(on("look at", &from))?;
        std::fs::create_dir(&to).map_err(on("make directory", &to))?;
        own(&to, &status)?;
        for entry in std::fs::read_dir(&from).map_err(on("read", &from))? {
            let entry = entry.map_err(on("read", &from))?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type().map_err(on("look at", &source))?;
            count = count.saturating_add(1);
            if count > FILES_OF_IT {
                return Err(TaskError::Invalid(format!(
                    "the accepted configuration has more than {FILES_OF_IT} files"
                )));
            }
            if kind.is_dir() && depth < DEPTH {
                open.push((source, target, depth.saturating_add(1)));
            } else if kind.is_file() {
                copy_file(&source, &target)?;
            }
        }
        made.push(to);
    }
    // All names are there now; flushed before, a directory would not have those of the ones below it.
    made.iter().try_for_each(|directory| sync_directory(directory))
}

fn copy_file(from: &Path, to: &Path) -> Result<(), TaskError> {
    let source = File::open(from).map_err(on("open", from))?;
    let status = source.metadata().map_err(on("look at", from))?;
    let mut target = File::create_new(to).map_err(on("make", to))?;
    std::io::copy(&mut source.take(FILE_OF_IT_BYTES), &mut target).map_err(on("copy", from))?;
    own(to, &status)?;
    target.sync_all().map_err(on("flush", to))
}

fn own(path: &Path, like: &std::fs::Metadata) -> Result<(), TaskError> {
    let failed = |errno: rustix::io::Errno| on("own", path)(errno.into());
    rustix::fs::chown(path, Some(Uid::from_raw(like.uid())), Some(Gid::from_raw(like.gid()))).map_err(failed)?;
    rustix::fs::chmod(path, Mode::from_raw_mode(like.mode() & 0o7777)).map_err(failed)
}

//! The record of changes: who asked for what, when, and how it ended.
//!
//! Two lines of JSON for each changing call: `asked`, written before anything is done and on disk before the answer, and `done` with the result
//! and duration, written before the answer and on disk shortly after. So flushing runs beside the change and not behind it, and a power cut
//! can lose how a call ended but never that it was made. If a line cannot be written, the call is refused. One exception: when the
//! data partition is full, calls that free space are still served, and recorded in this service's log alone; otherwise nobody could free any.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use rustix::fs::FallocateFlags;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;
use tonic::{Code, Status};

use crate::gate::Peer;
use crate::say::say;

/// Bytes of one file before it is rotated: about ten thousand calls.
const FILE_BYTES: u64 = 4 << 20;
/// Older files kept.
const FILES: usize = 7;
/// Flushes that wait for the flushing thread; each call has at most two.
const FLUSHES: usize = 512;
/// Characters of a target or message in a line: a name has 63, an image reference a few hundred.
const TEXT_CHARACTERS: usize = 1024;

/// A method that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    /// Name, such as `Workloads/Create`.
    pub method: &'static str,
    /// Whether it is served, though not recorded on disk, when the data partition is full.
    pub frees_space: bool,
}

/// Opening the record failed.
#[derive(Debug, thiserror::Error)]
#[error("record of changes {path}: {source}; it must be a directory that this service owns")]
pub struct AuditError {
    path: PathBuf,
    source: std::io::Error,
}

#[derive(Serialize)]
struct Line<'a> {
    time: &'a str,
    number: u64,
    phase: &'static str,
    who: &'a str,
    role: &'a str,
    method: &'static str,
    target: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
}

struct Files {
    directory: PathBuf,
    file: Arc<File>,
    bytes: u64,
    number: u64,
}

type Flush = (Arc<File>, Option<oneshot::Sender<std::io::Result<()>>>);

/// The record. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Audit {
    files: Arc<Mutex<Files>>,
    flushes: mpsc::SyncSender<Flush>,
}

impl Audit {
    /// Opens the record in `directory`, and starts the thread that flushes it.
    ///
    /// # Errors
    /// If the file or the thread cannot be made.
    pub(crate) fn open(directory: &Path) -> Result<Self, AuditError> {
        let failed = |source| AuditError { path: directory.to_owned(), source };
        let (file, bytes) = open_current(directory).map_err(failed)?;
        let (flushes, queue) = mpsc::sync_channel::<Flush>(FLUSHES);
        std::thread::Builder::new().name("audit-flush".into()).spawn(move || flush(&queue)).map_err(failed)?;
        let files = Files { directory: directory.to_owned(), file: Arc::new(file), bytes, number: 0 };
        Ok(Self { files: Arc::new(Mutex::new(files)), flushes })
    }

    /// Records that `peer` asks for `change` on `target`. The change may begin when this has returned.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` or `UNAVAILABLE` if that cannot be recorded; the call must then be refused.
    pub(crate) fn asked(&self, peer: &Peer, change: Change, target: &str) -> Result<Entry, Status> {
        let mut entry = Entry {
            audit: self.clone(),
            change,
            who: peer.origin.to_string(),
            role: peer.role.map_or("none", byre_api::role::Role::name),
            target: target.chars().take(TEXT_CHARACTERS).collect(),
            number: 0,
            begun: Instant::now(),
            on_disk: None,
            finished: false,
        };
        let (done, on_disk) = oneshot::channel();
        match self.write(&mut entry, None) {
            Ok(file) => {
                entry.on_disk = Some(on_disk);
                if self.flushes.try_send((file, Some(done))).is_err() {
                    entry.finished = true;
                    return Err(Status::unavailable("too many changes wait for the disk; try again in a second"));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull && change.frees_space => {
                say(&format!("not on disk, which is full: {} {} by {}", change.method, entry.target, entry.who));
            }
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                entry.finished = true;
                return Err(Status::resource_exhausted(
                    "the data partition is full and the change cannot be recorded: remove containers or prune images first",
                ));
            }
            Err(error) => {
                entry.finished = true;
                return Err(Status::unavailable(format!(
                    "the change cannot be recorded ({error}), so it is refused: look at the node's disk"
                )));
            }
        }
        Ok(entry)
    }

    fn write(&self, entry: &mut Entry, end: Option<(Code, &str)>) -> std::io::Result<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if entry.number == 0 {
            files.number += 1;
            entry.number = files.number;
        }
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let line = Line {
            time: &now,
            number: entry.number,
            phase: if end.is_some() { "done" } else { "asked" },
            who: &entry.who,
            role: entry.role,
            method: entry.change.method,
            target: &entry.target,
            result: end.map(|(code, _)| format!("{code:?}")),
            message: end.map(|(_, message)| message).filter(|message| !message.is_empty()),
            duration_ms: end.map(|_| u64::try_from(entry.begun.elapsed().as_millis()).unwrap_or(u64::MAX)),
        };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        files.append(&bytes)?;
        Ok(Arc::clone(&files.file))
    }
}

impl Files {
    fn append(&mut self, line: &[u8]) -> std::io::Result<()> {
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.bytes.saturating_add(length) > FILE_BYTES {
            self.rotate()?;
        }
        let mut file = self.file.as_ref();
        match file.write(line) {
            Ok(written) if written == line.len() => {
                self.bytes += length;
                Ok(())
            }
            // Half a line would spoil the next one.
            Ok(_) => {
                self.file.set_len(self.bytes)?;
                Err(std::io::ErrorKind::StorageFull.into())
            }
            Err(error) => Err(error),
        }
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        self.file.sync_data()?;
        for number in (1..FILES).rev() {
            rename_if_there(&older(&self.directory, number), &older(&self.directory, number + 1))?;
        }
        rename_if_there(&current(&self.directory), &older(&self.directory, 1))?;
        let (file, bytes) = open_current(&self.directory)?;
        self.file = Arc::new(file);
        self.bytes = bytes;
        Ok(())
    }
}

fn current(directory: &Path) -> PathBuf {
    directory.join("audit.log")
}

fn older(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("audit.log.{number}"))
}

fn rename_if_there(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn open_current(directory: &Path) -> std::io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(current(directory))?;
    let bytes = file.metadata()?.len();
    // Space is taken beforehand, so that lines fit when the disk is full and a flush has no blocks to find. Where it cannot be, lines
    // still fit as long as there is space.
    let _ = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, FILE_BYTES);
    File::open(directory)?.sync_all()?;
    Ok((file, bytes))
}

/// Flushes until the last sender is gone; whatever waits is served by one flush.
fn flush(queue: &mpsc::Receiver<Flush>) {
    while let Ok((file, waiter)) = queue.recv() {
        let mut waiting = vec![waiter];
        let mut others = Vec::new();
        for (other, waiter) in queue.try_iter() {
            if Arc::ptr_eq(&file, &other) {
                waiting.push(waiter);
            } else {
                others.push((other, waiter));
            }
        }
        let result = file.sync_data();
        for waiter in waiting.into_iter().flatten() {
            let _ = waiter.send(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
            });
        }
        // Only at a rotation.
        for (other, waiter) in others {
            let result = other.sync_data();
            if let Some(waiter) = waiter {
                let _ = waiter.send(result);
            }
        }
    }
}

/// A change under way. When it is dropped without [`Self::done`], the caller went away.
pub(crate) struct Entry {
    audit: Audit,
    change: Change,
    who: String,
    role: &'static str,
    target: String,
    number: u64,
    begun: Instant,
    on_disk: Option<oneshot::Receiver<std::io::Result<()>>>,
    finished: bool,
}

impl Entry {
    /// Waits until the record of the question is on disk.
    ///
    /// # Errors
    /// `UNAVAILABLE` if it cannot be brought there.
    pub(crate) async fn on_disk(&mut self) -> Result<(), Status> {
        let Some(on_disk) = self.on_disk.take() else { return Ok(()) };
        match on_disk.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Status::unavailable(format!(
                "the change was made, but its record could not be brought to disk ({error}): look at the node's disk"
            ))),
            Err(_) => Err(Status::unavailable("the change was made, but the record of changes has ended")),
        }
    }

    /// Records how the change ended, and gives the result back when both the change and the record of its question are done.
    ///
    /// # Errors
    /// The result's own, or `UNAVAILABLE` if it cannot be recorded.
    pub(crate) async fn done<T>(mut self, result: Result<T, Status>) -> Result<T, Status> {
        self.end(match &result {
            Ok(_) => (Code::Ok, ""),
            Err(status) => (status.code(), status.message()),
        });
        let on_disk = self.on_disk().await;
        result.and_then(|value| on_disk.map(|()| value))
    }

    /// Records the end of a change whose result the caller has already.
    pub(crate) fn end(&mut self, (code, message): (Code, &str)) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let message: String = message.chars().take(TEXT_CHARACTERS).collect();
        say(&format!("{} {} by {}: {code:?} {message}", self.change.method, self.target, self.who));
        let audit = self.audit.clone();
        match audit.write(self, Some((code, &message))) {
            // Nobody waits: the thread brings it to disk with the next flush, at once if it is idle.
            Ok(file) => drop(audit.flushes.try_send((file, None))),
            Err(error) => say(&format!("the end of {} {} is not recorded: {error}", self.change.method, self.target)),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.end((Code::Cancelled, "the caller went away"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Origin;
    use byre_api::role::Role;

    const CREATE: Change = Change { method: "Workloads/Create", frees_space: false };

    fn peer() -> Peer {
        let origin = Origin::Certificate { name: "erika".into(), serial: "0a".into() };
        Peer { origin, role: Some(Role::Operator), joined: true, connected_boot_ms: 0 }
    }

    fn lines(directory: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(current(directory)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_change_is_recorded_before_it_is_made_and_when_it_ended() {
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::open(directory.path()).unwrap();
        let entry = audit.asked(&peer(), CREATE, "web\n{}").unwrap();
        let asked = lines(directory.path());
        assert_eq!((asked.len(), asked[0]["phase"].as_str()), (1, Some("asked")));
        assert_eq!(asked[0]["target"], "web\n{}");
        entry.done::<()>(Err(Status::already_exists("name web is taken"))).await.unwrap_err();
        drop(audit.asked(&peer(), CREATE, "gone").unwrap());
        let all = lines(directory.path());
        assert_eq!(all.len(), 4);
        assert_eq!((all[1]["phase"].as_str(), all[1]["result"].as_str()), (Some("done"), Some("AlreadyExists")));
        assert_eq!(all[1]["who"], "erika (certificate 0a)");
        assert_eq!(all[3]["result"], "Cancelled");
    }

    #[tokio::test]
    async fn files_are_rotated_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::open(directory.path()).unwrap();
        for _ in 0..FILES + 2 {
            audit.files.lock().unwrap().bytes = FILE_BYTES;
            audit.asked(&peer(), CREATE, "web").unwrap().done(Ok(())).await.unwrap();
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), FILES + 1);
    }

    #[tokio::test]
    async fn what_cannot_be_recorded_is_refused_unless_it_frees_space() {
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::open(directory.path()).unwrap();
        audit.files.lock().unwrap().file = Arc::new(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let refused = audit.asked(&peer(), CREATE, "web").err().unwrap();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let remove = Change { method: "Workloads/Remove", frees_space: true };
        audit.asked(&peer(), remove, "web").unwrap().done(Ok(())).await.unwrap();
    }
}

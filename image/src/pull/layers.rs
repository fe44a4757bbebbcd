//! The layers of one pull: which are here, which come, which another pull is bringing.
//!
//! At most [`CONVERSIONS`] layers are converted at once in the whole store: each needs its own window and buffers, and a node has little
//! memory to spare. A layer that two pulls want is brought by the first; the other waits, and takes over if the first gives up.

use std::collections::{HashMap, VecDeque};
use std::io::BufReader;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::blob::{BlobReader, Partial};
use super::source::{Source, Stop, Wanted};
use super::{PullError, broken};
use crate::compression;
use crate::digest::Digest;
use crate::reference::Reference;
use crate::shared::SharedStore;
use crate::store::StoreError;

/// Layers converted at once, by all pulls.
const CONVERSIONS: usize = 2;
/// How often a waiting thread looks whether it is still wanted, and progress is told.
const TICK: Duration = Duration::from_millis(250);
/// Progress is told at least so often, so that a caller who is gone is noticed.
const TELL_AT_LEAST: Duration = Duration::from_secs(1);
/// Bytes read at once.
const READ_LEN: usize = 128 << 10;

/// A layer that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) blob: Digest,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
}

/// What happens with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerStep {
    /// It waits for its turn.
    Waiting,
    /// It comes.
    Fetching,
    /// Another pull is bringing it.
    Joined,
    /// It was here.
    Kept,
    /// It is here now.
    Done,
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerProgress {
    /// Digest of its blob.
    pub blob: Digest,
    /// What happens.
    pub step: LayerStep,
    /// Bytes of the blob that have come.
    pub done: u64,
    /// Bytes of the blob.
    pub total: u64,
}

/// What is being made in a store now, and by how many.
#[derive(Debug, Default)]
pub(crate) struct Works {
    at_work: Mutex<HashMap<Digest, Arc<AtomicU64>>>,
    converting: Mutex<usize>,
    changed: Condvar,
}

impl Works {
    fn locked(&self) -> MutexGuard<'_, HashMap<Digest, Arc<AtomicU64>>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place among those that convert. `None` if nobody wants it any more.
    fn place(&self, stop: &Stop) -> Option<Place<'_>> {
        let mut converting = self.converting.lock().unwrap_or_else(PoisonError::into_inner);
        while *converting >= CONVERSIONS {
            if stop.is_set() {
                return None;
            }
            converting = self.changed.wait_timeout(converting, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
        *converting += 1;
        Some(Place(self))
    }
}

struct Place<'w>(&'w Works);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.converting.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_all();
    }
}

/// That this thread brings a layer.
struct Bringing<'w> {
    works: &'w Works,
    diff_id: Digest,
    done: Arc<AtomicU64>,
}

impl Drop for Bringing<'_> {
    fn drop(&mut self) {
        self.works.locked().remove(&self.diff_id);
    }
}

/// The layers of one pull, shared by its threads.
struct Job<'a> {
    store: &'a SharedStore,
    source: &'a dyn Source,
    name: &'a Reference,
    stop: &'a Stop,
    layers: &'a [Layer],
    board: Mutex<Board>,
    news: Condvar,
}

struct Board {
    queue: VecDeque<usize>,
    progress: Vec<LayerProgress>,
    bytes: Vec<u64>,
    new_layers: usize,
    failed: Option<PullError>,
    workers: usize,
}

/// Brings all layers; gives the lengths of their files and how many came.
pub(super) fn fetch(
    store: &SharedStore,
    source: &dyn Source,
    name: &Reference,
    layers: &[Layer],
    stop: &Stop,
    tell: &mut dyn FnMut(&[LayerProgress]) -> bool,
) -> Result<(Vec<u64>, usize), PullError> {
    let progress =
        |layer: &Layer| LayerProgress { blob: layer.blob, step: LayerStep::Waiting, done: 0, total: layer.size };
    let workers = CONVERSIONS.min(layers.len());
    let board = Board {
        queue: (0..layers.len()).collect(),
        progress: layers.iter().map(progress).collect(),
        bytes: vec![0; layers.len()],
        new_layers: 0,
        failed: None,
        workers,
    };
    let job = Job { store, source, name, stop, layers, board: Mutex::new(board), news: Condvar::new() };
    std::thread::scope(|scope| {
        for number in 0..workers {
            let job = &job;
            let thread = std::thread::Builder::new().name(format!("layer-{number}"));
            if let Err(error) = thread.spawn_scoped(scope, move || job.work()) {
                job.end(Err(StoreError::Io { path: "thread".into(), source: error }.into()));
            }
        }
        job.watch(tell);
    });
    let board = job.board.into_inner().unwrap_or_else(PoisonError::into_inner);
    match board.failed {
        Some(error) => Err(error),
        None if stop.is_set() => Err(PullError::Cancelled),
        None => Ok((board.bytes, board.new_layers)),
    }
}

impl Job<'_> {
    fn locked(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the caller how far the work is, until it is done.
    fn watch(&self, tell: &mut dyn FnMut(&[LayerProgress]) -> bool) {
        let mut told = Vec::new();
        let mut at = Instant::now();
        loop {
            let mut board = self.locked();
            let ended = board.workers == 0;
            if !ended {
                board = self.news.wait_timeout(board, TICK).unwrap_or_else(PoisonError::into_inner).0;
            }
            let now = board.progress.clone();
            drop(board);
            if now != told || at.elapsed() >= TELL_AT_LEAST {
                at = Instant::now();
                if !tell(&now) {
                    self.stop.set();
                }
                told = now;
            }
            if ended {
                return;
            }
            // News come with every piece; people read slower.
            std::thread::sleep(TICK / 10);
        }
    }

    fn work(&self) {
        loop {
            let next = if self.stop.is_set() { None } else { self.locked().queue.pop_front() };
            let Some(index) = next else { return self.end(Ok(())) };
            if let Err(error) = self.layer(index) {
                self.stop.set();
                return self.end(Err(error));
            }
        }
    }

    fn end(&self, result: Result<(), PullError>) {
        let mut board = self.locked();
        board.workers -= 1;
        if let Err(error) = result {
            // The other thread is stopped by the first error, which is the one to report.
            board.failed.get_or_insert(error);
        }
        drop(board);
        self.news.notify_all();
    }

    fn set(&self, index: usize, step: LayerStep, done: u64) {
        if let Some(progress) = self.locked().progress.get_mut(index) {
            (progress.step, progress.done) = (step, done);
        }
    }

    /// Sees to one layer, whoever brings it.
    fn layer(&self, index: usize) -> Result<(), PullError> {
        let Some(layer) = self.layers.get(index).copied() else { return Ok(()) };
        let works = self.store.works();
        let mut waited = false;
        loop {
            if self.stop.is_set() {
                return Err(PullError::Cancelled);
            }
            let mine = {
                let mut at_work = works.locked();
                match at_work.get(&layer.diff_id) {
                    Some(done) => Err(Arc::clone(done)),
                    None => match self.store.maker().existing(&layer.diff_id)? {
                        Some(bytes) => {
                            drop(at_work);
                            let step = if waited { LayerStep::Done } else { LayerStep::Kept };
                            self.set(index, step, layer.size);
                            if let Some(place) = self.locked().bytes.get_mut(index) {
                                *place = bytes;
                            }
                            return Ok(());
                        }
                        None => {
                            let done = Arc::new(AtomicU64::new(0));
                            at_work.insert(layer.diff_id, Arc::clone(&done));
                            Ok(Bringing { works, diff_id: layer.diff_id, done })
                        }
                    },
                }
            };
            match mine {
                Err(theirs) => {
                    waited = true;
                    self.set(index, LayerStep::Joined, theirs.load(Ordering::Relaxed).min(layer.size));
                    std::thread::sleep(TICK / 5);
                }
                Ok(bringing) => {
                    let Some(_place) = works.place(self.stop) else { return Err(PullError::Cancelled) };
                    let bytes = self.bring(index, &layer, &bringing.done)?;
                    self.set(index, LayerStep::Done, layer.size);
                    let mut board = self.locked();
                    board.new_layers += 1;
                    if let Some(place) = board.bytes.get_mut(index) {
                        *place = bytes;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Brings a layer: with what is here of it, then anew, then from the registry alone.
    fn bring(&self, index: usize, layer: &Layer, done: &AtomicU64) -> Result<u64, PullError> {
        let maker = self.store.maker();
        let partial = Partial::new(maker.partial_dir(), &layer.blob, &layer.diff_id, layer.size);
        let mut resume = partial.bytes() > 0;
        let mut origin_only = false;
        loop {
            let wanted = Wanted { digest: layer.blob, size: layer.size, offset: 0, origin_only };
            let result = self.convert(index, layer, wanted, (&partial, resume), done);
            match result {
                Ok(bytes) => {
                    partial.remove();
                    return Ok(bytes);
                }
                Err(error @ PullError::Digest { .. }) => {
                    partial.remove();
                    match (resume, origin_only) {
                        (true, _) => resume = false,
                        (false, false) => origin_only = true,
                        (false, true) => return Err(error),
                    }
                }
                Err(error) => {
                    // What is not the source's fault would come again from the same bytes.
                    if !matches!(error, PullError::Source(_) | PullError::Cancelled) {
                        partial.remove();
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Fetches, checks and names one layer.
    fn convert(
        &self,
        index: usize,
        layer: &Layer,
        wanted: Wanted,
        partial: (&Partial, bool),
        done: &AtomicU64,
    ) -> Result<u64, PullError> {
        let blob = BlobReader::begin(self.source, self.name, wanted, partial, self.stop)?;
        let mut blob = BufReader::with_capacity(READ_LEN, blob);
        let maker = self.store.maker();
        let mut fault = None;
        let made = maker.make(&layer.diff_id, "-pull", |file| {
            let counted = Watched { inner: &mut blob, job: self, index, done, told: 0 };
            let result = compression::decoder(counted)
                .map_err(|source| StoreError::Io { path: "blob".into(), source })
                .and_then(|plain| maker.convert(layer.diff_id, plain, file, &mut |_| !self.stop.is_set()));
            // Whatever became of it: a blob that is not what its digest says explains everything else.
            if self.stop.is_set() {
                fault = Some(PullError::Cancelled);
            } else if !matches!(result, Err(StoreError::NoSpace { .. })) {
                fault = check_blob(blob, layer).err();
            }
            match fault {
                Some(_) => Err(StoreError::Cancelled),
                None => result,
            }
        });
        match (made, fault) {
            (_, Some(fault)) => Err(fault),
            (Ok(bytes), None) => Ok(bytes),
            (Err(error), None) => Err(error.into()),
        }
    }
}

/// Reads the rest of a blob and compares it with what its manifest says.
fn check_blob(blob: BufReader<BlobReader>, layer: &Layer) -> Result<(), PullError> {
    let (found, bytes) = blob.into_inner().finish().map_err(|error| broken(&error))?;
    let what = || format!("blob {}", layer.blob);
    if bytes != layer.size {
        return Err(PullError::Size { what: what(), expected: layer.size, found: bytes });
    }
    if found != layer.blob {
        return Err(PullError::Digest { what: what(), expected: layer.blob, found });
    }
    Ok(())
}

/// Tells how far a blob is while it is read.
struct Watched<'b, 'j> {
    inner: &'b mut BufReader<BlobReader>,
    job: &'b Job<'j>,
    index: usize,
    done: &'b AtomicU64,
    told: u64,
}

impl Watched<'_, '_> {
    fn tell(&mut self) {
        let now = self.inner.get_ref().count();
        if now - self.told >= READ_LEN as u64 {
            self.told = now;
            self.done.store(now, Ordering::Relaxed);
            self.job.set(self.index, LayerStep::Fetching, now);
        }
    }
}

impl std::io::Read for Watched<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.tell();
        Ok(n)
    }
}

impl std::io::BufRead for Watched<'_, '_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.tell();
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}

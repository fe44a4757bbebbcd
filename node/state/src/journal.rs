//! The journal: one file of records, only ever appended to, and replaced as a whole when most of it is garbage.
//!
//! ```text
//! append:  write behind the end -> fdatasync -> now it counts          (fails: cut back to the end, fdatasync)
//! compact: write `journal.new` -> fsync -> rename over `journal` -> fsync the directory
//! open:    read records until one does not hold; a torn tail is cut off, a damaged file is kept aside first
//! ```
//! After a failed fdatasync the kernel may hold pages that it calls clean and that never reached the disk. The file is then not
//! trusted any more: the next append rewrites it whole before anything is acknowledged.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use byre_plan::WorkloadId;
use byre_protocol::control::{Change, WORKLOADS, WorkloadRecord};
use byre_protocol::frame::FrameError;

use crate::record::{self, Found, MAGIC};

/// A smaller journal is never compacted: below this, reading it costs nothing.
const COMPACT_BYTES: u64 = 64 * 1024;
/// Damaged journals kept: enough to see a pattern, few enough not to fill a small partition.
const DAMAGED_KEPT: usize = 4;
/// Names in the directory.
const NAME: &str = "journal";
const NEW_NAME: &str = "journal.new";
const DAMAGED_PREFIX: &str = "journal.damaged.";

/// Why the journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system failed.
    #[error("{path}: {source}{}", remedy(.source))]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record cannot be encoded.
    #[error("a workload's record: {0}")]
    Record(#[from] FrameError),
    /// Too many workloads.
    #[error("{WORKLOADS} workloads are on disk already: remove one first")]
    Full,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ": the state partition is full; remove workloads that are not needed",
        Some(libc::EROFS) => ": the state partition is read-only after an error; reboot to have it checked",
        Some(_) | None => "",
    }
}

/// Where a workload's newest record lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    bytes: u64,
}

/// An open journal. It is the only writer of its directory.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    file: File,
    /// Bytes that count: everything behind is cut off or overwritten.
    end: u64,
    places: BTreeMap<WorkloadId, Place>,
    trust: Trust,
    #[cfg(test)]
    pub(crate) fault: Fault,
}

/// Whether the file can be appended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Its bytes up to the end are on disk.
    Good,
    /// A sync failed: it must be rewritten first.
    Rewrite,
}

/// A fault that a test puts before the disk.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Only this many bytes of a write fit.
    Full(usize),
    /// Every sync fails.
    Sync,
}

/// What opening found.
#[derive(Debug)]
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// For the service's log: what was cut off or put aside.
    pub report: Option<String>,
}

impl Journal {
    /// Opens the journal of a directory, or makes an empty one.
    ///
    /// # Errors
    /// If the file system fails. Torn and damaged content is no error.
    pub fn open(directory: &Path) -> Result<Opened, JournalError> {
        let path = directory.join(NAME);
        let new_path = directory.join(NEW_NAME);
        if let Err(error) = std::fs::remove_file(&new_path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(JournalError::File { path: new_path, source: error });
        }
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(directory)?,
            Err(source) => return Err(JournalError::File { path, source }),
        };
        let in_file = |source| JournalError::File { path: path.clone(), source };
        let length = file.metadata().map_err(in_file)?.len();
        let scan = scan(&file, length).map_err(in_file)?;
        let mut journal = Self {
            directory: directory.to_owned(),
            file,
            end: scan.end,
            places: scan.places,
            trust: Trust::Good,
            #[cfg(test)]
            fault: Fault::None,
        };
        let report = match scan.finding {
            Finding::Whole => None,
            Finding::Torn => {
                journal.cut_back().map_err(in_file)?;
                Some(format!("{}: cut off {} bytes of an interrupted write", path.display(), length - scan.end))
            }
            Finding::Damaged => {
                let aside = journal.keep_aside()?;
                journal.rewrite()?;
                Some(format!(
                    "{}: damaged at byte {} of {length}; {} workloads before that are kept, the damaged file is {}",
                    path.display(),
                    scan.end,
                    journal.places.len(),
                    aside.display()
                ))
            }
        };
        Ok(Opened { journal, report })
    }

    /// Puts changes on disk, all of them or none.
    ///
    /// # Errors
    /// If that failed; nothing of them will then be read at the next start.
    pub fn append(&mut self, changes: &[Change]) -> Result<(), JournalError> {
        if self.trust == Trust::Rewrite {
            self.rewrite()?;
        }
        let mut bytes = Vec::new();
        let mut places = Vec::new();
        for change in changes {
            let encoded = record::encode(change)?;
            places.push(Place { offset: self.end + bytes.len() as u64, bytes: encoded.len() as u64 });
            bytes.extend_from_slice(&encoded);
        }
        self.check_count(changes)?;
        if let Err(source) = self.write_at_end(&bytes) {
            if self.cut_back().is_err() {
                self.trust = Trust::Rewrite;
            }
            return Err(self.in_file(source));
        }
        if let Err(source) = self.sync() {
            self.trust = Trust::Rewrite;
            // Best effort: what cannot be cut off now is gone with the rewrite that the next append begins with.
            let _ = self.file.set_len(self.end);
            return Err(self.in_file(source));
        }
        self.end += bytes.len() as u64;
        for (change, place) in changes.iter().zip(places) {
            match change {
                Change::Put(record) => drop(self.places.insert(record.id, place)),
                Change::Remove(id) => drop(self.places.remove(id)),
            }
        }
        Ok(())
    }

    /// Replaces the file if more than half of it is garbage. A failure leaves the old one as it was.
    ///
    /// # Errors
    /// If the new file could not be written.
    pub fn compact_if_worthwhile(&mut self) -> Result<bool, JournalError> {
        let live: u64 = self.places.values().map(|place| place.bytes).sum();
        if self.end < COMPACT_BYTES || live.saturating_mul(2) >= self.end {
            return Ok(false);
        }
        self.rewrite().map(|()| true)
    }

    /// Identities of all workloads on disk, in order.
    #[must_use]
    pub fn ids(&self) -> Vec<WorkloadId> {
        self.places.keys().copied().collect()
    }

    /// Whether a workload is on disk.
    #[must_use]
    pub fn has(&self, id: WorkloadId) -> bool {
        self.places.contains_key(&id)
    }

    /// The newest record of a workload, or `None` if it has none.
    ///
    /// # Errors
    /// If it cannot be read any more.
    pub fn read(&self, id: WorkloadId) -> Result<Option<WorkloadRecord>, JournalError> {
        let Some(place) = self.places.get(&id) else { return Ok(None) };
        match record::read(&self.file, place.offset, place.offset + place.bytes) {
            Ok(Found::Record(change, _)) => match *change {
                Change::Put(record) => Ok(Some(*record)),
                Change::Remove(_) => Ok(None),
            },
            Ok(Found::End | Found::Torn | Found::Damaged) => {
                Err(self.in_file(io::Error::new(io::ErrorKind::InvalidData, format!("record of {id} rotted"))))
            }
            Err(source) => Err(self.in_file(source)),
        }
    }

    fn check_count(&self, changes: &[Change]) -> Result<(), JournalError> {
        let new = changes.iter().filter(|change| matches!(change, Change::Put(record) if !self.has(record.id))).count();
        if self.places.len() + new > WORKLOADS { Err(JournalError::Full) } else { Ok(()) }
    }

    fn in_file(&self, source: io::Error) -> JournalError {
        JournalError::File { path: self.directory.join(NAME), source }
    }

    fn write_at_end(&self, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if let Fault::Full(room) = self.fault
            && room < bytes.len()
        {
            self.file.write_all_at(&bytes[..room], self.end)?;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.file.write_all_at(bytes, self.end)
    }

    fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.fault == Fault::Sync {
            return Err(io::Error::other("injected"));
        }
        self.file.sync_data()
    }

    /// Makes sure, on disk, that nothing lies behind the end.
    fn cut_back(&self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.sync()
    }

    /// Writes every living record to a new file and puts that in the journal's place.
    fn rewrite(&mut self) -> Result<(), JournalError> {
        let new_path = self.directory.join(NEW_NAME);
        let result = self.rewrite_to(&new_path);
        if let Err(source) = result {
            // The next open removes it as well; here it gives back the space at once.
            let _ = std::fs::remove_file(&new_path);
            return Err(JournalError::File { path: new_path, source });
        }
        Ok(())
    }

    fn rewrite_to(&mut self, new_path: &Path) -> io::Result<()> {
        #[cfg(test)]
        if self.fault == Fault::Sync {
            return Err(io::Error::other("injected"));
        }
        let mut new = new_file(new_path)?;
        new.write_all(&MAGIC)?;
        let mut end = MAGIC.len() as u64;
        let mut places = BTreeMap::new();
        for (id, place) in &self.places {
            let mut bytes = vec![0; usize::try_from(place.bytes).unwrap_or(usize::MAX)];
            self.file.read_exact_at(&mut bytes, place.offset)?;
            new.write_all(&bytes)?;
            places.insert(*id, Place { offset: end, bytes: place.bytes });
            end += place.bytes;
        }
        new.sync_all()?;
        std::fs::rename(new_path, self.directory.join(NAME))?;
        // From here on the new file is the journal, whatever happens: appends to the old one would be lost.
        self.file = new;
        self.end = end;
        self.places = places;
        self.trust = Trust::Rewrite;
        sync_directory(&self.directory)?;
        self.trust = Trust::Good;
        Ok(())
    }

    /// Links the damaged file under another name, so that the rewrite leaves it there; the oldest ones go.
    fn keep_aside(&self) -> Result<PathBuf, JournalError> {
        let in_directory = |source| JournalError::File { path: self.directory.clone(), source };
        let mut aside = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(in_directory)? {
            let name = entry.map_err(in_directory)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(DAMAGED_PREFIX)).and_then(|n| n.parse().ok());
            aside.extend(number.map(|number: u32| number));
        }
        aside.sort_unstable();
        let path_of = |number: u32| self.directory.join(format!("{DAMAGED_PREFIX}{number}"));
        let surplus = (aside.len() + 1).saturating_sub(DAMAGED_KEPT);
        for number in aside.iter().take(surplus) {
            // A copy that cannot be removed only takes space.
            let _ = std::fs::remove_file(path_of(*number));
        }
        let path = path_of(aside.last().map_or(0, |last| last.wrapping_add(1)));
        match std::fs::hard_link(self.directory.join(NAME), &path) {
            Ok(()) => Ok(path),
            Err(source) => Err(JournalError::File { path, source }),
        }
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// An empty journal, which has its first bytes on disk before it has its name.
fn create(directory: &Path) -> Result<File, JournalError> {
    let new_path = directory.join(NEW_NAME);
    let make = || {
        let mut file = new_file(&new_path)?;
        file.write_all(&MAGIC)?;
        file.sync_all()?;
        std::fs::rename(&new_path, directory.join(NAME))?;
        sync_directory(directory)?;
        Ok(file)
    };
    make().map_err(|source| JournalError::File { path: new_path.clone(), source })
}

struct Scan {
    places: BTreeMap<WorkloadId, Place>,
    end: u64,
    finding: Finding,
}

enum Finding {
    Whole,
    Torn,
    Damaged,
}

/// Reads records from the front for as long as they hold.
fn scan(file: &File, length: u64) -> io::Result<Scan> {
    let mut scan = Scan { places: BTreeMap::new(), end: 0, finding: Finding::Whole };
    let mut magic = [0_u8; MAGIC.len()];
    if length < MAGIC.len() as u64 {
        // The name is given after the first bytes are on disk, so this is no interrupted creation.
        scan.finding = Finding::Damaged;
        return Ok(scan);
    }
    file.read_exact_at(&mut magic, 0)?;
    if magic != MAGIC {
        scan.finding = Finding::Damaged;
        return Ok(scan);
    }
    scan.end = MAGIC.len() as u64;
    loop {
        match record::read(file, scan.end, length)? {
            Found::Record(change, bytes) => {
                let place = Place { offset: scan.end, bytes };
                match *change {
                    Change::Put(record) => drop(scan.places.insert(record.id, place)),
                    Change::Remove(id) => drop(scan.places.remove(&id)),
                }
                scan.end += bytes;
            }
            Found::End => return Ok(scan),
            Found::Torn => {
                scan.finding = Finding::Torn;
                return Ok(scan);
            }
            Found::Damaged => {
                scan.finding = Finding::Damaged;
                return Ok(scan);
            }
        }
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
pub(crate) mod tests;

//! Containers on disk: one directory each below `--root`, made with the container and removed with it.
//!
//! `state.json` is what was decided at creation and never says whether the container runs: that is asked of the kernel each time. It is
//! replaced in one step, so a reader sees the old one or the new one. `config.json` is the bundle's as it was at creation. `start` is the
//! socket on which a created container waits; while it is there, the container has not been started.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::cgroups;
use crate::error::{Error, cannot, wrong};

/// Longest id: it is the name of a directory.
const ID_BYTES: usize = 255;
/// Longest state.json: annotations of a bundle, which is bounded, and little else.
const STATE_BYTES: u64 = 4 * 1024 * 1024;

/// How far a creation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Its process exists; hooks may be running.
    Creating,
    /// It waits for its start, or was started.
    Created,
}

/// What is known of a container since its creation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) oci_version: String,
    pub(crate) id: String,
    pub(crate) bundle: String,
    pub(crate) phase: Phase,
    pub(crate) pid: u32,
    /// When the process began, in the kernel's ticks since boot: with it a number that was given out again is told apart.
    pub(crate) started_ticks: u64,
    pub(crate) created: String,
    pub(crate) owner: u32,
    /// Path of the outer cgroup below the cgroup2 mount.
    pub(crate) cgroup: String,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// State of a container, as the runtime-spec names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// State as the runtime-spec (version 1.3, runtime.md) writes it, and nothing else.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    bundle: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl Record {
    /// The state in JSON, as hooks and `state` have it.
    pub(crate) fn told(&self, status: Status) -> String {
        let told = Told {
            oci_version: byre_spec::oci::VERSION_MAX,
            id: &self.id,
            status: status.name(),
            pid: if status == Status::Stopped { None } else { Some(self.pid) },
            bundle: &self.bundle,
            annotations: &self.annotations,
        };
        serde_json::to_string_pretty(&told).unwrap_or_default()
    }

    /// A descriptor of its first process, if that lives.
    pub(crate) fn process(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Asked after the descriptor is held, so that it cannot change hands in between.
        let (state, ticks) = process_state(self.pid)?;
        (ticks == self.started_ticks && !matches!(state, 'Z' | 'X')).then_some(pidfd)
    }
}

/// State letter and start time of a process, from its stat file.
pub(crate) fn process_state(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may contain anything, but the last ')' ends it.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Where containers are kept.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// One container's directory.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
}

/// Checks that an id is a plain name.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
    if id.is_empty() || id.len() > ID_BYTES || id == "." || id == ".." || !id.bytes().all(good) {
        let shown: String = id.chars().take(80).collect();
        let remedy = format!("use 1 to {ID_BYTES} of a-z, A-Z, 0-9, '_', '+', '-' and '.'");
        return Err(wrong(format!("container id {shown:?} is not valid"), remedy));
    }
    Ok(())
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Makes the directory of a new container.
    pub(crate) fn reserve(&self, id: &str) -> Result<Place, Error> {
        check_id(id)?;
        let what = || format!("make {}", self.root.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root).map_err(cannot(what()))?;
        let path = self.root.join(id);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Place { path }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(wrong(format!("container with given ID already exists: {id}"), "delete it or use another id"))
            }
            Err(error) => Err(cannot(format!("make {}", path.display()))(error)),
        }
    }

    /// Finds a container.
    pub(crate) fn open(&self, id: &str) -> Result<(Place, Record), Error> {
        check_id(id)?;
        let place = Place { path: self.root.join(id) };
        match place.read("state.json") {
            Ok(json) => {
                let record = serde_json::from_slice(&json).map_err(|error| {
                    wrong(format!("the state of {id} is damaged ({error})"), format!("remove {}", place.path.display()))
                })?;
                Ok((place, record))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(wrong(format!("container does not exist: {id}"), "`byre-oci list` shows those that do"))
            }
            Err(error) => Err(cannot(format!("read the state of {id}"))(error)),
        }
    }

    /// Every container, by id.
    pub(crate) fn all(&self) -> Result<Vec<(Place, Record)>, Error> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(cannot(format!("read {}", self.root.display()))(error)),
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        // One that goes away meanwhile is not there.
        Ok(names.iter().filter_map(|name| self.open(name).ok()).collect())
    }

    /// The directory of a container whose creation did not come as far as a state.
    pub(crate) fn half_made(&self, id: &str) -> Option<Place> {
        check_id(id).ok()?;
        let path = self.root.join(id);
        (path.is_dir() && !path.join("state.json").exists()).then_some(Place { path })
    }
}

impl Place {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        let file = fs::File::open(self.path.join(name))?;
        let mut bytes = Vec::new();
        file.take(STATE_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes a file so that it is there whole or not at all.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        write_whole(&self.path.join(name), bytes, 0o600)
    }

    pub(crate) fn save(&self, record: &Record) -> Result<(), Error> {
        let json = serde_json::to_vec_pretty(record)
            .map_err(|error| cannot("write the state")(std::io::Error::from(error)))?;
        self.write("state.json", &json)
    }

    /// The container's directory by descriptor: paths of sockets have little room.
    pub(crate) fn directory(&self) -> Result<OwnedFd, Error> {
        let file = fs::File::open(&self.path).map_err(cannot(format!("open {}", self.path.display())))?;
        Ok(file.into())
    }

    /// Whether the container waits for its start.
    pub(crate) fn waits(&self) -> bool {
        self.path.join("start").exists()
    }

    /// Takes away the socket on which it waited.
    pub(crate) fn forget_start(&self) {
        let _ = fs::remove_file(self.path.join("start"));
    }

    /// Removes the directory.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(cannot(format!("remove {}", self.path.display()))(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What the container is now.
    pub(crate) fn status(&self, record: &Record) -> Status {
        if record.process().is_none() {
            return Status::Stopped;
        }
        let frozen = || cgroups::open(&record.cgroup).is_ok_and(|both| cgroups::is_frozen(both.0.as_fd()));
        match record.phase {
            Phase::Creating => Status::Creating,
            Phase::Created if frozen() => Status::Paused,
            Phase::Created if self.waits() => Status::Created,
            Phase::Created => Status::Running,
        }
    }
}

/// Writes a file so that it is there whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    use std::io::Write as _;
    let what = || format!("write {}", path.display());
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = directory.join(format!(".{name}.{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map_err(cannot(what()))
}

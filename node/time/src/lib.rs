//! `byred time`: keeps the machine's clock by the word of several NTP servers, most of whom must agree.
//!
//! It reads packets from a network that anybody may write to, and can do nothing but set the clock and write two small directories. A clock that is
//! far off is set, any other is turned. The time counts as known once servers have agreed; what they agreed on last is written to the state
//! partition, and the next boot's clock begins no earlier.

pub mod agreement;
pub mod clock;
pub mod packet;
pub mod server;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use byre_config::Time;
use byre_sandbox::{Notifier, profiles};
use serde::Serialize;

use agreement::{Agreement, agree};
use server::Server;

/// Bytes of its part of the configuration: some names.
const SETTINGS_BYTES: u64 = 16 * 1024;
/// Between two rounds before servers agree, at first and at most; and after they have.
const TRY_FIRST: Duration = Duration::from_secs(4);
const TRY_MOST: Duration = Duration::from_secs(64);
const KEEP_FIRST: Duration = Duration::from_secs(64);
const KEEP_MOST: Duration = Duration::from_secs(1024);
/// A clock that is off by less between two rounds may be asked about less often.
const STEADY_NS: u64 = 5_000_000;
/// Between two writes of the floor: a clock that falls back an hour breaks no certificate, and the state partition is no place for every round.
const FLOOR_INTERVAL: Duration = Duration::from_secs(3600);

/// Where things lie.
#[derive(Debug, Clone)]
pub struct Paths {
    /// What the configuration says of the time.
    pub settings: PathBuf,
    /// Its directory in memory: state, and the mark that the time is known.
    pub run: PathBuf,
    /// Its directory on the state partition: the floor.
    pub state: PathBuf,
}

/// Why the service ended. PID 1 starts it anew.
#[derive(Debug, thiserror::Error)]
pub enum TimeError {
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its part of the configuration.
    #[error("{path}: {source}: byred config and byred time must be from one release")]
    Settings {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// What is told of a server.
#[derive(Debug, Serialize)]
struct ServerState<'a> {
    name: &'a str,
    address: Option<String>,
    offset_ns: Option<i64>,
    delay_ns: Option<u64>,
    stratum: Option<u8>,
    problem: &'a str,
}

impl<'a> From<&'a Server> for ServerState<'a> {
    fn from(server: &'a Server) -> Self {
        Self {
            name: &server.name,
            address: server.address.map(|address| address.to_string()),
            offset_ns: server.sample.map(|sample| sample.offset_ns),
            delay_ns: server.sample.map(|sample| sample.delay_ns),
            stratum: server.sample.map(|sample| sample.stratum),
            problem: &server.problem,
        }
    }
}

/// `/run/byre/time/state.json`.
#[derive(Debug, Serialize)]
struct State<'a> {
    /// Whether servers have agreed since the machine was switched on.
    known: bool,
    /// Their clock less this machine's at the last agreement, before it was corrected.
    offset_ns: Option<i64>,
    /// How wrong that may be.
    error_ns: Option<u64>,
    /// When that was, in seconds since 1970.
    agreed_wall_s: Option<u64>,
    servers: Vec<ServerState<'a>>,
}

/// The service, started by PID 1.
///
/// # Errors
/// If it cannot start or write its files.
pub fn run() -> Result<(), TimeError> {
    let notifier = Notifier::from_environment()?;
    let path = |text: &str| PathBuf::from(text);
    let paths =
        Paths { settings: path("/run/byre/config/time.json"), run: path("/run/byre/time"), state: path("/state/time") };
    let settings = settings(&paths.settings)?;
    byre_sandbox::seal(&profiles::TIME)?;
    let mut keeper = Keeper::new(&settings, paths);
    keeper.tell()?;
    // Not when the time is known: whoever needs that looks for the mark, and a node without a network works.
    notifier.ready()?;
    loop {
        let wait = keeper.round()?;
        std::thread::sleep(wait);
    }
}

fn settings(path: &Path) -> Result<Time, TimeError> {
    let mut bytes = Vec::new();
    let failed = |source| TimeError::File { path: path.to_owned(), source };
    File::open(path).and_then(|file| file.take(SETTINGS_BYTES).read_to_end(&mut bytes)).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|source| TimeError::Settings { path: path.to_owned(), source })
}

/// Keeps the clock.
#[derive(Debug)]
pub struct Keeper {
    servers: Vec<Server>,
    paths: Paths,
    agreed: Option<(Agreement, u64)>,
    wait: Duration,
    floor_written: Option<Instant>,
}

impl Keeper {
    /// One that has asked nobody yet.
    #[must_use]
    pub fn new(settings: &Time, paths: Paths) -> Self {
        let servers = settings.servers.iter().map(|server| Server::new(server.as_str())).collect();
        Self { servers, paths, agreed: None, wait: TRY_FIRST, floor_written: None }
    }

    /// Asks all servers once and does what most of them say. Returns how long to wait before the next round.
    ///
    /// # Errors
    /// If its files cannot be written.
    pub fn round(&mut self) -> Result<Duration, TimeError> {
        if self.servers.is_empty() {
            return Ok(Duration::MAX);
        }
        for server in &mut self.servers {
            server.ask();
        }
        let samples: Vec<_> = self.servers.iter().filter_map(|server| server.sample).collect();
        let Some(agreement) = agree(&samples, self.servers.len()) else {
            let wait = self.wait;
            self.wait = if self.agreed.is_some() { KEEP_FIRST } else { (self.wait * 2).min(TRY_MOST) };
            self.tell()?;
            return Ok(wait);
        };
        self.correct(&agreement)?;
        let is_steady = agreement.offset_ns.unsigned_abs() <= STEADY_NS;
        self.wait = if is_steady { (self.wait * 2).clamp(KEEP_FIRST, KEEP_MOST) } else { KEEP_FIRST };
        Ok(self.wait)
    }

    fn correct(&mut self, agreement: &Agreement) -> Result<(), TimeError> {
        match clock::correct(agreement.offset_ns, agreement.error_ns) {
            Ok(clock::Corrected::Stepped) => {
                println!("the clock was off by {} ms and is set", agreement.offset_ns / 1_000_000);
                // What was measured was measured with the old clock.
                for server in &mut self.servers {
                    server.sample = None;
                }
            }
            Ok(clock::Corrected::Slewed) => {}
            Err(errno) => {
                eprintln!("the clock cannot be corrected: {errno}");
                return self.tell();
            }
        }
        let now_s = u64::try_from(clock::now_ns() / 1_000_000_000).unwrap_or(0);
        if self.agreed.is_none() {
            println!("{} of {} time servers agree: the time is known", agreement.servers, self.servers.len());
        }
        self.agreed = Some((*agreement, now_s));
        if self.floor_written.is_none_or(|at| at.elapsed() >= FLOOR_INTERVAL) {
            replace(&self.paths.state, "floor", format!("{now_s}\n").as_bytes())?;
            self.floor_written = Some(Instant::now());
        }
        self.tell()?;
        replace(&self.paths.run, "trusted", format!("{now_s}\n").as_bytes())
    }

    /// Writes down how things stand.
    fn tell(&self) -> Result<(), TimeError> {
        let state = State {
            known: self.agreed.is_some(),
            offset_ns: self.agreed.map(|(agreement, _)| agreement.offset_ns),
            error_ns: self.agreed.map(|(agreement, _)| agreement.error_ns),
            agreed_wall_s: self.agreed.map(|(_, at)| at),
            servers: self.servers.iter().map(ServerState::from).collect(),
        };
        replace(&self.paths.run, "state.json", &serde_json::to_vec(&state).unwrap_or_default())
    }
}

/// Replaces a file whole; on disk when this returns, if its directory is on one.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), TimeError> {
    let (path, beside) = (directory.join(name), directory.join(format!("{name}.new")));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| TimeError::File { path: path.clone(), source })
}

/// For fuzzing: judges an answer to the question whose cookie its first eight bytes are. Returns whether it was accepted.
///
/// # Panics
/// If what was accepted breaks a bound.
#[must_use]
pub fn fuzz_answer(input: &[u8]) -> bool {
    const SECOND_NS: i64 = 1_000_000_000;
    let Some((cookie, packet)) = input.split_first_chunk::<8>() else { return false };
    let Ok(sample) =
        packet::answer(packet, u64::from_be_bytes(*cookie), 1_795_694_400 * SECOND_NS, 1_795_694_401 * SECOND_NS)
    else {
        return false;
    };
    assert!(sample.delay_ns <= 1_000_000_000 && sample.distance_ns <= 2_000_000_000, "{sample:?}");
    assert!((1..16).contains(&sample.stratum), "{sample:?}");
    assert!(agree(&[sample], 1).is_some_and(|agreed| agreed.offset_ns == sample.offset_ns), "{sample:?}");
    true
}

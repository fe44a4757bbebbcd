//! `byred update`: takes its descriptors, seals itself, and serves the API, one connection per call.
//!
//! An update runs on a thread of its own and goes on when whoever asked for it goes away; connections only watch. Another thread looks once a
//! minute what has become of an armed release, and whether the configuration wants an update now.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use byre_config::Automatic;
use byre_protocol::control::Allow;
use byre_protocol::update::{UpdateAnswer, UpdateCall, UpdateRefusal};
use byre_release::{Facts, RELEASE_FILE, RELEASE_KEYS, ReleaseKeys, TUF_ROOT};
use byre_sandbox::stream::{self, StreamError};
use byre_sandbox::{Descriptors, Notifier, profiles};

use crate::control::Control;
use crate::engine::{Engine, Paths, Patience, Running, SharedEngine};
use crate::error::UpdateError;
use crate::http::{Client, HttpError, Waits};
use crate::journal::JournalError;
use crate::slot::Slot;

/// Connections at a time: watchers, and one bundle.
const CONNECTIONS: usize = 8;
/// A client that neither sends nor takes for so long is gone.
const CLIENT_TIME: Duration = Duration::from_secs(60);
/// How often a watcher is told at least, so that it knows that something lives.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// And at most, so that a fast disk does not flood it.
const TELL_PAUSE: Duration = Duration::from_millis(100);
/// How often the automatic part looks.
const TICK: Duration = Duration::from_secs(60);
/// Between two automatic checks, and between two tries of an update that could not be finished.
const CHECK_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// See [`CHECK_INTERVAL`].
const RETRY_INTERVAL: Duration = Duration::from_secs(900);
/// The authorities that https is checked against.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why the service ended. PID 1 starts it anew.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// The running release does not say what it is.
    #[error("{path}: {cause}")]
    Release {
        /// Which file.
        path: &'static str,
        /// Why.
        cause: String,
    },
    /// The authorities.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The state partition.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The listener failed.
    #[error("accept: {0}")]
    Accept(io::Error),
}

/// The service, started by PID 1.
///
/// # Errors
/// [`ServiceError`].
pub fn run() -> Result<(), ServiceError> {
    let mut descriptors = Descriptors::from_environment()?;
    let listener = UnixListener::from(descriptors.take("unix")?);
    // The mode belongs to the socket, which PID 1 keeps: whoever had it before may have set another.
    listener.set_nonblocking(false).map_err(ServiceError::Accept)?;
    let control = Control::new(descriptors.take("control")?);
    let mut partition = |name: &str| descriptors.take_if_given(name).map(File::from);
    let parts = (partition("inactive-root"), partition("inactive-verity"), partition("inactive-uki"));
    let slot = match parts {
        (Some(root), Some(verity), Some(uki)) => Some(Slot::new(root, verity, uki)),
        (_, _, _) => None,
    };
    let notifier = Notifier::from_environment()?;
    byre_sandbox::seal(&profiles::UPDATE)?;
    let client = Client::new(Path::new(AUTHORITIES), Waits::default())?;
    let engine = Engine::open(running()?, slot, client, Patience::default(), paths(), Box::new(control))?;
    let engine = Arc::new(engine);
    let automatic = Arc::clone(&engine);
    let spawned = std::thread::Builder::new().name("automatic".to_owned()).spawn(move || look_often(&automatic));
    spawned.map_err(ServiceError::Accept)?;
    notifier.ready()?;
    serve(&engine, &listener)
}

fn paths() -> Paths {
    let path = |text: &str| PathBuf::from(text);
    Paths {
        state: path("/state/update"),
        blessed: path("/run/byre/blessed"),
        trials: path("/run/byre/trials.json"),
        time: path("/run/byre/time/trusted"),
        settings: path("/run/byre/config/update.json"),
        boot_id: path("/proc/sys/kernel/random/boot_id"),
    }
}

/// What the verified root says of its own release.
fn running() -> Result<Running, ServiceError> {
    let read = |path: &'static str| {
        std::fs::read(path).map_err(|error| ServiceError::Release { path, cause: error.to_string() })
    };
    let refused = |path, error: &dyn std::fmt::Display| ServiceError::Release { path, cause: error.to_string() };
    Ok(Running {
        facts: Facts::parse(&read(RELEASE_FILE)?).map_err(|error| refused(RELEASE_FILE, &error))?,
        keys: ReleaseKeys::parse(&read(RELEASE_KEYS)?).map_err(|error| refused(RELEASE_KEYS, &error))?,
        tuf_root: read(TUF_ROOT)?,
    })
}

/// Serves until the listener fails.
///
/// # Errors
/// [`ServiceError::Accept`].
pub fn serve(engine: &SharedEngine, listener: &UnixListener) -> Result<(), ServiceError> {
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(ServiceError::Accept(error)),
        };
        let others = connections.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(&connections));
        if others >= CONNECTIONS {
            refuse_for_now(client);
            continue;
        }
        let engine = Arc::clone(engine);
        let started = std::thread::Builder::new().name("call".to_owned()).spawn(move || {
            let _place = place;
            if let Err(error) = answer(&engine, client) {
                eprintln!("a call is not answered: {error}");
            }
        });
        if let Err(error) = started {
            eprintln!("a call is not answered: {error}");
        }
    }
}

/// Counts a connection for as long as it lives.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn refuse_for_now(mut client: UnixStream) {
    let text = format!("{CONNECTIONS} update calls are under way: try again when one of them is done");
    if client.set_write_timeout(Some(TELL_PAUSE)).is_ok() {
        // One that is gone needs no answer.
        let _ = stream::write(&mut client, &UpdateAnswer::Refused { code: UpdateRefusal::NotNow, text });
    }
}

fn refused(error: &UpdateError) -> UpdateAnswer {
    UpdateAnswer::Refused { code: error.code(), text: error.to_string() }
}

/// Answers one connection's call.
fn answer(engine: &SharedEngine, mut client: UnixStream) -> Result<(), StreamError> {
    client.set_read_timeout(Some(CLIENT_TIME))?;
    client.set_write_timeout(Some(CLIENT_TIME))?;
    let Some(call) = stream::read::<UpdateCall>(&mut client)? else { return Ok(()) };
    let status = |engine: &Engine| UpdateAnswer::Status(Box::new(engine.status()));
    let done = |result: Result<String, UpdateError>| result.map_or_else(|error| refused(&error), UpdateAnswer::Done);
    let last = match call {
        UpdateCall::Status => status(engine),
        UpdateCall::History => UpdateAnswer::History(engine.history()),
        UpdateCall::Cancel => done(engine.cancel().map(|()| "cancelled".to_owned())),
        UpdateCall::Check => match in_turn(engine, Engine::check) {
            Ok(()) => status(engine),
            Err(error) => refused(&error),
        },
        UpdateCall::Rollback { reboot } => done(in_turn(engine, |engine| engine.roll_back(reboot))),
        UpdateCall::Apply { allow, reboot } => {
            done(watched(engine, &mut client, move |engine| engine.apply(allow, reboot))?)
        }
        UpdateCall::ApplyBundle { allow, reboot, offline } => {
            let bundle = io::BufReader::with_capacity(1 << 17, client.try_clone()?);
            done(watched(engine, &mut client, move |engine| engine.apply_bundle(bundle, allow, reboot, offline))?)
        }
    };
    stream::write(&mut client, &last)
}

/// Does something that needs its turn, and remembers how it ended.
fn in_turn<T>(engine: &Engine, what: impl FnOnce(&Engine) -> Result<T, UpdateError>) -> Result<T, UpdateError> {
    let _job = engine.begin()?;
    engine.ended(what(engine))
}

/// Does something on a thread of its own, and tells the client how it goes on. It goes on when the client is gone.
fn watched(
    engine: &SharedEngine,
    client: &mut UnixStream,
    what: impl FnOnce(&Engine) -> Result<String, UpdateError> + Send + 'static,
) -> Result<Result<String, UpdateError>, StreamError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let working = Arc::clone(engine);
    let spawned = std::thread::Builder::new().name("update".to_owned()).spawn(move || {
        let result = in_turn(&working, what);
        if let Err(error) = &result {
            eprintln!("the update ended: {error}");
        }
        // Nobody may be listening any more.
        let _ = sender.send(result);
    });
    if let Err(error) = spawned {
        return Ok(Err(UpdateError::Start(error)));
    }
    let mut seen = 0;
    loop {
        seen = engine.wait_for_change(seen, TELL_INTERVAL);
        match receiver.recv_timeout(TELL_PAUSE) {
            Ok(result) => return Ok(result),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let ended = io::Error::other("the update's thread ended without a result");
                return Ok(Err(UpdateError::Start(ended)));
            }
        }
        stream::write(client, &UpdateAnswer::Status(Box::new(engine.status())))?;
    }
}

/// The automatic part, for as long as the process lives.
fn look_often(engine: &Engine) {
    let mut last: Option<Instant> = None;
    loop {
        if let Err(error) = engine.reconcile() {
            eprintln!("what became of the last update is not recorded: {error}");
        }
        look(engine, &mut last);
        std::thread::sleep(TICK);
    }
}

fn look(engine: &Engine, last: &mut Option<Instant>) {
    let settings = match engine.settings() {
        Ok(settings) => settings,
        Err(error) => return engine.say_waiting(&error.to_string()),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let due = |interval: Duration| last.is_none_or(|last| last.elapsed() >= interval);
    let wanted = match settings.automatic {
        _ if settings.repository.is_none() => None,
        Automatic::Off => None,
        Automatic::Check => due(CHECK_INTERVAL).then_some(Automatic::Check),
        Automatic::Apply => due(RETRY_INTERVAL).then_some(Automatic::Apply),
    };
    let Some(wanted) = wanted else {
        let quiet = settings.automatic == Automatic::Off || settings.repository.is_none();
        if quiet {
            engine.say_waiting("");
        }
        return;
    };
    if !engine.time_is_known() {
        return engine.say_waiting("the time is not known yet");
    }
    if wanted == Automatic::Apply && !engine.is_blessed() {
        return engine.say_waiting("the running release is not blessed yet");
    }
    if wanted == Automatic::Apply && !settings.is_open_at(now) {
        return engine.say_waiting("no maintenance window is open");
    }
    engine.say_waiting("");
    *last = Some(Instant::now());
    let result = match wanted {
        Automatic::Apply => in_turn(engine, |engine| engine.apply(Allow::default(), true)).map(drop),
        Automatic::Check | Automatic::Off => in_turn(engine, Engine::check),
    };
    if let Err(error) = result {
        eprintln!("the automatic update ended: {error}");
    }
}

//! One update from its beginning to an armed slot, and what is known meanwhile.
//!
//! ```text
//! idle -> checking -> writing -> verifying -> written -> armed -> (reboot) -> good, or fell back
//!              |          |          |           |
//!              +----------+----------+-----------+--> interrupted, goes on with the same release
//! ```
//!
//! The happy path: the repository's metadata is loaded and checked; the channel's signed statement is verified and admitted; the intent is put on disk;
//! hash tree, root and kernel image stream into the inactive slot, each block checked before it is written; all of it is read back past the
//! cache; PID 1 is asked to arm it. Nothing here decides what boots, and nothing but the inactive slot and one directory of the state
//! partition is written.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use byre_protocol::control::Allow;
use byre_protocol::update::{ReleaseName, UpdateEvent, UpdateEventKind, UpdateState, UpdateStatus};
use byre_release::{Facts, ReleaseKeys, Statement, Unverified};

use crate::error::UpdateError;
use crate::http::Client;
use crate::journal::{Content, Intent, Journal, JournalError, Source, Stage};
use crate::metadata::{self, Expirations, Memory, MetadataError};
use crate::settings;
use crate::slot::Slot;

/// What PID 1 does for the updater.
pub trait Init: Send {
    /// Arms the slot that holds this release.
    ///
    /// # Errors
    /// PID 1's words.
    fn arm(&mut self, statement: &[u8], allow: Allow) -> Result<(), String>;
    /// Makes the other slot's release boot next.
    ///
    /// # Errors
    /// PID 1's words.
    fn roll_back(&mut self) -> Result<(), String>;
    /// Takes back what was armed and not tried, if anything was.
    ///
    /// # Errors
    /// PID 1's words.
    fn disarm(&mut self) -> Result<(), String>;
    /// Reboots.
    ///
    /// # Errors
    /// PID 1's words.
    fn reboot(&mut self) -> Result<(), String>;
}

/// Where things lie.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The updater's directory on the state partition.
    pub state: PathBuf,
    /// There once the running slot is blessed.
    pub blessed: PathBuf,
    /// The trials of this machine and their outcomes, as they stand once the running slot is blessed.
    pub trials: PathBuf,
    /// There once time servers agreed on the time.
    pub time: PathBuf,
    /// What the configuration says of updates.
    pub settings: PathBuf,
    /// Names this boot.
    pub boot_id: PathBuf,
}

/// The running release, from its verified root.
#[derive(Debug, Clone)]
pub struct Running {
    /// What it is.
    pub facts: Facts,
    /// Whom it believes about the next one.
    pub keys: ReleaseKeys,
    /// With which root metadata its first contact begins.
    pub tuf_root: Vec<u8>,
}

/// How often and how long a broken connection is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Tries in a row that brought nothing.
    pub tries: u32,
    /// Before the second try; doubles with each further one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { tries: 6, pause: Duration::from_secs(1) }
    }
}

/// What changes.
pub(crate) struct Shared {
    pub(crate) journal: Journal,
    pub(crate) state: UpdateState,
    pub(crate) busy: bool,
    available: Option<ReleaseName>,
    last_error: String,
    waiting: String,
    /// Rises with each change, so that a watcher notices.
    changes: u64,
}

/// The updater.
pub struct Engine {
    pub(crate) running: Running,
    pub(crate) slot: Option<Slot>,
    pub(crate) client: Client,
    pub(crate) patience: Patience,
    pub(crate) paths: Paths,
    init: Mutex<Box<dyn Init>>,
    shared: Mutex<Shared>,
    changed: Condvar,
    cancelled: AtomicBool,
}

/// Held while an update or a check is under way.
pub struct Job<'a>(&'a Engine);

impl Drop for Job<'_> {
    fn drop(&mut self) {
        let resting = self.0.resting_state();
        self.0.change(|shared| {
            shared.busy = false;
            shared.state = resting;
        });
    }
}

/// A release that may be installed here.
pub(crate) struct Admitted {
    pub(crate) statement: Statement,
    pub(crate) bytes: Vec<u8>,
    /// Bytes of the kernel image that an earlier try flushed.
    pub(crate) uki_kept: u64,
    pub(crate) allow: Allow,
    reboot: bool,
    source: Source,
}

impl Admitted {
    pub(crate) fn name(&self) -> ReleaseName {
        name_of(&self.statement)
    }
}

fn name_of(statement: &Statement) -> ReleaseName {
    ReleaseName { version: statement.version.to_string(), install: statement.install }
}

pub(crate) fn total_bytes(statement: &Statement) -> u64 {
    statement.root_bytes() + statement.verity_bytes + statement.uki_bytes
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Engine {
    /// Opens the journal and finds out what became of the last update.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(
        running: Running,
        slot: Option<Slot>,
        client: Client,
        patience: Patience,
        paths: Paths,
        init: Box<dyn Init>,
    ) -> Result<Self, JournalError> {
        let (journal, said) = Journal::open(&paths.state)?;
        if let Some(said) = said {
            eprintln!("{said}");
        }
        let shared = Shared {
            journal,
            state: UpdateState::Idle,
            busy: false,
            available: None,
            last_error: String::new(),
            waiting: String::new(),
            changes: 0,
        };
        let engine = Self {
            running,
            slot,
            client,
            patience,
            paths,
            init: Mutex::new(init),
            shared: Mutex::new(shared),
            changed: Condvar::new(),
            cancelled: AtomicBool::new(false),
        };
        engine.reconcile()?;
        let resting = engine.resting_state();
        engine.change(|shared| shared.state = resting);
        Ok(engine)
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Shared) -> T) -> T {
        let mut shared = self.shared();
        let result = change(&mut shared);
        shared.changes += 1;
        drop(shared);
        self.changed.notify_all();
        result
    }

    pub(crate) fn record(&self, change: impl FnOnce(&mut Content)) -> Result<(), JournalError> {
        self.change(|shared| shared.journal.change(change))
    }

    pub(crate) fn show(&self, state: UpdateState) {
        self.change(|shared| shared.state = state);
    }

    /// What the state is when nothing is under way.
    pub(crate) fn resting_state(&self) -> UpdateState {
        match &self.shared().journal.content().intent {
            None => UpdateState::Idle,
            Some(Intent { stage: Stage::Armed, release, .. }) => UpdateState::Armed { release: release.clone() },
            Some(Intent { stage: Stage::Written | Stage::Arming, release, .. }) => {
                UpdateState::Written { release: release.clone() }
            }
            Some(Intent { stage: Stage::Writing { .. }, release, .. }) => {
                UpdateState::Interrupted { release: release.clone() }
            }
        }
    }

    /// The running release.
    #[must_use]
    pub fn running_name(&self) -> ReleaseName {
        let Facts { version, install, .. } = &self.running.facts;
        ReleaseName { version: version.to_string(), install: *install }
    }

    /// Whether the running slot is blessed.
    #[must_use]
    pub fn is_blessed(&self) -> bool {
        self.paths.blessed.exists()
    }

    /// Whether the time is known.
    #[must_use]
    pub fn time_is_known(&self) -> bool {
        self.paths.time.exists()
    }

    /// What the configuration says.
    ///
    /// # Errors
    /// [`UpdateError::Settings`].
    pub fn settings(&self) -> Result<byre_config::Update, UpdateError> {
        settings::read(&self.paths.settings)
    }

    /// How things stand.
    #[must_use]
    pub fn status(&self) -> UpdateStatus {
        let settings = self.settings().unwrap_or_default();
        let running = self.running_name();
        let blessed = self.is_blessed();
        let shared = self.shared();
        UpdateStatus {
            running,
            blessed,
            state: shared.state.clone(),
            available: shared.available.clone(),
            repository: settings.repository.as_ref().map_or_else(String::new, |url| url.as_str().to_owned()),
            channel: settings.channel.as_str().to_owned(),
            waiting: shared.waiting.clone(),
            last_error: shared.last_error.clone(),
            checked_wall_ms: shared.journal.content().checked_wall_ms,
        }
    }

    /// Waits until something has changed since `seen`, or for a while; returns the number of changes.
    #[must_use]
    pub fn wait_for_change(&self, seen: u64, at_most: Duration) -> u64 {
        let shared = self.shared();
        let waited = self.changed.wait_timeout_while(shared, at_most, |shared| shared.changes == seen);
        waited.unwrap_or_else(PoisonError::into_inner).0.changes
    }

    /// Newest first.
    #[must_use]
    pub fn history(&self) -> Vec<UpdateEvent> {
        self.shared().journal.content().events.iter().rev().cloned().collect()
    }

    /// Says what automatic updates wait for.
    pub(crate) fn say_waiting(&self, what: &str) {
        let differs = self.shared().waiting != what;
        if differs {
            self.change(|shared| what.clone_into(&mut shared.waiting));
        }
    }

    /// Ends what is under way.
    ///
    /// # Errors
    /// [`UpdateError::NothingToCancel`].
    pub fn cancel(&self) -> Result<(), UpdateError> {
        if !self.shared().busy {
            return Err(UpdateError::NothingToCancel);
        }
        self.cancelled.store(true, Ordering::Release);
        Ok(())
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Begins something; there is one at a time.
    ///
    /// # Errors
    /// [`UpdateError::Busy`].
    pub fn begin(&self) -> Result<Job<'_>, UpdateError> {
        self.change(|shared| {
            if shared.busy {
                return Err(UpdateError::Busy);
            }
            shared.busy = true;
            Ok(())
        })?;
        self.cancelled.store(false, Ordering::Release);
        Ok(Job(self))
    }

    /// Remembers how something ended.
    pub fn ended<T>(&self, result: Result<T, UpdateError>) -> Result<T, UpdateError> {
        let text = result.as_ref().err().map_or_else(String::new, ToString::to_string);
        self.change(|shared| shared.last_error = text);
        result
    }

    pub(crate) fn boot_id(&self) -> String {
        std::fs::read_to_string(&self.paths.boot_id).map(|text| text.trim().to_owned()).unwrap_or_default()
    }

    /// Asks the repository what is newest.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn check(&self) -> Result<(), UpdateError> {
        let settings = self.settings()?;
        let base = settings::base(&settings)?;
        if !self.time_is_known() {
            return Err(UpdateError::NoTime);
        }
        self.show(UpdateState::Checking);
        let source = metadata::Source::Http(self.client.clone(), base);
        runtime()?.block_on(async {
            let metadata = self.load(source, Expirations::All).await?;
            let (_, statement) = metadata.newest(settings.channel.as_str(), &self.running.keys).await?;
            self.found(&statement)
        })
    }

    pub(crate) async fn load(
        &self,
        source: metadata::Source,
        expirations: Expirations,
    ) -> Result<metadata::Metadata, MetadataError> {
        let memory = Memory::below(&self.paths.state);
        metadata::load(source, &self.running.tuf_root, &memory, expirations).await
    }

    /// Remembers what the channel offers.
    pub(crate) fn found(&self, statement: &Statement) -> Result<(), UpdateError> {
        let newer = statement.install > self.running.facts.install;
        self.change(|shared| {
            shared.available = newer.then(|| name_of(statement));
            shared.journal.change(|content| content.checked_wall_ms = Some(wall_ms()))
        })?;
        Ok(())
    }

    /// Whether anything may be written now.
    pub(crate) fn may_write(&self) -> Result<&Slot, UpdateError> {
        let slot = self.slot.as_ref().ok_or(UpdateError::NoSlots)?;
        if !self.is_blessed() {
            return Err(UpdateError::NotBlessed);
        }
        // The running release may be the one that was armed, and have become good since anybody looked.
        self.reconcile()?;
        match &self.shared().journal.content().intent {
            Some(Intent { stage: Stage::Armed, release, .. }) => Err(UpdateError::Armed(release.clone())),
            Some(_) | None => Ok(slot),
        }
    }

    /// Whether this release may be installed; `None` when it runs already. Its intent is on disk when this returns.
    pub(crate) fn admit(
        &self,
        unverified: &Unverified,
        statement: Statement,
        allow: Allow,
        reboot: bool,
        source: Source,
    ) -> Result<Option<Admitted>, UpdateError> {
        let slot = self.may_write()?;
        let (offered, running) = (name_of(&statement), self.running_name());
        if offered.install == running.install {
            return Ok(None);
        }
        let content = self.shared().journal.content().clone();
        let floor = content.floor.max(self.running.facts.minimum_install);
        if offered.install < floor {
            return Err(UpdateError::BelowFloor { offered, floor });
        }
        if offered.install < running.install && !allow.downgrade {
            return Err(UpdateError::Downgrade { offered, running });
        }
        if content.failed.contains(&offered.install) && !allow.retry {
            return Err(UpdateError::Failed(offered));
        }
        slot.check_room(&statement)?;
        if content.intent.as_ref().is_some_and(|intent| intent.stage == Stage::Arming) {
            // Whether PID 1 came to its end with it is not known: what may boot next is not written over.
            self.init().disarm().map_err(UpdateError::Init)?;
        }
        let bytes = unverified.bytes().to_vec();
        let uki_kept = match &content.intent {
            Some(Intent { statement, stage: Stage::Writing { uki_kept }, .. }) if *statement == bytes => *uki_kept,
            Some(_) | None => 0,
        };
        let admitted = Admitted { statement, bytes, uki_kept, allow, reboot, source };
        let begun = content.intent.is_none_or(|intent| intent.statement != admitted.bytes);
        self.record(|content| {
            content.intent = Some(self.intent(&admitted, Stage::Writing { uki_kept }));
            // From now on the other slot is a mixture.
            content.previous = None;
            if begun {
                content.events.push(event(&offered, UpdateEventKind::Begun, ""));
            }
        })?;
        Ok(Some(admitted))
    }

    fn intent(&self, admitted: &Admitted, stage: Stage) -> Intent {
        Intent {
            statement: admitted.bytes.clone(),
            release: admitted.name(),
            source: admitted.source,
            stage,
            allow: admitted.allow,
            reboot: admitted.reboot,
            from: self.running_name(),
            armed_in_boot: match stage {
                Stage::Armed | Stage::Arming => self.boot_id(),
                Stage::Writing { .. } | Stage::Written => String::new(),
            },
        }
    }

    pub(crate) fn keep_stage(&self, admitted: &Admitted, stage: Stage) -> Result<(), JournalError> {
        self.record(|content| content.intent = Some(self.intent(admitted, stage)))
    }

    /// Everything is in the slot: reads it back, and has PID 1 arm it. Returns what there is to say.
    pub(crate) fn finish(&self, admitted: &Admitted) -> Result<String, UpdateError> {
        let slot = self.may_write()?;
        let release = admitted.name();
        let total_bytes = total_bytes(&admitted.statement);
        let whole = slot.verify(&admitted.statement, &mut |done_bytes| {
            self.show(UpdateState::Verifying { release: release.clone(), done_bytes, total_bytes });
            !self.is_cancelled()
        })?;
        if !whole {
            return Err(UpdateError::Cancelled);
        }
        self.keep_stage(admitted, Stage::Written)?;
        self.show(UpdateState::Written { release: release.clone() });
        // From here on it may boot, whatever becomes of this process or of the power.
        self.keep_stage(admitted, Stage::Arming)?;
        let mut init = self.init();
        if let Err(refusal) = init.arm(&admitted.bytes, admitted.allow) {
            self.keep_stage(admitted, Stage::Written)?;
            return Err(UpdateError::Init(refusal));
        }
        self.record(|content| {
            content.intent = Some(self.intent(admitted, Stage::Armed));
            content.events.push(event(&release, UpdateEventKind::Armed, ""));
        })?;
        self.show(UpdateState::Armed { release: release.clone() });
        if admitted.reboot {
            init.reboot().map_err(UpdateError::Init)?;
            return Ok(format!("{release} is armed; the node reboots into it"));
        }
        Ok(format!("{release} is armed; it runs after a reboot (byrectl reboot)"))
    }

    /// Goes back to the release in the other slot.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn roll_back(&self, reboot: bool) -> Result<String, UpdateError> {
        self.reconcile()?;
        let content = self.shared().journal.content().clone();
        let other = match content.intent {
            Some(Intent { stage: Stage::Armed | Stage::Arming, release, .. }) => return self.take_back(&release),
            Some(_) => return Err(UpdateError::NothingToRollBack),
            None => content.previous.ok_or(UpdateError::NothingToRollBack)?,
        };
        let floor = content.floor.max(self.running.facts.minimum_install);
        if other.install < floor {
            return Err(UpdateError::BelowFloor { offered: other, floor });
        }
        let mut init = self.init();
        init.roll_back().map_err(UpdateError::Init)?;
        self.record(|content| {
            // The way forward again, once the other one runs.
            content.previous = Some(self.running_name());
            content.events.push(event(&other, UpdateEventKind::RolledBack, ""));
        })?;
        if reboot {
            init.reboot().map_err(UpdateError::Init)?;
        }
        Ok(format!("{other} boots next"))
    }

    /// What was armed is not wanted any more. It stays in its slot, where nothing boots it.
    fn take_back(&self, release: &ReleaseName) -> Result<String, UpdateError> {
        self.init().disarm().map_err(UpdateError::Init)?;
        let running = self.running_name();
        self.record(|content| {
            content.intent = None;
            let text = format!("{release} was armed, and is not tried");
            content.events.push(event(&running, UpdateEventKind::RolledBack, &text));
        })?;
        Ok(format!("{release} is not tried; {running} boots next"))
    }

    fn init(&self) -> MutexGuard<'_, Box<dyn Init>> {
        self.init.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn event(release: &ReleaseName, what: UpdateEventKind, text: &str) -> UpdateEvent {
    UpdateEvent { wall_ms: wall_ms(), release: release.clone(), what, text: text.to_owned() }
}

/// A runtime for one job, on its own thread: files are written between two reads of the network, which is what a disk does best.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, UpdateError> {
    // One thread for names, which the C library looks up waiting.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .map_err(UpdateError::Start)
}

/// The engine, shared by connections and jobs.
pub type SharedEngine = Arc<Engine>;

//! What is in force, and how that changes: a document is applied, confirmed or undone.
//!
//! ```text
//!             apply            confirm, over a new connection
//! confirmed ---------> pending ------------------------------> confirmed (the next generation)
//!     ^                   |
//!     +-------------------+  time over, undo, or a reboot
//! ```
//!
//! Order of an apply: the document is on disk as pending, what has to start anew is written down, the files for the services are replaced, and only
//! then is it answered. So a crash at any point goes on where it stopped, and a power cut leaves the confirmed generation. There is one change at a
//! time: while one waits for its confirmation, another is refused. Nothing here waits; the clock is handed in.

use std::path::PathBuf;

use byre_protocol::settings::{CONFIRM_MS, ConfigRefusal, Generation, Plan, Standing};
use serde::{Deserialize, Serialize};

use crate::output;
use crate::plan;
use crate::schema;
use crate::source::{Instance, Paths, read_bounded};
use crate::store::{self, Durability, Header, StoreError, Stored};

/// The file of what only counts until the next boot, beside the files for the services.
const RUNTIME: &str = "runtime.json";
/// A few names and numbers.
const RUNTIME_BYTES: usize = 64 * 1024;

/// The clock, read by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    /// Milliseconds since boot.
    pub boot_ms: u64,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    /// The document is wrong.
    #[error(transparent)]
    Document(#[from] schema::Refused),
    /// The time for a confirmation is out of bounds.
    #[error("a change waits {} to {} seconds for its confirmation, or none (0): give another time", CONFIRM_MS.start() / 1000, CONFIRM_MS.end() / 1000)]
    ConfirmTime,
    /// No such generation.
    #[error("generation {0} is not kept: `byrectl config history` shows those that are")]
    Unknown(u64),
    /// One change at a time.
    #[error(
        "generation {0} is not confirmed yet: confirm it (`byrectl config confirm {0}`) or undo it (`byrectl config undo {0}`) first"
    )]
    Waiting(u64),
    /// There is nothing to confirm or undo.
    #[error(
        "generation {0} does not wait for a confirmation: it was confirmed or undone, or there never was one (`byrectl config history`)"
    )]
    NotWaiting(u64),
    /// Some services have not started anew.
    #[error("{0} still start anew for this change: connect anew and confirm it again in a second")]
    Restarting(String),
    /// The connection is older than the change, so it proves nothing.
    #[error(
        "a change is confirmed over a connection that was made after it: connect anew and confirm generation {0} again"
    )]
    OldConnection(u64),
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Denied {
    /// The class, for programs.
    pub(crate) fn code(&self) -> ConfigRefusal {
        match self {
            Self::Document(_) | Self::ConfirmTime => ConfigRefusal::Invalid,
            Self::Unknown(_) => ConfigRefusal::NotFound,
            Self::Waiting(_) | Self::NotWaiting(_) => ConfigRefusal::WrongState,
            Self::Restarting(_) | Self::OldConnection(_) => ConfigRefusal::Busy,
            Self::Store(_) => ConfigRefusal::NotDurable,
        }
    }
}

/// A generation that waits for its confirmation.
#[derive(Debug, Clone)]
struct Pending {
    stored: Stored,
    wait: Wait,
}

/// Since when, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Wait {
    generation: u64,
    /// When the last of its services was told to start anew: a connection that confirms it is younger.
    settled_boot_ms: u64,
    deadline_boot_ms: u64,
}

/// [`RUNTIME`].
#[derive(Debug, Default, Serialize, Deserialize)]
struct Runtime {
    waiting: Option<Wait>,
    restarts: Vec<(String, u64)>,
    revision: u64,
}

/// What is in force.
pub(crate) struct Keeper {
    paths: Paths,
    instance: Instance,
    confirmed: Stored,
    pending: Option<Pending>,
    restarts: Vec<(String, u64)>,
    revision: u64,
}

impl Keeper {
    /// Takes up what the boot decided and what an earlier process of this boot left, and hands out the files.
    pub(crate) fn start(paths: Paths, instance: Instance, confirmed: Stored) -> Result<Self, StoreError> {
        let runtime = directory(&paths).join(RUNTIME);
        let runtime: Option<Runtime> =
            read_bounded(&runtime, RUNTIME_BYTES).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let left = store::load_named(&paths.state, store::PENDING).ok().flatten();
        let Runtime { waiting, restarts, revision } = runtime.unwrap_or_default();
        let mut this = Self { paths, instance, confirmed, pending: None, restarts, revision };
        match (left, waiting) {
            (Some(stored), Some(wait)) if stored.header.generation == wait.generation => {
                this.pending = Some(Pending { stored, wait });
            }
            // Confirmed just before the end of the last process.
            (Some(stored), _) if stored.header.generation <= this.confirmed.header.generation => {
                store::remove(&this.paths.state, store::PENDING)?;
            }
            // Another boot: nobody confirmed it.
            (Some(stored), _) => {
                println!(
                    "config: generation {} was not confirmed before the reboot: it is undone",
                    stored.header.generation
                );
                this.keep_undone(stored)?;
            }
            (None, _) => {}
        }
        this.hand_out()?;
        Ok(this)
    }

    /// The configuration in force.
    fn in_force(&self) -> &Stored {
        self.pending.as_ref().map_or(&self.confirmed, |pending| &pending.stored)
    }

    /// A generation: the one in force, or another that is kept.
    pub(crate) fn get(&self, generation: Option<u64>, now: Now) -> Result<(Generation, Stored), Denied> {
        let stored = match generation {
            None => self.in_force().clone(),
            Some(number) => self.find(number)?,
        };
        Ok((self.describe(&stored, now), stored))
    }

    fn find(&self, number: u64) -> Result<Stored, Denied> {
        let held = [Some(&self.confirmed), self.pending.as_ref().map(|pending| &pending.stored)];
        if let Some(stored) = held.into_iter().flatten().find(|stored| stored.header.generation == number) {
            return Ok(stored.clone());
        }
        store::load_named(&self.paths.state, &store::file_name(number))?.ok_or(Denied::Unknown(number))
    }

    fn describe(&self, stored: &Stored, now: Now) -> Generation {
        let number = stored.header.generation;
        let standing = match &self.pending {
            Some(pending) if pending.stored.header.generation == number => {
                let left = pending.wait.deadline_boot_ms.saturating_sub(now.boot_ms);
                Standing::Pending { left_ms: u32::try_from(left).unwrap_or(u32::MAX) }
            }
            _ if number == self.confirmed.header.generation => Standing::Confirmed,
            _ if stored.header.undone => Standing::Undone,
            _ => Standing::Past,
        };
        Generation {
            number,
            origin: stored.header.origin.clone(),
            wall_ms: stored.header.wall_ms,
            hash: plan::hash(&stored.configuration),
            standing,
        }
    }

    /// All generations that are kept, newest first.
    pub(crate) fn history(&self, now: Now) -> Vec<Generation> {
        let mut numbers = store::generations(&self.paths.state);
        numbers.push(self.confirmed.header.generation);
        numbers.extend(self.pending.as_ref().map(|pending| pending.stored.header.generation));
        numbers.sort_unstable();
        numbers.dedup();
        numbers
            .into_iter()
            .rev()
            .filter_map(|number| self.get(Some(number), now).ok())
            .map(|(found, _)| found)
            .collect()
    }

    /// What a document would change.
    pub(crate) fn plan(&self, document: &[u8]) -> Result<Plan, Denied> {
        let after = schema::parse(document, ORIGIN)?;
        Ok(plan::plan(&self.instance, &self.in_force().configuration, &after))
    }

    /// What differs between two generations.
    pub(crate) fn compare(&self, from: u64, to: Option<u64>) -> Result<Plan, Denied> {
        let to = match to {
            None => self.in_force().clone(),
            Some(number) => self.find(number)?,
        };
        Ok(plan::plan(&self.instance, &self.find(from)?.configuration, &to.configuration))
    }

    /// Puts a document into force. One that says what is in force already changes nothing.
    pub(crate) fn apply(
        &mut self,
        document: Vec<u8>,
        who: &str,
        confirm_ms: u32,
        now: Now,
    ) -> Result<(Generation, Plan), Denied> {
        if confirm_ms != 0 && !CONFIRM_MS.contains(&confirm_ms) {
            return Err(Denied::ConfirmTime);
        }
        let configuration = schema::parse(&document, ORIGIN)?;
        let in_force = self.in_force();
        if in_force.configuration == configuration && in_force.header.generation != 0 {
            return Ok((self.describe(in_force, now), Plan::default()));
        }
        if let Some(pending) = &self.pending {
            return Err(Denied::Waiting(pending.stored.header.generation));
        }
        let plan = plan::plan(&self.instance, &self.confirmed.configuration, &configuration);
        let header = Header {
            instance: self.instance.clone(),
            origin: who.to_owned(),
            generation: next_generation(&self.paths.state, self.confirmed.header.generation),
            wall_ms: now.wall_ms,
            undone: false,
        };
        let stored = Stored { header, configuration, document };
        if confirm_ms == 0 {
            store::confirm(&self.paths.state, &stored)?;
            self.confirmed = stored.clone();
        } else {
            store::save(&self.paths.state, store::PENDING, &stored)?;
            let wait = Wait {
                generation: stored.header.generation,
                settled_boot_ms: now.boot_ms,
                deadline_boot_ms: now.boot_ms.saturating_add(u64::from(confirm_ms)),
            };
            self.pending = Some(Pending { stored: stored.clone(), wait });
        }
        self.restart(&plan)?;
        Ok((self.describe(&stored, now), plan))
    }

    /// Keeps the generation that waits for it.
    pub(crate) fn confirm(&mut self, generation: u64, connected_boot_ms: u64, now: Now) -> Result<Generation, Denied> {
        let pending = self.waiting(generation)?;
        if !self.restarts.is_empty() {
            let names: Vec<&str> = self.restarts.iter().map(|(name, _)| name.as_str()).collect();
            return Err(Denied::Restarting(names.join(", ")));
        }
        if connected_boot_ms <= pending.wait.settled_boot_ms {
            return Err(Denied::OldConnection(generation));
        }
        let stored = pending.stored.clone();
        store::confirm(&self.paths.state, &stored)?;
        self.confirmed = stored;
        self.pending = None;
        self.write_runtime()?;
        Ok(self.describe(&self.confirmed, now))
    }

    /// Goes back to the confirmed generation.
    pub(crate) fn undo(&mut self, generation: u64, now: Now) -> Result<(Generation, Plan), Denied> {
        let stored = self.waiting(generation)?.stored.clone();
        let plan = plan::plan(&self.instance, &stored.configuration, &self.confirmed.configuration);
        self.pending = None;
        // The services first: a node that cannot write its disk still gets its network back.
        self.restart(&plan)?;
        self.keep_undone(stored)?;
        Ok((self.describe(&self.confirmed, now), plan))
    }

    fn keep_undone(&self, mut stored: Stored) -> Result<(), StoreError> {
        stored.header.undone = true;
        store::keep(&self.paths.state, &stored)?;
        store::remove(&self.paths.state, store::PENDING)
    }

    fn waiting(&self, generation: u64) -> Result<&Pending, Denied> {
        let found = self.pending.as_ref().filter(|pending| pending.stored.header.generation == generation);
        found.ok_or(Denied::NotWaiting(generation))
    }

    /// Milliseconds until [`Self::expire`] has something to do.
    pub(crate) fn deadline_in_ms(&self, now: Now) -> Option<u64> {
        self.pending.as_ref().map(|pending| pending.wait.deadline_boot_ms.saturating_sub(now.boot_ms))
    }

    /// Undoes what was not confirmed in time.
    pub(crate) fn expire(&mut self, now: Now) {
        let Some(pending) = &self.pending else { return };
        if pending.wait.deadline_boot_ms > now.boot_ms {
            return;
        }
        let generation = pending.stored.header.generation;
        println!("config: generation {generation} was not confirmed in time: it is undone");
        if let Err(error) = self.undo(generation, now) {
            println!("config: generation {generation}: {error}");
        }
    }

    /// Services that have to start anew.
    pub(crate) fn restarts(&self) -> &[(String, u64)] {
        &self.restarts
    }

    /// Rises with each change that starts something anew.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// A service was told to start anew for this change and those before it.
    pub(crate) fn restarted(&mut self, service: &str, revision: u64, now: Now) -> Result<(), Denied> {
        let before = self.restarts.len();
        self.restarts.retain(|(name, wanted)| name != service || *wanted > revision);
        if self.restarts.len() != before {
            if let Some(pending) = &mut self.pending {
                pending.wait.settled_boot_ms = now.boot_ms;
            }
            self.write_runtime()?;
        }
        Ok(())
    }

    /// Writes down who starts anew, then hands out the files.
    fn restart(&mut self, plan: &Plan) -> Result<(), StoreError> {
        self.revision = self.revision.saturating_add(1);
        self.restarts.retain(|(name, _)| !plan.restarts.contains(name));
        self.restarts.extend(plan.restarts.iter().map(|name| (name.clone(), self.revision)));
        self.write_runtime()?;
        self.hand_out()
    }

    fn hand_out(&self) -> Result<(), StoreError> {
        output::write(&self.paths, &self.instance, &self.in_force().configuration)
    }

    fn write_runtime(&self) -> Result<(), StoreError> {
        let runtime = Runtime {
            waiting: self.pending.as_ref().map(|pending| pending.wait),
            restarts: self.restarts.clone(),
            revision: self.revision,
        };
        let bytes = serde_json::to_vec(&runtime).unwrap_or_default();
        store::replace(&directory(&self.paths), RUNTIME, 0o600, &bytes, Durability::Volatile)
    }
}

/// What a document that a client sent is called in messages.
const ORIGIN: &str = "the document";

fn directory(paths: &Paths) -> PathBuf {
    paths.run.join("config")
}

/// A number that no generation had: of those confirmed, kept and waiting.
pub(crate) fn next_generation(state: &std::path::Path, confirmed: u64) -> u64 {
    let kept = store::generations(state).last().copied().unwrap_or(0);
    kept.max(confirmed).saturating_add(1)
}

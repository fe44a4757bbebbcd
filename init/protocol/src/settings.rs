//! Messages between `byred api` and `byred config`, over [`CONFIG_SOCKET`]; framed as [`crate::peer`] says. PID 1 never reads these.
//!
//! `byred config` alone reads, judges, keeps and hands out the machine's configuration; `byred api` brings documents of clients and restarts
//! the services that a change concerns. Text that people read never holds a secret of the configuration.

use serde::{Deserialize, Serialize};

/// Socket of `byred config`; only `byred api` may open it.
pub const CONFIG_SOCKET: &str = "/run/byre/config.sock";
/// Bytes of a document, as `byred config` takes it.
pub const DOCUMENT_BYTES: usize = 64 * 1024;
/// Changes that one plan lists; a document has room for a few hundred fields, and a longer list says how many it left out.
pub const CHANGES: usize = 256;
/// Characters of one value in a plan: names, addresses and numbers are short; certificates are not repeated whole.
pub const VALUE_CHARACTERS: usize = 120;
/// Shortest and longest time that a change waits for its confirmation, in milliseconds: long enough to connect anew, short enough that a
/// node that cannot be reached any more comes back soon.
pub const CONFIRM_MS: std::ops::RangeInclusive<u32> = 5_000..=3_600_000;

/// What is asked of `byred config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigCall {
    /// The JSON Schema of a document. Answered with [`ConfigAnswer::Schema`].
    Schema,
    /// A generation's document, or the one in force. Answered with [`ConfigAnswer::Document`].
    Get {
        /// Which; `None` is the one in force.
        generation: Option<u64>,
        /// With its secrets, as it was written; otherwise rewritten without them.
        secrets: bool,
    },
    /// What a document would change. Answered with [`ConfigAnswer::Plan`].
    Plan {
        /// The document.
        document: Vec<u8>,
    },
    /// What differs between two generations. Answered with [`ConfigAnswer::Plan`].
    Compare {
        /// The older.
        from: u64,
        /// The newer; `None` is the one in force.
        to: Option<u64>,
    },
    /// Put a document into force. Answered with [`ConfigAnswer::Applied`].
    Apply {
        /// The document.
        document: Vec<u8>,
        /// Who asks, for the history.
        who: String,
        /// After this time it is undone unless it was confirmed; 0 confirms it at once. See [`CONFIRM_MS`].
        confirm_ms: u32,
    },
    /// Keep the generation that waits for it. Answered with [`ConfigAnswer::Applied`].
    Confirm {
        /// Which.
        generation: u64,
        /// When the connection was accepted over which this is asked, in milliseconds since boot.
        connected_boot_ms: u64,
    },
    /// Go back to the confirmed generation now. Answered with [`ConfigAnswer::Applied`].
    Undo {
        /// Which is to be undone.
        generation: u64,
    },
    /// What was in force, newest first. Answered with [`ConfigAnswer::History`].
    History,
    /// Tell which services have to start anew, now and from now on. The connection stays open; answered with [`ConfigAnswer::Restart`] each
    /// time there are some.
    Watch,
    /// This service was told to start anew, or is about to read what is in force. Answered with [`ConfigAnswer::Done`].
    Restarted {
        /// Which.
        service: String,
        /// The number that came with its name; a later change needs a later start.
        revision: u64,
    },
}

/// Answers of `byred config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigAnswer {
    /// The JSON Schema.
    Schema(String),
    /// A document.
    Document {
        /// Its generation, with what is known of it.
        generation: Generation,
        /// The text.
        document: String,
    },
    /// What would change.
    Plan(Plan),
    /// What changed.
    Applied {
        /// What is in force now.
        generation: Generation,
        /// What that changed.
        plan: Plan,
    },
    /// All that is kept.
    History(Vec<Generation>),
    /// Services that have to start anew, in this order, each with the number of the change that it is for.
    Restart(Vec<(String, u64)>),
    /// It is so.
    Done,
    /// It was not done.
    Refused {
        /// For programs.
        code: ConfigRefusal,
        /// For people; names place and remedy, and no secret.
        text: String,
    },
}

/// Classes of refusals of `byred config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigRefusal {
    /// The document is wrong.
    Invalid,
    /// No such generation.
    NotFound,
    /// Not now: another change waits for its confirmation, or none does.
    WrongState,
    /// Not yet: services still start anew, or the connection is older than their start. Connect anew and ask again.
    Busy,
    /// It could not be put on disk.
    NotDurable,
}

/// One configuration that is or was in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Rises with each accepted change; 0 are the defaults of a node that was never given any.
    pub number: u64,
    /// Where it came from: a place, or who applied it.
    pub origin: String,
    /// When it was put into force, in milliseconds since 1970; 0 if that is not known.
    pub wall_ms: u64,
    /// SHA-256 of what it says, as hexadecimal digits; two documents that say the same have the same.
    pub hash: String,
    /// Where it stands.
    pub standing: Standing,
}

/// Where a generation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It is in force, and comes back at the next boot.
    Confirmed,
    /// It is in force, and will be undone after this time or at a reboot.
    Pending {
        /// Milliseconds that are left.
        left_ms: u32,
    },
    /// It was in force.
    Past,
    /// It was in force, and went because nobody confirmed it or somebody undid it.
    Undone,
}

/// What a change means.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Fields that differ; at most [`CHANGES`].
    pub changes: Vec<FieldChange>,
    /// Services and jobs of the node that start anew, in this order.
    pub restarts: Vec<String>,
}

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// Such as `network.links[0].mtu`.
    pub path: String,
    /// What it was; `None` if it was not there. A secret is shown as `(secret)`.
    pub before: Option<String>,
    /// What it becomes; `None` if it goes.
    pub after: Option<String>,
}

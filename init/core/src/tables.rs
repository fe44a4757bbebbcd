//! How full the tables are: every one has a bound, and what is full is refused by name.

use byre_protocol::control::WORKLOADS;
use byre_protocol::status::HISTORY;

use crate::core::Core;
use crate::durable::UNACKNOWLEDGED;
use crate::execs::EXEC_SESSIONS;
use crate::pending::PENDING;

/// One of PID 1's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// What is in it.
    pub name: &'static str,
    /// How many there are.
    pub used: usize,
    /// How many there may be.
    pub bound: usize,
    /// Whether nothing is in it when nothing is under way.
    pub empty_at_rest: bool,
}

impl Core {
    /// All tables that what happens outside makes grow.
    #[must_use]
    pub fn tables(&self) -> [Table; 5] {
        let longest_history = self.workloads.values().map(|workload| workload.history.len()).max().unwrap_or(0);
        let table = |name, used, bound, empty_at_rest| Table { name, used, bound, empty_at_rest };
        [
            table("workloads", self.workloads.len(), WORKLOADS, false),
            table("exec sessions", self.execs.len(), EXEC_SESSIONS, true),
            table("calls that wait", self.pending.len(), PENDING, true),
            // From [`UNACKNOWLEDGED`] on nothing is made any more; what is there still changes and is removed.
            table("changes that are not on disk", self.records.len(), UNACKNOWLEDGED.saturating_mul(2), true),
            table("ended runs of one workload", longest_history, HISTORY, false),
        ]
    }
}

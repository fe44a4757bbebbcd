//! Calls whose answer depends on something that has not happened yet: a record on disk, a program running, a workload gone.
//!
//! One mechanism for all of them: a call waits for a set of conditions; when the last is met it is answered, when one can no longer be
//! met it is refused, and when its time is over it is told what it waited for. So the table empties whatever the others do.

use byre_plan::WorkloadId;
use byre_protocol::control::{PENDING_REQUESTS, Refused, RefusedCode, Reply};

use crate::event::ChannelId;

/// Calls that wait at once, over all channels: two channels' worth.
pub(crate) const PENDING: usize = PENDING_REQUESTS * 2;

/// How long a call waits beside the grace that it asked for: longer than a start that waits for readiness (60 s), shorter than a person
/// or a client's own deadline has patience for. What was asked for goes on behind the answer.
pub(crate) const CALL_MS: u64 = 120_000;

/// What a call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Await {
    /// This record is on disk.
    Record(u64),
    /// The workload's program runs.
    Running(WorkloadId),
    /// The workload has no process any more.
    Down(WorkloadId),
    /// The workload's files are gone.
    Gone(WorkloadId),
    /// The program is replaced.
    Reexec,
    /// The update is armed.
    Armed,
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) channel: ChannelId,
    pub(crate) sequence: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) caller: Caller,
    pub(crate) awaits: Vec<Await>,
    pub(crate) reply: Reply,
    pub(crate) deadline_boot_ms: u64,
}

/// The calls that wait.
#[derive(Debug, Clone, Default)]
pub(crate) struct PendingCalls {
    pub(crate) calls: Vec<Pending>,
}

impl PendingCalls {
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.calls.len() >= PENDING
    }

    pub(crate) fn add(&mut self, caller: Caller, awaits: Vec<Await>, reply: Reply, deadline_boot_ms: u64) {
        self.calls.push(Pending { caller, awaits, reply, deadline_boot_ms });
    }

    /// When the next call's time is over.
    pub(crate) fn deadline_boot_ms(&self) -> Option<u64> {
        self.calls.iter().map(|call| call.deadline_boot_ms).min()
    }

    /// Takes the calls whose time is over, each with the first thing that it still waits for.
    pub(crate) fn expired(&mut self, now_boot_ms: u64) -> Vec<(Caller, Option<Await>)> {
        let expired = self.take(|call| call.deadline_boot_ms <= now_boot_ms);
        expired.into_iter().map(|call| (call.caller, call.awaits.first().copied())).collect()
    }

    pub(crate) fn forget_channel(&mut self, channel: ChannelId) {
        self.calls.retain(|call| call.caller.channel != channel);
    }

    /// A condition is met: returns the calls that are answered by it.
    pub(crate) fn met(&mut self, what: Await) -> Vec<(Caller, Reply)> {
        for call in &mut self.calls {
            call.awaits.retain(|awaited| *awaited != what);
        }
        self.take(|call| call.awaits.is_empty()).into_iter().map(|call| (call.caller, call.reply)).collect()
    }

    /// A condition can no longer be met: returns the calls that are refused by it.
    pub(crate) fn failed(&mut self, what: Await, code: RefusedCode, text: &str) -> Vec<(Caller, Reply)> {
        self.take(|call| call.awaits.contains(&what))
            .into_iter()
            .map(|call| (call.caller, Reply::Refused(Refused { code, text: text.to_owned() })))
            .collect()
    }

    pub(crate) fn waits_for(&self, what: Await) -> bool {
        self.calls.iter().any(|call| call.awaits.contains(&what))
    }

    fn take(&mut self, is_done: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let (done, rest) = std::mem::take(&mut self.calls).into_iter().partition(|call| is_done(call));
        self.calls = rest;
        done
    }
}

//! Calls whose answer depends on something that has not happened yet: a record on disk, a program running, a workload gone.
//!
//! One mechanism for all of them: a call waits for a set of conditions; when the last is met it is answered, and when one can no
//! longer be met it is refused.

use byre_plan::WorkloadId;
use byre_protocol::control::{PENDING_REQUESTS, Refused, RefusedCode, Reply};

use crate::event::ChannelId;

/// Calls that wait at once, over all channels: two channels' worth.
pub(crate) const PENDING: usize = PENDING_REQUESTS * 2;

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
}

/// The calls that wait.
#[derive(Debug, Clone, Default)]
pub(crate) struct PendingCalls {
    pub(crate) calls: Vec<Pending>,
}

impl PendingCalls {
    pub(crate) fn is_full(&self) -> bool {
        self.calls.len() >= PENDING
    }

    pub(crate) fn add(&mut self, caller: Caller, awaits: Vec<Await>, reply: Reply) {
        self.calls.push(Pending { caller, awaits, reply });
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

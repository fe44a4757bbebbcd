//! PID 1's own end to a trial that nobody judges: the judge is a child that may fail, and an update must not stay half accepted.

use super::{Supervisor, setup};
use crate::tasks::BLESSED;
use crate::tasks::boot_disk::BootFacts;
use byre_boots::trial::{LIMIT_MS, SETTLE_MS};
use byre_core::Event;
use byre_protocol::control::ShutdownAction;

/// From power on: the judge's own limit, and as long again for what it does then.
const UNJUDGED_MS: u64 = LIMIT_MS.saturating_add(SETTLE_MS).saturating_mul(2);

/// When an unjudged trial ends; `None` on every other boot.
pub(crate) struct Unjudged(Option<u64>);

impl Unjudged {
    /// As the facts of this boot have it.
    pub(crate) fn from_facts() -> Self {
        let on_trial = BootFacts::read().is_ok_and(|facts| facts.on_trial);
        Self(on_trial.then_some(UNJUDGED_MS))
    }

    pub(crate) fn deadline_boot_ms(&self) -> Option<u64> {
        self.0
    }
}

impl Supervisor {
    /// Reboots if the trial's time is over and nobody blessed it: the loader then counts one try less, or takes the old slot.
    pub(super) fn check_trial_deadline(&mut self) {
        if self.unjudged.0.is_none_or(|deadline_boot_ms| setup::now().boot_ms < deadline_boot_ms) {
            return;
        }
        self.unjudged = Unjudged(None);
        if rustix::fs::access(BLESSED, rustix::fs::Access::EXISTS).is_err() {
            self.say("cause: the trial of this release was not judged in time");
            self.queue.push_back(Event::ShutdownAsked(ShutdownAction::Reboot));
        }
    }
}

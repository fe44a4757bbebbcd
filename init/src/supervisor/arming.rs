//! The child that arms an update, and the wait for its end: it is handed an order in sealed memory and leaves a refusal in memory that PID 1
//! keeps open.

use std::os::fd::{AsFd, OwnedFd};

use byre_boots::trial::{CRITICAL, Held};
use byre_core::{Event, Next};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::{Supervisor, setup};
use crate::sys;
use crate::tasks::arm::{Order, REFUSAL_BYTES, What};

/// Longest that it may take. Ended then, it leaves nothing that boots: the commit is its last step.
const ARM_MS: u64 = 270_000;

/// One that is under way.
pub(crate) struct Arming {
    task: u64,
    process: OwnedFd,
    refusal: OwnedFd,
    deadline_boot_ms: u64,
}

impl Arming {
    pub(crate) fn deadline_boot_ms(&self) -> u64 {
        self.deadline_boot_ms
    }
}

impl Supervisor {
    pub(super) fn arm(&mut self, next: Next) {
        match self.begin_arming(next) {
            Ok(arming) => self.arming = Some(arming),
            Err(what) => self.queue.push_back(Event::Armed(Some(what))),
        }
    }

    fn begin_arming(&mut self, next: Next) -> Result<Arming, String> {
        if self.arming.is_some() {
            return Err("the child of an earlier call still works on the boot partition; try again when it has ended"
                .to_owned());
        }
        if self.replacing.is_some() {
            return Err("PID 1 is being replaced; try again when it is".to_owned());
        }
        let (services, workloads) = self.core.held(CRITICAL);
        let held = Held { services, workloads };
        let what = match next {
            Next::Release { statement, allow } => {
                What::Release { statement, downgrade: allow.downgrade, retry: allow.retry }
            }
            Next::Back => What::Back,
            Next::Nothing => What::Nothing,
        };
        let order = Order { what, held };
        let failed = |errno: Errno| format!("the order to arm cannot be handed over: {errno}");
        let text = serde_json::to_vec(&order).map_err(|error| error.to_string())?;
        let order = super::reexec::sealed("byre-order", &text).map_err(failed)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
        let refusal = rustix::fs::memfd_create("byre-refusal", flags).map_err(failed)?;
        let named = vec![("order", order.as_fd()), ("refusal", refusal.as_fd())];
        let (task, process) = self.begin_arm_task(named).ok_or("the child that arms cannot be started")?;
        Ok(Arming { task, process, refusal, deadline_boot_ms: setup::now().boot_ms.saturating_add(ARM_MS) })
    }

    pub(super) fn arming_ended(&mut self, number: u64, ended_well: bool) {
        let Some(arming) = self.arming.take_if(|arming| arming.task == number) else { return };
        let refusal = (!ended_well).then(|| {
            let mut text = [0_u8; REFUSAL_BYTES];
            let length = rustix::io::pread(&arming.refusal, &mut text, 0).unwrap_or(0);
            let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
            if text.is_empty() {
                "the child that arms ended without a word; nothing was committed".to_owned()
            } else {
                text
            }
        });
        self.queue.push_back(Event::Armed(refusal));
    }

    pub(super) fn check_arming_deadline(&mut self) {
        let now_ms = setup::now().boot_ms;
        if let Some(arming) = self.arming.as_ref().filter(|arming| arming.deadline_boot_ms <= now_ms) {
            // The reaper takes its end whenever it comes; asked once more at most, since the deadline moves on.
            let _ = sys::pidfd_send_signal(&arming.process, 9);
            self.say("arming the update takes too long; it is ended");
        }
        if let Some(arming) = self.arming.as_mut().filter(|arming| arming.deadline_boot_ms <= now_ms) {
            arming.deadline_boot_ms = now_ms.saturating_add(ARM_MS);
        }
    }
}

//! The last steps: a child syncs and unmounts; when it is done, or at the deadline whether it is or not, the machine ends.

use byre_protocol::control::ShutdownAction;
use nix::sys::reboot::{RebootMode, reboot};

use super::Supervisor;
use super::setup;

/// How long syncing and unmounting may take: a full page cache of a small machine to a slow disk.
const UNMOUNT_MS: u64 = 30_000;

/// The machine is about to end.
pub(crate) struct Finishing {
    action: ShutdownAction,
    deadline_boot_ms: u64,
}

impl Finishing {
    pub(crate) fn deadline_boot_ms(&self) -> u64 {
        self.deadline_boot_ms
    }
}

impl Supervisor {
    pub(super) fn finish(&mut self, action: ShutdownAction) {
        if self.finishing.is_some() {
            return;
        }
        self.say("all workloads have ended; syncing and unmounting");
        let deadline_boot_ms = setup::now().boot_ms.saturating_add(UNMOUNT_MS);
        self.finishing = Some(Finishing { action, deadline_boot_ms });
        if !self.begin_unmount() {
            self.end_machine(action);
        }
    }

    pub(super) fn unmounted(&mut self, ended_well: bool) {
        if !ended_well {
            self.say("not everything could be unmounted");
        }
        if let Some(finishing) = &self.finishing {
            self.end_machine(finishing.action);
        }
    }

    pub(super) fn check_finish_deadline(&mut self) {
        let now_ms = setup::now().boot_ms;
        let late = self.finishing.as_ref().filter(|finishing| finishing.deadline_boot_ms <= now_ms);
        if let Some(finishing) = late {
            self.say("syncing and unmounting take too long; ending without them");
            self.end_machine(finishing.action);
        }
    }

    fn end_machine(&self, action: ShutdownAction) {
        let mode = match action {
            ShutdownAction::PowerOff => RebootMode::RB_POWER_OFF,
            ShutdownAction::Reboot => RebootMode::RB_AUTOBOOT,
        };
        self.say(match action {
            ShutdownAction::PowerOff => "power off",
            ShutdownAction::Reboot => "reboot",
        });
        let Err(errno) = reboot(mode);
        // The watchdog ends what the kernel refuses to end.
        self.say(&format!("the kernel refuses to end: {errno}"));
    }
}

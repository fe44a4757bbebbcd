//! A replacement of PID 1's program: who asks waits for its end like for anything else, in the table of pending calls, which the new
//! program takes over. So the answer comes from the program that was asked for.

use byre_protocol::control::{RefusedCode, Reply, ShutdownAction};

use crate::action::{Action, Attachment};
use crate::core::Core;
use crate::event::Reexecuted;
use crate::pending::{Await, Caller};
use crate::requests::refused;

impl Core {
    pub(crate) fn reexec_asked(&mut self, caller: Caller) {
        if self.ending.is_some() {
            return self.refuse(caller, refused(RefusedCode::ShuttingDown, "the node is shutting down"));
        }
        if self.pending.is_full() {
            let text = "too many calls are under way to wait for a replacement of PID 1; try again";
            return self.refuse(caller, refused(RefusedCode::Full, text));
        }
        self.answer_when(caller, vec![Await::Reexec], Reply::Done, 0);
        self.actions.push(Action::Reexec);
    }

    pub(crate) fn reexecuted(&mut self, how: Reexecuted) {
        match how {
            Reexecuted::Done { gap_us } => {
                for (caller, _) in self.pending.met(Await::Reexec) {
                    self.answer(caller, Reply::Reexecuted { gap_us }, Attachment::None);
                }
            }
            Reexecuted::Refused(text) => {
                for (caller, reply) in self.pending.failed(Await::Reexec, RefusedCode::WrongState, &text) {
                    self.answer(caller, reply, Attachment::None);
                }
            }
        }
    }

    /// How the machine is about to end, if it is.
    #[must_use]
    pub fn ending(&self) -> Option<ShutdownAction> {
        self.ending.as_ref().map(|ending| ending.action)
    }
}

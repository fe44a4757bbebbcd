//! Arming an update: PID 1 says what holds now and waits for the child that does it. It decides nothing about releases: the child checks
//! the signature and the disk, and its refusal is what the caller gets.

use byre_protocol::control::{RefusedCode, Reply};

use crate::action::{Action, Attachment, Next};
use crate::core::Core;
use crate::pending::{Await, Caller};
use crate::requests::refused;
use crate::workload::Workload;

/// How long arming may take beside an ordinary call: reading a slot twice from a slow disk.
const ARM_MS: u32 = 180_000;

impl Core {
    /// Has a child arm the other slot, or take back what was armed.
    pub(crate) fn arm_asked(&mut self, caller: Caller, next: Next) {
        if self.ending.is_some() {
            return self.refuse(caller, refused(RefusedCode::ShuttingDown, "the node is shutting down"));
        }
        if self.pending.waits_for(Await::Armed) {
            return self.refuse(
                caller,
                refused(RefusedCode::WrongState, "an update is being armed already; wait for its end"),
            );
        }
        if self.pending.is_full() {
            let text = "too many calls are under way to wait for an update to be armed; try again";
            return self.refuse(caller, refused(RefusedCode::Full, text));
        }
        self.answer_when(caller, vec![Await::Armed], Reply::Done, ARM_MS);
        self.actions.push(Action::Arm(next));
    }

    /// The child has ended; with a refusal, nothing was committed.
    pub(crate) fn armed(&mut self, refusal: Option<String>) {
        match refusal {
            None => self.met(Await::Armed),
            Some(text) => {
                for (caller, reply) in self.pending.failed(Await::Armed, RefusedCode::WrongState, &text) {
                    self.answer(caller, reply, Attachment::None);
                }
            }
        }
    }

    /// Names of what is ready now and counts in a trial: all services and jobs of the node; of the containers, those with this label, and
    /// those with a probe of their readiness.
    #[must_use]
    pub fn held(&self, label: (&str, &str)) -> (Vec<String>, Vec<String>) {
        let counts = |workload: &&Workload| {
            let labels = &workload.definition().labels;
            let is_marked = labels.iter().any(|(key, value)| (key.as_str(), value.as_str()) == label);
            workload.is_built_in() || is_marked || workload.definition().readiness.when.probe().is_some()
        };
        let ready: Vec<&Workload> = self.workloads().filter(|workload| workload.is_ready()).filter(counts).collect();
        let names = |built_in: bool| {
            let those = ready.iter().filter(|workload| workload.is_built_in() == built_in);
            those.map(|workload| workload.definition().name.to_string()).collect()
        };
        (names(true), names(false))
    }
}

//! What clients want of workloads: up, down, anew, enabled, disabled, forgiven. Each verb changes what is wanted of one workload, begins
//! the way there, and says what its answer waits for.

use byre_plan::WorkloadId;
use byre_protocol::control::{Refused, RefusedCode};
use byre_protocol::status::Why;

use crate::core::Core;
use crate::groups::Asked;
use crate::pending::Await;
use crate::requests::refused;
use crate::workload::{Actual, Wanted, Workload};

impl Workload {
    /// What comes next has all its tries, and no failure behind it.
    pub(crate) fn begin_anew(&mut self) {
        self.streak = 0;
        self.task = None;
    }
}

impl Core {
    fn asked(&mut self, id: WorkloadId, awaits: Vec<Await>, grace_ms: u32) -> Asked {
        let mut awaits = awaits;
        awaits.extend(self.record_put(id).map(Await::Record));
        Asked { awaits, grace_ms }
    }

    /// Nobody knows how to start what was found alive after a crash.
    fn not_adopted(&self, id: WorkloadId) -> Result<(), Refused> {
        let Some(workload) = self.workloads.get(&id).filter(|workload| workload.adopted) else { return Ok(()) };
        let text =
            format!("{} lost its definition in a crash of PID 1 and can only be stopped", workload.definition.name);
        Err(refused(RefusedCode::WrongState, &text))
    }

    /// The node's own services can be restarted and signalled, not stopped or removed.
    pub(crate) fn not_a_service(&self, id: WorkloadId, verb: &str) -> Result<(), Refused> {
        let Some(workload) = self.workloads.get(&id).filter(|workload| workload.built_in && !workload.adopted) else {
            return Ok(());
        };
        let text =
            format!("{} is part of the system and cannot be {verb}; it can be restarted", workload.definition.name);
        Err(refused(RefusedCode::NotAllowed, &text))
    }

    fn may_start(&self, id: WorkloadId) -> Result<(), Refused> {
        self.not_adopted(id)?;
        if self.ending.is_some() {
            return Err(refused(RefusedCode::ShuttingDown, "the node is shutting down"));
        }
        let Some(workload) = self.workloads.get(&id) else { return Ok(()) };
        let name = &workload.definition.name;
        match (workload.wanted, &workload.actual) {
            (Wanted::Gone, _) | (_, Actual::Removing) => {
                Err(refused(RefusedCode::WrongState, &format!("{name} is being removed")))
            }
            (Wanted::Disabled, _) => {
                let text = format!("{name} is disabled; `byrectl enable {name}` lets it start again");
                Err(refused(RefusedCode::WrongState, &text))
            }
            (Wanted::Up | Wanted::Down, _) => Ok(()),
        }
    }

    pub(crate) fn start_asked(&mut self, id: WorkloadId) -> Result<Asked, Refused> {
        self.not_a_service(id, "started")?;
        self.may_start(id)?;
        let Some(workload) = self.workloads.get_mut(&id) else { return Ok(Asked::default()) };
        match (&workload.wanted, &workload.actual) {
            (Wanted::Up, Actual::Up { .. }) => return Ok(Asked::default()),
            (_, Actual::Stopping { .. } | Actual::Draining { .. }) => workload.start_once_down = true,
            // A job that is done is not ready any more from here on: it is done anew.
            (_, Actual::Backoff { .. } | Actual::Down { .. }) => workload.actual = Actual::Down { why: Why::Created },
            (_, Actual::Starting { .. } | Actual::Up { .. } | Actual::Removing) => {}
        }
        workload.wanted = Wanted::Up;
        if !workload.has_processes() {
            workload.begin_anew();
        }
        self.reconsider();
        Ok(self.asked(id, vec![Await::Running(id)], 0))
    }

    pub(crate) fn stop_asked(&mut self, id: WorkloadId, grace_ms: Option<u32>) -> Result<Asked, Refused> {
        self.not_a_service(id, "stopped")?;
        Ok(self.take_down(id, Wanted::Down, grace_ms))
    }

    /// Wants it down in this way, and begins to stop it.
    fn take_down(&mut self, id: WorkloadId, wanted: Wanted, grace_ms: Option<u32>) -> Asked {
        let Some(workload) = self.workloads.get_mut(&id) else { return Asked::default() };
        workload.start_once_down = false;
        match (workload.wanted, wanted) {
            // What is being removed stays so, what is disabled needs more than a stop to be something else.
            (Wanted::Gone, _) | (Wanted::Disabled, Wanted::Down) => {}
            (Wanted::Up | Wanted::Down | Wanted::Disabled, wanted) => workload.wanted = wanted,
        }
        let grace_ms = grace_ms.unwrap_or(workload.definition.stop.grace_ms);
        let awaits = if workload.has_processes() { vec![Await::Down(id)] } else { Vec::new() };
        self.stop(id, None, grace_ms);
        self.reconsider();
        let asked = self.asked(id, awaits, grace_ms);
        self.give_up_waiting_for_start(id);
        asked
    }

    pub(crate) fn restart_asked(&mut self, id: WorkloadId, grace_ms: Option<u32>) -> Result<Asked, Refused> {
        self.may_start(id)?;
        let Some(workload) = self.workloads.get_mut(&id) else { return Ok(Asked::default()) };
        workload.wanted = Wanted::Up;
        workload.streak = 0;
        let grace_ms = grace_ms.unwrap_or(workload.definition.stop.grace_ms);
        if workload.has_processes() {
            workload.start_once_down = true;
            self.stop(id, None, grace_ms);
        } else {
            workload.begin_anew();
            workload.actual = Actual::Down { why: Why::Created };
            self.reconsider();
        }
        Ok(self.asked(id, vec![Await::Running(id)], grace_ms))
    }

    pub(crate) fn disable_asked(&mut self, id: WorkloadId) -> Result<Asked, Refused> {
        self.not_a_service(id, "disabled")?;
        self.not_adopted(id)?;
        let asked = self.take_down(id, Wanted::Disabled, None);
        let is_down = matches!(self.workloads.get(&id).map(|one| &one.actual), Some(Actual::Down { .. }));
        if is_down {
            self.set_actual(id, Actual::Down { why: Why::Disabled });
        }
        Ok(asked)
    }

    pub(crate) fn enable_asked(&mut self, id: WorkloadId) -> Result<Asked, Refused> {
        self.not_a_service(id, "enabled")?;
        let now = self.now;
        let Some(workload) = self.workloads.get_mut(&id) else { return Ok(Asked::default()) };
        let waits = workload.definition.schedule.is_some();
        match workload.wanted {
            Wanted::Disabled => workload.wanted = if waits { Wanted::Up } else { Wanted::Down },
            Wanted::Down if waits => workload.wanted = Wanted::Up,
            Wanted::Up | Wanted::Down | Wanted::Gone => return Ok(Asked::default()),
        }
        if matches!(workload.actual, Actual::Down { .. }) && !workload.wait_for_its_time(now) {
            workload.actual = Actual::Down { why: Why::Stopped };
        }
        self.reconsider();
        Ok(self.asked(id, Vec::new(), 0))
    }

    pub(crate) fn reset_asked(&mut self, id: WorkloadId) -> Result<Asked, Refused> {
        let Some(workload) = self.workloads.get_mut(&id) else { return Ok(Asked::default()) };
        workload.streak = 0;
        workload.restarts = 0;
        match &workload.actual {
            Actual::Backoff { .. } => {
                workload.begin_anew();
                self.launch_when_possible(id);
            }
            Actual::Down { why: Why::GaveUp(_) | Why::Ended(_) } if workload.wanted != Wanted::Up => {
                self.set_actual(id, Actual::Down { why: Why::Stopped });
            }
            Actual::Down { .. }
            | Actual::Starting { .. }
            | Actual::Up { .. }
            | Actual::Stopping { .. }
            | Actual::Draining { .. }
            | Actual::Removing => {}
        }
        Ok(self.asked(id, Vec::new(), 0))
    }
}

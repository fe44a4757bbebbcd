//! Why a workload is in its state: the chain of causes from it to the oldest one, read off the tables and never stored.
//!
//! Each link says what is so, because of what the next one says. The chain is never empty; it ends where nothing that PID 1 knows is
//! older, and follows what is waited for from one workload to the next.

use byre_plan::{Name, WorkloadId};
use byre_protocol::definition::{Grant, Kind, Role};
use byre_protocol::probe::{Aim, Check};
use byre_protocol::status::{Because, Cause, LINKS, Link, Why};

use crate::core::Core;
use crate::workload::{Actual, Ready, Workload};

/// What the chain goes on with.
enum Next {
    /// Nothing is older.
    End,
    /// Another workload.
    Name(Name),
}

impl Core {
    /// The chain of causes of a workload's state. Empty only if there is no such workload.
    #[must_use]
    pub fn why(&self, id: WorkloadId) -> Vec<Link> {
        let mut chain = Vec::new();
        let Some(mut workload) = self.workloads.get(&id) else { return chain };
        let mut seen = vec![id];
        loop {
            let next = self.explain(workload, &mut chain);
            let Next::Name(name) = next else { break };
            // Of a group, what of it is not ready.
            let member = self.unready(&name).unwrap_or_else(|| name.clone());
            match self.names.get(&member).and_then(|id| self.workloads.get(id)) {
                None => {
                    chain.push(Link { name, because: Because::Missing });
                    break;
                }
                // What waits for itself has no older cause.
                Some(other) if seen.contains(&other.id) || chain.len() >= LINKS => break,
                Some(other) => {
                    seen.push(other.id);
                    workload = other;
                }
            }
        }
        chain.truncate(LINKS);
        chain
    }

    /// Adds what is so of one workload, and says what the cause lies behind.
    fn explain(&self, workload: &Workload, chain: &mut Vec<Link>) -> Next {
        let mut add = |because| chain.push(Link { name: workload.definition.name.clone(), because });
        match &workload.actual {
            Actual::Up { since, ready: Ready::Now, .. } => add(Because::Ready { since: *since }),
            Actual::Up { since, ready: Ready::NotYet, .. } if workload.definition.kind == Kind::Pod => {
                add(Because::Attaching { since: *since });
                return self.unready_service(Role::Network).map_or(Next::End, Next::Name);
            }
            Actual::Up { since, ready: Ready::NotYet | Ready::NoLonger, .. } => {
                let failed = |aim| workload.asking.get(&aim).map_or(0, |asking| asking.failed);
                let aim = if workload.asking.contains_key(&Aim::Startup) { Aim::Startup } else { Aim::Readiness };
                let check = workload.definition.probe(aim).map(|probe| probe.check.clone());
                match (aim, &check) {
                    (Aim::Startup, Some(check)) => {
                        add(Because::StartingUp { since: *since, check: check.clone(), failed: failed(aim) });
                    }
                    (Aim::Startup | Aim::Readiness | Aim::Liveness, _) => {
                        let when = workload.definition.readiness.when.clone();
                        add(Because::NotReady { since: *since, when, failed: failed(aim) });
                    }
                }
                return check.and_then(|check| self.prober(&check)).map_or(Next::End, Next::Name);
            }
            Actual::Starting { since } => add(Because::Starting { since: *since }),
            Actual::Stopping { rung, because, .. } => {
                add(Because::Stopping { rung: *rung });
                if self.ending.is_some() {
                    add(Because::Shutdown);
                } else {
                    because.iter().for_each(|cause| end(workload, cause, &mut add));
                }
            }
            Actual::Draining { cause, .. } => {
                add(Because::Draining);
                end(workload, cause, &mut add);
            }
            Actual::Backoff { until_boot_ms, streak } => {
                add(Because::Backoff { until_boot_ms: *until_boot_ms, streak: *streak });
                tried(workload, &mut add);
                last_end(workload, &mut add);
            }
            Actual::Removing => add(Because::Removing),
            Actual::Down { why: Why::Waiting(other) } => {
                add(Because::Waiting { other: other.clone() });
                return Next::Name(other.clone());
            }
            Actual::Down { why: Why::Created } => add(Because::Created),
            Actual::Down { why: Why::Stopped } => add(Because::Stopped),
            Actual::Down { why: Why::Shutdown } => add(Because::Shutdown),
            Actual::Down { why: Why::Scheduled(due) } => {
                add(Because::Scheduled(*due));
                last_end(workload, &mut add);
            }
            Actual::Down { why: Why::Disabled } => add(Because::Disabled),
            Actual::Down { why: Why::Ended(Cause::Code(0)) } if workload.definition.kind == Kind::Job => {
                add(Because::Done);
            }
            Actual::Down { why: Why::Ended(cause) | Why::GaveUp(cause) } => {
                // What is out of time is not left down by its policy.
                if *cause != Cause::Deadline {
                    add(Because::Policy(workload.definition.restart.policy));
                }
                tried(workload, &mut add);
                end(workload, cause, &mut add);
                // It ran out of time between two tries: what ended the last one is older.
                if *cause == Cause::Deadline && workload.history.back().is_some_and(|run| run.cause != *cause) {
                    last_end(workload, &mut add);
                }
            }
        }
        Next::End
    }

    /// The service that asks this, if it is what is missing.
    fn prober(&self, check: &Check) -> Option<Name> {
        if !check.is_asked_from_outside() {
            return None;
        }
        self.unready_service(Role::Probe)
    }

    /// The service of this role, if it is not ready.
    fn unready_service(&self, role: Role) -> Option<Name> {
        let has_role = |workload: &&Workload| workload.definition.grants.contains(&Grant::Control(role));
        let service = self.workloads.values().find(has_role)?;
        (!service.is_ready()).then(|| service.definition.name.clone())
    }
}

/// How often a job was tried.
fn tried(workload: &Workload, add: &mut impl FnMut(Because)) {
    if let Some(task) = workload.task.filter(|task| workload.definition.kind == Kind::Job && task.tries > 1) {
        add(Because::Tried { times: task.tries });
    }
}

fn last_end(workload: &Workload, add: &mut impl FnMut(Because)) {
    if let Some(run) = workload.history.back() {
        end(workload, &run.cause, add);
    }
}

/// How a run ended, and what lies behind that.
fn end(workload: &Workload, cause: &Cause, add: &mut impl FnMut(Because)) {
    add(Because::Ended(cause.clone()));
    let definition = &workload.definition;
    match cause {
        Cause::OutOfMemory => {
            let limit = definition.launch.resources.memory_max_bytes;
            limit.into_iter().for_each(|bytes| add(Because::MemoryLimit { bytes }));
        }
        Cause::Deadline => add(Because::TimeLimit { ms: definition.deadline_ms }),
        Cause::RunLimit => add(Because::TimeLimit { ms: definition.run_limit_ms }),
        Cause::Code(_)
        | Cause::Signal(_)
        | Cause::StartFailed(_)
        | Cause::NotReady
        | Cause::Dependency(_)
        | Cause::Interrupted
        | Cause::Probe(_) => {}
    }
}

//! What must hold: after every step, when the faults have stopped, and when the machine was told to end.

use byre_core::{Wanted, Workload};
use byre_protocol::control;
use byre_protocol::definition::{Kind, RestartPolicy};
use byre_protocol::status::{Because, Cause, LINKS, State, Why};

use crate::world::World;

/// After every step. Returns what does not hold.
pub(crate) fn after_step(world: &World<'_>) -> Option<String> {
    lives_are_known(world)
        .or_else(|| bounds_hold(world))
        .or_else(|| time_moves(world))
        .or_else(|| is_explained(world))
        .or_else(|| bound_ones_stop(world))
        .or_else(|| tries_are_counted(world))
}

/// No workload is lost: what lives belongs to a workload that PID 1 knows, of the run that it knows.
fn lives_are_known(world: &World<'_>) -> Option<String> {
    for (id, live) in &world.kernel.live {
        let Some(workload) = world.core.workload(*id) else { return Some(format!("{id} lives and is not known")) };
        if workload.run() != live.run {
            return Some(format!("{id}: run {} lives, run {} is known", live.run, workload.run()));
        }
        match workload.state() {
            State::Down { why: Why::Shutdown } => {}
            State::Down { why } => return Some(format!("{id} lives and counts as down: {why:?}")),
            State::Backoff { .. } => return Some(format!("{id} lives and waits for its next start")),
            State::Starting { .. } | State::Up { .. } | State::Stopping { .. } | State::Draining { .. } => {}
        }
    }
    None
}

/// Every table is within its bound.
fn bounds_hold(world: &World<'_>) -> Option<String> {
    world
        .core
        .tables()
        .into_iter()
        .find(|table| table.used > table.bound)
        .map(|table| format!("{} has {} entries, its bound is {}", table.name, table.used, table.bound))
}

/// What was due is done: a deadline that stays in the past would be a wake-up without end.
fn time_moves(world: &World<'_>) -> Option<String> {
    let now = world.now.boot_ms;
    let due = world.core.next_deadline_boot_ms().filter(|at| *at <= now)?;
    Some(format!("it is {now} ms and {due} ms is still due"))
}

/// Whatever a workload's state is, there is a chain of causes, it begins with the workload, and what is not as it is wanted is not
/// explained by its being ready. One workload after each step, in turn.
fn is_explained(world: &World<'_>) -> Option<String> {
    let count = world.core.workloads().count().max(1);
    let workload = world.core.workloads().nth(usize::try_from(world.events).unwrap_or(0) % count)?;
    let chain = world.core.why(workload.id());
    let name = &workload.definition().name;
    let Some(first) = chain.first() else { return Some(format!("nothing says why {name} is {:?}", workload.state())) };
    let is_ready = matches!(workload.state(), State::Up { ready: true, .. });
    let says_ready = matches!(first.because, Because::Ready { .. });
    let ends = chain.last().is_some_and(|last| !matches!(last.because, Because::Waiting { .. }));
    (first.name != *name || is_ready != says_ready || !ends || chain.len() > LINKS)
        .then(|| format!("{name} is {:?}, explained by {chain:?}", workload.state()))
}

/// No job is tried more often than it may be.
fn tries_are_counted(world: &World<'_>) -> Option<String> {
    let jobs = world.core.workloads().filter(|workload| workload.definition().kind == Kind::Job);
    for job in jobs {
        let most = match job.definition().restart.policy {
            RestartPolicy::Never => 1,
            RestartPolicy::OnFailure(0) | RestartPolicy::Always | RestartPolicy::UnlessStopped => continue,
            RestartPolicy::OnFailure(retries) => retries + 1,
        };
        if job.tries() > most {
            return Some(format!("{} is tried {} times, its most is {most}", job.definition().name, job.tries()));
        }
    }
    None
}

/// Nothing runs on without what it is bound to.
fn bound_ones_stop(world: &World<'_>) -> Option<String> {
    if world.ending {
        return None;
    }
    let runs = world.core.workloads().filter(|workload| matches!(workload.state(), State::Up { .. }));
    for workload in runs {
        if let Some(missing) = workload.definition().bound_to().find(|name| !is_ready(world, name.as_str())) {
            return Some(format!("{} runs without {missing}, which it is bound to", workload.definition().name));
        }
    }
    None
}

/// When the faults have stopped and everything has settled.
pub(crate) fn at_rest(world: &World<'_>) -> Option<String> {
    if world.kernel.owes() {
        return Some("the kernel still owes something".to_owned());
    }
    let calls: Vec<u64> = world.peers.open.values().flat_map(|peer| peer.calls.iter().copied()).collect();
    if !calls.is_empty() {
        return Some(format!("calls without an answer: {calls:?}"));
    }
    if let Some(table) = world.core.tables().into_iter().find(|table| table.empty_at_rest && table.used > 0) {
        return Some(format!("{} still has {} entries", table.name, table.used));
    }
    is_as_wanted(world).or_else(|| own_pods_follow(world)).or_else(|| disk_is_as_wanted(world))
}

/// A container's own pod is wanted as the container is, and is not there without it; one that is up has its addresses.
fn own_pods_follow(world: &World<'_>) -> Option<String> {
    for pod in world.core.workloads().filter(|workload| workload.definition().kind == Kind::Pod) {
        let definition = pod.definition();
        let asks = definition.network.as_ref().is_some_and(|network| !network.networks.is_empty());
        if asks && pod.addresses().is_empty() && matches!(pod.state(), State::Up { ready: true, .. }) {
            return Some(format!("pod {} is ready without an address", definition.name));
        }
        if !definition.remove_on_exit {
            continue;
        }
        let mut users =
            world.core.workloads().filter(|workload| workload.definition().pod.as_ref() == Some(&definition.name));
        let Some(user) = users.next() else { return Some(format!("pod {} is nobody's", definition.name)) };
        // A pod cannot be disabled by way of its container: down is what it is then.
        let follows =
            user.wanted() == pod.wanted() || (user.wanted(), pod.wanted()) == (Wanted::Disabled, Wanted::Down);
        if !follows || users.next().is_some() {
            return Some(format!(
                "pod {} is wanted {:?}, its container {:?}",
                definition.name,
                pod.wanted(),
                user.wanted()
            ));
        }
    }
    None
}

fn is_as_wanted(world: &World<'_>) -> Option<String> {
    for workload in world.core.workloads() {
        let (name, state) = (&workload.definition().name, workload.state());
        let as_wanted = match (workload.wanted(), &state) {
            (Wanted::Up, State::Up { ready, .. }) => *ready,
            (Wanted::Up, State::Down { why: Why::Waiting(other) }) => !is_ready(world, other.as_str()),
            (Wanted::Up, State::Down { why: Why::Scheduled(_) }) => workload.definition().schedule.is_some(),
            (Wanted::Disabled, State::Down { why }) => *why == Why::Disabled,
            (Wanted::Down, State::Down { .. }) => true,
            (
                Wanted::Up | Wanted::Down | Wanted::Disabled,
                State::Down { .. }
                | State::Starting { .. }
                | State::Up { .. }
                | State::Stopping { .. }
                | State::Draining { .. }
                | State::Backoff { .. },
            )
            | (Wanted::Gone, _) => false,
        };
        if !as_wanted {
            return Some(format!("{name} is wanted {:?} and is {state:?}", workload.wanted()));
        }
    }
    None
}

fn is_ready(world: &World<'_>, name: &str) -> bool {
    let is_of_name = |workload: &&Workload| workload.definition().name.as_str() == name;
    if let Some(one) = world.core.workloads().find(is_of_name) {
        return is_workload_ready(one);
    }
    let is_member =
        |workload: &&Workload| workload.definition().group.as_ref().is_some_and(|group| group.as_str() == name);
    let mut members = world.core.workloads().filter(is_member).peekable();
    members.peek().is_some() && members.all(is_workload_ready)
}

fn is_workload_ready(workload: &Workload) -> bool {
    match (workload.definition().kind, workload.state()) {
        (_, State::Up { ready, .. }) => ready && workload.definition().kind != Kind::Job,
        (Kind::Job, State::Down { why: Why::Ended(cause) }) => cause == Cause::Code(0),
        (Kind::Job, State::Down { why: Why::Scheduled(_) }) => {
            workload.last_run().is_some_and(|run| run.cause == Cause::Code(0))
        }
        (
            _,
            State::Down { .. }
            | State::Starting { .. }
            | State::Stopping { .. }
            | State::Draining { .. }
            | State::Backoff { .. },
        ) => false,
    }
}

fn disk_is_as_wanted(world: &World<'_>) -> Option<String> {
    for workload in world.core.workloads().filter(|workload| !workload.is_built_in()) {
        let id = workload.id();
        let on_disk = world.peers.disk.get(&id).map(|record| record.wanted);
        let wanted = Some(match workload.wanted() {
            Wanted::Up => control::Wanted::Up,
            Wanted::Down | Wanted::Gone => control::Wanted::Down,
            Wanted::Disabled => control::Wanted::Disabled,
        });
        if on_disk != wanted && !world.peers.unwritten.contains(&id) {
            return Some(format!("{id} is wanted {wanted:?}, on disk: {on_disk:?}"));
        }
    }
    let forgotten = world.peers.disk.keys().find(|id| world.core.workload(**id).is_none());
    forgotten.filter(|id| !world.peers.unwritten.contains(id)).map(|id| format!("{id} is on disk and not known"))
}

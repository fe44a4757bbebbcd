//! One history: what happens in which order, drawn from one number, and how it ends.

use byre_core::{Action, Core, Event, ExitStatus};
use byre_plan::Process;
use byre_protocol::control::{Request, ShutdownAction, Target};
use byre_protocol::definition::Role;
use byre_protocol::handoff::Writer;
use byre_protocol::probe::Aim;

use crate::chance::Chance;
use crate::definitions::{Definitions, GROUPS, NAMES, name};
use crate::invariants;
use crate::world::{Keep, World};

/// Steps of a history, at least and at most: enough for a workload's whole life and its end, few enough for many histories.
const STEPS: std::ops::Range<usize> = 20..160;
/// Rounds after which a node that should come to rest never will: ten times what the longest history took.
const ROUNDS: usize = 4_000;

/// Attempts of probes that are played once a node has come to rest.
const REPEATED: usize = 8;

/// A crash before one step of so many: one or two in a history.
const CRASHES: usize = 64;

/// What came of a history.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ended {
    /// Events that PID 1 decided about.
    pub events: u64,
    /// Whether it ended with a shutdown.
    pub shut_down: bool,
}

/// What did not hold.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The number that the history was made from.
    pub seed: u64,
    /// What did not hold.
    pub what: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "history {}: {}", self.seed, self.what)
    }
}

/// When PID 1 is replaced by another that has only its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replaced {
    Never,
    Before(usize),
    AtEveryStep,
    /// By one that follows a crash, before one step of every few.
    AfterCrashes,
}

thread_local! {
    static DEFINITIONS: Definitions = Definitions::new();
}

/// Plays the history of this number.
///
/// # Errors
/// The first thing that did not hold.
pub fn run(seed: u64) -> Result<Ended, Failure> {
    play(seed, Replaced::Never, Keep::Nothing).0
}

/// Plays the history twice, the second time with PID 1 replaced through its records: before one step that the number chooses, or, for
/// every fourth number, before each. Both must decide the same.
///
/// # Errors
/// The first thing that did not hold, or the first decision that differs.
pub fn run_replaced(seed: u64) -> Result<Ended, Failure> {
    let replaced = if seed.is_multiple_of(4) {
        Replaced::AtEveryStep
    } else {
        Replaced::Before(Chance::new(!seed).below(STEPS.end))
    };
    let (ended, whole) = play(seed, Replaced::Never, Keep::Decisions);
    let ended = ended?;
    let (again, other) = play(seed, replaced, Keep::Decisions);
    again?;
    let (whole, other) = (whole.decided, other.decided);
    if whole == other {
        return Ok(ended);
    }
    let at = whole.iter().zip(&other).position(|(one, other)| one != other).unwrap_or(whole.len().min(other.len()));
    let what = format!("{replaced:?}: decision {at} differs: {:?} became {:?}", whole.get(at), other.get(at));
    Err(Failure { seed, what })
}

/// PID 1's records at the end of the history.
#[must_use]
pub fn records(seed: u64) -> Vec<u8> {
    play(seed, Replaced::Never, Keep::Records).1.records
}

/// Plays the history as a supervisor that keeps a trace, and then the trace, which must decide the same.
///
/// # Errors
/// The first thing that did not hold, or the first step that decides something else.
pub fn run_traced(seed: u64) -> Result<Ended, Failure> {
    let (ended, kept) = play(seed, Replaced::Never, Keep::Trace);
    let ended = ended?;
    for part in kept.trace.iter().flat_map(byre_core::Trace::parts) {
        if let Err(error) = byre_core::replay(part) {
            return Err(Failure { seed, what: format!("its trace does not play again: {error}") });
        }
    }
    Ok(ended)
}

/// Plays the history with crashes of PID 1 in it. It need not decide the same, but everything must hold as ever.
///
/// # Errors
/// The first thing that did not hold.
pub fn run_crashed(seed: u64) -> Result<Ended, Failure> {
    let ended = play(seed, Replaced::AfterCrashes, Keep::Nothing).0;
    ended.map_err(|failure| Failure { what: format!("with crashes of PID 1: {}", failure.what), ..failure })
}

/// Every event and decision of the history in words, and how it came out.
pub fn story(seed: u64) -> (Vec<String>, Result<Ended, Failure>) {
    let (ended, kept) = play(seed, Replaced::Never, Keep::Story);
    (kept.story, ended)
}

/// What was kept of a history.
struct Kept {
    decided: Vec<Action>,
    story: Vec<String>,
    records: Vec<u8>,
    trace: Option<byre_core::Trace>,
}

/// What PID 1 hands to the one that follows it.
fn handed_over(core: &Core) -> Result<Vec<u8>, String> {
    let mut writer = Writer::new();
    core.hand_over(&mut writer).map_err(|error| error.to_string())?;
    Ok(writer.finish())
}

fn replace(world: &mut World<'_>) {
    let successor =
        handed_over(&world.core).and_then(|records| Core::decode(&records).map_err(|error| error.to_string()));
    match successor {
        Ok(core) => world.core = core,
        Err(error) => world.fail(format!("PID 1 could not be replaced: {error}")),
    }
}

fn play(seed: u64, replaced: Replaced, keep: Keep) -> (Result<Ended, Failure>, Kept) {
    DEFINITIONS.with(|definitions| {
        let mut chance = Chance::new(seed);
        let steps = STEPS.start + chance.below(STEPS.len());
        let shut_down = chance.one_in(4);
        let faults = !chance.one_in(4);
        let boots_quietly = !chance.one_in(4);
        let mut world = World::booted(definitions, chance, keep);
        if boots_quietly {
            settle(&mut world);
            if world.chance.one_in(2) {
                populate(&mut world);
            }
        }
        let mut crashes = Chance::new(!seed);
        for step in 0..steps {
            if replaced == Replaced::AtEveryStep || replaced == Replaced::Before(step) {
                replace(&mut world);
            }
            if replaced == Replaced::AfterCrashes && crashes.one_in(CRASHES) {
                world.crash();
            }
            happen(&mut world, faults);
            if world.broken.is_some() {
                break;
            }
        }
        let records = if keep == Keep::Records { handed_over(&world.core).unwrap_or_default() } else { Vec::new() };
        if world.broken.is_none() {
            if shut_down { end(&mut world, faults) } else { settle(&mut world) }
        }
        let kept = Kept {
            decided: world.decided.unwrap_or_default(),
            story: world.story.unwrap_or_default(),
            records,
            trace: world.trace,
        };
        let ended = match world.broken {
            Some(what) => Err(Failure { seed, what }),
            None => Ok(Ended { events: world.events, shut_down }),
        };
        (ended, kept)
    })
}

/// Containers run before anything goes wrong.
fn populate(world: &mut World<'_>) {
    for text in NAMES {
        let definition = Box::new(world.container(text));
        world.call(Request::Create { definition, start: true });
    }
    settle(world);
}

/// One thing happens.
fn happen(world: &mut World<'_>, faults: bool) {
    match world.chance.below(48) {
        0..=17 => drop(world.kernel_advances(faults)),
        18..=21 => drop(world.service_starts()),
        22..=25 => {
            let most = 1 + world.chance.below(6);
            world.write_records(most, faults);
        }
        26..=29 => becomes_ready(world, faults),
        30..=36 => client(world),
        37..=38 => crash(world),
        39..=41 => time_passes(world, faults),
        42..=43 => drop(world.close_dead_channels()),
        44..=45 => drop(world.tell_late()),
        46 if faults => world.tell_again(),
        46 => {}
        // A power cut every few histories.
        _ => {
            if faults && world.chance.one_in(24) {
                world.power_cut();
            }
        }
    }
}

fn client(world: &mut World<'_>) {
    let text = world.chance.pick(&NAMES).copied().unwrap_or("one");
    let group = world.chance.one_in(6).then(|| world.chance.pick(&GROUPS).copied()).flatten();
    let target = Target::Name(name(group.unwrap_or(text)));
    let grace_ms = if world.chance.one_in(2) { Some(50) } else { None };
    let request = match world.chance.below(20) {
        0..=4 => {
            let definition = Box::new(world.container(text));
            Request::Create { definition, start: !world.chance.one_in(4) }
        }
        5..=6 => Request::Start { target },
        7..=8 => Request::Stop { target, grace_ms },
        9 => Request::Restart { target, grace_ms },
        10 => Request::Restart { target: Target::Name(name("clock")), grace_ms },
        11 => Request::Kill { target, signal: if world.chance.one_in(2) { 9 } else { 15 } },
        12..=13 => Request::Remove { target, force: world.chance.one_in(2) },
        16 => Request::Enable { target },
        17 => Request::Disable { target },
        18..=19 => Request::Reset { target },
        14 => Request::Exec { target, process: Box::new(process(world)) },
        _ => Request::Inspect { target },
    };
    world.call(request);
}

fn process(world: &mut World<'_>) -> Process {
    let text = world.chance.pick(&NAMES).copied().unwrap_or("one");
    let mut process = world.container(text).launch.process;
    process.args = vec!["/bin/sh".to_owned()];
    process
}

fn crash(world: &mut World<'_>) {
    let running = world.kernel.running();
    let Some(id) = world.chance.pick(&running).copied() else { return };
    let (status, out_of_memory) = match world.chance.below(6) {
        0 => (ExitStatus::Signal(11), false),
        1 => (ExitStatus::Signal(9), true),
        2..=3 => (ExitStatus::Code(1), false),
        _ => (ExitStatus::Code(0), false),
    };
    world.kernel.crash(id, status, out_of_memory);
}

/// Something that runs says that it is ready, or is heard of, or the probe service comes to a verdict.
fn becomes_ready(world: &mut World<'_>, faults: bool) {
    if world.chance.one_in(3) && world.attach(faults) {
        return;
    }
    if world.chance.one_in(4) {
        return world.watchdogs();
    }
    let unsaid = world.unsaid();
    if let Some((id, run)) = world.chance.pick(&unsaid).copied()
        && world.chance.one_in(2)
    {
        return world.tell(Event::Notified { id, run });
    }
    let asked: Vec<_> =
        world.peers.serving(Role::Probe).map_or(Vec::new(), |(_, peer)| peer.probes.keys().copied().collect());
    if let Some(key) = world.chance.pick(&asked).copied() {
        let fails = faults && world.chance.one_in(if key.1 == Aim::Readiness { 2 } else { 3 });
        world.judge(key, !fails);
    }
}

fn time_passes(world: &mut World<'_>, faults: bool) {
    let ms = world.chance.pick(&[1, 200, 700, 11_000, 70_000]).copied().unwrap_or(1);
    world.now.boot_ms += ms;
    world.now.wall_ms += ms;
    if faults && world.chance.one_in(4) {
        // The wall clock is set, forwards or back.
        world.now.wall_ms =
            world.now.wall_ms.saturating_add(86_400_000).saturating_sub(172_800_000 * u64::from(ms == 1));
    }
    // A tick may be lost: the next event has to do.
    if !(faults && world.chance.one_in(4)) {
        world.tell(Event::Tick);
    }
}

/// Everything that can go on does: no faults any more, and time passes only when nothing else can happen.
fn settle(world: &mut World<'_>) {
    if come_to_rest(world) {
        rest(world);
    }
}

/// Whether it did.
fn come_to_rest(world: &mut World<'_>) -> bool {
    for _ in 0..ROUNDS {
        for live in world.kernel.live.values_mut() {
            live.stuck = false;
        }
        if world.broken.is_some() {
            return false;
        }
        if world.tell_late()
            || world.close_dead_channels()
            || world.service_starts()
            || world.write_records(usize::MAX, false)
            || world.kernel_advances(false)
            || world.attach(false)
            || all_become_ready(world)
            || jobs_end(world)
        {
            continue;
        }
        let Some(at) = world.core.next_change_boot_ms() else {
            return true;
        };
        pass_until(world, at);
    }
    world.fail(format!("does not come to rest within {ROUNDS} rounds"));
    false
}

fn pass_until(world: &mut World<'_>, at_boot_ms: u64) {
    let passed = at_boot_ms.saturating_sub(world.now.boot_ms);
    world.now.boot_ms += passed;
    world.now.wall_ms += passed;
    world.watchdogs();
    world.tell(Event::Tick);
}

/// Nothing is to be done but what is done again and again, and that changes nothing.
fn rest(world: &mut World<'_>) {
    world.broken = invariants::at_rest(world);
    for _ in 0..REPEATED {
        let Some(at) = world.core.next_deadline_boot_ms().filter(|_| world.broken.is_none()) else { return };
        pass_until(world, at);
        come_to_rest(world);
    }
    if world.broken.is_none() {
        world.broken = invariants::at_rest(world).map(|what| format!("after it was at rest: {what}"));
    }
}

fn all_become_ready(world: &mut World<'_>) -> bool {
    let unsaid = world.unsaid();
    for (id, run) in &unsaid {
        world.tell(Event::Notified { id: *id, run: *run });
    }
    let asked: Vec<_> = world.peers.serving(Role::Probe).map_or(Vec::new(), |(_, peer)| {
        let untold = peer.probes.iter().filter(|(_, asked)| asked.told != Some(true));
        untold.map(|(key, _)| *key).collect()
    });
    for key in &asked {
        world.judge(*key, true);
    }
    !unsaid.is_empty() || !asked.is_empty()
}

fn jobs_end(world: &mut World<'_>) -> bool {
    let running = world.kernel.running();
    let job = running.into_iter().find(|id| {
        let definition = world.core.workload(*id).map(byre_core::Workload::definition);
        definition.is_some_and(|definition| definition.kind == byre_protocol::definition::Kind::Job)
    });
    if let Some(id) = job {
        world.kernel.crash(id, ExitStatus::Code(0), false);
    }
    job.is_some()
}

/// The machine is told to end and ends, even if the kernel owes something for ever.
fn end(world: &mut World<'_>, faults: bool) {
    world.tell(Event::ShutdownAsked(ShutdownAction::PowerOff));
    for _ in 0..80 {
        world.kernel_advances(faults);
    }
    // More than the longest shutdown.
    for _ in 0..4 {
        world.now.boot_ms += 60_000;
        world.tell(Event::Tick);
    }
    if !world.finished {
        world.fail("the machine does not end".to_owned());
    }
}

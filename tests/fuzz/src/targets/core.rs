//! PID 1's decisions under requests of services that were taken over, and the state that one PID 1 hands to the next.

use byre_core::{Action, Boot, CallContext, ChannelId, Core, Event, ExitStatus, LaunchOutcome, Subject};
use byre_plan::WorkloadId;
use byre_protocol::control::{Call, Request};
use byre_protocol::definition::Role;
use byre_protocol::frame;
use byre_protocol::handoff::{self, Writer};
use byre_protocol::status::Moment;

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "core",
    about: "any requests to PID 1's core by any role, and handed-over states: what PID 1 answers can be encoded, a state that is taken is handed on as the \
            same bytes",
    sources: &["init/core/src", "init/protocol/src"],
    longest: 16 * 1024,
    run,
    seeds,
};

/// Requests of one history.
const CALLS: usize = 24;
/// Channels by number, as a role's first byte picks them.
const ROLES: [Role; 8] =
    [Role::Api, Role::State, Role::Log, Role::Probe, Role::Observer, Role::Update, Role::Network, Role::Trial];

fn run(input: &[u8]) -> Verdict {
    let Some((decoder, input)) = super::pick(input, 2) else { return Verdict::Refused };
    match decoder {
        0 => state(input),
        _ => history(input),
    }
}

/// Records behind a right header: its length is the one thing that a fuzzer would get wrong each time.
fn state(records: &[u8]) -> Verdict {
    let empty = Writer::new().finish();
    let head = &empty[..empty.len() - 8];
    let length = u64::try_from(records.len()).expect("inputs are short").to_le_bytes();
    let Ok(mut core) = Core::decode(&[head, &length, records].concat()) else { return Verdict::Refused };
    handed_on(&core);
    for boot_ms in [0, 1, u64::MAX] {
        answers(&core.step(Event::Tick, Moment { boot_ms, wall_ms: boot_ms }));
        let _ = core.next_deadline_boot_ms();
    }
    handed_on(&core);
    Verdict::Accepted
}

fn handed_on(core: &Core) -> Vec<u8> {
    let written = |core: &Core| {
        let mut writer = Writer::new();
        core.hand_over(&mut writer).expect("a core of a few workloads is handed over");
        writer.finish()
    };
    let bytes = written(core);
    let taken = Core::decode(&bytes).expect("what a core writes a core reads");
    assert!(written(&taken) == bytes, "handing over twice changes the state");
    bytes
}

/// Everything that is sent can be sent.
fn answers(actions: &[Action]) {
    for action in actions {
        if let Action::Send { message, .. } = action {
            assert!(frame::encode(message.as_ref()).is_ok(), "an answer that cannot be encoded");
        }
    }
}

fn booted() -> Core {
    let mut core = Core::new();
    let boot = Boot { policy: super::launch::strict(), services: Vec::new() };
    core.step(Event::Boot(Box::new(boot)), Moment::default());
    for (number, role) in (1..).zip(ROLES) {
        core.step(Event::ChannelOpened { channel: ChannelId(number), role }, Moment::default());
    }
    core
}

/// Each piece is a byte that says what happens and, for a request, the message.
fn history(input: &[u8]) -> Verdict {
    let mut core = booted();
    let mut now = Moment { boot_ms: 1, wall_ms: 1_700_000_000_000 };
    let mut launched: Option<(WorkloadId, u64)> = None;
    let mut accepted = false;
    for (fresh, piece) in (7..).zip(super::pieces(input, CALLS)) {
        let Some((what, rest)) = piece.split_first() else { continue };
        let event = match (what % 13, launched) {
            (number @ 0..7, _) => {
                let Ok(call) = frame::decode::<Call>(rest) else { continue };
                accepted = true;
                let channel = ChannelId(u64::from(number) + 1);
                Event::Called {
                    context: CallContext { channel, descriptors: rest.len() % 4, fresh },
                    call: Box::new(call),
                }
            }
            (7, Some((id, run))) => {
                let outcome = LaunchOutcome::Running { pid: 77, terminal: rest.is_empty() };
                Event::Launched { subject: Subject::Workload { id, run }, outcome }
            }
            (8, Some((id, run))) => {
                let status = ExitStatus::Code(rest.first().copied().unwrap_or(0));
                Event::Exited { subject: Subject::Workload { id, run }, status, oom_kills: 0 }
            }
            (9, Some((id, run))) => Event::Emptied { id, run },
            (10, Some((id, _))) => Event::FilesRemoved { id, removed: rest.is_empty() },
            (11, Some((id, run))) => {
                Event::Launched { subject: Subject::Workload { id, run }, outcome: LaunchOutcome::Made }
            }
            (7..13, _) => {
                now.boot_ms = now.boot_ms.saturating_add(u64::from(rest.first().copied().unwrap_or(1)) * 1000);
                Event::Tick
            }
            (13.., _) => unreachable!("a remainder of thirteen"),
        };
        let actions = core.step(event, now);
        answers(&actions);
        for action in &actions {
            if let Action::Launch { id, run } = action {
                launched = Some((*id, *run));
            }
        }
    }
    handed_on(&core);
    Verdict::of(accepted)
}

fn seeds() -> Vec<Vec<u8>> {
    let name = byre_protocol::control::Target::Name(super::control::definition().name);
    let mut definition = super::control::definition();
    definition.needs.clear();
    let call = |what: u8, request: Request| {
        let call = frame::encode(&Call { sequence: 1, request }).expect("an example is short");
        [&[what][..], &call].concat()
    };
    let pieces = [
        call(0, Request::Create { definition: Box::new(definition), start: true }),
        call(1, Request::Recorded { record: 1 }),
        vec![7],
        call(0, Request::Inspect { target: name.clone() }),
        call(0, Request::List { after: None }),
        vec![8, 3],
        vec![9],
        call(0, Request::Remove { target: name, force: true }),
    ];
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let mut core = booted();
    for piece in &pieces[..1] {
        let call = frame::decode(&piece[1..]).expect("it was encoded");
        let context = CallContext { channel: ChannelId(1), descriptors: 0, fresh: 7 };
        core.step(Event::Called { context, call: Box::new(call) }, Moment::default());
    }
    let header = Writer::new().finish().len();
    let state = handed_on(&core).split_off(header);
    debug_assert!(state.len() < handoff::RECORD_BYTES);
    vec![super::seed(0, state), super::seed(1, super::joined(&pieces))]
}

//! The client against servers that behave, vanish, refuse and lie; and against any order of events.

use proptest::prelude::*;

use super::super::wire::{Route, Times};
use super::*;

const NEIGHBOUR: MacAddress = [2, 0, 0, 0, 0, 1];

fn lease(end_s: u32) -> Lease {
    Lease {
        address: Ipv4Addr::new(10, 0, 0, 7),
        prefix: 24,
        server: Ipv4Addr::new(10, 0, 0, 1),
        routes: vec![Route {
            destination: Ipv4Addr::UNSPECIFIED,
            prefix: 0,
            gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
        }],
        dns: Vec::new(),
        search: Vec::new(),
        mtu: None,
        times: Some(Times { renew_s: end_s / 2, rebind_s: end_s / 8 * 7, end_s }),
    }
}

fn sent(actions: &[Action]) -> Option<(Request, Destination)> {
    actions.iter().find_map(|action| match action {
        Action::Send(request, to) => Some((*request, *to)),
        Action::Apply(_) | Action::Withdraw(_) => None,
    })
}

fn answer(machine: &mut Machine, request: Request, kind: ReplyKind, now: Millis) -> Vec<Action> {
    machine.step(Event::Reply(Reply { transaction: request.transaction, kind }, NEIGHBOUR), now)
}

/// A client that holds a lease of 1000 s since time 0.
fn bound() -> Machine {
    let mut machine = Machine::new(7, None);
    let (discover, _) = sent(&machine.step(Event::LinkUp, 0)).expect("a discover");
    assert_eq!(discover.kind, RequestKind::Discover);
    let (select, _) = sent(&answer(&mut machine, discover, ReplyKind::Offer(lease(1000)), 0)).expect("a request");
    assert!(matches!(select.kind, RequestKind::Select { .. }));
    let actions = answer(&mut machine, select, ReplyKind::Ack(lease(1000)), 0);
    assert!(matches!(actions.as_slice(), [Action::Apply(_)]));
    machine
}

#[test]
fn a_lease_is_renewed_with_its_server_and_then_with_anyone() {
    let mut machine = bound();
    assert_eq!(machine.deadline(), Some(500_000));
    let (_, to) = sent(&machine.step(Event::Timer, 500_000)).expect("a renewal");
    assert!(matches!(to, Destination::Unicast { neighbour: NEIGHBOUR, .. }));
    let (request, to) = sent(&machine.step(Event::Timer, 875_000)).expect("a rebinding");
    assert!(matches!(to, Destination::BroadcastFrom(_)));
    let mut other = lease(1000);
    other.server = Ipv4Addr::new(10, 0, 0, 2);
    let actions = answer(&mut machine, request, ReplyKind::Ack(other), 876_000);
    assert!(matches!(actions.as_slice(), [Action::Apply(_)]));
    assert_eq!(machine.deadline(), Some(875_000 + 500_000), "times count from the request, not from the answer");
}

#[test]
fn a_lease_that_nobody_extends_is_given_up_at_its_end() {
    let mut machine = bound();
    let mut now = 0;
    let mut messages = 0;
    while machine.held().is_some() {
        now = machine.deadline().expect("a lease has an end");
        messages += machine.step(Event::Timer, now).iter().filter(|action| matches!(action, Action::Send(..))).count();
    }
    assert_eq!(now, 1_000_000);
    assert!(messages < 20, "{messages} messages for one lost server");
}

#[test]
fn a_refusal_takes_the_address_away_and_repeated_ones_slow_down() {
    let mut machine = bound();
    let (request, _) = sent(&machine.step(Event::Timer, 500_000)).expect("a renewal");
    let actions = answer(&mut machine, request, ReplyKind::Nak(lease(1).server), 500_000);
    assert!(matches!(actions.as_slice(), [Action::Withdraw(_), Action::Send(..)]));
    let mut now = 500_000;
    let mut last = actions;
    for round in 0..12 {
        let discover = loop {
            if let Some((request, _)) = sent(&last) {
                break request;
            }
            now = machine.deadline().expect("it goes on");
            last = machine.step(Event::Timer, now);
        };
        let (select, _) = sent(&answer(&mut machine, discover, ReplyKind::Offer(lease(1000)), now)).expect("a request");
        last = answer(&mut machine, select, ReplyKind::Nak(lease(1).server), now);
        assert!(round == 0 || now > 500_000);
    }
    assert!(now > 500_000 + 100_000, "twelve refusals in {} ms", now - 500_000);
}

#[test]
fn a_cut_link_keeps_the_lease_and_asks_about_it_when_it_is_back() {
    let mut machine = bound();
    assert!(machine.step(Event::LinkDown, 10_000).is_empty());
    assert!(machine.held().is_some());
    let (request, to) = sent(&machine.step(Event::LinkUp, 20_000)).expect("a question");
    assert_eq!(request.kind, RequestKind::Reboot { address: lease(1).address });
    assert_eq!(to, Destination::Broadcast);
    let mut again = machine.clone();
    assert!(matches!(answer(&mut again, request, ReplyKind::Ack(lease(1000)), 20_001).as_slice(), [Action::Apply(_)]));
    // In another network another server refuses.
    let actions = answer(&mut machine, request, ReplyKind::Nak(Ipv4Addr::new(192, 168, 0, 1)), 20_001);
    assert!(matches!(actions.as_slice(), [Action::Withdraw(_), Action::Send(..)]));
}

#[test]
fn a_lease_ends_while_the_link_is_down() {
    let mut machine = bound();
    machine.step(Event::LinkDown, 10_000);
    assert_eq!(machine.deadline(), Some(1_000_000));
    assert!(matches!(machine.step(Event::Timer, 1_000_000).as_slice(), [Action::Withdraw(_)]));
    assert_eq!(machine.deadline(), None);
}

#[test]
fn answers_of_other_exchanges_and_servers_change_nothing() {
    let mut machine = Machine::new(9, None);
    let (discover, _) = sent(&machine.step(Event::LinkUp, 0)).expect("a discover");
    let wrong = Request { transaction: discover.transaction.wrapping_add(1), ..discover };
    assert!(answer(&mut machine, wrong, ReplyKind::Offer(lease(1000)), 1).is_empty());
    assert!(answer(&mut machine, discover, ReplyKind::Ack(lease(1000)), 1).is_empty());
    let (select, _) = sent(&answer(&mut machine, discover, ReplyKind::Offer(lease(1000)), 1)).expect("a request");
    let mut other = lease(1000);
    other.server = Ipv4Addr::new(10, 0, 0, 66);
    assert!(answer(&mut machine, select, ReplyKind::Ack(other.clone()), 2).is_empty());
    assert!(answer(&mut machine, select, ReplyKind::Nak(other.server), 2).is_empty());
    other = lease(1000);
    other.address = Ipv4Addr::new(10, 0, 0, 99);
    assert!(answer(&mut machine, select, ReplyKind::Ack(other), 2).is_empty());
}

#[test]
fn a_lease_for_ever_needs_no_timer() {
    let mut machine = Machine::new(9, None);
    let (discover, _) = sent(&machine.step(Event::LinkUp, 0)).expect("a discover");
    let forever = Lease { times: None, ..lease(1000) };
    let (select, _) = sent(&answer(&mut machine, discover, ReplyKind::Offer(forever.clone()), 0)).expect("a request");
    answer(&mut machine, select, ReplyKind::Ack(forever), 0);
    assert_eq!(machine.deadline(), None);
}

/// What the world does next.
#[derive(Debug, Clone)]
enum Happens {
    Up,
    Down,
    /// The deadline comes, this much too early or late.
    Deadline(i32),
    /// A server answers the last request.
    Answer(u8, u32),
    /// Somebody answers something else.
    Noise(u8, u32),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        1 => Just(Happens::Up),
        1 => Just(Happens::Down),
        4 => (-10i32..5000).prop_map(Happens::Deadline),
        4 => (0u8..3, 60u32..100_000).prop_map(|(kind, end)| Happens::Answer(kind, end)),
        1 => (0u8..3, any::<u32>()).prop_map(|(kind, transaction)| Happens::Noise(kind, transaction)),
    ]
}

fn kind_of(kind: u8, end_s: u32) -> ReplyKind {
    match kind {
        0 => ReplyKind::Offer(lease(end_s)),
        1 => ReplyKind::Ack(lease(end_s)),
        _ => ReplyKind::Nak(lease(end_s).server),
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_link_has_the_lease_that_the_machine_holds(
        seed in any::<u64>(), world in proptest::collection::vec(happens(), 0..80)) {
        let mut machine = Machine::new(seed, None);
        let mut now: Millis = 1000;
        let mut last: Option<Request> = None;
        let mut applied: Option<Held> = None;
        for happened in world {
            let event = match happened {
                Happens::Up => Event::LinkUp,
                Happens::Down => Event::LinkDown,
                Happens::Deadline(off) => {
                    if let Some(deadline) = machine.deadline() {
                        now = now.max(deadline.saturating_add_signed(i64::from(off)));
                    }
                    Event::Timer
                }
                Happens::Answer(kind, end) => {
                    let transaction = last.map_or(0, |request| request.transaction);
                    Event::Reply(Reply { transaction, kind: kind_of(kind, end) }, NEIGHBOUR)
                }
                Happens::Noise(kind, transaction) => Event::Reply(Reply { transaction, kind: kind_of(kind, 100) }, NEIGHBOUR),
            };
            let timer = event == Event::Timer;
            let actions = machine.step(event, now);
            prop_assert!(actions.len() <= ACTIONS);
            prop_assert!(actions.iter().filter(|action| matches!(action, Action::Send(..))).count() <= 1);
            for action in actions {
                match action {
                    Action::Send(request, _) => last = Some(request),
                    Action::Apply(held) => applied = Some(held),
                    Action::Withdraw(lease) => {
                        prop_assert_eq!(applied.take().map(|held| held.lease.address), Some(lease.address));
                    }
                }
            }
            prop_assert_eq!(applied.as_ref(), machine.held());
            if timer {
                prop_assert!(machine.deadline().is_none_or(|deadline| deadline > now), "a timer that is due again at once");
                prop_assert!(applied.as_ref().is_none_or(|held| !held.ended(now)), "an address beyond its lease");
            }
        }
    }
}

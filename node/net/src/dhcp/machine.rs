//! The DHCPv4 client of one link, as a state machine without clock, socket or randomness of its own.
//!
//! ```text
//!             link up                 offer                  ack
//!   Off ────────────────▶ Selecting ─────────▶ Requesting ─────────▶ Bound ◀──────────┐
//!    │ (a lease is held)      ▲  ▲                 │ nak, silence      │ T1           │ ack
//!    └──────▶ Rebooting ──────┘  └─────────────────┘                   ▼              │
//!               │  ack / silence ─▶ Bound / Rebinding              Renewing ──────────┤
//!               │  nak ─▶ Selecting                                    │ T2           │
//!               └─                                                     ▼              │
//!    any state that holds a lease: its end, nak ─▶ Selecting       Rebinding ─────────┘
//! ```
//! Happy path: link up, DISCOVER, offer, REQUEST, ack, apply; at T1 REQUEST to the server, ack, apply again.
//!
//! When the link goes down the lease stays: a cable that is out for a second must not end connections. When it comes back, the address
//! is asked about first (RFC 2131, section 3.2), because the cable may be in another network now.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::wire::{Lease, MacAddress, Reply, ReplyKind, Request, RequestKind};

/// Milliseconds of CLOCK_BOOTTIME.
pub type Millis = u64;

/// First wait for an answer; it doubles with each attempt. RFC 2131 says 4 s, made for the networks of its time.
const FIRST_WAIT_MS: Millis = 1000;
/// RFC 2131, section 4.1.
const LONGEST_WAIT_MS: Millis = 64_000;
/// Requests for one offer, before another offer is looked for.
const REQUEST_ATTEMPTS: u32 = 4;
/// Questions about an address held before, before it is assumed that nobody answers here.
const REBOOT_ATTEMPTS: u32 = 3;
/// RFC 2131, section 4.4.5: the least wait between extensions; for short leases an eighth of them.
const EXTEND_WAIT_MS: Millis = 60_000;
const EXTEND_WAIT_LEAST_MS: Millis = 5000;
/// No step does more than withdraw, send and apply.
pub const ACTIONS: usize = 3;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The link can carry packets.
    LinkUp,
    /// It cannot any more.
    LinkDown,
    /// The time of [`Machine::deadline`] has come; harmless when it has not.
    Timer,
    /// An answer, from this neighbour.
    Reply(Reply, MacAddress),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this.
    Send(Request, Destination),
    /// Give the link this lease, which ends at this time.
    Apply(Held),
    /// Take the lease from the link: it has ended or is wrong here.
    Withdraw(Lease),
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Everybody on the link, from no address.
    Broadcast,
    /// Everybody on the link, from this address.
    BroadcastFrom(Ipv4Addr),
    /// The server, by the neighbour that its last answer came from.
    Unicast {
        /// From which address.
        from: Ipv4Addr,
        /// To which.
        server: Ipv4Addr,
        /// Through which neighbour.
        neighbour: MacAddress,
    },
}

/// A lease that was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// What was granted.
    pub lease: Lease,
    /// When the request for it was sent; its times count from there.
    pub since_ms: Millis,
    /// The neighbour that the answer came from.
    pub neighbour: MacAddress,
}

impl Held {
    fn at(&self, seconds: u32) -> Millis {
        self.since_ms.saturating_add(u64::from(seconds) * 1000)
    }

    /// When the address may no longer be used; `None` is never.
    pub fn end_ms(&self) -> Option<Millis> {
        self.lease.times.map(|times| self.at(times.end_s))
    }

    fn renew_ms(&self) -> Option<Millis> {
        self.lease.times.map(|times| self.at(times.renew_s))
    }

    fn rebind_ms(&self) -> Option<Millis> {
        self.lease.times.map(|times| self.at(times.rebind_s))
    }

    fn ended(&self, now: Millis) -> bool {
        self.end_ms().is_some_and(|end| end <= now)
    }
}

/// An exchange under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exchange {
    transaction: u32,
    /// When it began.
    begun_ms: Millis,
    /// When its last message was sent.
    sent_ms: Millis,
    /// Messages sent.
    attempts: u32,
    /// When the next is due.
    next_ms: Millis,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Off { held: Option<Held> },
    Selecting { exchange: Exchange },
    Requesting { exchange: Exchange, offer: Lease },
    Rebooting { exchange: Exchange, held: Held },
    Bound { held: Held },
    Renewing { exchange: Exchange, held: Held },
    Rebinding { exchange: Exchange, held: Held },
}

/// The client of one link.
#[derive(Debug, Clone)]
pub struct Machine {
    state: State,
    random: u64,
    /// Refusals since the last lease: each makes the next round wait longer, so that two servers at odds cause no storm.
    refusals: u32,
}

impl Machine {
    /// A client on a link that is down. `seed` makes its transaction numbers and jitter; `held` is a lease from before a restart.
    pub fn new(seed: u64, held: Option<Held>) -> Self {
        Self { state: State::Off { held }, random: seed | 1, refusals: 0 }
    }

    /// The lease that the link has.
    pub fn held(&self) -> Option<&Held> {
        match &self.state {
            State::Off { held } => held.as_ref(),
            State::Selecting { .. } | State::Requesting { .. } => None,
            State::Rebooting { held, .. }
            | State::Bound { held }
            | State::Renewing { held, .. }
            | State::Rebinding { held, .. } => Some(held),
        }
    }

    /// Whether answers are of interest now.
    pub fn listening(&self) -> bool {
        !matches!(self.state, State::Off { .. })
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Millis> {
        match &self.state {
            State::Off { held } => held.as_ref().and_then(Held::end_ms),
            State::Selecting { exchange } | State::Requesting { exchange, .. } => Some(exchange.next_ms),
            State::Bound { held } => held.renew_ms(),
            State::Renewing { exchange, held } => earliest(exchange.next_ms, held.rebind_ms()),
            State::Rebooting { exchange, held } | State::Rebinding { exchange, held } => {
                earliest(exchange.next_ms, held.end_ms())
            }
        }
    }

    /// Decides what an event means; at most [`ACTIONS`] actions, in their order.
    pub fn step(&mut self, event: Event, now: Millis) -> Vec<Action> {
        let state = std::mem::replace(&mut self.state, State::Off { held: None });
        let (state, actions) = match event {
            Event::LinkUp => self.link_up(state, now),
            Event::LinkDown => (Self::link_down(state), Vec::new()),
            Event::Timer => self.timer(state, now),
            Event::Reply(reply, neighbour) => self.reply(state, reply, neighbour, now),
        };
        self.state = state;
        debug_assert!(actions.len() <= ACTIONS);
        actions
    }

    fn link_up(&mut self, state: State, now: Millis) -> (State, Vec<Action>) {
        let held = match state {
            State::Off { held } => held,
            // It was up already.
            State::Selecting { .. }
            | State::Requesting { .. }
            | State::Rebooting { .. }
            | State::Bound { .. }
            | State::Renewing { .. }
            | State::Rebinding { .. } => return (state, Vec::new()),
        };
        match held {
            Some(held) if held.ended(now) => self.start_over(Some(held.lease), now, 0),
            Some(held) => {
                let exchange = self.begin(now, 0);
                let request = exchange.request(RequestKind::Reboot { address: held.lease.address }, now);
                (State::Rebooting { exchange, held }, vec![Action::Send(request, Destination::Broadcast)])
            }
            None => self.start_over(None, now, 0),
        }
    }

    fn link_down(state: State) -> State {
        match state {
            State::Off { held } => State::Off { held },
            State::Selecting { .. } | State::Requesting { .. } => State::Off { held: None },
            State::Rebooting { held, .. }
            | State::Bound { held }
            | State::Renewing { held, .. }
            | State::Rebinding { held, .. } => State::Off { held: Some(held) },
        }
    }

    fn timer(&mut self, state: State, now: Millis) -> (State, Vec<Action>) {
        match state {
            State::Off { held: Some(held) } if held.ended(now) => {
                (State::Off { held: None }, vec![Action::Withdraw(held.lease)])
            }
            State::Rebooting { held, .. }
            | State::Renewing { held, .. }
            | State::Rebinding { held, .. }
            | State::Bound { held }
                if held.ended(now) =>
            {
                self.start_over(Some(held.lease), now, 0)
            }
            State::Bound { held } if held.renew_ms().is_some_and(|due| due <= now) => {
                let mut exchange = self.begin(now, 0);
                exchange.next_ms = now.saturating_add(extend_wait(&held, held.rebind_ms(), now));
                self.extend(exchange, held, now)
            }
            State::Renewing { exchange, held } if held.rebind_ms().is_some_and(|due| due <= now) => {
                self.rebind(exchange, held, now)
            }
            State::Renewing { exchange, held } if exchange.next_ms <= now => {
                let wait = extend_wait(&held, held.rebind_ms(), now);
                self.extend(exchange.again(now, wait), held, now)
            }
            State::Rebinding { exchange, held } if exchange.next_ms <= now => self.rebind(exchange, held, now),
            State::Rebooting { exchange, held } if exchange.next_ms <= now => self.reboot_again(exchange, held, now),
            State::Selecting { exchange } if exchange.next_ms <= now => {
                let exchange = exchange.again(now, self.wait(exchange.attempts));
                let request = exchange.request(RequestKind::Discover, now);
                (State::Selecting { exchange }, vec![Action::Send(request, Destination::Broadcast)])
            }
            State::Requesting { exchange, offer } if exchange.next_ms <= now => {
                if exchange.attempts >= REQUEST_ATTEMPTS {
                    return self.start_over(None, now, 0);
                }
                let exchange = exchange.again(now, self.wait(exchange.attempts));
                (State::Requesting { exchange, offer: offer.clone() }, vec![select(&exchange, &offer, now)])
            }
            // Nothing is due yet.
            State::Off { .. }
            | State::Selecting { .. }
            | State::Requesting { .. }
            | State::Rebooting { .. }
            | State::Bound { .. }
            | State::Renewing { .. }
            | State::Rebinding { .. } => (state, Vec::new()),
        }
    }

    fn reboot_again(&mut self, exchange: Exchange, held: Held, now: Millis) -> (State, Vec<Action>) {
        if exchange.attempts >= REBOOT_ATTEMPTS {
            // RFC 2131, section 3.2: the address may be used until its lease ends; any server may extend it.
            return self.rebind(exchange, held, now);
        }
        let exchange = exchange.again(now, self.wait(exchange.attempts));
        let request = exchange.request(RequestKind::Reboot { address: held.lease.address }, now);
        (State::Rebooting { exchange, held }, vec![Action::Send(request, Destination::Broadcast)])
    }

    fn extend(&mut self, exchange: Exchange, held: Held, now: Millis) -> (State, Vec<Action>) {
        let address = held.lease.address;
        let request = exchange.request(RequestKind::Extend { address }, now);
        let to = Destination::Unicast { from: address, server: held.lease.server, neighbour: held.neighbour };
        (State::Renewing { exchange, held }, vec![Action::Send(request, to)])
    }

    fn rebind(&mut self, exchange: Exchange, held: Held, now: Millis) -> (State, Vec<Action>) {
        let exchange = exchange.again(now, extend_wait(&held, held.end_ms(), now));
        let address = held.lease.address;
        let request = exchange.request(RequestKind::Extend { address }, now);
        (State::Rebinding { exchange, held }, vec![Action::Send(request, Destination::BroadcastFrom(address))])
    }

    fn reply(&mut self, state: State, reply: Reply, neighbour: MacAddress, now: Millis) -> (State, Vec<Action>) {
        let Reply { transaction, kind } = reply;
        match (state, kind) {
            (State::Selecting { exchange }, ReplyKind::Offer(offer)) if exchange.transaction == transaction => {
                // The same transaction: RFC 2131, table 1, keeps it for the request that follows an offer.
                let mut exchange = Exchange { attempts: 0, ..exchange }.again(now, 0);
                exchange.next_ms = now.saturating_add(self.wait(0));
                let action = select(&exchange, &offer, now);
                (State::Requesting { exchange, offer }, vec![action])
            }
            (State::Requesting { exchange, offer }, ReplyKind::Ack(lease))
                if exchange.transaction == transaction
                    && lease.server == offer.server
                    && lease.address == offer.address =>
            {
                self.bind(Held { lease, since_ms: exchange.sent_ms, neighbour }, None)
            }
            (State::Requesting { exchange, offer }, ReplyKind::Nak(server))
                if exchange.transaction == transaction && server == offer.server =>
            {
                self.refused(None, now)
            }
            (State::Renewing { exchange, held }, ReplyKind::Ack(lease))
                if exchange.transaction == transaction
                    && lease.server == held.lease.server
                    && lease.address == held.lease.address =>
            {
                self.bind(Held { lease, since_ms: exchange.sent_ms, neighbour }, Some(held))
            }
            (State::Renewing { exchange, held }, ReplyKind::Nak(server))
                if exchange.transaction == transaction && server == held.lease.server =>
            {
                self.refused(Some(held), now)
            }
            (State::Rebooting { exchange, held } | State::Rebinding { exchange, held }, ReplyKind::Ack(lease))
                if exchange.transaction == transaction && lease.address == held.lease.address =>
            {
                self.bind(Held { lease, since_ms: exchange.sent_ms, neighbour }, Some(held))
            }
            (State::Rebooting { exchange, held } | State::Rebinding { exchange, held }, ReplyKind::Nak(_))
                if exchange.transaction == transaction =>
            {
                self.refused(Some(held), now)
            }
            // Late, doubled, of another exchange, or of a server that was not asked.
            (state, ReplyKind::Offer(_) | ReplyKind::Ack(_) | ReplyKind::Nak(_)) => (state, Vec::new()),
        }
    }

    fn bind(&mut self, held: Held, before: Option<Held>) -> (State, Vec<Action>) {
        self.refusals = 0;
        let mut actions = Vec::new();
        // The same address in another network is another address to the kernel.
        if let Some(before) = before.filter(|before| before.lease.prefix != held.lease.prefix) {
            actions.push(Action::Withdraw(before.lease));
        }
        actions.push(Action::Apply(held.clone()));
        (State::Bound { held }, actions)
    }

    fn refused(&mut self, held: Option<Held>, now: Millis) -> (State, Vec<Action>) {
        let delay = match self.refusals {
            // The first refusal is an ordinary thing: the host has moved, or the server has forgotten.
            0 => 0,
            more => self.wait(more),
        };
        self.refusals = self.refusals.saturating_add(1);
        self.start_over(held.map(|held| held.lease), now, delay)
    }

    /// Looks for a server from the beginning, at once or after a delay.
    fn start_over(&mut self, lost: Option<Lease>, now: Millis, delay: Millis) -> (State, Vec<Action>) {
        let mut actions: Vec<Action> = lost.map(Action::Withdraw).into_iter().collect();
        let exchange = self.begin(now, delay);
        if delay == 0 {
            actions.push(Action::Send(exchange.request(RequestKind::Discover, now), Destination::Broadcast));
        }
        (State::Selecting { exchange }, actions)
    }

    /// An exchange whose first message is sent now, or after the delay.
    fn begin(&mut self, now: Millis, delay: Millis) -> Exchange {
        let transaction = (self.next_random() >> 32) as u32;
        let (attempts, wait) = if delay == 0 { (1, self.wait(0)) } else { (0, delay) };
        Exchange { transaction, begun_ms: now, sent_ms: now, attempts, next_ms: now.saturating_add(wait) }
    }

    /// The wait after an attempt: doubling, with a quarter of jitter either way (a power cut starts a whole row of machines at once).
    fn wait(&mut self, attempts: u32) -> Millis {
        let base = FIRST_WAIT_MS.checked_shl(attempts.min(10)).unwrap_or(LONGEST_WAIT_MS).min(LONGEST_WAIT_MS);
        base - base / 4 + self.next_random() % (base / 2)
    }

    /// xorshift64*: transaction numbers and jitter need to differ between machines, not to be secret from the link that sees them.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

impl Exchange {
    fn again(self, now: Millis, wait: Millis) -> Self {
        Self { sent_ms: now, attempts: self.attempts.saturating_add(1), next_ms: now.saturating_add(wait), ..self }
    }

    fn request(&self, kind: RequestKind, now: Millis) -> Request {
        let seconds = u16::try_from(now.saturating_sub(self.begun_ms) / 1000).unwrap_or(u16::MAX);
        Request { transaction: self.transaction, seconds, kind }
    }
}

fn select(exchange: &Exchange, offer: &Lease, now: Millis) -> Action {
    let kind = RequestKind::Select { server: offer.server, address: offer.address };
    Action::Send(exchange.request(kind, now), Destination::Broadcast)
}

/// Half of what is left until the next stage, but not too often.
fn extend_wait(held: &Held, until: Option<Millis>, now: Millis) -> Millis {
    let lease_ms = held.lease.times.map_or(Millis::MAX, |times| u64::from(times.end_s) * 1000);
    let least = (lease_ms / 8).clamp(EXTEND_WAIT_LEAST_MS, EXTEND_WAIT_MS);
    (until.unwrap_or(Millis::MAX).saturating_sub(now) / 2).max(least)
}

fn earliest(a: Millis, b: Option<Millis>) -> Option<Millis> {
    Some(b.map_or(a, |b| a.min(b)))
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

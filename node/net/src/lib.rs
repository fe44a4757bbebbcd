//! `byred net`: brings the node's links up and keeps their addresses, routes and name servers as the configuration wants them.
//!
//! It reads what anybody on the link may send (DHCP), so it has its own uid, CAP_NET_ADMIN and CAP_NET_RAW and nothing else, and a
//! seccomp profile before the first packet. It decides by pure state machines ([`dhcp::machine`]); `service` carries out. It never
//! polls: without events and deadlines it sleeps.

pub mod dhcp;
mod netlink;
mod service;
mod socket;
mod state;
mod wanted;

pub use service::{Options, ServiceError, serve};
pub use state::{LinkState, NetState};

use dhcp::frame::{self, Checksum};
use dhcp::machine::{ACTIONS, Event, Machine};
use dhcp::wire::{self, LEASE_MAXIMUM_S, LEASE_MINIMUM_S, ReplyKind};

/// What `byred net` does; returns when it is asked to end.
///
/// # Errors
/// As [`serve`], and when the sandbox cannot be entered.
pub fn run() -> Result<(), ServiceError> {
    let notifier = byre_sandbox::Notifier::from_environment()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        prepare();
        byre_sandbox::seal(&byre_sandbox::profiles::NET)?;
        let ready = move || Ok(notifier.ready()?);
        let stop = async move {
            end.recv().await;
        };
        serve(Options::default(), ready, stop).await
    })
}

/// To be called before the process seals itself: the clock of the system-call library looks for the kernel's fast path at its first
/// use, by a call (PR_GET_AUXV) that nothing needs afterwards.
pub fn prepare() {
    service::now_ms();
}

/// A fuzzer's way in: whatever a packet holds, what is believed of it is usable, and the client goes on. Gives whether it was believed.
pub fn fuzz_dhcp(data: &[u8]) -> bool {
    const MAC: wire::MacAddress = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let payload = frame::unwrap(data, Checksum::Present).unwrap_or(data);
    let Ok(reply) = wire::parse(payload, MAC) else { return false };
    match &reply.kind {
        ReplyKind::Offer(lease) | ReplyKind::Ack(lease) => check(lease),
        ReplyKind::Nak(server) => assert!(byre_config::is_unicast_ipv4(*server)),
    }
    let mut machine = Machine::new(reply.transaction.into(), None);
    for event in [Event::LinkUp, Event::Reply(reply.clone(), MAC), Event::Timer, Event::LinkDown, Event::LinkUp] {
        assert!(machine.step(event, 1000).len() <= ACTIONS);
    }
    true
}

fn check(lease: &wire::Lease) {
    assert!(byre_config::is_unicast_ipv4(lease.address) && (1..=32).contains(&lease.prefix));
    assert!(lease.server != lease.address);
    assert!(lease.dns.iter().all(|server| byre_config::is_unicast_ipv4(*server)));
    assert!(lease.mtu.is_none_or(|mtu| mtu >= 576));
    assert!(lease.search.iter().all(|domain| byre_config::Domain::try_from(domain.clone()).is_ok()));
    if let Some(times) = lease.times {
        assert!((LEASE_MINIMUM_S..=LEASE_MAXIMUM_S).contains(&times.end_s));
        assert!(times.renew_s < times.rebind_s && times.rebind_s < times.end_s);
    }
    for route in &lease.routes {
        assert!(
            route.prefix <= 32
                && route
                    .gateway
                    .is_none_or(|gateway| byre_config::is_unicast_ipv4(gateway) && gateway != lease.address)
        );
    }
}

#[cfg(test)]
mod hostile;

//! The program that is the initramfs's `/init`, PID 1, and PID 1's own short tasks: one binary, so one thing to verify.
//!
//! This file only picks the role. It must not do work of its own: what fails here leaves nobody to report it.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

mod early;

use nix::sys::signal::{SigSet, Signal};

fn main() {
    let first = std::env::args_os().next().unwrap_or_default();
    if std::process::id() != 1 {
        eprintln!("init: this program is PID 1 of a Byre node and does nothing elsewhere");
    } else if first == "/init" {
        early::run();
    } else {
        wait_for_power_off();
    }
}

/// PID 1 without a supervisor: says that the root is reached, and ends on Ctrl-Alt-Del or a power signal.
fn wait_for_power_off() {
    let slot = std::env::var("BYRE_SLOT").unwrap_or_default();
    let _ = std::fs::write("/dev/kmsg", format!("<5>byre: init: PID 1 runs from the verified root, slot {slot}\n"));
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
    let mut wanted = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGPWR] {
        wanted.add(signal);
    }
    let _ = wanted.thread_block();
    let _ = wanted.wait();
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
}

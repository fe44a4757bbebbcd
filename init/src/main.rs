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

mod console;
mod crash;
mod early;
mod flight;
mod index;
mod supervisor;
mod sys;
mod tasks;

use std::process::ExitCode;

/// This program in the verified root: what PID 1 is, and what follows it.
const PROGRAM: &str = "/usr/bin/init";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match (std::process::id(), words.as_slice()) {
        (1, ["/init", ..]) => early::run(),
        (1, [_, "resume", number]) => match supervisor::resume(number) {
            Ok(never) => match never {},
            Err(error) => crash(&error.to_string()),
        },
        (1, [_, "rescue", number]) => match supervisor::rescue(number) {
            Ok(never) => match never {},
            Err(error) => crash(&error.to_string()),
        },
        (1, _) => match supervisor::run() {
            Ok(never) => match never {},
            Err(error) => ended(&error.to_string()),
        },
        (_, [_, "task", name, rest @ ..]) => {
            let rest: Vec<String> = rest.iter().map(|word| (*word).to_owned()).collect();
            ExitCode::from(tasks::run(name, &rest))
        }
        (_, [program, ..]) if program.ends_with("modprobe") => {
            ExitCode::from(tasks::modprobe(arguments.get(1..).unwrap_or_default()))
        }
        (_, _) => {
            eprintln!("init: this program is PID 1 of a Byre node and does nothing elsewhere");
            ExitCode::FAILURE
        }
    }
}

/// The kernel panics when PID 1 ends, reboots after `panic=` seconds, and the early stage counts it.
fn ended(why: &str) -> ExitCode {
    console::say(&format!("PID 1 cannot run: {why}"));
    ExitCode::FAILURE
}

/// What went before left everything open: it is rescued like a crash, and what cannot be rescued ends in the kernel's panic.
fn crash(why: &str) -> ! {
    console::say(&format!("PID 1 cannot take over: {why}"));
    std::process::abort()
}

//! A share of the histories of `cargo xtask simulate`, and every one that ever failed.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use byre_core::Core;
use byre_protocol::handoff::Writer;

/// Histories of each test run: a few seconds of an unoptimised build.
const SHARE: u64 = 1_000;

#[test]
fn a_share_of_the_histories_holds() {
    for seed in 0..SHARE {
        if let Err(failure) = byre_simulation::run(seed) {
            panic!("{failure}");
        }
    }
}

#[test]
fn a_replacement_at_any_moment_changes_nothing() {
    for seed in 0..SHARE / 10 {
        if let Err(failure) = byre_simulation::run_replaced(seed) {
            panic!("{failure}");
        }
    }
}

#[test]
fn a_trace_plays_again() {
    for seed in 0..SHARE / 5 {
        if let Err(failure) = byre_simulation::run_traced(seed) {
            panic!("{failure}");
        }
    }
}

#[test]
fn crashes_of_pid1_lose_nothing() {
    for seed in 0..SHARE {
        if let Err(failure) = byre_simulation::run_crashed(seed) {
            panic!("{failure}");
        }
    }
}

#[test]
fn damaged_records_are_refused_or_are_records() {
    for seed in 0..SHARE / 60 {
        let whole = byre_simulation::records(seed);
        for at in (usize::try_from(seed).unwrap() % 7..whole.len()).step_by(211) {
            let mut damaged = whole.clone();
            damaged[at] ^= u8::try_from(seed % 255 + 1).unwrap();
            // What is taken in spite of the damage can be handed on.
            if let Ok(core) = Core::decode(&damaged) {
                let mut writer = Writer::new();
                core.hand_over(&mut writer).unwrap();
                assert!(Core::decode(&writer.finish()).is_ok(), "history {seed}, byte {at}");
            }
        }
    }
}

#[test]
fn histories_that_failed_once_hold() {
    let seeds = include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    for seed in seeds.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()) {
        if let Err(failure) = byre_simulation::run(seed).and_then(|_| byre_simulation::run_crashed(seed)) {
            panic!("{failure}");
        }
    }
}

//! `byre-simulate`: plays many histories on all processors and prints one line of JSON; `cargo xtask simulate` makes a report of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use byre_simulation::Failure;
use clap::Parser;

/// Failures that are told; a broken rule breaks thousands of histories.
const FAILURES: usize = 20;
/// Every how many-th history is played a second time with PID 1 replaced on the way.
const CUT_EVERY: u64 = 8;
/// Every how many-th history, beside those, is played with crashes of PID 1.
const CRASH_EVERY: u64 = 4;

/// Plays histories of PID 1's decisions and checks what must hold.
#[derive(Parser)]
struct Args {
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    histories: u64,
    /// The number of the first one; the others follow it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tell every event and decision of the first one instead.
    #[arg(long)]
    story: bool,
}

#[derive(Default)]
struct Totals {
    events: AtomicU64,
    shutdowns: AtomicU64,
    cuts: AtomicU64,
    crashes: AtomicU64,
    failed: AtomicU64,
    failures: Mutex<Vec<Failure>>,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    if args.story {
        let (lines, ended) = byre_simulation::story(args.seed);
        lines.iter().for_each(|line| println!("{line}"));
        return ended.map_or_else(
            |failure| {
                println!("{failure}");
                std::process::ExitCode::FAILURE
            },
            |_| std::process::ExitCode::SUCCESS,
        );
    }
    let (next, totals) = (AtomicU64::new(0), Totals::default());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= args.histories {
                        return;
                    }
                    let way = Way::of(number);
                    play(args.seed.wrapping_add(number), way, &totals);
                }
            });
        }
    });
    let mut failures = totals.failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    failures.sort_by_key(|failure| failure.seed);
    for failure in &failures {
        eprintln!("{failure}");
    }
    let failed = totals.failed.into_inner();
    let summary = serde_json::json!({
        "histories": args.histories,
        "failures": failed,
        "events": totals.events.into_inner(),
        "shutdowns": totals.shutdowns.into_inner(),
        "cuts": totals.cuts.into_inner(),
        "crashes": totals.crashes.into_inner(),
        "seeds": failures.iter().map(|failure| failure.seed).collect::<Vec<_>>(),
    });
    println!("{summary}");
    if failed == 0 { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE }
}

/// How a history is played.
#[derive(Clone, Copy)]
enum Way {
    Whole,
    Cut,
    Crashed,
}

impl Way {
    fn of(number: u64) -> Self {
        if number.is_multiple_of(CUT_EVERY) {
            Self::Cut
        } else if number.is_multiple_of(CRASH_EVERY) {
            Self::Crashed
        } else {
            Self::Whole
        }
    }
}

fn play(seed: u64, way: Way, totals: &Totals) {
    let played = match way {
        Way::Whole => byre_simulation::run(seed),
        Way::Cut => {
            totals.cuts.fetch_add(1, Ordering::Relaxed);
            byre_simulation::run_replaced(seed)
        }
        Way::Crashed => {
            totals.crashes.fetch_add(1, Ordering::Relaxed);
            byre_simulation::run_crashed(seed)
        }
    };
    match played {
        Ok(ended) => {
            totals.events.fetch_add(ended.events, Ordering::Relaxed);
            totals.shutdowns.fetch_add(u64::from(ended.shut_down), Ordering::Relaxed);
        }
        Err(failure) => {
            totals.failed.fetch_add(1, Ordering::Relaxed);
            let mut failures = totals.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if failures.len() < FAILURES {
                failures.push(failure);
            }
        }
    }
}

//! Starts real processes on this machine. Needs root and a cgroup2 mount, so it runs with `--ignored`; says what is missing when skipped.
//!
//! Its own main and no threads: the process that calls `start` must have one thread only.

mod native {
    //! The tests, by what they start.
    pub(crate) mod bench;
    pub(crate) mod containers;
    pub(crate) mod faults;
    pub(crate) mod pods;
    pub(crate) mod services;
}

use std::process::ExitCode;

use native::bench::{Bench, Test};

fn main() -> ExitCode {
    if std::env::args().next().is_some_and(|name| name == "helper-probe") {
        let name = nix::unistd::gethostname().unwrap_or_default();
        println!("helper inside {}", name.to_string_lossy());
        return ExitCode::SUCCESS;
    }
    let all: Vec<Test> =
        [native::services::ALL, native::containers::ALL, native::pods::ALL, native::faults::ALL].concat();
    // As libtest's tests that are marked `#[ignore = "needs root"]`.
    if !std::env::args().any(|argument| argument == "--ignored" || argument == "--include-ignored") {
        return skip(all.len(), "needs root: run with `-- --ignored`");
    }
    let bench = match Bench::new() {
        Ok(bench) => bench,
        Err(missing) => return skip(all.len(), &missing),
    };
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let (mut passed, mut failed) = (0_usize, 0_usize);
    for (name, test) in all {
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        // panic = "abort" in every profile: a failed test ends its own process, so each runs in a fork of this one.
        match bench.run_forked(|| test(&bench)) {
            true => {
                println!("test {name} ... ok");
                passed = passed.saturating_add(1);
            }
            false => {
                println!("test {name} ... FAILED");
                failed = failed.saturating_add(1);
            }
        }
    }
    // As libtest says it, for whoever adds up results.
    let outcome = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {outcome}. {passed} passed; {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn skip(count: usize, reason: &str) -> ExitCode {
    println!("skipped: {reason}");
    println!("test result: ok. 0 passed; 0 failed; {count} ignored");
    ExitCode::SUCCESS
}

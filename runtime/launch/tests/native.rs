//! Starts real processes on this machine. Needs root and a cgroup2 mount; says what is missing when it is skipped.
//!
//! Its own main and no threads: the process that calls `start` must have one thread only.

mod native {
    //! The tests, by what they start.
    pub(crate) mod bench;
    pub(crate) mod containers;
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
    let bench = match Bench::new() {
        Ok(bench) => bench,
        Err(missing) => {
            println!("skipped: {missing}");
            return ExitCode::SUCCESS;
        }
    };
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let mut failed = 0_usize;
    let all: Vec<Test> = [native::services::ALL, native::containers::ALL].concat();
    for (name, test) in all {
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        // panic = "abort" in every profile: a failed test ends its own process, so each runs in a fork of this one.
        match bench.run_forked(|| test(&bench)) {
            true => println!("test {name} ... ok"),
            false => {
                println!("test {name} ... FAILED");
                failed = failed.saturating_add(1);
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! The program behind `cargo xtask fuzz`: names the targets, writes their seeds, and with the feature `engine` fuzzes one of them.
//!
//! ```text
//! byre-fuzz list                         one JSON object per line
//! byre-fuzz seeds TARGET DIRECTORY       writes the seeds as files
//! byre-fuzz fuzz TARGET [ARGUMENT...]    libFuzzer's arguments: options, corpora, or files to try
//! ```

use std::path::Path;
use std::process::ExitCode;

use byre_fuzz::{TARGETS, Target, target};

#[cfg(feature = "engine")]
mod engine;

/// A process that libFuzzer starts to merge corpora has libFuzzer's arguments only; its target stands in the environment.
const TARGET_VARIABLE: &str = "BYRE_FUZZ_TARGET";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["list"] => {
            list();
            Ok(())
        }
        ["seeds", name, directory] => known(name).and_then(|target| seeds(target, Path::new(directory))),
        ["fuzz", name, rest @ ..] => known(name).and_then(|target| fuzz(target, rest)),
        [first, ..] if first.starts_with('-') => std::env::var(TARGET_VARIABLE)
            .map_err(|_| format!("{TARGET_VARIABLE} does not say which target this is for"))
            .and_then(|name| known(&name))
            .and_then(|target| fuzz(target, &words)),
        _ => Err("usage: byre-fuzz list | seeds TARGET DIRECTORY | fuzz TARGET [ARGUMENT...]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
    }
}

fn known(name: &str) -> Result<&'static Target, String> {
    target(name).ok_or_else(|| format!("there is no target {name:?}: `byre-fuzz list` names them"))
}

fn list() {
    for target in TARGETS {
        let line = serde_json::json!({
            "name": target.name, "about": target.about, "sources": target.sources, "longest": target.longest,
        });
        println!("{line}");
    }
}

fn seeds(target: &Target, directory: &Path) -> Result<(), String> {
    for (number, seed) in (target.seeds)().iter().enumerate() {
        let path = directory.join(format!("seed-{number}"));
        std::fs::write(&path, seed).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

#[cfg(feature = "engine")]
fn fuzz(target: &'static Target, arguments: &[&str]) -> Result<(), String> {
    engine::run(target, arguments)
}

#[cfg(not(feature = "engine"))]
fn fuzz(target: &Target, files: &[&str]) -> Result<(), String> {
    // Without the engine, files can be tried all the same.
    for file in files {
        let input = std::fs::read(file).map_err(|error| format!("cannot read {file}: {error}"))?;
        println!("{file}: {:?}", (target.run)(&input));
    }
    Ok(())
}

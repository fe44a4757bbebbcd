//! The fuzz targets: one for each decoder of outside input, or of a few that belong together, in a file each below `targets`.
//!
//! A target takes any bytes, says whether they were accepted, and panics when a property does not hold; that a decoder must not panic is
//! only the first of them. Nothing here ships on a node. What the targets need of a crate beyond its interface, that crate offers in a
//! module or function named `fuzz`, so that its insides stay closed.
//!
//! Inputs: [`Target::seeds`] makes real examples with the encoders at every run, so that they never go stale; `corpus/<target>` has what
//! earlier runs found worth keeping; `regressions/<target>` has what once failed. The tests replay all of them.

mod targets;

// Programs are not libraries: their decoders of hostile tar streams are compiled here a second time.
#[path = "../../../node/byred/src/copy.rs"]
#[allow(dead_code, reason = "of the program's file only the decoder is called")]
mod copy;
#[path = "../../../api/ctl/src/tar_out.rs"]
mod tar_out;

use std::path::{Path, PathBuf};

pub use targets::TARGETS;

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The decoder refused it.
    Refused,
    /// The decoder took it, and what follows from that held.
    Accepted,
}

impl Verdict {
    /// Of something that is there only when it was accepted.
    fn of(accepted: bool) -> Self {
        if accepted { Self::Accepted } else { Self::Refused }
    }
}

/// One fuzz target.
#[derive(Debug)]
pub struct Target {
    /// Its name, which is also the name of its folders.
    pub name: &'static str,
    /// What it reads and what must hold.
    pub about: &'static str,
    /// Files and folders of the repository whose change makes earlier fuzzing time worthless.
    pub sources: &'static [&'static str],
    /// Longest input in bytes: room for what is realistic, small enough for speed.
    pub longest: usize,
    /// Tries one input.
    pub run: fn(&[u8]) -> Verdict,
    /// Real examples; all are accepted.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

/// Committed inputs of a kind (`corpus` or `regressions`) for a target, in the order of their names; empty if there are none.
///
/// # Errors
/// Of the file system.
pub fn committed(kind: &str, target: &str) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target);
    let mut found = Vec::new();
    match std::fs::read_dir(&directory) {
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                let bytes = std::fs::read(&path)?;
                found.push((path, bytes));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A clone of the repository carries them for ever.
    const CORPUS_BYTES: usize = 200 * 1024;

    #[test]
    fn every_seed_is_accepted() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{}", target.name);
            for (number, seed) in seeds.iter().enumerate() {
                assert!(seed.len() <= target.longest, "{}: seed {number} has {} bytes", target.name, seed.len());
                assert_eq!((target.run)(seed), Verdict::Accepted, "{}: seed {number}", target.name);
            }
        }
    }

    #[test]
    fn no_committed_input_breaks_a_property() {
        let mut bytes = 0;
        for target in TARGETS {
            for kind in ["corpus", "regressions"] {
                for (path, input) in committed(kind, target.name).unwrap() {
                    println!("{}", path.display());
                    (target.run)(&input);
                    bytes += input.len();
                }
            }
        }
        assert!(bytes <= CORPUS_BYTES, "{bytes} bytes are committed: drop the least useful");
    }

    #[test]
    fn the_empty_input_and_zeros_break_no_property() {
        for target in TARGETS {
            for length in [0, 1, 2, 3, 600] {
                (target.run)(&vec![0; length]);
            }
        }
    }

    #[test]
    fn every_folder_belongs_to_a_target_and_every_source_exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let names: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
        assert_eq!(names.len(), TARGETS.len(), "two targets have one name");
        for kind in ["corpus", "regressions"] {
            for entry in std::fs::read_dir(root.join(kind)).into_iter().flatten() {
                let name = entry.unwrap().file_name();
                assert!(names.contains(name.to_str().unwrap()), "{kind}/{} has no target", name.display());
            }
        }
        for source in TARGETS.iter().flat_map(|target| target.sources) {
            assert!(root.join("../..").join(source).exists(), "{source} is not there");
        }
    }
}

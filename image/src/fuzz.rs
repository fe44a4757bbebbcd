//! Entry points for fuzzing: bytes in, nothing out, no panic. Each holds one decoder of hostile input.
//!
//! `image/fuzz` has a cargo-fuzz target for each; the tests here feed them small seeds so that they stay alive.

use std::io::Write;

use crate::archive::{StageLimits, resolve, stage};
use crate::check;
use crate::config::ImageConfig;
use crate::erofs::Budget;
use crate::layer;
use crate::reference::Reference;

/// Bytes that one input may grow to.
const LIMIT: u64 = 16 << 20;

/// Parses a reference; what is accepted reads back the same.
///
/// # Panics
/// If it does not: that is what the fuzzer looks for.
pub fn fuzz_reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
        assert_eq!(reference.short().parse::<Reference>().as_ref(), Ok(&reference));
    }
}

/// Converts a layer; what is converted passes the bounds check.
///
/// # Panics
/// If it does not, or without memory for a file.
pub fn fuzz_layer(data: &[u8]) {
    let file = scratch();
    if let Ok(made) = layer::convert(data, file, Budget::of(LIMIT), &mut |_| true) {
        assert!(check::check(&made.file).is_ok());
    }
}

/// Checks a layer file.
///
/// # Panics
/// Without memory for a file.
pub fn fuzz_check(data: &[u8]) {
    let mut file = scratch();
    if file.write_all(data).is_ok() {
        let _ = check::check(&file);
    }
}

/// Reads a configuration.
pub fn fuzz_config(data: &[u8]) {
    let _ = ImageConfig::parse(data);
}

/// Stages and resolves an archive, in the empty directory `dir`, which is to be emptied between runs.
pub fn fuzz_archive(data: &[u8], dir: &std::path::Path) {
    let limits = StageLimits { bytes: LIMIT, free: LIMIT };
    if let Ok(staged) = stage(data, dir, limits, &mut |_| true) {
        let _ = resolve(&staged);
    }
}

/// A file in memory.
#[expect(clippy::expect_used, reason = "a fuzzer without memory has nothing to go on with")]
fn scratch() -> std::fs::File {
    rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for a file").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_entry_point_takes_any_bytes(data in prop::collection::vec(any::<u8>(), 0..4096)) {
            fuzz_reference(&data);
            fuzz_layer(&data);
            fuzz_check(&data);
            fuzz_config(&data);
            fuzz_archive(&data, tempfile::tempdir().unwrap().path());
        }

        #[test]
        fn a_damaged_layer_is_refused_or_passes_the_check(
            name in "[a-z/.]{1,30}", at in any::<prop::sample::Index>(), to in any::<u8>(),
        ) {
            let mut tar = Vec::new();
            crate::pack::rootfs::busybox(&mut tar, name.as_bytes(), &["sh".to_owned()], 5).unwrap();
            let at = at.index(tar.len());
            tar[at] = to;
            fuzz_layer(&tar);
        }
    }
}

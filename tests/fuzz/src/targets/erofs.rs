//! The check of a layer file before the kernel may mount it: the writer may have been taken over.

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "erofs",
    about: "layer files: whatever is accepted, walking it meets no offset, name or directory that the check should have refused",
    sources: &["image/src/check.rs", "image/src/erofs"],
    longest: 24 * 1024,
    run,
    seeds,
};

/// The first byte says whether the superblock's checksum is made right: a fuzzer finds none by itself.
fn run(input: &[u8]) -> Verdict {
    let Some((flags, file)) = input.split_first() else { return Verdict::Refused };
    Verdict::of(byre_image::fuzz::fuzz_check(file, flags & 1 == 0))
}

fn seeds() -> Vec<Vec<u8>> {
    vec![super::seed(0, byre_image::fuzz::layer_file(&super::layer::tar()))]
}

//! Feeds `byre_image::fuzz::fuzz_archive`, in a directory of its own each time.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(dir) = tempfile::tempdir() {
        byre_image::fuzz::fuzz_archive(data, dir.path());
    }
});

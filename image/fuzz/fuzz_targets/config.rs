//! Feeds `byre_image::fuzz::fuzz_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| byre_image::fuzz::fuzz_config(data));

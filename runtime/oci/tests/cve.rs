//! Published escapes and attacks of container runtimes and engines since 2018, each tried on this one. A test is named by its CVE; the patch
//! `tests/cve/mutants/<CVE>.patch` takes the protection out, and the test must then fail: `cargo xtask conformance cve --mutants` tries that.
//!
//! Needs root, a cgroup2 mount and busybox (package busybox-static), so each test runs with `--ignored` only.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cve {
    //! The tests, by what is attacked.
    #[path = "../native/bench.rs"]
    #[allow(dead_code, reason = "shared with the other tests, which use the rest")]
    mod bench;
    mod links;
    mod privileges;
    mod resources;
    mod runtime;
}

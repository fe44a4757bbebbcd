//! Drives byre-oci as an engine does: bundles, commands, what is left afterwards. Needs root, a cgroup2 mount and busybox (package
//! busybox-static), so each test runs with `--ignored` only.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod native {
    //! The tests, by what they show.
    mod bench;
    mod exec;
    mod features;
    mod hooks;
    mod kernel;
    mod lifecycle;
    mod settings;
}

//! `byred probe`: asks workloads over TCP, HTTP and gRPC whether they have started, are ready and alive.
//!
//! It joins a workload's network namespace only for as long as it takes to make a socket there, and leaves it before it sends a byte; no
//! other namespace is ever joined, which its seccomp filter holds it to. What a workload answers is outside input: of it only the
//! status line or one small message is looked at, within a bound. Commands inside a workload are started by PID 1 itself, like any exec.

mod attempt;
mod grpc;
mod service;

pub use service::{ProbeError, run};

/// A fuzzer's way in: what an answer is judged, `None` while its status line is not whole.
#[must_use]
pub fn fuzz_status_line(gathered: &[u8]) -> Option<bool> {
    attempt::verdict(gathered)
}

/// As [`fuzz_status_line`], for the answer of a gRPC health service.
#[must_use]
pub fn fuzz_health_answer(gathered: &[u8]) -> Option<bool> {
    grpc::verdict(gathered)
}

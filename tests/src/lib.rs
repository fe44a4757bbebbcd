//! What tests of a whole node are made of: container images, machines, a node that was made ready, and the scenarios.
//!
//! Used by `byre-scenarios` and by the developer commands; never by anything that ships on a node. It must not weaken an image to make it
//! testable: a scenario drives a node as its users do, through the API and through `byrectl`.

pub mod credentials;
pub mod ctl;
pub mod faults;
pub mod gdb;
pub mod harm;
pub mod kvm;
pub mod node;
pub mod oci;
pub mod power;
pub mod qmp;
pub mod scenarios;
pub mod serial;
pub mod terminal;
pub mod vm;

/// What the program `byre-stamp` prints before its time, nanoseconds of the clock that containers share with their host.
pub const STAMP: &str = "stamp ";

//! The test harness: machines to boot and what drives them. It must not contain tests of the product itself (those are
//! scenarios on top of it), and must not weaken an image to make it testable.

pub mod kvm;
pub mod qmp;
pub mod serial;
pub mod vm;

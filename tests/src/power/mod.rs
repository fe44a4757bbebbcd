//! Power cuts, from what a virtual machine really wrote: a recorded log of writes and flushes, the states of the disk that a cut in it can
//! leave, and a judge that says of each what boots from it.
//!
//! Nothing here is the code that is judged but the reader of the boot partition; what a slot holds is compared block by block with the
//! releases that were made, not hashed by the system's own rules.

pub mod arming;
pub mod disk;
pub mod judge;
pub mod log;
pub mod states;

/// Bytes of the unit in which content is compared.
pub const BLOCK: u64 = 4096;

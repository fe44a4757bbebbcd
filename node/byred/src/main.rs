//! byred
fn main() {}

//! byrectl
fn main() {}

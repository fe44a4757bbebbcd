//! The first instruction of a container whose start is measured: prints the time and ends; with an argument it stays, for ever at rest. Nothing
//! here ships on a node.
//!
//! Alone in its program, so that a start is measured and not how a large program relocates and faults itself in.

fn main() {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanoseconds = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    println!("{}{nanoseconds}", byre_tests::STAMP);
    if std::env::args().nth(1).is_some() {
        loop {
            std::thread::park();
        }
    }
}

//! `cargo xtask bench`: measurements, each side by side with a peer in one run. What they print is in `report.rs`.

mod answer;
mod boots;
mod bundle;
mod node;
mod peer;
mod peer_boots;
mod runtime;
mod scale;
mod starts;
mod updates;

use anyhow::Result;

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    suite: Suite,
}

/// What is measured.
#[derive(clap::Subcommand, Debug)]
enum Suite {
    /// A whole node: boot, memory at rest, start of a container, sizes.
    Node(Box<node::Args>),
    /// Starts and execs of the runtime's command, beside crun and runc.
    Runtime(Box<runtime::Args>),
    /// An update of the OS: its time, its bytes, and the rate at which a slot is written.
    Updates,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.suite {
        Suite::Node(args) => node::run(args),
        Suite::Runtime(args) => runtime::run(args),
        Suite::Updates => updates::run(),
    }
}

//! `cargo xtask bench`: measurements, each side by side with a peer in one run. What they print is in `report.rs`.

mod answer;
mod boots;
mod bundle;
mod node;
mod peer;
mod peer_boots;
mod runtime;
mod starts;

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
    Node(node::Args),
    /// Starts and execs of the runtime's command, beside crun and runc.
    Runtime(runtime::Args),
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.suite {
        Suite::Node(args) => node::run(args),
        Suite::Runtime(args) => runtime::run(args),
    }
}

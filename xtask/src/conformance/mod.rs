//! `cargo xtask conformance`: suites that others wrote, run against ours and against its peers in one job. What they print is in `report.rs`.

mod cve;
pub(crate) mod runtime;

use anyhow::Result;

/// Arguments of `cargo xtask conformance`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    suite: Suite,
}

/// What is judged.
#[derive(clap::Subcommand, Debug)]
enum Suite {
    /// The OCI runtime: crun's, runc's and runtime-tools' suites with byre-oci, crun and runc.
    Runtime(runtime::Args),
    /// Published attacks on container runtimes, and whether each test of them can fail.
    Cve(cve::Args),
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.suite {
        Suite::Runtime(args) => runtime::run(args),
        Suite::Cve(args) => cve::run(args),
    }
}

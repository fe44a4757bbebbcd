//! Developer commands (`cargo xtask <command>`). Each command is a module with an `Args` and a `run`; this file only
//! dispatches, and nothing here ships on a node.

mod bench;
mod conformance;
mod container_image;
#[cfg(test)]
mod deps;
mod down;
mod faults;
mod fuzz;
mod image;
mod keys;
mod packages;
mod release;
mod report;
mod reproducible;
mod simulate;
mod test;
#[cfg(test)]
mod tidy;
mod tools;
mod up;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands for Byre", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything, boot a node in QEMU and make it known to byrectl.
    Up(up::Args),
    /// Stop the node that `up` started.
    Down(down::Args),
    /// Build the OS image: disk, kernel image, root, bill of materials.
    Image(image::Args),
    /// Run every test.
    Test(test::Args),
    /// Look for inputs that break a decoder.
    Fuzz(fuzz::Args),
    /// Cut the power at every write of an update, do the list of faults to machines, and bad networks and repositories to the updater.
    Faults(faults::Args),
    /// Measure, side by side with a peer.
    Bench(bench::Args),
    /// Run suites that others wrote, beside peers.
    Conformance(conformance::Args),
    /// Play many histories of PID 1's decisions against a simulated machine.
    Simulate(simulate::Args),
    /// Make, rotate and show the keys that releases are signed with.
    Keys(keys::Args),
    /// Build a release, and publish it in a repository and as an offline bundle.
    Release(release::Args),
    /// Make a container image from Debian packages, for first steps and tests.
    ContainerImage(container_image::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Up(args) => up::run(&args),
        Command::Down(args) => down::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Faults(args) => faults::run(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Release(args) => release::run(&args),
        Command::ContainerImage(args) => container_image::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}

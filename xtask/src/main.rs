//! Developer commands (`cargo xtask <command>`). Each command is a module with an `Args` and a `run`; this file only
//! dispatches, and nothing here ships on a node.

mod container_image;
mod image;
mod packages;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands for Byre", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the OS image: disk, kernel image, root, bill of materials.
    Image(image::Args),
    /// Make a container image from Debian packages, for first steps and tests.
    ContainerImage(container_image::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Image(args) => image::run(&args),
        Command::ContainerImage(args) => container_image::run(&args),
    }
}

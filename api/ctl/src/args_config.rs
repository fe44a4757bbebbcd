//! The commands for the machine's configuration.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueHint};

use crate::parse;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the JSON Schema of a configuration
    Schema,
    /// Print the configuration in force, or an older one; only an administrator sees its secrets
    Get(ConfigGetArgs),
    /// Put a configuration into force, and confirm it over a new connection; what is not confirmed is undone
    Apply(ConfigApplyArgs),
    /// Show what a configuration would change, or what differs between two generations
    Diff(ConfigDiffArgs),
    /// List the generations that are kept, newest first
    #[command(visible_alias = "ls")]
    History,
    /// Keep a generation that waits for its confirmation
    Confirm(ConfigGeneration),
    /// Go back to the confirmed generation at once
    Undo(ConfigGeneration),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigGetArgs {
    /// A generation from `byrectl config history`
    pub(crate) generation: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigGeneration {
    /// Its number
    pub(crate) generation: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigApplyArgs {
    /// The document, TOML; - is stdin
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Say what would change and what would restart, and change nothing
    #[arg(long)]
    pub(crate) plan: bool,
    /// The node undoes the change unless it is confirmed within this time
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse::duration)]
    pub(crate) confirm_within: Duration,
    /// Leave the confirmation to `byrectl config confirm`
    #[arg(long)]
    pub(crate) manual: bool,
    /// Confirm with the change itself; a node that cannot be reached afterwards stays so
    #[arg(long, conflicts_with_all = ["manual", "confirm_within"])]
    pub(crate) no_undo: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigDiffArgs {
    /// The document, TOML; - is stdin
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "from")]
    pub(crate) file: Option<PathBuf>,
    /// Compare this generation instead
    #[arg(long, value_name = "GENERATION", conflicts_with = "file")]
    pub(crate) from: Option<u64>,
    /// with this one; without it, with the one in force
    #[arg(long, value_name = "GENERATION", requires = "from")]
    pub(crate) to: Option<u64>,
}

//! The command line of what shows a node at work, and of what helps when it does not work.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use crate::parse;

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// How often
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) interval: Duration,
    /// One table, as where there is no terminal
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BootsChartArgs {
    /// A boot's number; 0 is the running one, -1 the one before it
    #[arg(default_value_t = 0, allow_hyphen_values = true, value_name = "BOOT")]
    pub(crate) which: i64,
    /// Where the SVG goes; stdout if left out
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Facts for a scheduler or a monitor instead of the summary
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) format: Option<NodeFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeFormat {
    /// Kubernetes labels by the names of node-feature-discovery
    Labels,
    /// OpenMetrics text 1.0
    Openmetrics,
}

#[derive(Debug, Args)]
pub(crate) struct SupportBundleArgs {
    /// The tar file, which must not exist yet; `-` is stdout
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct LookArgs {
    /// A workload; the whole node if left out, which needs the role admin
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) name: String,
}

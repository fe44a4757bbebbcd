//! What can be typed behind `byrectl update`.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "these comments are the help that clap prints; brackets mark what is optional"
)]

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

#[derive(Debug, Subcommand)]
pub(crate) enum UpdateCommand {
    /// Ask the repository whether its channel has a newer release
    Check,
    /// Take the channel's newest release, or go on with one that was begun
    Apply(ApplyArgs),
    /// Show the running release, how far an update is, and what automatic updates wait for
    Status,
    /// End the update that is under way; what was written stays
    Cancel,
    /// Go back to the release in the other slot
    Rollback(RebootArgs),
    /// Show what was done before, newest first
    History,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// An offline bundle instead of the repository
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) bundle: Option<PathBuf>,
    /// The bundle's timestamp and snapshot may have expired; signatures, root, targets and floors always hold
    #[arg(long, requires = "bundle")]
    pub(crate) offline: bool,
    /// Allow a release that is older than the running one
    #[arg(long)]
    pub(crate) allow_downgrade: bool,
    /// Try a release again that failed on this node before
    #[arg(long)]
    pub(crate) retry: bool,
    #[command(flatten)]
    pub(crate) reboot: RebootArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RebootArgs {
    /// Reboot into it at once
    #[arg(long)]
    pub(crate) reboot: bool,
}

//! The command line of what brings and names images; the shorter commands stand in `args`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Its name, as in nginx, registry.example/app:1.2, or with @sha256:… behind it
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Who the registry is to see; the node's configuration says it otherwise
    #[arg(long, short, requires = "password_stdin", value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Read the password from stdin, up to its end; one line break at the end is no part of it
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    /// Certificates of the registry's own authority, PEM; the node's configuration says it otherwise
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) ca_file: Option<PathBuf>,
    /// No progress; the name with its digest only
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// Name or identity
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// The further name, as in registry.example/app:1.2
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct UntagArgs {
    /// The names to take away
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Name or identity
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Whole commands
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

//! The command line: what can be typed, and nothing about what it does.
//!
//! The habits are docker's and kubectl's; where they differ, docker's, because the things are containers.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "these comments are the help that clap prints; brackets mark what is optional"
)]

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::args_config::ConfigCommand;
use crate::args_container::{CreateArgs, RunArgs};
use crate::args_image::{HistoryArgs, PullArgs, TagArgs, UntagArgs};
use crate::args_see::{BootsChartArgs, LookArgs, NodeArgs, SupportBundleArgs, TopArgs};
use crate::args_update::UpdateCommand;
use crate::detach::DetachKeys;
use crate::parse;

/// Said once here, and tested against docs/cli.md.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0        done
  1        refused or failed; the reason is on stderr
  2        wrong usage
  125      run: the container could not be started; exec: the program could not be
  126      the program is not executable
  127      there is no such program
  128+n    ended by signal n
  other    run, exec, attach, start -a: the program's own exit code";

/// Drives a Byre node through its API.
#[derive(Debug, Parser)]
#[command(name = "byrectl", version, after_help = EXIT_CODES, max_term_width = 110, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The node: a name from `byrectl context ls`
    #[arg(long, global = true, env = "BYRE_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The node's address instead of the context's: unix:///run/byre/api.sock or host:port
    #[arg(long, global = true, env = "BYRE_HOST", value_name = "ADDRESS")]
    pub(crate) host: Option<String>,
    /// A table for people, or JSON (lines of it for a stream) for programs
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(crate) output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a container from an image and run it
    Run(Box<RunArgs>),
    /// Make a container without starting it
    Create(Box<CreateArgs>),
    /// Start containers
    Start(StartArgs),
    /// Stop containers: their stop signal, then, after the timeout, SIGKILL
    Stop(StopArgs),
    /// Stop containers and start them again
    Restart(StopArgs),
    /// Let containers start again that were disabled
    Enable(Names),
    /// Stop containers, and let nothing start them until they are enabled
    Disable(Names),
    /// Forget the failures of workloads; one that waits for its next try begins it at once
    Reset(Names),
    /// Send a signal to containers
    Kill(KillArgs),
    /// Remove containers with their writable layer
    Rm(RmArgs),
    /// Wait until containers end and print their exit codes
    Wait(Names),
    /// List containers
    Ps(PsArgs),
    /// Show everything about workloads, as JSON
    Inspect(Names),
    /// Tell why workloads are in the state they are in, and how their last runs ended
    Why(Names),
    /// Show output, stored and live
    Logs(LogsArgs),
    /// Run a further program inside a running container
    Exec(ExecArgs),
    /// Connect to the input and output of a container's first process
    Attach(AttachArgs),
    /// Copy between this machine and a running container; `-` is a tar stream
    Cp(CpArgs),
    /// Show what PID 1 decided lately, and upon what
    Trace(TraceArgs),
    /// Show figures of running containers, live
    Stats(StatsArgs),
    /// Watch the machine and its workloads at work; a table once where there is no terminal
    Top(TopArgs),
    /// List processes, of a workload or of the node
    Processes(LookArgs),
    /// List TCP and UDP sockets, in the network of a workload or of the node
    Sockets(LookArgs),
    /// Show what happens to workloads, from now on
    Events(EventsArgs),
    /// Bring an image from its registry, as `image pull`
    Pull(PullArgs),
    /// Container images on the node
    #[command(subcommand)]
    Image(ImageCommand),
    /// Show the machine: a summary, or all facts with --output json
    Node(NodeArgs),
    /// Collect what a person needs to find a fault into a tar file, without secrets of the configuration
    SupportBundle(SupportBundleArgs),
    /// The node's own services
    #[command(subcommand)]
    Services(ServicesCommand),
    /// The machine's configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show the kernel's log
    Dmesg(DmesgArgs),
    /// The boots that the machine remembers, and how each ended
    Boots {
        #[command(subcommand)]
        command: Option<BootsCommand>,
    },
    /// End all workloads in order, then restart the machine
    Reboot(ConfirmArgs),
    /// End all workloads in order, then switch the machine off
    #[command(visible_alias = "poweroff")]
    Shutdown(ConfirmArgs),
    /// Releases of the OS: look for one, install it, go back
    #[command(subcommand)]
    Update(UpdateCommand),
    /// The system's own programs
    #[command(subcommand)]
    System(SystemCommand),
    /// Show the versions of this program and of the node
    Version,
    /// The nodes this program knows by name
    #[command(subcommand)]
    Context(ContextCommand),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
}

/// One or more workloads.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Name, identity, or the beginning of an identity
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    pub(crate) names: Names,
    /// Attach to its output, forward signals, and exit with its exit code
    #[arg(long, short)]
    pub(crate) attach: bool,
    /// With --attach: pass on input as well
    #[arg(long, short, requires = "attach")]
    pub(crate) interactive: bool,
    /// Keys that detach, as in ctrl-p,ctrl-q; empty for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = DetachKeys::parse)]
    pub(crate) detach_keys: DetachKeys,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) names: Names,
    /// How long it may take before SIGKILL (10, 10s, 1m30s)
    #[arg(long, short, alias = "time", value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    #[command(flatten)]
    pub(crate) names: Names,
    /// The signal's name or number
    #[arg(long, short, default_value = "KILL")]
    pub(crate) signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) names: Names,
    /// Also one that runs: it is killed
    #[arg(long, short)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Also containers that do not run
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Identities only
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Whole identities and commands
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// name=TEXT, id=PREFIX, status=created|running|restarting|stopping|exited, label=KEY[=VALUE], image=TEXT
    #[arg(long, short, value_name = "FILTER", value_parser = crate::filter::Filter::parse)]
    pub(crate) filter: Vec<crate::filter::Filter>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Name, identity, or the beginning of an identity
    pub(crate) name: String,
    /// Go on with what comes
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// From a moment on: 10m (ago), 2026-11-22T03:37:00Z, 2026-11-22, or Unix seconds
    #[arg(long, value_name = "MOMENT")]
    pub(crate) since: Option<String>,
    /// Only the last lines of what is stored; all for everything
    #[arg(long, short = 'n', default_value = "all", value_name = "LINES", value_parser = tail)]
    pub(crate) tail: Tail,
    /// The time before each line
    #[arg(long, short)]
    pub(crate) timestamps: bool,
}

/// How much of the stored output is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    All,
    Lines(u64),
}

fn tail(text: &str) -> Result<Tail, String> {
    if text == "all" {
        return Ok(Tail::All);
    }
    text.parse().map(Tail::Lines).map_err(|_| "a number of lines, or all".into())
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Pass on input
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// With a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// user[:group], by name or number
    #[arg(long, short, default_value = "", hide_default_value = true)]
    pub(crate) user: String,
    /// Directory to run in
    #[arg(long, short, default_value = "", hide_default_value = true, value_name = "DIRECTORY")]
    pub(crate) workdir: String,
    /// NAME=value, or NAME to pass on the value it has here
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse::env)]
    pub(crate) env: Vec<String>,
    /// A file of NAME=value lines
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) env_file: Vec<PathBuf>,
    /// Name, identity, or the beginning of an identity
    pub(crate) name: String,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Name, identity, or the beginning of an identity
    pub(crate) name: String,
    /// Output only
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Keep signals to this program to ourselves
    #[arg(long)]
    pub(crate) no_sig_proxy: bool,
    /// Show the stored output of the present run first
    #[arg(long)]
    pub(crate) logs: bool,
    /// Keys that detach, as in ctrl-p,ctrl-q; empty for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = DetachKeys::parse)]
    pub(crate) detach_keys: DetachKeys,
}

#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// A path, NAME:PATH, or `-` for a tar stream from stdin
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: String,
    /// A path, NAME:PATH, or `-` for a tar stream to stdout
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) destination: String,
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// Write what can be played again into this file; it holds what clients put into definitions
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) raw: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Workloads; all running containers if none is named
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Once, not live
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// How often
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) interval: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only this workload
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Bring an image from its registry
    Pull(PullArgs),
    /// Load an archive: docker save, podman save, skopeo copy oci-archive: (also gzip or zstd)
    Load(LoadArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImageLsArgs),
    /// Show everything about images, as JSON
    Inspect(ImageNames),
    /// Give an image another name
    Tag(TagArgs),
    /// Take names away and keep the images
    Untag(UntagArgs),
    /// Show how an image was built, newest step first
    History(HistoryArgs),
    /// Read all of images and compare them with what they were
    Verify(ImageNames),
    /// Remove images
    Rm(ImageNames),
    /// Remove images that have no name and that no container uses
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The archive; stdin if left out or `-`
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "input")]
    pub(crate) file: Option<PathBuf>,
    /// The archive, docker's way
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) input: Option<PathBuf>,
    /// The image's name instead of the archive's
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) name: String,
    /// No progress; the identity only
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageLsArgs {
    /// Identities only
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Whole identities
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageNames {
    /// Name or identity
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Also images that have a name
    #[arg(long, short)]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServicesCommand {
    /// List services
    #[command(visible_alias = "list")]
    Ls(ServicesLsArgs),
    /// Stop services and start them again
    Restart(Names),
    /// Show a service's output
    Logs(LogsArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Replace the running program of PID 1, while everything goes on
    Reexec,
}

#[derive(Debug, Args)]
pub(crate) struct ServicesLsArgs {
    /// Names only
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BootsCommand {
    /// List them (the default)
    Ls,
    /// Show one with the end of its kernel log
    Show(BootsShowArgs),
    /// Draw how one came up, as SVG: when its services began and were ready
    Chart(BootsChartArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BootsShowArgs {
    /// A boot's number; 0 is the running one, -1 the one before it
    #[arg(default_value_t = -1, allow_hyphen_values = true, value_name = "BOOT")]
    pub(crate) which: i64,
}

#[derive(Debug, Args)]
pub(crate) struct DmesgArgs {
    /// Go on with what comes
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConfirmArgs {
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// List contexts; `*` is the current one
    #[command(visible_alias = "list")]
    Ls,
    /// Make a context the current one
    Use(ContextName),
    /// Add or replace a context
    Add(ContextAddArgs),
    /// Remove a context
    Rm(ContextName),
    /// Show a context, never its key
    Show {
        /// Its name; the current one if left out
        name: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ContextName {
    /// Its name
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ContextAddArgs {
    /// Its name
    pub(crate) name: String,
    /// unix:///path or host:port
    #[arg(long)]
    pub(crate) server: String,
    /// The name in the node's certificate, if it is not the host
    #[arg(long, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// Certificate of the authority that signs nodes (PEM)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "local")]
    pub(crate) ca: Option<PathBuf>,
    /// The client's certificate (PEM)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "local")]
    pub(crate) cert: Option<PathBuf>,
    /// The client's key (PEM)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "local")]
    pub(crate) key: Option<PathBuf>,
    /// Copy the files' text into the configuration file
    #[arg(long)]
    pub(crate) inline: bool,
    /// Make it the current one
    #[arg(long = "use")]
    pub(crate) make_current: bool,
    /// The server is a unix socket: no certificates
    #[arg(long, conflicts_with_all = ["ca", "cert", "key", "server_name", "inline"])]
    pub(crate) local: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;

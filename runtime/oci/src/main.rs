//! `byre-oci`: the runtime library behind runc's command line, for engines and test suites on any Linux host.
//!
//! It makes what a bundle asks for or refuses it by name, and says why in runc's log form. It keeps no process of its own: a created container
//! waits for its start by itself. It never runs in PID 1, and nothing of a node uses it.

mod agent;
mod cgroups;
mod console;
mod create;
mod default_spec;
mod error;
mod exec;
mod features;
mod gate;
mod hooks;
mod host;
mod interfaces;
mod lifecycle;
mod log;
mod notify;
mod own_copy;
mod query;
mod state;
#[allow(unsafe_code)]
mod sys;
mod update;

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::error::{Error, cannot, wrong};
use crate::log::{Format, Log};
use crate::query::Form;
use crate::state::Store;

/// Runs containers from OCI bundles (runtime-spec 1.0 to 1.3).
#[derive(Debug, Parser)]
#[command(name = "byre-oci", version, disable_help_subcommand = true)]
struct Cli {
    /// Where containers are kept.
    #[arg(long, global = true, default_value = "/run/byre-oci")]
    root: PathBuf,
    /// File for warnings and errors.
    #[arg(long, global = true)]
    log: Option<PathBuf>,
    /// Form of the log.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    log_format: Format,
    /// Say in the log what is done.
    #[arg(long, global = true)]
    debug: bool,
    /// Accepted: a cgroupsPath in systemd's form becomes the path that systemd would use; systemd itself is not asked.
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    /// Accepted for crun's callers: cgroupfs, or systemd as --systemd-cgroup.
    #[arg(long, global = true, value_parser = ["cgroupfs", "systemd"], default_value = "cgroupfs")]
    cgroup_manager: String,
    /// =true, =false or =auto. Containers are made by root only.
    #[arg(long, global = true, default_value = "auto", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rootless: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Making {
    /// Directory of the bundle.
    #[arg(long, short = 'b', default_value = ".")]
    bundle: PathBuf,
    /// Configuration, from the bundle.
    #[arg(long, short = 'f', default_value = "config.json")]
    config: PathBuf,
    /// Socket that is sent the terminal's master.
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// Socket that is sent the process's descriptor.
    #[arg(long)]
    pidfd_socket: Option<PathBuf>,
    /// File that the process's number is written to.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Refused: the root is always entered by pivot_root.
    #[arg(long)]
    no_pivot: bool,
    /// Keep the caller's session keyring.
    #[arg(long)]
    no_new_keyring: bool,
    /// Descriptors from 3 on that the program keeps.
    #[arg(long, default_value_t = 0)]
    preserve_fds: u32,
    /// Container.
    id: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a container from a bundle; its program waits for `start`.
    Create(Making),
    /// Run the program of a created container.
    Start { id: String },
    /// Make a container and run its program.
    Run {
        #[command(flatten)]
        making: Making,
        /// Do not wait for its end.
        #[arg(long, short = 'd')]
        detach: bool,
        /// Do not delete it when its program ends.
        #[arg(long)]
        keep: bool,
    },
    /// Print a container's state.
    State { id: String },
    /// Print all containers.
    List {
        /// Form of the answer.
        #[arg(long, short = 'f', value_enum, default_value_t = Form::Table)]
        format: Form,
        /// Print ids only.
        #[arg(long, short = 'q')]
        quiet: bool,
    },
    /// Send a signal to a container's first process.
    Kill {
        /// To all of its processes.
        #[arg(long, short = 'a')]
        all: bool,
        id: String,
        #[arg(default_value = "TERM")]
        signal: String,
    },
    /// Remove a container that does not run.
    Delete {
        /// End it first if it runs; it need not exist.
        #[arg(long, short = 'f')]
        force: bool,
        id: String,
    },
    /// Run a further process in a container.
    Exec(exec::Options),
    /// Print a container's processes.
    Ps {
        /// Form of the answer.
        #[arg(long, short = 'f', value_enum, default_value_t = Form::Table)]
        format: Form,
        id: String,
        /// Arguments for ps.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Freeze a container's processes.
    Pause { id: String },
    /// Let frozen processes go on.
    Resume { id: String },
    /// Change a container's limits.
    Update(update::Options),
    /// Print a container's usage.
    Events {
        /// Once, and end.
        #[arg(long)]
        stats: bool,
        /// Seconds in between, as 5s or 5.
        #[arg(long, default_value = "5s")]
        interval: String,
        id: String,
    },
    /// Write a config.json to begin with.
    Spec {
        /// Directory of the bundle.
        #[arg(long, short = 'b', default_value = ".")]
        bundle: PathBuf,
    },
    /// Print what is supported.
    Features,
    /// Refused: processes are not written to disk.
    #[command(disable_help_flag = true)]
    Checkpoint {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Refused: processes are not read from disk.
    #[command(disable_help_flag = true)]
    Restore {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    sys::note_inherited(preserved(&cli.command).saturating_add(create::listen_fds()));
    let opened = cli.log.as_ref().map(|path| std::fs::OpenOptions::new().create(true).append(true).open(path));
    let (file, unusable) = match opened.transpose() {
        Ok(file) => (file, None),
        Err(error) => (None, Some(error)),
    };
    let log = Log { file, format: cli.log_format, debug: cli.debug };
    log.debug(&format!("byre-oci {} begins", env!("CARGO_PKG_VERSION")));
    // Callers tell a failed exec from its program's own code by this one, as runc has it.
    let failed = if matches!(cli.command, Command::Exec(_)) { ExitCode::from(u8::MAX) } else { ExitCode::FAILURE };
    let done = match unusable {
        Some(error) => Err(cannot("open the log")(error)),
        None => run(cli, &log),
    };
    match done {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(error) => {
            log.error(&error.to_string());
            failed
        }
    }
}

/// How many descriptors from 3 on the caller wants kept.
fn preserved(command: &Command) -> u32 {
    match command {
        Command::Create(making) | Command::Run { making, .. } => making.preserve_fds,
        Command::Exec(options) => options.preserve_fds,
        Command::Start { .. }
        | Command::State { .. }
        | Command::List { .. }
        | Command::Kill { .. }
        | Command::Delete { .. }
        | Command::Ps { .. }
        | Command::Pause { .. }
        | Command::Resume { .. }
        | Command::Update(_)
        | Command::Events { .. }
        | Command::Spec { .. }
        | Command::Features
        | Command::Checkpoint { .. }
        | Command::Restore { .. } => 0,
    }
}

fn run(cli: Cli, log: &Log) -> Result<i32, Error> {
    let store = Store::new(cli.root);
    match cli.command {
        Command::Features => println!("{}", features::features()),
        Command::Spec { bundle } => write_spec(&bundle, cli.rootless == "true")?,
        Command::Checkpoint { arguments: _ } => return Err(no_criu("checkpoint")),
        Command::Restore { arguments: _ } => return Err(no_criu("restore")),
        Command::State { id } => {
            let (place, record) = store.open(&id)?;
            println!("{}", record.told(place.status(&record)));
        }
        Command::List { format, quiet } => query::list(&store, format, quiet)?,
        Command::Create(making) => {
            prepare(&cli.rootless)?;
            drop(create::create(&store, &options(making, false)?, log)?);
        }
        Command::Run { making, detach, keep } => {
            prepare(&cli.rootless)?;
            return run_to_end(&store, making, detach, keep, log);
        }
        Command::Exec(options) => {
            prepare(&cli.rootless)?;
            return exec::exec(&store, &options, log);
        }
        Command::Start { id } => lifecycle::start(&store, &id, log)?,
        Command::Kill { all, id, signal } => lifecycle::kill(&store, &id, &signal, all)?,
        Command::Delete { force, id } => lifecycle::delete(&store, &id, force, log)?,
        Command::Ps { format, id, arguments } => query::processes(&store, &id, format, &arguments)?,
        Command::Pause { id } => lifecycle::pause(&store, &id, true)?,
        Command::Resume { id } => lifecycle::pause(&store, &id, false)?,
        Command::Update(options) => {
            let resources = options.resources()?;
            lifecycle::update(&store, &options.id, &resources, log)?;
        }
        Command::Events { stats, interval, id } => query::events(&store, &id, stats, seconds(&interval)?)?,
    }
    Ok(0)
}

/// What goes before everything that reaches into a container.
fn prepare(rootless: &str) -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() || rootless == "true" {
        return Err(wrong("containers are made by root only", "run as root, without --rootless true"));
    }
    own_copy::ensure()
}

fn options(making: Making, attached: bool) -> Result<create::Options, Error> {
    if making.no_pivot {
        let remedy = "leave it out; on an initramfs, switch to a root that can be left first";
        return Err(wrong("--no-pivot is not supported: the root is entered by pivot_root", remedy));
    }
    Ok(create::Options {
        id: making.id,
        bundle: making.bundle,
        config: making.config,
        pid_file: making.pid_file,
        console_socket: making.console_socket,
        pidfd_socket: making.pidfd_socket,
        preserve_fds: making.preserve_fds,
        new_keyring: !making.no_new_keyring,
        attached,
    })
}

fn run_to_end(store: &Store, making: Making, detach: bool, keep: bool, log: &Log) -> Result<i32, Error> {
    let options = options(making, !detach)?;
    let signals = if detach { None } else { Some(console::take_signals()?) };
    let made = create::create(store, &options, log)?;
    lifecycle::start_created(&made.place, &made.record, &made.bundle, log)?;
    let Some(signals) = signals else { return Ok(0) };
    let code = console::attend(made.pidfd.as_fd(), made.terminal, &signals)?;
    if !keep {
        lifecycle::destroy(&made.place, &made.record, Some(&made.bundle), log)?;
    }
    Ok(code)
}

fn write_spec(bundle: &std::path::Path, rootless: bool) -> Result<(), Error> {
    if rootless {
        return Err(wrong("containers are made by root only", "leave --rootless out"));
    }
    let path = bundle.join("config.json");
    if path.exists() {
        return Err(wrong(format!("{} exists", path.display()), "remove it first"));
    }
    let text = serde_json::to_string_pretty(&default_spec::spec()).unwrap_or_default();
    state::write_whole(&path, format!("{text}\n").as_bytes(), 0o644)
}

fn no_criu(command: &str) -> Error {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').any(|directory| std::path::Path::new(directory).join("criu").exists());
    let problem = if found {
        format!("{command} is not supported")
    } else {
        format!("{command} is not supported, and CRIU is not installed")
    };
    wrong(problem, "end the container and start it anew")
}

/// `5`, `5s`, `100ms` or `1m`.
fn seconds(text: &str) -> Result<Duration, Error> {
    let (digits, unit) = text.split_at(text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        _ => None,
    };
    let interval = digits.parse::<u64>().ok().zip(factor).and_then(|(count, factor)| count.checked_mul(factor));
    interval
        .filter(|milliseconds| *milliseconds > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| wrong(format!("{text:?} is no interval"), "write it as 5s, 100ms or 1m"))
}

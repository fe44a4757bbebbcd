//! The flags of `run` and `create`, and how they become the specification that the node gets.
//!
//! What the image says and what the node's policy allows is not known here; a flag that was not given stays unset.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "these comments are the help that clap prints; brackets mark what is optional"
)]

use std::path::PathBuf;
use std::time::Duration;

use byre_api::proto::schedule::When;
use byre_api::proto::{ContainerSpec, Limits, Probe, Restart, Schedule, TerminalSize, UserNamespaceMode, VolumeMount};
use clap::{Args, ValueEnum, ValueHint};

use crate::args_network::NetworkArgs;
use crate::detach::DetachKeys;
use crate::error::Failure;
use crate::{parse, parse_probe};

/// The largest file of environment variables: the kernel takes about 2 MiB for all of them.
const ENV_FILE_BYTES: u64 = 2 << 20;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Print the identity and leave it running
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Keys that detach, as in ctrl-p,ctrl-q; empty for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = DetachKeys::parse)]
    pub(crate) detach_keys: DetachKeys,
    /// Keep signals to this program to ourselves
    #[arg(long)]
    pub(crate) no_sig_proxy: bool,
    #[command(flatten)]
    pub(crate) container: ContainerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) container: ContainerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ContainerArgs {
    /// Keep its input open, and pass ours on
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// With a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Remove it when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Its name; the node makes one up otherwise
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) name: String,
    /// Its host name; its name otherwise
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) hostname: String,
    /// NAME=value, or NAME to pass on the value it has here
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse::env)]
    pub(crate) env: Vec<String>,
    /// A file of NAME=value lines
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) env_file: Vec<PathBuf>,
    /// NAME:/target[:ro], /host/path:/target[:ro], or /target
    #[arg(long, short, value_name = "VOLUME", value_parser = parse::volume)]
    pub(crate) volume: Vec<VolumeMount>,
    /// type=tmpfs|volume|bind,target=/path[,source=...][,size=64M][,readonly]
    #[arg(long, value_name = "MOUNT", value_parser = parse::mount)]
    pub(crate) mount: Vec<VolumeMount>,
    /// /path[:size=64M][,ro]
    #[arg(long, value_name = "PATH", value_parser = parse::tmpfs)]
    pub(crate) tmpfs: Vec<VolumeMount>,
    /// user[:group], by name or number
    #[arg(long, short, default_value = "", hide_default_value = true)]
    pub(crate) user: String,
    /// Directory to run in
    #[arg(long, short, default_value = "", hide_default_value = true, value_name = "DIRECTORY")]
    pub(crate) workdir: String,
    /// Program instead of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// The root cannot be written
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Run it under an init that reaps processes and passes signals on
    #[arg(long)]
    pub(crate) init: bool,
    /// no, always, on-failure[:N], unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no", value_parser = parse::restart)]
    pub(crate) restart: Restart,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Memory limit (128M, 1.5g)
    #[arg(allow_hyphen_values = true, long, short, value_name = "SIZE", value_parser = parse::size)]
    pub(crate) memory: Option<u64>,
    /// Memory and swap together, at least --memory; equal to it for no swap
    #[arg(long, value_name = "SIZE", value_parser = parse::size, requires = "memory")]
    pub(crate) memory_swap: Option<u64>,
    /// Processors it may use (1.5)
    #[arg(long, value_name = "NUMBER", value_parser = parse::cpus)]
    pub(crate) cpus: Option<u64>,
    /// Share of the processors when they are short: 1 to 10000, 100 if not given
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) cpu_weight: Option<u32>,
    /// Processors it may run on (0-2,4)
    #[arg(long, visible_alias = "cpuset-cpus", value_name = "LIST", value_parser = cpuset)]
    pub(crate) cpuset: Option<String>,
    /// Processes and threads it may have
    #[arg(long, visible_alias = "pids-limit", value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) pids: Option<u64>,
    /// key=value
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = parse::label)]
    pub(crate) label: Vec<(String, String)>,
    /// A capability more, as in NET_BIND_SERVICE
    #[arg(long, value_name = "CAPABILITY", value_parser = parse::capability)]
    pub(crate) cap_add: Vec<String>,
    /// A capability less, or ALL
    #[arg(long, value_name = "CAPABILITY", value_parser = parse::capability)]
    pub(crate) cap_drop: Vec<String>,
    /// Nearly all rights of the node's root, if the node's policy allows it
    #[arg(long)]
    pub(crate) privileged: bool,
    /// Its own user namespace, or the node's
    #[arg(long, value_enum, default_value_t = Userns::Auto)]
    pub(crate) userns: Userns,
    /// Signal that stops it; the image's otherwise
    #[arg(long, value_name = "SIGNAL", default_value = "", hide_default_value = true)]
    pub(crate) stop_signal: String,
    /// How long stopping may take before SIGKILL (10s)
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) stop_timeout: Option<Duration>,
    /// Whether it has started: the other probes wait for it. [NAME=VALUE,...]tcp=PORT, http=PORT/PATH, grpc=PORT[/SERVICE] or exec=COMMAND,
    /// with delay, interval, timeout, failures and successes before it, as in interval=2s,failures=30,tcp=80
    #[arg(long, value_name = "PROBE", value_parser = parse_probe::probe)]
    pub(crate) startup: Option<Probe>,
    /// Whether it is ready, in the same words
    #[arg(long, value_name = "PROBE", value_parser = parse_probe::probe)]
    pub(crate) readiness: Option<Probe>,
    /// Whether it is alive, in the same words: stopped if not, and --restart decides what follows
    #[arg(long, value_name = "PROBE", value_parser = parse_probe::probe)]
    pub(crate) liveness: Option<Probe>,
    /// It runs to completion: tried as often as --restart says, and then done or failed
    #[arg(long)]
    pub(crate) job: bool,
    /// How long a job has over all its tries (10m)
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, requires = "job")]
    pub(crate) deadline: Option<Duration>,
    /// A job begins by itself at these times (UTC): "minute hour day month weekday" as in crontab, or @daily and the like
    #[arg(long, value_name = "CALENDAR", requires = "job", conflicts_with = "every")]
    pub(crate) schedule: Option<String>,
    /// A job begins by itself again and again, so long from one begin to the next (10m)
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, requires = "job")]
    pub(crate) every: Option<Duration>,
    /// Make up, once, for the times of --schedule that passed while it could not begin
    #[arg(long, requires = "schedule")]
    pub(crate) catch_up: bool,
    /// What it belongs to: start, stop, restart, enable, disable and reset take a group's name, too
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) group: String,
    /// The longest run: one that takes longer is stopped, and has failed
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) run_limit: Option<Duration>,
    /// The image
    pub(crate) image: String,
    /// Command and arguments instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Userns {
    Auto,
    Host,
}

fn cpuset(text: &str) -> Result<String, String> {
    let number = |part: &str| part.len() <= 5 && !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let good = text.split(',').all(|range| match range.split_once('-') {
        Some((first, last)) => number(first) && number(last),
        None => number(range),
    });
    if good { Ok(text.into()) } else { Err("a list of processors is like 0-2,4".into()) }
}

impl ContainerArgs {
    /// The specification. `size` is our terminal's, `ours` our environment.
    pub(crate) fn spec(
        &self,
        size: Option<TerminalSize>,
        ours: impl Fn(&str) -> Option<String>,
    ) -> Result<ContainerSpec, Failure> {
        let restart = self.restart;
        let never = matches!(restart.policy(), byre_api::proto::RestartPolicy::Never);
        if self.rm && !never {
            return Err(Failure::usage("--rm removes what --restart would start again", "leave one of them out"));
        }
        let entrypoint = self.entrypoint.clone();
        let user_namespace = match self.userns {
            Userns::Auto => UserNamespaceMode::Automatic,
            Userns::Host => UserNamespaceMode::Host,
        };
        let mut spec = ContainerSpec {
            name: self.name.clone(),
            image: self.image.clone(),
            clear_entrypoint: entrypoint.as_ref().is_some_and(String::is_empty),
            entrypoint: entrypoint.filter(|program| !program.is_empty()).into_iter().collect(),
            command: self.command.clone(),
            env: environment(&self.env_file, &self.env, ours)?,
            user: self.user.clone(),
            working_dir: self.workdir.clone(),
            hostname: self.hostname.clone(),
            terminal: self.tty,
            terminal_size: size.filter(|_| self.tty),
            open_stdin: self.interactive,
            remove_on_exit: self.rm,
            read_only_root: self.read_only,
            init: self.init,
            restart: Some(restart),
            user_namespace: user_namespace.into(),
            volumes: self.mounts()?,
            limits: Some(self.limits()?),
            labels: self.label.iter().cloned().collect(),
            add_capabilities: self.cap_add.clone(),
            drop_capabilities: self.cap_drop.clone(),
            stop_signal: self.stop_signal.clone(),
            stop_timeout: self.stop_timeout.and_then(|timeout| timeout.try_into().ok()),
            privileged: self.privileged,
            startup: self.startup.clone(),
            readiness: self.readiness.clone(),
            liveness: self.liveness.clone(),
            job: self.job,
            deadline: self.deadline.and_then(|deadline| deadline.try_into().ok()),
            run_limit: self.run_limit.and_then(|limit| limit.try_into().ok()),
            schedule: self.begins(),
            group: self.group.clone(),
            ..ContainerSpec::default()
        };
        self.network.apply(&mut spec)?;
        Ok(spec)
    }

    /// When it begins by itself.
    fn begins(&self) -> Option<Schedule> {
        let calendar = self.schedule.clone().map(When::Calendar);
        let every = self.every.and_then(|every| every.try_into().ok()).map(When::Every);
        let when = calendar.or(every)?;
        Some(Schedule { when: Some(when), catch_up: self.catch_up })
    }

    fn mounts(&self) -> Result<Vec<VolumeMount>, Failure> {
        let mounts: Vec<VolumeMount> = self.volume.iter().chain(&self.mount).chain(&self.tmpfs).cloned().collect();
        let mut seen = std::collections::BTreeSet::new();
        match mounts.iter().find(|mount| !seen.insert(&mount.target)) {
            Some(twice) => Err(Failure::usage(format!("two mounts at {}", twice.target), "leave one of them out")),
            None => Ok(mounts),
        }
    }

    fn limits(&self) -> Result<Limits, Failure> {
        let swap = match (self.memory, self.memory_swap) {
            (Some(memory), Some(both)) => Some(both.checked_sub(memory).ok_or_else(|| {
                Failure::usage("--memory-swap is less than --memory", "it counts both: make it at least as large")
            })?),
            (_, None) | (None, Some(_)) => None,
        };
        Ok(Limits {
            memory_bytes: self.memory,
            memory_swap_bytes: swap,
            cpu_millis: self.cpus,
            pids: self.pids,
            cpu_weight: self.cpu_weight,
            cpuset: self.cpuset.clone(),
        })
    }
}

/// The files' variables in their order, then those of the flags; a later one replaces an earlier one of its name. One without a value
/// gets ours, and is left out if we have none.
pub(crate) fn environment(
    files: &[PathBuf],
    flags: &[String],
    ours: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for path in files {
        let shown = path.display().to_string();
        let text = read_env_file(path).map_err(|error| Failure::io(&format!("cannot read {shown}"), &error))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let variable =
                parse::env(line).map_err(|remedy| Failure::usage(format!("{shown} line {}", number + 1), remedy))?;
            all.push(variable);
        }
    }
    all.extend(flags.iter().cloned());
    let mut result: Vec<String> = Vec::with_capacity(all.len());
    for variable in all {
        let (name, variable) = match variable.split_once('=') {
            Some((name, _)) => (name.to_owned(), variable),
            None => match ours(&variable) {
                Some(value) => (variable.clone(), format!("{variable}={value}")),
                None => continue,
            },
        };
        result.retain(|known| known.split_once('=').is_none_or(|(known, _)| known != name));
        result.push(variable);
    }
    Ok(result)
}

fn read_env_file(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(ENV_FILE_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > ENV_FILE_BYTES {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "larger than 2 MiB"));
    }
    Ok(text)
}

//! `exec`: a further process in a running container.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use byre_launch::{Progress, Report};
use byre_plan::{Origin, Plan, Policy, Principal, Process, TerminalSize};
use byre_spec::oci::{Listener, read_process};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use crate::agent::Telling;
use crate::create::{context, descriptors, failure, reap, write_pid_file};
use crate::error::{Error, cannot, wrong};
use crate::host::{self, Own};
use crate::lifecycle::bundle;
use crate::log::Log;
use crate::state::{Record, Status, Store};
use crate::{agent, cgroups, console};

/// Longest process.json.
const PROCESS_BYTES: u64 = 1024 * 1024;

/// How a further process is started.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Socket that is sent the terminal's master.
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// Socket that is sent the process's descriptor.
    #[arg(long)]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Working directory in the container.
    #[arg(long)]
    cwd: Option<String>,
    /// NAME=value; may be repeated.
    #[arg(long, short = 'e')]
    env: Vec<String>,
    /// Give it a terminal.
    #[arg(long, short = 't')]
    tty: bool,
    /// uid or uid:gid.
    #[arg(long, short = 'u')]
    user: Option<String>,
    /// Further group ids.
    #[arg(long, short = 'g')]
    additional_gids: Vec<u32>,
    /// File with the process as config.json has it.
    #[arg(long, short = 'p')]
    process: Option<PathBuf>,
    /// Do not wait for its end.
    #[arg(long, short = 'd')]
    pub(crate) detach: bool,
    /// File that its number is written to.
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Set no_new_privs.
    #[arg(long)]
    no_new_privs: bool,
    /// Capability to add; may be repeated.
    #[arg(long, short = 'c')]
    cap: Vec<String>,
    /// Descriptors from 3 on that it keeps.
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// cgroup below the container's.
    #[arg(long)]
    cgroup: Option<String>,
    /// Start it in a paused container too.
    #[arg(long)]
    ignore_paused: bool,
    /// Container.
    id: String,
    /// Program and arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it; the code is the process's, or 0 when it is left to itself.
pub(crate) fn exec(store: &Store, options: &Options, log: &Log) -> Result<i32, Error> {
    let (place, record) = store.open(&options.id)?;
    match place.status(&record) {
        Status::Created | Status::Running => {}
        Status::Paused if options.ignore_paused => {}
        status @ (Status::Creating | Status::Paused | Status::Stopped) => {
            let remedy = "run it in a container that is created or running";
            return Err(wrong(format!("cannot exec in a {} container", status.name()), remedy));
        }
    }
    let target = record.process().ok_or_else(|| wrong("container not running", "start it first"))?;
    let own = Own::read()?;
    let (container, workload) = bundle(&place, &record, log)?;
    let process = process(options, &workload.request().process, &own, &record.bundle, log)?;
    terminal_fits(options, &process)?;
    let has_terminal = process.terminal.is_some();
    let plan = Plan::check_exec(process, &workload, &Policy::default(), Origin::VerifiedRoot)?;
    let (outer, leaf) = cgroups::open(&record.cgroup)?;
    let place_in = match &options.cgroup {
        Some(path) => below(&leaf, path)?,
        None => leaf,
    };
    let (own_cgroup, helper) = (cgroups::own()?, host::no_helper()?);
    let descriptors = descriptors(options.preserve_fds, has_terminal)?;
    let signals = if options.detach { None } else { Some(console::take_signals()?) };
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(cannot("make a socket pair"))?;
    let telling = Telling { socket: theirs.as_fd(), copy: RefCell::default() };
    let companion = container.listener.as_ref().map(|_| &telling as &dyn byre_launch::Companion);
    let context = context((&outer, &place_in), &own_cgroup, &helper, &helper, companion);
    let child = byre_launch::exec(&plan, &workload, target.as_fd(), &context, &descriptors)
        .map_err(|error| cannot::<std::io::Error>("start the process")(std::io::Error::other(error)))?;
    drop(theirs);
    let report = ended(child.report, &ours, container.listener.as_ref(), &record)?;
    reap(child.stage_pid, None);
    let Report::Running { pid, pidfd, terminal } = report else { return Err(failure(report)) };
    if let Some(socket) = &options.pidfd_socket {
        console::hand_over(socket, pidfd.as_fd(), "pidfd")?;
    }
    let terminal = match (terminal, &options.console_socket) {
        (Some(master), Some(socket)) => {
            console::hand_over(socket, master.as_fd(), "/dev/ptmx")?;
            None
        }
        (terminal, _) => terminal,
    };
    if let Some(path) = &options.pid_file {
        write_pid_file(path, pid)?;
    }
    match signals {
        Some(signals) => console::attend(pidfd.as_fd(), terminal, &signals),
        None => Ok(0),
    }
}

/// Waits for the end of a start, and hands the listener of its filter on, if it has one.
fn ended(report: OwnedFd, told: &OwnedFd, listener: Option<&Listener>, record: &Record) -> Result<Report, Error> {
    let what = "follow the start";
    let mut progress = Progress::default();
    loop {
        let mut polled = [
            PollFd::from_borrowed_fd(report.as_fd(), PollFlags::RDHUP),
            PollFd::from_borrowed_fd(told.as_fd(), PollFlags::IN),
        ];
        match poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => continue,
            done => done.map_err(cannot(what))?,
        };
        let (ended, spoke) = (!polled[0].revents().is_empty(), polled[1].revents().contains(PollFlags::IN));
        progress.read(report.as_fd()).map_err(cannot(what))?;
        let mut word = [0_u8; 8];
        let count = if spoke { recv(told, &mut word, RecvFlags::empty()).map_err(cannot(what))?.0 } else { 0 };
        if let (Some(number), Some(listener), Some((pid, process))) =
            (agent::number(&word[..count]), listener, progress.process())
        {
            agent::send(listener, process, pid, number, record)?;
            rustix::io::write(told, &[agent::TAKEN]).map_err(cannot(what))?;
        }
        if ended {
            return Ok(progress.finish());
        }
    }
}

/// A cgroup below the container's own.
fn below(leaf: &OwnedFd, path: &str) -> Result<OwnedFd, Error> {
    let relative = path.trim_start_matches('/');
    if relative.split('/').any(|part| part == "..") {
        return Err(wrong(format!("--cgroup: {path} is not a sub cgroup path"), "name one below the container's"));
    }
    let place = format!("/proc/self/fd/{}/{relative}", leaf.as_raw_fd());
    std::fs::File::open(place).map(OwnedFd::from).map_err(cannot(format!("open cgroup {path} of the container")))
}

fn terminal_fits(options: &Options, process: &Process) -> Result<(), Error> {
    match (process.terminal.is_some(), options.detach, &options.console_socket) {
        (true, true, None) => {
            Err(wrong("nobody would take the process's terminal", "give --console-socket, or leave --detach out"))
        }
        (_, false, Some(_)) => Err(wrong("--console-socket is for detached processes", "add --detach")),
        (false, _, Some(_)) => Err(wrong("--console-socket is given and the process has no terminal", "add --tty")),
        (_, _, _) => Ok(()),
    }
}

/// The process: a file's, or the container's own with what the command line changes.
fn process(options: &Options, first: &Process, own: &Own, bundle: &str, log: &Log) -> Result<Process, Error> {
    let mut process = match &options.process {
        Some(path) => {
            use std::io::Read as _;
            let what = || format!("read {}", path.display());
            let mut json = Vec::new();
            let file = std::fs::File::open(path).map_err(cannot(what()))?;
            file.take(PROCESS_BYTES).read_to_end(&mut json).map_err(cannot(what()))?;
            let (process, warnings) = read_process(&json, &own.around(bundle))?;
            warnings.iter().for_each(|warning| log.warn(warning));
            process
        }
        None => Process {
            args: options.command.clone(),
            terminal: options.tty.then(|| first.terminal.unwrap_or(TerminalSize { rows: 0, columns: 0 })),
            ..first.clone()
        },
    };
    if options.process.is_some() {
        if !options.command.is_empty() {
            process.args.clone_from(&options.command);
        }
        if options.tty && process.terminal.is_none() {
            process.terminal = Some(TerminalSize { rows: 0, columns: 0 });
        }
    }
    if process.args.is_empty() {
        return Err(wrong("there is nothing to run", "give a command or --process"));
    }
    if let Some(cwd) = &options.cwd {
        process.cwd.clone_from(cwd);
    }
    for entry in &options.env {
        let name = |entry: &str| entry.split_once('=').map_or(entry.to_owned(), |(name, _)| name.to_owned());
        process.env.retain(|other| name(other) != name(entry));
        process.env.push(entry.clone());
    }
    if let Some(user) = &options.user {
        let wanted = byre_spec::parse_user(user).map_err(|error| wrong(error.to_string(), "use numbers"))?;
        process.user.group = wanted.group.or(Some(Principal::Id(0)));
        process.user.user = wanted.user;
    }
    process.user.additional_groups.extend(&options.additional_gids);
    process.no_new_privileges |= options.no_new_privs;
    for name in &options.cap {
        let mask = match byre_spec::capability(name) {
            Ok(mask) => mask & own.capabilities(),
            Err(error) => {
                log.warn(&error.to_string());
                0
            }
        };
        let sets = &mut process.capabilities;
        sets.bounding |= mask;
        sets.permitted |= mask;
        sets.effective |= mask;
        // Inheritable stays as it is: what a program inherits it could gain again (CVE-2022-29162).
    }
    Ok(process)
}

//! What happens to a container after its creation: start, signals, pause, limits, end.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use byre_plan::{Origin, Plan, Policy, Resources};
use byre_spec::oci::Bundle;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with};
use rustix::process::{Signal, pidfd_send_signal};

use crate::create::{run_poststop, start_error};
use crate::error::{Error, cannot, wrong};
use crate::gate::GOING;
use crate::host::{self, Own};
use crate::log::Log;
use crate::state::{Place, Record, Status, Store};
use crate::{agent, cgroups, hooks, notify};

/// Longest the end of a killed process is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest failure that a container's process tells.
const TOLD_BYTES: usize = 8192;

/// The bundle of a container, as it was at its creation.
pub(crate) fn bundle(place: &Place, record: &Record, log: &Log) -> Result<(Bundle, Plan), Error> {
    let json = place.read("config.json").map_err(cannot(format!("read the configuration of {}", record.id)))?;
    host::bundle(&json, &record.bundle, &Own::read()?, log)
}

/// Starts a created container. Its poststart hooks have run when this returns.
pub(crate) fn start(store: &Store, id: &str, log: &Log) -> Result<(), Error> {
    let (place, record) = store.open(id)?;
    match place.status(&record) {
        Status::Created => {}
        status @ (Status::Creating | Status::Running | Status::Paused | Status::Stopped) => {
            let problem = format!("cannot start a container that is {}", status.name());
            return Err(wrong(problem, "start one that is created"));
        }
    }
    let (bundle, _) = bundle(&place, &record, log)?;
    start_created(&place, &record, &bundle, log)
}

/// Lets a created container go on. If that fails, the container is ended, as the lifecycle wants.
pub(crate) fn start_created(place: &Place, record: &Record, bundle: &Bundle, log: &Log) -> Result<(), Error> {
    if !bundle.has_process {
        return Err(wrong("the bundle has no process to start", "add process to config.json and create it anew"));
    }
    let process = record.process();
    let noticed = notify::listen(place)?;
    let starter = connect_to(place)?;
    let started = await_program(&starter, record, bundle).and_then(|()| {
        let state = record.told(Status::Running);
        hooks::run("poststart", &bundle.hooks.poststart, &state)?;
        match (noticed, process) {
            (Some(noticed), Some(process)) => notify::pass_on(&noticed, process.as_fd(), record.pid),
            (_, _) => Ok(()),
        }
    });
    if started.is_err()
        && let Err(left) = destroy(place, record, Some(bundle), log)
    {
        log.warn(&left.to_string());
    }
    started
}

/// Tells a created container to go on. An error means that somebody else did.
fn connect_to(place: &Place) -> Result<OwnedFd, Error> {
    let what = "reach the container's process";
    let directory = place.directory()?;
    let address =
        SocketAddrUnix::new(format!("/proc/self/fd/{}/start", directory.as_raw_fd())).map_err(cannot(what))?;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(cannot(what))?;
    let started = || wrong("the container was started by somebody else", "ask for its state");
    match connect(&socket, &address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Err(started()),
        done => done.map_err(cannot(what))?,
    }
    place.forget_start();
    let mut word = [0_u8; 1];
    let (count, _) = recv(&socket, &mut word, RecvFlags::empty()).map_err(|_| started())?;
    if word[..count] == [GOING] { Ok(socket) } else { Err(started()) }
}

/// Waits until the program is executed, which closes the connection.
fn await_program(starter: &OwnedFd, record: &Record, bundle: &Bundle) -> Result<(), Error> {
    let mut word = [0_u8; TOLD_BYTES];
    let (mut count, _) = recv(starter, &mut word, RecvFlags::empty()).map_err(cannot("follow the start"))?;
    if let (Some(number), Some(listener)) = (agent::number(&word[..count]), &bundle.listener) {
        let gone = || wrong("the container's process died before its program ran", "start it anew");
        let process = record.process().ok_or_else(gone)?;
        agent::send(listener, process.as_fd(), record.pid, number, record)?;
        rustix::io::write(starter, &[agent::TAKEN]).map_err(cannot("follow the start"))?;
        (count, _) = recv(starter, &mut word, RecvFlags::empty()).map_err(cannot("follow the start"))?;
    }
    match serde_json::from_slice::<(String, String, i32)>(&word[..count]) {
        Ok((step, subject, errno)) => Err(start_error(&step, &subject, errno)),
        Err(_) => Ok(()),
    }
}

/// Sends a signal to a container's first process, or to all of them.
pub(crate) fn kill(store: &Store, id: &str, signal: &str, all: bool) -> Result<(), Error> {
    let (place, record) = store.open(id)?;
    if signal == "0" {
        // Asks whether it runs, and does nothing to it.
        return match place.status(&record) {
            Status::Stopped => Err(wrong("container not running", "signals go to one that is created or running")),
            Status::Creating | Status::Created | Status::Running | Status::Paused => Ok(()),
        };
    }
    let number = byre_spec::signal_number(signal).map_err(|error| wrong(error.to_string(), "see signal(7)"))?;
    let signal = Signal::from_named_raw(i32::from(number))
        .ok_or_else(|| wrong(format!("signal {number} cannot be sent"), "use one of 1 to 31"))?;
    if all {
        let (outer, _) = cgroups::open(&record.cgroup)?;
        if signal == Signal::KILL {
            return byre_launch::cgroup::kill(outer.as_fd()).map_err(cannot("kill the container's processes"));
        }
        for pid in cgroups::processes(outer.as_fd()) {
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
            // One that is gone meanwhile needs no signal.
            if let Some(pid) = pid
                && let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            {
                let _ = pidfd_send_signal(&pidfd, signal);
            }
        }
        return Ok(());
    }
    let running = || wrong("container not running", "signals go to one that is created or running");
    match place.status(&record) {
        Status::Stopped => Err(running()),
        Status::Creating | Status::Created | Status::Running | Status::Paused => {
            let pidfd = record.process().ok_or_else(running)?;
            pidfd_send_signal(&pidfd, signal).map_err(cannot(format!("send signal {number}")))
        }
    }
}

/// Removes a container that is not running; with `force` one that is, too.
pub(crate) fn delete(store: &Store, id: &str, force: bool, log: &Log) -> Result<(), Error> {
    let (place, record) = match store.open(id) {
        Ok(found) => found,
        Err(error) => {
            return match (store.half_made(id), force) {
                // Left by a creation that was killed before it started anything.
                (Some(place), _) => place.remove(),
                (None, true) => crate::state::check_id(id),
                (None, false) => Err(error),
            };
        }
    };
    match place.status(&record) {
        Status::Stopped | Status::Created => {}
        Status::Creating | Status::Running | Status::Paused if force => {}
        status @ (Status::Creating | Status::Running | Status::Paused) => {
            let problem = format!("cannot delete container {id} that is not stopped: {}", status.name());
            return Err(wrong(problem, "stop it, or use --force"));
        }
    }
    // A configuration that cannot be read any more keeps nothing alive.
    let bundle = bundle(&place, &record, log).map_err(|error| log.warn(&error.to_string())).ok();
    destroy(&place, &record, bundle.as_ref().map(|(bundle, _)| bundle), log)
}

/// Ends and removes everything of a container, then runs its last hooks.
pub(crate) fn destroy(place: &Place, record: &Record, bundle: Option<&Bundle>, log: &Log) -> Result<(), Error> {
    if let Some(pidfd) = record.process() {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        if let Ok((outer, _)) = cgroups::open(&record.cgroup) {
            let _ = byre_launch::cgroup::freeze(outer.as_fd(), false);
        }
        wait_for_end(&pidfd)?;
    }
    cgroups::remove(&record.cgroup)?;
    place.remove()?;
    if let Some(bundle) = bundle {
        run_poststop(record, bundle, log);
    }
    Ok(())
}

fn wait_for_end(pidfd: &OwnedFd) -> Result<(), Error> {
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    let patience = Timespec { tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(10), tv_nsec: 0 };
    match poll(&mut polled, Some(&patience)).map_err(cannot("wait for the container's process"))? {
        0 => Err(wrong(
            format!("the container's process did not end within {} s", PATIENCE.as_secs()),
            "it may be waiting for a disk; try again",
        )),
        _ => Ok(()),
    }
}

/// Stops a container's processes in their tracks, or lets them go on.
pub(crate) fn pause(store: &Store, id: &str, paused: bool) -> Result<(), Error> {
    let (place, record) = store.open(id)?;
    let (outer, _) = cgroups::open(&record.cgroup)?;
    match (place.status(&record), paused) {
        (Status::Running | Status::Created, true) | (Status::Paused, false) => cgroups::freeze(outer.as_fd(), paused),
        (status @ (Status::Creating | Status::Created | Status::Running | Status::Paused | Status::Stopped), _) => {
            let problem = format!("container is {}", status.name());
            Err(wrong(problem, if paused { "pause one that is running" } else { "resume one that is paused" }))
        }
    }
}

/// Changes a container's limits while it runs.
pub(crate) fn update(store: &Store, id: &str, resources: &Resources, log: &Log) -> Result<(), Error> {
    let (place, record) = store.open(id)?;
    if place.status(&record) == Status::Stopped {
        return Err(wrong("container not running", "limits are for one that is created or running"));
    }
    cgroups::check(resources)?;
    let (bundle, _) = bundle(&place, &record, log)?;
    let request = byre_plan::LaunchRequest { resources: resources.clone(), ..bundle.request };
    let plan = Plan::check(request, &Policy::default(), Origin::VerifiedRoot)?;
    let (outer, leaf) = cgroups::open(&record.cgroup)?;
    byre_launch::apply_limits(&plan, outer.as_fd(), leaf.as_fd())
        .map_err(|(step, subject, errno)| start_error(step, &subject, errno))
}

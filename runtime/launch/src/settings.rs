//! What a workload's own namespaces are set to: host name, sysctls, loopback, clocks; the OOM score and the scheduling of its process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{KernelSettings, LaunchRequest, Namespace, Process, Scheduling, TimeOffsets};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::report::{Failure, Step};
use crate::{procfs, sys};

/// Sets oom_score_adj, also when none is asked for: PID 1's own must not be inherited. Done on the host side.
pub(crate) fn oom_score(process: &Process) -> Result<(), Failure> {
    let value = process.oom_score_adj.unwrap_or(0).to_string();
    let proc = procfs::of_host()?;
    // A new PID namespace's process does not know its number on the host; `self` is a plain link to it.
    procfs::write(proc.as_fd(), "self/oom_score_adj", &value).step("set oom_score_adj", &value)
}

/// Applies the settings of the workload's namespaces; runs inside them.
pub(crate) fn apply(request: &LaunchRequest) -> Result<(), Failure> {
    apply_by(request, procfs::private)
}

/// As [`apply`], with another procfs. What it shows of a namespace is that of the process that writes, whosever procfs it is.
pub(crate) fn apply_by(
    request: &LaunchRequest,
    proc: impl FnOnce() -> Result<OwnedFd, Failure>,
) -> Result<(), Failure> {
    if matches!(request.namespaces.net, Namespace::New) {
        loopback_up()?;
    }
    if let Some(name) = &request.hostname {
        rustix::system::sethostname(name.as_bytes()).step("set host name", name)?;
    }
    if let Some(name) = &request.kernel.domain_name {
        rustix::system::setdomainname(name.as_bytes()).step("set domain name", name)?;
    }
    if request.sysctls.is_empty() && request.kernel.time.is_none() {
        return Ok(());
    }
    let proc = proc()?;
    if let Some(offsets) = &request.kernel.time {
        time_namespace(proc.as_fd(), offsets)?;
    }
    for (name, value) in &request.sysctls {
        let path = format!("sys/{}", name.replace('.', "/"));
        procfs::write(proc.as_fd(), &path, value).step("set sysctl", name)?;
    }
    Ok(())
}

/// Makes a time namespace. The process itself enters it when it executes the program.
fn time_namespace(proc: BorrowedFd<'_>, offsets: &TimeOffsets) -> Result<(), Failure> {
    let step = "make time namespace";
    nix::sched::unshare(sys::NEW_TIME).step(step, "")?;
    for (clock, (seconds, nanoseconds)) in [("monotonic", offsets.monotonic), ("boottime", offsets.boottime)] {
        if (seconds, nanoseconds) != (0, 0) {
            let line = format!("{clock} {seconds} {nanoseconds}\n");
            procfs::write(proc, "self/timens_offsets", &line).step(step, clock)?;
        }
    }
    Ok(())
}

/// Sets how this process is scheduled, its personality, and where its memory comes from.
pub(crate) fn scheduling(scheduling: &Scheduling, kernel: &KernelSettings) -> Result<(), Failure> {
    if let Some(scheduler) = &scheduling.processor {
        sys::set_scheduler(scheduler).step("set scheduler", &scheduler.policy.to_string())?;
    }
    if let Some(priority) = scheduling.disk {
        sys::set_disk_priority(priority).step("set disk priority", &format!("{priority:#x}"))?;
    }
    if let Some(policy) = &kernel.memory_policy {
        sys::set_memory_policy(policy).step("set memory policy", &format!("{:#x}", policy.mode))?;
    }
    if let Some(personality) = kernel.personality {
        sys::set_personality(personality).step("set personality", &format!("{personality:#x}"))?;
    }
    Ok(())
}

fn loopback_up() -> Result<(), Failure> {
    let step = "bring loopback up";
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).step(step, "lo")?;
    sys::interface_up(socket.as_fd(), c"lo").step(step, "lo")
}

//! What a workload's own namespaces are set to: host name, sysctls, loopback; and the OOM score of its process.

use std::os::fd::AsFd;

use byre_plan::{LaunchRequest, Namespace, Process};
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
    if matches!(request.namespaces.net, Namespace::New) {
        loopback_up()?;
    }
    if let Some(name) = &request.hostname {
        rustix::system::sethostname(name.as_bytes()).step("set host name", name)?;
    }
    if request.sysctls.is_empty() {
        return Ok(());
    }
    let proc = procfs::private()?;
    for (name, value) in &request.sysctls {
        let path = format!("sys/{}", name.replace('.', "/"));
        procfs::write(proc.as_fd(), &path, value).step("set sysctl", name)?;
    }
    Ok(())
}

fn loopback_up() -> Result<(), Failure> {
    let step = "bring loopback up";
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).step(step, "lo")?;
    sys::interface_up(socket.as_fd(), c"lo").step(step, "lo")
}

//! Limits of a workload's outer cgroup, written by the launch child: libcgroups for what it translates well, single writes for the rest.
//!
//! Ours are: io.weight (libcgroups overflows above 16), cpu.weight (it knows cgroup v1's shares only), swap as cgroup2 means it, memory.high and .low, memory.oom.group and `unified` in
//! the order given. Where the limits are, the leaf gets most of them too: programs that size themselves read their own cgroup's.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use byre_plan::Resources;
use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::{Manager, V2ManagerError};
use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder};
use rustix::io::Errno;

use crate::cgroup;
use crate::report::{Failure, Step};

/// cpu.max's period: what `cpu_quota_us` counts against.
const CPU_PERIOD_US: u64 = 100_000;

/// Applies every limit that is set.
pub(crate) fn apply(outer: BorrowedFd<'_>, leaf: BorrowedFd<'_>, resources: &Resources) -> Result<(), Failure> {
    fault_point!();
    if resources == &Resources::default() {
        return Ok(());
    }
    if needs_manager(resources) {
        let translated =
            translate(resources).map_err(|error| Failure::new("translate limits", error.to_string(), Errno::INVAL))?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", outer.as_raw_fd()));
        let options = ControllerOpt {
            resources: &translated,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        Manager::new(root, PathBuf::new())
            .and_then(|manager| manager.apply(&options))
            .map_err(|error| failure(&error))?;
    }
    let number = |value: &Option<u64>| value.map(|value| value.to_string());
    let own = [
        ("memory.high", number(&resources.memory_high_bytes)),
        ("memory.low", number(&resources.memory_low_bytes)),
        ("memory.swap.max", number(&resources.swap_max_bytes)),
        ("memory.oom.group", resources.oom_group.then(|| "1".to_owned())),
        ("cpu.weight", resources.cpu_weight.map(|weight| weight.to_string())),
        ("io.weight", resources.io_weight.map(|weight| weight.to_string())),
    ];
    for (name, value) in own {
        if let Some(value) = value {
            cgroup::write(outer, name, &value).step("write a cgroup limit", name)?;
        }
    }
    for (name, value) in &resources.unified {
        cgroup::write(outer, name, value).step("write a cgroup limit", name)?;
    }
    tell_leaf(leaf, resources);
    Ok(())
}

/// What a program finds when it reads its own cgroup's limits. The outer cgroup holds them, so it does not matter if this fails.
fn tell_leaf(leaf: BorrowedFd<'_>, resources: &Resources) {
    let told = [
        ("memory.max", resources.memory_max_bytes.map(|bytes| bytes.to_string())),
        ("memory.swap.max", resources.swap_max_bytes.map(|bytes| bytes.to_string())),
        ("memory.oom.group", resources.oom_group.then(|| "1".to_owned())),
        ("cpu.max", resources.cpu_quota_us.map(|quota| format!("{quota} {CPU_PERIOD_US}"))),
        ("cpu.weight", resources.cpu_weight.map(|weight| weight.to_string())),
        ("pids.max", resources.pids_max.map(|most| most.to_string())),
    ];
    for (name, value) in told {
        if let Some(value) = value {
            let _ = cgroup::write(leaf, name, &value);
        }
    }
    for (name, value) in &resources.unified {
        let _ = cgroup::write(leaf, name, value);
    }
}

fn needs_manager(resources: &Resources) -> bool {
    resources.memory_max_bytes.is_some()
        || resources.cpu_quota_us.is_some()
        || resources.cpuset_cpus.is_some()
        || resources.pids_max.is_some()
}

fn translate(resources: &Resources) -> Result<LinuxResources, oci_spec::OciSpecError> {
    let mut all = LinuxResourcesBuilder::default();
    if let Some(bytes) = resources.memory_max_bytes {
        all = all.memory(LinuxMemoryBuilder::default().limit(i64::try_from(bytes).unwrap_or(i64::MAX)).build()?);
    }
    if let Some(most) = resources.pids_max {
        all = all.pids(LinuxPidsBuilder::default().limit(i64::try_from(most).unwrap_or(i64::MAX)).build()?);
    }
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(quota) = resources.cpu_quota_us {
        cpu = cpu.quota(i64::try_from(quota).unwrap_or(i64::MAX)).period(CPU_PERIOD_US);
    }
    if let Some(list) = &resources.cpuset_cpus {
        cpu = cpu.cpus(list.clone());
    }
    all.cpu(cpu.build()?).build()
}

fn failure(error: &V2ManagerError) -> Failure {
    let errno = match error {
        V2ManagerError::WrappedIo(io) | V2ManagerError::CpuSetController(io) | V2ManagerError::PidsController(io) => {
            Errno::from_io_error(io.inner()).unwrap_or(Errno::IO)
        }
        // These keep their cause in text only.
        V2ManagerError::JoinSafely(_)
        | V2ManagerError::Util(_)
        | V2ManagerError::CpuController(_)
        | V2ManagerError::HugeTlbController(_)
        | V2ManagerError::IoController(_)
        | V2ManagerError::MemoryController(_)
        | V2ManagerError::UnifiedController(_)
        | V2ManagerError::FreezerController(_)
        | V2ManagerError::CpuStats(_)
        | V2ManagerError::HugeTlbStats(_)
        | V2ManagerError::PidsStats(_)
        | V2ManagerError::MemoryStats(_)
        | V2ManagerError::IoStats(_) => Errno::IO,
    };
    Failure::new("apply cgroup limits", error.to_string(), errno)
}

//! Checks of what a workload is given: limits, sysctls, host name.

use super::form::{at_most, text};
use crate::limits;
use crate::policy::Refusal;
use crate::request::{LaunchRequest, Namespace, Resources};

/// Longest host name, HOST_NAME_MAX.
const HOSTNAME_BYTES: usize = 64;
/// Longest value of a sysctl or a cgroup file. They hold numbers and short lists.
const VALUE_BYTES: usize = 1024;
/// Longest name of a sysctl or a cgroup file.
const KEY_BYTES: usize = 256;
/// The launch child itself touches about 300 KiB before the program runs; below a MiB the kernel kills it half-way.
pub(super) const MEMORY_MINIMUM_BYTES: u64 = 1 << 20;
/// cpu.max below 1 ms per 100 ms is refused by the kernel.
const CPU_QUOTA_MINIMUM_US: u64 = 1000;
/// More processors than Linux supports (NR_CPUS 8192), in microseconds per 100 ms.
const CPU_QUOTA_MAXIMUM_US: u64 = 8192 * 100_000;
/// Controllers whose files `unified` may name. `cgroup.*` moves, freezes and kills: that is the supervisor's.
const UNIFIED_CONTROLLERS: [&str; 8] = ["cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"];

/// A host name: only with an own UTS namespace, and of a form that no tool chokes on.
pub(super) fn hostname(request: &LaunchRequest) -> Result<(), Refusal> {
    let Some(name) = &request.hostname else { return Ok(()) };
    let fault = |reason: String, remedy: &str| Err(Refusal::new("hostname", reason, remedy));
    if matches!(request.namespaces.uts, Namespace::Host) {
        return fault("is not for the host's UTS namespace".to_owned(), "use another one or leave the name out");
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > HOSTNAME_BYTES || !name.bytes().all(good) {
        let shown: String = name.chars().take(HOSTNAME_BYTES).collect();
        return fault(format!("{shown:?} is no host name"), "use 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.'");
    }
    Ok(())
}

/// cgroup limits.
pub(super) fn resources(resources: &Resources) -> Result<(), Refusal> {
    let Resources {
        memory_max_bytes,
        memory_high_bytes,
        memory_low_bytes,
        swap_max_bytes,
        cpu_quota_us,
        cpu_weight,
        cpuset_cpus,
        pids_max,
        io_weight,
        unified,
        oom_group: _,
    } = resources;
    for (name, value) in [
        ("memory_max_bytes", memory_max_bytes),
        ("memory_high_bytes", memory_high_bytes),
        ("memory_low_bytes", memory_low_bytes),
        ("swap_max_bytes", swap_max_bytes),
        ("pids_max", pids_max),
    ] {
        // The OCI types, and the kernel's counters, are signed.
        range(name, *value, 0, i64::MAX.unsigned_abs())?;
    }
    if let Some(bytes) = memory_max_bytes.filter(|bytes| *bytes < MEMORY_MINIMUM_BYTES) {
        let reason = format!("a memory limit of {bytes} bytes starts nothing");
        return Err(Refusal::new("resources.memory_max_bytes", reason, format!("use at least {MEMORY_MINIMUM_BYTES}")));
    }
    if pids_max == &Some(0) {
        return Err(Refusal::new("resources", "a limit of 0 starts nothing", "use a larger limit or none"));
    }
    range("cpu_quota_us", *cpu_quota_us, CPU_QUOTA_MINIMUM_US, CPU_QUOTA_MAXIMUM_US)?;
    range("cpu_weight", cpu_weight.map(u64::from), 1, 10_000)?;
    range("io_weight", io_weight.map(u64::from), 1, 10_000)?;
    if let Some(list) = cpuset_cpus {
        let good = |byte: u8| byte.is_ascii_digit() || matches!(byte, b',' | b'-');
        if list.is_empty() || list.len() > VALUE_BYTES || !list.bytes().all(good) {
            let remedy = "write it as 0-3,8";
            return Err(Refusal::new("resources.cpuset_cpus", "is no list of processors", remedy));
        }
    }
    at_most("resources.unified", unified.len(), limits::UNIFIED)?;
    unified.iter().enumerate().try_for_each(|(index, entry)| unified_entry(index, entry))
}

fn range(name: &str, value: Option<u64>, least: u64, most: u64) -> Result<(), Refusal> {
    match value {
        Some(value) if value < least || value > most => Err(Refusal::new(
            format!("resources.{name}"),
            format!("{value} is out of range"),
            format!("use {least} to {most}"),
        )),
        Some(_) | None => Ok(()),
    }
}

fn unified_entry(index: usize, (name, value): &(String, String)) -> Result<(), Refusal> {
    let field = || format!("resources.unified[{index}]");
    text(&field(), name, KEY_BYTES)?;
    text(&field(), value, VALUE_BYTES)?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let known = name.split_once('.').is_some_and(|(controller, rest)| {
        UNIFIED_CONTROLLERS.contains(&controller) && !rest.is_empty() && rest.bytes().all(good)
    });
    // Writing memory.reclaim waits for reclaim; a pressure file makes a trigger that ends with its descriptor.
    if !known || name == "memory.reclaim" || name.ends_with(".pressure") {
        let shown: String = name.chars().take(60).collect();
        let remedy = "name a limit of cpu, cpuset, hugetlb, io, memory, misc, pids or rdma";
        return Err(Refusal::new(field(), format!("{shown:?} is no limit of cgroup2"), remedy));
    }
    Ok(())
}

/// Sysctls: only those that belong to a namespace, and only if the workload has that namespace for itself.
pub(super) fn sysctls(request: &LaunchRequest) -> Result<(), Refusal> {
    at_most("sysctls", request.sysctls.len(), limits::SYSCTLS)?;
    for (index, (name, value)) in request.sysctls.iter().enumerate() {
        let field = || format!("sysctls[{index}]");
        text(&field(), name, KEY_BYTES)?;
        text(&field(), value, VALUE_BYTES)?;
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let well_formed = name.split('.').all(|part| !part.is_empty() && part.bytes().all(good));
        if !well_formed || value.contains('\n') {
            let shown: String = name.chars().take(60).collect();
            return Err(Refusal::new(
                field(),
                format!("{shown:?} is no setting"),
                "write it as net.ipv4.ip_forward = 1",
            ));
        }
        let (namespace, needed) = match sysctl_namespace(name) {
            Some(SysctlNamespace::Net) => (&request.namespaces.net, "network"),
            Some(SysctlNamespace::Ipc) => (&request.namespaces.ipc, "IPC"),
            Some(SysctlNamespace::Uts) => (&request.namespaces.uts, "UTS"),
            None => {
                let remedy = "use net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* or kernel.domainname";
                return Err(Refusal::new(field(), format!("{name} belongs to the whole node"), remedy));
            }
        };
        if !matches!(namespace, Namespace::New) {
            let remedy = format!("use a new {needed} namespace");
            return Err(Refusal::new(field(), format!("{name} would change another's {needed} namespace"), remedy));
        }
    }
    Ok(())
}

enum SysctlNamespace {
    Net,
    Ipc,
    Uts,
}

fn sysctl_namespace(name: &str) -> Option<SysctlNamespace> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.auto_msgmni",
    ];
    if name.starts_with("net.") {
        Some(SysctlNamespace::Net)
    } else if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        Some(SysctlNamespace::Ipc)
    } else if name == "kernel.domainname" {
        Some(SysctlNamespace::Uts)
    } else {
        None
    }
}

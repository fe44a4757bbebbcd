//! What every container gets unless its specification says otherwise: the hardened defaults of design section 7 as a launch request.

use byre_api::proto;
use byre_plan::{
    Capabilities, LaunchRequest, Mount, MountOptions, MountSource, Namespace, Namespaces, Process, Program, Resources,
    Rlimit, Root, Seccomp, User, UserNamespace,
};
use tonic::Status;

/// Capabilities in the order of capabilities(7); a name's index is its number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// What images expect of root, as docker has it.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SYS_CHROOT",
    "MKNOD",
    "AUDIT_WRITE",
    "SETFCAP",
];
/// Paths of /proc and /sys that tell about the host.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Paths of /proc through which the host could be changed.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Processes and threads of a container without a limit of its own: a fork bomb ends here, a database does not.
const PIDS: u64 = 4096;
/// Open files: the soft limit that select(2) programs need, and room for servers that raise it.
const OPEN_FILES: (u64, u64) = (1024, 524_288);
/// Bytes of /dev/shm, as docker has it.
const SHM_BYTES: u64 = 64 << 20;
/// RLIMIT_NOFILE.
const RLIMIT_NOFILE: u8 = 7;

fn bit(name: &str) -> Option<u64> {
    CAPABILITIES.iter().position(|known| *known == name).map(|number| 1_u64 << number)
}

fn bits(names: &[&str]) -> u64 {
    names.iter().filter_map(|name| bit(name)).fold(0, |all, bit| all | bit)
}

/// Applies added and dropped capabilities to the default ones; the dropped win.
///
/// # Errors
/// `INVALID_ARGUMENT` for a name that does not exist.
pub(crate) fn capabilities(sets: &mut Capabilities, add: &[String], drop: &[String]) -> Result<(), Status> {
    let known = |name: &String| {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let all = bits(&CAPABILITIES);
        let found = if short == "ALL" { Some(all) } else { bit(short) };
        found.ok_or_else(|| {
            Status::invalid_argument(format!("capability {name:?} is not known: use a name such as NET_ADMIN, or ALL"))
        })
    };
    let mut set = sets.bounding;
    if drop.iter().any(|name| name.eq_ignore_ascii_case("ALL")) {
        set = 0;
    }
    for name in add {
        set |= known(name)?;
    }
    for name in drop.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        set &= !known(name)?;
    }
    *sets = Capabilities { bounding: set, effective: set, permitted: set, inheritable: 0, ambient: 0 };
    Ok(())
}

fn mounts(network: proto::NetworkMode) -> Vec<Mount> {
    let strict = MountOptions { no_suid: true, no_dev: true, no_exec: true, ..MountOptions::default() };
    let mount = |target: &str, source, options| Mount { target: target.into(), source, options };
    let host_network = match network {
        proto::NetworkMode::Host => true,
        proto::NetworkMode::Unspecified | proto::NetworkMode::None => false,
    };
    let read_only = MountOptions { read_only: true, recursive: host_network, ..strict };
    vec![
        mount("/proc", MountSource::Proc, strict),
        mount("/dev", MountSource::Devices, MountOptions { no_suid: true, no_exec: true, ..MountOptions::default() }),
        mount(
            "/dev/pts",
            MountSource::Devpts,
            MountOptions { no_suid: true, no_exec: true, ..MountOptions::default() },
        ),
        mount("/dev/shm", MountSource::Tmpfs { size_bytes: SHM_BYTES, mode: 0o1777 }, strict),
        mount("/dev/mqueue", MountSource::Mqueue, strict),
        mount("/sys", MountSource::Sysfs, read_only),
        mount("/sys/fs/cgroup", MountSource::Cgroup, MountOptions { read_only: true, ..strict }),
    ]
}

/// The launch request of a container without its program, root, files and volumes.
#[must_use]
pub(crate) fn container(
    privileged: bool,
    network: proto::NetworkMode,
    users: proto::UserNamespaceMode,
) -> LaunchRequest {
    let set = if privileged { bits(&CAPABILITIES) } else { bits(&DEFAULT_CAPABILITIES) };
    let net = match network {
        proto::NetworkMode::Host => Namespace::Host,
        proto::NetworkMode::Unspecified | proto::NetworkMode::None => Namespace::New,
    };
    let user = match users {
        proto::UserNamespaceMode::Host => UserNamespace::Host,
        proto::UserNamespaceMode::Unspecified | proto::UserNamespaceMode::Automatic => UserNamespace::Automatic,
    };
    LaunchRequest {
        process: Process {
            program: Program::Path,
            args: Vec::new(),
            env: Vec::new(),
            cwd: "/".into(),
            user: User::default(),
            terminal: None,
            capabilities: Capabilities { bounding: set, effective: set, permitted: set, inheritable: 0, ambient: 0 },
            rlimits: vec![Rlimit { resource: RLIMIT_NOFILE, soft: OPEN_FILES.0, hard: OPEN_FILES.1 }],
            no_new_privileges: !privileged,
            oom_score_adj: None,
        },
        root: Root::Layers { layers: Vec::new(), read_only: false },
        namespaces: Namespaces { user, net, ..Namespaces::default() },
        mounts: mounts(network),
        hostname: None,
        resources: Resources { pids_max: Some(PIDS), ..Resources::default() },
        devices: Vec::new(),
        sysctls: Vec::new(),
        masked_paths: if privileged { Vec::new() } else { MASKED.map(str::to_owned).to_vec() },
        read_only_paths: if privileged { Vec::new() } else { READ_ONLY.map(str::to_owned).to_vec() },
        seccomp: if privileged { Seccomp::None } else { Seccomp::Default },
        landlock: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_added_and_dropped_by_any_spelling() {
        let start =
            || container(false, proto::NetworkMode::None, proto::UserNamespaceMode::Automatic).process.capabilities;
        let after = |add: &[&str], drop: &[&str]| {
            let mut sets = start();
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            capabilities(&mut sets, &owned(add), &owned(drop)).map(|()| sets.bounding)
        };
        assert_eq!(bit("CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!(start().bounding.count_ones(), 14);
        assert_eq!(after(&["cap_net_admin"], &[]).unwrap(), start().bounding | 1 << 12);
        assert_eq!(after(&[], &["ALL"]).unwrap(), 0);
        assert_eq!(after(&["CHOWN"], &["all"]).unwrap(), 1);
        assert_eq!(after(&["ALL"], &["CHOWN"]).unwrap().count_ones(), 40);
        assert!(after(&["FLY"], &[]).unwrap_err().message().contains("FLY"));
    }
}

//! Checks of what only few workloads ask the kernel for: nodes, file systems of any kind, scheduling, a time namespace.

use super::form::{at_most, path_below_root, text};
use crate::limits;
use crate::policy::Refusal;
use crate::request::{
    KernelSettings, Labels, LaunchRequest, MappedMount, MemoryPolicy, Mount, MountIds, MountSource, Namespace, Node,
    NodeKind, Propagation, Scheduling, TimeOffsets, UserNamespace,
};

/// MOUNT_ATTR_NOSUID, _NODEV, _NOEXEC, _RDONLY, the access times, _NODIRATIME and _NOSYMFOLLOW of linux/mount.h.
const MOUNT_ATTRIBUTES: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x70 | 0x80 | 0x20_0000;
/// Longest name of a file system; the kernel's own have at most 15 bytes.
const KIND_BYTES: usize = 64;
/// Longest domain name, __NEW_UTS_LEN.
const DOMAIN_NAME_BYTES: usize = 64;
/// Nanoseconds of a second.
const SECOND: u32 = 1_000_000_000;
/// Highest policy of sched(7): SCHED_EXT. 4 was never used.
const LAST_POLICY: u32 = 7;
/// Highest class of ioprio_set(2): IDLE.
const LAST_DISK_CLASS: u16 = 3;
/// The mode in set_mempolicy(2)'s number, the last one (MPOL_WEIGHTED_INTERLEAVE), and MPOL_F_STATIC_NODES, _RELATIVE_NODES, _NUMA_BALANCING.
const MEMORY_MODE: u32 = 0xff;
const LAST_MEMORY_MODE: u32 = 6;
const MEMORY_FLAGS: u32 = 0xe000;
/// Longest label: a page is what the kernel takes at once.
const LABEL_BYTES: usize = 4000;

/// Nodes and links below the root.
pub(super) fn nodes(nodes: &[Node]) -> Result<(), Refusal> {
    at_most("nodes", nodes.len(), limits::NODES)?;
    for (index, node) in nodes.iter().enumerate() {
        let field = |part: &str| format!("nodes[{index}].{part}");
        path_below_root(&field("path"), &node.path)?;
        if node.mode > 0o777 {
            return Err(Refusal::new(field("mode"), format!("{:#o} is no mode", node.mode), "use 0 to 0o777"));
        }
        if node.uid == u32::MAX || node.gid == u32::MAX {
            return Err(Refusal::new(field("uid"), "4294967295 is no id", "use a smaller id"));
        }
        match &node.kind {
            // dev_t in user space has 12 bits of major and 20 of minor.
            NodeKind::Character { major, minor } | NodeKind::Block { major, minor } => {
                if *major > 0xfff || *minor > 0xf_ffff {
                    let remedy = "use a major up to 4095 and a minor up to 1048575";
                    return Err(Refusal::new(field("kind"), "number does not exist", remedy));
                }
            }
            NodeKind::Pipe => {}
            NodeKind::Link(to) => {
                text(&field("kind.link"), to, limits::PATH_BYTES)?;
                if to.is_empty() {
                    return Err(Refusal::new(field("kind.link"), "is empty", "name what it leads to"));
                }
            }
        }
    }
    Ok(())
}

/// A file system of any kind.
pub(super) fn file_system(field: &str, kind: &str, source: &str, settings: &[String]) -> Result<(), Refusal> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if kind.is_empty() || kind.len() > KIND_BYTES || !kind.bytes().all(good) {
        let shown: String = kind.chars().take(KIND_BYTES).collect();
        return Err(Refusal::new(field, format!("{shown:?} is no file system"), "use a name of /proc/filesystems"));
    }
    text(field, source, limits::PATH_BYTES)?;
    at_most(field, settings.len(), limits::FILE_SYSTEM_SETTINGS)?;
    settings.iter().try_for_each(|setting| {
        // The kernel takes keys and values of at most 256 bytes, but for paths.
        text(field, setting, limits::PATH_BYTES)?;
        if setting.is_empty() || setting.starts_with('=') {
            return Err(Refusal::new(field, "has a setting without a name", "write it as name=value"));
        }
        Ok(())
    })
}

/// The options of a mount.
pub(super) fn mount_options(field: &str, mount: &Mount) -> Result<(), Refusal> {
    let options = mount.options;
    if (options.further | options.below) & !MOUNT_ATTRIBUTES != 0 {
        let reason = format!("{:#x} is no mount attribute", options.further | options.below);
        return Err(Refusal::new(field, reason, "use MOUNT_ATTR_* bits, but for IDMAP"));
    }
    let is_bind = matches!(mount.source, MountSource::Bind { .. });
    match mount.options.propagation {
        Propagation::Private | Propagation::Shared | Propagation::Unbindable => Ok(()),
        Propagation::Slave if is_bind => Ok(()),
        Propagation::Slave => Err(Refusal::new(
            format!("{field}.propagation"),
            "is for bind mounts only",
            "leave it out: only a bind mount has a peer",
        )),
    }
}

/// Settings of the kernel.
pub(super) fn settings(request: &LaunchRequest) -> Result<(), Refusal> {
    let KernelSettings {
        domain_name,
        time,
        root_propagation,
        personality: _,
        memory_policy,
        mapped_mounts: mapped,
        mount_label,
    } = &request.kernel;
    mapped_mounts(request, mapped)?;
    if let Some(label) = mount_label {
        label_text("kernel.mount_label", label)?;
    }
    if let Some(MemoryPolicy { mode, nodes: _ }) = memory_policy
        && (mode & MEMORY_MODE > LAST_MEMORY_MODE || mode & !(MEMORY_MODE | MEMORY_FLAGS) != 0)
    {
        return Err(Refusal::new(
            "kernel.memory_policy",
            format!("{mode:#x} does not exist"),
            "use one of set_mempolicy(2)",
        ));
    }
    if let Some(name) = domain_name {
        text("kernel.domain_name", name, DOMAIN_NAME_BYTES)?;
        if !matches!(request.namespaces.uts, Namespace::New) {
            let remedy = "use a new UTS namespace or leave the name out";
            return Err(Refusal::new("kernel.domain_name", "is for a new UTS namespace only", remedy));
        }
    }
    if let Some(TimeOffsets { monotonic, boottime }) = time
        && (monotonic.1 >= SECOND || boottime.1 >= SECOND)
    {
        return Err(Refusal::new("kernel.time", "has a second or more of nanoseconds", "use 0 to 999999999"));
    }
    // Its offsets are written by the launch child itself, whose files in /proc are the host root's until it executes.
    if time.is_some() && !matches!(request.namespaces.user, UserNamespace::Host) {
        let remedy = "use the host's users or the host's clocks";
        return Err(Refusal::new("kernel.time", "does not go with a user namespace", remedy));
    }
    match root_propagation {
        Some(_) if !matches!(request.namespaces.mount, Namespace::New) => {
            let remedy = "use a new mount namespace";
            Err(Refusal::new("kernel.root_propagation", "the host's mounts are not changed by a workload", remedy))
        }
        // Set when the host's root is gone: what is shared then is shared by those who join the container.
        Some(_) | None => Ok(()),
    }
}

/// Mounts with ids of their own.
fn mapped_mounts(request: &LaunchRequest, mapped: &[MappedMount]) -> Result<(), Refusal> {
    at_most("kernel.mapped_mounts", mapped.len(), limits::MOUNTS)?;
    let mut seen = std::collections::BTreeSet::new();
    for one in mapped {
        let field = format!("mounts[{}].ids", one.mount);
        let fault = |reason: &str, remedy: &str| Err(Refusal::new(field.clone(), reason, remedy));
        match request.mounts.get(usize::from(one.mount)).map(|mount| &mount.source) {
            Some(MountSource::Bind { .. }) if seen.insert(one.mount) => {}
            Some(_) | None => return fault("are for a bind mount, once", "leave them out"),
        }
        match &one.ids {
            MountIds::Workload if matches!(request.namespaces.user, UserNamespace::Host) => {
                return fault("are those of a user namespace, and there is none", "give maps, or use a user namespace");
            }
            MountIds::Workload => {}
            MountIds::Mapped { uids, gids } => {
                super::id_ranges(&format!("{field}.uids"), uids)?;
                super::id_ranges(&format!("{field}.gids"), gids)?;
            }
        }
    }
    Ok(())
}

/// Names that security modules know.
pub(super) fn labels(labels: &Labels) -> Result<(), Refusal> {
    let Labels { apparmor, selinux } = labels;
    if let Some(profile) = apparmor {
        label_text("process.labels.apparmor", profile)?;
    }
    selinux.as_ref().map_or(Ok(()), |label| label_text("process.labels.selinux", label))
}

fn label_text(field: &str, label: &str) -> Result<(), Refusal> {
    text(field, label, LABEL_BYTES)?;
    if label.is_empty() || label.chars().any(char::is_whitespace) {
        return Err(Refusal::new(field, format!("{label:?} is no label"), "use its name, without spaces"));
    }
    Ok(())
}

/// How a process is scheduled. Whether it may be so is for the kernel to say.
pub(super) fn scheduling(scheduling: &Scheduling) -> Result<(), Refusal> {
    let fault = |field: &str, reason: String, remedy: &str| {
        Err(Refusal::new(format!("process.scheduling.{field}"), reason, remedy))
    };
    if let Some(scheduler) = scheduling.processor {
        if scheduler.policy > LAST_POLICY || scheduler.policy == 4 {
            return fault("processor", format!("policy {} does not exist", scheduler.policy), "use one of sched(7)");
        }
        if !(-20..=19).contains(&scheduler.nice) {
            return fault("processor", format!("nice {} is out of range", scheduler.nice), "use -20 to 19");
        }
    }
    match scheduling.disk {
        Some(priority) if priority >> 13 > LAST_DISK_CLASS || priority & 0x1fff > 7 => {
            fault("disk", format!("{priority:#x} is no priority"), "use class 0 to 3 and priority 0 to 7")
        }
        Some(_) | None => Ok(()),
    }
}

//! What the policy allows a client. Each rule here is about power over the node or over others; form is checked elsewhere.

use super::form::{below, is_below};
use crate::capability::CAPABILITY_NAMES;
use crate::limits::{AUTOMATIC_IDS, HOST_IDS};
use crate::policy::{Policy, Refusal};
use crate::request::{
    Capabilities, IdMap, KernelSettings, Labels, LaunchRequest, Mount, MountSource, Namespace, Namespaces, Process,
    Program, Propagation, Resources, Root, Scheduling, Seccomp, UserNamespace,
};

/// RLIMIT_NICE and RLIMIT_RTPRIO: with them a process takes processors from everybody.
const SCHEDULING_RLIMITS: [u8; 2] = [13, 14];

/// SECCOMP_FILTER_FLAG_NEW_LISTENER.
const NEW_LISTENER: u32 = 8;

/// Where namespaces of workloads are bound for others to join.
const BOUND_NAMESPACES: &str = "/run/byre/ns";

/// Checks a client's request against the policy.
pub(crate) fn allowed(request: &LaunchRequest, policy: &Policy) -> Result<(), Refusal> {
    if request.process.program == Program::None {
        // Of a pod nothing else is left than its namespaces and what they are set to.
        process(&request.process, policy)?;
        return pod_namespaces(&request.namespaces, policy);
    }
    match &request.root {
        Root::Layers { .. } => {}
        Root::Host => {
            let remedy = "use an image; services of the node come with its release";
            return Err(Refusal::new("root", "the host's root is for the node's own services", remedy));
        }
        Root::Directory { .. } => return denied("root", "a directory of the host as root", "use an image"),
    }
    process(&request.process, policy)?;
    namespaces(&request.namespaces, policy)?;
    request.mounts.iter().enumerate().try_for_each(|(index, entry)| mount(index, entry, policy))?;
    resources(&request.resources)?;
    if !policy.devices && !request.devices.is_empty() {
        return denied("devices", "devices beside the default ones", "leave them out");
    }
    if !request.nodes.is_empty() {
        return denied("nodes", "nodes beside those of /dev", "leave them out");
    }
    if request.kernel != KernelSettings::default() {
        return denied("kernel", "settings of the kernel", "leave them out");
    }
    match &request.seccomp {
        Seccomp::Default => Ok(()),
        Seccomp::Filter { flags, .. } if flags & NEW_LISTENER != 0 => {
            denied("seccomp", "a filter that hands system calls to another process", "use the default filter")
        }
        Seccomp::None | Seccomp::Filter { .. } if policy.no_seccomp => Ok(()),
        Seccomp::None | Seccomp::Filter { .. } => {
            denied("seccomp", "a process without the node's seccomp filter", "use the default filter")
        }
    }
}

/// Checks a client's exec against the policy.
pub(crate) fn exec_allowed(process_asked: &Process, workload: &LaunchRequest, policy: &Policy) -> Result<(), Refusal> {
    match &workload.root {
        Root::Layers { .. } | Root::Directory { .. } => {}
        Root::Host => {
            let remedy = "read its state, logs and files through the API";
            return Err(Refusal::new("process", "a service of the node cannot be entered", remedy));
        }
    }
    process(process_asked, policy)?;
    if workload.process.no_new_privileges && !process_asked.no_new_privileges {
        return denied("process.no_new_privileges", "new privileges inside a workload that has none", "leave it on");
    }
    Ok(())
}

fn denied(field: &str, what: &str, instead: &str) -> Result<(), Refusal> {
    Err(Refusal::new(field, format!("this node's policy does not allow {what}"), instead))
}

fn process(process: &Process, policy: &Policy) -> Result<(), Refusal> {
    let Capabilities { bounding, effective, permitted, inheritable, ambient } = process.capabilities;
    let beyond = (bounding | effective | permitted | inheritable | ambient) & !policy.capabilities;
    if beyond != 0 {
        let number = beyond.trailing_zeros();
        let name = usize::try_from(number).ok().and_then(|number| CAPABILITY_NAMES.get(number));
        let what = format!("the capability {}", name.map_or_else(|| number.to_string(), |name| (*name).to_owned()));
        return denied("process.capabilities", &what, "leave it out");
    }
    match process.program {
        Program::Path | Program::None => {}
        Program::Helper => {
            if !process.args.first().is_some_and(|name| policy.helpers.contains(name)) {
                return denied("process.program", "this helper", "use one of the helpers that the policy lists");
            }
        }
    }
    if process.oom_score_adj.is_some_and(|value| value < 0) {
        return denied("process.oom_score_adj", "a container to be spared at others' cost", "use 0 to 1000");
    }
    if process.scheduling != Scheduling::default() {
        return denied("process.scheduling", "a scheduling of its own", "leave it out");
    }
    if process.labels != Labels::default() {
        return denied("process.labels", "labels of security modules", "leave them out");
    }
    let scheduling =
        process.rlimits.iter().position(|limit| SCHEDULING_RLIMITS.contains(&limit.resource) && limit.hard != 0);
    match scheduling {
        Some(index) if !policy.host_users => {
            denied(&format!("process.rlimits[{index}]"), "raising scheduling priority", "leave it out")
        }
        Some(_) | None => Ok(()),
    }
}

fn namespaces(namespaces: &Namespaces, policy: &Policy) -> Result<(), Refusal> {
    let Namespaces { user, mount, pid, net, ipc, uts, cgroup } = namespaces;
    match user {
        UserNamespace::Automatic => {}
        UserNamespace::Host if policy.host_users => {}
        UserNamespace::Host => {
            return denied("namespaces.user", "container root to be host root", "use a user namespace");
        }
        UserNamespace::Mapped { uids, gids } => {
            id_maps("namespaces.user.uids", uids)?;
            id_maps("namespaces.user.gids", gids)?;
        }
        UserNamespace::Join(bound) => below("namespaces.user", bound, BOUND_NAMESPACES)?,
    }
    match mount {
        Namespace::New => {}
        Namespace::Host | Namespace::Join(_) => {
            return denied("namespaces.mount", "the host's mounts", "use a new mount namespace");
        }
    }
    match net {
        Namespace::New => {}
        Namespace::Join(bound) => below("namespaces.net", bound, BOUND_NAMESPACES)?,
        Namespace::Host if policy.host_network => {}
        Namespace::Host => return denied("namespaces.net", "the host's network", "use a network of its own"),
    }
    for (name, namespace) in [("pid", pid), ("ipc", ipc), ("uts", uts), ("cgroup", cgroup)] {
        match namespace {
            Namespace::New => {}
            Namespace::Join(bound) => below(&format!("namespaces.{name}"), bound, BOUND_NAMESPACES)?,
            Namespace::Host if policy.host_namespaces => {}
            Namespace::Host => {
                return denied(&format!("namespaces.{name}"), "sharing it with the host", "use a new one");
            }
        }
    }
    Ok(())
}

/// A pod has no mounts, no processes and no cgroup: only the rest of its namespaces says something.
fn pod_namespaces(asked: &Namespaces, policy: &Policy) -> Result<(), Refusal> {
    namespaces(
        &Namespaces { mount: Namespace::New, pid: Namespace::New, cgroup: Namespace::New, ..asked.clone() },
        policy,
    )
}

fn id_maps(field: &str, maps: &[IdMap]) -> Result<(), Refusal> {
    for map in maps {
        let last = map.outside.saturating_add(map.count.saturating_sub(1));
        for (range, whose) in [(HOST_IDS, "the host's"), (AUTOMATIC_IDS, "other workloads'")] {
            if map.outside <= *range.end() && last >= *range.start() {
                let remedy = format!("use ids from 65536 to {}", AUTOMATIC_IDS.start().saturating_sub(1));
                return Err(Refusal::new(field, format!("maps to {whose} ids"), remedy));
            }
        }
    }
    Ok(())
}

fn mount(index: usize, mount: &Mount, policy: &Policy) -> Result<(), Refusal> {
    match &mount.source {
        MountSource::Bind { path, recursive: _ } => {
            if !policy.bind_sources.iter().any(|above| is_below(path, above)) {
                let field = format!("mounts[{index}].source.path");
                return denied(
                    &field,
                    &format!("binding {path}"),
                    "use a volume, or a path below those that the policy lists",
                );
            }
        }
        MountSource::Proc
        | MountSource::Sysfs
        | MountSource::Cgroup
        | MountSource::Mqueue
        | MountSource::Devpts
        | MountSource::Devices
        | MountSource::Tmpfs { .. }
        | MountSource::Volume(_)
        | MountSource::OwnVolume(_)
        | MountSource::GeneratedFile(_) => {}
        MountSource::FileSystem { kind, .. } => {
            let field = format!("mounts[{index}].source");
            return denied(&field, &format!("a file system of kind {kind}"), "use a volume or a tmpfs");
        }
    }
    match mount.options.propagation {
        Propagation::Private | Propagation::Slave | Propagation::Unbindable => Ok(()),
        Propagation::Shared => {
            denied(&format!("mounts[{index}].options.propagation"), "shared mounts", "use private or slave")
        }
    }
}

fn resources(resources: &Resources) -> Result<(), Refusal> {
    // A root partition takes processors away from everybody else.
    let partition = resources.unified.iter().position(|(name, _)| name.starts_with("cpuset.cpus."));
    match partition {
        Some(index) => denied(&format!("resources.unified[{index}]"), "exclusive processors", "leave it out"),
        None => Ok(()),
    }
}

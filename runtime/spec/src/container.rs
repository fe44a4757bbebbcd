//! The launch request of a default container, and how an image's configuration and a caller's wishes go together.

use byre_plan::{
    Capabilities, Digest, LaunchRequest, Mount, MountOptions, MountSource, Namespaces, Process, Program, Resources,
    Root, Seccomp, User, UserNamespace,
};

use crate::capability::DEFAULT_CAPABILITIES;

/// PATH of a container whose image sets none.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Paths of /proc and /sys that tell about the host or its hardware.
pub const MASKED_PATHS: [&str; 11] = [
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
pub const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Processes and threads of a container without a limit of its own: a fork bomb ends here, a database does not.
const PIDS: u64 = 4096;
/// Bytes of /dev/shm, as images expect.
const SHM_BYTES: u64 = 64 << 20;

/// What a default container is made of.
#[derive(Debug, Clone)]
pub struct ContainerDefaults {
    /// `diff_id`s, lowest first.
    pub layers: Vec<Digest>,
    /// The argument list.
    pub args: Vec<String>,
}

/// The hardened defaults: all namespaces its own, user namespace included, the usual mounts, masked and read-only paths, 14 capabilities,
/// no_new_privs, the node's filter, a limit of processes.
#[must_use]
pub fn default_container(what: ContainerDefaults) -> LaunchRequest {
    let set = DEFAULT_CAPABILITIES;
    LaunchRequest {
        process: Process {
            program: Program::Path,
            args: what.args,
            env: vec![DEFAULT_PATH.to_owned()],
            cwd: "/".to_owned(),
            user: User::default(),
            terminal: None,
            capabilities: Capabilities { bounding: set, effective: set, permitted: set, inheritable: 0, ambient: 0 },
            rlimits: Vec::new(),
            no_new_privileges: true,
            oom_score_adj: None,
            scheduling: byre_plan::Scheduling::default(),
            labels: byre_plan::Labels::default(),
        },
        root: Root::Layers { layers: what.layers, read_only: false },
        namespaces: Namespaces { user: UserNamespace::Automatic, ..Namespaces::default() },
        mounts: mounts(),
        hostname: None,
        resources: Resources { pids_max: Some(PIDS), ..Resources::default() },
        devices: Vec::new(),
        sysctls: Vec::new(),
        masked_paths: MASKED_PATHS.map(str::to_owned).to_vec(),
        read_only_paths: READ_ONLY_PATHS.map(str::to_owned).to_vec(),
        seccomp: Seccomp::Default,
        landlock: Vec::new(),
        nodes: Vec::new(),
        kernel: byre_plan::KernelSettings::default(),
    }
}

fn mounts() -> Vec<Mount> {
    let strict = MountOptions { no_suid: true, no_dev: true, no_exec: true, ..MountOptions::default() };
    let devices = MountOptions { no_dev: false, ..strict };
    let read_only = MountOptions { read_only: true, ..strict };
    let mount = |target: &str, source, options| Mount { target: target.to_owned(), source, options };
    vec![
        mount("/proc", MountSource::Proc, strict),
        mount("/dev", MountSource::Devices, devices),
        mount("/dev/pts", MountSource::Devpts, devices),
        mount("/dev/shm", MountSource::Tmpfs { size_bytes: SHM_BYTES, mode: 0o1777 }, strict),
        mount("/dev/mqueue", MountSource::Mqueue, strict),
        mount("/sys", MountSource::Sysfs, read_only),
        mount("/sys/fs/cgroup", MountSource::Cgroup, read_only),
    ]
}

/// Where a container's argument list comes from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arguments<'a> {
    /// The image's.
    pub image_entrypoint: &'a [String],
    /// The image's.
    pub image_cmd: &'a [String],
    /// The caller's entrypoint, if it replaces the image's; it may be empty.
    pub entrypoint: Option<&'a [String]>,
    /// The caller's command; empty takes the image's.
    pub command: &'a [String],
}

/// Neither the image nor the caller names a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is nothing to run: the image has no entrypoint and no command; give a command")]
pub struct NoProgram;

/// The argument list. An entrypoint of the caller's does not go with the image's command.
///
/// # Errors
/// The list is empty.
pub fn arguments(from: Arguments<'_>) -> Result<Vec<String>, NoProgram> {
    let entrypoint = from.entrypoint.unwrap_or(from.image_entrypoint);
    let command = match (from.command.is_empty(), from.entrypoint) {
        (false, _) => from.command,
        (true, None) => from.image_cmd,
        (true, Some(_)) => &[],
    };
    let all: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if all.first().is_none_or(String::is_empty) { Err(NoProgram) } else { Ok(all) }
}

/// Puts `NAME=value` entries together; a later one replaces an earlier one of the same name in its place.
#[must_use]
pub fn merge_environment<'a>(entries: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    for entry in entries {
        let name = entry.split_once('=').map_or(entry, |(name, _)| name);
        let same = |other: &&mut String| other.split_once('=').map_or(other.as_str(), |(other, _)| other) == name;
        match merged.iter_mut().find(same) {
            Some(earlier) => entry.clone_into(earlier),
            None => merged.push(entry.to_owned()),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use byre_plan::{Origin, Plan, Policy};

    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_default_container_passes_the_strictest_policy() {
        let what = ContainerDefaults { layers: vec![Digest([0; 32])], args: texts(&["sh"]) };
        let policy = Policy { capabilities: DEFAULT_CAPABILITIES, ..Policy::default() };
        Plan::check(default_container(what), &policy, Origin::Client).unwrap();
    }

    #[test]
    fn the_callers_entrypoint_replaces_the_images_command() {
        let (image_entrypoint, image_cmd) = (texts(&["entry"]), texts(&["cmd"]));
        let image = Arguments { image_entrypoint: &image_entrypoint, image_cmd: &image_cmd, ..Arguments::default() };
        assert_eq!(arguments(image).unwrap(), ["entry", "cmd"]);
        assert_eq!(arguments(Arguments { command: &texts(&["mine"]), ..image }).unwrap(), ["entry", "mine"]);
        assert_eq!(arguments(Arguments { entrypoint: Some(&texts(&["own"])), ..image }).unwrap(), ["own"]);
        assert_eq!(arguments(Arguments { entrypoint: Some(&[]), ..image }), Err(NoProgram));
    }

    #[test]
    fn later_entries_of_the_environment_win() {
        assert_eq!(merge_environment(["A=1", "B=2", "A=3", "C"]), ["A=3", "B=2", "C"]);
    }
}

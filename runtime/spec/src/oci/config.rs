//! The shape of config.json, as data. Names of capabilities, system calls and the like stay texts here, so that one that is new does not make a
//! whole file unreadable; the crate oci-spec's closed enums would.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

macro_rules! shape {
    ($(#[$about:meta])* $name:ident { $($(#[$how:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(super) struct $name { $($(#[$how])* pub(super) $field: $kind),* }
    };
}

shape!(Config {
    oci_version: String, root: Root, mounts: Vec<Mount>, process: Option<Process>, hostname: String, domainname: String,
    hooks: Hooks, annotations: BTreeMap<String, String>, linux: Linux,
});
shape!(Root { path: String, readonly: bool });
shape!(Mount {
    destination: String, source: String, r#type: String, options: Vec<String>, uid_mappings: Vec<IdMapping>,
    gid_mappings: Vec<IdMapping>,
});
shape!(Process {
    terminal: bool, console_size: ConsoleSize, cwd: String, env: Vec<String>, args: Vec<String>, rlimits: Vec<Rlimit>,
    capabilities: Capabilities, no_new_privileges: bool, oom_score_adj: Option<i64>, scheduler: Option<Scheduler>,
    io_priority: Option<IoPriority>, user: User, apparmor_profile: String, selinux_label: String,
    #[serde(rename = "execCPUAffinity")] exec_cpu_affinity: Affinity,
});
shape!(Affinity {
    initial: String,
    #[serde(rename = "final")]
    last: String
});
shape!(MemoryPolicy { mode: String, nodes: String, flags: Vec<String> });
shape!(NetDevice { name: String });
shape!(ConsoleSize { height: u64, width: u64 });
shape!(Rlimit { r#type: String, soft: u64, hard: u64 });
shape!(Capabilities {
    bounding: Vec<String>, effective: Vec<String>, inheritable: Vec<String>, permitted: Vec<String>, ambient: Vec<String>,
});
shape!(Scheduler {
    policy: String, nice: i32, priority: i64, flags: Vec<String>, runtime: u64, deadline: u64, period: u64,
});
shape!(IoPriority { class: String, priority: i64 });
shape!(User { uid: u32, gid: u32, umask: Option<u32>, additional_gids: Vec<u32> });
shape!(Linux {
    namespaces: Vec<Namespace>, uid_mappings: Vec<IdMapping>, gid_mappings: Vec<IdMapping>,
    time_offsets: Option<TimeOffsets>, devices: Vec<Device>, cgroups_path: String, resources: Resources,
    sysctl: BTreeMap<String, String>, seccomp: Option<Seccomp>, rootfs_propagation: String, masked_paths: Vec<String>,
    readonly_paths: Vec<String>, personality: Option<Personality>, memory_policy: Option<MemoryPolicy>,
    mount_label: String, net_devices: BTreeMap<String, NetDevice>,
});
shape!(Namespace { r#type: String, path: String });
shape!(TimeOffsets { monotonic: Offset, boottime: Offset });
shape!(Offset { secs: i64, nanosecs: u32 });
shape!(Device {
    r#type: String, path: String, major: i64, minor: i64, file_mode: Option<u32>, uid: Option<u32>, gid: Option<u32>,
});
shape!(Personality { domain: String });
shape!(
    /// Also the content of `update --resources`.
    Resources {
        devices: Vec<DeviceAccess>, memory: Memory, cpu: Cpu, #[serde(rename = "blockIO")] block_io: BlockIo,
        hugepage_limits: Vec<HugePages>, pids: Pids, rdma: BTreeMap<String, Rdma>, unified: BTreeMap<String, String>,
    }
);
shape!(DeviceAccess { allow: bool, r#type: String, major: Option<i64>, minor: Option<i64>, access: String });
shape!(Memory { limit: Option<i64>, reservation: Option<i64>, swap: Option<i64> });
shape!(Cpu {
    shares: Option<u64>, quota: Option<i64>, burst: Option<u64>, period: Option<u64>, cpus: String, mems: String,
    idle: Option<i64>,
});
shape!(BlockIo {
    weight: Option<u16>, weight_device: Vec<WeightDevice>, throttle_read_bps_device: Vec<Throttle>,
    throttle_write_bps_device: Vec<Throttle>,
    #[serde(rename = "throttleReadIOPSDevice")] throttle_read_iops_device: Vec<Throttle>,
    #[serde(rename = "throttleWriteIOPSDevice")] throttle_write_iops_device: Vec<Throttle>,
});
shape!(WeightDevice { major: i64, minor: i64, weight: Option<u16> });
shape!(Throttle { major: i64, minor: i64, rate: u64 });
shape!(HugePages { page_size: String, limit: u64 });
shape!(Pids { limit: Option<i64> });
shape!(Rdma { hca_handles: Option<u32>, hca_objects: Option<u32> });
shape!(Seccomp {
    default_action: String, default_errno_ret: Option<u32>, flags: Vec<String>, syscalls: Vec<Syscalls>,
    listener_path: String, listener_metadata: String,
});
shape!(Syscalls { names: Vec<String>, action: String, errno_ret: Option<u32>, args: Vec<Argument> });
shape!(Argument { index: u32, value: u64, value_two: u64, op: String });

/// One line of an id map, whose keys are not in camel case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct IdMapping {
    #[serde(rename = "containerID")]
    pub(super) container_id: u32,
    #[serde(rename = "hostID")]
    pub(super) host_id: u32,
    pub(super) size: u32,
}

/// The hooks of a bundle, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// As `create_runtime`, before them; deprecated.
    pub prestart: Vec<Hook>,
    /// In the runtime's namespaces, before the root is entered.
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before the root is entered.
    pub create_container: Vec<Hook>,
    /// In the container, before its program.
    pub start_container: Vec<Hook>,
    /// In the runtime's namespaces, after the program began.
    pub poststart: Vec<Hook>,
    /// In the runtime's namespaces, after the container is gone.
    pub poststop: Vec<Hook>,
}

/// One hook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: String,
    /// Its arguments, `argv[0]` first.
    pub args: Vec<String>,
    /// Its whole environment; without one it has the caller's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Seconds after which it is ended and counts as failed.
    pub timeout: Option<u32>,
}

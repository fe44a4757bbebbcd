//! The bounds of a launch request. Each number says why it is that number.

/// Arguments of one process. The kernel takes far more; nobody types more.
pub const ARGUMENTS: usize = 1024;
/// Environment entries of one process. Kubernetes injects a handful per service; 2048 covers hundreds of services.
pub const ENVIRONMENT: usize = 2048;
/// Bytes of one argument or environment entry: Linux' own MAX_ARG_STRLEN is 128 KiB, a message is smaller than that.
pub const ARGUMENT_BYTES: usize = 32 * 1024;
/// Bytes of a path, PATH_MAX.
pub const PATH_BYTES: usize = 4096;
/// Mounts of one workload. A pod with many projected volumes has about 60.
pub const MOUNTS: usize = 256;
/// Layers of one image; overlayfs itself stops at 500, docker at 127.
pub const LAYERS: usize = 128;
/// Id-map lines per map. Linux' own limit is 340.
pub const ID_MAPS: usize = 340;
/// Supplementary groups, NGROUPS_MAX is 65536; images name a few.
pub const GROUPS: usize = 256;
/// Resource limits: Linux has 16 kinds.
pub const RLIMITS: usize = 16;
/// Device rules and nodes of one workload.
pub const DEVICES: usize = 128;
/// Nodes and links of one workload: the usual dozen, and its devices.
pub const NODES: usize = 256;
/// Settings of one file system: tmpfs has 8, overlayfs one for each layer.
pub const FILE_SYSTEM_SETTINGS: usize = 128;
/// Sysctls of one workload.
pub const SYSCTLS: usize = 64;
/// cgroup2 `unified` entries.
pub const UNIFIED: usize = 64;
/// Landlock rules of one workload.
pub const LANDLOCK_RULES: usize = 64;
/// Bytes of one generated file (hosts, resolv.conf, hostname).
pub const GENERATED_FILE_BYTES: usize = 16 * 1024;
/// Instructions of a seccomp filter, BPF_MAXINSNS.
pub const SECCOMP_INSTRUCTIONS: usize = 4096;
/// Masked or read-only paths.
pub const MASKED_PATHS: usize = 64;
/// Ids of the host itself and of its services. No client maps to them.
pub const HOST_IDS: std::ops::RangeInclusive<u32> = 0..=65_535;
/// Ids that PID 1 hands out, 65536 at a time, for [`crate::UserNamespace::Automatic`]: room for 28,000 containers at once. No client
/// maps to them by number, or it could own another's files.
pub const AUTOMATIC_IDS: std::ops::RangeInclusive<u32> = 0x1000_0000..=0x7fff_ffff;

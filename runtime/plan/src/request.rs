//! The launch request: everything that a process may be started with, as data. All of it is unchecked.

mod kernel;

pub use kernel::*;

use serde::{Deserialize, Serialize};

use crate::name::Digest;
use crate::seccomp::Instruction;

/// What a caller asks PID 1 to start. Unchecked until [`crate::Plan::check`] consumes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchRequest {
    /// The program and its credentials.
    pub process: Process,
    /// What `/` is.
    pub root: Root,
    /// Which namespaces are new, shared with the host, or joined.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Mounts below the root, in order. `/proc`, `/sys`, `/dev` and the like are listed here too; nothing is implied.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// UTS host name; only with a new UTS namespace.
    #[serde(default)]
    pub hostname: Option<String>,
    /// cgroup limits.
    #[serde(default)]
    pub resources: Resources,
    /// Devices that may be used beside the default ones (null, zero, full, random, urandom, tty, ptmx, pts).
    #[serde(default)]
    pub devices: Vec<DeviceRule>,
    /// Namespaced sysctls, as `net.ipv4.ip_forward` and value.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// Paths hidden by an empty file or directory.
    #[serde(default)]
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    #[serde(default)]
    pub read_only_paths: Vec<String>,
    /// Seccomp filter.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// Landlock rules; empty means no Landlock domain.
    #[serde(default)]
    pub landlock: Vec<LandlockRule>,
    /// Device nodes, pipes and links made below the root after the mounts.
    #[serde(default)]
    pub nodes: Vec<Node>,
    /// What else the kernel is told of the workload.
    #[serde(default)]
    pub kernel: KernelSettings,
}

/// The program and its credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// What is executed.
    #[serde(default)]
    pub program: Program,
    /// The argument list, `argv[0]` first; with [`Program::Path`] `argv[0]` is also looked up in PATH.
    pub args: Vec<String>,
    /// `NAME=value` entries.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory, absolute, inside the root.
    #[serde(default = "root_directory")]
    pub cwd: String,
    /// User and groups, as seen inside the workload's user namespace.
    #[serde(default)]
    pub user: User,
    /// A terminal in the workload's own devpts with this size, instead of pipes.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// Capability sets.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Resource limits set before the program runs.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// `PR_SET_NO_NEW_PRIVS`.
    #[serde(default = "yes")]
    pub no_new_privileges: bool,
    /// `oom_score_adj`, -1000 to 1000.
    #[serde(default)]
    pub oom_score_adj: Option<i16>,
    /// How its processor time and disk requests are scheduled.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// What security modules are told of it.
    #[serde(default)]
    pub labels: Labels,
}

impl LaunchRequest {
    /// A program with everything the host's: root, namespaces, no limits, no filter.
    #[must_use]
    pub fn on_host(process: Process) -> Self {
        Self {
            process,
            root: Root::Host,
            namespaces: Namespaces::of_host(),
            mounts: Vec::new(),
            hostname: None,
            resources: Resources::default(),
            devices: Vec::new(),
            sysctls: Vec::new(),
            masked_paths: Vec::new(),
            read_only_paths: Vec::new(),
            seccomp: Seccomp::None,
            landlock: Vec::new(),
            nodes: Vec::new(),
            kernel: KernelSettings::default(),
        }
    }
}

fn root_directory() -> String {
    "/".to_owned()
}

fn yes() -> bool {
    true
}

/// What is executed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// `args[0]`, looked up inside the workload's root.
    #[default]
    Path,
    /// The node's own `byred`, executed by descriptor from the verified root inside the workload's namespaces; `args` begin with
    /// a name of the policy's list of helpers. It serves `cp` and container init.
    Helper,
    /// Nothing. The workload is a pod: its new namespaces are made, set up, and bound to paths, and no process is left in them.
    None,
}

/// User and groups inside the workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// User id, or a name to be looked up in the workload's own /etc/passwd by the launch child.
    #[serde(default)]
    pub user: Principal,
    /// Group id or name; `None` takes the user's primary group (0 when the user is unknown to passwd).
    #[serde(default)]
    pub group: Option<Principal>,
    /// Supplementary groups. Those that the workload's own /etc/group gives a named user are added.
    #[serde(default)]
    pub additional_groups: Vec<u32>,
    /// File creation mask, default 0022.
    #[serde(default)]
    pub umask: Option<u16>,
}

/// A numeric id or a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    /// A numeric id.
    Id(u32),
    /// A name to be looked up inside the workload's root.
    Name(String),
}

impl Default for Principal {
    fn default() -> Self {
        Self::Id(0)
    }
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Capability sets as bit masks; bit N is capability number N of capabilities(7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// Bounding set.
    #[serde(default)]
    pub bounding: u64,
    /// Effective set.
    #[serde(default)]
    pub effective: u64,
    /// Permitted set.
    #[serde(default)]
    pub permitted: u64,
    /// Inheritable set.
    #[serde(default)]
    pub inheritable: u64,
    /// Ambient set.
    #[serde(default)]
    pub ambient: u64,
}

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Linux' RLIMIT_* number, 0 to 15.
    pub resource: u8,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What `/` is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// The host's own verified root, for host services.
    Host,
    /// Image layers, lowest first, as `layers/<digest>.erofs` of the image store, under a writable overlay layer of this workload's own.
    Layers {
        /// `diff_id`s, lowest first.
        layers: Vec<Digest>,
        /// No writable layer: the root is read-only.
        read_only: bool,
    },
    /// A directory that somebody else keeps, as an OCI bundle has it.
    Directory {
        /// Absolute host path, without symbolic links.
        path: String,
        /// The root is read-only.
        read_only: bool,
    },
}

impl Root {
    /// Whether it is not the host's, so that the workload needs mounts of its own.
    #[must_use]
    pub fn is_own(&self) -> bool {
        match self {
            Self::Host => false,
            Self::Layers { .. } | Self::Directory { .. } => true,
        }
    }
}

/// One namespace of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    /// A new one.
    #[default]
    New,
    /// The host's.
    Host,
    /// One that this path leads to. For a client's workload it lies under /run/byre/ns.
    Join(String),
}

/// The user namespace of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserNamespace {
    /// The host's.
    #[default]
    Host,
    /// A new one; PID 1 assigns a range of 65536 host ids that no other workload has, and keeps it for the workload's life.
    Automatic,
    /// A new one with these maps.
    Mapped {
        /// User id maps.
        uids: Vec<IdMap>,
        /// Group id maps.
        gids: Vec<IdMap>,
    },
    /// One that this path leads to, with a range of PID 1's as [`Self::Automatic`] has it. For a client's workload it lies under /run/byre/ns.
    Join(String),
}

/// One line of an id map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub inside: u32,
    /// First id on the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The namespaces of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct Namespaces {
    /// User namespace.
    pub user: UserNamespace,
    /// Mount namespace.
    pub mount: Namespace,
    /// PID namespace.
    pub pid: Namespace,
    /// Network namespace.
    pub net: Namespace,
    /// IPC namespace.
    pub ipc: Namespace,
    /// UTS namespace.
    pub uts: Namespace,
    /// cgroup namespace.
    pub cgroup: Namespace,
}

impl Namespaces {
    /// None of its own.
    #[must_use]
    pub fn of_host() -> Self {
        Self {
            user: UserNamespace::Host,
            mount: Namespace::Host,
            pid: Namespace::Host,
            net: Namespace::Host,
            ipc: Namespace::Host,
            uts: Namespace::Host,
            cgroup: Namespace::Host,
        }
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path inside the root; made if it is missing (a directory, or a file for a file source).
    pub target: String,
    /// What is mounted.
    pub source: MountSource,
    /// `MOUNT_ATTR_*` and propagation.
    #[serde(default)]
    pub options: MountOptions,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// procfs of the workload's PID namespace.
    Proc,
    /// sysfs of the workload's network namespace; with host networking and a user namespace, a read-only bind of the host's.
    Sysfs,
    /// cgroup2 of the workload's cgroup namespace.
    Cgroup,
    /// POSIX message queues.
    Mqueue,
    /// A new devpts instance (newinstance, ptmxmode 0666, mode 0620).
    Devpts,
    /// The default /dev: a tmpfs with the default device nodes and the usual links (fd, stdin, stdout, stderr, ptmx, console).
    Devices,
    /// A tmpfs.
    Tmpfs {
        /// Limit in bytes; 0 takes the kernel's default.
        size_bytes: u64,
        /// Mode of its root, such as 0o1777.
        mode: u16,
    },
    /// A path of the host, resolved by the launch child with RESOLVE_NO_SYMLINKS below `/`, subject to the policy.
    Bind {
        /// Absolute host path.
        path: String,
        /// Take mounts below it along.
        recursive: bool,
    },
    /// A named volume: `/data/volumes/<name>`, made with the workload's root as its owner if it is missing. An empty new volume is filled from
    /// the image's content at the target, as docker does.
    Volume(crate::name::Name),
    /// A small read-only file with this content, owned by the workload's root: hosts, hostname, resolv.conf.
    GeneratedFile(String),
    /// The workload's own volume of this number, which is removed with the workload; otherwise as [`Self::Volume`].
    OwnVolume(u16),
    /// A file system of any kind, made inside the workload's namespaces, which decide what it may be.
    FileSystem {
        /// As in /proc/filesystems.
        kind: String,
        /// Its `source`, such as a device; may be empty.
        source: String,
        /// `key=value` or `key`, in order.
        settings: Vec<String>,
        /// Begins with what the root has at the target.
        copy_up: bool,
    },
}

/// Flags of one mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct MountOptions {
    /// `MOUNT_ATTR_RDONLY`.
    pub read_only: bool,
    /// `MOUNT_ATTR_NOSUID`.
    pub no_suid: bool,
    /// `MOUNT_ATTR_NODEV`.
    pub no_dev: bool,
    /// `MOUNT_ATTR_NOEXEC`.
    pub no_exec: bool,
    /// Attributes apply to the mounts below as well.
    pub recursive: bool,
    /// Further `MOUNT_ATTR_*` bits: access times, NOSYMFOLLOW.
    pub further: u32,
    /// `MOUNT_ATTR_*` bits that apply to this mount and those below it.
    pub below: u32,
    /// Propagation of the mount.
    pub propagation: Propagation,
}

/// Mount propagation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// No propagation.
    #[default]
    Private,
    /// From the host to the workload.
    Slave,
    /// Both ways.
    Shared,
    /// None, and it cannot be bound elsewhere.
    Unbindable,
}

/// cgroup v2 limits. `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct Resources {
    /// memory.max in bytes.
    pub memory_max_bytes: Option<u64>,
    /// memory.high in bytes.
    pub memory_high_bytes: Option<u64>,
    /// memory.low in bytes.
    pub memory_low_bytes: Option<u64>,
    /// memory.swap.max in bytes (swap alone, cgroup v2's meaning).
    pub swap_max_bytes: Option<u64>,
    /// cpu.max as microseconds of CPU per 100 ms of time; 150000 is one and a half processors.
    pub cpu_quota_us: Option<u64>,
    /// cpu.weight, 1 to 10000.
    pub cpu_weight: Option<u16>,
    /// cpuset.cpus.
    pub cpuset_cpus: Option<String>,
    /// pids.max.
    pub pids_max: Option<u64>,
    /// io.weight, 1 to 10000.
    pub io_weight: Option<u16>,
    /// Further cgroup2 files by name, applied last and in order.
    pub unified: Vec<(String, String)>,
    /// memory.oom.group: an out-of-memory kill ends the whole workload.
    pub oom_group: bool,
}

/// A device a workload may use. In every profile the system disk is denied whatever this says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    /// Block or character.
    pub block: bool,
    /// Major number; `None` is any.
    pub major: Option<u32>,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be made by mknod.
    pub mknod: bool,
    /// Also make a node (bound from the host's) at this path below the root.
    pub path: Option<String>,
    /// The rule takes away. Later rules count over earlier ones.
    #[serde(default)]
    pub deny: bool,
}

/// Seccomp filter of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// No filter. The policy decides who may have none; services install their own (details: services' filters are theirs).
    None,
    /// The node's default profile, compiled once.
    #[default]
    Default,
    /// A compiled filter.
    Filter {
        /// Classic BPF, checked again by the kernel.
        instructions: Vec<Instruction>,
        /// SECCOMP_FILTER_FLAG_* bits.
        flags: u32,
    },
}

/// One Landlock rule: what lies below `path` may be used with `access`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LandlockRule {
    /// Absolute path.
    pub path: String,
    /// What is allowed below it.
    pub access: LandlockAccess,
}

/// What a Landlock rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LandlockAccess {
    /// Read files and directories.
    Read,
    /// Read and execute.
    Execute,
    /// Everything but execute and device nodes.
    Write,
}

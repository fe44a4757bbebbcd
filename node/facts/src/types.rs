//! What a node says of itself: the types, from which docs/facts.schema.json is generated.
//!
//! What a machine does not tell is absent, never guessed. Sizes are bytes, times milliseconds unless the name says otherwise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Of the form of [`Facts`]; a field that changes its meaning raises it, a new field does not.
pub const VERSION: u32 = 1;

/// Declares a record of facts; all are plain data with a schema.
macro_rules! record {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $field_doc:literal])* $field:ident: $type:ty,)* }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub struct $name { $($(#[doc = $field_doc])* pub $field: $type,)* }
    };
}

record! {
    /// All facts of a node at one moment.
    Facts {
        /// Version of this form; 1.
        version: u32,
        /// The machine.
        machine: Machine,
        /// Its processors.
        cpu: Cpu,
        /// Nodes of its memory.
        numa: Vec<NumaNode>,
        /// Memory.
        memory: Memory,
        /// Block devices, without loop and memory devices.
        disks: Vec<Disk>,
        /// Network links.
        links: Vec<NetworkLink>,
        /// PCI functions.
        pci: Vec<PciFunction>,
        /// The kernel.
        kernel: Kernel,
        /// The operating system.
        os: OperatingSystem,
        /// What protects it.
        security: Security,
        /// Waiting for resources (PSI).
        pressure: Pressure,
        /// What the machine has for containers at all.
        capacity: Resources,
        /// What containers may have of that.
        allocatable: Resources,
        /// Since boot.
        uptime_ms: u64,
        /// When the machine was booted, since 1970.
        booted_wall_ms: u64,
        /// The clock.
        clock: Clock,
        /// The host name.
        hostname: String,
        /// The machine identity of this installation.
        machine_id: Option<String>,
    }
}
record! {
    /// What the firmware says of the machine.
    Machine {
        /// Who made it.
        vendor: Option<String>,
        /// Its product name.
        product: Option<String>,
        /// SMBIOS system UUID, in small letters.
        uuid: Option<String>,
        /// Who made the firmware.
        firmware_vendor: Option<String>,
        /// Version of the firmware.
        firmware_version: Option<String>,
        /// Booted through UEFI.
        efi: bool,
        /// The processor says that a hypervisor runs the machine.
        virtual_machine: bool,
        /// Architecture, as uname(2) names it.
        architecture: String,
    }
}
record! {
    /// Processors.
    Cpu {
        /// Vendor, such as GenuineIntel.
        vendor: String,
        /// Model name.
        model: String,
        /// Family number.
        family: u32,
        /// Model number.
        model_number: u32,
        /// Stepping.
        stepping: u32,
        /// Sockets with a processor that is on.
        sockets: u32,
        /// Cores that are on, over all sockets.
        cores: u32,
        /// Threads that are on: what schedulers call processors.
        threads: u32,
        /// Highest frequency, or the one measured where the machine names no highest.
        frequency_khz: Option<u64>,
        /// Features of all processors, by the names that node-feature-discovery uses under cpu-cpuid.
        features: Vec<String>,
        /// Features of all processors as the kernel names them (/proc/cpuinfo).
        flags: Vec<String>,
        /// Weaknesses that the kernel knows, with what it does about them.
        vulnerabilities: Vec<Vulnerability>,
    }
}
record! {
    /// A weakness of the processor.
    Vulnerability {
        /// Kernel name.
        name: String,
        /// What the kernel says.
        state: String,
    }
}
record! {
    /// One NUMA node.
    NumaNode {
        /// Number.
        id: u32,
        /// Its processors, as the kernel lists them, such as 0-3,8.
        cpus: String,
        /// Its memory.
        memory_bytes: u64,
        /// Distances to all nodes, in their order; 10 is its own.
        distances: Vec<u32>,
    }
}
record! {
    /// Memory.
    Memory {
        /// What the kernel has.
        total_bytes: u64,
        /// What could be used without swapping (MemAvailable).
        available_bytes: u64,
        /// Swap.
        swap_bytes: u64,
        /// Pools of huge pages.
        huge_pages: Vec<HugePages>,
        /// What each top-level cgroup uses; together, all programs of the machine.
        cgroups: Vec<CgroupMemory>,
    }
}
record! {
    /// Memory that a top-level cgroup uses.
    CgroupMemory {
        /// Its name.
        name: String,
        /// All of it, with what the kernel holds on its behalf (memory.current).
        used_bytes: u64,
        /// Without a file behind it.
        anonymous_bytes: u64,
        /// Pages of files, which the kernel can give back.
        file_bytes: u64,
    }
}
record! {
    /// A pool of huge pages.
    HugePages {
        /// Size of one.
        page_bytes: u64,
        /// Pages in the pool.
        total: u64,
        /// Pages that are free.
        free: u64,
    }
}
record! {
    /// A block device.
    Disk {
        /// Kernel name.
        name: String,
        /// Size.
        size_bytes: u64,
        /// It turns.
        rotational: bool,
        /// It cannot be written.
        read_only: bool,
        /// It can be taken out.
        removable: bool,
        /// Model, where it has one.
        model: Option<String>,
        /// Bytes of a logical block.
        block_bytes: u64,
        /// Its partitions.
        partitions: Vec<Partition>,
    }
}
record! {
    /// A partition.
    Partition {
        /// Kernel name.
        name: String,
        /// Number on its disk.
        number: u32,
        /// Size.
        size_bytes: u64,
        /// Label in the partition table.
        label: Option<String>,
    }
}
record! {
    /// A network link.
    NetworkLink {
        /// Name.
        name: String,
        /// Interface index.
        index: u32,
        /// Hardware address.
        mac: Option<String>,
        /// Largest packet, in bytes.
        mtu: u32,
        /// State, as the kernel names it: up, down, unknown and others.
        state: String,
        /// Speed, where the link says one.
        speed_mbit_s: Option<u64>,
        /// Kernel driver; links made by software have none.
        driver: Option<String>,
    }
}
record! {
    /// A PCI function.
    PciFunction {
        /// Where: domain:bus:device.function.
        address: String,
        /// Class, six hexadecimal digits.
        class: String,
        /// Vendor, four hexadecimal digits.
        vendor: String,
        /// Device, four hexadecimal digits.
        device: String,
        /// Kernel driver that has it.
        driver: Option<String>,
        /// NUMA node it is next to.
        numa_node: Option<u32>,
    }
}
record! {
    /// The kernel and what it can do; probed, not derived from its version.
    Kernel {
        /// Release, such as 6.12.48-cloud-amd64.
        release: String,
        /// Version text.
        build: String,
        /// Command line; values that may be secrets are left out.
        command_line: String,
        /// Modules that are loaded.
        modules: Vec<String>,
        /// File systems that it knows.
        filesystems: Vec<String>,
        /// New user namespaces can be made.
        user_namespaces: bool,
        /// io_uring can be used.
        io_uring: bool,
        /// bpf(2) is there.
        bpf: bool,
        /// Version of Landlock's interface; absent without Landlock.
        landlock_abi: Option<u32>,
        /// Actions of seccomp filters.
        seccomp_actions: Vec<String>,
        /// Controllers of the cgroup v2 root; empty without cgroup v2.
        cgroup_controllers: Vec<String>,
        /// Security modules that are active.
        security_modules: Vec<String>,
    }
}
record! {
    /// The operating system.
    OperatingSystem {
        /// Identifier from os-release.
        id: Option<String>,
        /// Version from os-release.
        version: Option<String>,
        /// Name for people.
        name: Option<String>,
        /// Slot that runs: a or b.
        slot: Option<String>,
        /// Root hash of the slot.
        root_hash: Option<String>,
        /// Disk that was booted.
        disk: Option<String>,
        /// How the state partition was found at this boot: whole, or what was done to it.
        state_found: Option<String>,
    }
}
record! {
    /// What protects the node.
    Security {
        /// The root file system is checked by dm-verity.
        verity: bool,
        /// Lockdown mode: none, integrity or confidentiality; absent where the kernel does not say.
        lockdown: Option<String>,
        /// UEFI Secure Boot is on; absent where there is none to ask.
        secure_boot: Option<bool>,
        /// Version of the TPM; absent without one.
        tpm: Option<u32>,
        /// Filters of system calls are there.
        seccomp: bool,
        /// The kernel refuses unsigned modules.
        module_signatures_enforced: bool,
    }
}
record! {
    /// Whether the time is known. All but `known` is of the last agreement of time servers.
    Clock {
        /// More than half of the configured time servers have agreed since the machine was switched on.
        known: bool,
        /// Their clock less the machine's, before it was corrected.
        offset_ns: Option<i64>,
        /// How wrong that may be.
        error_ns: Option<u64>,
        /// When they agreed, since 1970.
        agreed_wall_s: Option<u64>,
    }
}
record! {
    /// Pressure of all three resources; absent where the kernel has no PSI.
    Pressure {
        /// Waiting for processors.
        cpu: Option<Stall>,
        /// Waiting for memory.
        memory: Option<Stall>,
        /// Waiting for devices.
        io: Option<Stall>,
    }
}
record! {
    /// Share of time that was lost, in percent.
    Stall {
        /// At least one task waited.
        some: Averages,
        /// All tasks waited.
        full: Option<Averages>,
    }
}
record! {
    /// Averages in percent, and the sum since boot.
    Averages {
        /// Over 10 s.
        percent_10s: f64,
        /// Over a minute.
        percent_60s: f64,
        /// Over five minutes.
        percent_300s: f64,
        /// Since boot.
        total_us: u64,
    }
}
record! {
    /// Amounts of what a scheduler gives away.
    Resources {
        /// Memory.
        memory_bytes: u64,
        /// Thousandths of a processor.
        cpu_millis: u64,
    }
}

/// The little that a list of nodes shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Processors that are on.
    pub processors: u32,
    /// What containers may have of the memory.
    pub memory_allocatable_bytes: u64,
    /// What containers may have of the processors, in thousandths of one.
    pub cpu_allocatable_millis: u64,
    /// When the machine was booted, in milliseconds since 1970.
    pub booted_wall_ms: u64,
    /// What should be so on a node, and whether it is.
    pub conditions: Vec<Condition>,
}

/// Something that should be so on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Name: verity, lockdown, seccomp, cgroup2 or state.
    pub name: &'static str,
    /// Whether it is so.
    pub ok: bool,
    /// For people.
    pub detail: String,
}

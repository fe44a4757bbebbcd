//! What the node can do and how it does: measured from the kernel, the firmware's tables and cgroups, never configured.
//!
//! It runs inside `byred api`, without privileges, on read-only /proc and /sys. What cannot change is measured once, by
//! [`Collector::new`], which must run before the process seals itself (it asks the kernel with calls that the sealed service may not
//! make); [`Collector::facts`] measures the rest with nothing but reads of files. Nothing here waits or keeps a thread.

mod cpu;
mod devices;
mod kernel;
mod memory;
mod probe;
mod read;
mod system;
mod types;

pub use read::Root;
pub use types::*;

/// Measures; holds what does not change while the machine runs.
#[derive(Debug, Clone)]
pub struct Collector {
    root: Root,
    machine: Machine,
    cpu: Cpu,
    kernel: Kernel,
    os: OperatingSystem,
    booted_wall_ms: u64,
}

impl Default for Collector {
    fn default() -> Self {
        Self::new(Root::default())
    }
}

impl Collector {
    /// Measures what does not change.
    #[must_use]
    pub fn new(root: Root) -> Self {
        let cpu = cpu::read(&root);
        let hypervisor = cpu.flags.iter().any(|flag| flag == "hypervisor");
        let booted = read::file(root.proc.join("stat"));
        let booted = booted.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
        Self {
            machine: system::machine(&root, hypervisor),
            kernel: kernel::read(&root),
            os: system::operating_system(&root),
            booted_wall_ms: booted.unwrap_or(0).saturating_mul(1000),
            cpu,
            root,
        }
    }

    /// Measures now.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let root = &self.root;
        let uptime_ms = uptime_ms(&read::file(root.proc.join("uptime")));
        let memory = memory::read(root);
        let threads = self.threads();
        let (capacity, allocatable) = memory::resources(root, memory.total_bytes, threads, uptime_ms);
        let kernel::Changing { modules, filesystems } = kernel::changing(root);
        Facts {
            version: VERSION,
            machine: self.machine.clone(),
            cpu: Cpu { threads, ..self.cpu.clone() },
            numa: memory::numa(root),
            memory,
            disks: devices::disks(root),
            links: devices::links(root),
            pci: devices::pci(root),
            kernel: Kernel { modules, filesystems, ..self.kernel.clone() },
            os: self.os.clone(),
            security: system::security(root, &self.kernel.seccomp_actions),
            pressure: memory::pressure(root),
            capacity,
            allocatable,
            uptime_ms,
            booted_wall_ms: self.booted_wall_ms,
            clock: system::clock(root),
            hostname: read::attribute(root.proc.join("sys/kernel/hostname")).unwrap_or_default(),
            machine_id: read::attribute(root.run.join("machine-id")),
        }
    }

    /// Processors can be switched on and off.
    fn threads(&self) -> u32 {
        let online = read::attribute(self.root.sys.join("devices/system/cpu/online"));
        online.map_or(self.cpu.threads, |list| u32::try_from(cpu::cpu_list(&list).len()).unwrap_or(u32::MAX))
    }
}

/// Measures everything at once; see [`Collector`] for doing it often.
#[must_use]
pub fn collect() -> Facts {
    Collector::default().facts()
}

/// The little that a list of nodes shows.
#[must_use]
pub fn summary(facts: &Facts) -> Summary {
    let security = &facts.security;
    let lockdown = security.lockdown.as_deref().unwrap_or("not offered by this kernel");
    let verity =
        if security.verity { "the root is checked by dm-verity" } else { "the root is not on a verity device" };
    let controllers = &facts.kernel.cgroup_controllers;
    let cgroup2 = if controllers.is_empty() { "no cgroup v2 at /sys/fs/cgroup".into() } else { controllers.join(" ") };
    let seccomp = facts.kernel.seccomp_actions.join(" ");
    Summary {
        memory_bytes: facts.capacity.memory_bytes,
        processors: facts.cpu.threads,
        memory_allocatable_bytes: facts.allocatable.memory_bytes,
        cpu_allocatable_millis: facts.allocatable.cpu_millis,
        booted_wall_ms: facts.booted_wall_ms,
        conditions: vec![
            Condition { name: "verity", ok: security.verity, detail: verity.into() },
            Condition {
                name: "lockdown",
                ok: matches!(security.lockdown.as_deref(), Some("integrity" | "confidentiality")),
                detail: lockdown.into(),
            },
            Condition { name: "seccomp", ok: security.seccomp, detail: seccomp },
            Condition { name: "cgroup2", ok: !controllers.is_empty(), detail: cgroup2 },
            Condition {
                name: "state",
                ok: facts.os.state_found.as_deref() == Some("whole"),
                detail: facts.os.state_found.clone().unwrap_or_else(|| "no word of a state partition".into()),
            },
        ],
    }
}

/// The JSON Schema of [`Facts`], as docs/facts.schema.json holds it.
#[must_use]
pub fn json_schema() -> String {
    let mut text = serde_json::to_string_pretty(&schemars::schema_for!(Facts)).unwrap_or_default();
    text.push('\n');
    text
}

/// The first number of /proc/uptime, in milliseconds.
fn uptime_ms(text: &str) -> u64 {
    let Some((seconds, part)) = text.split_whitespace().next().and_then(|word| word.split_once('.')) else { return 0 };
    let hundredths: u64 = part.get(..2).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    seconds.parse::<u64>().unwrap_or(0).saturating_mul(1000).saturating_add(hundredths * 10)
}

//! Memory, its nodes, pressure, and what is left of the machine for containers.

use crate::read::{Root, attribute, file, names, number};
use crate::types::{Averages, CgroupMemory, HugePages, Memory, NumaNode, Pressure, Resources, Stall};

/// Kept free for the kernel and for bursts of the system: a twentieth of the memory ...
const RESERVE_SHARE: u64 = 20;
/// ... but at least this ...
const RESERVE_LEAST_BYTES: u64 = 32 << 20;
/// ... and at most this: a large machine's system is not larger in proportion.
const RESERVE_MOST_BYTES: u64 = 1 << 30;
/// Kept for the system's bursts: a fiftieth of the processors, at least a twentieth of one.
const CPU_RESERVE_SHARE: u64 = 50;
const CPU_RESERVE_LEAST_MILLIS: u64 = 50;
/// Top-level cgroups of what a scheduler gives resources to; all others are the system.
const WORKLOAD_CGROUPS: &[&str] = &["workloads", "kubernetes"];

/// The value of a line `Key:   123 kB`, in bytes.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| {
        // Lines of NUMA nodes begin with `Node 0 `.
        let at = line.find(key)?;
        line.get(at..)?.strip_prefix(key)?.strip_prefix(':')
    })?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Measures memory.
pub(crate) fn read(root: &Root) -> Memory {
    let text = file(root.proc.join("meminfo"));
    let pools = root.sys.join("kernel/mm/hugepages");
    let huge_pages = names(&pools)
        .into_iter()
        .filter_map(|name| {
            let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let pool = pools.join(&name);
            Some(HugePages {
                page_bytes: kilobytes.checked_mul(1024)?,
                total: number(pool.join("nr_hugepages"))?,
                free: number(pool.join("free_hugepages"))?,
            })
        })
        .collect();
    Memory {
        total_bytes: kilobytes(&text, "MemTotal").unwrap_or(0),
        available_bytes: kilobytes(&text, "MemAvailable").unwrap_or(0),
        swap_bytes: kilobytes(&text, "SwapTotal").unwrap_or(0),
        huge_pages,
        cgroups: cgroups(root),
    }
}

/// Measures the top-level cgroups.
fn cgroups(root: &Root) -> Vec<CgroupMemory> {
    let tree = root.sys.join("fs/cgroup");
    let groups = names(&tree).into_iter().filter_map(|name| {
        let group = tree.join(&name);
        let used_bytes = number(group.join("memory.current"))?;
        let text = file(group.join("memory.stat"));
        let part = |key| stat(&text, key).unwrap_or(0);
        Some(CgroupMemory { name, used_bytes, anonymous_bytes: part("anon"), file_bytes: part("file") })
    });
    groups.collect()
}

/// Measures the nodes of memory.
pub(crate) fn numa(root: &Root) -> Vec<NumaNode> {
    let directory = root.sys.join("devices/system/node");
    let nodes = names(&directory).into_iter().filter_map(|name| {
        let id = name.strip_prefix("node")?.parse().ok()?;
        let node = directory.join(&name);
        let distances = attribute(node.join("distance")).unwrap_or_default();
        Some(NumaNode {
            id,
            cpus: attribute(node.join("cpulist")).unwrap_or_default(),
            memory_bytes: kilobytes(&file(node.join("meminfo")), "MemTotal").unwrap_or(0),
            distances: distances.split_whitespace().filter_map(|distance| distance.parse().ok()).collect(),
        })
    });
    nodes.collect()
}

/// Measures pressure.
pub(crate) fn pressure(root: &Root) -> Pressure {
    let stall = |name: &str| parse_stall(&attribute(root.proc.join("pressure").join(name))?);
    Pressure { cpu: stall("cpu"), memory: stall("memory"), io: stall("io") }
}

fn parse_stall(text: &str) -> Option<Stall> {
    let line = |kind: &str| text.lines().find_map(|line| line.strip_prefix(kind)).and_then(parse_averages);
    Some(Stall { some: line("some ")?, full: line("full ") })
}

fn parse_averages(line: &str) -> Option<Averages> {
    let field = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let percent = |key: &str| field(key)?.parse::<f64>().ok().filter(|percent| percent.is_finite());
    Some(Averages {
        percent_10s: percent("avg10")?,
        percent_60s: percent("avg60")?,
        percent_300s: percent("avg300")?,
        total_us: field("total")?.parse().ok()?,
    })
}

/// What the machine has, and what of it the system leaves: measured use of all cgroups but the workloads', and a reserve.
pub(crate) fn resources(root: &Root, memory_bytes: u64, threads: u32, uptime_ms: u64) -> (Resources, Resources) {
    let capacity = Resources { memory_bytes, cpu_millis: u64::from(threads) * 1000 };
    let tree = root.sys.join("fs/cgroup");
    let (mut used_bytes, mut used_us) = (0u64, 0u64);
    for name in names(&tree).into_iter().filter(|name| !WORKLOAD_CGROUPS.contains(&name.as_str())) {
        let group = tree.join(name);
        // What the kernel would give back at once (file pages not used lately) is not really in use.
        let inactive = stat(&file(group.join("memory.stat")), "inactive_file").unwrap_or(0);
        let current = number(group.join("memory.current")).unwrap_or(0);
        used_bytes = used_bytes.saturating_add(current.saturating_sub(inactive));
        used_us = used_us.saturating_add(stat(&file(group.join("cpu.stat")), "usage_usec").unwrap_or(0));
    }
    // Microseconds in a millisecond are thousandths of a processor.
    let used_millis = used_us / uptime_ms.max(1);
    let memory_reserve = (memory_bytes / RESERVE_SHARE).clamp(RESERVE_LEAST_BYTES, RESERVE_MOST_BYTES);
    let cpu_reserve = (capacity.cpu_millis / CPU_RESERVE_SHARE).max(CPU_RESERVE_LEAST_MILLIS);
    let allocatable = Resources {
        memory_bytes: memory_bytes.saturating_sub(used_bytes).saturating_sub(memory_reserve),
        cpu_millis: capacity.cpu_millis.saturating_sub(used_millis).saturating_sub(cpu_reserve),
    };
    (capacity, allocatable)
}

fn stat(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pressure_is_read_as_the_kernel_writes_it() {
        let stall = parse_stall(
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        )
        .expect("well formed");
        assert!((stall.some.percent_10s - 1.5).abs() < 1e-9);
        assert_eq!((stall.some.total_us, stall.full.map(|full| full.total_us)), (12345, Some(7)));
    }

    #[test]
    fn allocatable_is_capacity_without_system_and_reserve() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root { sys: directory.path().into(), ..Root::default() };
        for (name, current, usage) in
            [("init", 8 << 20, 1_000_000u64), ("services", 20 << 20, 9_000_000), ("workloads", 900 << 20, 5)]
        {
            let group = directory.path().join("fs/cgroup").join(name);
            std::fs::create_dir_all(&group).expect("a directory");
            std::fs::write(group.join("memory.current"), format!("{current}\n")).expect("a file");
            std::fs::write(group.join("memory.stat"), "anon 1\ninactive_file 4194304\n").expect("a file");
            std::fs::write(group.join("cpu.stat"), format!("usage_usec {usage}\nuser_usec 1\n")).expect("a file");
        }
        let (capacity, allocatable) = resources(&root, 1 << 30, 2, 100_000);
        assert_eq!((capacity.memory_bytes, capacity.cpu_millis), (1 << 30, 2000));
        assert_eq!(allocatable.memory_bytes, (1 << 30) - (4 << 20) - (16 << 20) - (1 << 30) / 20);
        assert_eq!(allocatable.cpu_millis, 2000 - 100 - 50);
        let used: Vec<_> = cgroups(&root).into_iter().map(|group| (group.name, group.used_bytes >> 20)).collect();
        assert_eq!(used, [("init".to_owned(), 8), ("services".to_owned(), 20), ("workloads".to_owned(), 900)]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(some |full |avg10=|total=|MemTotal:|[0-9. \n]){0,40}") {
            let _ = (parse_stall(&text), kilobytes(&text, "MemTotal"), stat(&text, "total"));
        }
    }
}

//! Limits of a bundle, which are cgroup v1's, as cgroup v2 has them, and rules of devices.

use byre_plan::{DeviceRule, Refusal, Resources};

use super::config;
use super::fields::refusal;

/// cpu.max's period where a bundle names none, in microseconds.
const PERIOD_US: u64 = 100_000;
/// Below this a launch request takes no memory.max; it is then written as it is.
const SMALL_MEMORY_BYTES: u64 = 1 << 20;

pub(super) fn resources(wanted: &config::Resources) -> Result<Resources, Refusal> {
    let mut limits = Resources::default();
    memory(&wanted.memory, &mut limits)?;
    cpu(&wanted.cpu, &mut limits)?;
    disk(&wanted.block_io, &mut limits)?;
    match wanted.pids.limit {
        None | Some(0) => {}
        Some(most) => match u64::try_from(most) {
            Ok(most) => limits.pids_max = Some(most),
            Err(_) => add(&mut limits, "pids.max", "max"),
        },
    }
    for pages in &wanted.hugepage_limits {
        add(&mut limits, &format!("hugetlb.{}.max", pages.page_size), pages.limit.to_string());
    }
    for (device, most) in &wanted.rdma {
        let part = |name: &str, value: Option<u32>| value.map(|value| format!(" {name}={value}")).unwrap_or_default();
        let line =
            [device.clone(), part("hca_handle", most.hca_handles), part("hca_object", most.hca_objects)].concat();
        add(&mut limits, "rdma.max", line);
    }
    // Last, so that what is said in cgroup v2's own terms counts.
    limits.unified.extend(wanted.unified.clone());
    Ok(limits)
}

fn add(limits: &mut Resources, file: &str, value: impl Into<String>) {
    limits.unified.push((file.to_owned(), value.into()));
}

/// A limit of memory: -1 is none, 0 says nothing.
fn bytes_or_max(value: i64) -> String {
    u64::try_from(value).map_or_else(|_| "max".to_owned(), |bytes| bytes.to_string())
}

fn memory(wanted: &config::Memory, limits: &mut Resources) -> Result<(), Refusal> {
    let limit = wanted.limit.filter(|limit| *limit != 0);
    if let Some(limit) = limit {
        match u64::try_from(limit) {
            Ok(bytes) if bytes >= SMALL_MEMORY_BYTES => limits.memory_max_bytes = Some(bytes),
            Ok(_) | Err(_) => add(limits, "memory.max", bytes_or_max(limit)),
        }
    }
    if let Some(low) = wanted.reservation.filter(|low| *low != 0) {
        add(limits, "memory.low", bytes_or_max(low));
    }
    if let Some(both) = wanted.swap.filter(|both| *both != 0) {
        // cgroup v1 counts memory and swap together, v2 swap alone.
        match (both, limit) {
            (..0, _) => add(limits, "memory.swap.max", "max"),
            (both, Some(limit)) if limit >= 0 && both >= limit => {
                add(limits, "memory.swap.max", (both - limit).to_string());
            }
            (_, _) => {
                let remedy = "set memory.limit too, to at most as much: swap is memory and swap together";
                return Err(refusal("linux.resources.memory.swap", "is below the memory limit or alone", remedy));
            }
        }
    }
    Ok(())
}

fn cpu(wanted: &config::Cpu, limits: &mut Resources) -> Result<(), Refusal> {
    if let Some(shares) = wanted.shares.filter(|shares| *shares != 0) {
        limits.cpu_weight = Some(weight_of_shares(shares));
    }
    let quota = wanted.quota.filter(|quota| *quota != 0);
    let period = wanted.period.filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.map_or_else(|| "max".to_owned(), bytes_or_max);
        add(limits, "cpu.max", format!("{quota} {}", period.unwrap_or(PERIOD_US)));
    }
    if let Some(burst) = wanted.burst {
        add(limits, "cpu.max.burst", burst.to_string());
    }
    if let Some(idle) = wanted.idle {
        add(limits, "cpu.idle", idle.to_string());
    }
    // Some write lists of processors with spaces or a final newline.
    let list = |text: &str| text.split_whitespace().collect::<Vec<_>>().join("");
    limits.cpuset_cpus = Some(list(&wanted.cpus)).filter(|list| !list.is_empty());
    if !wanted.mems.is_empty() {
        add(limits, "cpuset.mems", list(&wanted.mems));
    }
    Ok(())
}

/// 2..=262144 to 1..=10000, as Kubernetes' enhancement proposal 2254 has it.
fn weight_of_shares(shares: u64) -> u16 {
    let shares = shares.clamp(2, 262_144);
    u16::try_from(1 + (shares - 2) * 9999 / 262_142).unwrap_or(10_000)
}

/// 10..=1000 to 1..=10000.
fn weight_of_disk(weight: u16) -> u16 {
    let weight = u32::from(weight.clamp(10, 1000));
    u16::try_from(1 + (weight - 10) * 9999 / 990).unwrap_or(10_000)
}

fn disk(wanted: &config::BlockIo, limits: &mut Resources) -> Result<(), Refusal> {
    if let Some(weight) = wanted.weight.filter(|weight| *weight != 0) {
        limits.io_weight = Some(weight_of_disk(weight));
    }
    for device in &wanted.weight_device {
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            let line = format!("{}:{} {}", device.major, device.minor, weight_of_disk(weight));
            add(limits, "io.weight", line);
        }
    }
    let throttles = [
        ("rbps", &wanted.throttle_read_bps_device),
        ("wbps", &wanted.throttle_write_bps_device),
        ("riops", &wanted.throttle_read_iops_device),
        ("wiops", &wanted.throttle_write_iops_device),
    ];
    for (key, devices) in throttles {
        for device in devices {
            add(limits, "io.max", format!("{}:{} {key}={}", device.major, device.minor, device.rate));
        }
    }
    Ok(())
}

/// Rules of devices in the bundle's order. What no rule names is denied, but for the default devices, and for making those that the bundle
/// lists.
pub(super) fn device_rules(
    wanted: &[config::DeviceAccess],
    nodes: &[config::Device],
) -> Result<Vec<DeviceRule>, Refusal> {
    let mut rules = Vec::with_capacity(wanted.len());
    for (index, rule) in wanted.iter().enumerate() {
        let field = format!("linux.resources.devices[{index}]");
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number)
                .map(Some)
                .map_err(|_| refusal(&field, format!("{number} is no device number"), "use -1 for any")),
        };
        let kinds: &[bool] = match rule.r#type.as_str() {
            "" | "a" => &[true, false],
            "b" => &[true],
            "c" => &[false],
            other => {
                let shown: String = other.chars().take(40).collect();
                return Err(refusal(&field, format!("{shown:?} is no type of device"), "use a, b or c"));
            }
        };
        let access = if rule.access.is_empty() { "rwm" } else { rule.access.as_str() };
        if let Some(strange) = access.chars().find(|letter| !"rwm".contains(*letter)) {
            return Err(refusal(&field, format!("{strange:?} is no access"), "use letters of rwm"));
        }
        for block in kinds {
            rules.push(DeviceRule {
                block: *block,
                major: number(rule.major)?,
                minor: number(rule.minor)?,
                read: access.contains('r'),
                write: access.contains('w'),
                mknod: access.contains('m'),
                path: None,
                deny: !rule.allow,
            });
        }
    }
    // Denying everything is where every list begins.
    let everything = |rule: &DeviceRule| {
        rule.deny && rule.major.is_none() && rule.minor.is_none() && rule.read && rule.write && rule.mknod
    };
    let first = rules.iter().position(|rule| !everything(rule)).unwrap_or(rules.len());
    let made = nodes.iter().filter(|node| node.r#type != "p").map(|node| DeviceRule {
        block: node.r#type == "b",
        major: u32::try_from(node.major).ok(),
        minor: u32::try_from(node.minor).ok(),
        read: false,
        write: false,
        mknod: true,
        path: None,
        deny: false,
    });
    rules.splice(..first, made);
    Ok(rules)
}

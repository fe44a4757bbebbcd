//! What few bundles ask the kernel for: memory policy, processors of an exec, ids of mounts, labels, rules of Landlock.

use std::collections::BTreeMap;

use byre_plan::{Affinity, IdMap, LandlockRule, MappedMount, MemoryPolicy, MountIds, NumberSet, Refusal};

use super::config;
use super::fields::refusal;

/// Our own annotation: a JSON list of `{"path": …, "access": "read"|"execute"|"write"}`. Landlock has no field in the specification.
pub const LANDLOCK_ANNOTATION: &str = "org.byre.landlock";

/// Modes of set_mempolicy(2) and their numbers.
pub const MEMORY_MODES: [(&str, u32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];
/// Flags of set_mempolicy(2) and their bits.
pub const MEMORY_FLAGS: [(&str, u32); 3] =
    [("MPOL_F_STATIC_NODES", 1 << 15), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_NUMA_BALANCING", 1 << 13)];

fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

/// A list as cpuset(7) has it: `0-3,7`.
fn numbers(field: &str, list: &str) -> Result<NumberSet, Refusal> {
    let fault = || {
        let remedy = format!("write numbers below {} as 0-3,7", NumberSet::NUMBERS);
        refusal(field, format!("{:?} is no list of numbers", shown(list)), remedy)
    };
    let mut set = NumberSet::default();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = first.trim().parse().ok().zip(last.trim().parse().ok()).ok_or_else(fault)?;
        if first > last || last >= NumberSet::NUMBERS {
            return Err(fault());
        }
        for number in first..=last {
            set.insert(number);
        }
    }
    Ok(set)
}

pub(super) fn memory_policy(wanted: &config::MemoryPolicy) -> Result<MemoryPolicy, Refusal> {
    let field = "linux.memoryPolicy";
    let find = |table: &[(&str, u32)], what: &str, name: &str| {
        let found = table.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
        found.ok_or_else(|| {
            let known: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
            refusal(
                &format!("{field}.{what}"),
                format!("{:?} is not known", shown(name)),
                format!("use {}", known.join(", ")),
            )
        })
    };
    let mut mode = find(&MEMORY_MODES, "mode", &wanted.mode)?;
    for flag in &wanted.flags {
        mode |= find(&MEMORY_FLAGS, "flags", flag)?;
    }
    Ok(MemoryPolicy { mode, nodes: numbers(&format!("{field}.nodes"), &wanted.nodes)? })
}

pub(super) fn affinity(wanted: &config::Affinity) -> Result<Affinity, Refusal> {
    let part = |name: &str, list: &str| -> Result<Option<NumberSet>, Refusal> {
        let field = format!("process.execCPUAffinity.{name}");
        if list.is_empty() {
            return Ok(None);
        }
        let set = numbers(&field, list)?;
        if set.is_empty() {
            Err(refusal(&field, "names no processor", "name one, or leave it out"))
        } else {
            Ok(Some(set))
        }
    };
    Ok(Affinity { initial: part("initial", &wanted.initial)?, last: part("final", &wanted.last)? })
}

/// The ids of a mount, if it is to show others than those on disk.
pub(super) fn mapped(index: usize, wanted: &config::Mount) -> Result<Option<MappedMount>, Refusal> {
    let field = format!("mounts[{index}]");
    let option = |name: &str| wanted.options.iter().any(|option| option == name);
    let (uids, gids) = (&wanted.uid_mappings, &wanted.gid_mappings);
    if uids.is_empty() != gids.is_empty() {
        let remedy = "give both uidMappings and gidMappings";
        return Err(refusal(&format!("{field}.uidMappings"), "are for users or groups alone", remedy));
    }
    let maps = |lines: &[config::IdMapping]| -> Vec<IdMap> {
        lines.iter().map(|line| IdMap { inside: line.container_id, outside: line.host_id, count: line.size }).collect()
    };
    let ids = if !uids.is_empty() {
        MountIds::Mapped { uids: maps(uids), gids: maps(gids) }
    } else if option("idmap") || option("ridmap") {
        MountIds::Workload
    } else {
        return Ok(None);
    };
    let mount = u16::try_from(index).map_err(|_| refusal(&field, "is one of too many", "use fewer mounts"))?;
    Ok(Some(MappedMount { mount, recursive: option("ridmap"), ids }))
}

/// Rules of Landlock, from the annotation.
pub(super) fn landlock(annotations: &BTreeMap<String, String>) -> Result<Vec<LandlockRule>, Refusal> {
    let Some(text) = annotations.get(LANDLOCK_ANNOTATION) else { return Ok(Vec::new()) };
    serde_json::from_str(text).map_err(|error| {
        let remedy = r#"write it as [{"path": "/usr", "access": "execute"}]; accesses are read, execute and write"#;
        refusal(&format!("annotations.{LANDLOCK_ANNOTATION}"), format!("is malformed: {error}"), remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_are_read_as_cpuset_has_them() {
        let set = numbers("x", "0-1, 64,1023").unwrap();
        assert_eq!((set.words()[0], set.words()[1], set.words()[15]), (3, 1, 1 << 63));
        assert!(numbers("x", "").unwrap().is_empty());
        for wrong in ["1024", "3-1", "a", "1-", "-"] {
            assert!(numbers("x", wrong).is_err(), "{wrong}");
        }
    }
}

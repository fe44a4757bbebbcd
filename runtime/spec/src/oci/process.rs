//! The process of a bundle or of an exec.

use byre_plan::{
    Capabilities, Principal, Process, Program, Refusal, Rlimit, Scheduler, Scheduling, TerminalSize, User,
};

use super::fields::refusal;
use super::{Around, config, kernel};
use crate::capability::capability;

/// Linux' RLIMIT_* by number.
const RLIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];
const NOFILE: u8 = 7;
/// sched(7)'s policies and their numbers.
const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];
/// SCHED_FLAG_* of linux/sched.h.
const SCHEDULER_FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];
/// ioprio_set(2)'s classes by number, from 1.
const DISK_CLASSES: [&str; 3] = ["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"];

pub(super) fn process(
    wanted: config::Process,
    around: &Around<'_>,
    warnings: &mut Vec<String>,
) -> Result<Process, Refusal> {
    let terminal = if wanted.terminal { Some(terminal(&wanted.console_size)?) } else { None };
    if wanted.cwd.is_empty() {
        return Err(refusal("process.cwd", "is missing", "name an absolute directory"));
    }
    let mut rlimits = rlimits(&wanted.rlimits)?;
    if !rlimits.iter().any(|limit| limit.resource == NOFILE) {
        rlimits.push(Rlimit { resource: NOFILE, soft: around.open_files.0, hard: around.open_files.1 });
    }
    let oom_score_adj = match wanted.oom_score_adj {
        Some(value) => i16::try_from(value)
            .map_err(|_| refusal("process.oomScoreAdj", format!("{value} is out of range"), "use -1000 to 1000"))?,
        None => around.oom_score_adj,
    };
    let umask = wanted.user.umask.map(|mask| u16::try_from(mask).unwrap_or(u16::MAX));
    Ok(Process {
        program: Program::Path,
        args: wanted.args,
        env: last_of_each(wanted.env),
        cwd: wanted.cwd,
        user: User {
            user: Principal::Id(wanted.user.uid),
            group: Some(Principal::Id(wanted.user.gid)),
            additional_groups: wanted.user.additional_gids,
            umask,
        },
        terminal,
        capabilities: capabilities(&wanted.capabilities, around.capabilities, warnings),
        rlimits,
        no_new_privileges: wanted.no_new_privileges,
        oom_score_adj: Some(oom_score_adj),
        scheduling: Scheduling {
            processor: wanted.scheduler.as_ref().map(scheduler).transpose()?,
            disk: wanted.io_priority.as_ref().map(disk_priority).transpose()?,
            processors: kernel::affinity(&wanted.exec_cpu_affinity)?,
        },
        labels: byre_plan::Labels {
            apparmor: Some(wanted.apparmor_profile).filter(|name| !name.is_empty()),
            selinux: Some(wanted.selinux_label).filter(|label| !label.is_empty()),
        },
    })
}

/// Of entries with one name the last counts, and is the only one.
fn last_of_each(env: Vec<String>) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned());
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<String> =
        env.into_iter().rev().filter(|entry| name(entry).is_none_or(|name| seen.insert(name))).collect();
    kept.reverse();
    kept
}

fn terminal(size: &config::ConsoleSize) -> Result<TerminalSize, Refusal> {
    let side = |cells: u64| {
        let remedy = "use at most 10000 rows and columns";
        u16::try_from(cells).map_err(|_| refusal("process.consoleSize", format!("{cells} is out of range"), remedy))
    };
    Ok(TerminalSize { rows: side(size.height)?, columns: side(size.width)? })
}

fn rlimits(wanted: &[config::Rlimit]) -> Result<Vec<Rlimit>, Refusal> {
    let mut limits = Vec::with_capacity(wanted.len().min(RLIMITS.len()));
    for (index, limit) in wanted.iter().enumerate() {
        let name = limit.r#type.strip_prefix("RLIMIT_");
        let number = name.and_then(|name| RLIMITS.iter().position(|known| *known == name));
        let Some(resource) = number.and_then(|number| u8::try_from(number).ok()) else {
            let shown: String = limit.r#type.chars().take(40).collect();
            let remedy = "use a RLIMIT_ name of getrlimit(2)";
            return Err(refusal(&format!("process.rlimits[{index}].type"), format!("{shown:?} is no limit"), remedy));
        };
        limits.push(Rlimit { resource, soft: limit.soft, hard: limit.hard });
    }
    Ok(limits)
}

/// Names to masks. One that is not known, or that the caller itself lacks, cannot be given: that is said, and the program runs with less.
fn capabilities(wanted: &config::Capabilities, own: u64, warnings: &mut Vec<String>) -> Capabilities {
    let mut mask = |names: &[String]| {
        let mut mask = 0;
        for name in names {
            match capability(name) {
                Ok(bits) if bits & !own == 0 && name.starts_with("CAP_") => mask |= bits,
                Ok(_) | Err(_) => {
                    let shown: String = name.chars().take(40).collect();
                    let warning = format!("capability {shown:?} is not known or not available, and not given");
                    // Each set names it again.
                    if !warnings.contains(&warning) && warnings.len() < 256 {
                        warnings.push(warning);
                    }
                }
            }
        }
        mask
    };
    let (bounding, permitted) = (mask(&wanted.bounding), mask(&wanted.permitted));
    let (effective, inheritable) = (mask(&wanted.effective), mask(&wanted.inheritable));
    let mut ambient = mask(&wanted.ambient);
    // The kernel would refuse them; other runtimes let the program run without.
    let beyond = ambient & !(permitted & inheritable);
    if beyond != 0 {
        warnings.push(
            "process.capabilities.ambient: can't raise ambient capability that is not permitted and inheritable"
                .to_owned(),
        );
        ambient &= !beyond;
    }
    Capabilities { bounding, effective, permitted, inheritable, ambient }
}

fn scheduler(wanted: &config::Scheduler) -> Result<Scheduler, Refusal> {
    let unknown = |field: &str, text: &str| {
        let shown: String = text.chars().take(40).collect();
        refusal(&format!("process.scheduler.{field}"), format!("{shown:?} is not known"), "use a name of sched(7)")
    };
    let policy = POLICIES.iter().find(|(name, _)| *name == wanted.policy);
    let mut flags = 0;
    for flag in &wanted.flags {
        let found = SCHEDULER_FLAGS.iter().find(|(name, _)| name == flag);
        flags |= found.map(|(_, bit)| *bit).ok_or_else(|| unknown("flags", flag))?;
    }
    let priority = u32::try_from(wanted.priority).map_err(|_| unknown("priority", &wanted.priority.to_string()))?;
    Ok(Scheduler {
        policy: policy.map(|(_, number)| *number).ok_or_else(|| unknown("policy", &wanted.policy))?,
        flags,
        nice: wanted.nice,
        priority,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
    })
}

fn disk_priority(wanted: &config::IoPriority) -> Result<u16, Refusal> {
    let class = DISK_CLASSES.iter().zip(1_u16..).find(|(name, _)| **name == wanted.class);
    let Some((_, class)) = class else {
        let shown: String = wanted.class.chars().take(40).collect();
        let remedy = format!("use {}", DISK_CLASSES.join(", "));
        return Err(refusal("process.ioPriority.class", format!("{shown:?} is not known"), remedy));
    };
    match u16::try_from(wanted.priority) {
        Ok(priority @ 0..=7) => Ok(class << 13 | priority),
        Ok(_) | Err(_) => {
            let reason = format!("{} is out of range", wanted.priority);
            Err(refusal("process.ioPriority.priority", reason, "use 0 to 7"))
        }
    }
}

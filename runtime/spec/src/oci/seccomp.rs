//! The seccomp filter of a bundle, compiled to what a launch request has.

use byre_plan::seccomp::{Action, ArgumentTest, Comparison, Profile, Rule, compile, number};
use byre_plan::{Refusal, Seccomp};

use super::fields::refusal;
use super::{Listener, config};

/// Actions that are supported.
pub const SECCOMP_ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
/// Operators that are supported: all there are.
pub const SECCOMP_OPERATORS: [&str; 7] =
    ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];
/// Flags that are supported and their bits. TSYNC means nothing to a process of one thread, which a container's first is.
pub const SECCOMP_FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 0),
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 4),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", WAIT_KILLABLE),
];
/// SECCOMP_FILTER_FLAG_NEW_LISTENER.
const NEW_LISTENER: u32 = 8;
/// SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, which means something with a listener only.
const WAIT_KILLABLE: u32 = 32;

/// EPERM, what a call that is denied without a number fails with.
const NOT_PERMITTED: u32 = 1;
/// Groups of system calls in one filter, and names in all of them; the longest profiles have 50 and 600.
const GROUPS: usize = 4096;
const NAMES: usize = 65_536;

pub(super) fn filter(wanted: &config::Seccomp, notes: &mut Vec<String>) -> Result<Seccomp, Refusal> {
    let default = action("linux.seccomp.defaultAction", &wanted.default_action, wanted.default_errno_ret)?;
    let mut flags = 0;
    for flag in &wanted.flags {
        let known = SECCOMP_FLAGS.iter().find(|(name, _)| name == flag);
        let Some((_, bit)) = known else {
            let shown: String = flag.chars().take(40).collect();
            let remedy = format!("use {}", SECCOMP_FLAGS.map(|(name, _)| name).join(", "));
            return Err(refusal("linux.seccomp.flags", format!("{shown:?} is not supported"), remedy));
        };
        flags |= bit;
    }
    let names: usize = wanted.syscalls.iter().map(|group| group.names.len()).sum();
    if wanted.syscalls.len() > GROUPS || names > NAMES {
        let remedy = format!("use at most {GROUPS} groups and {NAMES} names");
        return Err(refusal("linux.seccomp.syscalls", format!("has {names} names"), remedy));
    }
    let mut rules = Vec::new();
    let mut unknown = Vec::new();
    for (index, group) in wanted.syscalls.iter().enumerate() {
        let field = format!("linux.seccomp.syscalls[{index}]");
        let action = action(&format!("{field}.action"), &group.action, group.errno_ret)?;
        let mut syscalls = Vec::with_capacity(group.names.len());
        for name in &group.names {
            match number(name) {
                Some(number) => syscalls.push(number),
                None => unknown.push(name.as_str()),
            }
        }
        let tests = tests(&format!("{field}.args"), &group.args)?;
        if action != default && !syscalls.is_empty() {
            rules.extend(tests.into_iter().map(|tests| Rule { syscalls: syscalls.clone(), action, tests }));
        }
    }
    if !unknown.is_empty() {
        let shown: Vec<String> = unknown.iter().take(64).map(|name| name.chars().take(40).collect()).collect();
        notes.push(format!("system calls not known on this architecture have no rule: {}", shown.join(" ")));
    }
    let instructions = compile(&Profile { default, rules })
        .map_err(|error| refusal("linux.seccomp.syscalls", error.to_string(), "shorten the filter"))?;
    if wanted.listener_path.is_empty() {
        flags &= !WAIT_KILLABLE;
    } else {
        flags |= NEW_LISTENER;
    }
    Ok(Seccomp::Filter { instructions, flags })
}

/// Who decides about system calls that are handed on.
pub(super) fn listener(wanted: &config::Seccomp) -> Result<Option<Listener>, Refusal> {
    let notifies = wanted.syscalls.iter().filter(|group| group.action == NOTIFY);
    if wanted.default_action == NOTIFY {
        let remedy = "hand on single calls by linux.seccomp.syscalls";
        return Err(refusal("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be used as default action", remedy));
    }
    let mut notifies = notifies.peekable();
    if wanted.listener_path.is_empty() {
        return match notifies.peek() {
            Some(_) => Err(refusal("linux.seccomp.listenerPath", "is missing", "name the socket of who decides")),
            None if !wanted.listener_metadata.is_empty() => {
                Err(refusal("linux.seccomp.listenerMetadata", "is for a listener", "add listenerPath, or leave it out"))
            }
            None => Ok(None),
        };
    }
    // The listener itself is handed over by these two, when the filter is in force already.
    let needed = |name: &&String| *name == "write" || *name == "read";
    if let Some(name) = notifies.flat_map(|group| &group.names).find(needed) {
        let reason = format!("SCMP_ACT_NOTIFY cannot be used for the {name} syscall");
        return Err(refusal("linux.seccomp.syscalls", reason, "leave it to another action"));
    }
    Ok(Some(Listener { path: wanted.listener_path.clone(), metadata: wanted.listener_metadata.clone() }))
}

const NOTIFY: &str = "SCMP_ACT_NOTIFY";

fn action(field: &str, name: &str, errno: Option<u32>) -> Result<Action, Refusal> {
    let value = u16::try_from(errno.unwrap_or(NOT_PERMITTED)).ok().filter(|value| *value <= 4095);
    let Some(value) = value else {
        return Err(refusal(field, "has an error number out of range", "use 0 to 4095"));
    };
    let action = match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => return Ok(Action::Errno(value)),
        "SCMP_ACT_TRACE" => return Ok(Action::Trace(value)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_NOTIFY" => Action::Notify,
        "SCMP_ACT_TRAP" => Action::Trap,
        other => {
            let shown: String = other.chars().take(40).collect();
            let remedy = format!("use {}", SECCOMP_ACTIONS.join(", "));
            return Err(refusal(field, format!("{shown:?} is not supported"), remedy));
        }
    };
    match errno {
        None => Ok(action),
        Some(_) => Err(refusal(field, "takes no error number", "leave errnoRet out, or use SCMP_ACT_ERRNO")),
    }
}

/// The tests of a group: all must hold. Two tests of one argument are alternatives, as libseccomp's users have come to rely on.
fn tests(field: &str, wanted: &[config::Argument]) -> Result<Vec<Vec<ArgumentTest>>, Refusal> {
    let mut tests = Vec::with_capacity(wanted.len());
    for argument in wanted {
        let comparison = match argument.op.as_str() {
            "SCMP_CMP_NE" => Comparison::NotEqual,
            "SCMP_CMP_LT" => Comparison::Less,
            "SCMP_CMP_LE" => Comparison::LessOrEqual,
            "SCMP_CMP_EQ" => Comparison::Equal,
            "SCMP_CMP_GE" => Comparison::GreaterOrEqual,
            "SCMP_CMP_GT" => Comparison::Greater,
            "SCMP_CMP_MASKED_EQ" => Comparison::MaskedEqual(argument.value),
            other => {
                let shown: String = other.chars().take(40).collect();
                let remedy = format!("use {}", SECCOMP_OPERATORS.join(", "));
                return Err(refusal(field, format!("{shown:?} is no operator"), remedy));
            }
        };
        let value = match comparison {
            Comparison::MaskedEqual(_) => argument.value_two,
            Comparison::Equal
            | Comparison::NotEqual
            | Comparison::Less
            | Comparison::LessOrEqual
            | Comparison::Greater
            | Comparison::GreaterOrEqual => argument.value,
        };
        let index = u8::try_from(argument.index).ok().filter(|index| *index < 6);
        let Some(index) = index else {
            return Err(refusal(field, format!("argument {} does not exist", argument.index), "use 0 to 5"));
        };
        tests.push(ArgumentTest { index, comparison, value });
    }
    let repeated = tests.iter().enumerate().any(|(at, test)| tests[..at].iter().any(|other| other.index == test.index));
    Ok(if repeated { tests.into_iter().map(|test| vec![test]).collect() } else { vec![tests] })
}

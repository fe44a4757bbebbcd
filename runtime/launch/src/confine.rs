//! What takes power away from a launch child just before it executes: resource limits, credentials, capabilities, Landlock, seccomp.
//!
//! Order matters and is kept in [`privileges`]: bounding set while CAP_SETPCAP is there, ids with the permitted set kept over the change,
//! then the final sets, ambient ones, no_new_privs, Landlock, and the filter last, so that it need not allow what comes before it.

use byre_plan::seccomp::Instruction;
use byre_plan::{Capabilities, LandlockAccess, LandlockRule, Process, Rlimit};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::companion::Companion;
use crate::report::{Failure, Step};
use crate::sys;
use crate::users::Identity;

/// RLIMIT_NOFILE's number.
const OPEN_FILES: u8 = 7;
/// What a workload gets if it says nothing: the soft limit that select(2) needs, and a hard one that it may raise itself to. PID 1's own
/// is larger, so it must be set.
const OPEN_FILES_DEFAULT: Rlimit = Rlimit { resource: OPEN_FILES, soft: 1024, hard: 524_288 };

/// Raises hard limits as far as the plan needs. Done on the host side: it takes CAP_SYS_RESOURCE there, and a user namespace has none.
pub(crate) fn raise_rlimits(limits: &[Rlimit]) -> Result<(), Failure> {
    for limit in limits {
        let name = limit.resource.to_string();
        let (soft, hard) = sys::rlimit(limit.resource).step("read resource limit", &name)?;
        if limit.hard > hard {
            sys::set_rlimit(limit.resource, soft, limit.hard).step("raise resource limit", &name)?;
        }
    }
    Ok(())
}

/// Sets the process's resource limits, all at most as high as [`raise_rlimits`] left them.
pub(crate) fn rlimits(limits: &[Rlimit]) -> Result<(), Failure> {
    if !limits.iter().any(|limit| limit.resource == OPEN_FILES) {
        let Rlimit { resource, soft, hard } = OPEN_FILES_DEFAULT;
        let (_, most) = sys::rlimit(resource).step("read resource limit", "7")?;
        sys::set_rlimit(resource, soft.min(most), hard.min(most)).step("set resource limit", "7")?;
    }
    limits.iter().try_for_each(|limit| {
        sys::set_rlimit(limit.resource, limit.soft, limit.hard).step("set resource limit", &limit.resource.to_string())
    })
}

/// Gives up everything that the plan does not grant. After this the process is the workload's user.
pub(crate) fn privileges(
    process: &Process,
    identity: &Identity,
    landlock: &[LandlockRule],
    filter: Option<(&[Instruction], u32)>,
    companion: Option<&dyn Companion>,
) -> Result<(), Failure> {
    fault_point!();
    let sets = &process.capabilities;
    drop_bounding(sets.bounding)?;
    fault_point!();
    // With this bit the permitted set survives the change of ids; it does not survive execve.
    set_capabilities_secure_bits(CapabilitiesSecureBits::KEEP_CAPS).step("keep capabilities", "")?;
    become_user(identity)?;
    // Leaving uid 0 emptied the effective set; what follows needs it once more.
    let mut sets_now = capabilities(None).step("read capabilities", "")?;
    sets_now.effective = sets_now.permitted;
    set_capabilities(None, sets_now).step("raise capabilities", "")?;
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, which few workloads have: such a filter goes in first.
    if let Some((instructions, flags)) = filter.filter(|_| !process.no_new_privileges) {
        install(instructions, flags, companion)?;
    }
    if !process.no_new_privileges {
        restrict_paths(landlock)?;
    }
    final_sets(sets)?;
    if process.no_new_privileges {
        set_no_new_privs(true).step("set no_new_privs", "")?;
        restrict_paths(landlock)?;
        if let Some((instructions, flags)) = filter {
            install(instructions, flags, companion)?;
        }
    }
    Ok(())
}

/// Installs the filter, and hands its listener over if it has one.
fn install(instructions: &[Instruction], flags: u32, companion: Option<&dyn Companion>) -> Result<(), Failure> {
    let Some(listener) = sys::install_filter(instructions, flags).step("install seccomp filter", "")? else {
        return Ok(());
    };
    let step = "hand over seccomp listener";
    let companion = companion.ok_or(Errno::NOTSUP).step(step, "nobody takes it")?;
    let handed = companion.listening(std::os::fd::AsRawFd::as_raw_fd(&listener));
    // It closes itself when the program is executed; `close` is a call that the filter may hand to whoever listens.
    std::mem::forget(listener);
    handed.map_err(|(subject, errno)| Failure::new(step, subject, errno))
}

fn drop_bounding(keep: u64) -> Result<(), Failure> {
    for number in 0..64_u32 {
        let Some(bit) = 1_u64.checked_shl(number) else { break };
        if keep & bit != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(bit)) {
            Ok(()) => {}
            // Past the last capability that this kernel has.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(Failure::new("drop capability", number.to_string(), errno)),
        }
    }
    Ok(())
}

fn become_user(identity: &Identity) -> Result<(), Failure> {
    let name = |id: u32| id.to_string();
    let groups: Vec<Gid> = identity.groups.iter().map(|id| Gid::from_raw(*id)).collect();
    set_thread_groups(&groups).step("set groups", "")?;
    let gid = Gid::from_raw(identity.gid);
    set_thread_res_gid(gid, gid, gid).step("set group", &name(identity.gid))?;
    let uid = Uid::from_raw(identity.uid);
    set_thread_res_uid(uid, uid, uid).step("set user", &name(identity.uid))
}

fn final_sets(sets: &Capabilities) -> Result<(), Failure> {
    let step = "set capabilities";
    let wanted = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective),
        permitted: CapabilitySet::from_bits_retain(sets.permitted),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    set_capabilities(None, wanted).step(step, "effective, permitted, inheritable")?;
    clear_ambient_capability_set().step(step, "ambient")?;
    for number in 0..64_u32 {
        let bit = 1_u64.checked_shl(number).unwrap_or(0);
        if sets.ambient & bit != 0 {
            configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(bit), true).step(step, "ambient")?;
        }
    }
    Ok(())
}

/// Puts the process into a Landlock domain in which only what the rules name can be reached. Hard: a kernel that lacks a right that is
/// to be restricted, or a path that is missing, is a failed start.
fn restrict_paths(rules: &[LandlockRule]) -> Result<(), Failure> {
    if rules.is_empty() {
        return Ok(());
    }
    let step = "apply Landlock rules";
    let failed = |error: &RulesetError| Failure::new(step, error.to_string(), Errno::PERM);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(Ruleset::create)
        .map_err(|error| failed(&error))?;
    for rule in rules {
        let path = PathFd::new(&rule.path).map_err(|_| Failure::new(step, &rule.path, Errno::NOENT))?;
        let status = rustix::fs::stat(&rule.path).step(step, &rule.path)?;
        let is_directory = rustix::fs::FileType::from_raw_mode(status.st_mode) == rustix::fs::FileType::Directory;
        let access =
            if is_directory { access(rule.access) } else { access(rule.access) & AccessFs::from_file(ABI::V5) };
        ruleset = ruleset.add_rule(PathBeneath::new(path, access)).map_err(|error| failed(&error))?;
    }
    // no_new_privs is the plan's own field and set before, where asked for.
    ruleset.no_new_privs(false).restrict_self().map(drop).map_err(|error| failed(&error))
}

fn access(access: LandlockAccess) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    match access {
        LandlockAccess::Read => read,
        LandlockAccess::Execute => read | AccessFs::Execute,
        LandlockAccess::Write => {
            AccessFs::from_all(ABI::V5) & !(AccessFs::Execute | AccessFs::MakeBlock | AccessFs::MakeChar)
        }
    }
}

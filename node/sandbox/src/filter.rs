//! Sealing: a profile becomes a classic BPF program (seccomp(2), `struct seccomp_data` of linux/seccomp.h) and is installed.
//!
//! The program asks one call after the other. That is enough: profiles are short, and the kernel keeps a bitmap of the calls
//! that it always lets through (since 5.11), so the common ones never run it.

use byre_plan::limits::SECCOMP_INSTRUCTIONS;
use byre_plan::seccomp::Instruction;
use rustix::io::Errno;

use crate::profile::{Condition, Profile, Rule, Verdict};
use crate::sys;

/// `AUDIT_ARCH_X86_64`, linux/audit.h.
const ARCHITECTURE: u32 = 0xc000_003e;
/// Calls from here on are of the x32 ABI, which nothing of ours uses.
const X32: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`.
const OFFSET_CALL: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;
/// Operations, linux/filter.h: load a word, return, and with, jump if equal, jump if greater or equal.
const LOAD: u16 = 0x20;
const RETURN: u16 = 0x06;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;

/// Why a service could not be sealed. It must then not go on.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The profile is broken; the unit test of profiles finds that.
    #[error("profile {0}: too long, or a condition that no jump reaches over")]
    Profile(&'static str),
    /// The kernel refused it.
    #[error("seccomp filter of {name}: {errno}")]
    Kernel {
        /// The profile.
        name: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// Lets this process make the profile's calls only, from now on and for ever; any other kills it.
///
/// # Errors
/// If the kernel refuses the filter.
pub fn seal(profile: &Profile) -> Result<(), SealError> {
    let program = compile(profile).ok_or(SealError::Profile(profile.name))?;
    sys::install_filter(&program).map_err(|errno| SealError::Kernel { name: profile.name, errno })
}

/// The program of a profile; `None` if it is too long.
pub(crate) fn compile(profile: &Profile) -> Option<Vec<Instruction>> {
    let kill = plain(RETURN, libc::SECCOMP_RET_KILL_PROCESS);
    let mut program = vec![
        plain(LOAD, OFFSET_ARCHITECTURE),
        jump(JUMP_EQUAL, ARCHITECTURE, 1, 0),
        kill,
        plain(LOAD, OFFSET_CALL),
        jump(JUMP_AT_LEAST, X32, 0, 1),
        kill,
    ];
    for rule in profile.groups.iter().flat_map(|group| group.rules) {
        append(&mut program, rule)?;
    }
    program.push(kill);
    (program.len() <= SECCOMP_INSTRUCTIONS).then_some(program)
}

/// One rule: when the call is another one, or a condition does not hold, the program goes on behind it with the call's number loaded.
fn append(program: &mut Vec<Instruction>, rule: &Rule) -> Option<()> {
    let mut checks = Vec::new();
    for condition in rule.conditions {
        append_condition(&mut checks, condition);
    }
    let verdict = match rule.verdict {
        Verdict::Allow => libc::SECCOMP_RET_ALLOW,
        Verdict::Fail(number) => libc::SECCOMP_RET_ERRNO | u32::from(number),
    };
    checks.push(plain(RETURN, verdict));
    let returns_at = checks.len();
    if !rule.conditions.is_empty() {
        checks.push(plain(LOAD, OFFSET_CALL));
    }
    // Each comparison that fails jumps to just behind the return: there the call's number is loaded again.
    for (place, check) in checks.iter_mut().enumerate() {
        if check.code == JUMP_EQUAL {
            check.jump_false = u8::try_from(returns_at - place - 1).ok()?;
        }
    }
    let call = u32::try_from(rule.call).ok()?;
    program.push(jump(JUMP_EQUAL, call, 0, u8::try_from(checks.len()).ok()?));
    program.append(&mut checks);
    Some(())
}

/// Both halves of a 64-bit argument; a half of which no bit is looked at is left out.
fn append_condition(checks: &mut Vec<Instruction>, condition: &Condition) {
    let low = OFFSET_ARGUMENTS + 8 * u32::from(condition.argument);
    let halves = [(low, 0), (low + 4, 32)];
    for (offset, shift) in halves {
        let half = |value: u64| u32::try_from((value >> shift) & 0xffff_ffff).unwrap_or(u32::MAX);
        let mask = half(condition.mask);
        if mask == 0 {
            continue;
        }
        checks.push(plain(LOAD, offset));
        if mask != u32::MAX {
            checks.push(plain(AND, mask));
        }
        checks.push(jump(JUMP_EQUAL, half(condition.value), 0, 0));
    }
}

fn plain(code: u16, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, operand }
}

fn jump(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::profiles;

    /// Runs this test binary again for one test, sealed inside by `profile`; returns the signal that ended it, or None.
    fn ends_by(test: &str, what: &str) -> Option<i32> {
        let program = std::env::current_exe().unwrap();
        let status = std::process::Command::new(program)
            .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env("SEAL_CASE", what)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        status.signal()
    }

    #[test]
    #[ignore = "run as a child by the tests below"]
    fn child() {
        let case = std::env::var("SEAL_CASE").unwrap();
        let (name, call) = case.split_once(' ').unwrap();
        let profile = profiles::ALL.iter().find(|profile| profile.name == name).unwrap();
        seal(profile).unwrap();
        match call {
            "exec" => drop(std::process::Command::new("/bin/true").status()),
            "kill" => {
                let parent = rustix::process::getppid().unwrap();
                let _ = rustix::process::test_kill_process(parent);
            }
            "packet" => {
                drop(rustix::net::socket(rustix::net::AddressFamily::PACKET, rustix::net::SocketType::RAW, None))
            }
            "mount" => {
                let _ = rustix::mount::unmount("/nowhere", rustix::mount::UnmountFlags::empty());
            }
            "allowed" => {
                let mut many: Vec<u64> = vec![1; 4 << 20];
                many.extend_from_within(..);
                println!("{}", many.len());
                let _ = rustix::process::getpid();
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_forbidden_call_kills_each_service() {
        for profile in profiles::ALL {
            assert_eq!(ends_by("filter::tests::child", &format!("{} allowed", profile.name)), None, "{}", profile.name);
            for call in ["exec", "kill", "packet", "mount"] {
                let signal = ends_by("filter::tests::child", &format!("{} {call}", profile.name));
                assert_eq!(signal, Some(libc::SIGSYS), "{} {call}", profile.name);
            }
        }
    }

    #[test]
    fn every_profile_compiles_and_gives_its_reasons() {
        for profile in profiles::ALL {
            assert!(compile(profile).is_some(), "{}", profile.name);
            for group in profile.groups {
                assert!(!group.rules.iter().any(|rule| profiles::NEVER.contains(&rule.call)), "{}", profile.name);
                assert!(group.reason.len() > 10 && !group.rules.is_empty(), "{}", profile.name);
            }
        }
    }
}

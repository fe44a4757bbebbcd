//! Sealing: a profile becomes a filter (by the compiler in `byre-plan`) and is installed on this process.
//!
//! The first rule that names a call and whose conditions hold decides; a call that none decides kills the process.

use byre_plan::seccomp::{self, Action, ArgumentTest, Comparison, CompileError, Instruction};
use rustix::io::Errno;

use crate::profile::{Condition, Profile, Rule, Verdict};
use crate::{StartError, sys};

/// Why a service could not be sealed. It must then not go on.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The profile is broken; the unit test of profiles finds that.
    #[error("seccomp profile {name}: {source}")]
    Profile {
        /// The profile.
        name: &'static str,
        /// Why.
        source: CompileError,
    },
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
pub fn seal(profile: &Profile) -> Result<(), StartError> {
    let program = compile(profile).map_err(|source| SealError::Profile { name: profile.name, source })?;
    sys::install_filter(&program).map_err(|errno| SealError::Kernel { name: profile.name, errno })?;
    Ok(())
}

/// The program of a profile.
pub(crate) fn compile(profile: &Profile) -> Result<Vec<Instruction>, CompileError> {
    let rules = profile.groups.iter().flat_map(|group| group.rules).map(rule).collect();
    seccomp::compile(&seccomp::Profile { default: Action::KillProcess, rules })
}

fn rule(rule: &Rule) -> seccomp::Rule {
    let action = match rule.verdict {
        Verdict::Allow => Action::Allow,
        Verdict::Fail(number) => Action::Errno(number),
    };
    // A call's number is below 2^31; one that were not would be no call, and match none.
    let syscalls = vec![u32::try_from(rule.call).unwrap_or(u32::MAX)];
    seccomp::Rule { syscalls, action, tests: rule.conditions.iter().map(test).collect() }
}

fn test(condition: &Condition) -> ArgumentTest {
    let comparison = Comparison::MaskedEqual(condition.mask);
    ArgumentTest { index: condition.argument, comparison, value: condition.value }
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
        // Nobody's child: nothing to do.
        let Ok(case) = std::env::var("SEAL_CASE") else { return };
        let (name, call) = case.split_once(' ').unwrap();
        let profile = profiles::ALL.iter().find(|profile| profile.name == name).unwrap();
        seal(profile).unwrap();
        match call {
            "exec" => drop(std::process::Command::new("/bin/true").status()),
            "kill" => {
                let parent = rustix::process::getppid().unwrap();
                let _ = rustix::process::test_kill_process(parent);
            }
            "hostname" => {
                let _ = rustix::system::sethostname(b"taken-over");
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
            for call in ["exec", "kill", "hostname", "mount"] {
                let signal = ends_by("filter::tests::child", &format!("{} {call}", profile.name));
                assert_eq!(signal, Some(libc::SIGSYS), "{} {call}", profile.name);
            }
        }
    }

    #[test]
    fn every_profile_compiles_and_gives_its_reasons() {
        for profile in profiles::ALL {
            assert!(compile(profile).is_ok(), "{}", profile.name);
            for group in profile.groups {
                assert!(!group.rules.iter().any(|rule| profiles::NEVER.contains(&rule.call)), "{}", profile.name);
                assert!(group.reason.len() > 10 && !group.rules.is_empty(), "{}", profile.name);
            }
        }
    }
}

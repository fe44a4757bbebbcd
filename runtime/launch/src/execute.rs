//! The last step: the program is found and executed.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use byre_plan::{Process, Program};
use rustix::fs::CWD;
use rustix::io::Errno;

use crate::descriptors::Descriptors;
use crate::report::Failure;
use crate::sys::{self, TextList};

/// Where programs are looked for if the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const STEP: &str = "execute";

/// Everything execve needs, made before the last privileges go.
pub(crate) struct Prepared {
    arguments: TextList,
    environment: TextList,
    candidates: Vec<CString>,
    name: String,
}

/// Prepares the lists. `home` is for a process whose environment has no HOME.
pub(crate) fn prepare(
    process: &Process,
    home: Option<&str>,
    descriptors: &Descriptors<'_>,
) -> Result<Prepared, Failure> {
    let name = process.args.first().cloned().unwrap_or_default();
    let failed = |errno| Failure::new(STEP, name.clone(), errno);
    let mut environment = process.env.clone();
    // An empty one says no more than none.
    if !environment.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        environment.retain(|entry| entry != "HOME=");
        environment.push(format!("HOME={}", home.unwrap_or("/")));
    }
    environment.extend(descriptors.environment(std::process::id()));
    let candidates = match process.program {
        Program::Helper | Program::None => Vec::new(),
        Program::Path if name.contains('/') => vec![CString::new(name.as_str()).map_err(|_| failed(Errno::INVAL))?],
        Program::Path => {
            let path = environment.iter().find_map(|entry| entry.strip_prefix("PATH="));
            let directories = path.filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH).split(':');
            // A relative directory in PATH would make the working directory a source of programs.
            let absolute = directories.filter(|directory| directory.starts_with('/'));
            let joined = absolute.map(|directory| CString::new(format!("{}/{name}", directory.trim_end_matches('/'))));
            joined.collect::<Result<Vec<_>, _>>().map_err(|_| failed(Errno::INVAL))?
        }
    };
    Ok(Prepared {
        arguments: TextList::new(process.args.iter().map(String::as_str)).map_err(failed)?,
        environment: TextList::new(environment.iter().map(String::as_str)).map_err(failed)?,
        candidates,
        name,
    })
}

/// Executes the program. Returns only on failure.
pub(crate) fn execute(prepared: &Prepared, helper: Option<BorrowedFd<'_>>) -> Failure {
    fault_point!();
    if let Some(helper) = helper {
        let errno = sys::execveat(helper, c"", &prepared.arguments, &prepared.environment);
        return Failure::new(STEP, prepared.name.clone(), errno);
    }
    let mut outcome = Errno::NOENT;
    for candidate in &prepared.candidates {
        match sys::execveat(CWD, candidate, &prepared.arguments, &prepared.environment) {
            Errno::NOENT | Errno::NOTDIR => {}
            // Found, but not to be executed by this user: a later one may be. If none is, this is the reason.
            Errno::ACCESS => outcome = Errno::ACCESS,
            errno => {
                outcome = errno;
                break;
            }
        }
    }
    Failure::new(STEP, prepared.name.clone(), outcome)
}

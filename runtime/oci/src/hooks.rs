//! Hooks: programs of the bundle that are told the container's state on standard input.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use byre_spec::oci::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::Error;

/// How much of what a failed hook wrote to standard error is told.
const TOLD_BYTES: usize = 1024;

/// Runs hooks in order, up to the first that fails.
pub(crate) fn run(kind: &'static str, hooks: &[Hook], state: &str) -> Result<(), Error> {
    run_in(kind, hooks, state, None)
}

/// As [`run`], where a hook without an environment of its own has this one.
pub(crate) fn run_in(
    kind: &'static str,
    hooks: &[Hook],
    state: &str,
    environment: Option<&[String]>,
) -> Result<(), Error> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| {
        let failed = |reason| Error::Hook { kind, number: index, path: hook.path.clone(), reason };
        one(hook, state, environment).map_err(failed)
    })
}

/// Runs one hook in this process's namespaces, to its end or its timeout.
pub(crate) fn one(hook: &Hook, state: &str, environment: Option<&[String]>) -> Result<(), String> {
    use std::os::unix::process::CommandExt as _;
    let deadline = hook.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
    let mut command = Command::new(&hook.path);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    if let Some(environment) = hook.env.as_deref().or(environment) {
        command.env_clear().envs(environment.iter().filter_map(|entry| entry.split_once('=')));
    }
    let mut child = command.spawn().map_err(|error| format!("cannot be executed: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A state is shorter than a pipe (creation sees to it), so this does not wait; a hook need not read it.
        let _ = stdin.write_all(state.as_bytes());
    }
    let mut told = child.stderr.take();
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pidfd = pid.ok_or("has no process number".to_owned()).and_then(|pid| {
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).map_err(|errno| errno.to_string())
    })?;
    let mut text = Vec::new();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("did not end within {} s", hook.timeout.unwrap_or(0)));
        }
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut polled = vec![PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        if let Some(told) = &told {
            polled.push(PollFd::new(told, PollFlags::IN));
        }
        let _ = poll(&mut polled, timeout.as_ref());
        let has_ended = !polled[0].revents().is_empty();
        let has_told = polled.get(1).is_some_and(|one| !one.revents().is_empty());
        if has_ended {
            break;
        }
        if has_told && let Some(stderr) = &mut told {
            let mut chunk = [0_u8; 512];
            match stderr.read(&mut chunk) {
                Ok(count @ 1..) if text.len() < TOLD_BYTES => text.extend_from_slice(&chunk[..count]),
                Ok(1..) => {}
                // It closed it; what is left to wait for is its end.
                Ok(0) | Err(_) => told = None,
            }
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    if let Some(stderr) = &told {
        last_words(stderr, &mut text);
    }
    Err(format!("failed with {status}: {}", String::from_utf8_lossy(&text).trim()))
}

/// What is in the pipe now. A process that the hook left behind may keep it open, so nothing is waited for.
fn last_words(stderr: &std::process::ChildStderr, text: &mut Vec<u8>) {
    if rustix::fs::fcntl_setfl(stderr, rustix::fs::OFlags::NONBLOCK).is_err() {
        return;
    }
    let mut chunk = [0_u8; TOLD_BYTES];
    if let Ok(count) = rustix::io::read(stderr, &mut chunk) {
        text.extend_from_slice(&chunk[..count]);
    }
}

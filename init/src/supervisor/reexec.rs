//! PID 1 replaces itself while it runs (`byrectl system reexec`), and containers do not notice.
//!
//! ```text
//!   asked ─▶ dry run ── it can read the state ─▶ ready ─▶ execve ─▶ the new program takes over, answers, serves on
//!               │ it cannot, or takes too long              │ the kernel refuses
//!               └──────────────────▶ refused, served on ◀───┘
//! ```
//!
//! The dry run is a child: it executes the new program with a copy of the state, reads the program whole (so that the disk is waited
//! for there) and decodes the state, while PID 1 serves on. The replacement itself happens between two wake-ups: signals are blocked
//! and stay so over `execveat`, the state goes into a sealed memfd, and only then do descriptors lose close-on-exec. If `execveat`
//! returns, everything is put back and the refusal is the answer.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use byre_core::{Event, Reexecuted};
use byre_protocol::handoff::{HandoffError, TOTAL_BYTES};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;

use super::Supervisor;
use super::handoff::{ResumeError, State};
use super::inherited::{Inherited, Kind};
use super::setup;
use crate::{PROGRAM, sys};

/// What a dry run may take: reading 5 MiB from a slow disk and decoding 64 MiB.
const DRY_RUN_MS: u64 = 60_000;
/// Bytes of a refusal that the dry run leaves for PID 1: a line for a person.
const REFUSAL_BYTES: usize = 512;
/// Where the dry run finds the state and leaves its refusal: the first descriptors behind the standard streams.
const STATE_FD: RawFd = 3;
/// See [`STATE_FD`].
const REFUSAL_FD: RawFd = 4;

/// A replacement under way.
pub(crate) struct Replacing {
    program: OwnedFd,
    refusal: OwnedFd,
    step: Step,
}

/// How far it is.
enum Step {
    DryRun { task: u64, process: OwnedFd, deadline_boot_ms: u64 },
    Ready,
}

impl Replacing {
    pub(crate) fn deadline_boot_ms(&self) -> Option<u64> {
        match self.step {
            Step::DryRun { deadline_boot_ms, .. } => Some(deadline_boot_ms),
            Step::Ready => None,
        }
    }
}

/// Why PID 1 goes on as it is.
#[derive(Debug, thiserror::Error)]
enum ReexecError {
    #[error("{what}: {errno}; this PID 1 goes on")]
    Step { what: &'static str, errno: Errno },
    #[error("{0}; this PID 1 goes on")]
    State(#[from] HandoffError),
    #[error("{PROGRAM} does not lie on the verified root; reboot into a root that has one")]
    NotVerified,
    #[error("the new program cannot be started for a dry run; this PID 1 goes on")]
    NoDryRun,
    #[error("the node is shutting down")]
    Ending,
    #[error("an update is being armed; try again when it is")]
    Arming,
}

fn at(what: &'static str) -> impl Fn(Errno) -> ReexecError {
    move |errno| ReexecError::Step { what, errno }
}

/// CLOCK_BOOTTIME in microseconds, for the gap.
fn now_boot_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0) / 1000)
}

impl Supervisor {
    /// The core wants a replacement: begins with a dry run. Whoever asks meanwhile waits for the same end.
    pub(super) fn reexec(&mut self) {
        if self.replacing.is_some() {
            return;
        }
        match self.begin_dry_run() {
            Ok(replacing) => self.replacing = Some(replacing),
            Err(error) => self.reexec_refused(&error.to_string()),
        }
    }

    fn begin_dry_run(&mut self) -> Result<Replacing, ReexecError> {
        if self.arming.is_some() {
            return Err(ReexecError::Arming);
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let program = rustix::fs::open(PROGRAM, flags, Mode::empty()).map_err(at(PROGRAM))?;
        if !lies_on_verified_root(&program) {
            return Err(ReexecError::NotVerified);
        }
        let state = sealed("byre-dry-run", &self.hand_over(0)?.bytes).map_err(at("the state's memory"))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
        let refusal = rustix::fs::memfd_create("byre-refusal", flags).map_err(at("the refusal's memory"))?;
        let named = vec![("state", state.as_fd()), ("refusal", refusal.as_fd())];
        let (task, process) = self.begin_dry_run_task(named).ok_or(ReexecError::NoDryRun)?;
        let deadline_boot_ms = setup::now().boot_ms.saturating_add(DRY_RUN_MS);
        Ok(Replacing { program, refusal, step: Step::DryRun { task, process, deadline_boot_ms } })
    }

    pub(super) fn dry_run_ended(&mut self, number: u64, ended_well: bool) {
        let Some(replacing) = &mut self.replacing else { return };
        match replacing.step {
            Step::DryRun { task, .. } if task == number => {}
            // One that took too long, and was given up.
            Step::DryRun { .. } | Step::Ready => return,
        }
        if ended_well {
            replacing.step = Step::Ready;
            return;
        }
        let mut text = [0_u8; REFUSAL_BYTES];
        let length = rustix::io::pread(&replacing.refusal, &mut text, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
        let text = if text.is_empty() { "it ended without a word".to_owned() } else { text };
        self.replacing = None;
        self.reexec_refused(&format!("the new program refuses: {text}; this PID 1 goes on"));
    }

    pub(super) fn check_reexec_deadline(&mut self) {
        let now_ms = setup::now().boot_ms;
        let Some(replacing) = &self.replacing else { return };
        match &replacing.step {
            Step::DryRun { process, deadline_boot_ms, .. } if *deadline_boot_ms <= now_ms => {
                // The reaper takes its end whenever it comes.
                let _ = sys::pidfd_send_signal(process, 9);
                self.replacing = None;
                self.reexec_refused("the dry run of the new program takes too long; this PID 1 goes on");
            }
            Step::DryRun { .. } | Step::Ready => {}
        }
    }

    /// Between two wake-ups: replaces this program if the dry run has passed. Returns if it has not, or if the kernel refuses.
    pub(super) fn reexec_if_ready(&mut self) {
        match &self.replacing {
            Some(Replacing { step: Step::Ready, .. }) => {}
            Some(Replacing { step: Step::DryRun { .. }, .. }) | None => return,
        }
        if let Some(Replacing { program, .. }) = self.replacing.take() {
            let mask = sys::block_signals();
            let error = self.execute(&program);
            sys::restore_signals(&mask);
            self.reexec_refused(&error.to_string());
            self.drain_queue();
        }
    }

    fn execute(&mut self, program: &OwnedFd) -> ReexecError {
        // A signal that came before they were blocked is a flag of this program's; it must not be lost with it.
        self.signals();
        self.drain_queue();
        if self.core.ending().is_some() {
            return ReexecError::Ending;
        }
        let began_boot_us = now_boot_us();
        let written = match self.hand_over(began_boot_us) {
            Ok(written) => written,
            Err(error) => return error.into(),
        };
        let state = match sealed("byre-state", &written.bytes) {
            Ok(state) => state,
            Err(errno) => return at("the state's memory")(errno),
        };
        let number = state.as_raw_fd().to_string();
        let arguments = [PROGRAM, "resume", &number].map(|word| CString::new(word).unwrap_or_default());
        let environment = sys::environment();
        let mut kept = written.descriptors;
        kept.push(state.as_raw_fd());
        kept.iter().for_each(|number| sys::set_close_on_exec(*number, false));
        let errno = sys::execute(program.as_fd(), &arguments, &environment);
        kept.iter().for_each(|number| sys::set_close_on_exec(*number, true));
        at("execveat")(errno)
    }

    fn reexec_refused(&mut self, text: &str) {
        self.say(&format!("PID 1 is not replaced: {text}"));
        self.queue.push_back(Event::Reexecuted(Reexecuted::Refused(text.to_owned())));
    }
}

/// A memfd with these bytes that nobody can change any more.
pub(super) fn sealed(name: &str, bytes: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
    let memory = rustix::fs::memfd_create(name, flags)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(&memory, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(memory)
}

/// What lies in a sealed memfd.
fn read_sealed(memory: &OwnedFd) -> Result<Vec<u8>, ResumeError> {
    let failed = |errno: Errno| ResumeError::File { what: "the state's memory", errno };
    let seals = rustix::fs::fcntl_get_seals(memory).map_err(failed)?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) {
        return Err(failed(Errno::PERM));
    }
    let length = usize::try_from(rustix::fs::fstat(memory).map_err(failed)?.st_size).unwrap_or(usize::MAX);
    if length > TOTAL_BYTES {
        return Err(HandoffError::TooLong.into());
    }
    let mut bytes = vec![0; length];
    let mut filled = 0_usize;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let offset = u64::try_from(filled).unwrap_or(u64::MAX);
        match rustix::io::pread(memory, rest, offset).map_err(failed)? {
            0 => break,
            read => filled = filled.saturating_add(read),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Whether a file lies on the root, and the root on the verity device of the root hash that the signed command line names.
fn lies_on_verified_root(file: &OwnedFd) -> bool {
    let (Ok(file), Ok(root)) = (rustix::fs::fstat(file), rustix::fs::stat("/")) else { return false };
    let device =
        format!("/sys/dev/block/{}:{}/dm/uuid", rustix::fs::major(root.st_dev), rustix::fs::minor(root.st_dev));
    let uuid = std::fs::read_to_string(device).unwrap_or_default();
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    file.st_dev == root.st_dev && is_of_root_hash(&uuid, &cmdline)
}

/// `CRYPT-VERITY-<first half of the root hash>-root`, as the early stage names it. The first `byre.root=` counts.
fn is_of_root_hash(uuid: &str, cmdline: &str) -> bool {
    let hash = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix("byre.root="));
    let half = hash.and_then(|hash| hash.get(..32)).filter(|half| half.bytes().all(|byte| byte.is_ascii_hexdigit()));
    half.is_some_and(|half| uuid.trim_end() == format!("CRYPT-VERITY-{half}-root"))
}

/// The dry run: reads this program whole, and the state. Runs in a child of the PID 1 that is to be replaced.
pub(crate) fn dry_run() -> Result<(), ResumeError> {
    let mut inherited = Inherited::all()?;
    let (state, refusal) = (inherited.take(STATE_FD, Kind::File)?, inherited.take(REFUSAL_FD, Kind::File)?);
    let result = std::fs::read("/proc/self/exe")
        .map_err(|error| ResumeError::File {
            what: "the new program",
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        })
        .and_then(|_| read_sealed(&state))
        .and_then(|bytes| State::decode(&bytes).map(drop));
    if let Err(error) = &result {
        let mut text = error.to_string();
        while text.len() > REFUSAL_BYTES {
            text.pop();
        }
        let _ = rustix::io::write(&refusal, text.as_bytes());
    }
    result
}

/// Takes over from the program before: the state lies in this descriptor.
pub(super) fn resume(number: RawFd) -> Result<Supervisor, ResumeError> {
    let mut inherited = Inherited::all()?;
    let memory = inherited.take(number, Kind::File)?;
    let state = State::decode(&read_sealed(&memory)?)?;
    // Its name is the descriptor's number after an `execveat`.
    let _ = rustix::thread::set_name(c"init");
    let (began_boot_us, descriptors) = (state.began_boot_us(), inherited.count());
    let mut supervisor = state.supervisor(inherited)?;
    drop(memory);
    sys::unblock_signals();
    supervisor.catch_up();
    let gap_us = now_boot_us().saturating_sub(began_boot_us);
    let workloads = supervisor.core.workloads().count();
    supervisor
        .say(&format!("PID 1 replaced itself in {} us: {workloads} workloads, {descriptors} descriptors kept", gap_us));
    supervisor.queue.push_back(Event::Reexecuted(Reexecuted::Done { gap_us }));
    Ok(supervisor)
}

impl Supervisor {
    /// What may have happened while nobody looked: children that ended, cgroups that became empty.
    pub(super) fn catch_up(&mut self) {
        if self.reap() {
            let _ = rustix::io::write(&self.environment.signal_pipe_writer, b"c");
        }
        let ending: Vec<_> = self.kept.iter().filter(|(_, kept)| kept.run.is_some()).map(|(id, _)| *id).collect();
        for id in ending {
            self.check_emptied(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_verified_by_the_hash_of_the_signed_command_line() {
        let (good, evil) = ("ab".repeat(32), "cd".repeat(32));
        let uuid = format!("CRYPT-VERITY-{}-root\n", "ab".repeat(16));
        assert!(is_of_root_hash(&uuid, &format!("quiet byre.root={good} byre.root={evil}")));
        assert!(!is_of_root_hash(&uuid, &format!("byre.root={evil} byre.root={good}")));
        assert!(!is_of_root_hash(&uuid, "quiet"));
        assert!(!is_of_root_hash("", &format!("byre.root={good}")));
        assert!(!is_of_root_hash("CRYPT-VERITY--root", "byre.root="));
    }

    #[test]
    fn a_sealed_state_is_read_whole_and_an_open_one_is_refused() {
        let bytes = vec![7; 100_000];
        assert_eq!(read_sealed(&sealed("test", &bytes).unwrap()).unwrap(), bytes);
        let open = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(read_sealed(&open).is_err());
    }
}

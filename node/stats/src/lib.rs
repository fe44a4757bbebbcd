//! `byred stats`: reads the figures of cgroups on behalf of the API, which may not see them.
//!
//! It opens files below /sys/fs/cgroup only, for reading, and never follows a link or leaves that directory whatever a path says. A
//! file that is missing counts as zero: controllers come and go, and a workload may end between the question and the answer.

mod figures;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use byre_protocol::peer::{CgroupStats, STATS_CGROUPS, StatsCall};
use byre_protocol::status::Moment;
use byre_sandbox::stream::{self, StreamError};
use byre_sandbox::{Descriptors, Notifier, profiles};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

/// What is read.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The one client is `byred api`; one that does not send or take is dropped after this time, since calls are served one by one.
const CLIENT_TIME: Duration = Duration::from_secs(2);

/// Why the service ended. PID 1 starts it anew.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// The cgroup tree is not there.
    #[error("{CGROUPS}: {0}")]
    Cgroups(Errno),
    /// The listener failed.
    #[error("accept: {0}")]
    Accept(io::Error),
}

/// The service, started by PID 1.
///
/// # Errors
/// If it cannot start or its listener fails.
pub fn run() -> Result<(), StatsError> {
    let mut descriptors = Descriptors::from_environment()?;
    let listener = UnixListener::from(descriptors.take("unix")?);
    // The mode belongs to the socket, which PID 1 keeps: whoever had it before may have set another.
    listener.set_nonblocking(false).map_err(StatsError::Accept)?;
    let notifier = Notifier::from_environment()?;
    let root = rustix::fs::open(CGROUPS, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(StatsError::Cgroups)?;
    byre_sandbox::seal(&profiles::STATS)?;
    notifier.ready()?;
    loop {
        match listener.accept() {
            Ok((client, _)) => {
                if let Err(error) = answer(client, &root) {
                    eprintln!("a call is not answered: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(StatsError::Accept(error)),
        }
    }
}

/// Answers the calls of one connection.
fn answer(mut client: UnixStream, root: &OwnedFd) -> Result<(), StreamError> {
    client.set_read_timeout(Some(CLIENT_TIME))?;
    client.set_write_timeout(Some(CLIENT_TIME))?;
    let Some(call) = stream::read::<StatsCall>(&mut client)? else { return Ok(()) };
    let at = now();
    let read = |cgroup: &String| figures::read(root, cgroup, at);
    let answer: Vec<CgroupStats> = call.cgroups.iter().take(STATS_CGROUPS).map(read).collect();
    stream::write(&mut client, &answer)
}

fn now() -> Moment {
    let milliseconds = |clock| {
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1000).saturating_add(u64::try_from(time.tv_nsec / 1_000_000).unwrap_or(0))
    };
    Moment { boot_ms: milliseconds(ClockId::Boottime), wall_ms: milliseconds(ClockId::Realtime) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_answered_in_order_and_within_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("a")).unwrap();
        std::fs::write(directory.path().join("a/pids.current"), "7\n").unwrap();
        let root = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let cgroups = std::iter::once("a".to_owned()).chain((0..100).map(|n| format!("gone{n}"))).collect();
        stream::write(&mut ours, &StatsCall { cgroups }).unwrap();
        answer(theirs, &root).unwrap();
        let answer: Vec<CgroupStats> = stream::read(&mut ours).unwrap().unwrap();
        assert_eq!(answer.len(), STATS_CGROUPS);
        assert_eq!((answer[0].cgroup.as_str(), answer[0].processes), ("a", 7));
        assert_eq!((answer[5].cgroup.as_str(), answer[5].processes), ("gone4", 0));
    }
}

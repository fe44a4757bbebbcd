//! The loop of `byred config` once the configuration is handed out: calls of `byred api`, and the time of a change that nobody confirms.
//!
//! Calls are served one by one; the one client is `byred api`, which PID 1's socket alone lets in.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use byre_protocol::settings::{ConfigAnswer, ConfigCall, Plan};
use byre_sandbox::stream::{self, StreamError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::keeper::{Denied, Keeper, Now};
use crate::{plan, schema};

/// A client that does not send or take is dropped after this time, since calls are served one by one.
const CLIENT_TIME: Duration = Duration::from_secs(2);
/// Connections that watch: `byred api` has one, a process of it that is ending may still hold another.
const WATCHERS: usize = 4;

/// Why the loop ended. PID 1 starts the service anew; what waits for a confirmation goes on waiting.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener failed.
    #[error("accept: {0}")]
    Accept(io::Error),
    /// Waiting failed.
    #[error("poll: {0}")]
    Poll(Errno),
}

/// Serves for ever, on a listener that does not block.
pub(crate) fn serve(keeper: &mut Keeper, listener: &UnixListener) -> Result<(), ServeError> {
    let mut watchers: Vec<UnixStream> = Vec::new();
    let mut told = keeper.revision();
    loop {
        // A millisecond later than the deadline rather than a little before it, which would turn in circles.
        let timeout = keeper.deadline_in_ms(now()).map(|millis| Duration::from_millis(millis.saturating_add(1)));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let ready = wait(listener, &watchers, timeout.as_ref())?;
        keeper.expire(now());
        // A watcher says nothing more: what can be read is its end.
        let mut ended = ready.watchers.into_iter();
        watchers.retain(|_| !ended.next().unwrap_or(false));
        if ready.listener {
            match listener.accept() {
                Ok((client, _)) => match answer(keeper, client) {
                    Ok(Some(watcher)) if watchers.len() < WATCHERS => {
                        let mut new = vec![watcher];
                        tell(keeper, &mut new);
                        watchers.append(&mut new);
                    }
                    Ok(_) => {}
                    Err(error) => println!("config: a call is not answered: {error}"),
                },
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(ServeError::Accept(error)),
            }
        }
        if std::mem::replace(&mut told, keeper.revision()) != told {
            tell(keeper, &mut watchers);
        }
    }
}

struct Ready {
    listener: bool,
    watchers: Vec<bool>,
}

fn wait(listener: &UnixListener, watchers: &[UnixStream], timeout: Option<&Timespec>) -> Result<Ready, ServeError> {
    let descriptors = std::iter::once(listener.as_fd()).chain(watchers.iter().map(AsFd::as_fd));
    let mut polled: Vec<PollFd<'_>> = descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(ServeError::Poll(errno)),
    }
    let mut ready = polled.iter().map(|one| !one.revents().is_empty());
    Ok(Ready { listener: ready.next().unwrap_or(false), watchers: ready.collect() })
}

/// Tells watchers what has to start anew; one that does not take it is dropped and asks again.
fn tell(keeper: &Keeper, watchers: &mut Vec<UnixStream>) {
    if keeper.restarts().is_empty() {
        return;
    }
    let message = ConfigAnswer::Restart(keeper.restarts().to_vec());
    watchers.retain_mut(|watcher| stream::write(watcher, &message).is_ok());
}

/// Answers the call of one connection; gives it back if it is to be told more.
fn answer(keeper: &mut Keeper, mut client: UnixStream) -> Result<Option<UnixStream>, StreamError> {
    client.set_read_timeout(Some(CLIENT_TIME))?;
    client.set_write_timeout(Some(CLIENT_TIME))?;
    let Some(call) = stream::read::<ConfigCall>(&mut client)? else { return Ok(None) };
    if call == ConfigCall::Watch {
        return Ok(Some(client));
    }
    let answer = carry_out(keeper, call, now())
        .unwrap_or_else(|denied| ConfigAnswer::Refused { code: denied.code(), text: denied.to_string() });
    stream::write(&mut client, &answer)?;
    Ok(None)
}

/// One call.
pub(crate) fn carry_out(keeper: &mut Keeper, call: ConfigCall, now: Now) -> Result<ConfigAnswer, Denied> {
    Ok(match call {
        ConfigCall::Schema => ConfigAnswer::Schema(schema::json_schema()),
        ConfigCall::Get { generation, secrets } => {
            let (generation, stored) = keeper.get(generation, now)?;
            let document = if secrets {
                String::from_utf8_lossy(&stored.document).into_owned()
            } else {
                plan::document_without_secrets(&stored.configuration)
            };
            ConfigAnswer::Document { generation, document }
        }
        ConfigCall::Plan { document } => ConfigAnswer::Plan(keeper.plan(&document)?),
        ConfigCall::Compare { from, to } => ConfigAnswer::Plan(keeper.compare(from, to)?),
        ConfigCall::Apply { document, who, confirm_ms } => {
            let (generation, plan) = keeper.apply(document, &who, confirm_ms, now)?;
            ConfigAnswer::Applied { generation, plan }
        }
        ConfigCall::Confirm { generation, connected_boot_ms } => {
            let generation = keeper.confirm(generation, connected_boot_ms, now)?;
            ConfigAnswer::Applied { generation, plan: Plan::default() }
        }
        ConfigCall::Undo { generation } => {
            let (generation, plan) = keeper.undo(generation, now)?;
            ConfigAnswer::Applied { generation, plan }
        }
        ConfigCall::History => ConfigAnswer::History(keeper.history(now)),
        ConfigCall::Restarted { service, revision } => {
            keeper.restarted(&service, revision, now)?;
            ConfigAnswer::Done
        }
        ConfigCall::Watch => ConfigAnswer::Done,
    })
}

/// Both clocks.
pub(crate) fn now() -> Now {
    let milliseconds = |clock| {
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1000).saturating_add(u64::try_from(time.tv_nsec / 1_000_000).unwrap_or(0))
    };
    Now { boot_ms: milliseconds(ClockId::Boottime), wall_ms: milliseconds(ClockId::Realtime) }
}

//! The service's loop: notices in, batches to the journal, acknowledgements out, and the replay at the start.
//!
//! ```text
//! Replaying{rest} -> (one record at a time, when the channel took the last) -> ReplayEnd -> ready -> Serving
//! ```
//! Records that come in together share one sync. Nothing is read from PID 1 while its answers cannot be queued, so both
//! directions are bounded.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::Path;

use byre_plan::WorkloadId;
use byre_protocol::control::{Change, FromInit, Notice, REASON_BYTES, Reply, Request};
use byre_protocol::frame::FrameError;
use byre_sandbox::channel::ChannelError;
use byre_sandbox::{Channel, Descriptors, Notifier, profiles};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::journal::{Journal, JournalError, Opened};

/// Where the journal lies.
const DIRECTORY: &str = "/state/workloads";
/// Records that share one sync: a restart of a whole node at once, while each still is answered within one sync's time.
const BATCH: usize = 64;

/// Why the service ended. PID 1 starts it anew.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// PID 1 closed the channel or spoke another language.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Waiting failed.
    #[error("poll: {0}")]
    Poll(Errno),
}

impl From<FrameError> for StateError {
    fn from(error: FrameError) -> Self {
        Self::Channel(error.into())
    }
}

/// The service, started by PID 1: takes its descriptors, seals itself, serves until the channel closes.
///
/// # Errors
/// If it cannot start or the channel fails.
pub fn run() -> Result<(), StateError> {
    let mut descriptors = Descriptors::from_environment()?;
    let control = descriptors.take("control")?;
    let notifier = Notifier::from_environment()?;
    byre_sandbox::seal(&profiles::STATE)?;
    serve(control, Path::new(DIRECTORY), &notifier)
}

/// The same without the sandbox, over a given channel and directory.
///
/// # Errors
/// If the journal cannot be opened or the channel fails; a channel closed by PID 1 is such a failure.
pub fn serve(control: OwnedFd, directory: &Path, notifier: &Notifier) -> Result<(), StateError> {
    let Opened { journal, report } = Journal::open(directory)?;
    if let Some(report) = report {
        eprintln!("{report}");
    }
    let phase = Phase::Replaying(journal.ids().into());
    let mut service = Service { channel: Channel::new(control), journal, phase };
    loop {
        service.channel.flush()?;
        service.replay(notifier)?;
        service.wait()?;
        let batch = service.gather()?;
        service.store(batch)?;
    }
}

/// How far the start is.
enum Phase {
    /// These are still to be handed back.
    Replaying(VecDeque<WorkloadId>),
    /// `ReplayEnd` waits to be taken by the socket.
    Ending,
    /// Ready.
    Serving,
}

struct Service {
    channel: Channel,
    journal: Journal,
    phase: Phase,
}

/// A record that PID 1 waits for.
struct Pending {
    record: u64,
    change: Change,
}

impl Service {
    /// Hands back as much as the channel takes at once.
    fn replay(&mut self, notifier: &Notifier) -> Result<(), StateError> {
        while self.channel.is_flushed() {
            let next = match &mut self.phase {
                Phase::Replaying(rest) => rest.pop_front(),
                Phase::Ending => {
                    notifier.ready()?;
                    self.phase = Phase::Serving;
                    return Ok(());
                }
                Phase::Serving => return Ok(()),
            };
            let Some(id) = next else {
                self.channel.send(Request::ReplayEnd, vec![])?;
                self.phase = Phase::Ending;
                continue;
            };
            match self.journal.read(id) {
                Ok(Some(record)) => drop(self.channel.send(Request::Replay(Box::new(record)), vec![])?),
                Ok(None) => {}
                Err(error) => eprintln!("workload {id} does not come back: {error}"),
            }
        }
        Ok(())
    }

    /// Waits until PID 1 said something or takes something.
    fn wait(&self) -> Result<(), StateError> {
        let mut interest = self.channel.interest();
        if self.channel.room() < BATCH {
            interest -= PollFlags::IN;
        }
        match poll(&mut [PollFd::new(&self.channel, interest)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(StateError::Poll(errno)),
        }
    }

    /// Takes what PID 1 said, up to a batch.
    fn gather(&mut self) -> Result<Vec<Pending>, StateError> {
        let mut batch = Vec::new();
        while batch.len() < BATCH.min(self.channel.room()) {
            let Some((message, _descriptors)) = self.channel.receive()? else { break };
            match message {
                FromInit::Notice(notice) => batch.extend(pending(*notice)),
                FromInit::Answer { reply: Reply::Refused(refused), .. } => {
                    eprintln!("PID 1 refused a workload that is on disk: {}", refused.text);
                }
                FromInit::Answer { .. } => {}
            }
        }
        Ok(batch)
    }

    /// Puts a batch on disk and says so; if the whole does not fit, each on its own, since removals still may.
    fn store(&mut self, batch: Vec<Pending>) -> Result<(), StateError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (records, changes): (Vec<u64>, Vec<Change>) =
            batch.into_iter().map(|pending| (pending.record, pending.change)).unzip();
        if self.journal.append(&changes).is_ok() {
            for record in records {
                self.channel.send(Request::Recorded { record }, vec![])?;
            }
        } else {
            for (record, change) in records.into_iter().zip(changes) {
                let request = match self.journal.append(std::slice::from_ref(&change)) {
                    Ok(()) => Request::Recorded { record },
                    Err(error) => Request::RecordFailed { record, text: shortened(&error.to_string()) },
                };
                self.channel.send(request, vec![])?;
            }
        }
        if let Err(error) = self.journal.compact_if_worthwhile() {
            eprintln!("the journal stays as long as it is: {error}");
        }
        Ok(())
    }
}

/// What a notice asks of this service.
fn pending(notice: Notice) -> Option<Pending> {
    match notice {
        Notice::Record { record, change } => Some(Pending { record, change: *change }),
        Notice::ShuttingDown
        | Notice::Event(_)
        | Notice::ExecEnded { .. }
        | Notice::LogStream { .. }
        | Notice::LogRemove { .. }
        | Notice::LogRunEnded { .. }
        | Notice::Probe { .. }
        | Notice::ProbeEnd { .. }
        | Notice::Attach { .. }
        | Notice::AttachEnd
        | Notice::Detach { .. } => None,
    }
}

/// A text within the protocol's bound.
fn shortened(text: &str) -> String {
    let mut end = text.len().min(REASON_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;

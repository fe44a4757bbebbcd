//! What attach and exec have in common: a client that types, output that goes to it, and an end.
//!
//! Nothing here knows the messages of either; each keeps its own words for them.

use std::sync::Arc;

use byre_api::proto;
use byre_protocol::status::Cause;
use tonic::{Code, Status};

use crate::audit::Entry;
use crate::descriptor::Descriptor;
use crate::{convert, spec};

/// Where a client's input goes.
pub(crate) struct Input {
    descriptor: Option<Arc<Descriptor>>,
    terminal: bool,
}

impl Input {
    /// Input into a pipe or a terminal's master, or none.
    pub(crate) fn new(descriptor: Option<Arc<Descriptor>>, terminal: bool) -> Self {
        Self { descriptor, terminal }
    }

    /// Writes all. Input that is not read any more is dropped, as by a terminal.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        if let Some(descriptor) = &self.descriptor
            && descriptor.write_all(bytes).await.is_err()
        {
            self.descriptor = None;
        }
    }

    /// The client has no more. Only a pipe can be closed; a terminal's end of input is a character. Whether something was closed.
    pub(crate) fn close(&mut self) -> bool {
        !self.terminal && self.descriptor.take().is_some()
    }

    /// The client's window has another size.
    pub(crate) fn resize(&self, size: &proto::TerminalSize) {
        if let Some(descriptor) = self.descriptor.as_ref().filter(|_| self.terminal) {
            // A size that cannot be set leaves the terminal as it is; nothing else is lost.
            let _ = descriptor.resize(spec::terminal_size(Some(size)));
        }
    }
}

/// How a client's input ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Typed {
    /// There is no more; the output goes on.
    All,
    /// The client leaves, and the program goes on.
    Detached,
}

/// Serves both directions until the output ends, which gives its end, or until the client leaves, which gives `None`.
///
/// # Errors
/// Those of either direction.
pub(crate) async fn until_end<End>(
    typing: impl Future<Output = Result<Typed, Status>>,
    ending: impl Future<Output = Result<End, Status>>,
) -> Result<Option<End>, Status> {
    tokio::pin!(typing, ending);
    let mut typed = false;
    loop {
        tokio::select! {
            how = &mut typing, if !typed => match how? {
                Typed::All => typed = true,
                Typed::Detached => return Ok(None),
            },
            result = &mut ending => return result.map(Some),
        }
    }
}

/// Records how a session ended, and gives the client's last message; a client that left has none.
///
/// # Errors
/// That of the session.
pub(crate) fn last(result: Result<Option<&Cause>, Status>, entry: &mut Entry) -> Option<Result<proto::Exit, Status>> {
    match result {
        Ok(Some(cause)) => {
            let exit = convert::exit(cause);
            entry.end((Code::Ok, &format!("exit code {}", exit.code)));
            Some(Ok(exit))
        }
        Ok(None) => {
            entry.end((Code::Ok, "the client detached"));
            None
        }
        Err(status) => {
            entry.end((status.code(), status.message()));
            Some(Err(status))
        }
    }
}

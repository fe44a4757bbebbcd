//! Our stdin and stdout beside the event loop: one thread reads, one writes, each behind a short queue.
//!
//! A full queue is what holds the other side back: a slow reader of our stdout slows the node's stream, a node that does not read slows our
//! reading. Nothing is collected. Threads, because files and terminals cannot be polled; both end with the process.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use byre_api::proto::OutputStream;
use tokio::sync::{mpsc, oneshot};

use crate::error::Failure;
use crate::output::write_failure;

/// One read or message: large enough that a copy of gigabytes is not bound by calls, small enough to type into.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that may wait between a thread and the event loop: enough to keep both busy.
pub(crate) const QUEUE: usize = 4;

/// What is read from stdin, until it ends. A read error is its end as well: the other side has to learn that nothing comes any more.
pub(crate) fn input() -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    let failed = |error: std::io::Error| Failure::io("cannot read stdin", &error);
    let stdin = File::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
    pieces("stdin", stdin).map(|(pieces, _)| pieces)
}

/// What is read from a file or pipe, in pieces; the second half answers once when reading ended, with its error if that is why.
pub(crate) type Pieces = (mpsc::Receiver<Vec<u8>>, oneshot::Receiver<std::io::Result<()>>);

/// Reads in a thread of its own.
pub(crate) fn pieces(name: &str, mut file: File) -> Result<Pieces, Failure> {
    let (pieces, receiver) = mpsc::channel(QUEUE);
    let (ended, end) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        let result = loop {
            match file.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(read) => {
                    if pieces.blocking_send(buffer[..read].to_vec()).is_err() {
                        break Ok(());
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        // Whoever only wants the bytes has dropped the other end.
        let _ = ended.send(result);
    });
    thread.map_err(|error| Failure::io("cannot start a thread", &error))?;
    Ok((receiver, end))
}

/// Stdout and stderr behind a queue.
#[derive(Debug)]
pub(crate) struct Sink {
    pieces: mpsc::Sender<(OutputStream, Vec<u8>)>,
    end: oneshot::Receiver<std::io::Result<()>>,
}

impl Sink {
    pub(crate) fn new() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::io("cannot write to stdout", &error);
        let mut stdout = File::from(std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?);
        let mut stderr = File::from(std::io::stderr().as_fd().try_clone_to_owned().map_err(failed)?);
        let (pieces, mut receiver) = mpsc::channel::<(OutputStream, Vec<u8>)>(QUEUE);
        let (ended, end) = oneshot::channel();
        let thread = std::thread::Builder::new().name("stdout".into()).spawn(move || {
            let mut result = Ok(());
            while let Some((stream, bytes)) = receiver.blocking_recv() {
                result = match stream {
                    OutputStream::Stderr => stderr.write_all(&bytes),
                    OutputStream::Unspecified | OutputStream::Stdout | OutputStream::Terminal => {
                        stdout.write_all(&bytes)
                    }
                };
                if result.is_err() {
                    break;
                }
            }
            // Nobody waits for it if the session was given up.
            let _ = ended.send(result);
        });
        thread.map_err(failed)?;
        Ok(Self { pieces, end })
    }

    /// Queues some output; waits while the queue is full.
    pub(crate) async fn write(&mut self, stream: OutputStream, bytes: Vec<u8>) -> Result<(), Failure> {
        if self.pieces.send((stream, bytes)).await.is_ok() {
            return Ok(());
        }
        match (&mut self.end).await {
            Ok(Err(error)) => Err(write_failure(&error)),
            Ok(Ok(())) | Err(_) => Err(Failure::Closed),
        }
    }

    /// Waits until all is written.
    pub(crate) async fn finish(self) -> Result<(), Failure> {
        drop(self.pieces);
        match self.end.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(write_failure(&error)),
            Err(_) => Err(Failure::Closed),
        }
    }
}

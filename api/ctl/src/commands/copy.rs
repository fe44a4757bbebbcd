//! `cp`: between this machine and a running container, as tar streams.
//!
//! Where a copy goes follows docker: into a directory that exists, else to that very name. What there is on the node is learned from the
//! first header of a copy out that is not read further; the API needs no call of its own for that.

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal as _, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use byre_api::proto::{CopyInRequest, CopyInStart, CopyOutRequest, OutputStream, copy_in_request};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::args::CpArgs;
use crate::connect::Node;
use crate::error::Failure;
use crate::output::complain;
use crate::stdio::{CHUNK_BYTES, QUEUE, Sink, pieces};
use crate::tar_in;
use crate::tar_out;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    /// A tar stream.
    Stream,
    Here(PathBuf),
    There {
        workload: String,
        path: String,
    },
}

impl Side {
    /// `NAME:PATH` if the `:` comes before any `/`; a path with a `:` is written `./a:b`.
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((name, path)) if !name.is_empty() && !name.contains('/') && !name.starts_with('.') => {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                Self::There { workload: name.into(), path }
            }
            Some(_) | None => Self::Here(text.into()),
        }
    }
}

/// What a path on the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Directory,
    Link,
    File,
}

pub(super) async fn copy(connect: impl AsyncFn() -> Result<Node, Failure>, args: &CpArgs) -> Result<(), Failure> {
    match (Side::parse(&args.source), Side::parse(&args.destination)) {
        (Side::There { workload, path }, Side::Stream) => to_stdout(&connect().await?, workload, path).await,
        (Side::There { workload, path }, Side::Here(to)) => copy_out(&connect().await?, workload, path, &to).await,
        (Side::Stream, Side::There { workload, path }) => from_stdin(&connect().await?, workload, path).await,
        (Side::Here(from), Side::There { workload, path }) => copy_in(&connect().await?, &from, workload, &path).await,
        (Side::There { .. }, Side::There { .. }) => {
            Err(Failure::usage("both sides are on the node", "copy out first, or: cp A:/x - | cp - B:/y"))
        }
        (Side::Stream | Side::Here(_), Side::Stream | Side::Here(_)) => {
            Err(Failure::usage("neither side is on the node", "write one of them as NAME:PATH"))
        }
    }
}

async fn to_stdout(node: &Node, workload: String, path: String) -> Result<(), Failure> {
    if std::io::stdout().is_terminal() {
        return Err(Failure::usage("stdout is a terminal", "redirect the tar stream, or name a destination"));
    }
    let mut stream = node.workloads().copy_out(CopyOutRequest { workload, path }).await?.into_inner();
    let mut sink = Sink::new()?;
    while let Some(piece) = stream.message().await? {
        sink.write(OutputStream::Stdout, piece.tar.to_vec()).await?;
    }
    sink.finish().await
}

async fn copy_out(node: &Node, workload: String, path: String, to: &Path) -> Result<(), Failure> {
    let (directory, name) = place_here(&path, to)?;
    let shown = directory.display().to_string();
    let at: OwnedFd =
        std::fs::File::open(&directory).map_err(|error| Failure::io(&format!("cannot open {shown}"), &error))?.into();
    let stream = start_out(node, workload, path).await?;
    let unpacked = tokio::task::spawn_blocking(move || {
        let mut stream = stream;
        let result = tar_out::unpack(&mut stream, &at, name.as_deref());
        (result, stream.failure)
    });
    let (result, refused) = unpacked.await.map_err(|_| Failure::failed("unpacking ended early", "try again"))?;
    if let Some(status) = refused {
        return Err(Failure::from(status));
    }
    let done = result.map_err(|error| Failure::failed(error.to_string(), format!("see what is in {shown}")))?;
    left_out(done.left_out)
}

/// The directory to unpack in, and the name to unpack as; none for the directory itself.
fn place_here(from: &str, to: &Path) -> Result<(PathBuf, Option<OsString>), Failure> {
    let contents = from.ends_with("/.") || from.trim_end_matches('/').is_empty();
    let base = from.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if matches!(base, "..") {
        return Err(Failure::usage(format!("{from} ends in `..`"), "write the plain path"));
    }
    if to.is_dir() {
        return Ok((to.into(), (!contents).then(|| base.into())));
    }
    if to.as_os_str().as_encoded_bytes().ends_with(b"/") && !to.exists() {
        return Err(Failure::failed(format!("there is no directory {}", to.display()), "make it first"));
    }
    let name = to
        .file_name()
        .ok_or_else(|| Failure::usage(format!("{} names nothing", to.display()), "write the plain path"))?;
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    Ok((parent.into(), Some(name.into())))
}

/// The tar stream of a copy out, for a thread to read.
#[derive(Debug)]
struct Incoming {
    pieces: mpsc::Receiver<Result<Vec<u8>, Status>>,
    piece: Vec<u8>,
    read: usize,
    failure: Option<Status>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.read == self.piece.len() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => (self.piece, self.read) = (piece, 0),
                Some(Err(status)) => {
                    self.failure = Some(status);
                    return Err(std::io::ErrorKind::BrokenPipe.into());
                }
                None => return Ok(0),
            }
        }
        let read = buffer.len().min(self.piece.len() - self.read);
        buffer[..read].copy_from_slice(&self.piece[self.read..self.read + read]);
        self.read += read;
        Ok(read)
    }
}

async fn start_out(node: &Node, workload: String, path: String) -> Result<Incoming, Failure> {
    let mut stream = node.workloads().copy_out(CopyOutRequest { workload, path }).await?.into_inner();
    let (sender, pieces) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let piece = match stream.message().await {
                Ok(Some(piece)) => Ok(piece.tar.to_vec()),
                Ok(None) => return,
                Err(status) => Err(status),
            };
            let last = piece.is_err();
            if sender.send(piece).await.is_err() || last {
                return;
            }
        }
    });
    Ok(Incoming { pieces, piece: Vec::new(), read: 0, failure: None })
}

/// What `path` is, by the first header of its tar stream.
async fn kind_there(node: &Node, workload: &str, path: &str) -> Result<Kind, Failure> {
    let request = CopyOutRequest { workload: workload.into(), path: path.into() };
    let mut stream = node.workloads().copy_out(request).await?.into_inner();
    let mut head = Vec::with_capacity(CHUNK_BYTES);
    let mut kind = Kind::Nothing;
    // Long names stand before the header that says what it is; a path is at most 4 KiB.
    while kind == Kind::Nothing && head.len() < 16 << 10 {
        let Some(piece) = stream.message().await? else { break };
        head.extend_from_slice(&piece.tar);
        kind = first_kind(&head);
    }
    Ok(kind)
}

/// Whether a refusal can mean that there is no such path. It can also mean that there is no such container; the copy itself then says so.
fn not_there(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition))
}

fn first_kind(head: &[u8]) -> Kind {
    let mut archive = tar::Archive::new(head);
    let first = archive.entries().ok().and_then(|mut entries| entries.next()).and_then(Result::ok);
    match first.map(|entry| entry.header().entry_type()) {
        Some(tar::EntryType::Directory) => Kind::Directory,
        Some(tar::EntryType::Symlink) => Kind::Link,
        Some(_) => Kind::File,
        None => Kind::Nothing,
    }
}

async fn from_stdin(node: &Node, workload: String, directory: String) -> Result<(), Failure> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::usage("stdin is a terminal", "pipe a tar stream in, or name a source"));
    }
    let stdin =
        std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| Failure::io("cannot read stdin", &error))?;
    let (bytes, end) = pieces("stdin", stdin.into())?;
    send(node, workload, directory, bytes, async { matches!(end.await, Ok(Ok(()))) }).await
}

async fn copy_in(node: &Node, from: &Path, workload: String, to: &str) -> Result<(), Failure> {
    let shown = from.display().to_string();
    let metadata = from.symlink_metadata().map_err(|error| Failure::io(&format!("cannot read {shown}"), &error))?;
    let contents = from.as_os_str().as_encoded_bytes().ends_with(b"/.");
    let (kind, refusal) = match kind_there(node, &workload, to).await {
        // A link to a directory is that directory; any other link is replaced.
        Ok(Kind::Link) => match kind_there(node, &workload, &format!("{to}/.")).await {
            Ok(Kind::Directory) => (Kind::Directory, None),
            Ok(Kind::Nothing | Kind::Link | Kind::File) | Err(_) => (Kind::Link, None),
        },
        Ok(kind @ (Kind::Nothing | Kind::Directory | Kind::File)) => (kind, None),
        Err(refusal) if not_there(&refusal) => (Kind::Nothing, Some(refusal)),
        Err(failure) => return Err(failure),
    };
    let (directory, name) = match (place_there(from, to, kind, metadata.is_dir(), contents), refusal) {
        (Err(_), Some(refusal)) => return Err(refusal),
        (placed, _) => placed?,
    };
    let (sender, bytes) = mpsc::channel(QUEUE);
    let (complete, completed) = oneshot::channel();
    let path = from.to_owned();
    let mut packing = tokio::task::spawn_blocking(move || {
        let to = std::io::BufWriter::with_capacity(CHUNK_BYTES, Outgoing { pieces: sender });
        let packed = tar_in::pack(&path, &name, to);
        if packed.is_ok() {
            // Nobody waits for it if the node has refused already.
            let _ = complete.send(());
        }
        packed
    });
    let sending = send(node, workload, directory, bytes, async { completed.await.is_ok() });
    tokio::pin!(sending);
    let early = tokio::select! {
        sent = &mut sending => Err(sent),
        packed = &mut packing => Ok(packed),
    };
    let (packed, sent) = match early {
        // If sending broke, the node's reason says more than that nobody took the bytes.
        Ok(Ok(Err(tar_in::PackError::Send(_)))) => return sending.await,
        Err(Err(failure)) => return Err(failure),
        // The node is left with a broken stream, which it cannot take for a whole one.
        Ok(Ok(Err(error))) => return Err(not_packed(&error)),
        Ok(packed) => (packed, sending.await),
        Err(sent) => (packing.await, sent),
    };
    sent?;
    match packed {
        Ok(Ok(count)) => left_out(count),
        Ok(Err(error)) => Err(not_packed(&error)),
        Err(_) => Err(Failure::failed("packing ended early", "try again")),
    }
}

fn not_packed(error: &tar_in::PackError) -> Failure {
    Failure::failed(error.to_string(), "mend that and copy again")
}

/// The directory on the node to unpack in, and the name to pack as; an empty one for what is in the source.
fn place_there(
    from: &Path,
    to: &str,
    kind: Kind,
    directory: bool,
    contents: bool,
) -> Result<(String, OsString), Failure> {
    let trimmed = to.trim_end_matches('/');
    let base = || from.canonicalize().ok().and_then(|path| path.file_name().map(OsStr::to_owned));
    match kind {
        Kind::Directory if contents => Ok((to.into(), OsString::new())),
        Kind::Directory => {
            let name = from.file_name().map(OsStr::to_owned).or_else(base);
            let name = name.ok_or_else(|| {
                Failure::usage(format!("{} has no name", from.display()), "write DIR/. for its contents")
            })?;
            Ok((to.into(), name))
        }
        Kind::File | Kind::Link if directory => Err(Failure::failed(
            format!("{to} is no directory, and {} is one", from.display()),
            "name another destination",
        )),
        Kind::Nothing | Kind::File | Kind::Link => {
            if trimmed.len() < to.len() && !directory {
                return Err(Failure::failed(format!("there is no directory {to}"), "make it first"));
            }
            let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
            if matches!(name, "" | "." | "..") {
                return Err(Failure::usage(format!("{to} names nothing"), "write the plain path"));
            }
            Ok((if parent.is_empty() { "/".into() } else { parent.into() }, name.into()))
        }
    }
}

/// The writing end of a copy in, for a thread.
#[derive(Debug)]
struct Outgoing {
    pieces: mpsc::Sender<Vec<u8>>,
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let piece = &bytes[..bytes.len().min(CHUNK_BYTES)];
        let sent = self.pieces.blocking_send(piece.to_vec());
        sent.map(|()| piece.len()).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Sends a tar stream. Unless it turns out to be complete, its end is never sent: the call breaks off with us instead.
async fn send(
    node: &Node,
    workload: String,
    directory: String,
    mut bytes: mpsc::Receiver<Vec<u8>>,
    complete: impl Future<Output = bool> + Send + 'static,
) -> Result<(), Failure> {
    let (requests, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let message = |message| CopyInRequest { message: Some(message) };
        let start = CopyInStart { workload, directory };
        if requests.send(message(copy_in_request::Message::Start(start))).await.is_err() {
            return;
        }
        while let Some(piece) = bytes.recv().await {
            if requests.send(message(copy_in_request::Message::Tar(piece.into()))).await.is_err() {
                return;
            }
        }
        if !complete.await {
            requests.closed().await;
        }
    });
    node.workloads().copy_in(ReceiverStream::new(receiver)).await?;
    Ok(())
}

fn left_out(count: u64) -> Result<(), Failure> {
    if count > 0 {
        complain(&format!("left out {count} devices, pipes, sockets or sparse files"));
        return Err(Failure::Several(1));
    }
    Ok(())
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;

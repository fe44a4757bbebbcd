//! Exec: a further process inside a running container, with pipes or a terminal that this service reads and writes itself.
//!
//! A session ends with its process, not with the last holder of its output: what the process left in the pipes is delivered, a background child
//! that keeps them open is not waited for. If the client goes away, or this service dies, the process is hung up, and killed if it
//! does not end.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use byre_api::proto;
use byre_api::proto::exec_request::Message as Asked;
use byre_api::proto::exec_response::Message as Told;
use byre_plan::{Process, Program, WorkloadId};
use byre_protocol::control::{RefusedCode, Reply, Request, Target};
use byre_protocol::definition::Definition;
use byre_protocol::status::Cause;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::audit::{Change, Entry};
use crate::backend::{Backend, SharedBackend};
use crate::control::{Control, ControlError};
use crate::descriptor::{Descriptor, pipe};
use crate::gate::Peer;
use crate::session::{self, Input, Typed};
use crate::spec;
use crate::workloads::Answers;

/// Bytes of output read at once, and in one message.
pub(crate) const PIECE_BYTES: usize = 32 * 1024;
/// Pieces of output that a slow client may be behind; then the process waits in its write.
const BEHIND: usize = 8;
/// What a process that was hung up has to end.
const HANG_UP_GRACE: Duration = Duration::from_secs(10);

const EXEC: Change = Change { method: "Workloads/Exec", frees_space: false };

/// A running exec session. Dropping it before its end hangs the process up.
pub(crate) struct Session {
    control: Control,
    exec: u64,
    ended: Option<oneshot::Receiver<Cause>>,
    /// Closed by the client or by us when the process is to see the end of its input.
    pub stdin: Option<Arc<Descriptor>>,
    /// What the process writes.
    pub outputs: Vec<(Arc<Descriptor>, proto::OutputStream)>,
    terminal: Option<Arc<Descriptor>>,
}

impl Session {
    /// Starts `process` in the container.
    ///
    /// # Errors
    /// PID 1's refusal.
    pub(crate) async fn start(backend: &Backend, id: WorkloadId, process: Process) -> Result<Self, Status> {
        Self::begin(backend, id, process).await.map_err(|error| match error {
            Begun::NotStarted(text) => Status::failed_precondition(text),
            Begun::Refused(status) => status,
        })
    }

    /// As [`Self::start`], with a program that cannot be executed told apart.
    ///
    /// # Errors
    /// PID 1's refusal.
    pub(crate) async fn begin(backend: &Backend, id: WorkloadId, process: Process) -> Result<Self, Begun> {
        let failed = |error: std::io::Error| {
            Status::resource_exhausted(format!("no pipes for the process: {error}; end other sessions first"))
        };
        let (target, terminal) = (Target::Id(id), process.terminal.is_some());
        let ask = Request::Exec { target, process: Box::new(process) };
        let mut session = Self {
            control: backend.control.clone(),
            exec: 0,
            ended: None,
            stdin: None,
            outputs: Vec::new(),
            terminal: None,
        };
        let answer = if terminal {
            backend.control.call(ask).await
        } else {
            let (theirs_in, ours_in) = pipe().map_err(failed)?;
            let (ours_out, theirs_out) = pipe().map_err(failed)?;
            let (ours_error, theirs_error) = pipe().map_err(failed)?;
            session.stdin = Some(Arc::new(Descriptor::new(ours_in).map_err(failed)?));
            for (descriptor, stream) in
                [(ours_out, proto::OutputStream::Stdout), (ours_error, proto::OutputStream::Stderr)]
            {
                session.outputs.push((Arc::new(Descriptor::new(descriptor).map_err(failed)?), stream));
            }
            backend.control.call_with(ask, &[theirs_in.as_fd(), theirs_out.as_fd(), theirs_error.as_fd()]).await
        };
        let answer = match answer {
            Err(ControlError::Refused(refused)) if refused.code == RefusedCode::StartFailed => {
                return Err(Begun::NotStarted(refused.text));
            }
            other => other.map_err(Status::from)?,
        };
        let Reply::ExecStarted { exec } = answer.reply else {
            return Err(Status::from(ControlError::Unexpected).into());
        };
        session.exec = exec;
        session.ended = answer.ended;
        if terminal {
            let master = answer.descriptors.into_iter().next().ok_or(ControlError::Unexpected).map_err(Status::from)?;
            let master = Arc::new(Descriptor::new(master).map_err(failed)?);
            session.stdin = Some(Arc::clone(&master));
            session.outputs.push((Arc::clone(&master), proto::OutputStream::Terminal));
            session.terminal = Some(master);
        }
        Ok(session)
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// If PID 1 is gone.
    pub(crate) async fn end(&mut self) -> Result<Cause, Status> {
        let Some(ended) = &mut self.ended else { return Err(ControlError::Closed.into()) };
        let cause = ended.await.map_err(|_| ControlError::Closed)?;
        self.ended = None;
        Ok(cause)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(ended) = self.ended.take() else { return };
        let (control, exec) = (self.control.clone(), self.exec);
        tokio::spawn(async move {
            // With a terminal the kernel does the same when its master is closed, which happens now.
            let _ = control.call(Request::KillExec { exec, signal: libc::SIGHUP as u8 }).await;
            if tokio::time::timeout(HANG_UP_GRACE, ended).await.is_err() {
                let _ = control.call(Request::KillExec { exec, signal: libc::SIGKILL as u8 }).await;
            }
        });
    }
}

fn told(message: Told) -> proto::ExecResponse {
    proto::ExecResponse { message: Some(message) }
}

/// The process of an exec: the container's own credentials, environment and directory unless the client says otherwise.
pub(crate) fn process(workload: &Definition, start: &proto::ExecStart) -> Result<Process, Status> {
    if start.command.first().is_none_or(String::is_empty) {
        return Err(Status::invalid_argument("command is empty: say what to run"));
    }
    let mut process = workload.launch.process.clone();
    process.program = Program::Path;
    process.args.clone_from(&start.command);
    for entry in &start.env {
        let Some((key, _)) = entry.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Status::invalid_argument(format!("env {entry:?} is not of the form NAME=value")));
        };
        process.env.retain(|other| other.split_once('=').is_none_or(|(other, _)| other != key));
        process.env.push(entry.clone());
    }
    if start.terminal && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
        process.env.push("TERM=xterm".into());
    }
    if !start.user.is_empty() {
        process.user = spec::user(&start.user)?;
    }
    if !start.working_dir.is_empty() {
        if !start.working_dir.starts_with('/') {
            return Err(Status::invalid_argument(format!(
                "working_dir {:?} is not absolute: begin it with a slash",
                start.working_dir
            )));
        }
        process.cwd.clone_from(&start.working_dir);
    }
    process.terminal = start.terminal.then(|| spec::terminal_size(start.size.as_ref()));
    Ok(process)
}

/// Answers an exec.
///
/// # Errors
/// If the first message is no start, there is no such container, or the process cannot be started.
pub(crate) async fn exec(
    backend: &SharedBackend,
    peer: &Peer,
    mut messages: Streaming<proto::ExecRequest>,
) -> Result<Answers<proto::ExecResponse>, Status> {
    let Some(Asked::Start(start)) = messages.message().await?.and_then(|message| message.message) else {
        return Err(Status::invalid_argument("the first message of an exec must be its start"));
    };
    let mut entry = backend.audit.asked(peer, EXEC, &format!("{} {}", start.workload, start.command.join(" ")))?;
    let begin = async {
        let detail = backend.inspect_container(&start.workload).await?;
        let process = process(&detail.definition, &start)?;
        Session::begin(backend, detail.summary.id, process).await
    };
    let mut session = match begin.await {
        Ok(session) => session,
        Err(Begun::NotStarted(text)) => return not_started(entry, text, start.terminal).await,
        Err(Begun::Refused(status)) => return entry.done(Err(status)).await,
    };
    entry.on_disk().await?;
    if !start.stdin && session.terminal.is_none() {
        session.stdin = None;
    }
    let (answers, stream) = mpsc::channel(BEHIND);
    tokio::spawn(async move {
        tokio::select! {
            () = serve(session, messages, &answers, &mut entry) => {}
            () = answers.closed() => entry.end((Code::Cancelled, "the client went away")),
        }
    });
    Ok(Box::pin(ReceiverStream::new(stream)))
}

/// Why an exec did not begin.
pub(crate) enum Begun {
    /// The program could not be executed; PID 1's words.
    NotStarted(String),
    /// Anything before that.
    Refused(Status),
}

impl From<Status> for Begun {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// A program that could not be executed is told as its end, with the code that a shell would give: 127 if there is none, 126 if it is
/// no program, 125 for anything before that.
async fn not_started(mut entry: Entry, text: String, terminal: bool) -> Result<Answers<proto::ExecResponse>, Status> {
    let code = match () {
        () if !text.contains("step execute") => 125,
        () if text.contains("ENOENT") => 127,
        () => 126,
    };
    entry.end((Code::FailedPrecondition, &text));
    entry.on_disk().await?;
    let stream = if terminal { proto::OutputStream::Terminal } else { proto::OutputStream::Stderr };
    let exit = proto::Exit { code, reason: text.clone(), ..proto::Exit::default() };
    let messages = [
        told(Told::Ready(proto::ExecReady {})),
        output(stream, format!("{text}\r\n").as_bytes()),
        told(Told::Exit(exit)),
    ];
    Ok(Box::pin(futures::stream::iter(messages.map(Ok))))
}

async fn serve(
    mut session: Session,
    messages: Streaming<proto::ExecRequest>,
    answers: &mpsc::Sender<Result<proto::ExecResponse, Status>>,
    entry: &mut Entry,
) {
    let _ = answers.send(Ok(told(Told::Ready(proto::ExecReady {})))).await;
    let (control, exec) = (session.control.clone(), session.exec);
    let input = Input::new(session.stdin.take(), session.terminal.is_some());
    let typing = input_loop(messages, input, control, exec);
    let result = session::until_end(typing, output_loop(&mut session, answers)).await;
    let result = result.as_ref().map(Option::as_ref).map_err(Status::clone);
    if let Some(last) = session::last(result, entry) {
        let _ = answers.send(last.map(|exit| told(Told::Exit(exit)))).await;
    }
}

/// Passes input on until the client closes its side. An error is a client that is gone.
async fn input_loop(
    mut messages: Streaming<proto::ExecRequest>,
    mut input: Input,
    control: Control,
    exec: u64,
) -> Result<Typed, Status> {
    while let Some(message) = messages.message().await? {
        match message.message {
            Some(Asked::Stdin(bytes)) => input.write(&bytes).await,
            Some(Asked::StdinClosed(_)) => drop(input.close()),
            Some(Asked::Resize(size)) => input.resize(&size),
            Some(Asked::Signal(name)) => {
                let signal = spec::signal_number(&name)?;
                control.call(Request::KillExec { exec, signal }).await?;
            }
            Some(Asked::Start(_)) | None => {
                return Err(Status::invalid_argument("an exec has one start, and then input, sizes and signals"));
            }
        }
    }
    Ok(Typed::All)
}

/// Passes output on until the process has ended and everything that it wrote is delivered.
async fn output_loop(
    session: &mut Session,
    answers: &mpsc::Sender<Result<proto::ExecResponse, Status>>,
) -> Result<Cause, Status> {
    let outputs = session.outputs.clone();
    let reading = futures::future::join_all(outputs.iter().map(|(descriptor, stream)| async {
        let mut buffer = vec![0; PIECE_BYTES];
        // Room is reserved before reading: if this is dropped, no byte that was read is lost.
        while let Ok(room) = answers.reserve().await {
            match descriptor.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => room.send(Ok(output(*stream, &buffer[..length]))),
            }
        }
    }));
    let ended = tokio::select! {
        _ = reading => None,
        cause = session.end() => Some(cause?),
    };
    let Some(cause) = ended else { return session.end().await };
    let mut buffer = vec![0; PIECE_BYTES];
    for (descriptor, stream) in &outputs {
        loop {
            let length = descriptor.read_now(&mut buffer);
            if length == 0 || answers.send(Ok(output(*stream, &buffer[..length]))).await.is_err() {
                break;
            }
        }
    }
    Ok(cause)
}

fn output(stream: proto::OutputStream, bytes: &[u8]) -> proto::ExecResponse {
    told(Told::Output(proto::Output { stream: stream.into(), data: bytes.to_vec().into() }))
}

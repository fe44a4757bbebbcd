//! Attach: live output and input of a container's first process. The container does not notice whether somebody is attached.
//!
//! With `start`, the reader of the output is registered before the container is started, so that not a byte is missed, however short the run.
//! Happy path: inspect, register, start, `ready`, output until the log service says that the run's output is complete, `exit`.

use std::sync::Arc;
use std::time::Duration;

use byre_api::proto;
use byre_api::proto::attach_request::Message as Asked;
use byre_api::proto::attach_response::Message as Told;
use byre_plan::WorkloadId;
use byre_protocol::control::{Event, RefusedCode, Reply, Request, Target, What};
use byre_protocol::peer::{LogCall, LogChunk};
use byre_protocol::status::{Detail, Run, State};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::audit::{Change, Entry};
use crate::backend::{Backend, SharedBackend};
use crate::control::ControlError;
use crate::descriptor::Descriptor;
use crate::gate::Peer;
use crate::peers::Peer as Service;
use crate::session::{self, Input, Typed};
use crate::workloads::{Answers, end_of_run};
use crate::{convert, logs, spec};

/// Pieces of output (32 KiB each) that a slow client may be behind; then its connection to the log service waits.
const BEHIND: usize = 8;
/// How long the log service may take to hear from PID 1 of a run that we know of already.
const LOG_LAG: Duration = Duration::from_millis(50);
/// How long the files of a removed container may take to go while its client waits.
const REMOVAL: Duration = Duration::from_secs(10);

const ATTACH: Change = Change { method: "Workloads/Attach", frees_space: false };

type Answer = Result<proto::AttachResponse, Status>;

fn told(message: Told) -> proto::AttachResponse {
    proto::AttachResponse { message: Some(message) }
}

/// Answers an attach.
///
/// # Errors
/// If the first message is no start, there is no such container, or it does not run.
pub(crate) async fn attach(
    backend: &SharedBackend,
    peer: &Peer,
    mut messages: Streaming<proto::AttachRequest>,
) -> Result<Answers<proto::AttachResponse>, Status> {
    let Some(Asked::Start(start)) = messages.message().await?.and_then(|message| message.message) else {
        return Err(Status::invalid_argument("the first message of an attach must be its start"));
    };
    let target = format!("{}{}", start.workload, if start.start { ", start" } else { "" });
    let mut entry = backend.audit.asked(peer, ATTACH, &target)?;
    let begun = begin(backend, start).await;
    let session = match begun {
        Ok(session) => session,
        Err(status) => return entry.done(Err(status)).await,
    };
    entry.on_disk().await?;
    let (answers, stream) = mpsc::channel(BEHIND);
    let backend = Arc::clone(backend);
    tokio::spawn(async move {
        tokio::select! {
            () = serve(&backend, session, messages, &answers, &mut entry) => {}
            () = answers.closed() => entry.end((Code::Ok, "detached")),
        }
    });
    Ok(Box::pin(ReceiverStream::new(stream)))
}

struct Session {
    id: WorkloadId,
    terminal: bool,
    output: Service,
    /// What to ask if the log service knew nothing of the run when it was asked first.
    again: LogCall,
    input: Option<Descriptor>,
    /// It goes with its run.
    remove_on_exit: bool,
    events: broadcast::Receiver<Arc<Event>>,
    /// The run that failed to start, or has ended already.
    ended: Option<Run>,
}

async fn begin(backend: &Backend, start: proto::AttachStart) -> Result<Session, Status> {
    let mut events = backend.control.events();
    let detail = backend.inspect_container(&start.workload).await?;
    let id = detail.summary.id;
    let running = convert::is_running(&detail.summary.state);
    if !running && !start.start {
        return Err(Status::failed_precondition(format!(
            "{} is not running: start it, or attach with start",
            detail.summary.name
        )));
    }
    let since_wall_ms = since(&detail, running);
    let again = LogCall::Read { id, follow: true, since_wall_ms, tail_lines: None };
    let output = if running && start.logs {
        Service::call(&backend.sockets.log, &again).await?
    } else {
        logs::live(backend, id).await?
    };
    let ended = if running { None } else { start_it(backend, id, &mut events).await? };
    let terminal = detail.definition.launch.process.terminal.is_some();
    let input = if ended.is_none() && (start.stdin || terminal) {
        open_input(backend, id, &detail, start.stdin).await?
    } else {
        None
    };
    if let (Some(input), Some(size), true) = (&input, &start.size, terminal) {
        // A size that cannot be set leaves the terminal as it is; nothing else is lost.
        let _ = input.resize(spec::terminal_size(Some(size)));
    }
    let remove_on_exit = detail.definition.remove_on_exit;
    Ok(Session {
        id,
        terminal,
        output,
        again,
        remove_on_exit,
        input: input.filter(|_| start.stdin || terminal),
        events,
        ended,
    })
}

/// From when on stored output belongs to the run that is or will be under way. `None`: all of it.
fn since(detail: &Detail, running: bool) -> Option<u64> {
    match &detail.summary.state {
        State::Up { since, .. } | State::Starting { since } => Some(since.wall_ms),
        State::Down { .. } | State::Stopping { .. } | State::Draining { .. } | State::Backoff { .. } => {
            detail.summary.last_run.as_ref().filter(|_| !running).map(|_| convert::now().wall_ms)
        }
    }
}

/// Starts the container. A failed start is the end of a run, which the client is told as such.
async fn start_it(
    backend: &Backend,
    id: WorkloadId,
    events: &mut broadcast::Receiver<Arc<Event>>,
) -> Result<Option<Run>, Status> {
    match backend.control.call(Request::Start { target: Target::Id(id) }).await {
        Ok(_) => Ok(None),
        Err(ControlError::Refused(refused)) if refused.code == RefusedCode::StartFailed => {
            let ended = tokio::time::timeout(LOG_LAG, end_of_run(backend, id, events)).await;
            match ended {
                Ok(Ok(run)) => Ok(Some(run)),
                Ok(Err(_)) | Err(_) => Err(convert::refused(&refused)),
            }
        }
        Err(error) => Err(error.into()),
    }
}

async fn open_input(
    backend: &Backend,
    id: WorkloadId,
    detail: &Detail,
    wanted: bool,
) -> Result<Option<Descriptor>, Status> {
    let answer = backend.control.call(Request::OpenInput { target: Target::Id(id) }).await;
    match answer {
        Ok(mut answer) => match (answer.reply, answer.descriptors.pop()) {
            (Reply::Input { .. }, Some(descriptor)) => Descriptor::new(descriptor)
                .map(Some)
                .map_err(|error| Status::internal(format!("input of {}: {error}", detail.summary.name))),
            (_, _) => Err(ControlError::Unexpected.into()),
        },
        // It has ended in the meantime, or has no input; its output is still worth having.
        Err(ControlError::Refused(refused)) if refused.code == RefusedCode::WrongState && !wanted => Ok(None),
        Err(ControlError::Refused(refused))
            if refused.code == RefusedCode::WrongState && !detail.definition.open_stdin =>
        {
            Err(Status::failed_precondition(format!(
                "{} has no open input: make it with --interactive, or attach without input",
                detail.summary.name
            )))
        }
        Err(ControlError::Refused(refused)) if refused.code == RefusedCode::WrongState => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn serve(
    backend: &Backend,
    mut session: Session,
    messages: Streaming<proto::AttachRequest>,
    answers: &mpsc::Sender<Answer>,
    entry: &mut Entry,
) {
    let ready = told(Told::Ready(proto::AttachReady { terminal: session.terminal }));
    let _ = answers.send(Ok(ready)).await;
    let input = Input::new(session.input.take().map(Arc::new), session.terminal);
    let typing = input_loop(backend, session.id, messages, input);
    let result = session::until_end(typing, output_loop(backend, &mut session, answers)).await;
    let result = result.as_ref().map(|run| run.as_ref().map(|run| &run.cause)).map_err(Status::clone);
    if let Some(last) = session::last(result, entry) {
        let _ = answers.send(last.map(|exit| told(Told::Exit(exit)))).await;
    }
}

/// Passes input on until the client closes its side, or leaves.
async fn input_loop(
    backend: &Backend,
    id: WorkloadId,
    mut messages: Streaming<proto::AttachRequest>,
    mut input: Input,
) -> Result<Typed, Status> {
    while let Some(message) = messages.message().await? {
        match message.message {
            Some(Asked::Stdin(bytes)) => input.write(&bytes).await,
            Some(Asked::StdinClosed(_)) => {
                if input.close() {
                    // PID 1 holds the other writing end, so that a client may come back; it has gone if the container has.
                    let _ = backend.control.call(Request::CloseInput { target: Target::Id(id) }).await;
                }
            }
            Some(Asked::Resize(size)) => input.resize(&size),
            // All that was typed before it is written.
            Some(Asked::Detach(_)) => return Ok(Typed::Detached),
            Some(Asked::Start(_)) | None => {
                return Err(Status::invalid_argument("an attach has one start, and then input and sizes"));
            }
        }
    }
    Ok(Typed::All)
}

async fn output_loop(backend: &Backend, session: &mut Session, answers: &mpsc::Sender<Answer>) -> Result<Run, Status> {
    let mut any = pass_on(&mut session.output, answers).await?;
    // The log service may have been asked before it heard of the run from PID 1. Then it had nothing, and is asked again; for the last time
    // when the run has ended.
    while !any {
        let over = session.ended.is_some();
        if !over
            && let Ok(ended) = tokio::time::timeout(LOG_LAG, end_of_run(backend, session.id, &mut session.events)).await
        {
            session.ended = Some(ended?);
        }
        let mut output = Service::call(&backend.sockets.log, &session.again).await?;
        any = pass_on(&mut output, answers).await? || over;
    }
    let run = match session.ended.take() {
        Some(run) => run,
        None => end_of_run(backend, session.id, &mut session.events).await?,
    };
    if session.remove_on_exit {
        removed(backend, session).await;
    }
    Ok(run)
}

/// Waits until a container that goes with its run is gone, so that its name is free when the client has the exit code. Bounded: a disk that
/// is slow to remove files does not keep the client.
async fn removed(backend: &Backend, session: &mut Session) {
    let gone = async {
        while backend.inspect(&session.id.to_string()).await.is_ok() {
            let told = async {
                loop {
                    match session.events.recv().await {
                        Ok(event) if event.id == session.id && event.what == What::Removed => return,
                        Ok(_) => {}
                        // Events were lost to us, or no more come: look anew.
                        Err(_) => return,
                    }
                }
            };
            told.await;
        }
    };
    let _ = tokio::time::timeout(REMOVAL, gone).await;
}

/// Passes output on until the log service says that this was all; whether there was any.
async fn pass_on(output: &mut Service, answers: &mpsc::Sender<Answer>) -> Result<bool, Status> {
    let mut any = false;
    loop {
        let chunk: LogChunk = output.answer().await?;
        if chunk.bytes.is_empty() {
            return Ok(any);
        }
        any = true;
        let output = proto::Output { stream: convert::stream(chunk.stream).into(), data: chunk.bytes.into() };
        if answers.send(Ok(told(Told::Output(output)))).await.is_err() {
            return Err(Status::cancelled("the client went away"));
        }
    }
}

//! Copies into and out of a running container, as tar streams. The packing and unpacking is done by the node's own helper inside the container's
//! namespaces, with no more rights than the container has; nothing is parsed here.

use byre_api::proto;
use byre_plan::{Process, Program, User};
use byre_protocol::status::{Cause, Detail};
use futures::stream::try_unfold;
use tonic::{Status, Streaming};

use crate::audit::Change;
use crate::backend::SharedBackend;
use crate::exec::{PIECE_BYTES, Session};
use crate::gate::Peer;
use crate::workloads::Answers;

/// Bytes of a helper's complaint that are passed on: a few lines.
const COMPLAINT_BYTES: usize = 4096;

const COPY_IN: Change = Change { method: "Workloads/CopyIn", frees_space: false };
const COPY_OUT: Change = Change { method: "Workloads/CopyOut", frees_space: false };

/// The helper as a process of the container: its root user and its capabilities, and nothing of its environment.
fn helper(detail: &Detail, verb: &str, path: &str) -> Result<Process, Status> {
    if !path.starts_with('/') {
        return Err(Status::invalid_argument(format!("path {path:?} is not absolute: begin it with a slash")));
    }
    let own = &detail.definition.launch.process;
    Ok(Process {
        program: Program::Helper,
        args: vec![verb.to_owned(), path.to_owned()],
        env: Vec::new(),
        cwd: "/".into(),
        user: User::default(),
        terminal: None,
        capabilities: own.capabilities,
        rlimits: own.rlimits.clone(),
        no_new_privileges: true,
        oom_score_adj: own.oom_score_adj,
        scheduling: own.scheduling,
        labels: own.labels.clone(),
    })
}

fn complaint(cause: &Cause, text: &[u8]) -> Status {
    let text = String::from_utf8_lossy(text);
    let text = text.trim();
    if text.is_empty() {
        let exit = crate::convert::exit(cause);
        return Status::failed_precondition(format!("the copy failed with code {} {}", exit.code, exit.reason));
    }
    Status::failed_precondition(text.to_owned())
}

/// Reads what the helper has written to its second output.
fn complaint_text(session: &Session) -> Vec<u8> {
    let mut text = vec![0; COMPLAINT_BYTES];
    let length = session.outputs.get(1).map_or(0, |(descriptor, _)| descriptor.read_now(&mut text));
    text.truncate(length);
    text
}

/// Answers a copy into a container.
///
/// # Errors
/// The helper's complaint, or PID 1's refusal.
pub(crate) async fn copy_in(
    backend: &SharedBackend,
    peer: &Peer,
    mut messages: Streaming<proto::CopyInRequest>,
) -> Result<proto::CopyInResponse, Status> {
    use proto::copy_in_request::Message;
    let Some(Message::Start(start)) = messages.message().await?.and_then(|message| message.message) else {
        return Err(Status::invalid_argument("the first message of a copy must be its start"));
    };
    let entry = backend.audit.asked(peer, COPY_IN, &format!("{}:{}", start.workload, start.directory))?;
    let copy = async {
        let detail = backend.inspect_container(&start.workload).await?;
        let process = helper(&detail, "cp-in", &start.directory)?;
        let mut session = Session::start(backend, detail.summary.id, process).await?;
        let stdin = session.stdin.take();
        while let Some(message) = messages.message().await? {
            let Some(Message::Tar(bytes)) = message.message else {
                return Err(Status::invalid_argument("a copy has one start, and then pieces of the tar stream"));
            };
            // A helper that ended early has said why.
            if let Some(stdin) = &stdin
                && stdin.write_all(&bytes).await.is_err()
            {
                break;
            }
        }
        drop(stdin);
        ended_well(&mut session).await.map(|()| proto::CopyInResponse {})
    };
    let result = copy.await;
    entry.done(result).await
}

/// Answers a copy out of a container.
///
/// # Errors
/// The helper's complaint, or PID 1's refusal; those that come late end the stream.
pub(crate) async fn copy_out(
    backend: &SharedBackend,
    peer: &Peer,
    request: proto::CopyOutRequest,
) -> Result<Answers<proto::CopyOutResponse>, Status> {
    let mut entry = backend.audit.asked(peer, COPY_OUT, &format!("{}:{}", request.workload, request.path))?;
    let begin = async {
        let detail = backend.inspect_container(&request.workload).await?;
        let process = helper(&detail, "cp-out", &request.path)?;
        Session::start(backend, detail.summary.id, process).await
    };
    let mut session = match begin.await {
        Ok(session) => session,
        Err(status) => return entry.done(Err(status)).await,
    };
    session.stdin = None;
    entry.on_disk().await?;
    Ok(Box::pin(try_unfold(Some((session, entry)), async |state| {
        let Some((mut session, entry)) = state else { return Ok(None) };
        let mut buffer = vec![0; PIECE_BYTES];
        let read = match session.outputs.first() {
            Some((stdout, _)) => stdout.read(&mut buffer).await.unwrap_or(0),
            None => 0,
        };
        if read > 0 {
            buffer.truncate(read);
            let response = proto::CopyOutResponse { tar: buffer.into() };
            return Ok(Some((response, Some((session, entry)))));
        }
        let result = ended_well(&mut session).await;
        entry.done(result).await.map(|()| None)
    })))
}

/// Waits for the helper's end, and turns its complaint into an error.
async fn ended_well(session: &mut Session) -> Result<(), Status> {
    match session.end().await? {
        Cause::Code(0) => Ok(()),
        cause @ (Cause::Code(_)
        | Cause::Signal(_)
        | Cause::OutOfMemory
        | Cause::StartFailed(_)
        | Cause::NotReady
        | Cause::Dependency(_)
        | Cause::Interrupted
        | Cause::Probe(_)
        | Cause::RunLimit
        | Cause::Deadline) => Err(complaint(&cause, &complaint_text(session))),
    }
}

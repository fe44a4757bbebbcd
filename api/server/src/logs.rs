//! Output of workloads, from the log service to a client. Nothing is kept here: a slow client holds up its own connection to the log service,
//! and no one else.

use byre_api::proto;
use byre_plan::WorkloadId;
use byre_protocol::peer::{LogCall, LogChunk};
use futures::stream::try_unfold;
use tonic::Status;

use crate::backend::Backend;
use crate::convert;
use crate::peers::Peer as Service;
use crate::workloads::Answers;

/// Answers a request for logs.
///
/// # Errors
/// If there is no such workload or the log service is away.
pub(crate) async fn logs(
    backend: &Backend,
    request: proto::LogsRequest,
) -> Result<Answers<proto::LogsResponse>, Status> {
    let id = backend.inspect(&request.workload).await?.summary.id;
    let call = LogCall::Read {
        id,
        follow: request.follow,
        since_wall_ms: request.since.as_ref().map(convert::wall_ms),
        tail_lines: request.tail,
    };
    let service = Service::call(&backend.sockets.log, &call).await?;
    Ok(Box::pin(try_unfold(Some(service), async |service| {
        let Some(mut service) = service else { return Ok(None) };
        let chunk: LogChunk = service.answer().await?;
        let last = chunk.bytes.is_empty();
        if last && chunk.lost == 0 {
            return Ok(None);
        }
        Ok(Some((response(chunk), (!last).then_some(service))))
    })))
}

fn response(chunk: LogChunk) -> proto::LogsResponse {
    proto::LogsResponse {
        stream: convert::stream(chunk.stream).into(),
        at: Some(convert::timestamp(chunk.at.wall_ms)),
        data: chunk.bytes.into(),
        lost_bytes: chunk.lost,
    }
}

/// A further reader of everything that a workload writes from now on, registered with the log service when this returns.
///
/// # Errors
/// If the log service is away.
pub(crate) async fn live(backend: &Backend, id: WorkloadId) -> Result<Service, Status> {
    let service = Service::call(&backend.sockets.log, &LogCall::Attach { id }).await?;
    // The log service answers in the order in which it is asked, so once this is answered the call before it is known to it.
    let mark = LogCall::Read { id, follow: false, since_wall_ms: None, tail_lines: Some(0) };
    let mut marked = Service::call(&backend.sockets.log, &mark).await?;
    while let Some(chunk) = marked.next::<LogChunk>().await? {
        if chunk.bytes.is_empty() {
            break;
        }
    }
    Ok(service)
}

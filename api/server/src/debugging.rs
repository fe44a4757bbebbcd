//! The Debugging service: a look at processes and sockets, for who has no shell. It reads /proc and changes nothing; every look is recorded.

use std::path::Path;

use byre_api::proto;
use byre_api::proto::debugging_server::Debugging;
use byre_protocol::status::{Detail, State};
use tonic::{Request, Response, Status};

use crate::audit::Change;
use crate::backend::SharedBackend;
use crate::gate::Peer;
use crate::node::measured;
use crate::{processes, sockets};

const PROC: &str = "/proc";

// They free no space, but are wanted most where a full disk is what is wrong.
const PROCESSES: Change = Change { method: "Debugging/ListProcesses", frees_space: true };
const SOCKETS: Change = Change { method: "Debugging/ListSockets", frees_space: true };

/// The service.
pub(crate) struct DebuggingService(pub SharedBackend);

impl DebuggingService {
    /// The workload that is looked at; `None` is the node.
    async fn subject(&self, peer: &Peer, text: &str) -> Result<Option<Box<Detail>>, Status> {
        if text.is_empty() {
            if peer.role < Some(byre_api::role::Role::Admin) {
                return Err(Status::permission_denied(
                    "the whole node is shown to the role admin only: name a container, or use an admin's certificate",
                ));
            }
            return Ok(None);
        }
        self.0.only_admins_touch_services(peer, text, "to look into").await?;
        self.0.inspect(text).await.map(Some)
    }
}

/// The first process of a workload that runs.
fn first_process(detail: &Detail) -> Result<u32, Status> {
    match detail.summary.state {
        State::Up { pid, .. } => Ok(pid),
        State::Down { .. }
        | State::Starting { .. }
        | State::Stopping { .. }
        | State::Draining { .. }
        | State::Backoff { .. } => {
            let name = &detail.summary.name;
            Err(Status::failed_precondition(format!("{name} does not run: `byrectl why {name}` says why")))
        }
    }
}

#[tonic::async_trait]
impl Debugging for DebuggingService {
    async fn list_processes(
        &self,
        request: Request<proto::ListProcessesRequest>,
    ) -> Result<Response<proto::ListProcessesResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let text = request.into_inner().workload;
        let entry = self.0.audit.asked(&peer, PROCESSES, &text)?;
        let look = async {
            let cgroup = self.subject(&peer, &text).await?.map(|detail| detail.cgroup);
            measured(move || processes::read(Path::new(PROC), cgroup.as_deref())).await
        };
        let result = look.await;
        entry.done(result).await.map(Response::new)
    }

    async fn list_sockets(
        &self,
        request: Request<proto::ListSocketsRequest>,
    ) -> Result<Response<proto::ListSocketsResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let text = request.into_inner().workload;
        let entry = self.0.audit.asked(&peer, SOCKETS, &text)?;
        let look = async {
            let process = match self.subject(&peer, &text).await? {
                Some(detail) => first_process(&detail)?.to_string(),
                None => "self".to_owned(),
            };
            measured(move || sockets::read(&Path::new(PROC).join(process).join("net"))).await
        };
        let result = look.await.and_then(|sockets| {
            sockets.map_err(|error| {
                Status::unavailable(format!("its sockets cannot be read: {error}; if it has just ended, ask again"))
            })
        });
        entry.done(result).await.map(Response::new)
    }
}

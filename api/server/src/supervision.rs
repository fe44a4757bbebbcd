//! The Supervision service: what a supervisor is asked beside starting and stopping.

use byre_api::proto;
use byre_api::proto::supervision_server::Supervision;
use byre_protocol::control::Request as Ask;
use tonic::{Request, Response, Status};

use crate::audit::Change;
use crate::backend::SharedBackend;
use crate::gate::Peer;
use crate::trace;
use crate::workloads::Answers;

const ENABLE: Change = Change { method: "Supervision/Enable", frees_space: false };
const DISABLE: Change = Change { method: "Supervision/Disable", frees_space: true };
const RESET: Change = Change { method: "Supervision/Reset", frees_space: false };

/// The service.
pub(crate) struct SupervisionService(pub SharedBackend);

#[tonic::async_trait]
impl Supervision for SupervisionService {
    type TraceStream = Answers<proto::TraceResponse>;

    async fn enable(&self, request: Request<proto::EnableRequest>) -> Result<Response<proto::EnableResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let text = request.into_inner().workload;
        let entry = self.0.audit.asked(&peer, ENABLE, &text)?;
        let result = self.0.ask_container(&text, |target| Ask::Enable { target }).await;
        entry.done(result).await?;
        Ok(Response::new(proto::EnableResponse {}))
    }

    async fn disable(
        &self,
        request: Request<proto::DisableRequest>,
    ) -> Result<Response<proto::DisableResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let text = request.into_inner().workload;
        let entry = self.0.audit.asked(&peer, DISABLE, &text)?;
        let result = self.0.ask_container(&text, |target| Ask::Disable { target }).await;
        entry.done(result).await?;
        Ok(Response::new(proto::DisableResponse {}))
    }

    async fn reset(&self, request: Request<proto::ResetRequest>) -> Result<Response<proto::ResetResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let text = request.into_inner().workload;
        self.0.only_admins_touch_services(&peer, &text, "to reset").await?;
        let entry = self.0.audit.asked(&peer, RESET, &text)?;
        let result = self.0.ask(&text, |target| Ask::Reset { target }).await;
        entry.done(result).await?;
        Ok(Response::new(proto::ResetResponse {}))
    }

    async fn trace(&self, request: Request<proto::TraceRequest>) -> Result<Response<Self::TraceStream>, Status> {
        let answers = trace::trace(&self.0, request.get_ref().raw).await?;
        Ok(Response::new(Box::pin(futures::stream::iter(answers))))
    }
}

//! The Update service: asks `byred update`, which does all of it, and passes bundles on to it.

use std::pin::Pin;

use byre_api::proto;
use byre_api::proto::update_server::Update;
use byre_protocol::control::Allow;
use byre_protocol::update::{
    ReleaseName, UPDATE_SOCKET, UpdateAnswer, UpdateCall, UpdateEvent, UpdateEventKind, UpdateRefusal, UpdateState,
    UpdateStatus,
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::audit::{Change, Entry};
use crate::backend::SharedBackend;
use crate::convert::timestamp;
use crate::gate::Peer;
use crate::peers::{Peer as Service, PeerError, Reader};

/// Progress messages that a slow client may be behind; then its stream waits, and the update does not.
const PROGRESS_BEHIND: usize = 16;

const APPLY: Change = Change { method: "Update/ApplyUpdate", frees_space: true };
const APPLY_BUNDLE: Change = Change { method: "Update/ApplyUpdateBundle", frees_space: true };
const CANCEL: Change = Change { method: "Update/CancelUpdate", frees_space: true };
const ROLLBACK: Change = Change { method: "Update/RollbackUpdate", frees_space: true };

/// The service.
pub(crate) struct UpdateService(pub(crate) SharedBackend);

type Answers = Pin<Box<dyn Stream<Item = Result<proto::ApplyUpdateResponse, Status>> + Send>>;
type Progress = mpsc::Sender<Result<proto::ApplyUpdateResponse, Status>>;

async fn call(call: &UpdateCall) -> Result<Service, Status> {
    Ok(Service::call(UPDATE_SOCKET.as_ref(), call).await?)
}

async fn ask(what: &UpdateCall) -> Result<UpdateAnswer, Status> {
    match call(what).await?.answer().await? {
        UpdateAnswer::Refused { code, text } => Err(refused(code, text)),
        other @ (UpdateAnswer::Status(_) | UpdateAnswer::Done(_) | UpdateAnswer::History(_)) => Ok(other),
    }
}

fn unexpected() -> Status {
    Status::internal("the update service answered something else than what was asked; the node must run one release")
}

#[tonic::async_trait]
impl Update for UpdateService {
    type ApplyUpdateStream = Answers;
    type ApplyUpdateBundleStream = Answers;

    async fn get_update_status(
        &self,
        _request: Request<proto::GetUpdateStatusRequest>,
    ) -> Result<Response<proto::UpdateStatus>, Status> {
        status_of(ask(&UpdateCall::Status).await?)
    }

    async fn check_update(
        &self,
        _request: Request<proto::CheckUpdateRequest>,
    ) -> Result<Response<proto::UpdateStatus>, Status> {
        status_of(ask(&UpdateCall::Check).await?)
    }

    async fn apply_update(
        &self,
        request: Request<proto::ApplyUpdateRequest>,
    ) -> Result<Response<Self::ApplyUpdateStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        let options = request.into_inner().options.unwrap_or_default();
        let entry = self.0.audit.asked(&peer, APPLY, &describe(options))?;
        let (progress, stream) = mpsc::channel(PROGRESS_BEHIND);
        tokio::spawn(async move {
            let apply = async {
                let (allow, reboot) = wanted(options);
                let service = call(&UpdateCall::Apply { allow, reboot }).await?;
                let (mut reader, _writer) = service.split();
                follow(&mut reader, &progress).await
            };
            report(entry, apply.await, &progress).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn apply_update_bundle(
        &self,
        request: Request<Streaming<proto::ApplyUpdateBundleRequest>>,
    ) -> Result<Response<Self::ApplyUpdateBundleStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        let mut bundle = request.into_inner();
        let first = bundle.message().await?.and_then(|message| message.message);
        let Some(proto::apply_update_bundle_request::Message::Start(start)) = first else {
            return Err(Status::invalid_argument("the first message of a bundle must be its start"));
        };
        let options = start.options.unwrap_or_default();
        let entry = self.0.audit.asked(&peer, APPLY_BUNDLE, &describe(options))?;
        let (progress, stream) = mpsc::channel(PROGRESS_BEHIND);
        tokio::spawn(async move {
            let (allow, reboot) = wanted(options);
            let what = UpdateCall::ApplyBundle { allow, reboot, offline: start.offline };
            report(entry, pass_on(&what, bundle, &progress).await, &progress).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn cancel_update(
        &self,
        request: Request<proto::CancelUpdateRequest>,
    ) -> Result<Response<proto::CancelUpdateResponse>, Status> {
        let entry = self.0.audit.asked(&Peer::of(request.extensions())?, CANCEL, "")?;
        entry.done(ask(&UpdateCall::Cancel).await).await?;
        Ok(Response::new(proto::CancelUpdateResponse {}))
    }

    async fn rollback_update(
        &self,
        request: Request<proto::RollbackUpdateRequest>,
    ) -> Result<Response<proto::RollbackUpdateResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let reboot = request.get_ref().reboot;
        let entry = self.0.audit.asked(&peer, ROLLBACK, if reboot { "with a reboot" } else { "" })?;
        match entry.done(ask(&UpdateCall::Rollback { reboot }).await).await? {
            UpdateAnswer::Done(done) => Ok(Response::new(proto::RollbackUpdateResponse { done })),
            UpdateAnswer::Status(_) | UpdateAnswer::History(_) | UpdateAnswer::Refused { .. } => Err(unexpected()),
        }
    }

    async fn get_update_history(
        &self,
        _request: Request<proto::GetUpdateHistoryRequest>,
    ) -> Result<Response<proto::GetUpdateHistoryResponse>, Status> {
        match ask(&UpdateCall::History).await? {
            UpdateAnswer::History(events) => {
                let events = events.into_iter().map(event).collect();
                Ok(Response::new(proto::GetUpdateHistoryResponse { events }))
            }
            UpdateAnswer::Status(_) | UpdateAnswer::Done(_) | UpdateAnswer::Refused { .. } => Err(unexpected()),
        }
    }
}

/// The last word of an update, in the record of changes and to the client.
async fn report(entry: Entry, result: Result<String, Status>, progress: &Progress) {
    let last = entry.done(result).await.map(|done| {
        let message = Some(proto::apply_update_response::Message::Done(done));
        proto::ApplyUpdateResponse { message }
    });
    // A client that is gone does not want to know.
    let _ = progress.send(last).await;
}

/// Passes the service's messages on until its last one.
async fn follow(reader: &mut Reader, progress: &Progress) -> Result<String, Status> {
    loop {
        match reader.next::<UpdateAnswer>().await? {
            Some(UpdateAnswer::Status(now)) => {
                let message = Some(proto::apply_update_response::Message::Status(status(*now)));
                // Who does not keep up misses a step, not the end; who is gone misses all.
                let _ = progress.try_send(Ok(proto::ApplyUpdateResponse { message }));
            }
            Some(UpdateAnswer::Done(done)) => return Ok(done),
            Some(UpdateAnswer::Refused { code, text }) => return Err(refused(code, text)),
            Some(UpdateAnswer::History(_)) => return Err(unexpected()),
            None => {
                return Err(Status::unavailable(
                    "the update service ended; `byrectl update status` says how far it is",
                ));
            }
        }
    }
}

/// Sends a bundle to the service while its answers come.
async fn pass_on(
    what: &UpdateCall,
    mut bundle: Streaming<proto::ApplyUpdateBundleRequest>,
    progress: &Progress,
) -> Result<String, Status> {
    let (mut reader, mut writer) = call(what).await?.split();
    let mut sending = Box::pin(async move {
        while let Some(message) = bundle.message().await? {
            let Some(proto::apply_update_bundle_request::Message::Bundle(bytes)) = message.message else {
                return Err(Status::invalid_argument("a bundle has one start, and then pieces"));
            };
            match writer.write(&bytes).await {
                Ok(()) => {}
                // The service has seen enough; its answer says why.
                Err(PeerError::Broken(..)) => return Ok(()),
                Err(error @ (PeerError::Unreachable(..) | PeerError::Malformed(..))) => return Err(error.into()),
            }
        }
        Ok::<(), Status>(())
    });
    let mut following = Box::pin(follow(&mut reader, progress));
    let mut all_sent = false;
    loop {
        tokio::select! {
            sent = &mut sending, if !all_sent => { sent?; all_sent = true; }
            last = &mut following => return last,
        }
    }
}

fn wanted(options: proto::UpdateOptions) -> (Allow, bool) {
    let proto::UpdateOptions { allow_downgrade, retry, reboot } = options;
    (Allow { downgrade: allow_downgrade, retry }, reboot)
}

/// For the record of changes.
fn describe(options: proto::UpdateOptions) -> String {
    let proto::UpdateOptions { allow_downgrade, retry, reboot } = options;
    let words = [(allow_downgrade, "downgrade allowed"), (retry, "retry"), (reboot, "with a reboot")];
    words.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect::<Vec<_>>().join(", ")
}

fn refused(code: UpdateRefusal, text: String) -> Status {
    match code {
        UpdateRefusal::NotNow | UpdateRefusal::NotAllowed => Status::failed_precondition(text),
        UpdateRefusal::NotTrusted => Status::data_loss(text),
        UpdateRefusal::NotFound => Status::not_found(text),
        UpdateRefusal::Unreachable => Status::unavailable(text),
        UpdateRefusal::Cancelled => Status::cancelled(text),
        UpdateRefusal::Internal => Status::internal(text),
    }
}

fn status_of(answer: UpdateAnswer) -> Result<Response<proto::UpdateStatus>, Status> {
    match answer {
        UpdateAnswer::Status(now) => Ok(Response::new(status(*now))),
        UpdateAnswer::Done(_) | UpdateAnswer::History(_) | UpdateAnswer::Refused { .. } => Err(unexpected()),
    }
}

fn release(name: ReleaseName) -> proto::OsRelease {
    proto::OsRelease { version: name.version, install: name.install }
}

fn status(now: UpdateStatus) -> proto::UpdateStatus {
    use proto::UpdatePhase as Phase;
    let (phase, of, done_bytes, total_bytes) = match now.state {
        UpdateState::Idle => (Phase::Idle, None, 0, 0),
        UpdateState::Checking => (Phase::Checking, None, 0, 0),
        UpdateState::Writing { release, done_bytes, total_bytes } => {
            (Phase::Writing, Some(release), done_bytes, total_bytes)
        }
        UpdateState::Verifying { release, done_bytes, total_bytes } => {
            (Phase::Verifying, Some(release), done_bytes, total_bytes)
        }
        UpdateState::Written { release } => (Phase::Written, Some(release), 0, 0),
        UpdateState::Armed { release } => (Phase::Armed, Some(release), 0, 0),
        UpdateState::Interrupted { release } => (Phase::Interrupted, Some(release), 0, 0),
    };
    proto::UpdateStatus {
        running: Some(release(now.running)),
        blessed: now.blessed,
        phase: phase.into(),
        release: of.map(release),
        done_bytes,
        total_bytes,
        available: now.available.map(release),
        repository: now.repository,
        channel: now.channel,
        waiting: now.waiting,
        last_error: now.last_error,
        checked: now.checked_wall_ms.map(timestamp),
    }
}

fn event(event: UpdateEvent) -> proto::UpdateEvent {
    use proto::UpdateEventKind as Kind;
    let kind = match event.what {
        UpdateEventKind::Begun => Kind::Begun,
        UpdateEventKind::Interrupted => Kind::Interrupted,
        UpdateEventKind::Armed => Kind::Armed,
        UpdateEventKind::Good => Kind::Good,
        UpdateEventKind::FellBack => Kind::FellBack,
        UpdateEventKind::RolledBack => Kind::RolledBack,
    };
    proto::UpdateEvent {
        at: Some(timestamp(event.wall_ms)),
        release: Some(release(event.release)),
        kind: kind.into(),
        text: event.text,
    }
}

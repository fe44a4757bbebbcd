//! The Workloads service: what is asked of containers and of the node's own services. Each method is one question to PID 1 where that suffices;
//! longer conversations (logs, attach, exec, copies, figures) have files of their own.

use std::pin::Pin;
use std::sync::Arc;

use byre_api::proto;
use byre_api::proto::workloads_server::Workloads;
use byre_plan::{Name, WorkloadId};
use byre_protocol::control::{Event, RefusedCode, Reply, Request as Ask, What};
use byre_protocol::definition::Kind;
use byre_protocol::status::{Detail, Run};
use futures::Stream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use crate::audit::Change;
use crate::backend::{Backend, SharedBackend};
use crate::control::ControlError;
use crate::convert;
use crate::gate::Peer;
use crate::{attach, copy, exec, figures, logs, networking, spec, why};

const CREATE: Change = Change { method: "Workloads/Create", frees_space: false };
const START: Change = Change { method: "Workloads/Start", frees_space: false };
const STOP: Change = Change { method: "Workloads/Stop", frees_space: true };
const RESTART: Change = Change { method: "Workloads/Restart", frees_space: false };
const KILL: Change = Change { method: "Workloads/Kill", frees_space: true };
const REMOVE: Change = Change { method: "Workloads/Remove", frees_space: true };

/// The service.
pub(crate) struct WorkloadsService(pub SharedBackend);

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl WorkloadsService {
    async fn create_container(&self, request: proto::CreateRequest) -> Result<proto::CreateResponse, Status> {
        let backend = &self.0;
        let spec = request.spec.ok_or_else(|| Status::invalid_argument("spec is missing: say at least which image"))?;
        if spec.image.is_empty() {
            return Err(Status::invalid_argument("spec.image is empty: name an image of `byrectl image ls`"));
        }
        let _held = backend.images.hold().await;
        let image = backend.images.resolve(&spec.image).await?;
        if !image.accepted {
            let text = format!("the node's policy does not take {}: {}", spec.image, image.verdict);
            return Err(Status::permission_denied(text));
        }
        let name = if spec.name.is_empty() { made_up_name()? } else { chosen_name(&spec.name)? };
        let resolv_conf = match proto::NetworkMode::try_from(spec.network) {
            // Not there before the network is up: the container then has an empty one. A bridged one asks the node's servers itself.
            Ok(proto::NetworkMode::Host | proto::NetworkMode::Bridge) => {
                std::fs::read_to_string(&backend.resolv_conf).unwrap_or_default()
            }
            Ok(proto::NetworkMode::Unspecified | proto::NetworkMode::None) | Err(_) => String::new(),
        };
        let (definition, warnings) = {
            let (name, resolv_conf) = (name.clone(), resolv_conf.as_str());
            spec::definition(&spec, &spec::Surroundings { image: &image, name, resolv_conf })?
        };
        let create = Ask::Create { definition: Box::new(definition), start: request.start };
        let answer = backend.control.call(create).await;
        if let (true, Err(ControlError::Refused(refused))) = (spec.privileged, &answer)
            && refused.code == RefusedCode::Invalid
        {
            return Err(Status::invalid_argument(format!(
                "privileged is not allowed by this node's policy: {}",
                refused.text
            )));
        }
        match answer?.reply {
            Reply::Created { id } => Ok(proto::CreateResponse { id: id.to_string(), name: name.into(), warnings }),
            Reply::Done
            | Reply::Page { .. }
            | Reply::Inspected(_)
            | Reply::ExecStarted { .. }
            | Reply::Input { .. }
            | Reply::Descriptor
            | Reply::Explained(_)
            | Reply::Reexecuted { .. }
            | Reply::Refused(_) => Err(ControlError::Unexpected.into()),
        }
    }
}

fn chosen_name(text: &str) -> Result<Name, Status> {
    Name::try_from(text).map_err(|error| Status::invalid_argument(format!("spec.name: {error}")))
}

/// A name for a container that was given none: two words that can be said and typed, and a number against collisions.
fn made_up_name() -> Result<Name, Status> {
    const FIRST: [&str; 16] = [
        "brave", "bright", "brisk", "calm", "clever", "eager", "fair", "gentle", "happy", "keen", "kind", "lively",
        "merry", "quiet", "swift", "warm",
    ];
    const SECOND: [&str; 16] = [
        "angus",
        "ayrshire",
        "brahman",
        "devon",
        "dexter",
        "galloway",
        "guernsey",
        "hereford",
        "highland",
        "holstein",
        "jersey",
        "kerry",
        "limousin",
        "longhorn",
        "shorthorn",
        "zebu",
    ];
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| Status::unavailable(format!("no random bytes: {error}; try again")))?;
    let [first, second, low, high] = bytes;
    let number = u16::from_le_bytes([low, high]);
    let word = |words: [&'static str; 16], byte: u8| words[usize::from(byte % 16)];
    Name::try_from(format!("{}-{}-{number:04x}", word(FIRST, first), word(SECOND, second)))
        .map_err(|error| Status::internal(error.to_string()))
}

fn grace(timeout: Option<&prost_types::Duration>) -> Result<Option<u32>, Status> {
    timeout.map(|timeout| convert::duration_ms(timeout, "timeout")).transpose()
}

/// Waits until the run of `id` that is under way ends. `events` must be older than `detail`, so that no end can fall between.
///
/// # Errors
/// `NOT_FOUND` if the workload is removed and its end was not seen, or `UNAVAILABLE` if PID 1 is gone.
pub(crate) async fn end_of_run(
    backend: &Backend,
    id: WorkloadId,
    events: &mut broadcast::Receiver<Arc<Event>>,
) -> Result<Run, Status> {
    loop {
        match events.recv().await {
            Ok(event) if event.id == id => match &event.what {
                What::Ended(run) => return Ok(run.clone()),
                What::Removed => return Err(Status::not_found(format!("workload {id} was removed"))),
                What::Created | What::State(_) | What::OutOfMemory => {}
            },
            Ok(_) => {}
            // Events were lost to us: look anew.
            Err(RecvError::Lagged(_)) => {
                let detail = backend.inspect(&id.to_string()).await?;
                if !convert::is_running(&detail.summary.state)
                    && let Some(run) = detail.summary.last_run
                {
                    return Ok(run);
                }
            }
            Err(RecvError::Closed) => return Err(ControlError::Closed.into()),
        }
    }
}

/// The end of the run under way, or of the last one if none is. `None`: it never ran.
///
/// # Errors
/// As for [`end_of_run`].
pub(crate) async fn present_or_last_end(
    backend: &Backend,
    detail: &Detail,
    events: &mut broadcast::Receiver<Arc<Event>>,
) -> Result<Option<Run>, Status> {
    if convert::is_running(&detail.summary.state) {
        end_of_run(backend, detail.summary.id, events).await.map(Some)
    } else {
        Ok(detail.summary.last_run.clone())
    }
}

#[tonic::async_trait]
impl Workloads for WorkloadsService {
    type LogsStream = Answers<proto::LogsResponse>;
    type AttachStream = Answers<proto::AttachResponse>;
    type ExecStream = Answers<proto::ExecResponse>;
    type StatsStream = Answers<proto::StatsResponse>;
    type EventsStream = Answers<proto::EventsResponse>;
    type CopyOutStream = Answers<proto::CopyOutResponse>;

    async fn create(&self, request: Request<proto::CreateRequest>) -> Result<Response<proto::CreateResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let request = request.into_inner();
        let target = match &request.spec {
            Some(spec) => format!("{} from {}{}", spec.name, spec.image, if request.start { ", start" } else { "" }),
            None => String::new(),
        };
        let entry = self.0.audit.asked(&peer, CREATE, target.trim_start())?;
        let result = self.create_container(request).await;
        entry.done(result).await.map(Response::new)
    }

    async fn start(&self, request: Request<proto::StartRequest>) -> Result<Response<proto::StartResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let text = request.into_inner().workload;
        let entry = self.0.audit.asked(&peer, START, &text)?;
        let result = self.0.ask_container(&text, |target| Ask::Start { target }).await;
        entry.done(result).await?;
        Ok(Response::new(proto::StartResponse {}))
    }

    async fn stop(&self, request: Request<proto::StopRequest>) -> Result<Response<proto::StopResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let proto::StopRequest { workload, timeout } = request.into_inner();
        let grace_ms = grace(timeout.as_ref())?;
        let entry = self.0.audit.asked(&peer, STOP, &workload)?;
        let result = self.0.ask_container(&workload, |target| Ask::Stop { target, grace_ms }).await;
        entry.done(result).await?;
        Ok(Response::new(proto::StopResponse {}))
    }

    async fn restart(
        &self,
        request: Request<proto::RestartRequest>,
    ) -> Result<Response<proto::RestartResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let proto::RestartRequest { workload, timeout } = request.into_inner();
        let grace_ms = grace(timeout.as_ref())?;
        self.0.only_admins_touch_services(&peer, &workload, "to restart").await?;
        let entry = self.0.audit.asked(&peer, RESTART, &workload)?;
        let result = self.0.ask(&workload, |target| Ask::Restart { target, grace_ms }).await;
        entry.done(result).await?;
        Ok(Response::new(proto::RestartResponse {}))
    }

    async fn kill(&self, request: Request<proto::KillRequest>) -> Result<Response<proto::KillResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let proto::KillRequest { workload, signal } = request.into_inner();
        let signal = if signal.is_empty() { 9 } else { spec::signal_number(&signal)? };
        self.0.only_admins_touch_services(&peer, &workload, "to signal").await?;
        let entry = self.0.audit.asked(&peer, KILL, &format!("{workload} {}", byre_spec::signal_name(signal)))?;
        let result = self.0.ask(&workload, |target| Ask::Kill { target, signal }).await;
        entry.done(result).await?;
        Ok(Response::new(proto::KillResponse {}))
    }

    async fn remove(&self, request: Request<proto::RemoveRequest>) -> Result<Response<proto::RemoveResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let proto::RemoveRequest { workload, force } = request.into_inner();
        let entry = self.0.audit.asked(&peer, REMOVE, &workload)?;
        let result = self.0.ask_container(&workload, |target| Ask::Remove { target, force }).await;
        entry.done(result).await?;
        Ok(Response::new(proto::RemoveResponse {}))
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Result<Response<proto::ListResponse>, Status> {
        let request = request.into_inner();
        let mut kinds: Vec<Kind> = Vec::new();
        for number in request.kinds {
            let kind = proto::WorkloadKind::try_from(number).ok().and_then(convert::kind_of);
            kinds.push(kind.ok_or_else(|| Status::invalid_argument(format!("kind {number} is not known")))?);
        }
        // A client's job is a container to those who list containers; the kinds service and job are the node's own.
        let containers = kinds.is_empty() || kinds.contains(&Kind::Container);
        let now = convert::now();
        let workloads = self.0.list().await?;
        let wanted = workloads
            .iter()
            .filter(|summary| match (summary.built_in, summary.kind) {
                (true, kind) | (false, kind @ Kind::Pod) => kinds.contains(&kind),
                (false, Kind::Service | Kind::Job | Kind::Container) => containers,
            })
            .filter(|summary| request.all || convert::is_listed(&summary.state));
        let workloads = wanted.map(|summary| convert::workload(summary, now)).collect();
        Ok(Response::new(proto::ListResponse { workloads }))
    }

    async fn inspect(
        &self,
        request: Request<proto::InspectRequest>,
    ) -> Result<Response<proto::InspectResponse>, Status> {
        let detail = self.0.inspect(&request.get_ref().workload).await?;
        let definition_json = serde_json::to_string(&detail.definition)
            .map_err(|error| Status::internal(format!("the definition cannot be written as JSON: {error}")))?;
        Ok(Response::new(proto::InspectResponse {
            workload: Some(convert::workload(&detail.summary, convert::now())),
            spec: spec::from_labels(&detail.definition.labels),
            history: detail.history.iter().map(convert::run).collect(),
            oom_kills: detail.oom_kills,
            cgroup: detail.cgroup,
            id_base: detail.id_base,
            definition_json,
            addresses: detail.addresses.iter().map(networking::address).collect(),
        }))
    }

    async fn why(&self, request: Request<proto::WhyRequest>) -> Result<Response<proto::WhyResponse>, Status> {
        let detail = self.0.inspect(&request.get_ref().workload).await?;
        let chain = self.0.why(detail.summary.id).await?;
        let now = convert::now();
        Ok(Response::new(proto::WhyResponse {
            workload: Some(convert::workload(&detail.summary, now)),
            chain: chain.iter().map(|link| why::cause(link, now)).collect(),
            history: detail.history.iter().map(convert::run).collect(),
        }))
    }

    async fn wait(&self, request: Request<proto::WaitRequest>) -> Result<Response<proto::WaitResponse>, Status> {
        let mut events = self.0.control.events();
        let detail = self.0.inspect(&request.get_ref().workload).await?;
        let run = present_or_last_end(&self.0, &detail, &mut events).await?;
        let run = run
            .ok_or_else(|| Status::failed_precondition(format!("{} never ran: start it first", detail.summary.name)))?;
        Ok(Response::new(proto::WaitResponse { exit: Some(convert::exit(&run.cause)) }))
    }

    async fn logs(&self, request: Request<proto::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        logs::logs(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn attach(
        &self,
        request: Request<Streaming<proto::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        attach::attach(&self.0, &peer, request.into_inner()).await.map(Response::new)
    }

    async fn exec(
        &self,
        request: Request<Streaming<proto::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        exec::exec(&self.0, &peer, request.into_inner()).await.map(Response::new)
    }

    async fn stats(&self, request: Request<proto::StatsRequest>) -> Result<Response<Self::StatsStream>, Status> {
        figures::stats(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn events(&self, request: Request<proto::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let events = self.0.control.events();
        let text = request.into_inner().workload;
        let only = if text.is_empty() { None } else { Some(self.0.inspect(&text).await?.summary.id) };
        let stream = tokio_stream::wrappers::BroadcastStream::new(events).filter_map(move |event| match event {
            Ok(event) if only.is_none_or(|id| id == event.id) => Some(Ok(convert::event(&event))),
            Ok(_) => None,
            Err(tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged(lost)) => {
                Some(Err(Status::resource_exhausted(format!(
                    "{lost} events were lost, because they were not read in time: ask again"
                ))))
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn copy_in(
        &self,
        request: Request<Streaming<proto::CopyInRequest>>,
    ) -> Result<Response<proto::CopyInResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        copy::copy_in(&self.0, &peer, request.into_inner()).await.map(Response::new)
    }

    async fn copy_out(&self, request: Request<proto::CopyOutRequest>) -> Result<Response<Self::CopyOutStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        copy::copy_out(&self.0, &peer, request.into_inner()).await.map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_names_and_differ() {
        let one = made_up_name().unwrap();
        let differs = (0..8).any(|_| made_up_name().unwrap() != one);
        assert!(differs);
    }
}

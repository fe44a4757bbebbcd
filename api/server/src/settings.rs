//! The Config service: documents of clients on their way to `byred config`, and the services that have to start anew when it says so.
//!
//! Nothing is decided here: `byred config` reads, judges and keeps. This side knows who asks, when their connection was made, and how to
//! restart a service. A change outlives this process: what was not restarted is told again after its start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use byre_api::proto;
use byre_api::proto::config_server::Config;
use byre_api::role::Role;
use byre_plan::Name;
use byre_protocol::control::{Request as Ask, Target};
use byre_protocol::settings::{ConfigAnswer, ConfigCall, ConfigRefusal, Generation, Plan, Standing};
use tonic::{Request, Response, Status};

use crate::audit::Change;
use crate::backend::SharedBackend;
use crate::convert;
use crate::gate::Peer;
use crate::peers::Peer as Service;
use crate::say::say;

const APPLY: Change = Change { method: "Config/ApplyConfig", frees_space: false };
const CONFIRM: Change = Change { method: "Config/ConfirmConfig", frees_space: false };
const UNDO: Change = Change { method: "Config/UndoConfig", frees_space: true };

/// Pause before `byred config` is asked again after it was not there: PID 1 starts it anew after a tenth of a second.
const AGAIN: Duration = Duration::from_millis(500);
/// This service's own name: it is restarted last, and cannot say so afterwards.
const OWN: &str = "api";

/// The service.
pub(crate) struct ConfigService(pub SharedBackend);

impl ConfigService {
    async fn ask(&self, call: ConfigCall) -> Result<ConfigAnswer, Status> {
        let answer = Service::call(&self.0.sockets.config, &call).await?.answer().await?;
        match answer {
            ConfigAnswer::Refused { code, text } => Err(refusal(code, text)),
            ConfigAnswer::Schema(_)
            | ConfigAnswer::Document { .. }
            | ConfigAnswer::Plan(_)
            | ConfigAnswer::Applied { .. }
            | ConfigAnswer::History(_)
            | ConfigAnswer::Restart(_)
            | ConfigAnswer::Done => Ok(answer),
        }
    }

    async fn plan(&self, call: ConfigCall) -> Result<proto::ConfigPlan, Status> {
        let ConfigAnswer::Plan(found) = self.ask(call).await? else { return Err(unexpected()) };
        Ok(plan(found))
    }

    async fn applied(&self, call: ConfigCall) -> Result<(proto::ConfigGeneration, proto::ConfigPlan), Status> {
        let ConfigAnswer::Applied { generation: found, plan: change } = self.ask(call).await? else {
            return Err(unexpected());
        };
        Ok((generation(found), plan(change)))
    }
}

fn refusal(code: ConfigRefusal, text: String) -> Status {
    match code {
        ConfigRefusal::Invalid => Status::invalid_argument(text),
        ConfigRefusal::NotFound => Status::not_found(text),
        ConfigRefusal::WrongState => Status::failed_precondition(text),
        ConfigRefusal::Busy => Status::unavailable(text),
        ConfigRefusal::NotDurable => Status::resource_exhausted(text),
    }
}

fn unexpected() -> Status {
    Status::internal(
        "the configuration service gave an answer of another kind than asked for; the node must run one release",
    )
}

fn generation(found: Generation) -> proto::ConfigGeneration {
    let (standing, left_ms) = match found.standing {
        Standing::Confirmed => (proto::ConfigStanding::Confirmed, None),
        Standing::Pending { left_ms } => (proto::ConfigStanding::Pending, Some(left_ms)),
        Standing::Past => (proto::ConfigStanding::Past, None),
        Standing::Undone => (proto::ConfigStanding::Undone, None),
    };
    let left = left_ms.and_then(|millis| Duration::from_millis(u64::from(millis)).try_into().ok());
    proto::ConfigGeneration {
        number: found.number,
        origin: found.origin,
        accepted: (found.wall_ms > 0).then(|| convert::timestamp(found.wall_ms)),
        hash: found.hash,
        standing: standing.into(),
        left,
    }
}

fn plan(found: Plan) -> proto::ConfigPlan {
    let changes = found.changes.into_iter();
    proto::ConfigPlan {
        changes: changes
            .map(|change| proto::ConfigChange { path: change.path, before: change.before, after: change.after })
            .collect(),
        restarts: found.restarts,
    }
}

#[tonic::async_trait]
impl Config for ConfigService {
    async fn get_config_schema(
        &self,
        _request: Request<proto::GetConfigSchemaRequest>,
    ) -> Result<Response<proto::GetConfigSchemaResponse>, Status> {
        let ConfigAnswer::Schema(schema_json) = self.ask(ConfigCall::Schema).await? else { return Err(unexpected()) };
        Ok(Response::new(proto::GetConfigSchemaResponse { schema_json }))
    }

    async fn get_config(
        &self,
        request: Request<proto::GetConfigRequest>,
    ) -> Result<Response<proto::GetConfigResponse>, Status> {
        let administrator = Peer::of(request.extensions())?.role >= Some(Role::Admin);
        let secrets = administrator && !request.get_ref().without_secrets;
        let number = request.into_inner().generation;
        let call = ConfigCall::Get { generation: (number > 0).then_some(number), secrets };
        let ConfigAnswer::Document { generation: found, document } = self.ask(call).await? else {
            return Err(unexpected());
        };
        Ok(Response::new(proto::GetConfigResponse { generation: Some(generation(found)), document }))
    }

    async fn plan_config(
        &self,
        request: Request<proto::PlanConfigRequest>,
    ) -> Result<Response<proto::PlanConfigResponse>, Status> {
        let document = bounded(request.into_inner().document)?;
        let plan = self.plan(ConfigCall::Plan { document }).await?;
        Ok(Response::new(proto::PlanConfigResponse { plan: Some(plan) }))
    }

    async fn compare_config(
        &self,
        request: Request<proto::CompareConfigRequest>,
    ) -> Result<Response<proto::CompareConfigResponse>, Status> {
        let proto::CompareConfigRequest { from, to } = request.into_inner();
        let plan = self.plan(ConfigCall::Compare { from, to: (to > 0).then_some(to) }).await?;
        Ok(Response::new(proto::CompareConfigResponse { plan: Some(plan) }))
    }

    async fn apply_config(
        &self,
        request: Request<proto::ApplyConfigRequest>,
    ) -> Result<Response<proto::ApplyConfigResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let proto::ApplyConfigRequest { document, confirm_within } = request.into_inner();
        let confirm_ms = confirm_within.as_ref().map_or(Ok(0), |time| convert::duration_ms(time, "confirm_within"))?;
        let document = bounded(document)?;
        let target = if confirm_ms > 0 { format!("to be confirmed within {confirm_ms} ms") } else { String::new() };
        let entry = self.0.audit.asked(&peer, APPLY, &target)?;
        let call = ConfigCall::Apply { document, who: peer.origin.to_string(), confirm_ms };
        let (generation, plan) = entry.done(self.applied(call).await).await?;
        Ok(Response::new(proto::ApplyConfigResponse { generation: Some(generation), plan: Some(plan) }))
    }

    async fn confirm_config(
        &self,
        request: Request<proto::ConfirmConfigRequest>,
    ) -> Result<Response<proto::ConfirmConfigResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let generation = request.into_inner().generation;
        let entry = self.0.audit.asked(&peer, CONFIRM, &format!("generation {generation}"))?;
        let call = ConfigCall::Confirm { generation, connected_boot_ms: peer.connected_boot_ms };
        let (generation, _) = entry.done(self.applied(call).await).await?;
        Ok(Response::new(proto::ConfirmConfigResponse { generation: Some(generation) }))
    }

    async fn undo_config(
        &self,
        request: Request<proto::UndoConfigRequest>,
    ) -> Result<Response<proto::UndoConfigResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let generation = request.into_inner().generation;
        let entry = self.0.audit.asked(&peer, UNDO, &format!("generation {generation}"))?;
        let (generation, plan) = entry.done(self.applied(ConfigCall::Undo { generation }).await).await?;
        Ok(Response::new(proto::UndoConfigResponse { generation: Some(generation), plan: Some(plan) }))
    }

    async fn list_config(
        &self,
        _request: Request<proto::ListConfigRequest>,
    ) -> Result<Response<proto::ListConfigResponse>, Status> {
        let ConfigAnswer::History(found) = self.ask(ConfigCall::History).await? else { return Err(unexpected()) };
        let generations = found.into_iter().map(generation).collect();
        Ok(Response::new(proto::ListConfigResponse { generations }))
    }
}

/// A document that fits the message to `byred config`; how it reads is decided there.
fn bounded(document: String) -> Result<Vec<u8>, Status> {
    let limit = byre_protocol::settings::DOCUMENT_BYTES;
    if document.len() > limit {
        return Err(Status::invalid_argument(format!(
            "the document has {} bytes, a configuration has at most {limit}: it holds TOML only, no archives or scripts",
            document.len()
        )));
    }
    Ok(document.into_bytes())
}

/// Says, before this process reads its part of the configuration, that it is about to. Later changes are told by [`follow`].
pub(crate) async fn reading(socket: &Path) {
    let call = ConfigCall::Restarted { service: OWN.to_owned(), revision: u64::MAX };
    // Without `byred config` there are no changes to hear of either; `follow` asks again.
    if let Ok(mut service) = Service::call(socket, &call).await {
        let _ = service.answer::<ConfigAnswer>().await;
    }
}

/// Restarts what a change of the configuration concerns, for ever.
pub(crate) async fn follow(backend: SharedBackend) {
    let socket: PathBuf = backend.sockets.config.clone();
    loop {
        if let Ok(mut watch) = Service::call(&socket, &ConfigCall::Watch).await {
            while let Ok(Some(ConfigAnswer::Restart(services))) = watch.next().await {
                for (service, revision) in services {
                    restart(&backend, &service, revision).await;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn restart(backend: &SharedBackend, service: &str, revision: u64) {
    let Ok(name) = Name::try_from(service) else { return };
    let done = ConfigCall::Restarted { service: service.to_owned(), revision };
    let acknowledge = async || match Service::call(&backend.sockets.config, &done).await {
        Ok(mut answer) => drop(answer.answer::<ConfigAnswer>().await),
        Err(error) => say(&format!("the restart of {service} is told again: {error}")),
    };
    if service == OWN {
        acknowledge().await;
    }
    say(&format!("restarting {service}: the configuration has changed"));
    match backend.control.call(Ask::Restart { target: Target::Name(name), grace_ms: None }).await {
        Ok(_) => acknowledge().await,
        // Not acknowledged, so the change cannot be confirmed and is undone. PID 1 tries again meanwhile, and `why` says why.
        Err(error) => say(&format!("{service} was not restarted: {error}")),
    }
}

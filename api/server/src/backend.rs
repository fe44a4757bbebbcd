//! What the services of the API share: PID 1, the other services, the record of changes; and how a client's text becomes a workload.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use byre_plan::{Name, WorkloadId};
use byre_protocol::control::{RefusedCode, Reply, Request, Target};
use byre_protocol::status::{Detail, Link, Summary};
use tokio::sync::OnceCell;
use tonic::Status;

use crate::audit::Audit;
use crate::control::{Answer, Control, ControlError};
use crate::gate::Peer;
use crate::images::ImageStore;
use byre_api::role::Role;

/// Hexadecimal digits that a prefix of an identity needs at least: fewer would often be ambiguous, and are rather a mistyped name.
const PREFIX_DIGITS: usize = 3;

/// Where the other services listen.
#[derive(Debug, Clone)]
pub struct Sockets {
    /// `byred log`.
    pub log: PathBuf,
    /// `byred image`.
    pub image: PathBuf,
    /// `byred stats`.
    pub stats: PathBuf,
    /// `byred config`.
    pub config: PathBuf,
}

/// Shared by all services of the API.
pub(crate) struct Backend {
    /// PID 1.
    pub control: Control,
    /// The record of changes.
    pub audit: Audit,
    /// The images.
    pub images: ImageStore,
    /// The other services.
    pub sockets: Sockets,
    /// The file that a container on the host's network gets as its resolv.conf.
    pub resolv_conf: PathBuf,
    /// Names and identities of the node's own services; they come from the verified root, so they never change while this process lives.
    pub services: OnceCell<Services>,
}

/// The node's own services and jobs.
#[derive(Debug, Default)]
pub(crate) struct Services {
    names: HashSet<Name>,
    ids: HashSet<WorkloadId>,
}

impl Services {
    fn has(&self, target: &Target) -> bool {
        match target {
            Target::Id(id) => self.ids.contains(id),
            Target::Name(name) => self.names.contains(name),
        }
    }
}

/// What may be meant by `text`, likeliest first.
fn candidates(text: &str) -> Vec<Target> {
    let id = text.parse().ok().map(Target::Id);
    let name = Name::try_from(text).ok().map(Target::Name);
    id.into_iter().chain(name).collect()
}

fn is_prefix(text: &str) -> bool {
    (PREFIX_DIGITS..16).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn not_found(text: &str) -> Status {
    let text: String = text.chars().take(100).collect();
    Status::not_found(format!("no workload {text:?}: `byrectl ps --all` shows the containers of this node"))
}

impl Backend {
    /// All workloads, in the order of their identities.
    ///
    /// # Errors
    /// PID 1's refusal.
    pub(crate) async fn list(&self) -> Result<Vec<Summary>, Status> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let Reply::Page { workloads, more } = self.control.call(Request::List { after }).await?.reply else {
                return Err(ControlError::Unexpected.into());
            };
            after = workloads.last().map(|summary| summary.id);
            all.extend(workloads);
            if !more || after.is_none() {
                return Ok(all);
            }
        }
    }

    /// The node's own services.
    ///
    /// # Errors
    /// PID 1's refusal.
    pub(crate) async fn services(&self) -> Result<&Services, Status> {
        self.services
            .get_or_try_init(|| async {
                let mut services = Services::default();
                for summary in self.list().await? {
                    if summary.built_in {
                        services.names.insert(summary.name);
                        services.ids.insert(summary.id);
                    }
                }
                Ok(services)
            })
            .await
    }

    /// Asks PID 1 about the workload that `text` means: its identity, its name, or an unambiguous prefix of the identity. In the usual case that is
    /// one question.
    ///
    /// # Errors
    /// `NOT_FOUND`, `INVALID_ARGUMENT` for an ambiguous prefix, or PID 1's refusal.
    pub(crate) async fn ask(&self, text: &str, request: impl Fn(Target) -> Request) -> Result<Answer, Status> {
        for target in candidates(text) {
            match self.control.call(request(target)).await {
                Err(ControlError::Refused(refused)) if refused.code == RefusedCode::NotFound => {}
                other => return Ok(other?),
            }
        }
        let target = self.by_prefix(text).await?;
        Ok(self.control.call(request(target)).await?)
    }

    async fn by_prefix(&self, text: &str) -> Result<Target, Status> {
        if !is_prefix(text) {
            return Err(not_found(text));
        }
        let mut matching = self.list().await?.into_iter().filter(|summary| summary.id.to_string().starts_with(text));
        match (matching.next(), matching.next()) {
            (Some(one), None) => Ok(Target::Id(one.id)),
            (None, _) => Err(not_found(text)),
            (Some(_), Some(_)) => Err(Status::invalid_argument(format!(
                "{text:?} is the beginning of several identities: give more digits"
            ))),
        }
    }

    /// As [`Self::ask`], for what may be done to containers only.
    ///
    /// # Errors
    /// As [`Self::ask`], and `PERMISSION_DENIED` if it is one of the node's own services.
    pub(crate) async fn ask_container(
        &self,
        text: &str,
        request: impl Fn(Target) -> Request,
    ) -> Result<Answer, Status> {
        let services = self.services().await?;
        for target in candidates(text) {
            if services.has(&target) {
                return Err(only_restart(text));
            }
        }
        if is_prefix(text)
            && let Some(hit) = services.ids.iter().find(|id| id.to_string().starts_with(text))
        {
            // A name may look like a prefix too; a container of that name is meant then.
            let named = Name::try_from(text).ok().map(Target::Name);
            if let Some(target) = named {
                match self.control.call(request(target)).await {
                    Err(ControlError::Refused(refused)) if refused.code == RefusedCode::NotFound => {}
                    other => return Ok(other?),
                }
            }
            return Err(only_restart(&hit.to_string()));
        }
        self.ask(text, request).await
    }

    /// Whether `text` means one of the node's own services by its name or whole identity.
    ///
    /// # Errors
    /// PID 1's refusal.
    pub(crate) async fn is_service(&self, text: &str) -> Result<bool, Status> {
        let services = self.services().await?;
        let prefix = is_prefix(text) && services.ids.iter().any(|id| id.to_string().starts_with(text));
        Ok(prefix || candidates(text).iter().any(|target| services.has(target)))
    }

    /// Refuses a change to one of the node's own services unless an administrator asks for it.
    ///
    /// # Errors
    /// PERMISSION_DENIED, which names the role that it needs, or PID 1's refusal.
    pub(crate) async fn only_admins_touch_services(&self, peer: &Peer, text: &str, verb: &str) -> Result<(), Status> {
        if peer.role < Some(Role::Admin) && self.is_service(text).await? {
            return Err(Status::permission_denied(format!(
                "{text} is a service of the node: {verb} it needs the role admin"
            )));
        }
        Ok(())
    }

    /// Everything about a workload.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) async fn inspect(&self, text: &str) -> Result<Box<Detail>, Status> {
        let answer = self.ask(text, |target| Request::Inspect { target }).await?;
        detail(answer)
    }

    /// Why a workload is in its state.
    ///
    /// # Errors
    /// PID 1's refusal: it may be gone by now.
    pub(crate) async fn why(&self, id: WorkloadId) -> Result<Vec<Link>, Status> {
        match self.control.call(Request::Why { target: Target::Id(id) }).await?.reply {
            Reply::Explained(chain) => Ok(chain),
            Reply::Done
            | Reply::Created { .. }
            | Reply::Page { .. }
            | Reply::Inspected(_)
            | Reply::ExecStarted { .. }
            | Reply::Input { .. }
            | Reply::Descriptor
            | Reply::Reexecuted { .. }
            | Reply::Refused(_) => Err(ControlError::Unexpected.into()),
        }
    }

    /// Everything about a container.
    ///
    /// # Errors
    /// As [`Self::ask`], and `PERMISSION_DENIED` if it is one of the node's own services.
    pub(crate) async fn inspect_container(&self, text: &str) -> Result<Box<Detail>, Status> {
        let detail = self.inspect(text).await?;
        if detail.summary.built_in { Err(only_restart(text)) } else { Ok(detail) }
    }

    /// Lets PID 1 unmount the layers of images that were removed, so that their space is given back. The images are gone whatever comes of it, and the
    /// next removal asks again.
    pub(crate) async fn release_layers(&self) {
        if let Err(error) = self.control.call(Request::ReleaseLayers).await {
            crate::say::say(&format!("space of removed images is given back with the next removal: {error}"));
        }
    }

    /// Images that containers use, by identity.
    ///
    /// # Errors
    /// PID 1's refusal.
    pub(crate) async fn images_in_use(&self) -> Result<Vec<String>, Status> {
        let all = self.list().await?;
        let used: HashSet<&str> = all
            .iter()
            .filter_map(|summary| crate::convert::label(&summary.labels, crate::convert::LABEL_IMAGE_ID))
            .collect();
        Ok(used.into_iter().map(str::to_owned).collect())
    }
}

impl Backend {
    /// The refusal to remove an image, with the names of the containers that use it.
    pub(crate) async fn with_users(&self, reference: &str, status: Status) -> Status {
        let (Ok(image), Ok(all)) = (self.images.resolve(reference).await, self.list().await) else { return status };
        let uses = |labels: &[(String, String)]| {
            crate::convert::label(labels, crate::convert::LABEL_IMAGE_ID) == Some(image.id.as_str())
        };
        let users: Vec<&str> =
            all.iter().filter(|summary| uses(&summary.labels)).map(|summary| summary.name.as_str()).collect();
        if users.is_empty() {
            return status;
        }
        Status::failed_precondition(format!("image {reference} is used by {}; remove that first", users.join(", ")))
    }
}

fn only_restart(text: &str) -> Status {
    Status::permission_denied(format!(
        "{text} is a service of the node: it can be listed, inspected, logged and restarted (`byrectl services`), nothing else"
    ))
}

fn detail(answer: Answer) -> Result<Box<Detail>, Status> {
    match answer.reply {
        Reply::Inspected(mut detail) => {
            detail.summary.labels.clone_from(&detail.definition.labels);
            Ok(detail)
        }
        Reply::Done
        | Reply::Created { .. }
        | Reply::Page { .. }
        | Reply::ExecStarted { .. }
        | Reply::Input { .. }
        | Reply::Descriptor
        | Reply::Explained(_)
        | Reply::Reexecuted { .. }
        | Reply::Refused(_) => Err(ControlError::Unexpected.into()),
    }
}

/// The shared part, as the services hold it.
pub(crate) type SharedBackend = Arc<Backend>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_may_be_an_identity_a_name_or_a_prefix() {
        assert_eq!(candidates("web").len(), 1);
        assert_eq!(candidates("0123456789abcdef").len(), 2);
        assert!(matches!(candidates("0123456789abcdef")[0], Target::Id(WorkloadId(0x0123_4567_89ab_cdef))));
        assert!(candidates("").is_empty() && candidates("../etc").is_empty());
        assert!(is_prefix("abc") && !is_prefix("ab") && !is_prefix("xyz") && !is_prefix("0123456789abcdef"));
    }
}

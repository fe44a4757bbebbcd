//! The Node service: versions, measured facts, the kernel's log, and the end of the machine.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use byre_api::proto;
use byre_api::proto::node_server::Node;
use byre_protocol::control::{Reply, Request as Ask, ShutdownAction};
use byre_protocol::definition::Kind;
use byre_protocol::status::{Cause, State, Summary, Why};
use futures::Stream;
use futures::stream::try_unfold;
use rustix::io::Errno;
use tokio::sync::OnceCell;
use tonic::{Request, Response, Status};

use crate::audit::Change;
use crate::backend::SharedBackend;
use crate::control::ControlError;
use crate::convert;
use crate::descriptor::Descriptor;
use crate::gate::Peer;

/// Longest record of /dev/kmsg, as the kernel has it (CONSOLE_EXT_LOG_MAX).
const RECORD_BYTES: usize = 8192;

const REEXEC: Change = Change { method: "Node/Reexec", frees_space: false };
const SHUTDOWN: Change = Change { method: "Node/Shutdown", frees_space: true };

/// Versions of the system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeVersion {
    /// Version of the system.
    pub os_version: String,
    /// The running slot.
    pub slot: String,
    /// Kernel release.
    pub kernel: String,
    /// Hash of the running root.
    pub root_hash: String,
}

/// Something that is as it should be on a node, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCondition {
    /// Name, such as `verity`.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// For people.
    pub detail: String,
}

/// What is known of the machine now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Everything, as JSON.
    pub facts_json: String,
    /// Host name.
    pub hostname: String,
    /// Machine identity.
    pub machine_id: String,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Processors that are on.
    pub processors: u32,
    /// What containers may have of it.
    pub memory_allocatable_bytes: u64,
    /// In thousandths of a processor.
    pub cpu_allocatable_millis: u64,
    /// When the machine was booted, in milliseconds since 1970.
    pub booted_wall_ms: u64,
    /// Its conditions.
    pub conditions: Vec<NodeCondition>,
}

/// Where facts come from. Both are called on a thread beside the runtime, since measuring reads many files.
pub trait FactsSource: Send + Sync + 'static {
    /// Measures.
    fn facts(&self) -> NodeFacts;
    /// Versions; asked once, since they do not change while this process lives.
    fn version(&self) -> NodeVersion;
}

/// The service.
pub(crate) struct NodeService {
    /// What it shares with the others.
    pub backend: SharedBackend,
    /// Where facts come from.
    pub facts: Arc<dyn FactsSource>,
    /// What the facts' source said of the versions.
    pub versions: OnceCell<NodeVersion>,
}

impl NodeService {
    async fn versions(&self) -> Result<proto::VersionResponse, Status> {
        let source = Arc::clone(&self.facts);
        let versions = self.versions.get_or_try_init(|| measured(move || source.version())).await?;
        Ok(version(versions.clone()))
    }
}

fn version(version: NodeVersion) -> proto::VersionResponse {
    proto::VersionResponse {
        os_version: version.os_version,
        slot: version.slot,
        kernel: version.kernel,
        api: "byre.node.v1".into(),
        root_hash: version.root_hash,
    }
}

pub(crate) async fn measured<T: Send + 'static>(measure: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let measured = tokio::task::spawn_blocking(measure).await;
    measured.map_err(|error| Status::unavailable(format!("facts cannot be measured: {error}; try again")))
}

type Records = Pin<Box<dyn Stream<Item = Result<proto::KernelLogResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Node for NodeService {
    type KernelLogStream = Records;

    async fn version(
        &self,
        _request: Request<proto::VersionRequest>,
    ) -> Result<Response<proto::VersionResponse>, Status> {
        self.versions().await.map(Response::new)
    }

    async fn get_node(
        &self,
        _request: Request<proto::GetNodeRequest>,
    ) -> Result<Response<proto::GetNodeResponse>, Status> {
        let source = Arc::clone(&self.facts);
        let facts = measured(move || source.facts()).await?;
        let measured = facts.conditions.into_iter();
        let mut conditions: Vec<proto::Condition> = measured
            .map(|condition| proto::Condition { name: condition.name, ok: condition.ok, detail: condition.detail })
            .collect();
        conditions.push(ready(&self.backend.list().await?));
        Ok(Response::new(proto::GetNodeResponse {
            facts_json: facts.facts_json,
            hostname: facts.hostname,
            machine_id: facts.machine_id,
            version: Some(self.versions().await?),
            memory_bytes: facts.memory_bytes,
            processors: facts.processors,
            memory_allocatable_bytes: facts.memory_allocatable_bytes,
            cpu_allocatable_millis: facts.cpu_allocatable_millis,
            booted: Some(convert::timestamp(facts.booted_wall_ms)),
            conditions,
        }))
    }

    async fn kernel_log(
        &self,
        request: Request<proto::KernelLogRequest>,
    ) -> Result<Response<Self::KernelLogStream>, Status> {
        let follow = request.get_ref().follow;
        let mut answer = self.backend.control.call(Ask::OpenKernelLog).await?;
        let descriptor = answer.descriptors.pop().ok_or(ControlError::Unexpected)?;
        let log = Descriptor::new(descriptor)
            .map_err(|error| Status::internal(format!("the kernel's log cannot be read: {error}")))?;
        let buffer = vec![0; RECORD_BYTES];
        Ok(Response::new(Box::pin(try_unfold((log, buffer), move |(log, mut buffer)| async move {
            loop {
                let read = if follow { log.read(&mut buffer).await } else { log.try_read(&mut buffer) };
                match read {
                    Ok(0) => return Ok(None),
                    Ok(length) => {
                        if let Some(record) = parse_record(&buffer[..length]) {
                            return Ok(Some((record, (log, buffer))));
                        }
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                    // The kernel has overwritten what we had not read yet; the next record says by its number how much.
                    Err(error) if Errno::from_io_error(&error) == Some(Errno::PIPE) => {}
                    Err(error) => return Err(Status::unavailable(format!("the kernel's log: {error}; ask again"))),
                }
            }
        }))))
    }

    async fn shutdown(
        &self,
        request: Request<proto::ShutdownRequest>,
    ) -> Result<Response<proto::ShutdownResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let (action, text) = if request.get_ref().reboot {
            (ShutdownAction::Reboot, "reboot")
        } else {
            (ShutdownAction::PowerOff, "power off")
        };
        let entry = self.backend.audit.asked(&peer, SHUTDOWN, text)?;
        let result = self.backend.control.call(Ask::Shutdown { action }).await.map_err(Status::from);
        entry.done(result).await?;
        Ok(Response::new(proto::ShutdownResponse {}))
    }

    async fn reexec(&self, request: Request<proto::ReexecRequest>) -> Result<Response<proto::ReexecResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let entry = self.backend.audit.asked(&peer, REEXEC, "")?;
        let result = match self.backend.control.call(Ask::Reexec).await.map(|answer| answer.reply) {
            Ok(Reply::Reexecuted { gap_us }) => Ok(Duration::from_micros(gap_us)),
            Ok(
                Reply::Done
                | Reply::Created { .. }
                | Reply::Page { .. }
                | Reply::Inspected(_)
                | Reply::ExecStarted { .. }
                | Reply::Input { .. }
                | Reply::Descriptor
                | Reply::Explained(_)
                | Reply::Refused(_),
            ) => Err(ControlError::Unexpected.into()),
            Err(error) => Err(error.into()),
        };
        let gap = entry.done(result).await?;
        Ok(Response::new(proto::ReexecResponse { gap: gap.try_into().ok() }))
    }
}

/// Whether every service of the node is ready and every job of its boot has ended well.
fn ready(all: &[Summary]) -> proto::Condition {
    let lacking: Vec<&str> = all
        .iter()
        .filter(|summary| summary.built_in)
        .filter(|summary| match (summary.kind, &summary.state) {
            (Kind::Container | Kind::Pod, _) | (Kind::Service, State::Up { ready: true, .. }) => false,
            (Kind::Job, State::Down { why: Why::Ended(Cause::Code(0)) }) => false,
            (Kind::Service | Kind::Job, _) => true,
        })
        .map(|summary| summary.name.as_str())
        .collect();
    let detail = if lacking.is_empty() {
        "all services are ready".to_owned()
    } else {
        format!("not ready: {}; `byrectl why NAME` says why", lacking.join(", "))
    };
    proto::Condition { name: "ready".to_owned(), ok: lacking.is_empty(), detail }
}

/// One record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg): `priority,sequence,microseconds,flags;text`, then lines that begin with a space.
fn parse_record(record: &[u8]) -> Option<proto::KernelLogResponse> {
    let record = String::from_utf8_lossy(record);
    let (head, text) = record.split_once(';')?;
    let mut fields = head.split(',');
    let syslog: u32 = fields.next()?.parse().ok()?;
    let sequence = fields.next()?.parse().ok()?;
    let micros: u64 = fields.next()?.parse().ok()?;
    let since_boot = prost_types::Duration::try_from(Duration::from_micros(micros)).ok();
    let text = text.lines().next().unwrap_or_default().to_owned();
    // The low three bits are the priority, the others the facility.
    Some(proto::KernelLogResponse { priority: syslog & 7, sequence, since_boot, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_kernel_record_is_read_without_its_dictionary() {
        let record = parse_record(b"30,1055,123456,-;sda: found\n SUBSYSTEM=block\n DEVICE=b8:0\n").unwrap();
        assert_eq!((record.priority, record.sequence, record.text.as_str()), (6, 1055, "sda: found"));
        assert_eq!(record.since_boot.unwrap().nanos, 123_456_000);
    }

    proptest! {
        #[test]
        fn no_record_breaks_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_record(&bytes);
        }
    }
}

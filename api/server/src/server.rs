//! Putting it together: the runtime, the services, and when the process ends.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use byre_api::proto::boots_server::BootsServer;
use byre_api::proto::config_server::ConfigServer;
use byre_api::proto::debugging_server::DebuggingServer;
use byre_api::proto::identity_server::IdentityServer;
use byre_api::proto::image_transfers_server::ImageTransfersServer;
use byre_api::proto::images_server::ImagesServer;
use byre_api::proto::node_server::NodeServer;
use byre_api::proto::supervision_server::SupervisionServer;
use byre_api::proto::update_server::UpdateServer;
use byre_api::proto::workloads_server::WorkloadsServer;
use byre_protocol::control::Request;
use byre_protocol::frame::FrameError;
use byre_protocol::peer::{IMAGE_SOCKET, LOG_SOCKET, STATS_SOCKET};
use byre_protocol::settings::CONFIG_SOCKET;
use tokio::io::Interest;
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::audit::{Audit, AuditError};
use crate::backend::{Backend, SharedBackend, Sockets};
use crate::boots::BootsService;
use crate::config::{ApiConfig, ConfigError};
use crate::control::{Control, ControlError};
use crate::debugging::DebuggingService;
use crate::gate::GateLayer;
use crate::identity::IdentityService;
use crate::images::{ImageStore, ImagesService};
use crate::listen;
use crate::node::{FactsSource, NodeService};
use crate::pull::ImageTransfersService;
use crate::readiness::register;
use crate::say::say;
use crate::settings::{self, ConfigService};
use crate::supervision::SupervisionService;
use crate::tls::{NodeTls, TlsError};
use crate::update::UpdateService;
use crate::workloads::WorkloadsService;

/// Calls under way on one connection: an attach, an exec and logs for each container somebody watches.
const STREAMS_PER_CONNECTION: u32 = 128;
/// Accepted connections that the server has not taken yet; it takes them at once.
const ACCEPTED: usize = 8;
/// Longest message of a client: a specification is at most 128 KiB, pieces of archives are what a client chooses up to this.
const MESSAGE_BYTES: usize = 1 << 20;
/// Bytes of headers of one call: deadlines and a little metadata.
const HEADER_BYTES: u32 = 16 * 1024;
/// Bytes of archives and input on the way to us per stream, so that one upload does not fill memory and is not slowed down either.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
/// A connection that says nothing is asked whether it is still there: clients behind a dead link would hold their streams for ever.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// And has this long to answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What calls under way have to end once the service is told to: the answer to the call that ends the machine is among them.
const ENDING: Duration = Duration::from_secs(1);

/// Threads that measure facts; who asks for more at once waits. The service's own limit of threads is 32.
const MEASURING_THREADS: usize = 2;

/// What the process is given.
pub struct Options {
    /// The control channel to PID 1, role api.
    pub control: OwnedFd,
    /// Readable when the service is to end: calls under way are finished, new ones not taken.
    pub termination: Option<OwnedFd>,
    /// The listening unix socket.
    pub unix: Option<OwnedFd>,
    /// The listening TCP socket.
    pub tcp: Option<OwnedFd>,
    /// Directory of the node's key and certificate, owned by this service.
    pub state: PathBuf,
    /// Directory of the record of changes, owned by this service.
    pub audit: PathBuf,
    /// The file of [`ApiConfig`].
    pub config: PathBuf,
    /// The resolv.conf that `byred net` writes.
    pub resolv_conf: PathBuf,
    /// The other services.
    pub sockets: Sockets,
    /// Where facts come from.
    pub facts: Arc<dyn FactsSource>,
    /// Called when connections are accepted: tells PID 1 that the service is ready.
    pub ready: Box<dyn FnOnce() + Send>,
}

impl Options {
    /// The options of a node, with its fixed paths.
    #[must_use]
    pub fn new(control: OwnedFd, facts: Arc<dyn FactsSource>, ready: Box<dyn FnOnce() + Send>) -> Self {
        Self {
            control,
            termination: None,
            unix: None,
            tcp: None,
            state: "/state/api".into(),
            audit: "/data/audit".into(),
            config: "/run/byre/config/api.json".into(),
            resolv_conf: "/run/byre/net/resolv.conf".into(),
            sockets: Sockets {
                log: LOG_SOCKET.into(),
                image: IMAGE_SOCKET.into(),
                stats: STATS_SOCKET.into(),
                config: CONFIG_SOCKET.into(),
            },
            facts,
            ready,
        }
    }
}

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The key or certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The record of changes.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The runtime or a descriptor.
    #[error("{0}: {1}")]
    Descriptor(&'static str, std::io::Error),
    /// The channel to PID 1 ended.
    #[error("the channel to PID 1: {0}")]
    Control(FrameError),
    /// PID 1 does not serve this channel.
    #[error("PID 1 does not take this service for the API: {0}")]
    Subscribe(ControlError),
    /// The server stopped.
    #[error("the server stopped: {0}")]
    Server(String),
}

/// Serves until it is told to end, or until PID 1 closes the channel, which is an error.
///
/// # Errors
/// See [`Error`].
pub fn run(options: Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MEASURING_THREADS)
        .build()
        .map_err(|error| Error::Descriptor("runtime", error))?;
    runtime.block_on(serve(options))
}

/// As [`run`], inside a runtime.
///
/// # Errors
/// See [`Error`].
pub async fn serve(options: Options) -> Result<(), Error> {
    settings::reading(&options.sockets.config).await;
    let config = ApiConfig::read(&options.config)?;
    let audit = Audit::open(&options.audit)?;
    let control = Control::new(options.control).map_err(|error| Error::Descriptor("control", error))?;
    let tls = match &config.ca_pem {
        Some(authority) => {
            let name = config.hostname.as_deref().unwrap_or("byre");
            Some(Arc::new(NodeTls::open(&options.state, authority, name)?))
        }
        None => None,
    };
    let backend = Arc::new(Backend {
        control: control.clone(),
        audit: audit.clone(),
        images: ImageStore::new(options.sockets.image.clone()),
        sockets: options.sockets,
        resolv_conf: options.resolv_conf,
        services: OnceCell::new(),
    });
    let identity = IdentityService { tls: tls.clone(), join_token: config.join_token, audit };

    let (accepted, connections) = mpsc::channel(ACCEPTED);
    let (failure, mut failed) = mpsc::channel(1);
    if let Some(unix) = options.unix {
        tokio::spawn(reported("unix socket", listen::unix(unix, accepted.clone()), failure.clone()));
    }
    match (options.tcp, tls) {
        (Some(tcp), Some(tls)) => {
            if !tls.serving().joined {
                say("this node has no certificate yet: only the Identity service is served over TCP");
            }
            tokio::spawn(reported("TCP socket", listen::tcp(tcp, tls, accepted.clone()), failure));
        }
        (Some(_), None) => say("no authority is configured: nothing is served over TCP"),
        (None, _) => {}
    }
    drop(accepted);

    tokio::spawn(settings::follow(Arc::clone(&backend)));
    let reading = control.serve();
    let (end, ended) = oneshot::channel();
    let server = serve_connections(backend, identity, options.facts, connections, ended, options.ready);
    tokio::select! {
        error = reading => Err(Error::Control(error)),
        Some(error) = failed.recv() => Err(error),
        result = server => result,
        result = told_to_end(options.termination, end) => result,
    }
}

/// Waits until the service is told to end, lets the server know, and gives it a moment.
async fn told_to_end(termination: Option<OwnedFd>, end: oneshot::Sender<()>) -> Result<(), Error> {
    let failed = |error| Error::Descriptor("termination", error);
    match termination {
        Some(descriptor) => {
            let descriptor = register(descriptor, Interest::READABLE).map_err(failed)?;
            descriptor.readable().await.map_err(failed)?.retain_ready();
        }
        None => std::future::pending().await,
    }
    // A server that has ended already does not listen.
    let _ = end.send(());
    tokio::time::sleep(ENDING).await;
    Ok(())
}

/// A listener that fails ends the service: PID 1 starts it anew, and keeps the listening socket meanwhile.
async fn reported(
    what: &'static str,
    listening: impl Future<Output = std::io::Result<()>>,
    failure: mpsc::Sender<Error>,
) {
    if let Err(error) = listening.await {
        // Nobody takes it if the service ends already.
        let _ = failure.send(Error::Descriptor(what, error)).await;
    }
}

async fn serve_connections(
    backend: SharedBackend,
    identity: IdentityService,
    facts: Arc<dyn FactsSource>,
    connections: mpsc::Receiver<std::io::Result<listen::Connection>>,
    ended: oneshot::Receiver<()>,
    ready: Box<dyn FnOnce() + Send>,
) -> Result<(), Error> {
    backend.control.call(Request::Subscribe).await.map_err(Error::Subscribe)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<WorkloadsServer<WorkloadsService>>().await;
    health.set_serving::<ImagesServer<ImagesService>>().await;
    health.set_serving::<NodeServer<NodeService>>().await;
    health.set_serving::<UpdateServer<UpdateService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(byre_api::proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| Error::Server(error.to_string()))?;
    let node = NodeService { backend: Arc::clone(&backend), facts, versions: OnceCell::new() };
    let debugging = DebuggingServer::new(DebuggingService(Arc::clone(&backend)));
    let supervision = SupervisionServer::new(SupervisionService(Arc::clone(&backend)));
    let workloads = WorkloadsServer::new(WorkloadsService(Arc::clone(&backend)));
    let router = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .layer(GateLayer)
        .add_service(workloads.max_decoding_message_size(MESSAGE_BYTES))
        .add_service(
            ImageTransfersServer::new(ImageTransfersService(Arc::clone(&backend)))
                .max_decoding_message_size(MESSAGE_BYTES),
        )
        .add_service(ImagesServer::new(ImagesService(Arc::clone(&backend))).max_decoding_message_size(MESSAGE_BYTES))
        .add_service(UpdateServer::new(UpdateService(Arc::clone(&backend))).max_decoding_message_size(MESSAGE_BYTES))
        .add_service(ConfigServer::new(ConfigService(backend)).max_decoding_message_size(MESSAGE_BYTES))
        .add_service(NodeServer::new(node).max_decoding_message_size(MESSAGE_BYTES))
        .add_service(BootsServer::new(BootsService::default()).max_decoding_message_size(MESSAGE_BYTES))
        .add_service(debugging.max_decoding_message_size(MESSAGE_BYTES))
        .add_service(supervision.max_decoding_message_size(MESSAGE_BYTES))
        .add_service(IdentityServer::new(identity).max_decoding_message_size(MESSAGE_BYTES))
        .add_service(health_service)
        .add_service(reflection);
    let told = Arc::new(AtomicBool::new(false));
    let until = {
        let told = Arc::clone(&told);
        async move {
            if ended.await.is_err() {
                std::future::pending().await
            }
            told.store(true, Ordering::Relaxed);
        }
    };
    let serving = router.serve_with_incoming_shutdown(ReceiverStream::new(connections), until);
    ready();
    match serving.await {
        Ok(()) if told.load(Ordering::Relaxed) => Ok(()),
        Ok(()) => Err(Error::Server("nothing listens any more".into())),
        Err(error) => Err(Error::Server(error.to_string())),
    }
}

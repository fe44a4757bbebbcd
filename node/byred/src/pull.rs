//! `byred pull`: fetches manifests and blobs from registries for `byred image`, one connection for each.
//!
//! It has the network and the registries' credentials, and nothing else: no store, no socket of another service, no file to write. What
//! comes from a registry leaves here as bytes on the connection that asked for it; whether they are the right ones is decided there.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use byre_image::digest::Digest;
use byre_image::pull::SourceFault;
use byre_image::reference::Reference;
use byre_protocol::frame::{FrameError, MESSAGE_BYTES};
use byre_protocol::peer::{FETCH_PIECE_BYTES, FetchAnswer, FetchCall, ImageRefusal, RegistryCredential};
use byre_registry::blocking::{PIECES, fault};
use byre_registry::{Client, Credential, RegistryError, Repository, Settings};
use byre_sandbox::stream::framed;
use byre_sandbox::{Descriptors, Notifier, profiles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

/// What `byred config` leaves for this service.
const SETTINGS: &str = "/run/byre/config/registries.json";
/// Bytes of it: a configuration document has 64 KiB, and escapes double some of them.
const SETTINGS_BYTES: u64 = 256 * 1024;
/// Connections at a time: two layers at once, and a manifest for each pull under way.
const CONNECTIONS: usize = 16;
/// The one who asks sends its call at once and takes what comes; a pull whose store stands still for so long is given up.
const CLIENT_TIME: Duration = Duration::from_secs(120);
/// Threads that look up names.
const RESOLVING_THREADS: usize = 4;

/// Why the service ended. PID 1 starts it anew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    /// Its start failed.
    #[error(transparent)]
    Start(#[from] byre_sandbox::StartError),
    /// Its settings cannot be read.
    #[error("{SETTINGS}: {0}; `byred config` and `byred pull` must be from one release")]
    Settings(String),
    /// The runtime or the listener failed.
    #[error("{0}: {1}")]
    Listen(&'static str, io::Error),
}

/// The service, started by PID 1.
pub(crate) fn run() -> Result<(), PullError> {
    let mut descriptors = Descriptors::from_environment()?;
    let listener = std::os::unix::net::UnixListener::from(descriptors.take("unix")?);
    listener.set_nonblocking(true).map_err(|error| PullError::Listen("listener", error))?;
    let notifier = Notifier::from_environment()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(RESOLVING_THREADS)
        .build()
        .map_err(|error| PullError::Listen("runtime", error))?;
    byre_sandbox::seal(&profiles::PULL)?;
    let settings = settings(Path::new(SETTINGS))?;
    runtime.block_on(async {
        let listener = UnixListener::from_std(listener).map_err(|error| PullError::Listen("listener", error))?;
        notifier.ready()?;
        serve(&listener, settings).await
    })
}

/// The settings; without a file there are none.
fn settings(path: &Path) -> Result<Settings, PullError> {
    let failed = |why: String| PullError::Settings(why);
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Settings::default()),
        Err(error) => return Err(failed(error.to_string())),
        Ok(metadata) if metadata.len() > SETTINGS_BYTES => return Err(failed("it is too long".to_owned())),
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    // The parser's words may hold a secret; its place does not.
    serde_json::from_slice(&bytes).map_err(|error| failed(format!("malformed at column {}", error.column())))
}

async fn serve(listener: &UnixListener, settings: Settings) -> Result<(), PullError> {
    let clients = Arc::new(Clients { usual: Client::new(settings.clone()), settings });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // A place first: who comes later waits in the listener's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(PullError::Listen("accept", error)),
        };
        let clients = Arc::clone(&clients);
        tokio::spawn(async move {
            if let Err(error) = answer(&clients, stream).await {
                eprintln!("a call is not answered: {error}");
            }
            drop(place);
        });
    }
}

/// Why a connection ended without its answer.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the image service: {0}")]
    Socket(#[from] io::Error),
}

/// The client that most calls use, and what others are made from.
struct Clients {
    usual: Client,
    settings: Settings,
}

/// What a call asks with.
struct Asking<'c> {
    repository: Repository,
    credential: Option<Credential>,
    client: Lent<'c>,
}

/// The usual client, or one for this call alone.
enum Lent<'c> {
    Usual(&'c Client),
    Own(Box<Client>),
}

impl std::ops::Deref for Lent<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        match self {
            Self::Usual(client) => client,
            Self::Own(client) => client,
        }
    }
}

async fn answer(clients: &Clients, mut stream: UnixStream) -> Result<(), CallError> {
    let call = tokio::time::timeout(CLIENT_TIME, read_call(&mut stream)).await.map_err(io::Error::from)??;
    match call {
        FetchCall::Manifest { repository, which, origin_only, credential, ca_pem } => {
            let (mut reader, mut writer) = stream.split();
            let fetching = async {
                let Asking { repository, credential, client } = clients.asking(&repository, credential, ca_pem)?;
                client.manifest(&repository, &which, credential.as_ref(), origin_only).await
            };
            let result = tokio::select! {
                result = fetching => result,
                () = gone(&mut reader) => return Ok(()),
            };
            match result {
                Ok(body) => {
                    let bytes = u32::try_from(body.bytes.len()).unwrap_or(u32::MAX);
                    let (media_type, stated_digest) = (short(&body.media_type), body.stated_digest.map(|d| short(&d)));
                    let head = FetchAnswer::Manifest { bytes, media_type, stated_digest };
                    writer.write_all(&framed(&head)?).await?;
                    writer.write_all(&body.bytes).await?;
                }
                Err(error) => writer.write_all(&framed(&refused(&error))?).await?,
            }
        }
        FetchCall::Blob { repository, digest, size, offset, origin_only, credential, ca_pem } => {
            let digest = Digest::from(digest.0);
            match clients.asking(&repository, credential, ca_pem) {
                Err(error) => stream.write_all(&framed(&refused(&error))?).await?,
                Ok(Asking { repository, credential, client }) => {
                    let blob =
                        byre_registry::Blob { repository: &repository, digest: &digest, size, offset, origin_only };
                    send_blob(&client, blob, credential.as_ref(), &mut stream).await?;
                }
            }
        }
    }
    Ok(())
}

/// Sends a blob as it comes. Who asked is gone when its end of the connection is: then so is the fetching.
async fn send_blob(
    client: &Client,
    blob: byre_registry::Blob<'_>,
    credential: Option<&Credential>,
    stream: &mut UnixStream,
) -> Result<(), CallError> {
    let (mut reader, mut writer) = stream.split();
    writer.write_all(&framed(&FetchAnswer::Blob)?).await?;
    let (sink, mut pieces) = mpsc::channel(PIECES);
    let fetching = async {
        let result = client.blob(blob, credential, &sink).await;
        drop(sink);
        result
    };
    let sending = async {
        while let Some(piece) = pieces.recv().await {
            for piece in piece.chunks(FETCH_PIECE_BYTES) {
                let length = u32::try_from(piece.len()).unwrap_or(0).to_le_bytes();
                let sent = async {
                    writer.write_all(&length).await?;
                    writer.write_all(piece).await
                };
                tokio::time::timeout(CLIENT_TIME, sent).await.map_err(io::Error::from)??;
            }
        }
        Ok::<_, io::Error>(())
    };
    let both = async { tokio::join!(fetching, sending) };
    let (result, sent) = tokio::select! {
        both = both => both,
        () = gone(&mut reader) => return Ok(()),
    };
    sent?;
    let last = match result {
        Ok(()) => FetchAnswer::Done,
        Err(error) => refused(&error),
    };
    writer.write_all(&0_u32.to_le_bytes()).await?;
    Ok(writer.write_all(&framed(&last)?).await?)
}

/// Ends when the other side has closed; it sends nothing after its call.
async fn gone(reader: &mut tokio::net::unix::ReadHalf<'_>) {
    let mut byte = [0];
    // An error is an end as well.
    let _ = reader.read(&mut byte).await;
}

async fn read_call(stream: &mut UnixStream) -> Result<FetchCall, CallError> {
    let length = usize::try_from(stream.read_u32_le().await?).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES {
        return Err(FrameError::TooLong(length).into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(byre_protocol::frame::decode(&bytes)?)
}

impl Clients {
    fn asking(
        &self,
        repository: &str,
        credential: Option<RegistryCredential>,
        ca_pem: Option<String>,
    ) -> Result<Asking<'_>, RegistryError> {
        let reference: Reference = repository.parse().map_err(|_| RegistryError::Url(repository.to_owned()))?;
        let host = reference.domain().to_owned();
        let credential = match credential {
            None => None,
            Some(given) => Some(Credential::password(&given.username, &given.password).map_err(|error| {
                let (host, repository) = (host.clone(), reference.path().to_owned());
                RegistryError::Denied { host, repository, said: format!(": {error}") }
            })?),
        };
        let client = match ca_pem {
            None => Lent::Usual(&self.usual),
            Some(_) => {
                let mut settings = self.settings.clone();
                let entry = settings.hosts.entry(host.clone()).or_default();
                (entry.ca_pem, entry.plain_http) = (ca_pem, false);
                settings.check().map_err(|error| RegistryError::Authorities { host, why: error.to_string() })?;
                Lent::Own(Box::new(Client::new(settings)))
            }
        };
        Ok(Asking { repository: Repository::from(&reference), credential, client })
    }
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

fn refused(error: &RegistryError) -> FetchAnswer {
    let code = match fault(error) {
        SourceFault::NotFound => ImageRefusal::NotFound,
        SourceFault::Denied => ImageRefusal::Denied,
        SourceFault::Unavailable | SourceFault::Cancelled => ImageRefusal::Unavailable,
        SourceFault::Invalid => ImageRefusal::Invalid,
    };
    FetchAnswer::Refused { code, text: error.to_string() }
}

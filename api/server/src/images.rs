//! The Images service, and the image store as the rest of the API sees it.
//!
//! An archive goes straight through to `byred image`, which alone parses it. What an image reference means is remembered until an image is
//! loaded or removed, all of which pass here; so the usual start of a container asks nobody.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use byre_api::proto;
use byre_api::proto::images_server::Images;
use byre_protocol::peer::{ImageAnswer, ImageCall, ImageRecord};
use futures::Stream;
use tokio::sync::{RwLock, RwLockReadGuard, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::audit::Change;
use crate::backend::SharedBackend;
use crate::convert;
use crate::gate::Peer;
use crate::peers::{Peer as Service, PeerError};

/// References remembered; a node runs some tens of different images. When there are more, all are forgotten.
const REMEMBERED: usize = 256;
/// Progress messages that a slow client may be behind; then the load waits.
const PROGRESS_BEHIND: usize = 16;

const LOAD: Change = Change { method: "Images/Load", frees_space: false };
const REMOVE: Change = Change { method: "Images/RemoveImage", frees_space: true };
const PRUNE: Change = Change { method: "Images/PruneImages", frees_space: true };

/// The image store.
pub(crate) struct ImageStore {
    socket: PathBuf,
    remembered: Mutex<HashMap<String, Arc<ImageRecord>>>,
    /// Held for reading from resolving an image until PID 1 has made the container, for writing while images are removed: so an image
    /// cannot go between the two.
    removal: RwLock<()>,
}

impl ImageStore {
    /// The store behind this socket.
    #[must_use]
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, remembered: Mutex::default(), removal: RwLock::default() }
    }

    /// Keeps images from being removed while the guard lives.
    pub(crate) async fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.removal.read().await
    }

    /// The image that a reference means.
    ///
    /// # Errors
    /// The store's refusal.
    pub(crate) async fn resolve(&self, reference: &str) -> Result<Arc<ImageRecord>, Status> {
        if let Some(record) = self.remembered().get(reference) {
            return Ok(Arc::clone(record));
        }
        let mut service = Service::call(&self.socket, &ImageCall::Resolve { reference: reference.to_owned() }).await?;
        let record = match service.answer().await? {
            ImageAnswer::Image(record) => Arc::from(record),
            ImageAnswer::Refused { code, text } => return Err(convert::image_refused(code, text)),
            ImageAnswer::Progress { .. }
            | ImageAnswer::Images(_)
            | ImageAnswer::Removed { .. }
            | ImageAnswer::Layers(_)
            | ImageAnswer::Pulled { .. }
            | ImageAnswer::Verified(_) => return Err(unexpected()),
        };
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(reference.to_owned(), Arc::clone(&record));
        Ok(record)
    }

    /// Where the store listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<ImageRecord>>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what references mean, after images have changed.
    pub(crate) fn forget(&self) {
        self.remembered().clear();
    }

    async fn list(&self) -> Result<Vec<ImageRecord>, Status> {
        let mut service = Service::call(&self.socket, &ImageCall::List).await?;
        let mut images = Vec::new();
        // A long list comes in several frames.
        while let Some(answer) = service.next().await? {
            match answer {
                ImageAnswer::Images(more) => images.extend(more),
                ImageAnswer::Refused { code, text } => return Err(convert::image_refused(code, text)),
                ImageAnswer::Progress { .. }
                | ImageAnswer::Image(_)
                | ImageAnswer::Removed { .. }
                | ImageAnswer::Layers(_)
                | ImageAnswer::Pulled { .. }
                | ImageAnswer::Verified(_) => return Err(unexpected()),
            }
        }
        Ok(images)
    }

    async fn remove(&self, call: &ImageCall) -> Result<(Vec<String>, u64), Status> {
        let mut service = Service::call(&self.socket, call).await?;
        match service.answer().await? {
            ImageAnswer::Removed { what, bytes } => Ok((what, bytes)),
            ImageAnswer::Refused { code, text } => Err(convert::image_refused(code, text)),
            ImageAnswer::Progress { .. }
            | ImageAnswer::Image(_)
            | ImageAnswer::Images(_)
            | ImageAnswer::Layers(_)
            | ImageAnswer::Pulled { .. }
            | ImageAnswer::Verified(_) => Err(unexpected()),
        }
    }
}

pub(crate) fn unexpected() -> Status {
    Status::internal("the image service gave an answer of another kind than asked for; reboot the node")
}

/// The service.
pub(crate) struct ImagesService(pub SharedBackend);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Images for ImagesService {
    type LoadStream = Answers<proto::LoadResponse>;

    async fn load(
        &self,
        request: Request<Streaming<proto::LoadRequest>>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        let mut archive = request.into_inner();
        let first = archive.message().await?.and_then(|message| message.message);
        let Some(proto::load_request::Message::Start(start)) = first else {
            return Err(Status::invalid_argument("the first message of a load must be its start"));
        };
        let name = Some(start.name).filter(|name| !name.is_empty());
        let entry = self.0.audit.asked(&peer, LOAD, name.as_deref().unwrap_or("(names of the archive)"))?;
        let (answers, stream) = mpsc::channel(PROGRESS_BEHIND);
        let backend = Arc::clone(&self.0);
        tokio::spawn(async move {
            let result = tokio::select! {
                result = load(&backend.images, name, archive, &answers) => result,
                () = answers.closed() => Err(Status::cancelled("the client went away")),
            };
            backend.images.forget();
            let last = entry
                .done(result)
                .await
                .map(|image| proto::LoadResponse { message: Some(proto::load_response::Message::Image(image)) });
            let _ = answers.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_images(
        &self,
        _request: Request<proto::ListImagesRequest>,
    ) -> Result<Response<proto::ListImagesResponse>, Status> {
        let images = self.0.images.list().await?.into_iter().map(convert::image).collect();
        Ok(Response::new(proto::ListImagesResponse { images }))
    }

    async fn inspect_image(
        &self,
        request: Request<proto::InspectImageRequest>,
    ) -> Result<Response<proto::InspectImageResponse>, Status> {
        let record = self.0.images.resolve(&request.get_ref().image).await?;
        let image = Some(convert::image(record.as_ref().clone()));
        Ok(Response::new(proto::InspectImageResponse { image }))
    }

    async fn remove_image(
        &self,
        request: Request<proto::RemoveImageRequest>,
    ) -> Result<Response<proto::RemoveImageResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let reference = request.into_inner().image;
        let entry = self.0.audit.asked(&peer, REMOVE, &reference)?;
        let remove = async {
            let _alone = self.0.images.removal.write().await;
            let in_use = self.0.images_in_use().await?;
            let removed = self.0.images.remove(&ImageCall::Remove { reference: reference.clone(), in_use }).await;
            self.0.images.forget();
            self.0.release_layers().await;
            match removed {
                Err(status) if status.code() == Code::FailedPrecondition => {
                    Err(self.0.with_users(&reference, status).await)
                }
                other => other,
            }
        };
        let (removed, freed_bytes) = entry.done(remove.await).await?;
        Ok(Response::new(proto::RemoveImageResponse { removed, freed_bytes }))
    }

    async fn prune_images(
        &self,
        request: Request<proto::PruneImagesRequest>,
    ) -> Result<Response<proto::PruneImagesResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let all = request.into_inner().all;
        let entry = self.0.audit.asked(&peer, PRUNE, if all { "all unused" } else { "unnamed" })?;
        let prune = async {
            let _alone = self.0.images.removal.write().await;
            let in_use = self.0.images_in_use().await?;
            let removed = self.0.images.remove(&ImageCall::Prune { in_use, all }).await;
            self.0.images.forget();
            self.0.release_layers().await;
            removed
        };
        let (removed, freed_bytes) = entry.done(prune.await).await?;
        Ok(Response::new(proto::PruneImagesResponse { removed, freed_bytes }))
    }
}

/// Passes the archive on and the progress back, until the image is there. The store undoes what is half done when the connection ends early.
async fn load(
    store: &ImageStore,
    name: Option<String>,
    mut archive: Streaming<proto::LoadRequest>,
    answers: &mpsc::Sender<Result<proto::LoadResponse, Status>>,
) -> Result<proto::Image, Status> {
    let (mut reader, mut writer) = Service::call(&store.socket, &ImageCall::Load { name }).await?.split();
    let mut sending = Box::pin(async move {
        while let Some(message) = archive.message().await? {
            match message.message {
                Some(proto::load_request::Message::Archive(bytes)) => match writer.write(&bytes).await {
                    Ok(()) => {}
                    // The store has seen enough; its answer says why.
                    Err(PeerError::Broken(..)) => return Ok(()),
                    Err(error @ (PeerError::Unreachable(..) | PeerError::Malformed(..))) => return Err(error.into()),
                },
                Some(proto::load_request::Message::Start(_)) | None => {
                    return Err(Status::invalid_argument("a load has one start, and then pieces of the archive"));
                }
            }
        }
        Ok::<(), Status>(())
    });
    let mut all_sent = false;
    loop {
        let answer = tokio::select! {
            // An error of the client drops the writer with the reader: the store sees a connection that ended without its end mark.
            sent = &mut sending, if !all_sent => { sent?; all_sent = true; continue; }
            answer = reader.next::<ImageAnswer>() => answer?,
        };
        match answer {
            Some(ImageAnswer::Progress { step, bytes }) => {
                let progress = proto::load_response::Message::Progress(proto::LoadProgress { step, bytes });
                let _ = answers.send(Ok(proto::LoadResponse { message: Some(progress) })).await;
            }
            Some(ImageAnswer::Image(record)) => return Ok(convert::image(*record)),
            Some(ImageAnswer::Refused { code, text }) => return Err(convert::image_refused(code, text)),
            Some(
                ImageAnswer::Images(_)
                | ImageAnswer::Removed { .. }
                | ImageAnswer::Layers(_)
                | ImageAnswer::Pulled { .. }
                | ImageAnswer::Verified(_),
            ) => return Err(unexpected()),
            None => return Err(Status::unavailable("the image service ended in the middle of the load; try again")),
        }
    }
}

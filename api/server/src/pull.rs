//! Pulls: from the API to the image store and back, with progress.
//!
//! Nothing of a registry is read here, and a credential passes through once, in memory, and is named in no log. [`ImageStore::pull`] is
//! the one way; every service of this process that brings images uses it.

use std::pin::Pin;
use std::sync::Arc;

use byre_api::proto;
use byre_api::proto::image_transfers_server::ImageTransfers;
use byre_protocol::peer::{
    ImageAnswer, ImageCall, ImageRecord, LayerStatus, LayerStep, LayerVerified, RegistryCredential,
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::audit::Change;
use crate::backend::SharedBackend;
use crate::convert;
use crate::gate::Peer;
use crate::images::{ImageStore, unexpected};
use crate::peers::Peer as Service;

/// Progress messages that a slow client may be behind; older ones are dropped for newer ones.
const PROGRESS_BEHIND: usize = 4;
/// Longest user name or password, as the registry client has it.
const MAX_SECRET_LEN: usize = 8 << 10;
/// Longest list of authorities: some certificates. It goes in one message to the image service.
const MAX_CA_LEN: usize = 32 << 10;

const TAG: Change = Change { method: "ImageTransfers/Tag", frees_space: false };
const UNTAG: Change = Change { method: "ImageTransfers/Untag", frees_space: false };
const PULL: Change = Change { method: "ImageTransfers/Pull", frees_space: false };

/// What is to be pulled.
pub(crate) struct Wanted {
    /// A name, or a name with a digest.
    pub image: String,
    /// What the registry is shown; without it, what the node's configuration has for it.
    pub credential: Option<RegistryCredential>,
    /// Authorities of the registry, PEM, instead of those of the node's configuration.
    pub ca_pem: Option<String>,
}

/// An image that was pulled.
pub(crate) struct Pulled {
    /// The image.
    pub image: Box<ImageRecord>,
    /// The name it was asked for by, with the digest that the registry answered with.
    pub reference: String,
    /// Layers that came; the others were here.
    pub new_layers: u32,
}

impl ImageStore {
    /// Brings an image from its registry. `progress` gets the state of its layers now and then. The pull ends when this is dropped.
    ///
    /// # Errors
    /// The refusal of the registry or of the store, as a status.
    pub(crate) async fn pull(
        &self,
        wanted: Wanted,
        progress: &mut (dyn FnMut(Vec<LayerStatus>) + Send),
    ) -> Result<Pulled, Status> {
        let Wanted { image, credential, ca_pem } = wanted;
        if ca_pem.as_ref().is_some_and(|pem| pem.len() > MAX_CA_LEN) {
            return Err(Status::invalid_argument(format!("the authorities are longer than {MAX_CA_LEN} bytes")));
        }
        if let Some(given) = &credential
            && (given.username.len() > MAX_SECRET_LEN || given.password.len() > MAX_SECRET_LEN)
        {
            return Err(Status::invalid_argument(format!(
                "a user name or password is longer than {MAX_SECRET_LEN} bytes"
            )));
        }
        let call = ImageCall::Pull { reference: image, credential, ca_pem };
        let mut service = Service::call(self.socket(), &call).await?;
        let result = loop {
            match service.next().await? {
                Some(ImageAnswer::Layers(layers)) => progress(layers),
                Some(ImageAnswer::Pulled { image, reference, new_layers }) => {
                    break Ok(Pulled { image, reference, new_layers });
                }
                Some(ImageAnswer::Refused { code, text }) => break Err(convert::image_refused(code, text)),
                Some(
                    ImageAnswer::Progress { .. }
                    | ImageAnswer::Image(_)
                    | ImageAnswer::Images(_)
                    | ImageAnswer::Removed { .. }
                    | ImageAnswer::Verified(_),
                ) => break Err(unexpected()),
                None => break Err(Status::unavailable("the image service ended in the middle of the pull; try again")),
            }
        };
        // A name may lead to another image now.
        self.forget();
        result
    }
}

impl ImageStore {
    /// Changes the names of an image; gives it as it is then.
    async fn rename(&self, call: &ImageCall) -> Result<Box<ImageRecord>, Status> {
        let mut service = Service::call(self.socket(), call).await?;
        let answer = service.answer().await?;
        self.forget();
        match answer {
            ImageAnswer::Image(image) => Ok(image),
            ImageAnswer::Refused { code, text } => Err(convert::image_refused(code, text)),
            ImageAnswer::Progress { .. }
            | ImageAnswer::Images(_)
            | ImageAnswer::Removed { .. }
            | ImageAnswer::Layers(_)
            | ImageAnswer::Pulled { .. }
            | ImageAnswer::Verified(_) => Err(unexpected()),
        }
    }

    async fn verify(&self, reference: String) -> Result<Vec<LayerVerified>, Status> {
        let mut service = Service::call(self.socket(), &ImageCall::Verify { reference }).await?;
        loop {
            match service.answer().await? {
                ImageAnswer::Progress { .. } => {}
                ImageAnswer::Verified(layers) => return Ok(layers),
                ImageAnswer::Refused { code, text } => return Err(convert::image_refused(code, text)),
                ImageAnswer::Image(_)
                | ImageAnswer::Images(_)
                | ImageAnswer::Removed { .. }
                | ImageAnswer::Layers(_)
                | ImageAnswer::Pulled { .. } => return Err(unexpected()),
            }
        }
    }
}

/// The service.
pub(crate) struct ImageTransfersService(pub SharedBackend);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ImageTransfers for ImageTransfersService {
    type PullStream = Answers<proto::PullResponse>;

    async fn pull(&self, request: Request<proto::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        let proto::PullRequest { image, credential, ca_pem } = request.into_inner();
        let credential =
            credential.map(|given| RegistryCredential { username: given.username, password: given.password });
        let ca_pem = Some(ca_pem).filter(|pem| !pem.is_empty());
        let entry = self.0.audit.asked(&peer, PULL, &image)?;
        let wanted = Wanted { image, credential, ca_pem };
        let (answers, stream) = mpsc::channel(PROGRESS_BEHIND);
        let backend = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut progress = |layers: Vec<LayerStatus>| {
                // One that a slow client has no room for is followed by a newer one.
                let _ = answers.try_send(Ok(message(proto::pull_response::Message::Progress(shown(&layers)))));
            };
            let result = tokio::select! {
                result = backend.images.pull(wanted, &mut progress) => result,
                () = answers.closed() => Err(Status::cancelled("the client went away")),
            };
            let last = entry.done(result).await.map(|pulled| {
                message(proto::pull_response::Message::Image(proto::PulledImage {
                    image: Some(convert::image(*pulled.image)),
                    reference: pulled.reference,
                    new_layers: pulled.new_layers,
                }))
            });
            let _ = answers.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn tag(&self, request: Request<proto::TagRequest>) -> Result<Response<proto::TagResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let proto::TagRequest { image, name } = request.into_inner();
        let entry = self.0.audit.asked(&peer, TAG, &format!("{image} as {name}"))?;
        let result = self.0.images.rename(&ImageCall::Tag { reference: image, name }).await;
        let image = Some(convert::image(*entry.done(result).await?));
        Ok(Response::new(proto::TagResponse { image }))
    }

    async fn untag(&self, request: Request<proto::UntagRequest>) -> Result<Response<proto::UntagResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let name = request.into_inner().name;
        let entry = self.0.audit.asked(&peer, UNTAG, &name)?;
        let result = self.0.images.rename(&ImageCall::Untag { name }).await;
        let image = Some(convert::image(*entry.done(result).await?));
        Ok(Response::new(proto::UntagResponse { image }))
    }

    async fn verify(&self, request: Request<proto::VerifyRequest>) -> Result<Response<proto::VerifyResponse>, Status> {
        let layers = self.0.images.verify(request.into_inner().image).await?;
        let layer = |layer: LayerVerified| proto::VerifiedLayer {
            layer: format!("sha256:{}", layer.layer),
            bytes: layer.bytes,
            good: layer.good,
            text: layer.text,
        };
        Ok(Response::new(proto::VerifyResponse { layers: layers.into_iter().map(layer).collect() }))
    }
}

fn message(message: proto::pull_response::Message) -> proto::PullResponse {
    proto::PullResponse { message: Some(message) }
}

fn shown(layers: &[LayerStatus]) -> proto::PullProgress {
    let layer = |layer: &LayerStatus| proto::PullLayer {
        digest: format!("sha256:{}", layer.blob),
        step: match layer.step {
            LayerStep::Waiting => proto::PullStep::Waiting,
            LayerStep::Fetching => proto::PullStep::Fetching,
            LayerStep::Joined => proto::PullStep::Joined,
            LayerStep::Kept => proto::PullStep::Kept,
            LayerStep::Done => proto::PullStep::Done,
        }
        .into(),
        done: layer.done,
        total: layer.total,
    };
    proto::PullProgress { layers: layers.iter().map(layer).collect() }
}

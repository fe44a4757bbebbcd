//! The image service's end of the calls about images, and what those calls must do.

use super::*;
use byre_api::proto::image_transfers_client::ImageTransfersClient;
use byre_protocol::peer::{LayerStatus, LayerStep};

pub(crate) fn image() -> ImageRecord {
    ImageRecord {
        id: "sha256:11".into(),
        names: vec!["web:latest".into()],
        manifest_digest: None,
        layers: Vec::new(),
        size_bytes: 5,
        created_wall_ms: 0,
        config_json: r#"{"config":{"Cmd":["sh"]}}"#.into(),
        origins: Vec::new(),
        accepted: true,
        verdict: String::new(),
    }
}

/// The image service's end: takes what it is given for an image of that size.
pub(crate) fn image_service(listener: &UnixListener, resolved: &AtomicUsize) {
    while let Ok((mut client, _)) = listener.accept() {
        match hear(&mut client) {
            ImageCall::Load { .. } => {
                let mut archive = Vec::new();
                client.read_to_end(&mut archive).unwrap();
                if archive.starts_with(b"bad") {
                    let code = byre_protocol::peer::ImageRefusal::Invalid;
                    say(&mut client, &ImageAnswer::Refused { code, text: "archive is corrupt".into() });
                    continue;
                }
                let bytes = u64::try_from(archive.len()).unwrap();
                say(&mut client, &ImageAnswer::Progress { step: "layer 1 of 1".into(), bytes });
                say(&mut client, &ImageAnswer::Image(Box::new(ImageRecord { size_bytes: bytes, ..image() })));
            }
            ImageCall::Resolve { .. } => {
                resolved.fetch_add(1, Ordering::SeqCst);
                say(&mut client, &ImageAnswer::Image(Box::new(image())));
            }
            ImageCall::List => say(&mut client, &ImageAnswer::Images(vec![image()])),
            ImageCall::Pull { reference, credential, .. } => {
                if credential.is_none_or(|given| given.password != "sesame") {
                    let code = byre_protocol::peer::ImageRefusal::Denied;
                    say(&mut client, &ImageAnswer::Refused { code, text: "no entry".into() });
                    continue;
                }
                let layer =
                    LayerStatus { blob: byre_plan::Digest([7; 32]), step: LayerStep::Fetching, done: 1, total: 9 };
                say(&mut client, &ImageAnswer::Layers(vec![layer]));
                say(&mut client, &ImageAnswer::Pulled { image: Box::new(image()), reference, new_layers: 1 });
            }
            ImageCall::Tag { .. } | ImageCall::Untag { .. } => {
                say(&mut client, &ImageAnswer::Image(Box::new(image())));
            }
            ImageCall::Verify { .. } => say(&mut client, &ImageAnswer::Verified(Vec::new())),
            ImageCall::Remove { .. } | ImageCall::Prune { .. } => {
                say(&mut client, &ImageAnswer::Removed { what: vec!["web:latest".into()], bytes: 5 });
            }
        }
    }
}

fn load(bytes: Vec<u8>) -> impl futures::Stream<Item = proto::LoadRequest> {
    use proto::load_request::Message;
    let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Message::Archive(piece.to_vec().into())).collect();
    let all = std::iter::once(Message::Start(proto::LoadStart::default())).chain(pieces);
    tokio_stream::iter(all.map(|message| proto::LoadRequest { message: Some(message) }).collect::<Vec<_>>())
}

#[tokio::test]
async fn an_archive_goes_to_the_image_service_whole_with_progress() {
    use proto::load_response::Message;
    let node = node().await;
    let mut images = ImagesClient::new(node.channel.clone());
    let mut answers = images.load(load(vec![1; 5_000_000])).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap().message.unwrap();
    assert!(matches!(first, Message::Progress(progress) if progress.bytes == 5_000_000));
    let last = answers.message().await.unwrap().unwrap().message.unwrap();
    assert!(matches!(last, Message::Image(image) if image.size_bytes == 5_000_000));
    let mut answers = images.load(load(b"bad".to_vec())).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_pull_has_progress_and_then_the_image_and_forgets_what_names_meant() {
    use proto::pull_response::Message;
    let node = node().await;
    let mut transfers = ImageTransfersClient::new(node.channel.clone());
    let credential = |password: &str| proto::RegistryCredential { username: "me".into(), password: password.into() };
    let ask = |password: &str| proto::PullRequest {
        image: "r.example/web:1".into(),
        credential: Some(credential(password)),
        ca_pem: String::new(),
    };
    let create = proto::CreateRequest {
        spec: Some(proto::ContainerSpec { image: "web".into(), ..Default::default() }),
        start: true,
    };
    node.workloads().create(create.clone()).await.unwrap();
    let mut answers = transfers.pull(ask("sesame")).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap().message.unwrap();
    let Message::Progress(progress) = first else { panic!("{first:?}") };
    assert_eq!((progress.layers[0].step(), progress.layers[0].total), (proto::PullStep::Fetching, 9));
    let last = answers.message().await.unwrap().unwrap().message.unwrap();
    assert!(matches!(last, Message::Image(image) if image.reference == "r.example/web:1" && image.new_layers == 1));
    node.workloads().create(create).await.unwrap();
    assert_eq!(node.resolved.load(Ordering::SeqCst), 2);
    let mut answers = transfers.pull(ask("wrong")).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::PermissionDenied);
}

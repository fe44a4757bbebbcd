//! Images: loading archives with a progress bar, listing, inspecting, removing.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use byre_api::proto::{
    Image, InspectImageRequest, ListImagesRequest, LoadRequest, LoadStart, PruneImagesRequest, RemoveImageRequest,
    load_request, load_response,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::{each, now};
use crate::args::{ImageLsArgs, ImageNames, LoadArgs, PruneArgs};
use crate::connect::Node;
use crate::error::Failure;
use crate::json;
use crate::output::Output;
use crate::stdio::{QUEUE, pieces};
use crate::text::{self, printable, short_id, size};

pub(super) async fn load(node: &Node, output: &Output, args: &LoadArgs) -> Result<(), Failure> {
    let (file, bytes) = open(args.file.as_deref().or(args.input.as_deref()))?;
    let progress = bar(bytes, args.quiet || output.json());
    let (mut archive, read_end) = pieces("archive", file)?;
    let (requests, receiver) = mpsc::channel(QUEUE);
    let sent = progress.clone();
    let start = LoadStart { name: args.name.clone() };
    let (broken, sender_end) = oneshot::channel();
    tokio::spawn(async move {
        let message = |message| LoadRequest { message: Some(message) };
        if requests.send(message(load_request::Message::Start(start))).await.is_err() {
            return;
        }
        while let Some(bytes) = archive.recv().await {
            let length = bytes.len() as u64;
            if requests.send(message(load_request::Message::Archive(bytes.into()))).await.is_err() {
                return;
            }
            sent.inc(length);
        }
        if let Ok(Err(error)) = read_end.await {
            // The stream must break, not end: a part of an archive is not an archive. Who waits for it gets the reason.
            if broken.send(error).is_ok() {
                std::future::pending::<()>().await;
            }
        }
    });
    let image = tokio::select! {
        image = loaded(node, receiver, &progress) => image,
        Ok(error) = sender_end => Err(Failure::io("cannot read the archive", &error)),
    };
    progress.finish_and_clear();
    let image = image?;
    match (output.json(), args.quiet) {
        (true, _) => output.document(&json::image(&image)),
        (false, true) => output.line(&printable(&image.id)),
        (false, false) => {
            let names = if image.names.is_empty() { image.id.clone() } else { image.names.join(", ") };
            output.line(&format!("Loaded image: {}", printable(&names)))
        }
    }
}

async fn loaded(node: &Node, requests: mpsc::Receiver<LoadRequest>, progress: &ProgressBar) -> Result<Image, Failure> {
    let mut answers = node.images().load(ReceiverStream::new(requests)).await?.into_inner();
    let mut image = None;
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(load_response::Message::Progress(step)) => {
                progress.set_message(format!("{} {}", printable(&step.step), size(step.bytes)));
            }
            Some(load_response::Message::Image(loaded)) => image = Some(loaded),
            None => {}
        }
    }
    image.ok_or_else(|| {
        Failure::failed("the node ended the load without an image", "see its log with `byrectl services logs`")
    })
}

/// The archive and, if it is a file, its size.
fn open(path: Option<&Path>) -> Result<(File, Option<u64>), Failure> {
    match path.filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            let shown = format!("cannot read {}", path.display());
            let failed = |error: std::io::Error| Failure::io(&shown, &error);
            let file = File::open(path).map_err(failed)?;
            let metadata = file.metadata().map_err(failed)?;
            if metadata.is_dir() {
                return Err(Failure::failed(
                    format!("{} is a directory", path.display()),
                    "give an archive, or pipe one: tar -c . | byrectl image load",
                ));
            }
            Ok((file, metadata.is_file().then_some(metadata.len())))
        }
        None if std::io::stdin().is_terminal() => {
            Err(Failure::usage("no archive is given, and stdin is a terminal", "name a file, or pipe an archive in"))
        }
        None => {
            let stdin = std::io::stdin().as_fd().try_clone_to_owned();
            Ok((File::from(stdin.map_err(|error| Failure::io("cannot read stdin", &error))?), None))
        }
    }
}

/// On stderr, and only where a person looks.
fn bar(bytes: Option<u64>, hidden: bool) -> ProgressBar {
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let template = match bytes {
        Some(_) => "[{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {wide_msg}",
        None => "{spinner} {bytes} {binary_bytes_per_sec} {wide_msg}",
    };
    let bar = ProgressBar::with_draw_target(bytes, target);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

pub(super) async fn list(node: &Node, output: &Output, args: &ImageLsArgs) -> Result<(), Failure> {
    let mut images = node.images().list_images(ListImagesRequest {}).await?.into_inner().images;
    images.sort_by_key(|image| std::cmp::Reverse(image.created.map(|at| (at.seconds, at.nanos))));
    let id = |image: &Image| if args.no_trunc { printable(&image.id) } else { short_id(&image.id) };
    if args.quiet {
        return images.iter().try_for_each(|image| output.line(&id(image)));
    }
    let now = now();
    let mut rows = Vec::new();
    for image in &images {
        // An image with two names is two rows, as with docker.
        let names = if image.names.is_empty() { vec!["<none>".to_owned()] } else { image.names.clone() };
        for name in names {
            let (name, tag) = split_tag(&name);
            rows.push(vec![name, tag, id(image), text::ago(image.created.as_ref(), now), size(image.size_bytes)]);
        }
    }
    let header = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    output.rows(&header, &rows, images.iter().map(json::image).collect())
}

/// `host:5000/name:tag` into name and tag: a `:` before the last `/` is a port.
fn split_tag(name: &str) -> (String, String) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name.into(), tag.into()),
        Some(_) | None => (name.into(), "<none>".into()),
    }
}

pub(super) async fn inspect(node: &Node, output: &Output, args: &ImageNames) -> Result<(), Failure> {
    let mut found = Vec::new();
    let result = each(&args.images, async |name| {
        let answer = node.images().inspect_image(InspectImageRequest { image: name.into() }).await?.into_inner();
        found.extend(answer.image.as_ref().map(json::image));
        Ok(())
    })
    .await;
    output.document(&Value::Array(found))?;
    result
}

pub(super) async fn remove(node: &Node, output: &Output, args: &ImageNames) -> Result<(), Failure> {
    each(&args.images, async |name| {
        let answer = node.images().remove_image(RemoveImageRequest { image: name.into() }).await?.into_inner();
        freed(output, &answer.removed, answer.freed_bytes)
    })
    .await
}

pub(super) async fn prune(node: &Node, output: &Output, args: &PruneArgs) -> Result<(), Failure> {
    let answer = node.images().prune_images(PruneImagesRequest { all: args.all }).await?.into_inner();
    freed(output, &answer.removed, answer.freed_bytes)
}

fn freed(output: &Output, removed: &[String], bytes: u64) -> Result<(), Failure> {
    if output.json() {
        return output.json_line(&json!({"removed": removed, "freed_bytes": bytes}));
    }
    removed.iter().try_for_each(|name| output.line(&format!("Removed: {}", printable(name))))?;
    output.line(&format!("Freed: {}", size(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(split_tag("nginx:1.25"), ("nginx".into(), "1.25".into()));
        assert_eq!(split_tag("localhost:5000/nginx"), ("localhost:5000/nginx".into(), "<none>".into()));
        assert_eq!(split_tag("localhost:5000/nginx:1"), ("localhost:5000/nginx".into(), "1".into()));
        assert_eq!(split_tag("<none>"), ("<none>".into(), "<none>".into()));
    }
}

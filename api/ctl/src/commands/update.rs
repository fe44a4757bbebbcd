//! Updates of the OS: checking, applying with a progress bar, going back, and what was done before.

use std::fs::File;
use std::path::Path;

use byre_api::proto::{
    ApplyBundleStart, ApplyUpdateBundleRequest, ApplyUpdateRequest, ApplyUpdateResponse, CancelUpdateRequest,
    CheckUpdateRequest, GetUpdateHistoryRequest, GetUpdateStatusRequest, OsRelease, RollbackUpdateRequest, UpdateEvent,
    UpdateEventKind, UpdateOptions, UpdatePhase, UpdateStatus, apply_update_bundle_request, apply_update_response,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::now;
use crate::args_update::{ApplyArgs, UpdateCommand};
use crate::connect::Node;
use crate::error::Failure;
use crate::output::Output;
use crate::stdio::{QUEUE, pieces};
use crate::text::{self, printable, size};

pub(super) async fn update(node: &Node, output: &Output, command: &UpdateCommand) -> Result<(), Failure> {
    match command {
        UpdateCommand::Check => {
            let status = node.updates().check_update(CheckUpdateRequest {}).await?.into_inner();
            if output.json() {
                return output.document(&status_json(&status));
            }
            match &status.available {
                Some(release) => output.line(&format!("Available: {}", name(release))),
                None => output.line(&format!("{} is the newest release", running(&status))),
            }
        }
        UpdateCommand::Apply(args) => apply(node, output, args).await,
        UpdateCommand::Status => {
            let status = node.updates().get_update_status(GetUpdateStatusRequest {}).await?.into_inner();
            if output.json() {
                return output.document(&status_json(&status));
            }
            describe(&status)
                .iter()
                .try_for_each(|(name, value)| output.line(&format!("{name:<12} {}", printable(value))))
        }
        UpdateCommand::Cancel => {
            node.updates().cancel_update(CancelUpdateRequest {}).await?;
            said(output, "cancelled; what was written stays, and the next apply goes on with it")
        }
        UpdateCommand::Rollback(args) => {
            let request = RollbackUpdateRequest { reboot: args.reboot };
            let answer = node.updates().rollback_update(request).await?.into_inner();
            said(output, &answer.done)
        }
        UpdateCommand::History => history(node, output).await,
    }
}

fn said(output: &Output, done: &str) -> Result<(), Failure> {
    if output.json() { output.document(&json!({"done": done})) } else { output.line(&printable(done)) }
}

async fn apply(node: &Node, output: &Output, args: &ApplyArgs) -> Result<(), Failure> {
    let options =
        UpdateOptions { allow_downgrade: args.allow_downgrade, retry: args.retry, reboot: args.reboot.reboot };
    let answers = match &args.bundle {
        None => node.updates().apply_update(ApplyUpdateRequest { options: Some(options) }).await?.into_inner(),
        Some(path) => {
            let requests = bundle(path, ApplyBundleStart { options: Some(options), offline: args.offline })?;
            node.updates().apply_update_bundle(ReceiverStream::new(requests)).await?.into_inner()
        }
    };
    let progress = bar(output.json());
    let done = follow(answers, &progress).await;
    progress.finish_and_clear();
    said(output, &done?)
}

async fn follow(mut answers: Streaming<ApplyUpdateResponse>, progress: &ProgressBar) -> Result<String, Failure> {
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(apply_update_response::Message::Status(status)) => {
                if status.total_bytes > 0 {
                    progress.set_length(status.total_bytes);
                    progress.set_position(status.done_bytes);
                }
                let what = status.release.as_ref().map_or_else(String::new, name);
                progress.set_message(format!("{} {}", phase(&status), printable(&what)));
            }
            Some(apply_update_response::Message::Done(done)) => return Ok(done),
            None => {}
        }
    }
    Err(Failure::failed("the node ended the update without a result", "see how far it is with `byrectl update status`"))
}

/// Sends a bundle in pieces. One that cannot be read to its end is cut off, and the node says so.
fn bundle(path: &Path, start: ApplyBundleStart) -> Result<mpsc::Receiver<ApplyUpdateBundleRequest>, Failure> {
    let shown = format!("cannot read {}", path.display());
    let file = File::open(path).map_err(|error| Failure::io(&shown, &error))?;
    let (mut bytes, _end) = pieces("bundle", file)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let message = |message| ApplyUpdateBundleRequest { message: Some(message) };
        if sender.send(message(apply_update_bundle_request::Message::Start(start))).await.is_err() {
            return;
        }
        while let Some(piece) = bytes.recv().await {
            if sender.send(message(apply_update_bundle_request::Message::Bundle(piece.into()))).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// On stderr, and only where a person looks.
fn bar(hidden: bool) -> ProgressBar {
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(None, target);
    match ProgressStyle::with_template("[{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {wide_msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn name(release: &OsRelease) -> String {
    format!("{} ({})", release.version, release.install)
}

fn running(status: &UpdateStatus) -> String {
    status.running.as_ref().map_or_else(String::new, |release| printable(&name(release)))
}

fn phase(status: &UpdateStatus) -> &'static str {
    match status.phase() {
        UpdatePhase::Unspecified => "unknown",
        UpdatePhase::Idle => "idle",
        UpdatePhase::Checking => "checking",
        UpdatePhase::Writing => "writing",
        UpdatePhase::Verifying => "verifying",
        UpdatePhase::Written => "written",
        UpdatePhase::Armed => "armed",
        UpdatePhase::Interrupted => "interrupted",
    }
}

fn describe(status: &UpdateStatus) -> Vec<(&'static str, String)> {
    let release = |release: &Option<OsRelease>| release.as_ref().map(name).unwrap_or_default();
    let blessed = if status.blessed { "" } else { ", not blessed yet" };
    let mut state = format!("{} {}", phase(status), release(&status.release));
    if status.total_bytes > 0 {
        state = format!("{state}, {} of {}", size(status.done_bytes), size(status.total_bytes));
    }
    let lines = [
        ("Running", format!("{}{blessed}", release(&status.running))),
        ("State", state.trim_end().to_owned()),
        ("Available", release(&status.available)),
        ("Repository", status.repository.clone()),
        ("Channel", status.channel.clone()),
        ("Checked", status.checked.as_ref().map_or_else(String::new, |at| text::ago(Some(at), now()))),
        ("Waiting for", status.waiting.clone()),
        ("Last error", status.last_error.clone()),
    ];
    lines.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

fn release_json(release: Option<&OsRelease>) -> Value {
    release.map_or(Value::Null, |release| json!({"version": release.version, "install": release.install}))
}

fn status_json(status: &UpdateStatus) -> Value {
    json!({
        "running": release_json(status.running.as_ref()),
        "blessed": status.blessed,
        "state": phase(status),
        "release": release_json(status.release.as_ref()),
        "done_bytes": status.done_bytes,
        "total_bytes": status.total_bytes,
        "available": release_json(status.available.as_ref()),
        "repository": status.repository,
        "channel": status.channel,
        "waiting": status.waiting,
        "last_error": status.last_error,
        "checked": status.checked.as_ref().map(|at| at.seconds),
    })
}

fn kind(event: &UpdateEvent) -> &'static str {
    match event.kind() {
        UpdateEventKind::Unspecified => "unknown",
        UpdateEventKind::Begun => "begun",
        UpdateEventKind::Interrupted => "interrupted",
        UpdateEventKind::Armed => "armed",
        UpdateEventKind::Good => "good",
        UpdateEventKind::FellBack => "fell back",
        UpdateEventKind::RolledBack => "rolled back",
    }
}

async fn history(node: &Node, output: &Output) -> Result<(), Failure> {
    let events = node.updates().get_update_history(GetUpdateHistoryRequest {}).await?.into_inner().events;
    let now = now();
    let rows: Vec<_> = events
        .iter()
        .map(|event| {
            let release = event.release.as_ref().map_or_else(String::new, name);
            let when = text::ago(event.at.as_ref(), now);
            vec![when, printable(&release), kind(event).to_owned(), printable(&event.text)]
        })
        .collect();
    let documents = events.iter().map(|event| {
        let at = event.at.as_ref().map(|at| at.seconds);
        json!({"at": at, "release": release_json(event.release.as_ref()), "what": kind(event), "text": event.text})
    });
    output.rows(&["WHEN", "RELEASE", "WHAT", "WHY"], &rows, documents.collect())
}

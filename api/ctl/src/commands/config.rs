//! The machine's configuration: showing it, changing it, and making sure that the node can still be reached afterwards.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use byre_api::proto::{
    ApplyConfigRequest, CompareConfigRequest, ConfigGeneration, ConfigPlan, ConfigStanding, ConfirmConfigRequest,
    GetConfigRequest, GetConfigSchemaRequest, ListConfigRequest, PlanConfigRequest, UndoConfigRequest,
};
use serde_json::{Value, json};
use tonic::Code;

use super::now;
use crate::args_config::{ConfigApplyArgs, ConfigCommand, ConfigDiffArgs};
use crate::connect::Node;
use crate::error::Failure;
use crate::output::{Output, Tone, complain};
use crate::text::{ago, printable, rfc3339, span};

/// A node takes 64 KiB; one more byte lets it say so.
const DOCUMENT_BYTES: u64 = 64 * 1024 + 1;
/// Pause between two tries to confirm: a service restarts in a fraction of a second.
const AGAIN: Duration = Duration::from_millis(300);
/// Digits of a hash that people are shown.
const HASH_DIGITS: usize = 12;

pub(super) async fn config(
    connect: impl AsyncFn() -> Result<Node, Failure>,
    output: &Output,
    command: ConfigCommand,
) -> Result<(), Failure> {
    match command {
        ConfigCommand::Schema => {
            let answer = connect().await?.config().get_config_schema(GetConfigSchemaRequest {}).await?.into_inner();
            output.text(&answer.schema_json)
        }
        ConfigCommand::Get(args) => {
            let request = GetConfigRequest { generation: args.generation.unwrap_or_default(), without_secrets: false };
            let answer = connect().await?.config().get_config(request).await?.into_inner();
            let found = answer.generation.unwrap_or_default();
            if output.json() {
                return output.document(&json!({"generation": generation(&found), "document": answer.document}));
            }
            // Tabs are TOML's, and a document is to come out as it went in.
            let safe = |line: &str| line.split('\t').map(printable).collect::<Vec<_>>().join("\t");
            answer.document.lines().try_for_each(|line| output.line(&safe(line)))
        }
        ConfigCommand::Diff(args) => diff(&connect().await?, output, &args).await,
        ConfigCommand::Apply(args) => apply(connect, output, &args).await,
        ConfigCommand::History => history(&connect().await?, output).await,
        ConfigCommand::Confirm(args) => {
            let request = ConfirmConfigRequest { generation: args.generation };
            let answer = connect().await?.config().confirm_config(request).await?.into_inner();
            done(output, "confirmed", &answer.generation.unwrap_or_default(), None)
        }
        ConfigCommand::Undo(args) => {
            let request = UndoConfigRequest { generation: args.generation };
            let answer = connect().await?.config().undo_config(request).await?.into_inner();
            done(output, "back to", &answer.generation.unwrap_or_default(), answer.plan.as_ref())
        }
    }
}

async fn diff(node: &Node, output: &Output, args: &ConfigDiffArgs) -> Result<(), Failure> {
    let found = match (&args.file, args.from) {
        (Some(file), _) => {
            node.config().plan_config(PlanConfigRequest { document: read(file)? }).await?.into_inner().plan
        }
        (None, from) => {
            let request = CompareConfigRequest { from: from.unwrap_or_default(), to: args.to.unwrap_or_default() };
            node.config().compare_config(request).await?.into_inner().plan
        }
    };
    let found = found.unwrap_or_default();
    if output.json() { output.document(&plan(&found)) } else { show(output, &found) }
}

async fn apply(
    connect: impl AsyncFn() -> Result<Node, Failure>,
    output: &Output,
    args: &ConfigApplyArgs,
) -> Result<(), Failure> {
    let document = read(&args.file)?;
    let node = connect().await?;
    if args.plan {
        let found = node.config().plan_config(PlanConfigRequest { document }).await?.into_inner().plan;
        let found = found.unwrap_or_default();
        return if output.json() { output.document(&plan(&found)) } else { show(output, &found) };
    }
    let confirm_within = if args.no_undo { None } else { args.confirm_within.try_into().ok() };
    let begun = Instant::now();
    let answer = node.config().apply_config(ApplyConfigRequest { document, confirm_within }).await?.into_inner();
    let (found, change) = (answer.generation.unwrap_or_default(), answer.plan.unwrap_or_default());
    if found.standing() != ConfigStanding::Pending || args.manual {
        let word = if found.standing() == ConfigStanding::Pending {
            "waiting for `byrectl config confirm`:"
        } else if change.changes.is_empty() {
            "unchanged:"
        } else {
            "confirmed"
        };
        return done(output, word, &found, Some(&change));
    }
    if !output.json() {
        show(output, &change)?;
    }
    let confirmed = confirm(connect, found.number, begun + args.confirm_within).await?;
    if output.json() {
        return output.document(&json!({"generation": generation(&confirmed), "plan": plan(&change)}));
    }
    done(output, "confirmed", &confirmed, None)
}

/// Confirms over new connections until that works or the node has undone the change.
async fn confirm(
    connect: impl AsyncFn() -> Result<Node, Failure>,
    number: u64,
    deadline: Instant,
) -> Result<ConfigGeneration, Failure> {
    loop {
        let failure = match connect().await {
            Ok(node) => match node.config().confirm_config(ConfirmConfigRequest { generation: number }).await {
                Ok(answer) => return Ok(answer.into_inner().generation.unwrap_or_default()),
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                    Failure::from(status)
                }
                // It waits no more: it was undone, or it was confirmed and the answer to that was lost.
                Err(status) if status.code() == Code::FailedPrecondition => {
                    let known = node.config().list_config(ListConfigRequest {}).await?.into_inner().generations;
                    let confirmed =
                        |one: &ConfigGeneration| one.number == number && one.standing() == ConfigStanding::Confirmed;
                    return known.into_iter().find(confirmed).ok_or_else(|| unconfirmed(number, &status.into()));
                }
                Err(status) => return Err(status.into()),
            },
            Err(failure @ Failure::Connect(_)) => failure,
            Err(failure) => return Err(failure),
        };
        if Instant::now() + AGAIN > deadline {
            return Err(unconfirmed(number, &failure));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn unconfirmed(number: u64, cause: &Failure) -> Failure {
    complain(&cause.to_string());
    Failure::failed(
        format!("generation {number} could not be confirmed in time"),
        "the node goes back to what it had; mend the document and apply it again",
    )
}

async fn history(node: &Node, output: &Output) -> Result<(), Failure> {
    let found = node.config().list_config(ListConfigRequest {}).await?.into_inner().generations;
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|one| {
            vec![
                one.number.to_string(),
                standing(one),
                ago(one.accepted.as_ref(), now()),
                short(&one.hash),
                printable(&one.origin),
            ]
        })
        .collect();
    output.rows(&["GENERATION", "STATE", "ACCEPTED", "HASH", "FROM"], &rows, found.iter().map(generation).collect())
}

fn done(output: &Output, word: &str, found: &ConfigGeneration, change: Option<&ConfigPlan>) -> Result<(), Failure> {
    if output.json() {
        return output.document(&json!({"generation": generation(found), "plan": change.map_or(Value::Null, plan)}));
    }
    if let Some(change) = change.filter(|change| !change.changes.is_empty()) {
        show(output, change)?;
    }
    output.line(&format!("{word} generation {} ({})", found.number, short(&found.hash)))
}

fn show(output: &Output, plan: &ConfigPlan) -> Result<(), Failure> {
    if plan.changes.is_empty() {
        return output.line("nothing changes");
    }
    for change in &plan.changes {
        if let Some(before) = &change.before {
            let line = format!("- {} = {}", printable(&change.path), printable(before));
            output.line(&output.tone(Tone::Bad, &line))?;
        }
        if let Some(after) = &change.after {
            let line = format!("+ {} = {}", printable(&change.path), printable(after));
            output.line(&output.tone(Tone::Good, &line))?;
        }
    }
    if plan.restarts.is_empty() {
        return output.line("restarts: nothing");
    }
    output.line(&format!("restarts: {}", printable(&plan.restarts.join(", "))))
}

fn standing(found: &ConfigGeneration) -> String {
    match found.standing() {
        ConfigStanding::Unspecified => String::new(),
        ConfigStanding::Confirmed => "confirmed".into(),
        ConfigStanding::Pending => {
            let left = found.left.as_ref().map_or(0, |left| left.seconds);
            format!("undone in {}", span(left))
        }
        ConfigStanding::Past => "past".into(),
        ConfigStanding::Undone => "undone".into(),
    }
}

fn short(hash: &str) -> String {
    printable(&hash.chars().take(HASH_DIGITS).collect::<String>())
}

fn generation(found: &ConfigGeneration) -> Value {
    let name = found.standing().as_str_name();
    json!({
        "number": found.number,
        "origin": found.origin,
        "accepted": found.accepted.as_ref().map(|at| rfc3339(Some(at))),
        "hash": found.hash,
        "standing": name.strip_prefix("CONFIG_STANDING_").unwrap_or(name).to_ascii_lowercase(),
        "left_seconds": found.left.as_ref().map(|left| left.seconds),
    })
}

fn plan(plan: &ConfigPlan) -> Value {
    let changes: Vec<Value> = plan
        .changes
        .iter()
        .map(|change| json!({"path": change.path, "before": change.before, "after": change.after}))
        .collect();
    json!({"changes": changes, "restarts": plan.restarts})
}

fn read(path: &Path) -> Result<String, Failure> {
    let shown = path.display().to_string();
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(DOCUMENT_BYTES).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(DOCUMENT_BYTES).read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::io(&format!("cannot read {shown}"), &error))?;
    String::from_utf8(bytes)
        .map_err(|_| Failure::failed(format!("{shown} is not text in UTF-8"), "save it as plain TOML"))
}

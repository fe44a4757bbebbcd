//! Enabling, disabling and forgiving what is on the node.

use std::io::Write as _;

use byre_api::proto::trace_response::What;
use byre_api::proto::{DisableRequest, EnableRequest, ResetRequest, TraceRequest};
use serde_json::json;

use super::{done, each};
use crate::args::{Names, TraceArgs};
use crate::connect::Node;
use crate::error::Failure;
use crate::output::Output;
use crate::text::{self, printable};

pub(super) async fn enable(node: &Node, output: &Output, args: &Names) -> Result<(), Failure> {
    each(&args.names, async |name| {
        node.supervision().enable(EnableRequest { workload: name.into() }).await?;
        done(output, name)
    })
    .await
}

pub(super) async fn disable(node: &Node, output: &Output, args: &Names) -> Result<(), Failure> {
    each(&args.names, async |name| {
        node.supervision().disable(DisableRequest { workload: name.into() }).await?;
        done(output, name)
    })
    .await
}

pub(super) async fn reset(node: &Node, output: &Output, args: &Names) -> Result<(), Failure> {
    each(&args.names, async |name| {
        node.supervision().reset(ResetRequest { workload: name.into() }).await?;
        done(output, name)
    })
    .await
}

pub(super) async fn trace(node: &Node, output: &Output, args: &TraceArgs) -> Result<(), Failure> {
    let mut answers = node.supervision().trace(TraceRequest { raw: args.raw.is_some() }).await?.into_inner();
    let shown = args.raw.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let mut file = match &args.raw {
        Some(path) => {
            Some(std::fs::File::create(path).map_err(|error| Failure::io(&format!("cannot write {shown}"), &error))?)
        }
        None => None,
    };
    while let Some(answer) = answers.message().await? {
        match (answer.what, &mut file) {
            (Some(What::Raw(bytes)), Some(file)) => {
                file.write_all(&bytes).map_err(|error| Failure::io(&format!("cannot write {shown}"), &error))?;
            }
            (Some(What::Step(step)), _) if output.json() => output.json_line(&json!({
                "at": text::rfc3339(step.at.as_ref()), "boot_ms": step.boot_ms, "event": step.event, "actions": step.actions,
            }))?,
            (Some(What::Step(step)), _) => {
                output.line(&format!("{} {}", text::rfc3339(step.at.as_ref()), printable(&step.event)))?;
                step.actions.iter().try_for_each(|done| output.line(&format!("    {}", printable(done))))?;
            }
            (Some(What::Raw(_)) | None, _) => {}
        }
    }
    Ok(())
}

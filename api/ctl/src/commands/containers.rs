//! Stopping, removing, listing and inspecting what is on the node.

use byre_api::proto::{
    InspectRequest, KillRequest, ListRequest, RemoveRequest, RestartRequest, Run, StopRequest, WaitRequest, WhyRequest,
    Workload, WorkloadKind,
};
use serde_json::{Value, json};

use super::{done, each, now};
use crate::args::{KillArgs, Names, PsArgs, RmArgs, ServicesLsArgs, StopArgs};
use crate::connect::Node;
use crate::error::Failure;
use crate::output::{Output, Tone};
use crate::text::{self, printable, short_id};
use crate::{filter, json};

pub(super) async fn stop(node: &Node, output: &Output, args: &StopArgs) -> Result<(), Failure> {
    let timeout = args.timeout.and_then(|timeout| timeout.try_into().ok());
    each(&args.names.names, async |name| {
        node.workloads().stop(StopRequest { workload: name.into(), timeout }).await?;
        done(output, name)
    })
    .await
}

pub(super) async fn restart(node: &Node, output: &Output, args: &StopArgs) -> Result<(), Failure> {
    let timeout = args.timeout.and_then(|timeout| timeout.try_into().ok());
    each(&args.names.names, async |name| {
        node.workloads().restart(RestartRequest { workload: name.into(), timeout }).await?;
        done(output, name)
    })
    .await
}

pub(super) async fn restart_services(node: &Node, output: &Output, names: &Names) -> Result<(), Failure> {
    each(&names.names, async |name| {
        node.workloads().restart(RestartRequest { workload: name.into(), timeout: None }).await?;
        done(output, name)
    })
    .await
}

pub(super) async fn kill(node: &Node, output: &Output, args: &KillArgs) -> Result<(), Failure> {
    each(&args.names.names, async |name| {
        node.workloads().kill(KillRequest { workload: name.into(), signal: args.signal.clone() }).await?;
        done(output, name)
    })
    .await
}

pub(super) async fn remove(node: &Node, output: &Output, args: &RmArgs) -> Result<(), Failure> {
    each(&args.names.names, async |name| {
        node.workloads().remove(RemoveRequest { workload: name.into(), force: args.force }).await?;
        done(output, name)
    })
    .await
}

pub(super) async fn wait(node: &Node, output: &Output, args: &Names) -> Result<(), Failure> {
    each(&args.names, async |name| {
        let answer = node.workloads().wait(WaitRequest { workload: name.into() }).await?.into_inner();
        let exit = answer.exit.unwrap_or_default();
        if output.json() {
            return output.json_line(&json!({"name": name, "exit": json::exit(Some(&exit))}));
        }
        output.line(&exit.code.to_string())
    })
    .await
}

pub(super) async fn inspect(node: &Node, output: &Output, args: &Names) -> Result<(), Failure> {
    let mut found = Vec::new();
    let result = each(&args.names, async |name| {
        let answer = node.workloads().inspect(InspectRequest { workload: name.into() }).await?.into_inner();
        found.push(json::inspect(&answer));
        Ok(())
    })
    .await;
    output.document(&Value::Array(found))?;
    result
}

pub(super) async fn why(node: &Node, output: &Output, args: &Names) -> Result<(), Failure> {
    each(&args.names, async |name| {
        let answer = node.workloads().why(WhyRequest { workload: name.into() }).await?.into_inner();
        let workload = answer.workload.unwrap_or_default();
        if output.json() {
            let history: Vec<Value> = answer.history.iter().map(json::run).collect();
            let chain: Vec<Value> = answer.chain.iter().map(json::cause).collect();
            return output.json_line(&json!({
                "name": workload.name, "state": filter::state(&workload), "chain": chain, "history": history,
            }));
        }
        output.line(&format!("{}: {}", printable(&workload.name), printable(&workload.status)))?;
        for cause in &answer.chain {
            output.line(&format!("  why: {}: {}", printable(&cause.workload), printable(&cause.text)))?;
        }
        answer.history.iter().try_for_each(|run| output.line(&format!("  run: {}", describe(run))))
    })
    .await
}

/// When a run began, how long it took and how it ended.
fn describe(run: &Run) -> String {
    let mut parts = vec![text::rfc3339(run.started.as_ref())];
    let moment = |at: &Option<prost_types::Timestamp>| at.as_ref().and_then(text::moment);
    if let (Some(started), Some(ended)) = (moment(&run.started), moment(&run.ended)) {
        parts.push(text::span((ended - started).whole_seconds()));
    }
    if let Some(exit) = &run.exit {
        parts.push(format!("exit code {}", exit.code));
        parts.extend(exit.out_of_memory.then(|| "out of memory".to_owned()));
        parts.extend((!exit.reason.is_empty()).then(|| printable(&exit.reason)));
    }
    parts.join(", ")
}

pub(super) async fn list(node: &Node, output: &Output, args: &PsArgs) -> Result<(), Failure> {
    // Who asks for a state that is not running means all of that state.
    let other_state =
        args.filter.iter().any(|filter| matches!(filter, filter::Filter::Status(word) if word != "running"));
    let request = ListRequest { kinds: vec![WorkloadKind::Container.into()], all: args.all || other_state };
    let mut workloads = node.workloads().list(request).await?.into_inner().workloads;
    workloads.retain(|workload| args.filter.iter().all(|filter| filter.holds(workload)));
    // The newest first, as docker has it.
    workloads.sort_by_key(|workload| std::cmp::Reverse(workload.created.map(|at| (at.seconds, at.nanos))));
    let id = |workload: &Workload| if args.no_trunc { printable(&workload.id) } else { short_id(&workload.id) };
    if args.quiet {
        return workloads.iter().try_for_each(|workload| output.line(&id(workload)));
    }
    let now = now();
    let rows: Vec<Vec<String>> = workloads
        .iter()
        .map(|workload| {
            vec![
                id(workload),
                workload.image.clone(),
                text::command(&workload.command, args.no_trunc),
                text::ago(workload.created.as_ref(), now),
                workload.status.clone(),
                workload.name.clone(),
            ]
        })
        .collect();
    let header = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"];
    output.rows(&header, &rows, workloads.iter().map(json::workload).collect())
}

pub(super) async fn services(node: &Node, output: &Output, args: &ServicesLsArgs) -> Result<(), Failure> {
    let kinds = vec![WorkloadKind::Service.into(), WorkloadKind::Job.into()];
    let mut services = node.workloads().list(ListRequest { kinds, all: true }).await?.into_inner().workloads;
    services.sort_by(|left, right| left.name.cmp(&right.name));
    if args.quiet {
        return services.iter().try_for_each(|service| output.line(&printable(&service.name)));
    }
    let rows: Vec<Vec<String>> = services
        .iter()
        .map(|service| {
            let pid = if service.pid == 0 { "-".into() } else { service.pid.to_string() };
            let ready = if service.ready { "yes" } else { "no" };
            let (status, why) = (service.status.clone(), service.why.clone());
            vec![service.name.clone(), status, ready.into(), pid, service.restarts.to_string(), why]
        })
        .collect();
    let header = ["NAME", "STATUS", "READY", "PID", "RESTARTS", "WHY"];
    output.rows(&header, &rows, services.iter().map(json::workload).collect())?;
    let down: Vec<&str> = services.iter().filter(|it| it.wanted_up && !it.ready).map(|it| it.name.as_str()).collect();
    if !output.json() && !down.is_empty() {
        output.line(&output.tone(Tone::Bad, &format!("not ready: {}", printable(&down.join(", ")))))?;
    }
    Ok(())
}

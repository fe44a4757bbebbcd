//! The machine: what it is, which version it runs, switching it off.

use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use byre_api::proto::{
    GetNodeRequest, GetNodeResponse, ReexecRequest, ShutdownRequest, VersionRequest, VersionResponse,
};
use serde_json::{Value, json};

use super::{labels, metrics, now};
use crate::args::ConfirmArgs;
use crate::args_see::{NodeArgs, NodeFormat};
use crate::connect::Node;
use crate::error::Failure;
use crate::json;
use crate::output::{Output, Tone};
use crate::terminal::stdin_is_terminal;
use crate::text::{moment, printable, size, span};

pub(super) async fn show(node: &Node, output: &Output, args: &NodeArgs) -> Result<(), Failure> {
    let answer = node.machine().get_node(GetNodeRequest {}).await?.into_inner();
    match args.format {
        None => summary(&answer, output),
        Some(NodeFormat::Openmetrics) => output.text(&metrics::openmetrics(&answer)),
        Some(NodeFormat::Labels) => {
            let labels = labels::labels(&facts(&answer)?);
            if output.json() {
                return output.document(&json!(labels));
            }
            labels.iter().try_for_each(|(name, value)| output.line(&format!("{name}={value}")))
        }
    }
}

/// The facts as JSON.
fn facts(node: &GetNodeResponse) -> Result<Value, Failure> {
    serde_json::from_str(&node.facts_json).map_err(|error| {
        Failure::failed(format!("the node's facts cannot be read ({error})"), "use a byrectl of the node's version")
    })
}

fn summary(answer: &GetNodeResponse, output: &Output) -> Result<(), Failure> {
    if output.json() {
        return output.document(&json::node(answer));
    }
    let up = answer.booted.as_ref().and_then(moment).map(|at| span((now() - at).whole_seconds()));
    let lines = describe(answer, up);
    lines.iter().try_for_each(|(name, value)| output.line(&format!("{name:<14} {}", printable(value))))?;
    for condition in &answer.conditions {
        let (tone, word) = if condition.ok { (Tone::Good, "ok") } else { (Tone::Bad, "NOT OK") };
        let name = printable(&condition.name);
        output.line(&format!("{name:<14} {} {}", output.tone(tone, word), printable(&condition.detail)))?;
    }
    Ok(())
}

fn describe(node: &GetNodeResponse, up: Option<String>) -> Vec<(&'static str, String)> {
    let version = node.version.clone().unwrap_or_default();
    let mut lines = vec![
        ("Name", node.hostname.clone()),
        ("Machine", node.machine_id.clone()),
        ("System", format!("Byre {} (slot {})", version.os_version, version.slot)),
        ("Kernel", version.kernel),
        ("Processors", format!("{} ({} for workloads)", node.processors, cpus(node.cpu_allocatable_millis))),
        ("Memory", format!("{} ({} for workloads)", size(node.memory_bytes), size(node.memory_allocatable_bytes))),
    ];
    lines.extend(up.map(|up| ("Up", up)));
    lines
}

/// Thousandths of a processor as people write them.
fn cpus(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(super) async fn version(connect: impl AsyncFn() -> Result<Node, Failure>, output: &Output) -> Result<(), Failure> {
    let client = env!("CARGO_PKG_VERSION");
    // The client's version is known whatever the node says, and shown first.
    if !output.json() {
        output.line(&format!("Client     {client}"))?;
    }
    let ask = async {
        let node = connect().await?;
        Ok::<VersionResponse, Failure>(node.machine().version(VersionRequest {}).await?.into_inner())
    };
    let answer = ask.await;
    if output.json() {
        let server = answer.as_ref().map_or(Value::Null, json::version);
        output.document(&json!({"client": {"version": client}, "server": server}))?;
    }
    let server = answer?;
    if output.json() {
        return Ok(());
    }
    let lines = [
        ("Server", server.os_version.as_str()),
        ("API", server.api.as_str()),
        ("Slot", server.slot.as_str()),
        ("Kernel", server.kernel.as_str()),
        ("Root hash", server.root_hash.as_str()),
    ];
    lines.iter().try_for_each(|(name, value)| output.line(&format!("{name:<10} {}", printable(value))))
}

pub(super) async fn shutdown(node: &Node, args: &ConfirmArgs, reboot: bool) -> Result<(), Failure> {
    let what = if reboot { "restart" } else { "switch off" };
    if !args.yes && stdin_is_terminal() && !confirmed(&format!("{what} {}, ending all its workloads?", node.label))? {
        return Err(Failure::failed("not done", "answer y, or give --yes"));
    }
    node.machine().shutdown(ShutdownRequest { reboot }).await?;
    Ok(())
}

pub(super) async fn reexec(node: &Node, output: &Output) -> Result<(), Failure> {
    let gap = node.machine().reexec(ReexecRequest {}).await?.into_inner().gap.unwrap_or_default();
    let gap = Duration::try_from(gap).unwrap_or_default();
    if output.json() {
        return output.document(&json!({"gap_us": u64::try_from(gap.as_micros()).unwrap_or(u64::MAX)}));
    }
    let millis = gap.as_secs_f64() * 1000.0;
    output.line(&format!("PID 1 has replaced itself; for {millis:.1} ms it did not serve"))
}

fn confirmed(question: &str) -> Result<bool, Failure> {
    let failed = |error: std::io::Error| Failure::io("cannot ask", &error);
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "byrectl: {question} [y/N] ").and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_read_as_they_are_written() {
        assert_eq!(cpus(1500), "1.5");
        assert_eq!(cpus(2000), "2");
        assert_eq!(cpus(10_000), "10");
        assert_eq!(cpus(0), "0");
    }

    #[test]
    fn a_summary_says_what_a_person_asks_first() {
        let node = GetNodeResponse {
            hostname: "byre-1".into(),
            machine_id: "ab".into(),
            version: Some(VersionResponse {
                os_version: "0.1.0".into(),
                slot: "a".into(),
                kernel: "6.12".into(),
                ..VersionResponse::default()
            }),
            memory_bytes: 2 << 30,
            memory_allocatable_bytes: 1 << 30,
            processors: 2,
            cpu_allocatable_millis: 1900,
            ..GetNodeResponse::default()
        };
        let lines: Vec<String> =
            describe(&node, Some("2 hours".into())).iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let expected = [
            "Name: byre-1",
            "Machine: ab",
            "System: Byre 0.1.0 (slot a)",
            "Kernel: 6.12",
            "Processors: 2 (1.9 for workloads)",
            "Memory: 2.0GiB (1.0GiB for workloads)",
            "Up: 2 hours",
        ];
        assert_eq!(lines, expected);
    }
}

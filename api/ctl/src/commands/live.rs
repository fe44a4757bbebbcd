//! Figures and events as they come.

use std::fmt::Write as _;

use byre_api::proto::{EventsRequest, EventsResponse, StatsRequest, StatsResponse};

use crate::args::{EventsArgs, StatsArgs};
use crate::connect::Node;
use crate::error::Failure;
use crate::json;
use crate::output::Output;
use crate::text::{self, printable, rfc3339, short_id, size};

/// Home, then clear to the end: the table is drawn over itself without flicker.
const REDRAW: &str = "\u{1b}[H\u{1b}[J";
/// The first drawing must not overwrite what stands on the screen.
const CLEAR: &str = "\u{1b}[2J";

pub(super) async fn stats(node: &Node, output: &Output, args: &StatsArgs) -> Result<(), Failure> {
    if args.interval.is_zero() {
        return Err(Failure::usage("--interval 0 is no interval", "give at least 1ms, or --no-stream"));
    }
    let request = StatsRequest { workloads: args.names.clone(), interval: args.interval.try_into().ok() };
    let mut answers = node.workloads().stats(request).await?.into_inner();
    let redraw = output.is_terminal() && !args.no_stream;
    if redraw && !output.json() {
        output.text(CLEAR)?;
    }
    let mut count = 0_u32;
    while let Some(answer) = answers.message().await? {
        count = count.saturating_add(1);
        // The first message has no processor share yet: a single picture is the second.
        if args.no_stream && count == 1 {
            continue;
        }
        show(output, &answer, redraw)?;
        if args.no_stream {
            break;
        }
    }
    Ok(())
}

fn show(output: &Output, answer: &StatsResponse, redraw: bool) -> Result<(), Failure> {
    if output.json() {
        return answer.stats.iter().try_for_each(|stats| output.json_line(&json::stats(answer.at.as_ref(), stats)));
    }
    let rows: Vec<Vec<String>> = answer
        .stats
        .iter()
        .map(|stats| {
            let (limit, share) = match stats.memory_limit_bytes {
                0 => ("-".into(), "-".into()),
                limit => (size(limit), format!("{:.1}%", stats.memory_bytes as f64 * 100.0 / limit as f64)),
            };
            vec![
                short_id(&stats.id),
                stats.name.clone(),
                format!("{:.1}%", stats.cpu_percent),
                format!("{} / {limit}", size(stats.memory_bytes)),
                share,
                format!("{} / {}", size(stats.io_read_bytes), size(stats.io_written_bytes)),
                stats.processes.to_string(),
                stats.oom_kills.to_string(),
            ]
        })
        .collect();
    let header = ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "BLOCK I/O", "PIDS", "OOM"];
    let table = text::table(&header, &rows);
    if redraw { output.text(&format!("{REDRAW}{table}")) } else { output.text(&table) }
}

pub(super) async fn events(node: &Node, output: &Output, args: &EventsArgs) -> Result<(), Failure> {
    let mut events = node.workloads().events(EventsRequest { workload: args.name.clone() }).await?.into_inner();
    while let Some(event) = events.message().await? {
        if output.json() { output.json_line(&json::event(&event))? } else { output.line(&line(&event))? }
    }
    Ok(())
}

fn line(event: &EventsResponse) -> String {
    let mut line = format!(
        "{} {} {} {}",
        rfc3339(event.at.as_ref()),
        short_id(&event.id),
        printable(&event.name),
        printable(&event.action)
    );
    if let Some(exit) = &event.exit {
        // Writing to a string cannot fail.
        let _ = write!(line, " code={}", exit.code);
    }
    if !event.detail.is_empty() {
        let _ = write!(line, " ({})", printable(&event.detail));
    }
    line
}

#[cfg(test)]
mod tests {
    use byre_api::proto::Exit;
    use prost_types::Timestamp;

    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let event = EventsResponse {
            at: Some(Timestamp { seconds: 0, nanos: 0 }),
            id: "0123456789abcdef".into(),
            name: "web".into(),
            action: "exited".into(),
            exit: Some(Exit { code: 137, signal: 9, ..Exit::default() }),
            detail: "killed\nnow".into(),
            ..EventsResponse::default()
        };
        assert_eq!(line(&event), "1970-01-01T00:00:00Z 0123456789ab web exited code=137 (killed\\nnow)");
    }
}

//! Stored and live output of workloads, and the kernel's log.

use byre_api::proto::{KernelLogRequest, LogsRequest, LogsResponse, OutputStream};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::now;
use crate::args::{DmesgArgs, LogsArgs, Tail};
use crate::connect::Node;
use crate::error::Failure;
use crate::output::{Output, Tone, complain};
use crate::stdio::Sink;
use crate::text::{printable, rfc3339};
use crate::{json, parse};

pub(super) async fn logs(node: &Node, output: &Output, args: &LogsArgs) -> Result<(), Failure> {
    let since = match &args.since {
        Some(text) => {
            Some(parse::since(text, now()).map_err(|remedy| Failure::usage(format!("--since {text:?}"), remedy))?)
        }
        None => None,
    };
    let request = LogsRequest {
        workload: args.name.clone(),
        follow: args.follow,
        since: since
            .map(|at| Timestamp { seconds: at.unix_timestamp(), nanos: at.nanosecond().try_into().unwrap_or(0) }),
        tail: match args.tail {
            Tail::All => None,
            Tail::Lines(lines) => Some(lines),
        },
    };
    let mut pieces = node.workloads().logs(request).await?.into_inner();
    let mut sink = Sink::new()?;
    let mut stamps = Stamps::default();
    while let Some(piece) = pieces.message().await? {
        if output.json() {
            output.json_line(&log_line(&piece))?;
            continue;
        }
        if piece.lost_bytes > 0 {
            complain(&format!(
                "{} bytes of output were lost here: it came faster than the log's limit",
                piece.lost_bytes
            ));
        }
        let data = if args.timestamps { stamps.stamp(&piece) } else { piece.data.to_vec() };
        sink.write(piece.stream(), data).await?;
    }
    sink.finish().await
}

fn log_line(piece: &LogsResponse) -> Value {
    let stream = match piece.stream() {
        OutputStream::Unspecified => "unspecified",
        OutputStream::Stdout => "stdout",
        OutputStream::Stderr => "stderr",
        OutputStream::Terminal => "terminal",
    };
    let text = String::from_utf8_lossy(&piece.data);
    let at = rfc3339(piece.at.as_ref());
    json!({"stream": stream, "at": at, "text": text, "lost_bytes": piece.lost_bytes})
}

/// Puts the time before each line; a line may come in several pieces, of several streams at once.
#[derive(Debug, Default)]
struct Stamps {
    /// Whether stdout and stderr are inside a line.
    inside: [bool; 2],
}

impl Stamps {
    fn stamp(&mut self, piece: &LogsResponse) -> Vec<u8> {
        let inside = &mut self.inside[usize::from(piece.stream() == OutputStream::Stderr)];
        let at = rfc3339(piece.at.as_ref());
        let mut stamped = Vec::with_capacity(piece.data.len() + at.len() + 1);
        for line in piece.data.split_inclusive(|byte| *byte == b'\n') {
            if !*inside {
                stamped.extend_from_slice(at.as_bytes());
                stamped.push(b' ');
            }
            stamped.extend_from_slice(line);
            *inside = !line.ends_with(b"\n");
        }
        stamped
    }
}

pub(super) async fn kernel_log(node: &Node, output: &Output, args: &DmesgArgs) -> Result<(), Failure> {
    let mut lines = node.machine().kernel_log(KernelLogRequest { follow: args.follow }).await?.into_inner();
    while let Some(line) = lines.message().await? {
        if output.json() {
            output.json_line(&json::kernel_line(&line))?;
            continue;
        }
        let time = line.since_boot.unwrap_or_default();
        let stamp = format!("[{:>5}.{:06}]", time.seconds, time.nanos / 1000);
        let text = printable(&line.text);
        // Levels 0 to 3 are errors, syslog(2).
        let text = if line.priority & 7 <= 3 { output.tone(Tone::Bad, &text) } else { text };
        output.line(&format!("{} {text}", output.tone(Tone::Faint, &stamp)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_stands_before_each_line_once() {
        let piece = |stream: OutputStream, text: &'static str| LogsResponse {
            stream: stream.into(),
            at: Some(Timestamp { seconds: 0, nanos: 0 }),
            data: text.as_bytes().into(),
            lost_bytes: 0,
        };
        let mut stamps = Stamps::default();
        let mut stamp = |stream, text| String::from_utf8(stamps.stamp(&piece(stream, text))).unwrap();
        assert_eq!(stamp(OutputStream::Stdout, "a\nb"), "1970-01-01T00:00:00Z a\n1970-01-01T00:00:00Z b");
        assert_eq!(stamp(OutputStream::Stderr, "e\n"), "1970-01-01T00:00:00Z e\n");
        assert_eq!(stamp(OutputStream::Stdout, "c\n"), "c\n");
        assert_eq!(stamp(OutputStream::Stdout, "d\n"), "1970-01-01T00:00:00Z d\n");
    }
}

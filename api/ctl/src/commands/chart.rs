//! A chart of how a boot came up, as SVG: a bar for each service and job, from where it began to where it was ready.
//!
//! It is drawn from what PID 1 said to the kernel's log, so it needs nothing that a boot does not leave behind. The same log gives the same
//! picture, byte by byte.

use std::fmt::Write as _;

use byre_api::proto::{KernelLogRequest, ShowBootRequest};

use crate::args_see::BootsChartArgs;
use crate::connect::Node;
use crate::error::Failure;
use crate::output::Output;
use crate::text::printable;

/// Bars of one chart: a node has some twenty services and jobs; a picture with more helps nobody.
const BARS: usize = 256;
/// Lines that are read of a log: more than the kernel's buffer holds.
const LINES: usize = 100_000;
/// Pixels.
const LEFT: u64 = 150;
const WIDTH: u64 = 800;
const RIGHT: u64 = 150;
const TOP: u64 = 50;
const ROW: u64 = 20;

/// A line of the kernel's log: when, since power on, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    at_ms: u64,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Service,
    Job,
}

/// A service from its program's start until it was ready, a job from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bar {
    name: String,
    kind: Kind,
    from_ms: u64,
    until_ms: u64,
}

pub(super) async fn draw(node: &Node, output: &Output, args: &BootsChartArgs) -> Result<(), Failure> {
    let answer = node.boots().show_boot(ShowBootRequest { which: args.which }).await?.into_inner();
    let boot = answer.boot.unwrap_or_default();
    // Of the running boot the kernel still has the whole log; of an earlier one its end is kept.
    let running = boot.end == "running";
    let lines = if running { live(node).await? } else { answer.kernel_log.lines().filter_map(stored).collect() };
    let (begun_ms, bars) = bars(&lines);
    if bars.is_empty() {
        return Err(Failure::failed(
            format!("what is kept of boot {} does not say when its services were ready", boot.number),
            "its log ends long after that, or before; chart another, such as the running one: `byrectl boots chart 0`",
        ));
    }
    let title = format!("Boot {}, release {}, slot {}", boot.number, printable(&boot.version), printable(&boot.slot));
    let svg = svg(&title, begun_ms, &bars);
    match &args.file {
        None => output.text(&svg),
        Some(file) => {
            std::fs::write(file, svg).map_err(|error| Failure::io(&format!("cannot write {}", file.display()), &error))
        }
    }
}

async fn live(node: &Node) -> Result<Vec<Line>, Failure> {
    let mut records = node.machine().kernel_log(KernelLogRequest { follow: false }).await?.into_inner();
    let mut lines = Vec::new();
    while let Some(record) = records.message().await? {
        let at = std::time::Duration::try_from(record.since_boot.unwrap_or_default()).unwrap_or_default();
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        lines.push(Line { at_ms, text: record.text });
        if lines.len() == LINES {
            break;
        }
    }
    Ok(lines)
}

/// A line as records keep it: `[    1.234] text`.
fn stored(line: &str) -> Option<Line> {
    let (time, text) = line.strip_prefix('[')?.split_once("] ")?;
    let (seconds, millis) = time.trim().split_once('.')?;
    let seconds: u64 = seconds.parse().ok()?;
    let millis: u64 = millis.parse().ok().filter(|millis| *millis < 1000)?;
    Some(Line { at_ms: seconds.checked_mul(1000)?.checked_add(millis)?, text: text.to_owned() })
}

/// Where PID 1 spoke first, and what it said of each service and job; of one that was started again, the first time.
fn bars(lines: &[Line]) -> (u64, Vec<Bar>) {
    let mut first = None;
    let mut bars: Vec<Bar> = Vec::new();
    for line in lines {
        let Some(said) = line.text.strip_prefix("byre: ") else { continue };
        first.get_or_insert(line.at_ms);
        let Some((kind, name, took_ms)) = told(said) else { continue };
        if bars.len() == BARS || bars.iter().any(|bar| bar.name == name) {
            continue;
        }
        let from_ms = line.at_ms.saturating_sub(took_ms);
        bars.push(Bar { name: name.to_owned(), kind, from_ms, until_ms: line.at_ms });
    }
    bars.sort_by(|one, other| {
        (one.from_ms, one.until_ms, &one.name).cmp(&(other.from_ms, other.until_ms, &other.name))
    });
    (first.unwrap_or(0), bars)
}

/// `service NAME is ready after N ms` and `job NAME is done in N ms`.
fn told(said: &str) -> Option<(Kind, &str, u64)> {
    let (kind, rest, between) = match said.strip_prefix("service ") {
        Some(rest) => (Kind::Service, rest, " is ready after "),
        None => (Kind::Job, said.strip_prefix("job ")?, " is done in "),
    };
    let (name, took) = rest.split_once(between)?;
    Some((kind, name, took.strip_suffix(" ms")?.parse().ok()?))
}

fn svg(title: &str, begun_ms: u64, bars: &[Bar]) -> String {
    let end_ms = bars.iter().map(|bar| bar.until_ms).max().unwrap_or(0).max(begun_ms).max(1);
    let x = |at_ms: u64| LEFT + at_ms.saturating_mul(WIDTH) / end_ms;
    let bottom = TOP + ROW * u64::try_from(bars.len()).unwrap_or(0);
    let (width, height) = (LEFT + WIDTH + RIGHT, bottom + 30);
    let mut svg = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"15\">{}</text>",
        escaped(title)
    );
    let step_ms = step(end_ms);
    for at_ms in (0..=end_ms / step_ms).map(|number| number * step_ms) {
        let x = x(at_ms);
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"{TOP}\" x2=\"{x}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\">{}</text>",
            TOP - 8,
            seconds(at_ms)
        );
    }
    let begun = x(begun_ms);
    let _ = writeln!(
        svg,
        "<line x1=\"{begun}\" y1=\"{TOP}\" x2=\"{begun}\" y2=\"{bottom}\" stroke=\"#c60\" stroke-dasharray=\"4 3\"/>\
         <text x=\"{begun}\" y=\"{}\" text-anchor=\"middle\" fill=\"#c60\">first word of PID 1: {}</text>",
        bottom + 18,
        seconds(begun_ms)
    );
    for (bar, y) in bars.iter().zip((TOP..).step_by(usize::try_from(ROW).unwrap_or(1))) {
        let (from, until) = (x(bar.from_ms), x(bar.until_ms));
        let fill = match bar.kind {
            Kind::Service => "#3a7",
            Kind::Job => "#47b",
        };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{from}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{fill}\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"#444\">{} ms, at {}</text>",
            LEFT - 8,
            y + 14,
            escaped(&bar.name),
            y + 3,
            until.saturating_sub(from).max(2),
            ROW - 6,
            until.max(from + 2) + 5,
            y + 14,
            bar.until_ms - bar.from_ms,
            seconds(bar.until_ms)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Between two lines of the grid: one, two or five of a power of ten, so that there are at most ten of them.
fn step(end_ms: u64) -> u64 {
    let steps = (1..=18).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power)));
    steps.into_iter().find(|step_ms| end_ms / step_ms <= 10).unwrap_or(u64::MAX)
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

/// Text of XML.
fn escaped(text: &str) -> String {
    printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a boot's log as it was recorded.
    const RECORD: &str = "\
[    0.912] byre: early: switching to slot a
[    1.004] virtio_net virtio0 eth0: renamed
[    1.010] byre: job disks is done in 61 ms
[    1.051] byre: service log is ready after 12 ms
[    1.160] byre: service state is ready after 31 ms
[    1.420] byre: service api is ready after 140 ms
[    1.421] byre: service <b>&x is ready after 99999999999999999 ms
[    9.000] byre: service api is ready after 80 ms
[    9.100] byre: service odd is ready after a while
[   x.100] byre: job broken is done in 1 ms
";

    fn lines() -> Vec<Line> {
        RECORD.lines().filter_map(stored).collect()
    }

    #[test]
    fn a_bar_goes_from_the_start_to_ready_of_the_first_run() {
        let (begun_ms, bars) = bars(&lines());
        assert_eq!(begun_ms, 912);
        let told: Vec<_> = bars.iter().map(|bar| (bar.name.as_str(), bar.from_ms, bar.until_ms)).collect();
        let expected =
            [("<b>&x", 0, 1421), ("disks", 949, 1010), ("log", 1039, 1051), ("state", 1129, 1160), ("api", 1280, 1420)];
        assert_eq!(told, expected);
        assert_eq!(bars[1].kind, Kind::Job);
    }

    #[test]
    fn a_record_gives_the_same_picture_and_no_name_can_break_it() {
        let (begun_ms, bars) = bars(&lines());
        let picture = svg("Boot 7", begun_ms, &bars);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/commands/chart.svg");
        if std::env::var_os("BYRE_WRITE_CHART").is_some() {
            std::fs::write(path, &picture).unwrap();
        }
        let expected = std::fs::read_to_string(path).unwrap();
        assert_eq!(picture, expected, "if it is meant to differ, write it with BYRE_WRITE_CHART=1 and look at it");
        assert!(picture.contains("&lt;b&gt;&amp;x") && !picture.contains("<b>"));
    }

    #[test]
    fn the_grid_has_at_most_ten_lines_whatever_the_time() {
        for end_ms in [1, 99, 1420, 61_000, 86_400_000, u64::MAX / 1000] {
            assert!(end_ms / step(end_ms) <= 10, "{end_ms}");
        }
    }
}

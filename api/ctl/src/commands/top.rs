//! The machine and its workloads at work: redrawn with every message of the stream of figures on a terminal, else one plain table.
//!
//! What is shown is put together without a terminal and drawn into whatever buffer there is, so that a test can look at it.

use byre_api::proto::{
    GetNodeRequest, GetNodeResponse, ListRequest, StatsRequest, StatsResponse, Workload, WorkloadStats,
};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table};
use tokio::sync::mpsc;

use super::now;
use crate::args_see::TopArgs;
use crate::connect::Node;
use crate::error::Failure;
use crate::json;
use crate::output::Output;
use crate::text::{self, moment, printable, size, span};

/// Keys that wait to be looked at; a person types slower than this is emptied.
const KEYS: usize = 32;
/// Of the machine, above the table.
const HEAD_LINES: u16 = 4;
const HEADER: [&str; 8] = ["NAME", "STATUS", "CPU %", "MEM USAGE", "MEM %", "PIDS", "RESTARTS", "WHY"];

/// What the rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Cpu,
    Memory,
    Name,
}

/// What the node said last.
#[derive(Debug, Clone, Default)]
struct Picture {
    node: GetNodeResponse,
    workloads: Vec<Workload>,
    figures: StatsResponse,
}

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    End,
    Sort(Order),
    /// The screen has another size.
    Draw,
}

pub(super) async fn top(node: &Node, output: &Output, args: &TopArgs) -> Result<(), Failure> {
    if args.interval.is_zero() {
        return Err(Failure::usage("--interval 0 is no interval", "give at least 1s, or --once"));
    }
    let request = StatsRequest { workloads: Vec::new(), interval: args.interval.try_into().ok() };
    let mut answers = node.workloads().stats(request).await?.into_inner();
    if args.once || output.json() || !output.is_terminal() || !crate::terminal::stdin_is_terminal() {
        // The first message has no processor share yet.
        answers.message().await?;
        let figures = answers.message().await?.unwrap_or_default();
        return print(output, &look(node, figures).await?);
    }
    let mut screen = ratatui::try_init().map_err(|error| Failure::io("cannot set up the terminal", &error))?;
    let result = watch(node, &mut answers, &mut screen).await;
    ratatui::restore();
    result
}

async fn look(node: &Node, figures: StatsResponse) -> Result<Picture, Failure> {
    let workloads = node.workloads().list(ListRequest { kinds: Vec::new(), all: true }).await?.into_inner().workloads;
    let node = node.machine().get_node(GetNodeRequest {}).await?.into_inner();
    Ok(Picture { node, workloads, figures })
}

async fn watch(
    node: &Node,
    answers: &mut tonic::Streaming<StatsResponse>,
    screen: &mut ratatui::DefaultTerminal,
) -> Result<(), Failure> {
    let mut keys = keys();
    let mut order = Order::Cpu;
    let mut picture = look(node, StatsResponse::default()).await?;
    loop {
        let uptime = picture.node.booted.as_ref().and_then(moment).map(|at| span((now() - at).whole_seconds()));
        let draw = |frame: &mut Frame<'_>| draw(frame, &picture, order, uptime.as_deref().unwrap_or("unknown"));
        screen.draw(draw).map_err(|error| Failure::io("cannot draw", &error))?;
        tokio::select! {
            answer = answers.message() => match answer? {
                Some(figures) => picture = look(node, figures).await?,
                None => return Ok(()),
            },
            key = keys.recv() => match key {
                Some(Key::End) | None => return Ok(()),
                Some(Key::Sort(by)) => order = by,
                Some(Key::Draw) => {}
            },
        }
    }
}

/// A thread that waits for keys; it ends with the program, since nothing can wake it.
fn keys() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(KEYS);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if let Some(key) = meaning(&event)
                && sender.blocking_send(key).is_err()
            {
                return;
            }
        }
    });
    receiver
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library's keys, of which most mean nothing here")]
fn meaning(event: &Event) -> Option<Key> {
    match event {
        Event::Resize(..) => Some(Key::Draw),
        Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::End),
            KeyCode::Char('q') | KeyCode::Esc => Some(Key::End),
            KeyCode::Char('c') => Some(Key::Sort(Order::Cpu)),
            KeyCode::Char('m') => Some(Key::Sort(Order::Memory)),
            KeyCode::Char('n') => Some(Key::Sort(Order::Name)),
            _ => None,
        },
        Event::Key(_) | Event::FocusGained | Event::FocusLost | Event::Mouse(_) | Event::Paste(_) => None,
    }
}

fn print(output: &Output, picture: &Picture) -> Result<(), Failure> {
    if output.json() {
        let workloads: Vec<_> = picture.workloads.iter().map(json::workload).collect();
        let at = picture.figures.at.as_ref();
        let stats: Vec<_> = picture.figures.stats.iter().map(|stats| json::stats(at, stats)).collect();
        let node = json::node(&picture.node);
        return output.document(&serde_json::json!({"node": node, "workloads": workloads, "stats": stats}));
    }
    output.text(&text::table(&HEADER, &rows(picture, Order::Cpu)))
}

/// One row for each workload: those with figures first, in the wanted order, then the others by name. A job of the boot that ended well
/// is nothing to look at.
fn rows(picture: &Picture, order: Order) -> Vec<Vec<String>> {
    let figures = |workload: &Workload| picture.figures.stats.iter().find(|stats| stats.id == workload.id);
    let shown = |workload: &&Workload| workload.phase != 1 || workload.wanted_up || !workload.why.is_empty();
    let mut all: Vec<(&Workload, Option<&WorkloadStats>)> =
        picture.workloads.iter().filter(shown).map(|workload| (workload, figures(workload))).collect();
    all.sort_by(|(one, one_stats), (other, other_stats)| {
        let by = match order {
            Order::Cpu => cpu(*other_stats).total_cmp(&cpu(*one_stats)),
            Order::Memory => memory(*other_stats).cmp(&memory(*one_stats)),
            Order::Name => std::cmp::Ordering::Equal,
        };
        by.then_with(|| one.name.cmp(&other.name))
    });
    all.into_iter().map(|(workload, stats)| row(workload, stats, picture.node.memory_bytes)).collect()
}

fn cpu(stats: Option<&WorkloadStats>) -> f64 {
    stats.map_or(-1.0, |stats| stats.cpu_percent)
}

fn memory(stats: Option<&WorkloadStats>) -> Option<u64> {
    stats.map(|stats| stats.memory_bytes)
}

fn row(workload: &Workload, stats: Option<&WorkloadStats>, machine_bytes: u64) -> Vec<String> {
    let share = |stats: &WorkloadStats| {
        let of = if stats.memory_limit_bytes == 0 { machine_bytes } else { stats.memory_limit_bytes };
        if of == 0 { "-".to_owned() } else { format!("{:.1}", stats.memory_bytes as f64 * 100.0 / of as f64) }
    };
    let figure = |tell: &dyn Fn(&WorkloadStats) -> String| stats.map_or_else(|| "-".to_owned(), tell);
    vec![
        printable(&workload.name),
        printable(&workload.status),
        figure(&|stats| format!("{:.1}", stats.cpu_percent)),
        figure(&|stats| size(stats.memory_bytes)),
        figure(&share),
        figure(&|stats| stats.processes.to_string()),
        workload.restarts.to_string(),
        printable(&workload.why),
    ]
}

fn head(picture: &Picture, uptime: &str) -> [String; HEAD_LINES as usize] {
    let node = &picture.node;
    let version = node.version.clone().unwrap_or_default();
    let failing: Vec<String> =
        node.conditions.iter().filter(|it| !it.ok).map(|it| format!("{} ({})", it.name, it.detail)).collect();
    let health = if failing.is_empty() { "all well".to_owned() } else { format!("NOT WELL: {}", failing.join("; ")) };
    let sum = |of: fn(&WorkloadStats) -> f64| picture.figures.stats.iter().map(of).sum::<f64>();
    [
        printable(&format!(
            "{}  Byre {} slot {}  up {uptime}  {} workloads",
            node.hostname,
            version.os_version,
            version.slot,
            picture.workloads.len()
        )),
        format!(
            "CPU {:.1} % of {} processors   memory of containers {} of {}",
            sum(|stats| stats.cpu_percent),
            node.processors,
            size(picture.figures.stats.iter().fold(0, |sum: u64, stats| sum.saturating_add(stats.memory_bytes))),
            size(node.memory_allocatable_bytes)
        ),
        printable(&health),
        String::new(),
    ]
}

fn draw(frame: &mut Frame<'_>, picture: &Picture, order: Order, uptime: &str) {
    let [above, table, below] =
        Layout::vertical([Constraint::Length(HEAD_LINES), Constraint::Min(1), Constraint::Length(1)])
            .areas(frame.area());
    let lines: Vec<Line<'_>> = head(picture, uptime).into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(lines), above);
    let rows = rows(picture, order).into_iter().map(Row::new);
    let widths = [
        Constraint::Length(20),
        Constraint::Length(18),
        Constraint::Length(6),
        Constraint::Length(9),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(8),
        Constraint::Min(3),
    ];
    let header = Row::new(HEADER).style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_widget(Table::new(rows, widths).header(header), table);
    frame.render_widget(Line::from("sort: c processor, m memory, n name   q ends"), below);
}

#[cfg(test)]
mod tests {
    use byre_api::proto::{Condition, WorkloadPhase};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    fn picture() -> Picture {
        let workload = |id: &str, name: &str, phase: WorkloadPhase| Workload {
            id: id.into(),
            name: name.into(),
            phase: phase.into(),
            status: "Up 2 minutes".into(),
            wanted_up: true,
            ..Workload::default()
        };
        let stats = |id: &str, cpu_percent, memory_bytes| WorkloadStats {
            id: id.into(),
            cpu_percent,
            memory_bytes,
            processes: 3,
            ..WorkloadStats::default()
        };
        let done = Workload { wanted_up: false, ..workload("4", "disks", WorkloadPhase::Down) };
        let down = Workload { why: "its image\u{1b}[2J is gone".into(), ..workload("3", "db", WorkloadPhase::Down) };
        Picture {
            node: GetNodeResponse {
                hostname: "byre-1".into(),
                processors: 2,
                memory_bytes: 1 << 30,
                conditions: vec![Condition { name: "verity".into(), ok: false, detail: "no device".into() }],
                ..GetNodeResponse::default()
            },
            workloads: vec![
                workload("1", "cache", WorkloadPhase::Up),
                workload("2", "web", WorkloadPhase::Up),
                down,
                done,
            ],
            figures: StatsResponse { at: None, stats: vec![stats("1", 1.5, 1 << 29), stats("2", 80.0, 1 << 20)] },
        }
    }

    fn names(order: Order) -> Vec<String> {
        rows(&picture(), order).into_iter().map(|mut row| row.swap_remove(0)).collect()
    }

    #[test]
    fn rows_are_sorted_and_a_job_that_is_done_is_left_out() {
        assert_eq!(names(Order::Cpu), ["web", "cache", "db"]);
        assert_eq!(names(Order::Memory), ["cache", "web", "db"]);
        assert_eq!(names(Order::Name), ["cache", "db", "web"]);
    }

    #[test]
    fn a_screen_shows_what_is_wrong_and_nothing_of_it_drives_the_terminal() {
        let mut screen = Terminal::new(TestBackend::new(100, 12)).unwrap();
        screen.draw(|frame| draw(frame, &picture(), Order::Cpu, "2 hours")).unwrap();
        let shown = screen.backend().to_string();
        let lines: Vec<&str> = shown.lines().map(|line| line.trim_matches('"').trim_end()).collect();
        assert!(lines[0].starts_with("byre-1  Byre"), "{shown}");
        assert_eq!(lines[2], "NOT WELL: verity (no device)");
        assert!(lines[5].starts_with("web") && lines[5].contains("80.0") && lines[5].contains("1.0MiB"), "{shown}");
        assert!(lines[6].contains("50.0"), "{shown}");
        assert!(lines[7].contains("its image\\u{1b}[2J"), "{shown}");
        assert!(!shown.contains('\u{1b}'));
    }

    #[test]
    fn a_small_screen_is_no_panic() {
        for (width, height) in [(1, 1), (0, 0), (200, 2), (3, 60)] {
            let mut screen = Terminal::new(TestBackend::new(width, height)).unwrap();
            screen.draw(|frame| draw(frame, &picture(), Order::Name, "")).unwrap();
        }
    }

    #[test]
    fn control_c_ends_and_c_alone_sorts() {
        let key = |code, modifiers| meaning(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::End));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), Some(Key::Sort(Order::Cpu)));
        assert_eq!(key(KeyCode::Char('x'), KeyModifiers::NONE), None);
    }
}

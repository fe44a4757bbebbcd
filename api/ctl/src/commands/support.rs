//! A support bundle: what a person needs to find a fault, as one tar file, gathered by calls that a reader may make.
//!
//! Secrets of the configuration are not in it, nor what definitions of workloads hold (their environments); what programs have written to
//! their output is. A part that the node cannot give is named in `missing.txt` and takes nothing else away. It is written piece by piece,
//! and every part has a limit, so a node cannot fill the disk of whoever asks it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use byre_api::proto::{
    GetConfigRequest, GetNodeRequest, GetUpdateHistoryRequest, KernelLogRequest, ListBootsRequest, ListConfigRequest,
    ListImagesRequest, ListRequest, LogsRequest, ShowBootRequest, WhyRequest, Workload,
};
use serde_json::{Value, json};
use tar::{Builder, Header};

use super::{labels, now};
use crate::args_see::SupportBundleArgs;
use crate::connect::Node;
use crate::error::Failure;
use crate::json;
use crate::output::{complain, write_failure};
use crate::text::{printable, rfc3339};

/// Workloads whose causes and logs are taken: a node has at most 2048, and those that are down come first.
const WORKLOADS: usize = 256;
/// Lines of each one's log.
const LOG_LINES: u64 = 500;
/// Bytes of a part; the end counts in a log, so what is before it goes.
const PART_BYTES: usize = 512 * 1024;
/// Bytes of all parts: with every part at its limit it would be several times this.
const BUNDLE_BYTES: usize = 64 << 20;
/// Boots of which the end of the log is taken.
const BOOTS: usize = 8;

/// The file that is being written.
struct Bundle<W: Write> {
    tar: Builder<W>,
    /// Directory of all parts.
    root: String,
    at_seconds: u64,
    bytes: usize,
    missing: String,
}

impl<W: Write> Bundle<W> {
    fn new(to: W, hostname: &str, at_seconds: u64) -> Self {
        let root = format!("byre-support-{}", file_name(hostname));
        Self { tar: Builder::new(to), root, at_seconds, bytes: 0, missing: String::new() }
    }

    /// Adds a part, or says why it is missing.
    fn part(&mut self, name: &str, content: Result<Vec<u8>, Failure>) -> Result<(), Failure> {
        let content = match content {
            Ok(content) => content,
            Err(failure) => {
                self.missing.push_str(&format!("{name}: {failure}\n"));
                return Ok(());
            }
        };
        let content = end_of(&content);
        self.bytes = self.bytes.saturating_add(content.len());
        if self.bytes > BUNDLE_BYTES {
            self.missing.push_str(&format!("{name}: the bundle is full\n"));
            return Ok(());
        }
        self.write(name, content)
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), Failure> {
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_mtime(self.at_seconds);
        header.set_size(content.len() as u64);
        let path = format!("{}/{name}", self.root);
        self.tar.append_data(&mut header, path, content).map_err(|error| write_failure(&error))
    }

    /// What is missing, and the end of the file.
    fn finish(mut self) -> Result<String, Failure> {
        let missing = std::mem::take(&mut self.missing);
        self.write("missing.txt", missing.as_bytes())?;
        let mut to = self.tar.into_inner().map_err(|error| write_failure(&error))?;
        to.flush().map_err(|error| write_failure(&error))?;
        Ok(missing)
    }
}

/// The last whole lines that fit into a part.
fn end_of(content: &[u8]) -> &[u8] {
    let Some(over) = content.len().checked_sub(PART_BYTES).filter(|over| *over > 0) else { return content };
    let rest = &content[over..];
    rest.iter().position(|byte| *byte == b'\n').map_or(rest, |end| &rest[end + 1..])
}

/// A name of a workload or node as the name of a file, whatever it is.
fn file_name(name: &str) -> String {
    let safe = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let name: String = name.chars().map(|character| if safe(character) { character } else { '_' }).take(100).collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

pub(super) async fn bundle(node: &Node, args: &SupportBundleArgs) -> Result<(), Failure> {
    let to: Box<dyn Write> = if args.file == Path::new("-") {
        Box::new(std::io::stdout())
    } else {
        // Logs may hold what is nobody else's business.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.file);
        Box::new(file.map_err(|error| Failure::io(&format!("cannot make {}", args.file.display()), &error))?)
    };
    // A node that cannot even say what it is has nothing for a bundle.
    let facts = node.machine().get_node(GetNodeRequest {}).await?.into_inner();
    let at_seconds = u64::try_from(now().unix_timestamp()).unwrap_or(0);
    let mut bundle = Bundle::new(to, &facts.hostname, at_seconds);
    bundle.part("node.json", text(&json::node(&facts)))?;
    let labels = serde_json::from_str(&facts.facts_json).map(|facts| labels::labels(&facts)).unwrap_or_default();
    bundle.part("labels.json", text(&json!(labels)))?;
    bundle.part("kernel.log", kernel_log(node).await)?;
    machine(node, &mut bundle).await?;
    workloads(node, &mut bundle).await?;
    let missing = bundle.finish()?;
    missing.lines().for_each(|line| complain(&format!("not in the bundle: {line}")));
    Ok(())
}

async fn machine<W: Write>(node: &Node, bundle: &mut Bundle<W>) -> Result<(), Failure> {
    let request = GetConfigRequest { generation: 0, without_secrets: true };
    let answer = node.config().get_config(request).await.map_err(Failure::from);
    bundle.part("configuration.toml", answer.map(|answer| answer.into_inner().document.into_bytes()))?;
    let answer = node.config().list_config(ListConfigRequest {}).await.map_err(Failure::from);
    bundle.part("configuration-history.txt", answer.map(|answer| debug(&answer.into_inner().generations)))?;
    let answer = node.updates().get_update_history(GetUpdateHistoryRequest {}).await.map_err(Failure::from);
    bundle.part("update-history.txt", answer.map(|answer| debug(&answer.into_inner().events)))?;
    let answer = node.images().list_images(ListImagesRequest {}).await.map_err(Failure::from);
    let images = answer.map(|answer| {
        answer.into_inner().images.iter().map(|image| image_line(&image.id, &image.names)).collect::<String>()
    });
    bundle.part("images.txt", images.map(String::into_bytes))?;
    let boots = match node.boots().list_boots(ListBootsRequest {}).await {
        Ok(answer) => answer.into_inner().boots,
        Err(status) => return bundle.part("boots.txt", Err(status.into())),
    };
    bundle.part("boots.txt", Ok(debug(&boots)))?;
    for boot in boots.iter().take(BOOTS) {
        let which = i64::try_from(boot.number).unwrap_or_default();
        let answer = node.boots().show_boot(ShowBootRequest { which }).await.map_err(Failure::from);
        let log = answer.map(|answer| answer.into_inner().kernel_log.into_bytes());
        bundle.part(&format!("boots/{}.log", boot.number), log)?;
    }
    Ok(())
}

/// An image by its identity and names: what its builder put into its configuration is not ours to hand on.
fn image_line(id: &str, names: &[String]) -> String {
    format!("{} {}\n", printable(id), printable(&names.join(" ")))
}

async fn workloads<W: Write>(node: &Node, bundle: &mut Bundle<W>) -> Result<(), Failure> {
    let request = ListRequest { kinds: Vec::new(), all: true };
    let mut all = match node.workloads().list(request).await {
        Ok(answer) => answer.into_inner().workloads,
        Err(status) => return bundle.part("workloads.json", Err(status.into())),
    };
    bundle.part("workloads.json", text(&all.iter().map(|one| json::workload(&without_command(one))).collect()))?;
    // What does not run is what a person looks for.
    all.sort_by_key(|workload| (workload.why.is_empty(), workload.ready));
    if all.len() > WORKLOADS {
        bundle.missing.push_str(&format!("causes and logs: of {} workloads only {WORKLOADS}\n", all.len()));
    }
    for workload in all.iter().take(WORKLOADS) {
        let name = file_name(&workload.name);
        bundle.part(&format!("why/{name}.txt"), why(node, &workload.id).await)?;
        bundle.part(&format!("logs/{name}.log"), log(node, &workload.id).await)?;
    }
    Ok(())
}

/// Commands and labels may carry secrets as well as environments do.
fn without_command(workload: &Workload) -> Workload {
    let program = workload.command.split_whitespace().next().unwrap_or_default().to_owned();
    Workload { command: program, labels: std::collections::BTreeMap::new(), ..workload.clone() }
}

async fn why(node: &Node, id: &str) -> Result<Vec<u8>, Failure> {
    let answer = node.workloads().why(WhyRequest { workload: id.into() }).await?.into_inner();
    let chain: Vec<Value> = answer.chain.iter().map(json::cause).collect();
    let history: Vec<Value> = answer.history.iter().map(json::run).collect();
    text(&json!({"chain": chain, "history": history}))
}

async fn log(node: &Node, id: &str) -> Result<Vec<u8>, Failure> {
    let request = LogsRequest { workload: id.into(), follow: false, since: None, tail: Some(LOG_LINES) };
    let mut pieces = node.workloads().logs(request).await?.into_inner();
    let mut log = Vec::new();
    while let Some(piece) = pieces.message().await? {
        for line in String::from_utf8_lossy(&piece.data).lines() {
            push(&mut log, &format!("{} {}", rfc3339(piece.at.as_ref()), printable(line)));
        }
    }
    Ok(log)
}

async fn kernel_log(node: &Node) -> Result<Vec<u8>, Failure> {
    let mut lines = node.machine().kernel_log(KernelLogRequest { follow: false }).await?.into_inner();
    let mut log = Vec::new();
    while let Some(line) = lines.message().await? {
        let time = line.since_boot.unwrap_or_default();
        push(
            &mut log,
            &format!("<{}>[{:>5}.{:06}] {}", line.priority, time.seconds, time.nanos / 1000, printable(&line.text)),
        );
    }
    Ok(log)
}

/// Appends a line, and keeps no more than twice what a part takes.
fn push(log: &mut Vec<u8>, line: &str) {
    log.extend_from_slice(line.as_bytes());
    log.push(b'\n');
    if log.len() > 2 * PART_BYTES {
        *log = end_of(log).to_vec();
    }
}

fn text(value: &Value) -> Result<Vec<u8>, Failure> {
    Ok(format!("{value:#}\n").into_bytes())
}

/// Messages that have no form for people of their own, one line each.
fn debug<T: std::fmt::Debug>(messages: &[T]) -> Vec<u8> {
    messages.iter().map(|message| format!("{message:?}\n")).collect::<String>().into_bytes()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn read(bytes: &[u8]) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(bytes);
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn what_cannot_be_had_is_named_and_the_rest_is_there() {
        let mut bytes = Vec::new();
        let mut bundle = Bundle::new(&mut bytes, "../no de", 7);
        bundle.part("a.txt", Ok(b"here".to_vec())).unwrap();
        bundle.part("b.txt", Err(Failure::failed("gone", "try again"))).unwrap();
        let missing = bundle.finish().unwrap();
        assert_eq!(missing, "b.txt: gone: try again\n");
        let root = "byre-support-_no_de";
        let expected = [(format!("{root}/a.txt"), "here".to_owned()), (format!("{root}/missing.txt"), missing)];
        assert_eq!(read(&bytes), expected);
    }

    #[test]
    fn a_part_and_the_bundle_have_a_limit() {
        let mut bytes = Vec::new();
        let mut bundle = Bundle::new(&mut bytes, "n", 7);
        let line = format!("{}\n", "x".repeat(99));
        let content = format!("first\n{}last\n", line.repeat(PART_BYTES / 50));
        for number in 0..BUNDLE_BYTES / PART_BYTES + 10 {
            bundle.part(&format!("{number}"), Ok(content.clone().into_bytes())).unwrap();
        }
        let missing = bundle.finish().unwrap();
        assert!(missing.lines().count() >= 9 && missing.lines().all(|line| line.ends_with("the bundle is full")));
        assert!(bytes.len() < BUNDLE_BYTES + (1 << 20));
        let (_, first) = read(&bytes).swap_remove(0);
        assert!(first.starts_with('x') && first.ends_with("last\n") && first.len() <= PART_BYTES);
    }

    #[test]
    fn a_command_is_cut_to_its_program() {
        let workload = Workload { command: "db --password hunter2".into(), ..Workload::default() };
        assert_eq!(without_command(&workload).command, "db");
    }
}

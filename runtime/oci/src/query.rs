//! What is asked about containers: list, processes, statistics.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::cgroups;
use crate::error::{Error, cannot, wrong};
use crate::state::{Place, Record, Status, Store};

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For people.
    Table,
    /// For programs.
    Json,
}

fn listed<'a>(place: &Place, record: &'a Record) -> Listed<'a> {
    let status = place.status(record);
    let owner = owner(record.owner);
    Listed {
        oci_version: &record.oci_version,
        id: &record.id,
        pid: if status == Status::Stopped { 0 } else { record.pid },
        status: status.name(),
        bundle: &record.bundle,
        rootfs: format!("{}/rootfs", record.bundle),
        created: &record.created,
        annotations: &record.annotations,
        owner,
    }
}

/// A container in a list. Callers read it as runc writes it, down to the order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: u32,
    status: &'static str,
    bundle: &'a str,
    rootfs: String,
    created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    owner: String,
}

/// Statistics, in the same way.
#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a str,
    data: Value,
}

fn owner(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| format!("#{uid}"))
}

/// Prints every container.
pub(crate) fn list(store: &Store, form: Form, quiet: bool) -> Result<(), Error> {
    let all = store.all()?;
    if quiet {
        all.iter().for_each(|(_, record)| println!("{}", record.id));
        return Ok(());
    }
    match form {
        Form::Json => {
            let all: Vec<Listed<'_>> = all.iter().map(|(place, record)| listed(place, record)).collect();
            println!("{}", serde_json::to_string(&all).unwrap_or_default());
        }
        Form::Table => {
            let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
            rows.extend(all.iter().map(|(place, record)| {
                let status = place.status(record);
                let pid = if status == Status::Stopped { 0 } else { record.pid };
                [
                    record.id.clone(),
                    pid.to_string(),
                    status.name().to_owned(),
                    record.bundle.clone(),
                    record.created.clone(),
                    owner(record.owner),
                ]
            }));
            table(&rows);
        }
    }
    Ok(())
}

fn table(rows: &[[String; 6]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("   ").trim_end());
    }
}

/// Prints the processes of a container.
pub(crate) fn processes(store: &Store, id: &str, form: Form, arguments: &[String]) -> Result<(), Error> {
    let (_, record) = store.open(id)?;
    let (outer, _) = cgroups::open(&record.cgroup)?;
    let pids = cgroups::processes(outer.as_fd());
    match form {
        Form::Json => println!("{}", json!(pids)),
        Form::Table => {
            let arguments = if arguments.is_empty() { vec!["-ef".to_owned()] } else { arguments.to_vec() };
            let output = std::process::Command::new("ps").args(&arguments).output().map_err(cannot("run ps"))?;
            let text = String::from_utf8_lossy(&output.stdout);
            let mut lines = text.lines();
            let title = lines.next().unwrap_or_default();
            let column = title.split_whitespace().position(|name| name == "PID").ok_or_else(|| {
                wrong("the output of ps has no column PID", "give arguments that print one, or use --format json")
            })?;
            println!("{title}");
            for line in lines {
                let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse::<u32>().ok());
                if pid.is_some_and(|pid| pids.contains(&pid)) {
                    println!("{line}");
                }
            }
        }
    }
    Ok(())
}

fn number(cgroup: BorrowedFd<'_>, file: &str) -> Option<u64> {
    cgroups::read(cgroup, file)?.trim().parse().ok()
}

fn keyed(cgroup: BorrowedFd<'_>, file: &str) -> serde_json::Map<String, Value> {
    let text = cgroups::read(cgroup, file).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), Value::from(value.trim().parse::<u64>().ok()?)))).collect()
}

/// A container's usage. What the host's cgroup v2 has no controller for is left out.
fn statistics<'a>(outer: BorrowedFd<'_>, id: &'a str) -> Event<'a> {
    let mut data = serde_json::Map::new();
    let cpu = keyed(outer, "cpu.stat");
    let nanoseconds = |key: &str| cpu.get(key).and_then(Value::as_u64).map(|us| us.saturating_mul(1000));
    if let Some(total) = nanoseconds("usage_usec") {
        let usage = json!({ "total": total, "kernel": nanoseconds("system_usec"), "user": nanoseconds("user_usec") });
        data.insert("cpu".to_owned(), json!({ "usage": usage }));
    }
    if let Some(used) = number(outer, "memory.current") {
        let limit = |file: &str| number(outer, file).unwrap_or(u64::MAX);
        let usage = json!({ "usage": used, "max": number(outer, "memory.peak"), "limit": limit("memory.max") });
        let swap = json!({ "usage": number(outer, "memory.swap.current"), "limit": limit("memory.swap.max") });
        let memory = json!({ "usage": usage, "swap": swap, "raw": keyed(outer, "memory.stat") });
        data.insert("memory".to_owned(), memory);
    }
    // Without the pids controller the processes are counted.
    let current = number(outer, "pids.current")
        .unwrap_or_else(|| u64::try_from(cgroups::processes(outer).len()).unwrap_or(u64::MAX));
    data.insert("pids".to_owned(), json!({ "current": current, "limit": number(outer, "pids.max") }));
    Event { r#type: "stats", id, data: data.into() }
}

/// Prints statistics once, or every so often until the container ends.
pub(crate) fn events(store: &Store, id: &str, once: bool, interval: Duration) -> Result<(), Error> {
    let (_, record) = store.open(id)?;
    let pidfd = record.process().ok_or_else(|| wrong("container not running", "statistics are of one that runs"))?;
    let (outer, _) = cgroups::open(&record.cgroup)?;
    loop {
        println!("{}", serde_json::to_string(&statistics(outer.as_fd(), id)).unwrap_or_default());
        let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec {
            tv_sec: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(interval.subsec_nanos()),
        };
        if once || rustix::event::poll(&mut polled, Some(&timeout)).is_ok_and(|count| count > 0) {
            return Ok(());
        }
    }
}

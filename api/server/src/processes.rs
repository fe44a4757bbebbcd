//! Processes as /proc has them (proc_pid_stat(5), proc_pid_status(5)). Names and arguments are whatever programs put there.
//!
//! A process may end between two reads; it is then left out. What is read of one is bounded.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use byre_api::proto;

/// Processes of one answer: with their longest commands 5 MiB are not reached, and a node rarely has a thousand.
const PROCESSES: usize = 4096;
/// Of a command with its arguments.
const COMMAND_BYTES: u64 = 1024;
/// USER_HZ, which is the same on every Linux of x86-64 and arm64.
const TICKS_PER_SECOND: u64 = 100;
/// Of any other file: `status` has about 1500.
const FILE_BYTES: u64 = 16 * 1024;

/// The processes below `cgroup`, a path below the cgroup root; all if there is none.
pub(crate) fn read(proc: &Path, cgroup: Option<&str>) -> proto::ListProcessesResponse {
    let mut pids: Vec<u32> = std::fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let mut answer = proto::ListProcessesResponse::default();
    for pid in pids {
        let directory = proc.join(pid.to_string());
        let Some(own) = file(&directory.join("cgroup"), FILE_BYTES).and_then(|text| cgroup_of(&text)) else { continue };
        if cgroup.is_some_and(|wanted| !is_below(&own, wanted)) {
            continue;
        }
        if answer.processes.len() == PROCESSES {
            answer.cut = true;
            break;
        }
        answer.processes.extend(process(&directory, pid, own));
    }
    answer
}

fn file(path: &Path, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The path in the line of cgroup v2.
fn cgroup_of(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::/")).map(ToOwned::to_owned)
}

fn is_below(cgroup: &str, wanted: &str) -> bool {
    let wanted = wanted.trim_matches('/');
    cgroup.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn process(directory: &Path, pid: u32, cgroup: String) -> Option<proto::Process> {
    let stat = stat(&file(&directory.join("stat"), FILE_BYTES)?)?;
    let status = file(&directory.join("status"), FILE_BYTES)?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
            .split_whitespace()
    };
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let small = |text: Option<&str>| u32::try_from(number(text)).unwrap_or(0);
    let command = file(&directory.join("cmdline"), COMMAND_BYTES).unwrap_or_default();
    Some(proto::Process {
        pid,
        inside_pid: small(field("NSpid").next_back()),
        parent: stat.parent,
        user: small(field("Uid").nth(1)),
        state: stat.state,
        threads: small(field("Threads").next()),
        memory_bytes: number(field("VmRSS").next()).saturating_mul(1024),
        cpu_ms: stat.cpu_ticks.saturating_mul(1000) / TICKS_PER_SECOND,
        name: stat.name,
        command: command.trim_end_matches('\0').replace('\0', " "),
        cgroup,
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: String,
    parent: u32,
    cpu_ticks: u64,
}

/// `pid (name) state parent ...`; a name may hold anything, parentheses and line feeds too.
fn stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(") ")?;
    let (_, name) = head.split_once(" (")?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    // Counted from the state, which is field 3: utime is field 14 and stime 15.
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        name: name.to_owned(),
        state: (*fields.first()?).to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        cpu_ticks: ticks(11)?.saturating_add(ticks(12)?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_cannot_pass_for_other_fields() {
        let found = stat("7 (a) Z 1 (\n) S 22 7 7 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 139 3133440 411").unwrap();
        assert_eq!((found.name.as_str(), found.state.as_str(), found.parent), ("a) Z 1 (\n", "S", 22));
        assert_eq!(found.cpu_ticks, 42);
    }

    #[test]
    fn only_what_is_below_the_cgroup_is_taken() {
        assert!(is_below("workloads/web/payload", "workloads/web"));
        assert!(is_below("workloads/web", "/workloads/web/"));
        assert!(!is_below("workloads/webserver", "workloads/web"));
        assert_eq!(cgroup_of("9:name=systemd:/x\n0::/workloads/web\n").as_deref(), Some("workloads/web"));
    }

    #[test]
    fn this_very_process_is_found_with_its_figures_and_its_arguments() {
        let all = read(Path::new("/proc"), None);
        let own = all.processes.iter().find(|process| process.pid == std::process::id()).unwrap();
        assert!(own.memory_bytes > 0 && own.threads > 0 && own.parent > 0, "{own:?}");
        let program = std::env::args().next().unwrap();
        assert!(own.command.starts_with(&program[..program.len().min(500)]), "{own:?}");
        let none = read(Path::new("/proc"), Some("no/such/cgroup"));
        assert!(none.processes.is_empty() && !none.cut);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "\\PC{0,80}") {
            let _ = stat(&text);
            let _ = cgroup_of(&text);
        }
    }
}

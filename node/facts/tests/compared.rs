//! Facts of the machine that runs the tests, against what other programs say of it; a program that is missing is named.

use std::collections::BTreeMap;
use std::process::Command;

use byre_facts::{Collector, collect, json_schema, summary};
use serde_json::Value;

/// What a program of the system prints as JSON; without the program, the reason for skipping.
fn asked(program: &str, arguments: &[&str]) -> Option<Value> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Some(serde_json::from_slice(&output.stdout).expect("JSON")),
        other => {
            eprintln!("skipped: needs {program} {arguments:?}: {other:?}");
            None
        }
    }
}

#[test]
fn processors_are_those_of_lscpu() {
    let Some(answer) = asked("lscpu", &["-J"]) else { return };
    let mut said = BTreeMap::new();
    let mut open: Vec<&Value> = answer["lscpu"].as_array().expect("a list").iter().collect();
    while let Some(entry) = open.pop() {
        said.insert(
            entry["field"].as_str().unwrap_or_default().to_owned(),
            entry["data"].as_str().unwrap_or_default().to_owned(),
        );
        open.extend(entry["children"].as_array().into_iter().flatten());
    }
    let number = |field: &str| said.get(field).and_then(|text| text.parse::<u32>().ok());
    let cpu = collect().cpu;
    assert_eq!(Some(cpu.threads), number("CPU(s):"));
    assert_eq!(Some(cpu.sockets), number("Socket(s):"));
    let cores = number("Core(s) per socket:").zip(number("Socket(s):")).map(|(cores, sockets)| cores * sockets);
    assert_eq!(Some(cpu.cores), cores);
    assert_eq!(Some(&cpu.vendor), said.get("Vendor ID:"));
    assert_eq!(Some(&cpu.model), said.get("Model name:"));
    let mut flags: Vec<&str> = said["Flags:"].split_whitespace().collect();
    flags.sort_unstable();
    flags.dedup();
    assert_eq!(cpu.flags, flags);
    assert!(cpu.features.len() > 3 && cpu.features.iter().all(|name| !name.chars().any(|c| c.is_ascii_lowercase())));
}

#[test]
fn disks_are_those_of_lsblk() {
    let Some(answer) = asked("lsblk", &["-J", "-b", "-o", "NAME,SIZE,ROTA,RO,TYPE"]) else { return };
    let disks = collect().disks;
    let said = answer["blockdevices"].as_array().expect("a list").iter();
    let said: Vec<&Value> = said
        .filter(|disk| disk["type"] == "disk" && disk["size"].as_u64() > Some(0))
        .filter(|disk| !disk["name"].as_str().is_some_and(|name| name.starts_with("zram") || name.starts_with("ram")))
        .collect();
    assert_eq!(disks.iter().filter(|disk| !disk.name.starts_with("dm-")).count(), said.len());
    for disk in said {
        let found = disks.iter().find(|found| disk["name"] == found.name.as_str()).expect("a disk that lsblk names");
        assert_eq!(Some(found.size_bytes), disk["size"].as_u64());
        assert_eq!(Some(found.rotational), disk["rota"].as_bool());
        assert_eq!(Some(found.read_only), disk["ro"].as_bool());
        let parts =
            disk["children"].as_array().map_or(0, |all| all.iter().filter(|part| part["type"] == "part").count());
        assert_eq!(found.partitions.len(), parts);
    }
}

#[test]
fn links_are_those_of_ip() {
    let Some(answer) = asked("ip", &["-j", "link"]) else { return };
    let links = collect().links;
    for link in answer.as_array().expect("a list") {
        let Some(found) = links.iter().find(|found| link["ifname"] == found.name.as_str()) else {
            // Other tests make and remove links while this one looks.
            continue;
        };
        assert_eq!(Some(u64::from(found.mtu)), link["mtu"].as_u64());
        assert_eq!(found.mac.as_deref(), link["address"].as_str());
        assert_eq!(Some(u64::from(found.index)), link["ifindex"].as_u64());
    }
    assert!(links.iter().any(|link| link.name == "lo"));
}

#[test]
fn memory_and_time_are_those_of_the_kernel() {
    let facts = collect();
    let system = rustix::system::sysinfo();
    let total = system.totalram * u64::from(system.mem_unit);
    assert_eq!(facts.memory.total_bytes, total);
    assert_eq!(facts.capacity.memory_bytes, total);
    assert!(facts.memory.available_bytes > 0 && facts.memory.available_bytes <= total);
    assert!(facts.allocatable.memory_bytes > 0 && facts.allocatable.memory_bytes < total);
    assert!(facts.allocatable.cpu_millis < facts.capacity.cpu_millis);
    assert!(facts.uptime_ms.abs_diff(u64::try_from(system.uptime).expect("positive") * 1000) < 5000);
    assert_eq!(facts.kernel.release, rustix::system::uname().release().to_string_lossy());
    // By what the kernel says of its nodes: where memory came or went at run time, that is another sum than the whole machine's.
    for node in &facts.numa {
        let text =
            std::fs::read_to_string(format!("/sys/devices/system/node/node{}/meminfo", node.id)).expect("a node");
        let line = text.lines().find(|line| line.contains("MemTotal:")).expect("its memory");
        let kilobytes: u64 = line.split_whitespace().rev().nth(1).and_then(|word| word.parse().ok()).expect("a number");
        assert_eq!(node.memory_bytes, kilobytes * 1024, "{line}");
    }
}

#[test]
fn what_does_not_change_does_not_change() {
    let collector = Collector::default();
    let (first, second) = (collector.facts(), collector.facts());
    assert_eq!(first.kernel, second.kernel);
    assert_eq!(first.pci, second.pci);
    let summary = summary(&second);
    assert_eq!(summary.processors, second.cpu.threads);
    assert_eq!(summary.conditions.len(), 5);
}

/// Tells a process that it is the one to be sealed.
const SEALED: &str = "BYRE_FACTS_TEST_SEALED";

/// Not a test: what [`a_sealed_service_can_measure`] runs in a process of its own.
#[test]
fn the_service_itself() {
    if std::env::var_os(SEALED).is_none() {
        return;
    }
    let collector = Collector::default();
    byre_sandbox::seal(&byre_sandbox::profiles::API).expect("the filter is taken");
    let facts = collector.facts();
    assert!(facts.memory.total_bytes > 0 && facts.cpu.threads > 0);
    println!("measured");
}

#[test]
fn a_sealed_service_can_measure() {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "the_service_itself", "--nocapture"])
        .env(SEALED, "1")
        .output()
        .expect("the service runs");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("measured"));
}

#[test]
fn a_machine_that_says_nothing_has_facts_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let nowhere = || directory.path().to_path_buf();
    let root = byre_facts::Root { proc: nowhere(), sys: nowhere(), run: nowhere(), etc: nowhere(), root: nowhere() };
    let facts = Collector::new(root).facts();
    assert_eq!((facts.cpu.threads, facts.memory.total_bytes, facts.disks.len()), (0, 0, 0));
    assert!(!summary(&facts).conditions.iter().any(|condition| condition.ok));
}

#[test]
fn the_schema_in_the_manual_is_the_one_of_the_types() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/facts.schema.json");
    if std::env::var_os("BYRE_WRITE_SCHEMAS").is_some() {
        std::fs::write(path, json_schema()).expect("the schema is written");
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(stored, json_schema(), "run this test with BYRE_WRITE_SCHEMAS=1 and commit docs/facts.schema.json");
}

/// Prints what one measurement costs; run with `--ignored --nocapture`. Timing is never asserted.
#[test]
#[ignore = "a measurement, not a test"]
fn what_a_measurement_costs() {
    let collector = Collector::default();
    let cpu_us = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec * 1_000_000 + time.tv_nsec / 1000
    };
    let begun = cpu_us();
    for _ in 0..100 {
        let _ = collector.facts();
    }
    println!("{} us of processor time per measurement", (cpu_us() - begun) / 100);
}

//! Facts as OpenMetrics text 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), for a monitor.
//!
//! Quantities are gauges and counters in base units; what identifies the node is one info metric. What the node did not say is absent.

use std::fmt::Write as _;

use byre_api::proto::GetNodeResponse;
use serde_json::Value;

/// Labels of a sample.
type Labels<'a> = &'a [(&'a str, &'a str)];

/// The metrics of a node, ending with `# EOF`.
pub(super) fn openmetrics(node: &GetNodeResponse) -> String {
    // Facts that cannot be read leave those metrics out that come from them.
    let facts: Value = serde_json::from_str(&node.facts_json).unwrap_or_default();
    let mut text = Text::default();
    let version = node.version.clone().unwrap_or_default();
    text.family("byre_node", "info", "", "What the node is.");
    text.sample(
        "byre_node_info",
        &[
            ("hostname", &node.hostname),
            ("machine_id", &node.machine_id),
            ("os_version", &version.os_version),
            ("slot", &version.slot),
            ("kernel", &version.kernel),
            ("root_hash", &version.root_hash),
        ],
        1.0,
    );
    if let Some(booted) = &node.booted {
        text.gauge(
            "byre_node_boot_time_seconds",
            "seconds",
            "When the machine was booted, since 1970.",
            booted.seconds as f64,
        );
    }
    text.family("byre_node_condition", "gauge", "", "Whether something is as it should be on the node.");
    for condition in &node.conditions {
        text.sample("byre_node_condition", &[("condition", &condition.name)], f64::from(u8::from(condition.ok)));
    }
    let memory = "byre_node_memory_";
    text.gauge(&format!("{memory}total_bytes"), "bytes", "Memory of the machine.", node.memory_bytes as f64);
    let allocatable = node.memory_allocatable_bytes as f64;
    text.gauge(&format!("{memory}allocatable_bytes"), "bytes", "Memory that containers may have.", allocatable);
    if let Some(available) = facts["memory"]["available_bytes"].as_f64() {
        text.gauge(
            &format!("{memory}available_bytes"),
            "bytes",
            "Memory that could be used without swapping.",
            available,
        );
    }
    text.gauge("byre_node_processors", "", "Processors that are on.", f64::from(node.processors));
    let cpus = node.cpu_allocatable_millis as f64 / 1000.0;
    text.gauge("byre_node_processors_allocatable", "", "Processors that containers may have.", cpus);
    devices(&mut text, &facts);
    pressure(&mut text, &facts["pressure"]);
    text.0.push_str("# EOF\n");
    text.0
}

fn devices(text: &mut Text, facts: &Value) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    text.family("byre_node_disk_size_bytes", "gauge", "bytes", "Size of a block device.");
    for disk in list(&facts["disks"]) {
        if let (Some(name), Some(size)) = (disk["name"].as_str(), disk["size_bytes"].as_f64()) {
            text.sample("byre_node_disk_size_bytes", &[("disk", name)], size);
        }
    }
    text.family("byre_node_link_up", "gauge", "", "Whether the kernel says that a network link is up.");
    for link in list(&facts["links"]) {
        if let (Some(name), Some(state)) = (link["name"].as_str(), link["state"].as_str()) {
            text.sample("byre_node_link_up", &[("link", name)], f64::from(u8::from(state == "up")));
        }
    }
}

fn pressure(text: &mut Text, pressure: &Value) {
    const NAME: &str = "byre_node_pressure_waiting_seconds";
    text.family(NAME, "counter", "seconds", "Time in which tasks waited for a resource (PSI), since boot.");
    for resource in ["cpu", "memory", "io"] {
        for tasks in ["some", "full"] {
            if let Some(micros) = pressure[resource][tasks]["total_us"].as_f64() {
                let labels = [("resource", resource), ("tasks", tasks)];
                text.sample(&format!("{NAME}_total"), &labels, micros / 1e6);
            }
        }
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a family; the name ends with the unit, where there is one.
    fn family(&mut self, name: &str, kind: &str, unit: &str, help: &str) {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        if !unit.is_empty() {
            let _ = writeln!(self.0, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.0, "# HELP {name} {help}");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{}\"", if index == 0 { '{' } else { ',' }, escaped(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn gauge(&mut self, name: &str, unit: &str, help: &str, value: f64) {
        self.family(name, "gauge", unit, help);
        self.sample(name, &[], value);
    }
}

/// A label's value: backslash, quote and line feed are escaped, other control characters made visible.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => safe.push_str("\\\\"),
            '"' => safe.push_str("\\\""),
            '\n' => safe.push_str("\\n"),
            control if control.is_control() => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use byre_api::proto::{Condition, VersionResponse};
    use serde_json::json;

    use super::*;

    fn node() -> GetNodeResponse {
        let facts = json!({
            "memory": {"available_bytes": 3_u64 << 29},
            "disks": [{"name": "vda", "size_bytes": 4_294_967_296_u64}],
            "links": [{"name": "eth0", "state": "up"}, {"name": "eth1", "state": "down"}],
            "pressure": {"cpu": {"some": {"total_us": 1_500_000}, "full": null}},
        });
        GetNodeResponse {
            facts_json: facts.to_string(),
            hostname: "a\"b\\c\nd\u{1b}".into(),
            version: Some(VersionResponse { os_version: "0.1.0".into(), ..VersionResponse::default() }),
            memory_bytes: 2 << 30,
            processors: 2,
            cpu_allocatable_millis: 1900,
            conditions: vec![Condition { name: "verity".into(), ok: true, ..Condition::default() }],
            ..GetNodeResponse::default()
        }
    }

    #[test]
    fn what_a_node_says_is_in_the_samples_and_cannot_make_lines() {
        let text = openmetrics(&node());
        let info = text.lines().find(|line| line.starts_with("byre_node_info{")).unwrap();
        assert!(info.starts_with(r#"byre_node_info{hostname="a\"b\\c\nd"#), "{info}");
        for line in [
            "byre_node_memory_total_bytes 2147483648",
            "byre_node_processors_allocatable 1.9",
            "byre_node_link_up{link=\"eth1\"} 0",
            "byre_node_pressure_waiting_seconds_total{resource=\"cpu\",tasks=\"some\"} 1.5",
            "byre_node_condition{condition=\"verity\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    #[ignore = "needs Debian's python3-prometheus-client, the reference parser"]
    fn the_reference_parser_reads_it_and_finds_the_values() {
        let program = "import sys\n\
            from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
            samples = [s for f in parse(sys.stdin.read()) for s in f.samples]\n\
            print(len(samples), [s.labels['hostname'] for s in samples if s.name == 'byre_node_info'][0].encode())";
        let mut python = Command::new("/usr/bin/python3")
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        python.stdin.take().unwrap().write_all(openmetrics(&node()).as_bytes()).unwrap();
        let output = python.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "11 b'a\"b\\\\c\\nd\\xef\\xbf\\xbd'\n");
    }
}

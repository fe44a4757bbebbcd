//! Facts as Kubernetes labels, by the names and in the form of node-feature-discovery: `feature.node.kubernetes.io/NAME=VALUE`.
//!
//! A label is only there if it holds. What a node said is brought into the form that Kubernetes takes for names and values; what
//! cannot be is left out.

use std::collections::BTreeMap;

use serde_json::Value;

const PREFIX: &str = "feature.node.kubernetes.io/";
/// What Kubernetes takes for the part of a name behind the slash, and for a value.
const PART_CHARACTERS: usize = 63;
/// Classes of PCI functions that become labels: node-feature-discovery's own (display, co-processor, accelerator), and network.
const PCI_CLASSES: [&str; 4] = ["02", "03", "0b40", "12"];

/// The labels of a node with these facts (docs/facts.schema.json).
pub(super) fn labels(facts: &Value) -> BTreeMap<String, String> {
    let mut labels = Labels::default();
    cpu(&mut labels, &facts["cpu"]);
    kernel(&mut labels, &facts["kernel"]);
    labels.when("memory-numa", list(&facts["numa"]).len() > 1);
    labels.when("memory-swap", facts["memory"]["swap_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    for function in list(&facts["pci"]) {
        let class = function["class"].as_str().unwrap_or_default();
        let vendor = function["vendor"].as_str().unwrap_or_default();
        if PCI_CLASSES.iter().any(|wanted| class.starts_with(wanted)) {
            let class = class.get(..4).unwrap_or(class);
            labels.when(&format!("pci-{class}_{vendor}.present"), true);
        }
    }
    let turns = |disk: &Value| disk["rotational"].as_bool() != Some(false);
    let disks = list(&facts["disks"]);
    labels.when("storage-nonrotationaldisk", disks.iter().any(|disk| !turns(disk)));
    labels.text("system-os_release.ID", &facts["os"]["id"]);
    labels.text("system-os_release.VERSION_ID", &facts["os"]["version"]);
    let version = facts["os"]["version"].as_str().unwrap_or_default();
    for (part, number) in ["major", "minor"].iter().zip(numbers(version)) {
        labels.put(&format!("system-os_release.VERSION_ID.{part}"), number);
    }
    labels.0
}

fn cpu(labels: &mut Labels, cpu: &Value) {
    for feature in list(&cpu["features"]).iter().filter_map(Value::as_str) {
        labels.when(&format!("cpu-cpuid.{feature}"), true);
    }
    labels.text("cpu-model.vendor_id", &cpu["vendor"]);
    labels.text("cpu-model.family", &cpu["family"]);
    labels.text("cpu-model.id", &cpu["model_number"]);
    labels.when("cpu-hardware_multithreading", cpu["threads"].as_u64() > cpu["cores"].as_u64());
}

fn kernel(labels: &mut Labels, kernel: &Value) {
    labels.text("kernel-version.full", &kernel["release"]);
    let release = kernel["release"].as_str().unwrap_or_default();
    for (part, number) in ["major", "minor", "revision"].iter().zip(numbers(release)) {
        labels.put(&format!("kernel-version.{part}"), number);
    }
}

/// The numbers that a version begins with.
fn numbers(version: &str) -> impl Iterator<Item = &str> {
    let end = version.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(version.len());
    version[..end].split('.').take_while(|number| !number.is_empty())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[derive(Default)]
struct Labels(BTreeMap<String, String>);

impl Labels {
    fn put(&mut self, name: &str, value: &str) {
        if let (Some(name), Some(value)) = (part(name), part(value)) {
            self.0.insert(format!("{PREFIX}{name}"), value);
        }
    }

    fn when(&mut self, name: &str, holds: bool) {
        if holds {
            self.put(name, "true");
        }
    }

    fn text(&mut self, name: &str, value: &Value) {
        match value {
            Value::String(text) => self.put(name, text),
            Value::Number(number) => self.put(name, &number.to_string()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {}
        }
    }
}

/// The text as Kubernetes takes it: letters, digits, `-`, `_` and `.`, at both ends a letter or digit. `None` if nothing is left.
fn part(text: &str) -> Option<String> {
    let allowed =
        |character: char| if character.is_ascii_alphanumeric() || "-_.".contains(character) { character } else { '_' };
    let text: String = text.chars().map(allowed).take(PART_CHARACTERS).collect();
    let text = text.trim_matches(|character: char| !character.is_ascii_alphanumeric());
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_have_the_names_of_node_feature_discovery() {
        let facts = json!({
            "cpu": {"features": ["AVX2", "SSE4"], "vendor": "GenuineIntel", "family": 6, "model_number": 85, "threads": 4, "cores": 2},
            "kernel": {"release": "6.12.48+deb13-cloud-amd64"},
            "numa": [{"id": 0}],
            "memory": {"swap_bytes": 0},
            "pci": [
                {"class": "030000", "vendor": "1234"}, {"class": "020000", "vendor": "1af4"}, {"class": "060000", "vendor": "8086"},
            ],
            "disks": [{"name": "vda", "rotational": true}, {"name": "nvme0n1", "rotational": false}],
            "os": {"id": "byre", "version": "0.1.0"},
        });
        let lines: Vec<String> = labels(&facts)
            .into_iter()
            .map(|(name, value)| format!("{}={value}", name.strip_prefix(PREFIX).unwrap()))
            .collect();
        let expected = [
            "cpu-cpuid.AVX2=true",
            "cpu-cpuid.SSE4=true",
            "cpu-hardware_multithreading=true",
            "cpu-model.family=6",
            "cpu-model.id=85",
            "cpu-model.vendor_id=GenuineIntel",
            "kernel-version.full=6.12.48_deb13-cloud-amd64",
            "kernel-version.major=6",
            "kernel-version.minor=12",
            "kernel-version.revision=48",
            "pci-0200_1af4.present=true",
            "pci-0300_1234.present=true",
            "storage-nonrotationaldisk=true",
            "system-os_release.ID=byre",
            "system-os_release.VERSION_ID=0.1.0",
            "system-os_release.VERSION_ID.major=0",
            "system-os_release.VERSION_ID.minor=1",
        ];
        assert_eq!(lines, expected);
        assert!(labels(&Value::Null).is_empty());
    }

    proptest! {
        #[test]
        fn whatever_a_node_says_kubernetes_takes_the_label(text in ".{0,100}") {
            let facts = json!({"kernel": {"release": text}, "cpu": {"features": [text], "vendor": text}});
            for (name, value) in labels(&facts) {
                for part in [name.strip_prefix(PREFIX).unwrap(), &value] {
                    prop_assert!((1..=PART_CHARACTERS).contains(&part.len()), "{part}");
                    prop_assert!(part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)));
                    prop_assert!(part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.ends_with(|c: char| c.is_ascii_alphanumeric()));
                }
            }
        }
    }
}

//! The dependency directions of ARCHITECTURE.md, checked against `cargo metadata`.
//!
//! An edge between two crates of the workspace that is not in the table fails, and so does a table entry that no longer exists: the
//! table is the map. PID 1 has a second rule: whole families of crates must not be linked into it, however deep.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// Which crates of the workspace a crate may name. Floors from the lowest up; arrows only downwards.
const ALLOWED: &[(&str, &[&str])] = &[
    // The lowest floor: runtime, image, rootfs. They know nothing of PID 1 nor of each other.
    ("byre-plan", &[]),
    ("byre-spec", &["byre-plan"]),
    ("byre-launch", &["byre-plan"]),
    ("byre-oci", &["byre-launch", "byre-plan", "byre-spec"]),
    ("byre-image", &[]),
    ("byre-registry", &["byre-image"]),
    ("byre-release", &[]),
    ("byre-slots", &[]),
    ("byre-tuf", &[]),
    ("byre-verity", &[]),
    ("byre-loader", &["byre-slots"]),
    ("byre-boots", &[]),
    // A build tool, not part of the system: it compiles service definitions to the form that PID 1 reads.
    ("byre-rootfs-build", &["byre-loader", "byre-plan", "byre-protocol", "byre-release", "byre-slots", "byre-verity"]),
    // A build tool, not part of the system: it makes what nodes update from.
    ("byre-repository", &["byre-release", "byre-tuf"]),
    // PID 1.
    ("byre-protocol", &["byre-plan"]),
    ("byre-core", &["byre-plan", "byre-protocol"]),
    (
        "byre-init",
        &[
            "byre-boots",
            "byre-core",
            "byre-launch",
            "byre-loader",
            "byre-plan",
            "byre-protocol",
            "byre-release",
            "byre-slots",
            "byre-verity",
        ],
    ),
    // A build tool, not part of the system: it plays histories of PID 1's decisions.
    ("byre-simulation", &["byre-core", "byre-plan", "byre-protocol"]),
    // The API: never PID 1, only its protocol.
    ("byre-api", &[]),
    ("byrectl", &["byre-api"]),
    ("byre-api-server", &["byre-api", "byre-boots", "byre-plan", "byre-protocol", "byre-sandbox", "byre-spec"]),
    // The node's services.
    ("byre-sandbox", &["byre-plan", "byre-protocol"]),
    ("byre-facts", &[]),
    ("byre-config", &["byre-image", "byre-protocol", "byre-registry", "byre-sandbox"]),
    ("byre-podnet", &["byre-plan", "byre-protocol", "byre-sandbox"]),
    ("byre-probe", &["byre-plan", "byre-protocol", "byre-sandbox"]),
    ("byre-log", &["byre-plan", "byre-protocol", "byre-sandbox"]),
    ("byre-net", &["byre-config", "byre-protocol", "byre-sandbox"]),
    ("byre-state", &["byre-plan", "byre-protocol", "byre-sandbox"]),
    ("byre-stats", &["byre-protocol", "byre-sandbox"]),
    ("byre-time", &["byre-config", "byre-sandbox"]),
    (
        "byre-update",
        &["byre-boots", "byre-config", "byre-protocol", "byre-release", "byre-sandbox", "byre-tuf", "byre-verity"],
    ),
    (
        "byred",
        &[
            "byre-api-server",
            "byre-config",
            "byre-facts",
            "byre-image",
            "byre-log",
            "byre-net",
            "byre-plan",
            "byre-podnet",
            "byre-probe",
            "byre-protocol",
            "byre-registry",
            "byre-sandbox",
            "byre-state",
            "byre-stats",
            "byre-time",
            "byre-update",
        ],
    ),
    // Fuzz targets: of every decoder, so of every crate that has one.
    (
        "byre-fuzz",
        &[
            "byre-api-server",
            "byre-boots",
            "byre-config",
            "byre-core",
            "byre-image",
            "byre-launch",
            "byre-loader",
            "byre-log",
            "byre-net",
            "byre-plan",
            "byre-podnet",
            "byre-probe",
            "byre-protocol",
            "byre-registry",
            "byre-release",
            "byre-sandbox",
            "byre-slots",
            "byre-spec",
            "byre-state",
            "byre-time",
            "byre-tuf",
            "byre-update",
            "byre-verity",
        ],
    ),
    // Developer tools: they may look at libraries, never at PID 1 or a service.
    ("byre-tests", &["byre-api", "byre-loader", "byre-registry", "byre-rootfs-build", "byre-slots"]),
    (
        "xtask",
        &[
            "byre-api",
            "byre-image",
            "byre-plan",
            "byre-registry",
            "byre-release",
            "byre-repository",
            "byre-rootfs-build",
            "byre-slots",
            "byre-spec",
            "byre-tests",
            "byre-tuf",
        ],
    ),
];

/// What must not be linked into PID 1 at any depth: it has no async runtime and reads nothing that came from a network or an image.
const NOT_IN_PID1: &[&str] = &[
    "async-std",
    "flate2",
    "h2",
    "http",
    "hyper",
    "prost",
    "reqwest",
    "ring",
    "rustls",
    "smol",
    "tar",
    "tokio",
    "toml",
    "tonic",
    "zstd",
];

/// Edges that are left out of that rule, each with its reason.
const NOT_CALLED_IN_PID1: &[(&str, &str)] = &[
    // libcgroups' procfs can read /proc/config.gz; nothing of ours asks it to.
    ("procfs", "flate2"),
];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_members: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

impl Dependency {
    /// Linked into the result; not a build script's or a test's.
    fn is_linked(&self) -> bool {
        self.dep_kinds.iter().any(|kind| kind.kind.is_none())
    }
}

/// Linked dependencies of every package of the build, by name.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// All breaches of the rules in the workspace at `root`, one sentence each.
pub(crate) fn breaches(root: &Path) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata: unexpected output")?;
    let names: BTreeMap<&str, &str> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
    let mut graph = Graph::new();
    for node in &metadata.resolve.nodes {
        let Some(name) = names.get(node.id.as_str()) else { bail!("cargo metadata: {} has no package", node.id) };
        let linked = node.deps.iter().filter(|dependency| dependency.is_linked());
        let edges = graph.entry((*name).to_owned()).or_default();
        edges.extend(linked.filter_map(|dependency| names.get(dependency.pkg.as_str())).map(|name| (*name).to_owned()));
    }
    let members: BTreeSet<String> = metadata
        .workspace_members
        .iter()
        .filter_map(|id| names.get(id.as_str()))
        .map(|name| (*name).to_owned())
        .collect();
    let mut found = breaches_of_directions(&graph, &members);
    found.extend(breaches_in_pid1(&graph, "byre-init"));
    Ok(found)
}

fn breaches_of_directions(graph: &Graph, members: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for member in members {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| name == member) else {
            found.push(format!("{member} is not in the table of directions: add it with what it may depend on"));
            continue;
        };
        let edges = graph.get(member).into_iter().flatten().filter(|edge| members.contains(*edge));
        for edge in edges.filter(|edge| !allowed.contains(&edge.as_str())) {
            found.push(format!("{member} depends on {edge}, which the table of directions does not allow"));
        }
    }
    for (name, _) in ALLOWED.iter().filter(|(name, _)| !members.contains(*name)) {
        found.push(format!("{name} is in the table of directions but not in the workspace"));
    }
    found
}

fn breaches_in_pid1(graph: &Graph, program: &str) -> Vec<String> {
    let mut found = Vec::new();
    // Each crate with the path it was first reached by: the path is what a reader needs to mend it.
    let mut reached: BTreeMap<&str, String> = BTreeMap::from([(program, program.to_owned())]);
    let mut open = vec![program];
    while let Some(name) = open.pop() {
        let path = reached.get(name).cloned().unwrap_or_default();
        for edge in graph.get(name).into_iter().flatten() {
            if reached.contains_key(edge.as_str()) || NOT_CALLED_IN_PID1.contains(&(name, edge)) {
                continue;
            }
            let path = format!("{path} -> {edge}");
            if NOT_IN_PID1.contains(&edge.as_str()) {
                found.push(format!("{edge} must not be linked into PID 1: {path}"));
            }
            reached.insert(edge, path);
            open.push(edge);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &str)]) -> Graph {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
            graph.entry((*to).to_owned()).or_default();
        }
        graph
    }

    #[test]
    fn dependencies_point_only_downwards() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(breaches(root).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn shipped_programs_have_no_fault_points() {
        // Features as the image build gets them: these packages alone, without what tests need.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut command = Command::new(env!("CARGO"));
        command.args(["tree", "--locked", "--edges=normal,build", "--prefix=none", "--format={p} {f}"]);
        command.args(crate::image::PACKAGES.iter().flat_map(|package| ["--package", package]));
        let output = command.current_dir(root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let tree = String::from_utf8(output.stdout).unwrap();
        assert!(tree.contains("byre-launch v"), "the launch child's code is not found in {tree}");
        assert!(!tree.contains("fault-points"), "{tree}");
    }

    #[test]
    fn an_upward_edge_is_named() {
        let members: BTreeSet<String> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
        let found = breaches_of_directions(&graph(&[("byre-plan", "byre-init"), ("byre-plan", "serde")]), &members);
        assert_eq!(found, ["byre-plan depends on byre-init, which the table of directions does not allow"]);
    }

    #[test]
    fn a_new_crate_must_enter_the_table() {
        let mut members: BTreeSet<String> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
        members.insert("byre-extra".to_owned());
        members.remove("byre-verity");
        let found = breaches_of_directions(&Graph::new(), &members);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_forbidden_crate_is_found_at_any_depth() {
        let graph = graph(&[("byre-init", "a"), ("a", "b"), ("b", "tokio"), ("b", "a")]);
        assert_eq!(
            breaches_in_pid1(&graph, "byre-init"),
            ["tokio must not be linked into PID 1: byre-init -> a -> b -> tokio"]
        );
    }
}

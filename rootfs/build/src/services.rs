//! Service definitions: TOML sources in, one compiled file out. The compiled form is what PID 1 reads, so that it never
//! parses TOML; a definition that does not compile fails the image build, not a boot.

use anyhow::{Context, Result, bail, ensure};
use byre_plan::{Origin, Plan, Policy};
use byre_protocol::definition::{Definition, ServicesFile};
use byre_protocol::frame::encode_file;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A definition file: name without `.toml`, and text.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// The definitions in `directory`, by name. A missing directory has none.
pub(crate) fn read(directory: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    if !directory.exists() {
        return Ok(sources);
    }
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let name =
                path.file_stem().and_then(|stem| stem.to_str()).context("a service name is not UTF-8")?.to_owned();
            sources.push(Source { name, text: std::fs::read_to_string(&path)? });
        }
    }
    sources.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(sources)
}

/// Compiles `sources` and the node policy; checks what PID 1 would refuse at boot.
pub(crate) fn compile(sources: &[Source], policy: &str) -> Result<Vec<u8>> {
    let policy: Policy = toml::from_str(policy).context("policy.toml is not a node policy")?;
    let mut services = Vec::new();
    for source in sources {
        let file = format!("services/{}.toml", source.name);
        let service: Definition =
            toml::from_str(&source.text).with_context(|| format!("{file} is not a definition"))?;
        ensure!(service.name.as_str() == source.name, "{file} defines {}; name the file after it", service.name);
        ensure!(service.stop.hook_is_bounded(), "{file}: the stop hook is too long for a command line");
        if let Some(refusal) = service.probes_refusal() {
            bail!("{}: {refusal}", place_of_probe(source, &refusal));
        }
        if let Some(refusal) = service.job_refusal() {
            let line =
                source.text.lines().position(|line| line.starts_with("deadline_ms") || line.starts_with("policy"));
            bail!("{file}:{}: {refusal}", line.map_or(1, |at| at + 1));
        }
        if let Some(refusal) = service.schedule_refusal() {
            bail!("{}: {refusal}", place_of_table(source, "schedule"));
        }
        Plan::check(service.launch.clone(), &policy, Origin::VerifiedRoot).with_context(|| file.clone())?;
        services.push(service);
    }
    check_order(sources, &services)?;
    encode_file(&ServicesFile { policy, services }).context("the definitions do not fit their file")
}

/// Every name that is waited for exists, and no service waits for itself through others.
fn check_order(sources: &[Source], services: &[Definition]) -> Result<()> {
    let by_name: BTreeMap<&str, &Definition> =
        services.iter().map(|service| (service.name.as_str(), service)).collect();
    for service in services {
        let group = service.group.as_ref().map_or("", byre_plan::Name::as_str);
        ensure!(
            !by_name.contains_key(group),
            "services/{}.toml: its group {group} has the name of a service",
            service.name
        );
    }
    for (source, service) in sources.iter().zip(services) {
        for other in service.waits_for().map(byre_plan::Name::as_str) {
            let place = place_of(source, other);
            ensure!(
                !members(&by_name, other).is_empty(),
                "{place}: {} waits for {other}, which does not exist",
                service.name
            );
            let own_group = service.group.as_ref().map(byre_plan::Name::as_str);
            ensure!(own_group != Some(other), "{place}: {} waits for {other}, its own group", service.name);
            if let Some(way) = way_back(&by_name, other, service.name.as_str()) {
                bail!("{place}: these wait for each other: {} -> {}", service.name, way.join(" -> "));
            }
        }
    }
    Ok(())
}

/// What a name stands for: a service, or all of a group.
fn members<'a>(by_name: &BTreeMap<&'a str, &'a Definition>, name: &str) -> Vec<&'a Definition> {
    match by_name.get(name) {
        Some(service) => vec![service],
        None => by_name
            .values()
            .filter(|one| one.group.as_ref().is_some_and(|group| group.as_str() == name))
            .copied()
            .collect(),
    }
}

/// Where a source names another service: file and line.
fn place_of(source: &Source, other: &str) -> String {
    let quoted = format!("\"{other}\"");
    let is_list = |line: &str| ["needs", "after", "binds_to"].iter().any(|key| line.trim_start().starts_with(key));
    let mut lines = source.text.lines().enumerate();
    // A list may span lines: the first mention behind the beginning of one.
    let found = lines.by_ref().find(|(_, line)| is_list(line)).and_then(|first| {
        std::iter::once(first).chain(lines).find(|(_, line)| line.contains(&quoted)).map(|(number, _)| number + 1)
    });
    format!("services/{}.toml:{}", source.name, found.unwrap_or(1))
}

/// Where a source has the table of the probe that a refusal is about: file and line.
fn place_of_probe(source: &Source, refusal: &str) -> String {
    let table = if refusal.contains("liveness") {
        "liveness"
    } else if refusal.contains("start-up") {
        "startup"
    } else {
        "readiness"
    };
    place_of_table(source, table)
}

/// Where a source has a table: file and line.
fn place_of_table(source: &Source, table: &str) -> String {
    let is_table = |line: &str| line.trim_start().trim_start_matches('[').starts_with(table);
    let line = source.text.lines().position(is_table).map_or(1, |at| at + 1);
    format!("services/{}.toml:{line}", source.name)
}

/// The names on the way from one service to another along what they wait for, if there is one.
fn way_back<'a>(by_name: &BTreeMap<&'a str, &'a Definition>, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let mut seen = BTreeSet::from([from]);
    let mut open = vec![vec![from]];
    while let Some(way) = open.pop() {
        let last = *way.last()?;
        if last == to {
            return Some(way);
        }
        for next in members(by_name, last).iter().flat_map(|service| service.waits_for()) {
            if seen.insert(next.as_str()) {
                open.push([way.as_slice(), &[next.as_str()]].concat());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use byre_protocol::frame::decode_file;

    const POLICY: &str = "host_network = true\nhost_namespaces = false\nhost_users = true\ncapabilities = 0\n\
                          bind_sources = []\nno_seccomp = false\nhelpers = []\n";

    fn source(name: &str, needs: &str) -> Source {
        let text = format!(
            "name = \"{name}\"\nkind = \"service\"\nneeds = [{needs}]\n[launch]\nroot = \"host\"\nseccomp = \"none\"\n\
             [launch.process]\nargs = [\"/usr/bin/byred\", \"{name}\"]\nuser = {{ user = {{ id = 900 }}, group = {{ id = 900 }} }}\n\
             [launch.namespaces]\nuser = \"host\"\nmount = \"new\"\npid = \"host\"\nnet = \"host\"\nipc = \"new\"\nuts = \"host\"\n\
             cgroup = \"host\"\n"
        );
        Source { name: name.to_owned(), text }
    }

    #[test]
    fn what_is_compiled_is_what_pid_1_reads() {
        let bytes = compile(&[source("a", ""), source("b", "\"a\"")], POLICY).unwrap();
        let file: ServicesFile = decode_file(&bytes).unwrap();
        assert_eq!(file.services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn mistakes_are_named() {
        let says = |sources: &[Source]| format!("{:#}", compile(sources, POLICY).unwrap_err());
        assert!(says(&[source("a", "\"x\"")]).contains("services/a.toml:3: a waits for x"));
        let cycle = says(&[source("a", "\"b\""), source("b", "\"a\"")]);
        assert!(cycle.contains("services/a.toml:3: these wait for each other: a -> b -> a"), "{cycle}");
        let impatient = format!("{}[liveness]\ncheck = \"watchdog\"\ninterval_ms = 1\n", source("a", "").text);
        let impatient = says(&[Source { name: "a".to_owned(), text: impatient }]);
        assert!(impatient.contains("services/a.toml:18: interval_ms of the liveness probe"), "{impatient}");
        let renamed = Source { name: "c".to_owned(), text: source("a", "").text };
        assert!(says(&[renamed]).contains("name the file after it"));
        let unknown = Source { name: "a".to_owned(), text: "nmae = 1".to_owned() };
        assert!(says(&[unknown]).contains("services/a.toml is not a definition"));
    }

    #[test]
    fn every_key_is_documented() {
        let page =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/workloads.md")).unwrap();
        for table in [
            "",
            "restart",
            "readiness",
            "startup",
            "liveness",
            "stop",
            "log",
            "schedule",
            "launch",
            "launch.process",
            "launch.resources",
        ] {
            let header = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
            // What is refused names every key that would not be.
            let refusal = toml::from_str::<Definition>(&format!("{header}nonsense = 1")).unwrap_err().to_string();
            let keys: Vec<&str> = refusal.split('`').skip(1).step_by(2).filter(|key| *key != "nonsense").collect();
            assert!(keys.len() >= 2, "{table}: {refusal}");
            for key in keys {
                assert!(
                    page.contains(&format!("`{key}`")),
                    "docs/workloads.md does not say what {key} of [{table}] is"
                );
            }
        }
    }

    #[test]
    fn the_committed_definitions_compile_and_keep_the_services_apart() {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../files");
        let policy = std::fs::read_to_string(files.join("policy.toml")).unwrap();
        let bytes = compile(&read(&files.join("services")).unwrap(), &policy).unwrap();
        let file: ServicesFile = decode_file(&bytes).unwrap();
        let services = file
            .services
            .iter()
            .filter(|one| one.launch.process.args.first().is_some_and(|program| program == "/usr/bin/byred"));
        let mut users = Vec::new();
        for service in services {
            let process = &service.launch.process;
            assert!(
                process.no_new_privileges && service.launch.resources.memory_max_bytes.is_some(),
                "{}",
                service.name
            );
            // The probe's own file says why it has none.
            assert!(!service.launch.landlock.is_empty() || service.name.as_str() == "probe", "{}", service.name);
            assert!(!users.contains(&&process.user.user), "{} shares its user", service.name);
            users.push(&process.user.user);
        }
        assert!(users.len() >= 8);
    }
}

//! Ways in for a fuzzer: what a client's bytes become before they go to PID 1. What must hold of it is said in `tests/fuzz`.
//!
//! Nothing on a node calls these.

use byre_api::proto::{self, ContainerSpec};
use byre_plan::{Digest, Name, Process};
use byre_protocol::definition::Definition;
use byre_protocol::peer::ImageRecord;
use prost::Message;

use crate::{exec, spec};

/// The definition of a container, from an encoded specification and the configuration of its image.
///
/// # Panics
/// If the specification is not read back from what becomes of it.
#[must_use]
pub fn definition(message: &[u8], config_json: &str) -> Option<Definition> {
    let spec = ContainerSpec::decode(message).ok()?;
    let image = ImageRecord {
        id: "sha256:aa".into(),
        names: vec!["web:latest".into()],
        manifest_digest: None,
        layers: vec![Digest([1; 32])],
        size_bytes: 1,
        created_wall_ms: 0,
        config_json: config_json.to_owned(),
        origins: Vec::new(),
        accepted: true,
        verdict: String::new(),
    };
    let name = Name::try_from(spec.name.as_str()).or_else(|_| Name::try_from("web")).ok()?;
    let resolv_conf = "nameserver 10.0.2.3\n";
    let around = spec::Surroundings { image: &image, name, resolv_conf };
    let (definition, _warnings) = spec::definition(&spec, &around).ok()?;
    assert_eq!(spec::from_labels(&definition.labels).as_ref(), Some(&spec), "`inspect` shows what was asked for");
    Some(definition)
}

/// The process of an exec in a container of that definition, from an encoded start.
#[must_use]
pub fn process(workload: &Definition, message: &[u8]) -> Option<Process> {
    exec::process(workload, &proto::ExecStart::decode(message).ok()?).ok()
}

/// Encoded examples: a plain specification, one with most fields, an exec's start.
#[must_use]
pub fn examples() -> [Vec<u8>; 3] {
    let plain = ContainerSpec { image: "web".into(), ..ContainerSpec::default() };
    let volume = |source: &str, target: &str, tmpfs| proto::VolumeMount {
        source: source.into(),
        target: target.into(),
        tmpfs,
        ..proto::VolumeMount::default()
    };
    let full = ContainerSpec {
        name: "web-1".into(),
        image: "web".into(),
        entrypoint: vec!["/entry".into()],
        command: vec!["nginx".into(), "-g".into()],
        env: vec!["A=b".into()],
        user: "www:33".into(),
        working_dir: "/srv".into(),
        hostname: "web".into(),
        terminal: true,
        terminal_size: Some(proto::TerminalSize { rows: 40, columns: 100 }),
        init: true,
        restart: Some(proto::Restart { policy: proto::RestartPolicy::OnFailure.into(), maximum_retries: 3 }),
        network: proto::NetworkMode::Host.into(),
        volumes: vec![volume("data", "/data", false), volume("", "/tmp", true), volume("/srv", "/host", false)],
        limits: Some(proto::Limits {
            memory_bytes: Some(1 << 27),
            cpu_millis: Some(1500),
            pids: Some(9),
            ..proto::Limits::default()
        }),
        labels: [("a".to_owned(), "b".to_owned())].into(),
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["ALL".into()],
        stop_signal: "SIGUSR1".into(),
        stop_timeout: Some(prost_types::Duration { seconds: 3, nanos: 5 }),
        ..ContainerSpec::default()
    };
    let exec = proto::ExecStart {
        workload: "web-1".into(),
        command: vec!["sh".into()],
        env: vec!["A=c".into()],
        user: "0".into(),
        working_dir: "/".into(),
        terminal: true,
        ..proto::ExecStart::default()
    };
    [plain.encode_to_vec(), full.encode_to_vec(), exec.encode_to_vec()]
}

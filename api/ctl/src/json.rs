//! The API's messages as JSON, with the names of the proto file.
//!
//! A field that says nothing (an unset time, an empty run) is null, so that a program finds every name every time. Enumerations are
//! words, sizes are numbers, times are RFC 3339.

use byre_api::proto::{
    Cause, ContainerSpec, EventsResponse, Exit, GetNodeResponse, Image, InspectResponse, KernelLogResponse, Limits,
    Restart, Run, VersionResponse, VolumeMount, Workload, WorkloadStats,
};
use prost_types::Timestamp;
use serde_json::{Value, json};

use crate::filter::state;
use crate::text::rfc3339;

fn at(time: Option<&Timestamp>) -> Value {
    match rfc3339(time) {
        text if text.is_empty() => Value::Null,
        text => text.into(),
    }
}

/// `WORKLOAD_KIND_CONTAINER` without its prefix, in small letters.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// JSON inside a message, or its text if the node sent something else.
fn embedded(text: &str) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

pub(crate) fn exit(exit: Option<&Exit>) -> Value {
    exit.map_or(Value::Null, |exit| {
        json!({"code": exit.code, "signal": exit.signal, "out_of_memory": exit.out_of_memory, "reason": exit.reason})
    })
}

pub(crate) fn run(run: &Run) -> Value {
    json!({"started": at(run.started.as_ref()), "ended": at(run.ended.as_ref()), "exit": exit(run.exit.as_ref())})
}

pub(crate) fn cause(cause: &Cause) -> Value {
    json!({"workload": cause.workload, "reason": cause.reason, "text": cause.text, "details": cause.details})
}

pub(crate) fn workload(workload: &Workload) -> Value {
    json!({
        "id": workload.id,
        "name": workload.name,
        "kind": word(workload.kind().as_str_name(), "WORKLOAD_KIND_"),
        "state": state(workload),
        "phase": word(workload.phase().as_str_name(), "WORKLOAD_PHASE_"),
        "ready": workload.ready,
        "wanted_up": workload.wanted_up,
        "status": workload.status,
        "why": workload.why,
        "image": workload.image,
        "command": workload.command,
        "created": at(workload.created.as_ref()),
        "started": at(workload.started.as_ref()),
        "pid": workload.pid,
        "restarts": workload.restarts,
        "last_run": workload.last_run.as_ref().map_or(Value::Null, run),
        "labels": workload.labels,
    })
}

pub(crate) fn inspect(answer: &InspectResponse) -> Value {
    json!({
        "workload": answer.workload.as_ref().map_or(Value::Null, workload),
        "spec": answer.spec.as_ref().map_or(Value::Null, spec),
        "history": answer.history.iter().map(run).collect::<Vec<_>>(),
        "oom_kills": answer.oom_kills,
        "cgroup": answer.cgroup,
        "id_base": answer.id_base,
        "addresses": answer.addresses.iter().map(|one| json!({
            "network": one.network, "interface": one.interface, "address": one.address, "prefix": one.prefix,
        })).collect::<Vec<_>>(),
        "definition": embedded(&answer.definition_json),
    })
}

fn spec(spec: &ContainerSpec) -> Value {
    let stop_timeout = spec.stop_timeout.as_ref().map(|time| time.seconds as f64 + f64::from(time.nanos) / 1e9);
    json!({
        "name": spec.name,
        "image": spec.image,
        "entrypoint": spec.entrypoint,
        "clear_entrypoint": spec.clear_entrypoint,
        "command": spec.command,
        "env": spec.env,
        "user": spec.user,
        "working_dir": spec.working_dir,
        "hostname": spec.hostname,
        "terminal": spec.terminal,
        "open_stdin": spec.open_stdin,
        "remove_on_exit": spec.remove_on_exit,
        "read_only_root": spec.read_only_root,
        "init": spec.init,
        "restart": spec.restart.as_ref().map_or(Value::Null, restart),
        "network": word(spec.network().as_str_name(), "NETWORK_MODE_"),
        "networks": spec.networks.iter().map(|one| json!({
            "network": one.network, "aliases": one.aliases, "address": one.address,
        })).collect::<Vec<_>>(),
        "ports": spec.ports.iter().map(|port| json!({
            "transport": word(port.transport().as_str_name(), "TRANSPORT_"),
            "host_address": port.host_address,
            "host_port": port.host_port,
            "container_port": port.container_port,
        })).collect::<Vec<_>>(),
        "pod": spec.pod,
        "user_namespace": word(spec.user_namespace().as_str_name(), "USER_NAMESPACE_MODE_"),
        "volumes": spec.volumes.iter().map(volume).collect::<Vec<_>>(),
        "limits": spec.limits.as_ref().map_or(Value::Null, limits),
        "labels": spec.labels,
        "add_capabilities": spec.add_capabilities,
        "drop_capabilities": spec.drop_capabilities,
        "stop_signal": spec.stop_signal,
        "stop_timeout_seconds": stop_timeout,
        "privileged": spec.privileged,
    })
}

fn restart(restart: &Restart) -> Value {
    let policy = word(restart.policy().as_str_name(), "RESTART_POLICY_").replace('_', "-");
    json!({"policy": policy, "maximum_retries": restart.maximum_retries})
}

fn volume(volume: &VolumeMount) -> Value {
    json!({
        "source": volume.source,
        "target": volume.target,
        "read_only": volume.read_only,
        "tmpfs": volume.tmpfs,
        "tmpfs_size_bytes": volume.tmpfs_size_bytes,
    })
}

fn limits(limits: &Limits) -> Value {
    json!({
        "memory_bytes": limits.memory_bytes,
        "memory_swap_bytes": limits.memory_swap_bytes,
        "cpu_millis": limits.cpu_millis,
        "pids": limits.pids,
        "cpu_weight": limits.cpu_weight,
        "cpuset": limits.cpuset,
    })
}

pub(crate) fn stats(time: Option<&Timestamp>, stats: &WorkloadStats) -> Value {
    json!({
        "at": at(time),
        "id": stats.id,
        "name": stats.name,
        "cpu_usage_us": stats.cpu_usage_us,
        "cpu_percent": stats.cpu_percent,
        "memory_bytes": stats.memory_bytes,
        "memory_limit_bytes": stats.memory_limit_bytes,
        "memory_anonymous_bytes": stats.memory_anonymous_bytes,
        "memory_file_bytes": stats.memory_file_bytes,
        "processes": stats.processes,
        "io_read_bytes": stats.io_read_bytes,
        "io_written_bytes": stats.io_written_bytes,
        "oom_kills": stats.oom_kills,
    })
}

pub(crate) fn event(event: &EventsResponse) -> Value {
    json!({
        "number": event.number,
        "at": at(event.at.as_ref()),
        "id": event.id,
        "name": event.name,
        "action": event.action,
        "exit": exit(event.exit.as_ref()),
        "detail": event.detail,
    })
}

pub(crate) fn image(image: &Image) -> Value {
    json!({
        "id": image.id,
        "names": image.names,
        "manifest_digest": image.manifest_digest,
        "size_bytes": image.size_bytes,
        "created": at(image.created.as_ref()),
        "layers": image.layers,
        "origins": image.origins,
        "policy": { "accepted": image.accepted, "verdict": image.verdict },
        "config": embedded(&image.config_json),
    })
}

pub(crate) fn version(version: &VersionResponse) -> Value {
    json!({
        "os_version": version.os_version,
        "slot": version.slot,
        "kernel": version.kernel,
        "api": version.api,
        "root_hash": version.root_hash,
    })
}

/// All facts, and beside them what the message says itself.
pub(crate) fn node(node: &GetNodeResponse) -> Value {
    let conditions: Vec<Value> =
        node.conditions.iter().map(|it| json!({"name": it.name, "ok": it.ok, "detail": it.detail})).collect();
    json!({
        "hostname": node.hostname,
        "machine_id": node.machine_id,
        "version": node.version.as_ref().map_or(Value::Null, version),
        "memory_bytes": node.memory_bytes,
        "memory_allocatable_bytes": node.memory_allocatable_bytes,
        "processors": node.processors,
        "cpu_allocatable_millis": node.cpu_allocatable_millis,
        "booted": at(node.booted.as_ref()),
        "conditions": conditions,
        "facts": embedded(&node.facts_json),
    })
}

pub(crate) fn kernel_line(line: &KernelLogResponse) -> Value {
    let since_boot = line.since_boot.as_ref().map(|time| time.seconds as f64 + f64::from(time.nanos) / 1e9);
    json!({"priority": line.priority, "sequence": line.sequence, "since_boot_seconds": since_boot, "text": line.text})
}

#[cfg(test)]
mod tests {
    use byre_api::proto::{RestartPolicy, WorkloadKind, WorkloadPhase};

    use super::*;

    #[test]
    fn a_workload_has_every_name_and_words_for_enumerations() {
        let value = workload(&Workload {
            id: "3f2a".into(),
            kind: WorkloadKind::Container.into(),
            phase: WorkloadPhase::Up.into(),
            created: Some(Timestamp { seconds: 0, nanos: 0 }),
            ..Workload::default()
        });
        assert_eq!(value["kind"], "container");
        assert_eq!(value["state"], "running");
        assert_eq!(value["created"], "1970-01-01T00:00:00Z");
        assert!(value.as_object().unwrap().contains_key("started") && value["started"].is_null());
        assert_eq!(
            restart(&Restart { policy: RestartPolicy::UnlessStopped.into(), maximum_retries: 0 })["policy"],
            "unless-stopped"
        );
    }

    #[test]
    fn embedded_json_is_json_and_anything_else_is_text() {
        assert_eq!(embedded("{\"a\": 1}")["a"], 1);
        assert_eq!(embedded("not json"), "not json");
        assert!(embedded("").is_null());
    }

    #[test]
    fn an_enumeration_this_program_does_not_know_is_no_panic() {
        let value = workload(&Workload { kind: 99, phase: 99, ..Workload::default() });
        assert_eq!((&value["kind"], &value["state"]), (&"unspecified".into(), &"unknown".into()));
    }
}

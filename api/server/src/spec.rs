//! From a client's specification and an image to a definition that PID 1 takes. Pure. Every field is used or refused by name.
//!
//! What is checked here is what only this side knows (the image's configuration, names of signals and policies); bounds and the node's policy are
//! PID 1's to check, and its refusal reaches the client as it is.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use byre_api::proto::{self, ContainerSpec};
use byre_plan::{Mount, MountOptions, MountSource, Name, Principal, Program, Root, TerminalSize, User};
use byre_protocol::definition::{Definition, Kind, LABEL_BYTES, LABELS, LogPolicy, Readiness, Restart, Stop};
use byre_protocol::peer::ImageRecord;
use prost::Message;
use serde::Deserialize;
use tonic::Status;

use crate::convert::{self, LABEL_COMMAND, LABEL_IMAGE, LABEL_IMAGE_ID, LABEL_SPEC, OWN_LABELS};
use crate::{defaults, signals};

/// Labels that hold the specification at most: 64 KiB of it, half of what fits into a message.
const SPEC_LABELS: usize = 16;
/// Characters of the command shown in lists.
const COMMAND_CHARACTERS: usize = 200;
/// PATH of a container whose image sets none, as docker has it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// CPU time that one thousandth of a processor is, per 100 ms, in microseconds.
const QUOTA_US_PER_MILLI: u64 = 100;

/// An image's configuration (OCI image-spec 1.1, config.md); what is not named here does not matter to a start.
#[derive(Debug, Default, Deserialize)]
struct ImageConfig {
    #[serde(default)]
    config: Option<ImageDefaults>,
}

/// Keys may be present and null, as docker writes them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ImageDefaults {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

/// What surrounds a specification.
pub(crate) struct Surroundings<'a> {
    /// The image.
    pub image: &'a ImageRecord,
    /// The container's name.
    pub name: Name,
    /// Content of the host's resolv.conf.
    pub resolv_conf: &'a str,
    /// Makes names of nameless volumes.
    pub volume_name: &'a mut (dyn FnMut() -> Result<Name, Status> + Send),
}

fn invalid(text: String) -> Status {
    Status::invalid_argument(text)
}

/// Makes the definition, and warnings for people.
///
/// # Errors
/// `INVALID_ARGUMENT` that names the field and the remedy.
pub(crate) fn definition(
    spec: &ContainerSpec,
    around: &mut Surroundings<'_>,
) -> Result<(Definition, Vec<String>), Status> {
    let config: ImageConfig = serde_json::from_str(&around.image.config_json).map_err(|error| {
        invalid(format!("image {}: its configuration is malformed ({error}): build it anew", spec.image))
    })?;
    let image = config.config.unwrap_or_default();
    let args = arguments(spec, &image)?;
    let labels = labels(spec, around.image, &args)?;
    let mut warnings = Vec::new();

    let mut launch = defaults::container(spec.privileged, network(spec)?, user_namespace(spec)?);
    launch.root = Root::Layers { layers: around.image.layers.clone(), read_only: spec.read_only_root };
    launch.process.program = if spec.init { Program::Helper } else { Program::Path };
    launch.process.args = if spec.init { std::iter::once("init".to_owned()).chain(args).collect() } else { args };
    launch.process.env = environment(spec, &image, &around.name)?;
    launch.process.cwd = working_directory(spec, &image)?;
    launch.process.user =
        user(if spec.user.is_empty() { image.user.as_deref().unwrap_or_default() } else { &spec.user })?;
    launch.process.terminal = if spec.terminal { Some(terminal_size(spec.terminal_size.as_ref())) } else { None };
    defaults::capabilities(&mut launch.process.capabilities, &spec.add_capabilities, &spec.drop_capabilities)?;
    resources(&mut launch.resources, spec.limits.as_ref())?;

    let hostname = if spec.hostname.is_empty() { around.name.to_string() } else { spec.hostname.clone() };
    if network(spec)? == proto::NetworkMode::Host && !spec.hostname.is_empty() {
        warnings.push("the container is on the host's network; its host name is its own all the same".into());
    }
    generated_files(&mut launch.mounts, spec, &hostname, around.resolv_conf)?;
    launch.hostname = Some(hostname);
    volumes(&mut launch.mounts, spec, &image, around.volume_name)?;

    let restart = spec.restart.unwrap_or_default();
    let policy = proto::RestartPolicy::try_from(restart.policy).map_err(|_| {
        invalid(format!(
            "restart.policy {} is not known: use never, on-failure, always or unless-stopped",
            restart.policy
        ))
    })?;
    if spec.remove_on_exit && !matches!(policy, proto::RestartPolicy::Unspecified | proto::RestartPolicy::Never) {
        return Err(invalid("remove_on_exit and a restart policy exclude each other: give one of them".into()));
    }
    let definition = Definition {
        name: around.name.clone(),
        kind: Kind::Container,
        launch,
        needs: Vec::new(),
        after: Vec::new(),
        restart: Restart { policy: convert::restart_policy(policy, restart.maximum_retries), ..Restart::default() },
        readiness: Readiness::default(),
        stop: stop(spec, &image)?,
        log: LogPolicy::default(),
        grants: Vec::new(),
        labels,
        open_stdin: spec.open_stdin,
        remove_on_exit: spec.remove_on_exit,
        shutdown_priority: 0,
    };
    Ok((definition, warnings))
}

fn arguments(spec: &ContainerSpec, image: &ImageDefaults) -> Result<Vec<String>, Status> {
    let replaced = spec.clear_entrypoint || !spec.entrypoint.is_empty();
    let entrypoint = if replaced { &spec.entrypoint } else { image.entrypoint.as_deref().unwrap_or_default() };
    // A replaced entrypoint does not go with the image's command, as with docker.
    let command = match (spec.command.is_empty(), replaced) {
        (false, _) => &spec.command,
        (true, true) => &[][..],
        (true, false) => image.cmd.as_deref().unwrap_or_default(),
    };
    let args: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(invalid(format!("image {} says not what to run: give a command, or an entrypoint", spec.image)));
    }
    match args.iter().find(|arg| arg.contains('\0')) {
        Some(_) => Err(invalid("command: an argument has a zero byte: leave it out".into())),
        None => Ok(args),
    }
}

fn environment(spec: &ContainerSpec, image: &ImageDefaults, name: &Name) -> Result<Vec<String>, Status> {
    let defaults = [
        PATH.to_owned(),
        format!("HOSTNAME={}", if spec.hostname.is_empty() { name.as_str() } else { &spec.hostname }),
    ];
    let terminal = spec.terminal.then(|| "TERM=xterm".to_owned());
    let mut merged: Vec<String> = Vec::new();
    let all = defaults.iter().chain(&terminal).chain(image.env.iter().flatten()).chain(&spec.env);
    for entry in all {
        let Some((key, _)) = entry.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(invalid(format!("env {entry:?} is not of the form NAME=value")));
        };
        let same = |other: &&mut String| other.split_once('=').is_some_and(|(other, _)| other == key);
        match merged.iter_mut().find(same) {
            Some(earlier) => earlier.clone_from(entry),
            None => merged.push(entry.clone()),
        }
    }
    Ok(merged)
}

fn working_directory(spec: &ContainerSpec, image: &ImageDefaults) -> Result<String, Status> {
    let directory =
        if spec.working_dir.is_empty() { image.working_dir.as_deref().unwrap_or("") } else { &spec.working_dir };
    match directory {
        "" => Ok("/".into()),
        directory if directory.starts_with('/') => Ok(directory.to_owned()),
        // Some images have it without the slash; docker takes it from the root.
        directory if spec.working_dir.is_empty() => Ok(format!("/{directory}")),
        directory => Err(invalid(format!("working_dir {directory:?} is not absolute: begin it with a slash"))),
    }
}

/// `user[:group]`, each a number or a name.
///
/// # Errors
/// `INVALID_ARGUMENT` if a part is empty.
pub(crate) fn user(text: &str) -> Result<User, Status> {
    if text.is_empty() {
        return Ok(User::default());
    }
    let principal = |part: &str| match part.parse::<u32>() {
        Ok(id) => Ok(Principal::Id(id)),
        Err(_) if part.is_empty() => Err(invalid(format!("user {text:?} is not of the form user or user:group"))),
        Err(_) => Ok(Principal::Name(part.to_owned())),
    };
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (principal(user)?, Some(principal(group)?)),
        None => (principal(text)?, None),
    };
    Ok(User { user, group, ..User::default() })
}

/// A terminal's size; 80 by 24 where the client gave none.
#[must_use]
pub(crate) fn terminal_size(size: Option<&proto::TerminalSize>) -> TerminalSize {
    let bounded = |number: u32, otherwise: u16| match u16::try_from(number) {
        Ok(0) => otherwise,
        Ok(number) => number,
        Err(_) => u16::MAX,
    };
    let size = size.copied().unwrap_or_default();
    TerminalSize { rows: bounded(size.rows, 24), columns: bounded(size.columns, 80) }
}

fn network(spec: &ContainerSpec) -> Result<proto::NetworkMode, Status> {
    proto::NetworkMode::try_from(spec.network)
        .map_err(|_| invalid(format!("network {} is not known: use none or host", spec.network)))
}

fn user_namespace(spec: &ContainerSpec) -> Result<proto::UserNamespaceMode, Status> {
    proto::UserNamespaceMode::try_from(spec.user_namespace)
        .map_err(|_| invalid(format!("user_namespace {} is not known: use automatic or host", spec.user_namespace)))
}

fn resources(resources: &mut byre_plan::Resources, limits: Option<&proto::Limits>) -> Result<(), Status> {
    let Some(limits) = limits else { return Ok(()) };
    let positive = |value: Option<u64>, what: &str| match value {
        Some(0) => Err(invalid(format!("limits.{what} is 0: give a positive number, or leave it out for no limit"))),
        value => Ok(value),
    };
    resources.memory_max_bytes = positive(limits.memory_bytes, "memory_bytes")?.or(resources.memory_max_bytes);
    resources.swap_max_bytes = limits.memory_swap_bytes.or(resources.swap_max_bytes);
    resources.pids_max = positive(limits.pids, "pids")?.or(resources.pids_max);
    if let Some(millis) = positive(limits.cpu_millis, "cpu_millis")? {
        // The kernel takes no quota below a millisecond.
        resources.cpu_quota_us = Some(millis.saturating_mul(QUOTA_US_PER_MILLI).max(1000));
    }
    if let Some(weight) = limits.cpu_weight {
        let weight = u16::try_from(weight).ok().filter(|weight| (1..=10_000).contains(weight));
        resources.cpu_weight = Some(weight.ok_or_else(|| invalid("limits.cpu_weight must be 1 to 10000".into()))?);
    }
    resources.cpuset_cpus.clone_from(&limits.cpuset);
    Ok(())
}

fn stop(spec: &ContainerSpec, image: &ImageDefaults) -> Result<Stop, Status> {
    let mut stop = Stop::default();
    let signal =
        if spec.stop_signal.is_empty() { image.stop_signal.as_deref().unwrap_or("") } else { &spec.stop_signal };
    if !signal.is_empty() {
        stop.signal = signals::number(signal)?;
    }
    if let Some(timeout) = &spec.stop_timeout {
        stop.grace_ms = convert::duration_ms(timeout, "stop_timeout")?;
    }
    Ok(stop)
}

fn generated_files(
    mounts: &mut Vec<Mount>,
    spec: &ContainerSpec,
    hostname: &str,
    resolv_conf: &str,
) -> Result<(), Status> {
    let resolv_conf = match network(spec)? {
        proto::NetworkMode::Host => resolv_conf,
        proto::NetworkMode::Unspecified | proto::NetworkMode::None => "",
    };
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n");
    let files = [
        ("/etc/hosts", hosts),
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/resolv.conf", resolv_conf.to_owned()),
    ];
    for (target, content) in files {
        // A volume or a bind mount of the client's at the same place is meant instead.
        if !spec.volumes.iter().any(|volume| volume.target == target) {
            mounts.push(Mount {
                target: target.into(),
                source: MountSource::GeneratedFile(content),
                options: MountOptions { no_suid: true, no_dev: true, no_exec: true, ..MountOptions::default() },
            });
        }
    }
    Ok(())
}

fn volumes(
    mounts: &mut Vec<Mount>,
    spec: &ContainerSpec,
    image: &ImageDefaults,
    volume_name: &mut dyn FnMut() -> Result<Name, Status>,
) -> Result<(), Status> {
    let mut wanted: Vec<proto::VolumeMount> = spec.volumes.clone();
    for target in image.volumes.iter().flat_map(BTreeMap::keys) {
        let target = target.trim_end_matches('/');
        if !wanted.iter().any(|volume| volume.target.trim_end_matches('/') == target) {
            wanted.push(proto::VolumeMount { target: target.to_owned(), ..proto::VolumeMount::default() });
        }
    }
    for volume in wanted {
        if !volume.target.starts_with('/') || volume.target == "/" {
            return Err(invalid(format!(
                "volumes: target {:?} must be an absolute path below the root",
                volume.target
            )));
        }
        let no_suid_no_dev =
            MountOptions { no_suid: true, no_dev: true, read_only: volume.read_only, ..MountOptions::default() };
        let (source, options) = if volume.tmpfs {
            if !volume.source.is_empty() {
                return Err(invalid(format!(
                    "volumes: {:?} is a tmpfs and has a source: leave one out",
                    volume.target
                )));
            }
            (MountSource::Tmpfs { size_bytes: volume.tmpfs_size_bytes, mode: 0o1777 }, no_suid_no_dev)
        } else if volume.source.is_empty() {
            (MountSource::Volume(volume_name()?), no_suid_no_dev)
        } else if volume.source.starts_with('/') {
            let options = MountOptions { recursive: true, ..no_suid_no_dev };
            (MountSource::Bind { path: volume.source, recursive: true }, options)
        } else {
            let name = Name::try_from(volume.source).map_err(|error| invalid(format!("volumes: {error}")))?;
            (MountSource::Volume(name), no_suid_no_dev)
        };
        let target = volume.target;
        // What is mounted at the same place by default gives way.
        mounts.retain(|mount| mount.target != target);
        mounts.push(Mount { target, source, options });
    }
    Ok(())
}

fn labels(spec: &ContainerSpec, image: &ImageRecord, args: &[String]) -> Result<Vec<(String, String)>, Status> {
    let mut labels: Vec<(String, String)> = Vec::new();
    for (key, value) in &spec.labels {
        if key.is_empty() || key.starts_with(OWN_LABELS) {
            return Err(invalid(format!(
                "label {key:?}: choose a name that is not empty and does not begin with {OWN_LABELS:?}"
            )));
        }
        if key.len() > LABEL_BYTES || value.len() > LABEL_BYTES {
            return Err(invalid(format!("label {key:?} is longer than {LABEL_BYTES} bytes: shorten it")));
        }
        labels.push((key.clone(), value.clone()));
    }
    labels.push((LABEL_IMAGE.into(), spec.image.clone()));
    labels.push((LABEL_IMAGE_ID.into(), image.id.clone()));
    labels.push((LABEL_COMMAND.into(), args.join(" ").chars().take(COMMAND_CHARACTERS).collect()));
    let encoded = BASE64.encode(spec.encode_to_vec());
    let mut rest = encoded.as_str();
    let mut part = 0;
    while !rest.is_empty() {
        if part == SPEC_LABELS {
            return Err(invalid(
                "the specification is longer than 48 KiB: shorten its environment, arguments or labels".into(),
            ));
        }
        // Base64 is ASCII, so every index is a character boundary.
        let (head, tail) = rest.split_at(rest.len().min(LABEL_BYTES));
        let key = if part == 0 { LABEL_SPEC.to_owned() } else { format!("{LABEL_SPEC}.{part}") };
        labels.push((key, head.to_owned()));
        rest = tail;
        part += 1;
    }
    if labels.len() > LABELS {
        return Err(invalid(format!("{} labels with the node's own are more than {LABELS}: use fewer", labels.len())));
    }
    Ok(labels)
}

/// The specification that a container was made from.
#[must_use]
pub(crate) fn from_labels(labels: &[(String, String)]) -> Option<ContainerSpec> {
    let mut encoded = convert::label(labels, LABEL_SPEC)?.to_owned();
    for part in 1..SPEC_LABELS {
        match convert::label(labels, &format!("{LABEL_SPEC}.{part}")) {
            Some(more) => encoded.push_str(more),
            None => break,
        }
    }
    ContainerSpec::decode(BASE64.decode(encoded).ok()?.as_slice()).ok()
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;

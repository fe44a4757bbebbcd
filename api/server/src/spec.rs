//! From a client's specification and an image to a definition that PID 1 takes. Pure. Every field is used or refused by name.
//!
//! What is checked here is what only this side knows (the image's configuration, names of signals and policies); bounds and the node's policy are
//! PID 1's to check, and its refusal reaches the client as it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use byre_api::proto::{self, ContainerSpec};
use byre_plan::{
    Capabilities, LaunchRequest, Mount, MountOptions, MountSource, Name, Namespace, Program, Root, Seccomp,
    TerminalSize, User, UserNamespace,
};
use byre_protocol::definition::{Definition, Kind, LABEL_BYTES, LABELS, LogPolicy, Restart, Stop};
use byre_protocol::peer::ImageRecord;
use byre_protocol::probe::Aim;
use byre_spec::{Arguments, ContainerDefaults, ImageConfig};
use prost::Message;
use tonic::Status;

use crate::convert::{self, LABEL_COMMAND, LABEL_IMAGE, LABEL_IMAGE_ID, LABEL_SPEC, OWN_LABELS};
use crate::{networking, probes, schedules};

/// Labels that hold the specification at most: 64 KiB of it, half of what fits into a message.
const SPEC_LABELS: usize = 16;
/// Characters of the command shown in lists.
const COMMAND_CHARACTERS: usize = 200;
/// CPU time that one thousandth of a processor is, per 100 ms, in microseconds.
const QUOTA_US_PER_MILLI: u64 = 100;

/// What surrounds a specification.
pub(crate) struct Surroundings<'a> {
    /// The image.
    pub image: &'a ImageRecord,
    /// The container's name.
    pub name: Name,
    /// Content of the host's resolv.conf.
    pub resolv_conf: &'a str,
}

fn invalid(text: String) -> Status {
    Status::invalid_argument(text)
}

/// Makes the definition, and warnings for people.
///
/// # Errors
/// `INVALID_ARGUMENT` that names the field and the remedy.
pub(crate) fn definition(spec: &ContainerSpec, around: &Surroundings<'_>) -> Result<(Definition, Vec<String>), Status> {
    let image = byre_spec::read_image_config(&around.image.config_json)
        .map_err(|error| invalid(format!("image {}: {error}", spec.image)))?;
    let replaced = spec.clear_entrypoint || !spec.entrypoint.is_empty();
    let args = byre_spec::arguments(Arguments {
        image_entrypoint: &image.entrypoint,
        image_cmd: &image.cmd,
        entrypoint: replaced.then_some(spec.entrypoint.as_slice()),
        command: &spec.command,
    })
    .map_err(|error| invalid(format!("image {}: {error}", spec.image)))?;
    let labels = labels(spec, around.image, &args)?;
    let mut warnings = Vec::new();

    let mut launch = byre_spec::default_container(ContainerDefaults { layers: around.image.layers.clone(), args });
    launch.root = Root::Layers { layers: around.image.layers.clone(), read_only: spec.read_only_root };
    if spec.init {
        launch.process.program = Program::Helper;
        launch.process.args.splice(0..0, ["init".into(), "--".into()]);
    }
    isolation(&mut launch, spec)?;
    launch.process.env = environment(spec, &image, &around.name)?;
    launch.process.cwd = working_directory(spec, &image)?;
    launch.process.user = user(if spec.user.is_empty() { &image.user } else { &spec.user })?;
    launch.process.terminal = spec.terminal.then(|| terminal_size(spec.terminal_size.as_ref()));
    resources(&mut launch.resources, spec.limits.as_ref())?;

    let hostname = if spec.hostname.is_empty() { around.name.to_string() } else { spec.hostname.clone() };
    if network(spec)? == proto::NetworkMode::Host && !spec.hostname.is_empty() {
        warnings.push("the container is on the host's network; its host name is its own all the same".into());
    }
    generated_files(&mut launch.mounts, spec, &hostname, around.resolv_conf)?;
    let pod = networking::pod(spec)?;
    launch.hostname = pod.is_none().then_some(hostname);
    volumes(&mut launch.mounts, spec, &image)?;

    let definition = Definition {
        name: around.name.clone(),
        kind: if spec.job { Kind::Job } else { Kind::Container },
        launch,
        needs: Vec::new(),
        after: Vec::new(),
        restart: restart(spec)?,
        readiness: probes::readiness(spec.readiness.as_ref())?,
        stop: stop(spec, &image)?,
        log: LogPolicy::default(),
        grants: Vec::new(),
        labels,
        open_stdin: spec.open_stdin,
        remove_on_exit: spec.remove_on_exit,
        shutdown_priority: 0,
        binds_to: Vec::new(),
        deadline_ms: limit(spec.deadline.as_ref(), "deadline")?,
        run_limit_ms: limit(spec.run_limit.as_ref(), "run_limit")?,
        startup: probes::probe(spec.startup.as_ref(), Aim::Startup)?,
        liveness: probes::probe(spec.liveness.as_ref(), Aim::Liveness)?,
        pod,
        network: networking::network(spec, &around.name)?,
        schedule: schedules::schedule(spec.schedule.as_ref())?,
        group: group(&spec.group)?,
    };
    Ok((definition, warnings))
}

/// When it is started again, and whether that goes with the rest.
fn restart(spec: &ContainerSpec) -> Result<Restart, Status> {
    let restart = spec.restart.unwrap_or_default();
    let policy = proto::RestartPolicy::try_from(restart.policy).map_err(|_| {
        invalid(format!(
            "restart.policy {} is not known: use never, on-failure, always or unless-stopped",
            restart.policy
        ))
    })?;
    if spec.deadline.is_some() && !spec.job {
        return Err(invalid("deadline is a job's: set job, or give run_limit for the longest run".into()));
    }
    if spec.remove_on_exit && !matches!(policy, proto::RestartPolicy::Unspecified | proto::RestartPolicy::Never) {
        return Err(invalid("remove_on_exit and a restart policy exclude each other: give one of them".into()));
    }
    Ok(Restart { policy: convert::restart_policy(policy, restart.maximum_retries), ..Restart::default() })
}

/// The group's name; empty is none.
fn group(text: &str) -> Result<Option<Name>, Status> {
    let named = (!text.is_empty()).then(|| Name::try_from(text)).transpose();
    named.map_err(|error| invalid(format!("spec.group: {error}")))
}

/// A limit of time; 0 is none.
fn limit(duration: Option<&prost_types::Duration>, what: &str) -> Result<u32, Status> {
    Ok(duration.map(|duration| convert::duration_ms(duration, what)).transpose()?.unwrap_or(0))
}

/// Namespaces and rights.
fn isolation(launch: &mut LaunchRequest, spec: &ContainerSpec) -> Result<(), Status> {
    launch.namespaces.user = match user_namespace(spec)? {
        proto::UserNamespaceMode::Host => UserNamespace::Host,
        proto::UserNamespaceMode::Unspecified | proto::UserNamespaceMode::Automatic => UserNamespace::Automatic,
    };
    match network(spec)? {
        proto::NetworkMode::Host => {
            launch.namespaces.net = Namespace::Host;
            // /sys is a bind of the host's then, with mounts below it that must be read-only too.
            for mount in launch.mounts.iter_mut().filter(|mount| mount.source == MountSource::Sysfs) {
                mount.options.recursive = true;
            }
        }
        proto::NetworkMode::Unspecified | proto::NetworkMode::None | proto::NetworkMode::Bridge => {}
    }
    let mut set = launch.process.capabilities.bounding;
    if spec.privileged {
        set = byre_spec::ALL_CAPABILITIES;
        launch.process.no_new_privileges = false;
        launch.seccomp = Seccomp::None;
        launch.masked_paths.clear();
        launch.read_only_paths.clear();
    }
    let mask = |name: &String| byre_spec::capability(name).map_err(|error| invalid(error.to_string()));
    // "Drop all, add some" and "add all, drop some" both mean what they say.
    let (drop_all, drop): (Vec<_>, Vec<_>) =
        spec.drop_capabilities.iter().partition(|name| name.eq_ignore_ascii_case("all"));
    if !drop_all.is_empty() {
        set = 0;
    }
    for name in &spec.add_capabilities {
        set |= mask(name)?;
    }
    for name in drop {
        set &= !mask(name)?;
    }
    launch.process.capabilities =
        Capabilities { bounding: set, effective: set, permitted: set, inheritable: 0, ambient: 0 };
    Ok(())
}

fn environment(spec: &ContainerSpec, image: &ImageConfig, name: &Name) -> Result<Vec<String>, Status> {
    if let Some(bad) = spec.env.iter().find(|entry| entry.split_once('=').is_none_or(|(key, _)| key.is_empty())) {
        return Err(invalid(format!("env {bad:?} is not of the form NAME=value")));
    }
    let hostname = format!("HOSTNAME={}", if spec.hostname.is_empty() { name.as_str() } else { &spec.hostname });
    let terminal = spec.terminal.then_some("TERM=xterm");
    let ours = [byre_spec::DEFAULT_PATH, hostname.as_str()].into_iter().chain(terminal);
    let theirs = image.env.iter().chain(&spec.env).map(String::as_str);
    Ok(byre_spec::merge_environment(ours.chain(theirs)))
}

fn working_directory(spec: &ContainerSpec, image: &ImageConfig) -> Result<String, Status> {
    match spec.working_dir.as_str() {
        "" => Ok(image.working_dir.clone()),
        directory if directory.starts_with('/') => Ok(directory.to_owned()),
        directory => Err(invalid(format!("working_dir {directory:?} is not absolute: begin it with a slash"))),
    }
}

/// `user[:group]`, each a number or a name.
///
/// # Errors
/// `INVALID_ARGUMENT` if a part is malformed.
pub(crate) fn user(text: &str) -> Result<User, Status> {
    byre_spec::parse_user(text).map_err(|error| invalid(error.to_string()))
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

/// How a container is networked.
///
/// # Errors
/// `INVALID_ARGUMENT` if the mode is not known.
pub(crate) fn network(spec: &ContainerSpec) -> Result<proto::NetworkMode, Status> {
    proto::NetworkMode::try_from(spec.network)
        .map_err(|_| invalid(format!("network {} is not known: use none, host or bridge", spec.network)))
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

fn stop(spec: &ContainerSpec, image: &ImageConfig) -> Result<Stop, Status> {
    let mut stop = Stop::default();
    let signal =
        if spec.stop_signal.is_empty() { image.stop_signal.as_deref() } else { Some(spec.stop_signal.as_str()) };
    if let Some(signal) = signal {
        stop.signal = signal_number(signal)?;
    }
    if let Some(timeout) = &spec.stop_timeout {
        stop.grace_ms = convert::duration_ms(timeout, "stop_timeout")?;
    }
    Ok(stop)
}

/// The number of a signal that is given as `TERM`, `SIGTERM`, `15` or `RTMIN+3`.
///
/// # Errors
/// `INVALID_ARGUMENT` if there is no such signal.
pub(crate) fn signal_number(text: &str) -> Result<u8, Status> {
    byre_spec::signal_number(text).map_err(|error| invalid(error.to_string()))
}

fn generated_files(
    mounts: &mut Vec<Mount>,
    spec: &ContainerSpec,
    hostname: &str,
    resolv_conf: &str,
) -> Result<(), Status> {
    let mut hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n");
    hosts.push_str(&networking::extra_hosts(spec)?);
    let resolv_conf = networking::resolv_conf(spec, resolv_conf)?;
    let files = [("/etc/hosts", hosts), ("/etc/hostname", format!("{hostname}\n")), ("/etc/resolv.conf", resolv_conf)];
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

fn volumes(mounts: &mut Vec<Mount>, spec: &ContainerSpec, image: &ImageConfig) -> Result<(), Status> {
    let mut wanted: Vec<proto::VolumeMount> = spec.volumes.clone();
    for target in &image.volumes {
        let target = target.trim_end_matches('/');
        if !wanted.iter().any(|volume| volume.target.trim_end_matches('/') == target) {
            wanted.push(proto::VolumeMount { target: target.to_owned(), ..proto::VolumeMount::default() });
        }
    }
    for (number, volume) in (0..).zip(wanted) {
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
            (MountSource::OwnVolume(number), no_suid_no_dev)
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

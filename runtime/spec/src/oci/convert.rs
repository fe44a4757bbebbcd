//! A bundle's configuration to a launch request.

use byre_plan::{
    IdMap, KernelSettings, LaunchRequest, Namespace, Namespaces, Node, NodeKind, Program, Propagation, Refusal, Root,
    Seccomp, TimeOffsets, User, UserNamespace,
};

use super::config::{Config, Device, Hook, Hooks, IdMapping, Linux, Offset, Personality};
use super::fields::refusal;
use super::{
    ANNOTATIONS, Around, Bundle, HOOKS, VERSION_MAX, VERSION_MIN, kernel, mounts, process, resources, seccomp,
};

/// Types of namespaces that a bundle may name.
pub const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];

/// Interfaces of one container.
const NET_DEVICES: usize = 64;
/// PER_LINUX32 of personality(2).
const LINUX32: u32 = 8;

pub(super) fn bundle(config: Config, around: &Around<'_>, warnings: &mut Vec<String>) -> Result<Bundle, Refusal> {
    version(&config.oci_version)?;
    hooks(&config.hooks)?;
    if config.annotations.len() > ANNOTATIONS {
        let reason = format!("has {}", config.annotations.len());
        return Err(refusal("annotations", reason, format!("use at most {ANNOTATIONS}")));
    }
    let mut notes = Vec::new();
    let has_process = config.process.is_some();
    let process = match config.process {
        Some(wanted) => process::process(wanted, around, warnings)?,
        None => nothing(),
    };
    if config.root.path.is_empty() {
        return Err(refusal("root.path", "is missing", "name the directory that holds the root file system"));
    }
    let linux = config.linux;
    let net_devices = net_devices(&linux)?;
    let namespaces = namespaces(&linux)?;
    let devices = resources::device_rules(&linux.resources.devices, &linux.devices)?;
    let nodes = nodes(&linux.devices, mounts::keeps_dev(&config.mounts))?;
    let mapped_mounts = (config.mounts.iter().enumerate())
        .filter_map(|(index, mount)| kernel::mapped(index, mount).transpose())
        .collect::<Result<_, _>>()?;
    let listener = linux.seccomp.as_ref().map_or(Ok(None), seccomp::listener)?;
    let request = LaunchRequest {
        process,
        root: Root::Directory { path: joined(around.bundle, &config.root.path), read_only: config.root.readonly },
        mounts: config
            .mounts
            .into_iter()
            .enumerate()
            .map(|(index, mount)| mounts::mount(index, mount, around.bundle))
            .collect::<Result<_, _>>()?,
        hostname: Some(config.hostname).filter(|name| !name.is_empty()),
        resources: resources::resources(&linux.resources)?,
        devices,
        sysctls: linux.sysctl.clone().into_iter().collect(),
        masked_paths: linux.masked_paths.clone(),
        read_only_paths: linux.readonly_paths.clone(),
        seccomp: linux.seccomp.as_ref().map_or(Ok(Seccomp::None), |filter| seccomp::filter(filter, &mut notes))?,
        landlock: kernel::landlock(&config.annotations)?,
        nodes,
        kernel: KernelSettings {
            domain_name: Some(config.domainname).filter(|name| !name.is_empty()),
            time: time(&linux)?,
            root_propagation: root_propagation(&linux.rootfs_propagation)?,
            personality: linux.personality.as_ref().map(personality).transpose()?,
            memory_policy: linux.memory_policy.as_ref().map(kernel::memory_policy).transpose()?,
            mapped_mounts,
            mount_label: Some(linux.mount_label).filter(|label| !label.is_empty()),
        },
        namespaces,
    };
    Ok(Bundle {
        request,
        hooks: config.hooks,
        cgroups_path: linux.cgroups_path,
        annotations: config.annotations,
        version: config.oci_version,
        has_process,
        listener,
        net_devices,
        warnings: Vec::new(),
        notes,
    })
}

/// A path of a bundle, which may be relative to it.
pub(super) fn joined(bundle: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", bundle.trim_end_matches('/')) }
}

/// Stands for the program of a bundle that has none.
fn nothing() -> byre_plan::Process {
    byre_plan::Process {
        program: Program::Path,
        args: vec!["/".to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: User::default(),
        terminal: None,
        capabilities: byre_plan::Capabilities::default(),
        rlimits: Vec::new(),
        no_new_privileges: true,
        oom_score_adj: None,
        scheduling: byre_plan::Scheduling::default(),
        labels: byre_plan::Labels::default(),
    }
}

/// 1.0 to 1.3, with any patch and any suffix of a development version.
fn version(text: &str) -> Result<(), Refusal> {
    let mut parts = text.splitn(3, '.');
    let major = parts.next().and_then(|part| part.parse::<u32>().ok());
    let minor = parts.next().and_then(|part| part.parse::<u32>().ok());
    match (major, minor, parts.next()) {
        (Some(1), Some(0..=3), Some(_)) => Ok(()),
        (_, _, _) => {
            let shown: String = text.chars().take(40).collect();
            let remedy = format!("use a version from {VERSION_MIN} to {VERSION_MAX}");
            Err(refusal("ociVersion", format!("{shown:?} is not known"), remedy))
        }
    }
}

fn hooks(hooks: &Hooks) -> Result<(), Refusal> {
    let Hooks { prestart, create_runtime, create_container, start_container, poststart, poststop } = hooks;
    let all: [(&str, &Vec<Hook>); 6] = [
        ("prestart", prestart),
        ("createRuntime", create_runtime),
        ("createContainer", create_container),
        ("startContainer", start_container),
        ("poststart", poststart),
        ("poststop", poststop),
    ];
    for (kind, hooks) in all {
        let field = format!("hooks.{kind}");
        if hooks.len() > HOOKS {
            return Err(refusal(&field, format!("has {}", hooks.len()), format!("use at most {HOOKS}")));
        }
        for (index, hook) in hooks.iter().enumerate() {
            let nul = hook.path.contains('\0')
                || hook.args.iter().chain(hook.env.iter().flatten()).any(|text| text.contains('\0'));
            if !hook.path.starts_with('/') || nul {
                let remedy = "give the program by its absolute path, and no text with a NUL byte";
                return Err(refusal(&format!("{field}[{index}].path"), "cannot be executed", remedy));
            }
            if hook.timeout == Some(0) {
                let remedy = "use one second or more, or leave it out";
                return Err(refusal(&format!("{field}[{index}].timeout"), "0 seconds are none", remedy));
            }
        }
    }
    Ok(())
}

fn namespaces(linux: &Linux) -> Result<Namespaces, Refusal> {
    let mut namespaces = Namespaces::of_host();
    let mut seen = Vec::new();
    for (index, one) in linux.namespaces.iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let Some(kind) = NAMESPACES.iter().find(|known| **known == one.r#type) else {
            let shown: String = one.r#type.chars().take(40).collect();
            return Err(refusal(
                &field,
                format!("{shown:?} is no namespace"),
                format!("use {}", NAMESPACES.join(", ")),
            ));
        };
        if seen.contains(kind) {
            return Err(refusal(&field, format!("{kind} is listed twice"), "list each namespace once"));
        }
        seen.push(*kind);
        let wanted = if one.path.is_empty() { Namespace::New } else { Namespace::Join(one.path.clone()) };
        match *kind {
            "cgroup" => namespaces.cgroup = wanted,
            "ipc" => namespaces.ipc = wanted,
            "mount" => namespaces.mount = wanted,
            "network" => namespaces.net = wanted,
            "pid" => namespaces.pid = wanted,
            "uts" => namespaces.uts = wanted,
            _ if !one.path.is_empty() => {
                let remedy = "use a new one: leave the path out";
                return Err(refusal(&field, format!("a {kind} namespace is not joined"), remedy));
            }
            "user" => {
                namespaces.user =
                    UserNamespace::Mapped { uids: id_maps(&linux.uid_mappings), gids: id_maps(&linux.gid_mappings) };
            }
            _ => {}
        }
    }
    let mapped = !(linux.uid_mappings.is_empty() && linux.gid_mappings.is_empty());
    if mapped && !seen.contains(&"user") {
        return Err(refusal("linux.uidMappings", "have no user namespace", "add one to linux.namespaces"));
    }
    if linux.time_offsets.is_some() && !seen.contains(&"time") {
        return Err(refusal("linux.timeOffsets", "have no time namespace", "add one to linux.namespaces"));
    }
    Ok(namespaces)
}

/// Interfaces that move into the container, and their names there.
fn net_devices(linux: &Linux) -> Result<Vec<(String, String)>, Refusal> {
    let mut all = Vec::new();
    for (name, device) in &linux.net_devices {
        let inside = if device.name.is_empty() { name } else { &device.name };
        for text in [name, inside] {
            let good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
            if text.is_empty() || text.len() > 15 || text == "." || text == ".." || !text.bytes().all(good) {
                let shown: String = text.chars().take(40).collect();
                let remedy = "use 1 to 15 printable characters without '/', ':' and '%'";
                return Err(refusal("linux.netDevices", format!("{shown:?} is no name of an interface"), remedy));
            }
        }
        all.push((name.clone(), inside.clone()));
    }
    if all.len() > NET_DEVICES {
        return Err(refusal("linux.netDevices", format!("has {}", all.len()), format!("use at most {NET_DEVICES}")));
    }
    let own = linux.namespaces.iter().any(|one| one.r#type == "network");
    if !all.is_empty() && !own {
        let remedy = "add a network namespace to linux.namespaces";
        return Err(refusal("linux.netDevices", "are for a network namespace", remedy));
    }
    Ok(all)
}

fn id_maps(lines: &[IdMapping]) -> Vec<IdMap> {
    lines.iter().map(|line| IdMap { inside: line.container_id, outside: line.host_id, count: line.size }).collect()
}

fn time(linux: &Linux) -> Result<Option<TimeOffsets>, Refusal> {
    if !linux.namespaces.iter().any(|one| one.r#type == "time") {
        return Ok(None);
    }
    let pair = |offset: &Offset| (offset.secs, offset.nanosecs);
    let offsets = linux.time_offsets.as_ref();
    Ok(Some(offsets.map_or_else(TimeOffsets::default, |offsets| TimeOffsets {
        monotonic: pair(&offsets.monotonic),
        boottime: pair(&offsets.boottime),
    })))
}

fn root_propagation(text: &str) -> Result<Option<Propagation>, Refusal> {
    match text {
        "" => Ok(None),
        "private" | "rprivate" => Ok(Some(Propagation::Private)),
        "slave" | "rslave" => Ok(Some(Propagation::Slave)),
        "shared" | "rshared" => Ok(Some(Propagation::Shared)),
        "unbindable" | "runbindable" => Ok(Some(Propagation::Unbindable)),
        other => {
            let shown: String = other.chars().take(40).collect();
            let remedy = "use private, slave, shared or unbindable, with or without an r before it";
            Err(refusal("linux.rootfsPropagation", format!("{shown:?} is not supported"), remedy))
        }
    }
}

fn personality(wanted: &Personality) -> Result<u32, Refusal> {
    match wanted.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(LINUX32),
        other => {
            let shown: String = other.chars().take(40).collect();
            Err(refusal("linux.personality.domain", format!("{shown:?} is not known"), "use LINUX or LINUX32"))
        }
    }
}

/// The default devices and links of config-linux.md, and the bundle's own devices.
fn nodes(devices: &[Device], keeps_dev: bool) -> Result<Vec<Node>, Refusal> {
    const DEFAULT: [(&str, u32, u32); 6] =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    const LINKS: [(&str, &str); 6] = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("core", "/proc/kcore"),
        ("ptmx", "pts/ptmx"),
    ];
    let mut nodes = Vec::new();
    // A /dev that is the host's has them, and is not ours to change.
    if !keeps_dev {
        nodes.extend(DEFAULT.map(|(name, major, minor)| Node {
            path: format!("/dev/{name}"),
            kind: NodeKind::Character { major, minor },
            mode: 0o666,
            uid: 0,
            gid: 0,
        }));
        nodes.extend(LINKS.map(|(name, to)| Node {
            path: format!("/dev/{name}"),
            kind: NodeKind::Link(to.to_owned()),
            mode: 0o777,
            uid: 0,
            gid: 0,
        }));
    }
    for (index, device) in devices.iter().enumerate() {
        let field = format!("linux.devices[{index}]");
        let number = |number: i64| {
            u32::try_from(number)
                .map_err(|_| refusal(&field, format!("{number} is no device number"), "use the device's own"))
        };
        let kind = match device.r#type.as_str() {
            "c" | "u" => NodeKind::Character { major: number(device.major)?, minor: number(device.minor)? },
            "b" => NodeKind::Block { major: number(device.major)?, minor: number(device.minor)? },
            "p" => NodeKind::Pipe,
            other => {
                let shown: String = other.chars().take(40).collect();
                return Err(refusal(&field, format!("{shown:?} is no type of device"), "use c, b, u or p"));
            }
        };
        let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
        // Bits of the type, which some write too, say nothing new.
        let mode = u16::try_from(device.file_mode.unwrap_or(0o666) & 0o777).unwrap_or(0o666);
        // One of the bundle's takes the place of a default one.
        nodes.retain(|node| node.path != device.path);
        nodes.push(Node { path: device.path.clone(), kind, mode, uid, gid });
    }
    Ok(nodes)
}

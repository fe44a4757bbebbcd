//! What a well-formed request is, and what the policy allows of it. Pure functions; the first fault found is the refusal.

mod allowed;
mod form;
mod kernel;
mod pod;
mod resources;
#[cfg(test)]
mod tests;

pub(crate) use allowed::{allowed, exec_allowed};

use crate::limits;
use crate::policy::Refusal;
use crate::request::{
    Capabilities, DeviceRule, IdMap, LandlockRule, LaunchRequest, Mount, MountSource, Namespace, Namespaces, Principal,
    Process, Program, Rlimit, Root, Seccomp, TerminalSize, User, UserNamespace,
};
use form::{at_most, path, text};

/// Highest capability number that exists (CAP_CHECKPOINT_RESTORE); a bit above it is a mistake, not a wish.
const LAST_CAPABILITY: u32 = 40;

/// Every bit up to [`LAST_CAPABILITY`].
const ALL_CAPABILITIES: u64 = (1 << (LAST_CAPABILITY + 1)) - 1;

/// SECCOMP_FILTER_FLAG_LOG, _SPEC_ALLOW, _NEW_LISTENER, _WAIT_KILLABLE_RECV. TSYNC means nothing for a process of one thread.
const SECCOMP_FLAGS: u32 = 0b10_1110;

/// Highest sensible terminal side. The kernel takes any u16; nothing displays more.
const TERMINAL_CELLS: u16 = 10_000;

/// Checks a request's bounds and that its parts fit together.
pub(crate) fn request(request: &LaunchRequest) -> Result<(), Refusal> {
    process(&request.process)?;
    root(&request.root)?;
    namespaces(&request.namespaces)?;
    mounts(&request.mounts)?;
    resources::hostname(request)?;
    resources::resources(&request.resources)?;
    devices(&request.devices)?;
    resources::sysctls(request)?;
    paths("masked_paths", &request.masked_paths)?;
    paths("read_only_paths", &request.read_only_paths)?;
    seccomp(&request.seccomp)?;
    landlock(&request.landlock)?;
    kernel::nodes(&request.nodes)?;
    kernel::settings(request)?;
    fits_together(request)
}

/// Checks a process by itself.
pub(crate) fn process(process: &Process) -> Result<(), Refusal> {
    let Process {
        program,
        args,
        env,
        cwd,
        user: who,
        terminal: size,
        capabilities: sets,
        rlimits: limits,
        no_new_privileges: _,
        oom_score_adj,
        scheduling,
        labels,
    } = process;
    arguments(*program, args)?;
    environment(env)?;
    path("process.cwd", cwd)?;
    user(who)?;
    terminal(*size)?;
    capabilities(sets)?;
    rlimits(limits)?;
    kernel::scheduling(scheduling)?;
    kernel::labels(labels)?;
    match oom_score_adj {
        Some(value) if !(-1000..=1000).contains(value) => Err(Refusal::new(
            "process.oom_score_adj",
            format!("{value} is out of range"),
            "use a number from -1000 to 1000",
        )),
        Some(_) | None => Ok(()),
    }
}

/// Checks a process against the workload that it is to run in.
pub(crate) fn exec(process: &Process, workload: &LaunchRequest) -> Result<(), Refusal> {
    for (field, program) in [("process.program", process.program), ("workload", workload.process.program)] {
        if program == Program::None {
            return Err(Refusal::new(field, "a pod has no process", "name a container of it"));
        }
    }
    terminal_has_devpts(process, workload)
}

fn arguments(program: Program, args: &[String]) -> Result<(), Refusal> {
    at_most("process.args", args.len(), limits::ARGUMENTS)?;
    if program == Program::None {
        return if args.is_empty() {
            Ok(())
        } else {
            Err(Refusal::new("process.args", "a pod executes nothing", "leave them out, or make a container"))
        };
    }
    let Some(first) = args.first() else {
        return Err(Refusal::new("process.args", "is empty", "name a program: the image has no entrypoint or command"));
    };
    if first.is_empty() {
        let what = match program {
            Program::Path | Program::None => "name a program",
            Program::Helper => "name a helper",
        };
        return Err(Refusal::new("process.args[0]", "is empty", what));
    }
    for (index, argument) in args.iter().enumerate() {
        text(&format!("process.args[{index}]"), argument, limits::ARGUMENT_BYTES)?;
    }
    Ok(())
}

fn environment(env: &[String]) -> Result<(), Refusal> {
    at_most("process.env", env.len(), limits::ENVIRONMENT)?;
    for (index, entry) in env.iter().enumerate() {
        let field = || format!("process.env[{index}]");
        text(&field(), entry, limits::ARGUMENT_BYTES)?;
        match entry.split_once('=') {
            Some((name, _)) if !name.is_empty() => {}
            Some(_) | None => {
                return Err(Refusal::new(field(), "has no name before a '='", "write it as NAME=value"));
            }
        }
    }
    Ok(())
}

fn user(user: &User) -> Result<(), Refusal> {
    at_most("process.user.additional_groups", user.additional_groups.len(), limits::GROUPS)?;
    principal("process.user.user", &user.user)?;
    if let Some(group) = &user.group {
        principal("process.user.group", group)?;
    }
    if user.additional_groups.contains(&u32::MAX) {
        return Err(Refusal::new("process.user.additional_groups", "4294967295 is no group id", "use a smaller id"));
    }
    match user.umask {
        Some(mask) if mask > 0o777 => {
            Err(Refusal::new("process.user.umask", format!("{mask:#o} is out of range"), "use 0 to 0o777"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Longest user or group name that is looked up; useradd(8) stops at 32, images have longer ones.
const PRINCIPAL_BYTES: usize = 256;

fn principal(field: &str, principal: &Principal) -> Result<(), Refusal> {
    match principal {
        // (uid_t)-1 means "leave unchanged" to setresuid(2): it would leave the process as root.
        Principal::Id(u32::MAX) => Err(Refusal::new(field, "4294967295 is no id", "use a smaller id")),
        Principal::Id(_) => Ok(()),
        Principal::Name(name) => {
            let strange = |byte: u8| byte == b':' || byte == b',' || byte.is_ascii_control();
            // Digits only: an id that was too large for one. As a name it could be somebody's whom nobody meant.
            let digits = name.bytes().all(|byte| byte.is_ascii_digit());
            if digits || name.len() > PRINCIPAL_BYTES || name.bytes().any(strange) {
                let shown: String = name.chars().take(40).collect();
                return Err(Refusal::new(
                    field,
                    format!("{shown:?} is no name"),
                    "use a name of the image's /etc/passwd or an id",
                ));
            }
            Ok(())
        }
    }
}

fn terminal(size: Option<TerminalSize>) -> Result<(), Refusal> {
    match size {
        Some(TerminalSize { rows, columns }) if rows > TERMINAL_CELLS || columns > TERMINAL_CELLS => Err(Refusal::new(
            "process.terminal",
            format!("{rows} x {columns} is too large"),
            format!("use at most {TERMINAL_CELLS} rows and columns"),
        )),
        Some(_) | None => Ok(()),
    }
}

fn capabilities(sets: &Capabilities) -> Result<(), Refusal> {
    let Capabilities { bounding, effective, permitted, inheritable, ambient } = *sets;
    let unknown = (bounding | effective | permitted | inheritable | ambient) & !ALL_CAPABILITIES;
    let fault = |name: &str, reason: &str, remedy: &str| {
        Err(Refusal::new(format!("process.capabilities.{name}"), reason, remedy))
    };
    if unknown != 0 {
        return fault("bounding", "a capability above 40 does not exist", "use the capabilities of capabilities(7)");
    }
    if effective & !permitted != 0 {
        return fault("effective", "has capabilities that are not permitted", "add them to the permitted set");
    }
    if ambient & !(permitted & inheritable) != 0 {
        return fault("ambient", "has capabilities that are not permitted and inheritable", "add them to both sets");
    }
    Ok(())
}

fn rlimits(limits: &[Rlimit]) -> Result<(), Refusal> {
    at_most("process.rlimits", limits.len(), limits::RLIMITS)?;
    let mut seen = 0_u16;
    for (index, limit) in limits.iter().enumerate() {
        let fault = |reason: &str, remedy: &str| Err(Refusal::new(format!("process.rlimits[{index}]"), reason, remedy));
        let bit = 1_u16.checked_shl(u32::from(limit.resource)).unwrap_or(0);
        if bit == 0 {
            return fault("resource does not exist", "use a RLIMIT_* number from 0 to 15");
        }
        if seen & bit != 0 {
            return fault("resource is listed twice", "give each resource once");
        }
        if limit.soft > limit.hard {
            return fault("soft limit is above the hard limit", "lower it or raise the hard limit");
        }
        seen |= bit;
    }
    Ok(())
}

fn root(root: &Root) -> Result<(), Refusal> {
    match root {
        Root::Host => Ok(()),
        Root::Layers { layers, read_only: _ } => {
            if layers.is_empty() {
                return Err(Refusal::new("root.layers", "is empty", "use an image that has at least one layer"));
            }
            at_most("root.layers", layers.len(), limits::LAYERS)
        }
        Root::Directory { path: directory, read_only: _ } => form::path_below_root("root.path", directory),
    }
}

fn namespaces(namespaces: &Namespaces) -> Result<(), Refusal> {
    let Namespaces { user, mount, pid, net, ipc, uts, cgroup } = namespaces;
    match user {
        UserNamespace::Host | UserNamespace::Automatic => {}
        UserNamespace::Mapped { uids, gids } => {
            id_maps("namespaces.user.uids", uids)?;
            id_maps("namespaces.user.gids", gids)?;
        }
        UserNamespace::Join(file) => path("namespaces.user", file)?,
    }
    match mount {
        Namespace::New | Namespace::Host => {}
        Namespace::Join(_) => {
            let remedy = "use a new mount namespace and bind what is to be shared";
            return Err(Refusal::new("namespaces.mount", "cannot be joined by a new workload", remedy));
        }
    }
    for (name, namespace) in [("pid", pid), ("net", net), ("ipc", ipc), ("uts", uts), ("cgroup", cgroup)] {
        match namespace {
            Namespace::New | Namespace::Host => {}
            Namespace::Join(file) => path(&format!("namespaces.{name}"), file)?,
        }
    }
    Ok(())
}

/// The maps of a user namespace that a workload lives in.
fn id_maps(field: &str, maps: &[IdMap]) -> Result<(), Refusal> {
    if !maps.is_empty() && !maps.iter().any(|map| map.inside == 0) {
        let remedy = "map id 0: the workload's root makes its mounts";
        return Err(Refusal::new(field, "does not map id 0", remedy));
    }
    id_ranges(field, maps)
}

/// Maps of any kind: each id once on both sides.
fn id_ranges(field: &str, maps: &[IdMap]) -> Result<(), Refusal> {
    at_most(field, maps.len(), limits::ID_MAPS)?;
    let fault = |reason: &str, remedy: &str| Err(Refusal::new(field, reason, remedy));
    if maps.is_empty() {
        return fault("is empty", "map at least id 0");
    }
    // Inclusive ranges, so that the last id needs no 33rd bit. u32::MAX itself is no id.
    let mut inside = Vec::with_capacity(maps.len());
    let mut outside = Vec::with_capacity(maps.len());
    for map in maps {
        let last = |first: u32| map.count.checked_sub(1).and_then(|more| first.checked_add(more));
        match (last(map.inside), last(map.outside)) {
            (Some(last_inside), Some(last_outside)) if last_inside < u32::MAX && last_outside < u32::MAX => {
                inside.push((map.inside, last_inside));
                outside.push((map.outside, last_outside));
            }
            (Some(_) | None, Some(_) | None) => {
                return fault(
                    "a range is empty or passes the last id",
                    "use counts of 1 and more that stay below 4294967295",
                );
            }
        }
    }
    for ranges in [&mut inside, &mut outside] {
        ranges.sort_unstable();
        let overlap = ranges.iter().zip(ranges.iter().skip(1)).any(|(one, next)| one.1 >= next.0);
        if overlap {
            return fault("two ranges overlap", "map each id once, inside and outside");
        }
    }
    Ok(())
}

fn mounts(mounts: &[Mount]) -> Result<(), Refusal> {
    at_most("mounts", mounts.len(), limits::MOUNTS)?;
    for (index, mount) in mounts.iter().enumerate() {
        let field = |part: &str| format!("mounts[{index}].{part}");
        form::path_below_root(&field("target"), &mount.target)?;
        match &mount.source {
            MountSource::Proc
            | MountSource::Sysfs
            | MountSource::Cgroup
            | MountSource::Mqueue
            | MountSource::Devpts
            | MountSource::Devices
            | MountSource::Volume(_)
            | MountSource::OwnVolume(_) => {}
            MountSource::Tmpfs { size_bytes: _, mode } => {
                if *mode > 0o7777 {
                    return Err(Refusal::new(field("source.mode"), format!("{mode:#o} is no mode"), "use 0 to 0o7777"));
                }
            }
            MountSource::Bind { path: host, recursive: _ } => path(&field("source.path"), host)?,
            MountSource::GeneratedFile(content) => {
                at_most(&field("source.generated_file"), content.len(), limits::GENERATED_FILE_BYTES)?;
            }
            MountSource::FileSystem { kind, source, settings, copy_up: _ } => {
                kernel::file_system(&field("source.file_system"), kind, source, settings)?;
            }
        }
        kernel::mount_options(&field("options"), mount)?;
    }
    Ok(())
}

fn paths(field: &str, paths: &[String]) -> Result<(), Refusal> {
    at_most(field, paths.len(), limits::MASKED_PATHS)?;
    paths.iter().enumerate().try_for_each(|(index, entry)| form::path_below_root(&format!("{field}[{index}]"), entry))
}

fn devices(rules: &[DeviceRule]) -> Result<(), Refusal> {
    at_most("devices", rules.len(), limits::DEVICES)?;
    for (index, rule) in rules.iter().enumerate() {
        let fault = |reason: &str, remedy: &str| Err(Refusal::new(format!("devices[{index}]"), reason, remedy));
        if !(rule.read || rule.write || rule.mknod) {
            return fault("allows nothing", "allow at least one of read, write and mknod, or leave the rule out");
        }
        // dev_t in user space has 12 bits of major and 20 of minor.
        if rule.major.is_some_and(|major| major > 0xfff) || rule.minor.is_some_and(|minor| minor > 0xf_ffff) {
            return fault("number does not exist", "use a major up to 4095 and a minor up to 1048575");
        }
        if let Some(node) = &rule.path {
            form::path_below_root(&format!("devices[{index}].path"), node)?;
            if rule.major.is_none() || rule.minor.is_none() {
                return fault("a node needs one device", "give its major and minor number");
            }
            if rule.deny {
                return fault("a node that is denied has no use", "allow it or leave its path out");
            }
        }
    }
    Ok(())
}

fn seccomp(seccomp: &Seccomp) -> Result<(), Refusal> {
    match seccomp {
        Seccomp::None | Seccomp::Default => Ok(()),
        Seccomp::Filter { instructions, flags } => {
            if instructions.is_empty() {
                return Err(Refusal::new("seccomp.filter.instructions", "is empty", "use at least one instruction"));
            }
            at_most("seccomp.filter.instructions", instructions.len(), limits::SECCOMP_INSTRUCTIONS)?;
            if flags & !SECCOMP_FLAGS != 0 {
                let remedy = "use LOG, SPEC_ALLOW, NEW_LISTENER and WAIT_KILLABLE_RECV of SECCOMP_FILTER_FLAG_ only";
                return Err(Refusal::new("seccomp.filter.flags", format!("{flags:#x} is not supported"), remedy));
            }
            Ok(())
        }
    }
}

fn landlock(rules: &[LandlockRule]) -> Result<(), Refusal> {
    at_most("landlock", rules.len(), limits::LANDLOCK_RULES)?;
    rules.iter().enumerate().try_for_each(|(index, rule)| path(&format!("landlock[{index}].path"), &rule.path))
}

/// Rules that span fields: combinations that could only fail, or would silently do less than they say.
fn fits_together(request: &LaunchRequest) -> Result<(), Refusal> {
    if request.process.program == Program::None {
        return pod::fits_together(request);
    }
    let own_mounts = matches!(request.namespaces.mount, Namespace::New);
    match &request.root {
        Root::Layers { .. } | Root::Directory { .. } if !own_mounts => {
            let remedy = "use a new mount namespace";
            return Err(Refusal::new("namespaces.mount", "a root needs a mount namespace of its own", remedy));
        }
        Root::Host if !matches!(request.namespaces.user, UserNamespace::Host) => {
            let remedy = "use the host's users, or an image as root";
            return Err(Refusal::new("namespaces.user", "the host's root cannot be seen through other ids", remedy));
        }
        Root::Host | Root::Layers { .. } | Root::Directory { .. } => {}
    }
    let changes_mounts = !request.mounts.is_empty()
        || !request.masked_paths.is_empty()
        || !request.read_only_paths.is_empty()
        || !request.nodes.is_empty()
        || request.devices.iter().any(|rule| rule.path.is_some());
    if changes_mounts && !own_mounts {
        let remedy = "use a new mount namespace, or leave out mounts, masked and read-only paths and device nodes";
        return Err(Refusal::new("namespaces.mount", "the host's mounts are not changed by a workload", remedy));
    }
    terminal_has_devpts(&request.process, request)
}

fn terminal_has_devpts(process: &Process, workload: &LaunchRequest) -> Result<(), Refusal> {
    let is_devpts = |source: &MountSource| match source {
        MountSource::Devpts => true,
        MountSource::FileSystem { kind, .. } => kind == "devpts",
        MountSource::Proc
        | MountSource::Sysfs
        | MountSource::Cgroup
        | MountSource::Mqueue
        | MountSource::Devices
        | MountSource::Tmpfs { .. }
        | MountSource::Bind { .. }
        | MountSource::Volume(_)
        | MountSource::OwnVolume(_)
        | MountSource::GeneratedFile(_) => false,
    };
    let has_devpts =
        workload.mounts.iter().any(|mount| is_devpts(&mount.source) && form::same_path(&mount.target, "/dev/pts"));
    if process.terminal.is_some() && !has_devpts {
        let remedy = "add a devpts mount at /dev/pts, or use no terminal";
        return Err(Refusal::new("process.terminal", "the workload has no devpts of its own", remedy));
    }
    Ok(())
}

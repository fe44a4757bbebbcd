//! Mounts of a bundle.

use byre_plan::{Mount, MountOptions, MountSource, Propagation, Refusal};

use super::config;
use super::convert::joined;
use super::fields::refusal;

/// MOUNT_ATTR_* of linux/mount.h.
const READ_ONLY: u32 = 0x1;
const NO_SUID: u32 = 0x2;
const NO_DEV: u32 = 0x4;
const NO_EXEC: u32 = 0x8;
const NO_ACCESS_TIME: u32 = 0x10;
const STRICT_ACCESS_TIME: u32 = 0x20;
const ACCESS_TIMES: u32 = 0x70;
const NO_DIRECTORY_ACCESS_TIME: u32 = 0x80;
const NO_SYMLINKS: u32 = 0x20_0000;

/// Options that set an attribute, those that clear it, and the attribute. `r` before one extends it to the mounts below.
pub const MOUNT_FLAGS: [(&str, &str, u32); 8] = [
    ("ro", "rw", READ_ONLY),
    ("nosuid", "suid", NO_SUID),
    ("nodev", "dev", NO_DEV),
    ("noexec", "exec", NO_EXEC),
    ("noatime", "atime", NO_ACCESS_TIME),
    ("strictatime", "nostrictatime", STRICT_ACCESS_TIME),
    ("nodiratime", "diratime", NO_DIRECTORY_ACCESS_TIME),
    ("nosymfollow", "symfollow", NO_SYMLINKS),
];
/// Options of propagation. For a bind of a tree each means the whole tree.
pub const MOUNT_PROPAGATIONS: [(&str, Propagation); 8] = [
    ("private", Propagation::Private),
    ("rprivate", Propagation::Private),
    ("slave", Propagation::Slave),
    ("rslave", Propagation::Slave),
    ("shared", Propagation::Shared),
    ("rshared", Propagation::Shared),
    ("unbindable", Propagation::Unbindable),
    ("runbindable", Propagation::Unbindable),
];
/// Options that ask for what a new mount is anyway.
const NOTHING: [&str; 8] = ["defaults", "async", "loud", "nomand", "relatime", "norelatime", "rrelatime", "noiversion"];
/// Options with a meaning that is not supported.
const REFUSED: [(&str, &str); 2] = [
    ("remount", "mount it once with the options that it is to have"),
    ("mand", "leave it out: Linux has no mandatory locks any more"),
];

/// Options, sorted out.
#[derive(Default)]
struct Options {
    bind: Option<bool>,
    set: u32,
    below: u32,
    propagation: Option<Propagation>,
    copy_up: bool,
    settings: Vec<String>,
}

/// Whether /dev is bound from the host and so has its nodes.
pub(super) fn keeps_dev(mounts: &[config::Mount]) -> bool {
    mounts.iter().any(|mount| {
        mount.destination.trim_end_matches('/') == "/dev"
            && (mount.r#type == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind"))
    })
}

pub(super) fn mount(index: usize, wanted: config::Mount, bundle: &str) -> Result<Mount, Refusal> {
    let field = |part: &str| format!("mounts[{index}].{part}");
    let options = sort(&field("options"), &wanted.options)?;
    let target = if wanted.destination.starts_with('/') {
        wanted.destination
    } else {
        // Versions before 1.2 allowed it; it is meant from the root.
        format!("/{}", wanted.destination)
    };
    let bound = options.bind.or((wanted.r#type == "bind").then_some(false));
    let bits = |bit: u32| options.set & bit != 0;
    let all = READ_ONLY | NO_SUID | NO_DEV | NO_EXEC;
    let flags = MountOptions {
        read_only: bits(READ_ONLY),
        no_suid: bits(NO_SUID),
        no_dev: bits(NO_DEV),
        no_exec: bits(NO_EXEC),
        recursive: false,
        further: options.set & !all,
        below: options.below,
        propagation: options.propagation.unwrap_or_default(),
    };
    let settings = options.settings;
    let source = match (bound, wanted.r#type.as_str()) {
        (Some(recursive), _) => {
            if let Some(setting) = settings.first() {
                let reason = format!("{setting:?} is no option of a bind mount");
                return Err(refusal(&field("options"), reason, "leave it out"));
            }
            if options.copy_up || wanted.source.is_empty() {
                return Err(refusal(&field("source"), "is nothing to bind", "name a path, without tmpcopyup"));
            }
            MountSource::Bind { path: joined(bundle, &wanted.source), recursive }
        }
        (None, "") => return Err(refusal(&field("type"), "is missing", "name a file system, or add the option bind")),
        (None, kind) if options.copy_up && kind != "tmpfs" => {
            return Err(refusal(&field("options"), "tmpcopyup is for tmpfs only", "leave it out"));
        }
        (None, "proc") if settings.is_empty() => MountSource::Proc,
        (None, "sysfs") if settings.is_empty() => MountSource::Sysfs,
        (None, "mqueue") if settings.is_empty() => MountSource::Mqueue,
        // A bundle of either version gets the host's only hierarchy that can be given away.
        (None, "cgroup" | "cgroup2") if settings.is_empty() => MountSource::Cgroup,
        (None, kind) => {
            MountSource::FileSystem { kind: kind.to_owned(), source: wanted.source, settings, copy_up: options.copy_up }
        }
    };
    // What is new has no peer to be a slave of.
    let alone = flags.propagation == Propagation::Slave && bound.is_none();
    let flags = if alone { MountOptions { propagation: Propagation::Private, ..flags } } else { flags };
    Ok(Mount { target, source, options: flags })
}

fn sort(field: &str, options: &[String]) -> Result<Options, Refusal> {
    let mut sorted = Options::default();
    for option in options {
        let option = option.as_str();
        if let Some((_, remedy)) = REFUSED.iter().find(|(name, _)| *name == option) {
            return Err(refusal(field, format!("{option:?} is not supported"), *remedy));
        }
        if let Some((_, propagation)) = MOUNT_PROPAGATIONS.iter().find(|(name, _)| *name == option) {
            sorted.propagation = Some(*propagation);
        } else if let Some((_, _, bit)) = MOUNT_FLAGS.iter().find(|(set, _, _)| *set == option) {
            add(&mut sorted.set, *bit);
        } else if let Some((_, _, bit)) = MOUNT_FLAGS.iter().find(|(_, clear, _)| *clear == option) {
            sorted.set &= !bit;
        } else if let Some(bit) = below(option, true) {
            add(&mut sorted.below, bit);
        } else if below(option, false).is_some() {
            // Taking a protection off what lies below is asked for by nobody, and would need the mount's own flags.
            let remedy = "leave it out, or mount what lies below by itself";
            return Err(refusal(field, format!("{option:?} is not supported"), remedy));
        } else {
            match option {
                "bind" => sorted.bind = Some(sorted.bind.unwrap_or(false)),
                "rbind" => sorted.bind = Some(true),
                "tmpcopyup" => sorted.copy_up = true,
                // Read by `kernel::mapped`.
                "idmap" | "ridmap" => {}
                nothing if NOTHING.contains(&nothing) => {}
                setting => sorted.settings.push(setting.to_owned()),
            }
        }
    }
    Ok(sorted)
}

/// Adds an attribute. Of the access times, which are one choice, the last counts.
fn add(set: &mut u32, bit: u32) {
    if bit & ACCESS_TIMES != 0 {
        *set &= !ACCESS_TIMES;
    }
    *set |= bit;
}

/// The bit of an option that means the mounts below too.
fn below(option: &str, sets: bool) -> Option<u32> {
    let name = option.strip_prefix('r')?;
    let found = MOUNT_FLAGS.iter().find(|(set, clear, _)| name == if sets { *set } else { *clear });
    found.map(|(_, _, bit)| *bit)
}

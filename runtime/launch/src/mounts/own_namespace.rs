//! File systems that belong to the workload's own namespaces, made by the process that lives in them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_plan::{Mount, MountSource};
use rustix::io::Errno;

use super::{attributes, detached};
use crate::inside;
use crate::report::{Failure, Step};

/// Makes the file system of a mount, detached, with this SELinux label if it is of a kind that takes one.
pub(crate) fn make(mount: &Mount, label: Option<&str>) -> Result<OwnedFd, Failure> {
    let labelled: Vec<(&str, &str)> = label.map(|label| ("context", label)).into_iter().collect();
    let attributes = attributes(mount.options);
    match &mount.source {
        MountSource::Proc => detached("proc", &[], attributes),
        MountSource::Sysfs => detached("sysfs", &[], attributes),
        MountSource::Cgroup => detached("cgroup2", &[], attributes),
        MountSource::Mqueue => detached("mqueue", &labelled, attributes),
        MountSource::Devpts => devpts(attributes),
        MountSource::Tmpfs { size_bytes, mode } => {
            let (size, mode) = (size_bytes.to_string(), format!("{mode:o}"));
            let mut settings = [labelled.as_slice(), &[("mode", mode.as_str())]].concat();
            if *size_bytes > 0 {
                settings.push(("size", &size));
            }
            detached("tmpfs", &settings, attributes)
        }
        MountSource::FileSystem { kind, source, settings, copy_up: _ } => {
            let takes_label = matches!(kind.as_str(), "tmpfs" | "devpts" | "mqueue");
            let own = label.filter(|_| takes_label).map(|label| format!("context={label}"));
            file_system(kind, source, settings.iter().chain(&own), attributes)
        }
        MountSource::Devices
        | MountSource::Bind { .. }
        | MountSource::Volume(_)
        | MountSource::OwnVolume(_)
        | MountSource::GeneratedFile(_) => {
            Err(Failure::new("mount", format!("{}: not made on the host side", mount.target), Errno::INVAL))
        }
    }
}

/// A file system of any kind.
fn file_system<'a>(
    kind: &str,
    source: &str,
    settings: impl Iterator<Item = &'a String>,
    attributes: rustix::mount::MountAttrFlags,
) -> Result<OwnedFd, Failure> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).step("open file system", kind)?;
    if !source.is_empty() {
        fsconfig_set_string(&context, "source", source).step("configure file system", source)?;
    }
    for setting in settings {
        match setting.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, setting.as_str()),
        }
        .step("configure file system", &format!("{kind} {setting}"))?;
    }
    fsconfig_create(&context).step("make file system", kind)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step("mount file system", kind)
}

/// Terminals belong to group 5, "tty" everywhere; a user namespace that does not map it goes without.
fn devpts(attributes: rustix::mount::MountAttrFlags) -> Result<OwnedFd, Failure> {
    let own = [("ptmxmode", "0666"), ("mode", "0620")];
    let with_group = [own.as_slice(), &[("gid", "5")]].concat();
    match detached("devpts", &with_group, attributes) {
        Err(failure) if failure.errno == Errno::INVAL.raw_os_error() => detached("devpts", &own, attributes),
        made => made,
    }
}

/// Makes `ptmx` beside a devpts at `…/pts` a link into it, unless something is there.
pub(crate) fn link_ptmx(root: BorrowedFd<'_>, target: &str) -> Result<(), Failure> {
    let Some(directory) = target.trim_end_matches('/').strip_suffix("/pts") else { return Ok(()) };
    let step = "link ptmx";
    let directory = match inside::open(root, if directory.is_empty() { "/" } else { directory }) {
        Ok(directory) => directory,
        Err(errno) => return Err(Failure::new(step, directory, errno)),
    };
    match rustix::fs::symlinkat("pts/ptmx", directory.as_fd(), "ptmx") {
        Ok(()) | Err(Errno::EXIST | Errno::ROFS) => Ok(()),
        Err(errno) => Err(Failure::new(step, target, errno)),
    }
}

//! PID 1's short tasks: `init task NAME`. What may wait on a disk, load a module or write many files runs here, in a child with an end,
//! never in PID 1. The boot jobs among them are ordinary workloads of kind `job`, defined in the root.
//!
//! A task says on standard error what went wrong and ends with a code; it is never asked for anything by an outside party.

pub(crate) mod arm;
mod boot_device;
pub(crate) mod boot_disk;
mod configuration_copy;
mod containers;
mod disks;
mod gpt_growth;
mod healthy;
mod identity;
mod modules;
mod nocloud;
mod recorder;
mod repair;
mod sysctl;
mod trial;
mod trial_files;
mod uki;
mod watch;

use std::path::PathBuf;

pub(crate) use healthy::BLESSED;

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error("no task is named {0:?}")]
    Unknown(String),
    #[error("{action} {path}: {source}", path = path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("mount of {device} at {target}: {errno}")]
    Mount { device: String, target: String, errno: rustix::io::Errno },
    #[error("{program} on {device} ended with {status}; the file system is damaged")]
    Check { program: &'static str, device: String, status: String },
    #[error("partition table of {disk}: {what}")]
    Table { disk: String, what: String },
    #[error("{what} is not known: PID 1 was not started by the early stage")]
    NoBootFacts { what: &'static str },
    #[error("{0}")]
    Invalid(String),
}

/// Attaches what was done to which file.
pub(crate) fn on(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> TaskError {
    let path = path.into();
    move |source| TaskError::File { action, path, source }
}

/// Runs a task; returns its exit code.
pub(crate) fn run(name: &str, arguments: &[String]) -> u8 {
    let result = match name {
        "sysctl" => sysctl::apply(),
        "modules" => modules::load_for_devices(),
        "state-disk" => disks::mount_state(),
        "data-disk" => disks::mount_data(),
        "identity" => identity::establish(),
        "hostname" => identity::set_hostname(),
        "nocloud" => nocloud::mount(),
        "healthy" => healthy::record(),
        "arm" => arm::arm(),
        "recorder" => recorder::record(),
        "trial" => trial::judge(),
        "release-layers" => containers::release_layers(),
        "release-namespaces" => containers::release_namespaces(arguments),
        "remove-files" => containers::remove_files(arguments),
        "sweep" => containers::sweep(arguments),
        "unmount" => disks::unmount_all(),
        "dry-run" => crate::supervisor::dry_run().map_err(|error| TaskError::Invalid(error.to_string())),
        other => Err(TaskError::Unknown(other.to_owned())),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{name}: {error}");
            crate::console::say(&format!("task {name}: {error}"));
            1
        }
    }
}

/// What the kernel runs to load a module on demand (`kernel.modprobe`): `modprobe -q -- NAME`.
pub(crate) fn modprobe(arguments: &[String]) -> u8 {
    let name = arguments.iter().find(|argument| !argument.starts_with('-'));
    match name.map(|name| modules::load_by_name(name)) {
        Some(Ok(())) => 0,
        Some(Err(_)) | None => 1,
    }
}

//! What containers leave on disk: taken away when they are removed, and after a boot what a power cut left of removed ones. And the
//! mounts of layers whose image was removed.

use std::collections::BTreeSet;

use byre_plan::WorkloadId;

use super::{TaskError, on};
use crate::supervisor::{SHARED_LAYERS, STORE_LAYERS};

/// Where writable layers lie, by identity.
const CONTAINERS: &str = "/data/containers";

fn identity(text: &str) -> Result<WorkloadId, TaskError> {
    text.parse().map_err(|error| TaskError::Invalid(format!("{error}")))
}

/// Removes the files of one container.
pub(crate) fn remove_files(arguments: &[String]) -> Result<(), TaskError> {
    for argument in arguments {
        remove(identity(argument)?)?;
    }
    Ok(())
}

fn remove(id: WorkloadId) -> Result<(), TaskError> {
    byre_launch::remove_container_files(CONTAINERS, id).map_err(|errno| {
        on("remove", format!("{CONTAINERS}/{id}"))(std::io::Error::from_raw_os_error(errno.raw_os_error()))
    })
}

/// Unmounts the layers that the store has removed.
pub(crate) fn release_layers() -> Result<(), TaskError> {
    byre_launch::release_layers(SHARED_LAYERS, STORE_LAYERS).map_err(|errno| {
        on("unmount layers in", SHARED_LAYERS)(std::io::Error::from_raw_os_error(errno.raw_os_error()))
    })
}

/// Removes the files of all containers but these.
pub(crate) fn sweep(arguments: &[String]) -> Result<(), TaskError> {
    let known: BTreeSet<WorkloadId> = arguments.iter().map(|text| identity(text)).collect::<Result<_, _>>()?;
    let entries = match std::fs::read_dir(CONTAINERS) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(on("list", CONTAINERS)(error)),
    };
    for entry in entries.flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse::<WorkloadId>().ok());
        if let Some(id) = id.filter(|id| !known.contains(id)) {
            remove(id)?;
        }
    }
    Ok(())
}

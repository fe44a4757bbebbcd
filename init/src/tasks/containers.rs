//! What workloads leave on disk, their own files and their logs: taken away when they are removed, and after a boot what a power cut, or a
//! log service that was down, left of removed ones. And the mounts of layers whose image was removed.

use std::collections::BTreeSet;
use std::path::Path;

use byre_plan::{Name, WorkloadId};
use byre_protocol::pod::NAMESPACES;

use super::{TaskError, disks, on};
use crate::supervisor::{SHARED_LAYERS, STORE_LAYERS};

/// Where things lie by identity: writable layers, and logs. The log service removes a log as well, and sooner, if it runs.
const DIRECTORIES: [&str; 2] = ["/data/containers", "/data/log"];
/// What lay there when the data partition was mounted: only that can be of workloads of earlier boots.
const FOUND: &str = "/run/byre/found-on-data";

fn identity(text: &str) -> Result<WorkloadId, TaskError> {
    text.parse().map_err(|error| TaskError::Invalid(format!("{error}")))
}

/// Removes the files of these workloads.
pub(crate) fn remove_files(arguments: &[String]) -> Result<(), TaskError> {
    arguments.iter().try_for_each(|argument| remove(&DIRECTORIES.map(Path::new), identity(argument)?))
}

/// Unmounts the layers that the store has removed.
pub(crate) fn release_layers() -> Result<(), TaskError> {
    byre_launch::release_layers(SHARED_LAYERS, Some(STORE_LAYERS))
        .map_err(|errno| on("unmount layers in", SHARED_LAYERS)(errno.into()))
}

/// Unbinds the namespaces of these pods.
pub(crate) fn release_namespaces(arguments: &[String]) -> Result<(), TaskError> {
    for name in arguments {
        let name = Name::try_from(name.as_str()).map_err(|error| TaskError::Invalid(error.to_string()))?;
        let directory = format!("{NAMESPACES}/{name}");
        byre_launch::release_namespaces(&directory).map_err(|errno| on("unbind", &directory)(errno.into()))?;
    }
    Ok(())
}

fn remove(directories: &[&Path], id: WorkloadId) -> Result<(), TaskError> {
    for directory in directories {
        let path = directory.join(id.to_string());
        let failed = |errno: rustix::io::Errno| on("remove", path)(errno.into());
        match directory.to_str().map(|directory| byre_launch::remove_container_files(directory, id)) {
            // Before its service was ever started.
            Some(Ok(()) | Err(rustix::io::Errno::NOENT)) => {}
            Some(Err(errno)) => return Err(failed(errno)),
            None => return Err(failed(rustix::io::Errno::ILSEQ)),
        }
    }
    Ok(())
}

/// Notes whose files are there, before any workload can make new ones.
pub(super) fn note_found() -> Result<(), TaskError> {
    let found = found_in(&DIRECTORIES.map(Path::new))?;
    let lines: String = found.iter().map(|id| format!("{id}\n")).collect();
    std::fs::write(FOUND, lines).map_err(on("write", FOUND))
}

fn found_in(directories: &[&Path]) -> Result<BTreeSet<WorkloadId>, TaskError> {
    let mut found = BTreeSet::new();
    for directory in directories {
        match std::fs::read_dir(directory) {
            Ok(entries) => {
                found.extend(
                    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<WorkloadId>().ok()),
                );
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(on("list", *directory)(error)),
        }
    }
    Ok(found)
}

/// Removes what was found of all workloads but these.
pub(crate) fn sweep(arguments: &[String]) -> Result<(), TaskError> {
    // Their records may be among what was lost with the state partition. The next boot sweeps.
    if !disks::state_was_whole() {
        crate::console::say(
            "files of unknown containers are kept until the next boot: the state partition was damaged",
        );
        return Ok(());
    }
    let known: BTreeSet<WorkloadId> = arguments.iter().map(|text| identity(text)).collect::<Result<_, _>>()?;
    let found = std::fs::read_to_string(FOUND).map_err(on("read", FOUND))?;
    let found = found.lines().map(identity).collect::<Result<BTreeSet<_>, _>>()?;
    found.difference(&known).try_for_each(|id| remove(&DIRECTORIES.map(Path::new), *id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_there_is_found_by_identity_and_removed_everywhere() {
        let place = tempfile::tempdir().unwrap();
        let (containers, logs) = (place.path().join("containers"), place.path().join("log"));
        let missing = place.path().join("missing");
        for path in [containers.join("0000000000000001/upper"), logs.join("0000000000000001"), logs.join("lost+found")]
        {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::create_dir(logs.join("0000000000000002")).unwrap();
        let directories = [containers.as_path(), logs.as_path(), missing.as_path()];
        assert_eq!(found_in(&directories).unwrap(), BTreeSet::from([WorkloadId(1), WorkloadId(2)]));
        remove(&directories, WorkloadId(1)).unwrap();
        assert_eq!(found_in(&directories).unwrap(), BTreeSet::from([WorkloadId(2)]));
        assert!(logs.join("lost+found").exists());
    }
}
